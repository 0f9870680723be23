//! A service that kube-proxy has not made a virtual server for.

use std::time::Duration;

use serde_json::json;

use crate::scenario::kube_proxy::StandIn;
use crate::scenario::namespace::Namespace;
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::topology::Site;
use crate::scenario::traffic::{Server, tcp_attempt};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "kube-proxy-stale",
    expects: &["kube-proxy-stale"],
    variants: &[
        Variant {
            likely: Some("a sync period has to pass before kube-proxy is late"),
            ..Variant::fault(
                "real-server",
                "the ready endpoint is not among the real servers",
            )
        },
        Variant {
            likely: Some("a sync period has to pass before kube-proxy is late"),
            ..Variant::fault(
                "iptables",
                "there is no rule for the service, and packets leave by the default route",
            )
        },
        Variant::fault(
            "unhealthy",
            "the same, and kube-proxy says that it is not healthy",
        ),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("iptables"),
    ],
    not_on: &[],
    build,
};

/// Time for the first repetition of a SYN, after one second.
const REPEATED: Duration = Duration::from_millis(2500);
/// Where kube-proxy says how it is, when it is not told otherwise.
const HEALTHZ: u16 = 10256;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let service = at(options.service, options.service_port);
    if variant.name == "iptables" {
        return by_rules(world, site);
    }
    let fix = topology::virtual_server(world, &site, service)?;
    world.cluster = Objects::new(&options)
        .service(&options, "TCP", json!({"type": "ClusterIP"}))
        .slice(&options, "TCP", &[Endpoint::ready(options.pod)])
        .facts("ipvs")?;
    if !variant.fault {
        site.node.run(&fix)?;
    }
    let targets = vec![Target::tcp("the service", &site.client, service)];
    if variant.name != "unhealthy" {
        return Ok(Plan::fixed_by(targets, &site.node, [fix]));
    }
    let start =
        |node: &Namespace| StandIn::start("kube-proxy", node, None, &["--proxy-mode=ipvs".into()]);
    world.stand_ins.push(start(&site.node)?);
    let health = Server::http(&site.node, HEALTHZ, 503)?;
    let node = site.node;
    Ok(Plan::fixed_with(targets, move |world| {
        // kube-proxy started anew syncs.
        drop(health);
        world.stand_ins.clear();
        world.stand_ins.push(start(&node)?);
        node.run(&fix)
    }))
}

/// kube-proxy in iptables mode, which has made its chains and no rule for the service.
fn by_rules(world: &mut World, site: Site) -> anyhow::Result<Plan> {
    let options = world.options.clone();
    let beyond = topology::far(world, &site)?;
    let node = site.node;
    node.run_all(&[
        format!("ip route add default via {}", options.outside),
        "iptables -t nat -N KUBE-SERVICES".into(),
        "iptables -t nat -A PREROUTING -j KUBE-SERVICES".into(),
    ])?;
    world.cluster = Objects::new(&options)
        .service(&options, "TCP", json!({"type": "ClusterIP"}))
        .slice(&options, "TCP", &[Endpoint::ready(options.pod)])
        .facts("iptables")?;
    let service = at(options.service, options.service_port);
    let target = Target::custom("the service", &site.client, service, move |from| {
        tcp_attempt(from, service, REPEATED)
    });
    let fix = [
        "iptables -t nat -N KUBE-SEP-WEB".into(),
        format!(
            "iptables -t nat -A KUBE-SEP-WEB -p tcp -j DNAT --to-destination {}:{}",
            options.pod, options.pod_port
        ),
        "iptables -t nat -N KUBE-SVC-WEB".into(),
        "iptables -t nat -A KUBE-SVC-WEB -j KUBE-SEP-WEB".into(),
        format!(
            "iptables -t nat -A KUBE-SERVICES -d {}/32 -p tcp --dport {} -j KUBE-SVC-WEB",
            options.service, options.service_port
        ),
    ];
    Ok(Plan::fixed_with(vec![target.once()], move |_| {
        node.run_all(&fix)?;
        // Until now the default route led there.
        drop(beyond);
        Ok(())
    }))
}
