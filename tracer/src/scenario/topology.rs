//! The hosts that cases compose: a client, a node with its bridge and pods, a second node over VXLAN.
//!
//! ```text
//! client eth0 ── (wire or switch) ── interface node bridge ── eth0 pod, pod2
//!                       └── interface node2 bridge ── eth0 pod3      overlay: node ⇄ node2
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::kube_proxy;
use super::namespace::Namespace;
use super::world::World;

/// The kernel looks at links once a second.
const SETTLED: Duration = Duration::from_secs(5);

/// A client and a node with a pod.
pub(super) struct Site {
    /// On the LAN; its default route leads to the node.
    pub(super) client: Namespace,
    /// Forwards between the LAN and its bridge.
    pub(super) node: Namespace,
    /// On the node's bridge, which is its default gateway.
    pub(super) pod: Namespace,
    /// Carries the LAN, where the layout has a switch.
    pub(super) switch: Option<Namespace>,
}

/// A second node with a pod.
pub(super) struct Peer {
    /// On the LAN.
    pub(super) node: Namespace,
    /// On the second node's bridge.
    pub(super) pod: Namespace,
}

/// One end of a wire.
struct End<'a> {
    host: &'a Namespace,
    device: &'a str,
}

/// A veth pair between two hosts; the first end is up.
fn wire(one: &End<'_>, other: &End<'_>) -> anyhow::Result<()> {
    // `ip` moves a device to another namespace by a file that leads to it, and only descriptors of
    // this process lead to ours.
    one.host.run(&format!(
        "ip link add {} up type veth peer name {} netns {}",
        one.device,
        other.device,
        other.host.path()
    ))
}

/// A client and a node with a pod.
pub(super) fn site(world: &mut World) -> anyhow::Result<Site> {
    let switched = world.options.switched;
    build(world, switched)
}

/// The same and a second node, whose pods the first reaches over VXLAN.
pub(super) fn two_nodes(world: &mut World) -> anyhow::Result<(Site, Peer)> {
    let site = build(world, true)?;
    let options = world.options.clone();
    let (node, pod) = (world.host("node2")?, world.host("pod3")?);
    attach(&site, &node, &options.interface, "port2")?;
    address(&node, &options.interface, options.peer, 24)?;
    bridge(&node, &options.bridge, options.peer_bridge_address)?;
    plug(&node, &options.bridge, "vethpod", &pod)?;
    dress(&pod, options.peer_pod, options.peer_bridge_address)?;
    node.run("sysctl -qw net.ipv4.ip_forward=1")?;
    let (near, far) = (options.bridge_address, options.peer_bridge_address);
    for (one, addresses, bridges) in [
        (&site.node, [options.node, options.peer], [near, far]),
        (&node, [options.peer, options.node], [far, near]),
    ] {
        overlay(
            one,
            &options.overlay,
            &options.interface,
            addresses,
            bridges,
        )?;
    }
    Ok((site, Peer { node, pod }))
}

fn build(world: &mut World, switched: bool) -> anyhow::Result<Site> {
    let options = world.options.clone();
    let (client, node, pod) = (
        world.host("client")?,
        world.host("node")?,
        world.host("pod")?,
    );
    let mut site = Site {
        client,
        node,
        pod,
        switch: None,
    };
    if switched {
        let switch = world.host("lan")?;
        switch.run_all(&[
            "ip link add lan type bridge".into(),
            "ip link set lan up".into(),
        ])?;
        site.switch = Some(switch);
    }
    let Site {
        client, node, pod, ..
    } = &site;
    if switched {
        attach(&site, client, "eth0", "port0")?;
        attach(&site, node, &options.interface, "port1")?;
    } else {
        wire(
            &End {
                host: node,
                device: &options.interface,
            },
            &End {
                host: client,
                device: "eth0",
            },
        )?;
    }
    address(node, &options.interface, options.node, 24)?;
    dress(client, options.client, options.node)?;
    bridge(node, &options.bridge, options.bridge_address)?;
    plug(node, &options.bridge, "vethpod", pod)?;
    dress(pod, options.pod, options.bridge_address)?;
    node.run("sysctl -qw net.ipv4.ip_forward=1")?;
    for number in 0..options.bystanders {
        let pod = world.host(&format!("idle{number}"))?;
        plug(node, &options.bridge, &format!("vethidle{number}"), &pod)?;
        pod.run("ip link set eth0 up")?;
    }
    Ok(site)
}

