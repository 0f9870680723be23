//! `nodeport-localhost`: a NodePort does not answer on 127.0.0.1.
//!
//! Source: kubernetes/kubernetes #96879: in ipvs mode kube-proxy makes no virtual server for loopback
//! addresses; in iptables mode it needs route_localnet and --iptables-localhost-nodeports.

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::hook::Role;
use crate::node::{NetnsId, VirtualServerKey};

pub(super) const CAUSE: Cause = Cause {
    code: "nodeport-localhost",
    title: "a NodePort does not answer on 127.0.0.1 (ipvs mode does not serve it there)",
    explanation: "\
In ipvs mode kube-proxy serves NodePorts on the node's addresses and never on loopback ones, because IPVS
could not bring the answer of another host back to 127.0.0.1. In iptables mode it works only with
route_localnet=1 (--iptables-localhost-nodeports, the default), in nftables mode not at all. A registry
that is pulled from localhost:PORT is the usual victim.

Proof: the connection went to a loopback address and was refused there, and a virtual server of the same
port exists on another address of the node.

Fix: use one of the node's own addresses.",
    explains: &["no-listener"],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| refused_here(evidence, failure))
        .into_iter()
        .filter_map(|((netns, number, port), failures)| {
            let site = evidence.site(netns)?;
            let served = sibling(site, number, port)?;
            let first = failures.first()?;
            let asked = first.flow.client.destination;
            let name = protocol::name(number);
            Some(
                Diagnosis::new(
                    &CAUSE,
                    format!("{name} {asked}"),
                    format!(
                        "NodePort {port} answers on {} and not on {}: kube-proxy in ipvs mode does not serve loopback \
                         addresses.",
                        served.ip(),
                        asked.ip()
                    ),
                )
                .stopped(evidence, &failures)
                .prove("packet", format!("{} was refused on this host", first.words()))
                .prove("ipvs", format!("{name} {served} exists; {asked} does not"))
                .fix([format!("use {served} instead of {asked}")], "none")
                .check(format!("tracer probe {name}://{served}")),
            )
        })
        .collect()
}

fn refused_here(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<(NetnsId, u8, u16)> {
    let (index, _) = failure.last(Role::Transport)?;
    let tuple = failure.packet_at(index)?.tuple;
    let refused = failure.is_opening()
        && tuple.destination.ip().is_loopback()
        && failure.journey.rejected()
        && !failure.journey.was_taken();
    let netns = failure.netns_at(index)?;
    let port = tuple.destination.port();
    (refused && sibling(evidence.site(netns)?, tuple.protocol, port).is_some()).then_some((
        netns,
        tuple.protocol,
        port,
    ))
}

/// A virtual server of the same port on an address that the node itself has.
fn sibling(site: &Site<'_>, number: u8, port: u16) -> Option<std::net::SocketAddr> {
    site.virtual_servers_on_port(number, port)
        .find_map(|server| match server.key {
            VirtualServerKey::Endpoint { address, port, .. }
                if !address.is_loopback() && site.is_local(address) =>
            {
                Some(std::net::SocketAddr::new(address, port))
            }
            _ => None,
        })
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, node, service};

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

    #[test]
    fn a_port_that_is_no_nodeport_is_another_case() {
        let mut bench = situation();
        bench.site().ipvs = Some(Vec::new());
        assert_eq!(bench.only().code, "no-listener");
    }
}
