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
    let (fault, fix) = match variant.name {
        "rule" => ("rule add", "rule del"),
        _ => ("route add", "route del"),
    };
    let what = match variant.name {
        "rule" => format!("to {pod}/32 prohibit"),
        kind => format!("{kind} {pod}/32"),
    };
    if variant.fault {
        site.node.run(&format!("ip {fault} {what}"))?;
    }
    Ok(Plan::fixed_by(
        vec![Target::tcp(
            "the pod",
            &site.client,
            at(pod, options.pod_port),
        )],
        &site.node,
        [format!("ip {fix} {what}")],
    ))
}
