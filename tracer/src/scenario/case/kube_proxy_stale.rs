//! A service that kube-proxy has not made a virtual server for.

use serde_json::json;

use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "kube-proxy-stale",
    expects: &["kube-proxy-stale"],
    variants: &[
        Variant {
            name: "real-server",
            title: "the ready endpoint is not among the real servers",
            fault: true,
            // What is certain comes before what is likely.
            expects: &["ipvs-no-destination", "kube-proxy-stale"],
        },
        Variant::HEALTHY,
    ],
    needs: Need::IPVS,
    not_on: &[],
    likely: Some("a sync period has to pass before kube-proxy is late"),
    build,
};

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
    Ok(Plan::fixed_by(
        vec![Target::tcp("the service", &site.client, service)],
        &site.node,
        [fix],
    ))
}
