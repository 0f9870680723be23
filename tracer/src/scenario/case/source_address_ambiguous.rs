//! A node with a second network card sends to another node from the second card's address.

use crate::scenario::objects::Objects;
use crate::scenario::world::at;
use crate::scenario::{Plan, Scenario, Target, Variant, World, topology};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "source-address-ambiguous",
    expects: &["source-address-ambiguous"],
    variants: &[
        Variant::fault(
            "second-card",
            "the route to the other node takes the second card's address",
        ),
        Variant::HEALTHY,
    ],
    needs: &[],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let (site, peer) = topology::two_nodes(world)?;
    let options = world.options.clone();
    let (interface, other) = (&options.interface, options.outside);
    let second = format!("{interface}b");
    world.serve_tcp(&peer.node, options.pod_port)?;
    site.node.run_all(&[
        format!(
            "ip link add {second} up type veth peer name {second} netns {}",
            peer.node.path()
        ),
        format!("ip addr add {other}/32 dev {second}"),
        // ARP asks from the address of the LAN, else nobody would answer it.
        format!("sysctl -qw net/ipv4/conf/{interface}/arp_announce=2"),
    ])?;
    peer.node.run_all(&[
        format!("ip link set {second} up"),
        format!("ip route add {other}/32 dev {second}"),
        format!("sysctl -qw net/ipv4/conf/{interface}/rp_filter=1"),
    ])?;
    let route = |source| {
        format!(
            "ip route replace {}/32 dev {interface} src {source}",
            options.peer
        )
    };
    let (wrong, right) = (route(other), route(options.node));
    site.node.run(if variant.fault { &wrong } else { &right })?;
    world.cluster = Objects::new(&options).peer(&options).facts("iptables")?;
    let port = at(options.peer, options.pod_port);
    let target = Target::tcp("the other node", &site.node, port);
    let plan = Plan::fixed_as_printed(vec![target], &site.node).by_way(1);
    Ok(plan.showing(&site.node, format!("ip route get {}", options.peer)))
}
