//! Two faults at once, and a fault beside heavy healthy traffic: each is to be named, and nothing else.
//!
//! A part does something to one of the node's two pods, so that any two parts make a case.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::event::protocol;
use crate::scenario::kube_proxy::{self, Service, StandIn};
use crate::scenario::namespace::Namespace;
use crate::scenario::topology::{self, Site};
use crate::scenario::traffic::{Datagrams, datagrams};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "mixed",
    expects: &[],
    variants: &[
        Variant::mixed("rule-deaf", &["filter-rule-drop", "no-listener"]),
        Variant::mixed("blackhole-silent", &["route-blackhole", "neighbour-failed"]),
        Variant::mixed("down-deaf", &["veth-peer-down", "no-listener"]),
        Variant::mixed("narrow-rule", &["mtu-exceeded", "filter-rule-drop"]),
        Variant::mixed(
            "blocked-blackhole",
            &["bridge-port-blocked", "route-blackhole"],
        ),
        Variant::mixed("silent-narrow", &["neighbour-failed", "mtu-exceeded"]),
        Variant::mixed("vip-rule", &["vip-nodeport-unbound", "filter-rule-drop"]),
        Variant::beside_traffic("vip-busy", &["vip-nodeport-unbound"]),
        Variant::beside_traffic("silent-busy", &["neighbour-failed"]),
        Variant::beside_traffic("rule-busy", &["filter-rule-drop"]),
        Variant::beside_traffic("deaf-busy", &["no-listener"]),
        Variant::beside_traffic("narrow-busy", &["mtu-exceeded"]),
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("iptables"),
        Need::Command("bridge"),
    ],
    not_on: &[],
    build,
};

/// What is done to a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A rule drops what is for it.
    Rule,
    /// A blackhole route holds it.
    Blackhole,
    /// It has another address, and does not answer ARP.
    Silent,
    /// Nothing listens in it.
    Deaf,
    /// Its end of the veth pair is down.
    Down,
    /// Its bridge port takes small packets only.
    Narrow,
    /// Its bridge port is blocked.
    Blocked,
    /// It is behind a NodePort, and asked on a VIP that kube-proxy does not serve.
    Vip,
    /// Nothing; it is asked without a pause.
    Busy,
}

impl Part {
    /// The part with this name.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "rule" => Self::Rule,
            "blackhole" => Self::Blackhole,
            "silent" => Self::Silent,
            "deaf" => Self::Deaf,
            "down" => Self::Down,
            "narrow" => Self::Narrow,
            "blocked" => Self::Blocked,
            "vip" => Self::Vip,
            "busy" => Self::Busy,
            _ => return None,
        })
    }
}

/// A pod of the node.
#[derive(Clone)]
struct Spot {
    pod: Namespace,
    address: Ipv4Addr,
    port: &'static str,
}

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let second = topology::second_pod(world, &site)?;
    let options = world.options.clone();
    site.node.run(&format!(
        "sysctl -qw net.ipv4.neigh.{}.retrans_time_ms=300",
        options.bridge
    ))?;
    let spots = [
        Spot {
            pod: site.pod.clone(),
            address: options.pod,
            port: "vethpod",
        },
        Spot {
            pod: second,
            address: options.second_pod,
            port: "vethpod2",
        },
    ];
    let parts = variant.name.split('-').map(Part::named);
    let (mut targets, mut fixes) = (Vec::new(), Vec::new());
    for (spot, part) in spots.iter().zip(parts.chain([None; 2])) {
        let to = at(spot.address, options.pod_port);
        if part != Some(Part::Deaf) {
            world.serve_tcp(&spot.pod, options.pod_port)?;
        }
        world.serve_udp(&spot.pod, options.pod_port)?;
        if let Some(part) = part {
            fixes.extend(afflict(world, &site, spot, part, to)?);
        }
        let asked = match part {
            Some(Part::Vip) => at(options.vip, options.node_port),
            _ => to,
        };
        targets.push(target(&site, part, asked));
    }
    let deaf: Vec<_> = spots
        .into_iter()
        .zip(variant.name.split('-'))
        .filter(|(_, name)| Part::named(name) == Some(Part::Deaf))
        .map(|(spot, _)| spot.pod)
        .collect();
    Ok(Plan::fixed_with(targets, move |world| {
        for (host, lines) in fixes {
            host.run_all(&lines)?;
        }
        for pod in deaf {
            world.serve_tcp(&pod, options.pod_port)?;
        }
        Ok(())
    }))
}