/// Puts a host on the switch.
fn attach(site: &Site, host: &Namespace, device: &str, port: &str) -> anyhow::Result<()> {
    let Some(switch) = &site.switch else {
        anyhow::bail!("the LAN has no switch to put {device} on");
    };
    wire(
        &End { host, device },
        &End {
            host: switch,
            device: port,
        },
    )?;
    switch.run(&format!("ip link set {port} up master lan"))
}

/// A bridge with an address.
pub(super) fn bridge(node: &Namespace, name: &str, gateway: Ipv4Addr) -> anyhow::Result<()> {
    node.run_all(&[
        format!("ip link add {name} type bridge"),
        format!("ip addr add {gateway}/24 dev {name}"),
        format!("ip link set {name} up"),
    ])
}

/// Puts a pod on a bridge by a port.
pub(super) fn plug(
    node: &Namespace,
    bridge: &str,
    port: &str,
    pod: &Namespace,
) -> anyhow::Result<()> {
    wire(
        &End {
            host: node,
            device: port,
        },
        &End {
            host: pod,
            device: "eth0",
        },
    )?;
    node.run(&format!("ip link set {port} master {bridge}"))
}

/// Waits until the kernel counts a bridge port as up: it becomes forwarding then, whatever it was set to
/// before.
pub(super) fn settle_port(node: &Namespace, port: &str) -> anyhow::Result<()> {
    let up = |shown: &str| shown.contains("state UP");
    let line = format!("ip -o link show {port}");
    settle(node, &line, up, "it does not come up")
}

/// Waits until a command shows what it should.
fn settle(
    host: &Namespace,
    line: &str,
    so: impl Fn(&str) -> bool,
    otherwise: &str,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !so(&host.output(line)?) {
        anyhow::ensure!(begun.elapsed() < SETTLED, "{line}: {otherwise}");
        thread::sleep(SETTLED / 20);
    }
    Ok(())
}

/// Another pod on the node's bridge.
pub(super) fn second_pod(world: &mut World, site: &Site) -> anyhow::Result<Namespace> {
    let options = world.options.clone();
    let pod = world.host("pod2")?;
    plug(&site.node, &options.bridge, "vethpod2", &pod)?;
    dress(&pod, options.second_pod, options.bridge_address)?;
    Ok(pod)
}

/// A host on another machine, behind a second card of the node: what happens there is not traced.
pub(super) fn far(world: &mut World, site: &Site) -> anyhow::Result<Namespace> {
    const CARD: &str = "uplink";
    let own = world.options.outside;
    let gateway = Ipv4Addr::from_bits(network(own).to_bits() | 254);
    let far = world.elsewhere("far")?;
    wire(
        &End {
            host: &site.node,
            device: CARD,
        },
        &End {
            host: &far,
            device: "eth0",
        },
    )?;
    address(&site.node, CARD, gateway, 24)?;
    dress(&far, own, gateway)?;
    Ok(far)
}

/// Sets a host's eth0 up, with an address and a default route.
pub(super) fn dress(host: &Namespace, own: Ipv4Addr, gateway: Ipv4Addr) -> anyhow::Result<()> {
    host.run_all(&[
        "ip link set eth0 up".into(),
        format!("ip addr add {own}/24 dev eth0"),
        format!("ip route add default via {gateway}"),
    ])
}

/// An address on a device.
fn address(host: &Namespace, device: &str, own: Ipv4Addr, length: u8) -> anyhow::Result<()> {
    host.run(&format!("ip addr add {own}/{length} dev {device}"))
}

