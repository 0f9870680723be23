//! A service whose only pod is not ready.

use serde_json::json;

use crate::scenario::objects::{Endpoint, Objects};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "endpoint-not-ready",
    expects: &["endpoint-not-ready"],
    variants: &[
        Variant::fault("ipvs", "the only endpoint has ready=false"),
        Variant::HEALTHY,
    ],
    needs: Need::IPVS,
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let service = at(options.service, options.service_port);
    let fix = topology::virtual_server(world, &site, service)?;
    let facts = move |ready| {
        let endpoint = Endpoint {
            ready,
            ..Endpoint::ready(options.pod)
        };
        Objects::new(&options)
            .service(&options, "TCP", json!({}))
            .slice(&options, "TCP", &[endpoint])
            .pod(options.pod, json!({}))
            .facts("ipvs")
    };
    world.cluster = facts(!variant.fault)?;
    if !variant.fault {
        site.node.run(&fix)?;
    }
    let target = Target::tcp("the service", &site.client, service);
    let node = site.node;
    Ok(Plan::fixed_with(vec![target], move |world| {
        world.cluster = facts(true)?;
        node.run(&fix)
    }))
}
