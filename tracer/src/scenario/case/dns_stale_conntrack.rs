//! A resolver keeps its source port, the DNS pod that it was sent to is gone, and its conntrack entry
//! is not: kube-proxy found no `conntrack` to delete it with.

use serde_json::json;

use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "dns-stale-conntrack",
    expects: &["dns-stale-conntrack"],
    variants: &[
        Variant::fault("gone", "the entry leads to a pod that is gone"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables"), Need::Command("conntrack")],
    not_on: &[],
    likely: None,
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let second = topology::second_pod(world, &site)?;
    let options = world.options.clone();
    let node = site.node.clone();
    for pod in [&site.pod, &second] {
        world.serve_udp(pod, options.pod_port)?;
    }
    node.run(&format!(
        "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
        options.bridge
    ))?;
    topology::udp_service(world, &node, options.service, options.second_pod)?;
    let service = at(options.service, options.service_port);
    let plan = Datagrams {
        from_port: options.node_port,
        ..Datagrams::ONE
    };
    datagrams(&site.client, service, plan)?;
    // The pod goes, its endpoint with it, and another takes its place.
    second.run(&format!("ip addr del {}/24 dev eth0", options.second_pod))?;
    node.run_all(&[
        format!("ip neigh flush dev {}", options.bridge),
        "iptables -t nat -F PREROUTING".into(),
    ])?;
    topology::udp_service(world, &node, options.service, options.pod)?;
    world.cluster = Objects::new(&options)
        .service(&options, "UDP", json!({}))
        .slice(&options, "UDP", &[Endpoint::ready(options.pod)])
        .facts("iptables")?;
    let fix = format!(
        "conntrack -D -p udp --orig-dst {} --orig-port-dst {}",
        service.ip(),
        service.port()
    );
    if !variant.fault {
        node.run(&fix)?;
    }
    let kept = Target::custom(
        "the service from a port that was used before",
        &site.client,
        service,
        move |from| datagrams(from, service, plan),
    );
    let fresh = Target::udp("the service from a new port", &site.client, service);
    let plan = Plan::fixed_by(vec![fresh, kept], &node, [fix]);
    Ok(plan.showing(&node, "conntrack -L -p udp"))
}
