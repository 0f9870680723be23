//! The overlay of the node does not know behind which node the other node's pods are.

use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vxlan-no-fdb",
    expects: &["vxlan-no-fdb"],
    variants: &[
        Variant::fault("fdb", "the forwarding entry of the other node is missing"),
        Variant::fault(
            "neighbour",
            "the neighbour entry of the other node is missing",
        ),
        Variant::HEALTHY,
    ],
    needs: &[Need::Module("vxlan"), Need::Command("bridge")],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let (site, peer) = topology::two_nodes(world)?;
    let options = world.options.clone();
    world.serve_tcp(&peer.pod, options.pod_port)?;
    let (device, mac) = (&options.overlay, topology::vtep_mac(options.peer));
    let far = topology::network(options.peer_bridge_address);
    let fix = match variant.name {
        "neighbour" => {
            site.node.run_all(&[
                format!("sysctl -qw net/ipv4/neigh/{device}/retrans_time_ms=300"),
                format!("ip neigh del {far} dev {device}"),
            ])?;
            format!("ip neigh replace {far} lladdr {mac} dev {device} nud permanent")
        }
        _ => {
            if variant.fault {
                site.node
                    .run(&format!("bridge fdb del {mac} dev {device}"))?;
            }
            format!("bridge fdb append {mac} dev {device} dst {}", options.peer)
        }
    };
    let pod = at(options.peer_pod, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("a pod of the other node", &site.pod, pod)],
        &site.node,
        [fix],
    ))
}
