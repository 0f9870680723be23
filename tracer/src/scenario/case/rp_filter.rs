//! A host with a second address sends from it, and the node's way back to that address leads by
//! another device.

use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "rp-filter",
    expects: &["rp-filter"],
    variants: &[
        Variant::fault(
            "strict",
            "rp_filter is 1 and the route back leads by another device",
        ),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    let (outside, interface) = (options.outside, &options.interface);
    world.serve_tcp(&site.pod, options.pod_port)?;
    site.client.run_all(&[
        // ARP asks from the address of the LAN, else nobody would answer it.
        "sysctl -qw net.ipv4.conf.eth0.arp_announce=2".into(),
        format!("ip addr add {outside}/32 dev eth0"),
        format!(
            "ip route replace default via {} src {outside}",
            options.node
        ),
    ])?;
    site.node
        .run(&format!("sysctl -qw net.ipv4.conf.{interface}.rp_filter=1"))?;
    let right = format!("via {} dev {interface}", options.client);
    let wrong = format!("via {} dev {}", options.second_pod, options.bridge);
    let way = if variant.fault { &wrong } else { &right };
    site.node.run(&format!("ip route add {outside}/32 {way}"))?;
    let pod = at(options.pod, options.pod_port);
    let target = Target::tcp("the pod", &site.client, pod);
    // Another filter alone would not bring the answers back.
    Ok(Plan::fixed_as_printed(vec![target], &site.node).by_way(1))
}
