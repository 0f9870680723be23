//! A sender's packets leave with a wrong TCP checksum, as a broken offload makes them.

use crate::scenario::world::at;
use crate::scenario::{Need, NotOn, Plan, Scenario, Target, Variant, World, offload, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "bad-checksum",
    expects: &["bad-checksum"],
    variants: &[
        Variant::fault("tcp", "the client's TCP checksums are wrong"),
        Variant::HEALTHY,
    ],
    needs: &[Need::Command("nft")],
    not_on: &[NotOn {
        kernel: "5.10.",
        why: "it has no drop reasons, and the function that drops has many",
    }],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    offload::transmit_off(&site.client, "eth0")?;
    if variant.fault {
        site.client.run_all(&[
            "nft add table ip broken".into(),
            "nft 'add chain ip broken out { type filter hook output priority 0 ; }'".into(),
            // Before the checksum is computed its field holds a part of it.
            format!(
                "nft add rule ip broken out tcp dport {} tcp checksum set 0x1234",
                options.pod_port
            ),
        ])?;
    }
    let pod = at(options.pod, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("the pod", &site.client, pod)],
        &site.client,
        ["nft delete table ip broken".into()],
    ))
}