/// One end of the overlay, as flannel makes it: the first address of this node's pods on its device, the
/// other node's pods by theirs, with neighbour and FDB entries in advance. Addresses and bridges are this
/// node's and the other's.
fn overlay(
    node: &Namespace,
    device: &str,
    interface: &str,
    [here, there]: [Ipv4Addr; 2],
    bridges: [Ipv4Addr; 2],
) -> anyhow::Result<()> {
    let [near_net, far_net] = bridges.map(network);
    node.run_all(&[
        format!(
            "ip link add {device} address {} type vxlan id 1 dev {interface} local {here} dstport 8472 nolearning udpcsum",
            vtep_mac(here)
        ),
        format!("ip addr add {near_net}/32 dev {device}"),
        format!("ip link set {device} up"),
        format!("ip neigh add {far_net} lladdr {} dev {device} nud permanent", vtep_mac(there)),
        format!("bridge fdb append {} dev {device} dst {there}", vtep_mac(there)),
        format!("ip route add {far_net}/24 via {far_net} dev {device} onlink"),
    ])
}

/// First address of a /24.
pub(super) fn network(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & !0xff)
}

/// The address of a node's overlay device, made of its own address.
pub(super) fn vtep_mac(node: Ipv4Addr) -> String {
    let [one, two, three, four] = node.octets();
    format!("0a:58:{one:02x}:{two:02x}:{three:02x}:{four:02x}")
}

/// The IPv6 address that goes with an IPv4 one; hosts of one /24 share a /64.
pub(super) fn ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let [one, two, three, four] = address.octets().map(u16::from);
    Ipv6Addr::new(0xfd00, one, two, three, 0, 0, 0, four)
}

/// Gives the client, the node and the pod IPv6 addresses and routes beside those of IPv4.
pub(super) fn dual_stack(world: &World, site: &Site) -> anyhow::Result<()> {
    let options = &world.options;
    let own =
        |address, device: &str| format!("ip addr add {}/64 dev {device} nodad", ipv6(address));
    let gateway = |address| format!("ip -6 route add default via {}", ipv6(address));
    site.node.run_all(&[
        own(options.node, &options.interface),
        own(options.bridge_address, &options.bridge),
    ])?;
    site.client
        .run_all(&[own(options.client, "eth0"), gateway(options.node)])?;
    site.pod
        .run_all(&[own(options.pod, "eth0"), gateway(options.bridge_address)])?;
    [&site.client, &site.node, &site.pod]
        .into_iter()
        .try_for_each(settle_addresses)
}

/// Waits until no other host was found to have the host's link-local addresses: until then it asks nobody
/// for a neighbour.
fn settle_addresses(host: &Namespace) -> anyhow::Result<()> {
    settle(
        host,
        "ip -6 -o addr show tentative",
        str::is_empty,
        "its IPv6 addresses stay tentative",
    )
}

/// The service's ClusterIP leads to an endpoint, as kube-proxy in iptables mode makes it.
pub(super) fn service(world: &World, node: &Namespace, endpoint: Ipv4Addr) -> anyhow::Result<()> {
    let options = &world.options;
    node.run(&format!(
        "iptables -t nat -A PREROUTING -d {}/32 -p tcp --dport {} -j DNAT --to-destination {endpoint}:{}",
        options.service, options.service_port, options.pod_port
    ))
}

/// The same for UDP, at any address and port.
pub(super) fn udp_service(
    world: &World,
    node: &Namespace,
    service: SocketAddr,
    endpoint: Ipv4Addr,
) -> anyhow::Result<()> {
    node.run(&format!(
        "iptables -t nat -A PREROUTING -d {}/32 -p udp --dport {} -j DNAT --to-destination {endpoint}:{}",
        service.ip(),
        service.port(),
        world.options.pod_port
    ))
}

/// A TCP virtual server as kube-proxy in ipvs mode makes it, without real servers yet; the command
/// that adds the pod.
pub(super) fn virtual_server(
    world: &World,
    site: &Site,
    server: SocketAddr,
) -> anyhow::Result<String> {
    let options = &world.options;
    if server.ip() == options.service {
        kube_proxy::hold_address(&site.node, options.service)?;
    }
    site.node.run_all(&[
        "sysctl -qw net.ipv4.vs.conntrack=1".into(),
        format!("ipvsadm -A -t {server} -s rr"),
    ])?;
    Ok(format!(
        "ipvsadm -a -t {server} -r {}:{} -m -w 1",
        options.pod, options.pod_port
    ))
}
