//! Two pods of one bridge have the same address, and the node believes the wrong one.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "duplicate-address",
    expects: &["duplicate-address"],
    variants: &[
        Variant::fault("pods", "another pod has the pod's address too"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let second = topology::second_pod(world, &site)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let (pod, bridge) = (options.pod, &options.bridge);
    let mac = topology::vtep_mac(options.second_pod);
    second.run(&format!("ip link set eth0 address {mac}"))?;
    if variant.fault {
        second.run(&format!("ip addr add {pod}/24 dev eth0"))?;
        // As after its answer to ARP.
        site.node.run(&format!(
            "ip neigh replace {pod} lladdr {mac} dev {bridge} nud reachable"
        ))?;
    }
    let node = site.node;
    let target = Target::tcp("the pod", &site.client, at(pod, options.pod_port));
    let flush = format!("ip neigh flush dev {bridge} to {pod}");
    Ok(Plan::fixed_with(vec![target], move |_| {
        second.run(&format!("ip addr del {pod}/24 dev eth0"))?;
        node.run(&flush)
    }))
}
