//! A service that kube-proxy has not made a virtual server for.

use serde_json::json;

use crate::scenario::kube_proxy::StandIn;
use crate::scenario::namespace::Namespace;
use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::traffic::Server;
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
        Variant::fault(
            "unhealthy",
            "the same, and kube-proxy says that it is not healthy",
        ),
        Variant::HEALTHY,
    ],
    needs: Need::IPVS,
    not_on: &[],
    build,
};

/// Where kube-proxy says how it is, when it is not told otherwise.
const HEALTHZ: u16 = 10256;

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let service = at(options.service, options.service_port);
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
