//! The other node does not take the overlay's packets.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vxlan-udp-blocked",
    expects: &["vxlan-udp-blocked"],
    variants: &[
        Variant::fault(
            "rule",
            "a rule of the other node drops the overlay's UDP port",
        ),
        Variant::fault("down", "the other node's overlay device is down"),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("vxlan"),
        Need::Command("bridge"),
        Need::Command("iptables-nft"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let (site, peer) = topology::two_nodes(world)?;
    let options = world.options.clone();
    world.serve_tcp(&peer.pod, options.pod_port)?;
    // The healthy rule is about another port.
    let port = 8472 + u16::from(variant.name != "rule");
    let rule = format!("INPUT -p udp --dport {port} -j DROP");
    peer.node.run(&format!("iptables-nft -A {rule}"))?;
    let (device, far) = (&options.overlay, topology::network(options.bridge_address));
    if variant.name == "down" {
        peer.node.run(&format!("ip link set {device} down"))?;
    }
    let pod = at(options.peer_pod, options.pod_port);
    let target = Target::tcp("a pod of the other node", &site.pod, pod);
    // With the device its route and its neighbours went.
    let fix = [
        format!("ip link set {device} up"),
        format!(
            "ip neigh replace {far} lladdr {} dev {device} nud permanent",
            topology::vtep_mac(options.node)
        ),
        format!("ip route replace {far}/24 via {far} dev {device} onlink"),
    ];
    Ok(match variant.name {
        "down" => Plan::fixed_by(vec![target], &peer.node, fix),
        _ => Plan::fixed_as_printed(vec![target], &peer.node),
    })
}
