//! A NodePort that answers on the node's address and not on its virtual address: what kube-proxy up
//! to 1.22 makes of a secondary address, and of a nodePortAddresses that leaves it out.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::event::protocol;
use crate::scenario::kube_proxy::{self, Service, StandIn};
use crate::scenario::namespace::Namespace;
use crate::scenario::nft_proxy;
use crate::scenario::topology::{self, Site};
use crate::scenario::world::at;
use crate::scenario::{Need, Plan, Scenario, Target, Variant, World};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vip-nodeport-unbound",
    expects: &["vip-nodeport-unbound"],
    variants: &[
        Variant::fault(
            "unbound",
            "the VIP is a secondary address; kube-proxy up to 1.22 makes no virtual server for it",
        ),
        Variant::fault("held-port", "the same, and kube-proxy listens on the port"),
        Variant::fault("udp", "the same over UDP"),
        Variant::fault("nodeport-addresses", "nodePortAddresses leaves the VIP out"),
        Variant::fault(
            "nftables",
            "kube-proxy in nftables mode takes NodePorts on the node's first address only",
        ),
        Variant::fault("two-vips", "two VIPs, of which one has its own prefix"),
        Variant {
            name: "vip-32",
            title: "the VIP is a /32",
            fault: false,
            expects: &[],
            likely: None,
        },
        Variant {
            name: "other-mask",
            title: "the VIP has another prefix than the node's address",
            fault: false,
            expects: &[],
            likely: None,
        },
        Variant::HEALTHY,
    ],
    needs: &[
        Need::Module("ip_vs"),
        Need::Module("ip_vs_rr"),
        Need::Command("ipvsadm"),
        Need::Command("iptables"),
        Need::Command("nft"),
    ],
    not_on: &[],
    build,
};

fn build(world: &mut World, variant: &'static Variant) -> anyhow::Result<Plan> {
    let site = topology::site(world)?;
    let options = world.options.clone();
    if variant.name == "nftables" {
        return by_nftables(world, &site);
    }
    let udp = variant.name == "udp";
    let prefix = match variant.name {
        "vip-32" | "nodeport-addresses" | "healthy" => 32,
        "other-mask" => 25,
        _ => 24,
    };
    let (interface, vip) = (options.interface.clone(), options.vip);
    site.node
        .run(&format!("ip addr add {vip}/{prefix} dev {interface}"))?;
    if udp {
        world.serve_udp(&site.pod, options.pod_port)?;
    } else {
        world.serve_tcp(&site.pod, options.pod_port)?;
    }
    let proxy = Proxy {
        service: Service {
            protocol: if udp { protocol::UDP } else { protocol::TCP },
            cluster: SocketAddrV4::new(options.service, options.service_port),
            node_port: options.node_port,
            endpoint: at(options.pod, options.pod_port),
        },
        holds_port: variant.name == "held-port",
    };
    kube_proxy::prepare(&site.node, &proxy.service)?;

    let target = |label, address: Ipv4Addr| {
        let address = at(address, options.node_port);
        if udp {
            Target::udp(label, &site.client, address)
        } else {
            Target::tcp(label, &site.client, address)
        }
    };
    let mut targets = vec![
        target("the node's address", options.node),
        target("the VIP", vip),
    ];
    if variant.name == "two-vips" {
        let second = Ipv4Addr::from_bits(vip.to_bits() ^ 1);
        site.node
            .run(&format!("ip addr add {second}/32 dev {interface}"))?;
        targets.push(target("the second VIP", second));
    }

    let node = site.node;
    let shows = [
        format!("ip addr show {interface}"),
        "ip route show table local".into(),
        "ipvsadm -Ln".into(),
    ];
    let (looked_at, restarted) = (node.clone(), node.clone());
    let only = (variant.name == "nodeport-addresses").then_some([options.node]);
    proxy.restart(world, &node, only.as_ref().map(<[_; 1]>::as_slice))?;
    let plan = if only.is_some() {
        Plan::fixed_with(targets, move |world| {
            proxy.restart(world, &node, Some(&[options.node, vip]))
        })
    } else {
        Plan::fixed_as_printed(targets, &node)
            .and_then(move |world| proxy.restart(world, &restarted, None))
    };
    Ok(shows
        .into_iter()
        .fold(plan, |plan, line| plan.showing(&looked_at, line)))
}

/// Rules for a NodePort on the node's first address, and then on the VIP too.
fn by_nftables(world: &mut World, site: &Site) -> anyhow::Result<Plan> {
    let options = world.options.clone();
    world.serve_tcp(&site.pod, options.pod_port)?;
    let (node, vip, port) = (site.node.clone(), options.vip, options.node_port);
    node.run(&format!("ip addr add {vip}/24 dev {}", options.interface))?;
    let endpoint = at(options.pod, options.pod_port);
    nft_proxy::prepare(&node, options.node.into())?;
    nft_proxy::serve(&node, port, endpoint)?;
    let mode = "--proxy-mode=nftables".to_owned();
    let first = StandIn::start("kube-proxy", &node, None, std::slice::from_ref(&mode))?;
    world.stand_ins.push(first);
    let target = |label, address| Target::tcp(label, &site.client, at(address, port));
    let targets = vec![
        target("the node's address", options.node),
        target("the VIP", vip),
    ];
    let restarted = node.clone();
    Ok(Plan::fixed_with(targets, move |world| {
        world.stand_ins.clear();
        let list = format!("--nodeport-addresses={}/32,{vip}/32", options.node);
        let again = StandIn::start("kube-proxy", &restarted, None, &[mode, list])?;
        world.stand_ins.push(again);
        nft_proxy::take_node_ports(&restarted, vip.into())
    })
    .showing(&node, "nft list table ip kube-proxy"))
}

/// kube-proxy and its one service.
struct Proxy {
    service: Service,
    /// It listens on the NodePort, as up to 1.23.
    holds_port: bool,
}

impl Proxy {
    /// kube-proxy started anew, with nodePortAddresses of these /32, and its first sync.
    fn restart(
        &self,
        world: &mut World,
        node: &Namespace,
        only: Option<&[Ipv4Addr]>,
    ) -> anyhow::Result<()> {
        let mut arguments = vec!["--proxy-mode=ipvs".to_owned()];
        if let Some(only) = only {
            let list: Vec<_> = only.iter().map(|address| format!("{address}/32")).collect();
            arguments.push(format!("--nodeport-addresses={}", list.join(",")));
        }
        let held = self
            .holds_port
            .then_some((self.service.protocol, self.service.node_port));
        // The old one lets go of the port first.
        world.stand_ins.clear();
        world
            .stand_ins
            .push(StandIn::start("kube-proxy", node, held, &arguments)?);
        let only: Option<Vec<IpAddr>> =
            only.map(|only| only.iter().copied().map(IpAddr::V4).collect());
        kube_proxy::sync(node, &self.service, only.as_deref())
    }
}
