//! The node forwards, and has no route for the destination.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "no-route",
    expects: &["no-route"],
    variants: &[
        Variant::fault(
            "none",
            "no route holds the destination, not even a default one",
        ),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let outside = options.outside;
    // The pod is the next router, and the destination itself.
    site.pod.run(&format!("ip addr add {outside}/32 dev lo"))?;
    world.serve_tcp(&site.pod, options.pod_port)?;
    let route = format!(
        "ip route add {outside}/32 via {} dev {}",
        options.pod, options.bridge
    );
    if !variant.fault {
        site.node.run(&route)?;
    }
    let address = at(outside, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("a host behind the node", &site.client, address)],
        &site.node,
        [route],
    ))
}
