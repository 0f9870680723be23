//! `nodeport-localhost`: a NodePort does not answer on 127.0.0.1.

use std::net::SocketAddr;

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::service::{has_kube_proxy, lacking_fresh};
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::expectation::{Mode, Proxy, node_addresses};
use crate::hook::Role;
use crate::kube::{Resource, Service};
use crate::node::{NetnsId, VirtualServerKey};

pub(super) const CAUSE: Cause = Cause {
    code: "nodeport-localhost",
    title: "a NodePort does not answer on 127.0.0.1 (kube-proxy does not serve it there)",
    explanation: "\
In ipvs mode kube-proxy serves NodePorts on the node's addresses and never on loopback ones, because IPVS
could not bring the answer of another host back to 127.0.0.1. In iptables mode it works only with
route_localnet=1 (--iptables-localhost-nodeports, the default) and never for ::1, in nftables mode not at all.
A registry that is pulled from localhost:PORT is the usual victim.

Proof: the connection went to a loopback address and was refused there, and a virtual server of the same
port exists on another address of the node; or the port is a service's NodePort, and kube-proxy works in
nftables mode, or in iptables mode without route_localnet, where the kernel does not send what was
translated from a loopback address either.

Fix: use one of the node's own addresses.",
    references: &["https://github.com/kubernetes/kubernetes/issues/96879"],
    explains: &["no-listener", "filter-rule-drop"],
    examine,
    audit: nothing,
};

/// What the cluster's word for a NodePort relies on.
const NEEDED: [Resource; 3] = [
    Resource::Services,
    Resource::Nodes,
    Resource::ProxyConfiguration,
];

/// A NodePort and why it does not answer on loopback addresses.
struct Served<'a> {
    mode: Mode,
    /// Where it answers.
    address: SocketAddr,
    /// The service, where the cluster told of it.
    service: Option<&'a Service>,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| refused_here(evidence, failure))
        .into_iter()
        .filter_map(|((netns, number, asked), failures)| {
            let served = served(evidence, netns, number, asked)?;
            let first = failures.first()?;
            let what = if first.rejected() {
                "was refused on this host".to_owned()
            } else {
                first.drop_words()
            };
            let packet = format!("{} {what}", first.words());
            let diagnosis = say(&served, number, asked)
                .stopped(evidence, &failures)
                .prove("packet", packet);
            Some(
                match evidence.cluster.filter(|_| served.service.is_some()) {
                    Some(cluster) => lacking_fresh(diagnosis, cluster, &NEEDED),
                    None => diagnosis,
                },
            )
        })
        .collect()
}

fn say(served: &Served<'_>, number: u8, asked: SocketAddr) -> Diagnosis {
    let (name, address) = (protocol::name(number), served.address);
    let why = match served.mode {
        Mode::Ipvs => "kube-proxy in ipvs mode does not serve loopback addresses",
        Mode::Nftables => "kube-proxy in nftables mode does not serve loopback addresses",
        Mode::Iptables if asked.is_ipv6() => {
            "kube-proxy in iptables mode does not serve loopback addresses of IPv6"
        }
        Mode::Iptables => {
            "kube-proxy in iptables mode serves loopback addresses only with route_localnet=1"
        }
    };
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{name} {asked}"),
        format!(
            "NodePort {} answers on {} and not on {}: {why}.",
            asked.port(),
            address.ip(),
            asked.ip()
        ),
    );
    let by_localnet = served.mode == Mode::Iptables && asked.is_ipv4();
    let diagnosis = match served.service {
        Some(service) => diagnosis.prove(
            "service",
            format!("s/{} has NodePort {name} {}", service.name, asked.port()),
        ),
        None => diagnosis.prove("ipvs", format!("{name} {address} exists; {asked} does not")),
    }
    .prove_if(
        "sysctl",
        by_localnet.then_some("net.ipv4.conf.all.route_localnet = 0"),
    )
    .fix([format!("use {address} instead of {asked}")], "none");
    let diagnosis = if by_localnet {
        diagnosis.fix(
            ["sysctl -w net.ipv4.conf.all.route_localnet=1   # and --iptables-localhost-nodeports=true (the default)"],
            "hosts of the same network can reach programs that listen on 127.0.0.1 only",
        )
    } else {
        diagnosis
    };
    diagnosis.check(format!("tracer probe {name}://{address}"))
}

/// Namespace, protocol, and the loopback address and NodePort that a lost packet was for.
fn refused_here(
    evidence: &Evidence<'_>,
    failure: &Failure<'_>,
) -> Option<(NetnsId, u8, SocketAddr)> {
    let tuple = failure.journey.first_tuple()?;
    let asked = tuple.destination;
    if !failure.is_opening() || !asked.ip().is_loopback() || failure.was_taken() {
        return None;
    }
    let netns = failure.netns()?;
    let last = failure.journey.last_tuple()?.destination;
    let refused = failure.rejected() && failure.last(Role::Transport).is_some() && last == asked;
    // The kernel routes a packet anew after NAT; from a loopback address none leaves the host.
    let unsent = last != asked && failure.dropped_for(&["NETFILTER_DROP"], &["nf_hook_slow"]);
    let served = served(evidence, netns, tuple.protocol, asked)?;
    (refused || (unsent && served.mode == Mode::Iptables)).then_some((netns, tuple.protocol, asked))
}

