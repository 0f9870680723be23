//! A host on the LAN sends from an address that the node itself has.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "martian-source",
    expects: &["martian-source"],
    variants: &[
        Variant::fault("own", "the client has an address of the node"),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let taken = options.bridge_address;
    if variant.fault {
        site.client.run_all(&[
            // ARP asks from the address of the LAN, else nobody would answer it.
            "sysctl -qw net.ipv4.conf.eth0.arp_announce=2".into(),
            format!("ip addr add {taken}/32 dev eth0"),
            format!("ip route replace default via {} src {taken}", options.node),
        ])?;
    }
    let pod = at(options.pod, options.pod_port);
    Ok(Plan::fixed_by(
        vec![Target::tcp("the pod", &site.client, pod)],
        &site.client,
        [
            format!("ip route replace default via {}", options.node),
            format!("ip addr del {taken}/32 dev eth0"),
        ],
    ))
}
