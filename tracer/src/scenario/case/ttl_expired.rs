//! Two nodes each believe that the other one is nearer to an address.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "ttl-expired",
    expects: &["ttl-expired"],
    variants: &[
        Variant::fault("loop", "each of two nodes sends the packet to the other"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let (site, peer) = topology::two_nodes(world)?;
    let options = world.options.clone();
    let (outside, interface) = (options.outside, &options.interface);
    peer.pod.run(&format!("ip addr add {outside}/32 dev lo"))?;
    world.serve_tcp(&peer.pod, options.pod_port)?;
    let right = format!("via {} dev {}", options.peer_pod, options.bridge);
    let wrong = format!("via {} dev {interface}", options.node);
    let way = if variant.fault { &wrong } else { &right };
    site.node.run(&format!(
        "ip route add {outside}/32 via {} dev {interface}",
        options.peer
    ))?;
    peer.node.run(&format!("ip route add {outside}/32 {way}"))?;
    let address = at(outside, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp(
            "a host behind two nodes",
            &site.client,
            address,
        )],
        &peer.node,
        [format!("ip route replace {outside}/32 {right}")],
    ))
}
