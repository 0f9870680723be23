//! A resolver keeps its source port, the DNS pod that it was sent to is gone, and its conntrack entry
//! is not: kube-proxy found no `conntrack` to delete it with. Or it asked before the service had its rules.

use std::time::Duration;

use serde_json::json;

use crate::scenario::namespace::Namespace;
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "dns-stale-conntrack",
    expects: &["dns-stale-conntrack"],
    variants: &[
        Variant::fault("gone", "the entry leads to a pod that is gone"),
        Variant::fault("early", "the entry is older than the service's rules"),
        Variant::fault(
            "node-port",
            "the entry of a NodePort leads to a pod that is gone",
        ),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("iptables"), Need::Command("conntrack")],
    not_on: &[],
    build,
};

/// Longer than the three tries for a neighbour, one each [`RETRANSMISSION_MS`].
const GIVEN_UP: Duration = Duration::from_millis(1500);
const RETRANSMISSION_MS: u32 = 300;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let second = topology::second_pod(world, &site)?;
    let options = world.options.clone();
    let node = site.node.clone();
    for pod in [&site.pod, &second] {
        world.serve_udp(pod, options.pod_port)?;
    }
    node.run(&format!(
        "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms={RETRANSMISSION_MS}",
        options.bridge
    ))?;
    let service = match variant.name {
        "node-port" => at(options.node, options.node_port),
        _ => at(options.service, options.service_port),
    };
    let early = variant.name == "early";
    if early {
        without_rules(world, &node)?;
    } else {
        topology::udp_service(world, &node, service, options.second_pod)?;
    }
    let plan = Datagrams {
        from_port: options.node_port,
        ..Datagrams::ONE
    };
    datagrams(&site.client, service, plan)?;
    if early {
        // What waits for the gateway in vain is no part of what is traced.
        std::thread::sleep(GIVEN_UP);
    } else {
        // The pod goes, its endpoint with it, and another takes its place.
        second.run(&format!("ip addr del {}/24 dev eth0", options.second_pod))?;
        node.run_all(&[
            format!("ip neigh flush dev {}", options.bridge),
            "iptables -t nat -F PREROUTING".into(),
        ])?;
    }
    topology::udp_service(world, &node, service, options.pod)?;
    world.cluster = Objects::new(&options)
        .service(&options, "UDP", json!({}))
        .slice(&options, "UDP", &[Endpoint::ready(options.pod)])
        .facts("iptables")?;
    if !variant.fault {
        // What kube-proxy does.
        node.run(&format!(
            "conntrack -D -p udp --orig-dst {} --orig-port-dst {}",
            service.ip(),
            service.port()
        ))?;
    }
    let kept = Target::custom(
        "the service from a port that was used before",
        &site.client,
        service,
        move |from| datagrams(from, service, plan),
    );
    let fresh = Target::udp("the service from a new port", &site.client, service);
    let plan = Plan::fixed_as_printed(vec![fresh, kept], &node);
    Ok(plan.showing(&node, "conntrack -L -p udp"))
}

/// The node translates its services and does not know this one yet: packets for it go to the node's gateway,
/// which is away.
fn without_rules(world: &World, node: &Namespace) -> anyhow::Result<()> {
    let options = &world.options;
    topology::service(world, node, options.pod)?;
    node.run_all(&[
        // The gateway is in the client's network, and the client is not to be told of it.
        format!(
            "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{}.send_redirects=0",
            options.interface
        ),
        format!(
            "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms={RETRANSMISSION_MS}",
            options.interface
        ),
        // An entry without a reply goes after 30 s; one who asks again and again keeps it.
        "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=120".into(),
        format!("ip route add default via {}", options.peer),
    ])
}
