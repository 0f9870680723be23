//! A node's overlay packets leave with a wrong outer UDP checksum, as a broken offload makes them.

use crate::scenario::world::at;
use crate::scenario::{Need, NotOn, Plan, Scenario, Target, Variant, World, offload, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vxlan-checksum",
    expects: &["vxlan-checksum"],
    variants: &[
        Variant::fault(
            "outer",
            "the outer checksums of the node's overlay are wrong",
        ),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("vxlan"),
        Need::Command("bridge"),
        Need::Command("nft"),
    ],
    not_on: &[NotOn {
        kernel: "5.10.",
        why: "it has no drop reasons, and the function that drops has many",
    }],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let (site, peer) = topology::two_nodes(world)?;
    let options = world.options.clone();
    world.serve_tcp(&peer.pod, options.pod_port)?;
    offload::transmit_off(&site.node, &options.interface)?;
    if variant.fault {
        site.node.run_all(&[
            "nft add table ip broken".into(),
            "nft 'add chain ip broken out { type filter hook output priority 0 ; }'".into(),
            "nft add rule ip broken out udp dport 8472 udp checksum set 0x1234".into(),
        ])?;
    }
    let pod = at(options.peer_pod, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("a pod of the other node", &site.pod, pod)],
        &site.node,
        ["nft delete table ip broken".into()],
    ))
}