fn target(site: &Site, part: Option<Part>, to: SocketAddr) -> Target {
    if part == Some(Part::Narrow) {
        return Target::custom("a pod, large packets", &site.client, to, move |from| {
            datagrams(
                from,
                to,
                Datagrams {
                    bytes: 1400,
                    ..Datagrams::ONE
                },
            )
        });
    }
    Target::tcp("a pod", &site.client, to)
}

/// Does a part to a pod; the commands that undo it, each with its host.
fn afflict(
    world: &mut World,
    site: &Site,
    spot: &Spot,
    part: Part,
    to: SocketAddr,
) -> anyhow::Result<Option<(Namespace, Vec<String>)>> {
    let (node, bridge) = (&site.node, world.options.bridge.clone());
    let (address, port) = (spot.address, spot.port);
    let way_out = format!("ip route add default via {}", world.options.bridge_address);
    let on_node = |fix: String| Some((node.clone(), vec![fix]));
    Ok(match part {
        Part::Rule => {
            node.run(&format!("iptables -A FORWARD -d {address}/32 -j DROP"))?;
            on_node(format!("iptables -D FORWARD -d {address}/32 -j DROP"))
        }
        Part::Blackhole => {
            node.run(&format!("ip route add blackhole {address}/32"))?;
            on_node(format!("ip route del blackhole {address}/32"))
        }
        Part::Silent => {
            spot.pod
                .run(&format!("ip addr del {address}/24 dev eth0"))?;
            let again = format!("ip addr add {address}/24 dev eth0");
            Some((spot.pod.clone(), vec![again, way_out]))
        }
        Part::Down => {
            spot.pod.run("ip link set eth0 down")?;
            Some((
                spot.pod.clone(),
                vec!["ip link set eth0 up".into(), way_out],
            ))
        }
        Part::Narrow => {
            node.run_all(&[
                format!("ip link set {port} mtu 1280"),
                format!("ip link set {bridge} mtu 1500"),
            ])?;
            on_node(format!("ip link set {port} mtu 1500"))
        }
        Part::Blocked => {
            topology::settle_port(node, port)?;
            node.run(&format!("bridge link set dev {port} state 0"))?;
            on_node(format!("bridge link set dev {port} state 3"))
        }
        Part::Vip => Some((node.clone(), leave_vip_out(world, node, to)?)),
        Part::Busy => {
            world.load(&site.client, to);
            None
        }
        Part::Deaf => None,
    })
}

/// A NodePort of the endpoint, which kube-proxy in ipvs mode does not serve on the VIP; the commands that make it do so.
fn leave_vip_out(
    world: &mut World,
    node: &Namespace,
    endpoint: SocketAddr,
) -> anyhow::Result<Vec<String>> {
    let options = world.options.clone();
    let (vip, port, interface) = (options.vip, options.node_port, &options.interface);
    let service = Service {
        protocol: protocol::TCP,
        cluster: SocketAddrV4::new(options.service, options.service_port),
        node_port: port,
        endpoint,
    };
    node.run(&format!("ip addr add {vip}/24 dev {interface}"))?;
    kube_proxy::prepare(node, &service)?;
    kube_proxy::sync(node, &service, None)?;
    let mode = ["--proxy-mode=ipvs".to_owned()];
    let proxy = StandIn::start("kube-proxy", node, None, &mode)?;
    world.stand_ins.push(proxy);
    Ok(vec![
        format!("ip addr del {vip}/24 dev {interface}"),
        format!("ip addr add {vip}/32 dev {interface}"),
        format!("ipvsadm -A -t {vip}:{port} -s rr"),
        format!("ipvsadm -a -t {vip}:{port} -r {endpoint} -m"),
    ])
}
