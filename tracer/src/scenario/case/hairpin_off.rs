//! A pod calls a service that leads to itself, and its bridge port has no hairpin mode.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "hairpin-off",
    expects: &["hairpin-off"],
    variants: &[
        Variant::fault("off", "hairpin is off on the pod's port"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("bridge"), Need::Command("iptables")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    topology::service(world, &site.node, options.pod)?;
    // As kube-proxy does for a pod that reaches itself.
    site.node.run(&format!(
        "iptables -t nat -A POSTROUTING -s {pod}/32 -d {pod}/32 -j MASQUERADE",
        pod = options.pod
    ))?;
    if !variant.fault {
        site.node.run("bridge link set dev vethpod hairpin on")?;
    }
    let service = at(options.service, options.service_port);
    let target = Target::tcp("its own service", &site.pod, service);
    Ok(Plan::fixed_as_printed(vec![target], &site.node))
}
