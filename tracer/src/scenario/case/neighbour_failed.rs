//! The pod of an address does not answer ARP: it has another address.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "neighbour-failed",
    expects: &["neighbour-failed"],
    variants: &[
        Variant::fault("silent", "nobody on the bridge has the address"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let pod = topology::second_pod(world, &site)?;
    world.serve_tcp(&pod, options.pod_port)?;
    let own = options.second_pod;
    if variant.fault {
        // Three probes of a third of a second instead of a second each.
        site.node.run(&format!(
            "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
            options.bridge
        ))?;
        pod.run(&format!("ip addr del {own}/24 dev eth0"))?;
    }
    Ok(Plan::fixed_by(
        vec![Target::tcp(
            "the pod",
            &site.client,
            at(own, options.pod_port),
        )],
        &pod,
        [
            format!("ip addr add {own}/24 dev eth0"),
            format!("ip route add default via {}", options.bridge_address),
        ],
    ))
}
