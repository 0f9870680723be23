//! A route or a policy rule of the node throws packets for the pod away.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "route-blackhole",
    expects: &["route-blackhole"],
    variants: &[
        Variant::fault("blackhole", "a blackhole route to the pod"),
        Variant::fault("unreachable", "an unreachable route to the pod"),
        Variant::fault("prohibit", "a prohibit route to the pod"),
        Variant::fault("rule", "a policy rule that prohibits packets for the pod"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let pod = options.pod;
    world.serve_tcp(&site.pod, options.pod_port)?;
    match variant.name {
        "rule" => site
            .node
            .run(&format!("ip rule add to {pod}/32 prohibit"))?,
        kind if variant.fault => site.node.run(&format!("ip route add {kind} {pod}/32"))?,
        _ => {}
    }
    let target = Target::tcp("the pod", &site.client, at(pod, options.pod_port));
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