/// Where the NodePort answers, by IPVS, else by the cluster, when it does not on this loopback address.
fn served<'a>(
    evidence: &Evidence<'a>,
    netns: NetnsId,
    number: u8,
    asked: SocketAddr,
) -> Option<Served<'a>> {
    let site = evidence.site(netns)?;
    if let Some(address) = sibling(site, number, asked.port()) {
        return Some(Served {
            mode: Mode::Ipvs,
            address,
            service: None,
        });
    }
    let cluster = evidence.cluster?;
    let service = cluster.node_port(number, asked.port())?;
    let proxy = Proxy::known(Some(cluster), evidence.facts.kube_proxies_in(netns))
        .filter(|_| has_kube_proxy(evidence, netns))?;
    let never = match proxy.mode {
        // Without a virtual server anywhere it does not answer on other addresses either.
        Mode::Ipvs => false,
        Mode::Nftables => true,
        Mode::Iptables => asked.is_ipv6() || !routes_localnet(site)?,
    };
    let node = cluster.node(cluster.this_node.as_deref()?);
    let known = node.into_iter().flat_map(|node| &node.internal_ips);
    let served = node_addresses(site.facts, node, &proxy)?;
    // The address that the cluster knows before any other.
    let address = known
        .filter(|address| served.contains(address))
        .chain(&served)
        .find(|address| address.is_ipv4() == asked.is_ipv4())?;
    never.then_some(Served {
        mode: proxy.mode,
        address: SocketAddr::new(*address, asked.port()),
        service: Some(service),
    })
}

/// Whether packets with loopback addresses may pass a device that is none; `None` when that was not read.
fn routes_localnet(site: &Site<'_>) -> Option<bool> {
    let on = |device: &str| site.sysctl(&format!("net/ipv4/conf/{device}/route_localnet"));
    let all = on("all")? != 0;
    let mut devices = site.facts.links.iter();
    Some(all || devices.any(|link| on(&link.name).is_some_and(|value| value != 0)))
}

/// A virtual server of the same port on an address that the node itself has.
fn sibling(site: &Site<'_>, number: u8, port: u16) -> Option<SocketAddr> {
    site.virtual_servers_on_port(number, port)
        .find_map(|server| match server.key {
            VirtualServerKey::Endpoint { address, port, .. }
                if !address.is_loopback() && site.is_local(address) =>
            {
                Some(SocketAddr::new(address, port))
            }
            _ => None,
        })
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::constructed::{Bench, node, service};
    use crate::cause::{Certainty, no_listener};
    use crate::event::NetfilterHook;
    use crate::kube::constructed::configured;

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(6, "192.0.2.1:30000", &[("10.244.0.8:80", 1)])]);
        bench.site().routes.push(crate::node::Route {
            table: crate::node::Route::LOCAL_TABLE,
            kind: crate::node::RouteKind::Local,
            ..crate::cause::constructed::route("127.0.0.0", 8, 1)
        });
        bench
            .tcp("127.0.0.1:4000", "127.0.0.1:30000")
            .receive(1)
            .at(HookId::IpvsLookup)
            .with(
                HookId::IpvsServiceFind,
                crate::event::Detail::Service {
                    address: "127.0.0.1:30000".parse().expect("an address"),
                    protocol: 6,
                },
            )
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        bench
    }

    #[test]
    fn the_address_that_answers_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences[0].code, "no-listener");
    }

    /// The same in a mode without IPVS: the port is in the cluster's facts only.
    fn by_rules(mode: &str, route_localnet: &str) -> Bench {
        let mut bench = situation();
        bench.site().ipvs = None;
        bench.cluster = no_listener::tests::with_node_port()
            .cluster
            .map(|facts| configured(facts, &format!("mode: {mode}")));
        bench.sysctl("net/ipv4/conf/all/route_localnet", route_localnet);
        bench
    }

    #[test]
    fn in_other_modes_the_cluster_tells_of_the_port() {
        for (mode, route_localnet, code) in [
            ("nftables", "1", CAUSE.code),
            ("iptables", "0", CAUSE.code),
            ("iptables", "1", "no-listener"),
        ] {
            let found = by_rules(mode, route_localnet).only();
            assert_eq!(found.code, code, "{mode} {route_localnet}");
            let sure = found.certainty == Certainty::Certain;
            assert_eq!(sure, code == CAUSE.code, "{found:#?}");
            let where_else = found.summary.contains("answers on 192.0.2.1");
            assert_eq!(where_else, code == CAUSE.code, "{found:#?}");
        }
    }

    #[test]
    fn without_route_localnet_what_was_translated_is_not_sent() {
        for (route_localnet, named) in [("0", true), ("1", false)] {
            let mut bench = no_listener::tests::with_node_port();
            bench.sysctl("net/ipv4/conf/all/route_localnet", route_localnet);
            bench
                .tcp("127.0.0.1:4000", "127.0.0.1:30000")
                .at(HookId::LocalOut)
                .netfilter(NetfilterHook::Output)
                .to("10.244.0.9:8080")
                .dropped("NETFILTER_DROP", "nf_hook_slow");
            let found = bench.diagnose();
            let first = found.first().is_some_and(|found| found.code == CAUSE.code);
            assert_eq!(first, named, "{found:#?}");
        }
    }

    #[test]
    fn a_port_that_is_no_nodeport_is_another_case() {
        let mut bench = situation();
        bench.site().ipvs = Some(Vec::new());
        assert_eq!(bench.only().code, "no-listener");
    }
}
