//! `vip-nodeport-unbound` where kube-proxy works with packet filter rules: they take NodePorts on some of the
//! node's addresses only.

use std::net::{IpAddr, SocketAddr};

use super::vip_nodeport_reason::left_out_of_rules;
use super::vip_nodeport_unbound::CAUSE;
use super::{Diagnosis, Evidence, Failure, Site};
use crate::event::protocol;
use crate::flow::Direction;
use crate::hook::Role;
use crate::node::{Destination, NetnsId, PacketFilter, Scope, ServiceRule, ServiceRules};

/// Packets to a NodePort that the rules did not take, and that the node itself refused.
pub(super) fn diagnoses(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let refused = evidence.group(|failure| {
        // IPVS has the last word where it looked: rules of another mode may be left over.
        let by_ipvs = failure.journey.ipvs_miss().is_some();
        if failure.direction != Direction::Request || !failure.rejected() || by_ipvs {
            return None;
        }
        let (index, _) = failure.last(Role::Transport)?;
        let tuple = failure.packet_at(index)?.tuple;
        Some((failure.netns_at(index)?, tuple.protocol, tuple.destination))
    });
    refused
        .into_iter()
        .filter_map(|((netns, protocol, address), failures)| {
            judge(evidence, netns, protocol, address, &failures)
        })
        .collect()
}

fn judge(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    protocol: u8,
    address: SocketAddr,
    failures: &[&Failure<'_>],
) -> Option<Diagnosis> {
    let site = evidence.site(netns)?;
    let (vip, port) = (address.ip(), address.port());
    // Loopback addresses are never served: nodeport-localhost.
    if vip.is_loopback() || !site.is_local(vip) {
        return None;
    }
    let (rules, rule) = node_port(site, protocol, address)?;
    let covered = |address| rules.node_ports.iter().any(|scope| scope.covers(address));
    if covered(vip) {
        return None;
    }
    let own = site.facts.addresses.iter();
    let own =
        own.filter(|own| own.scope == Scope::Global && own.address.is_ipv4() == vip.is_ipv4());
    let served: Vec<IpAddr> = own
        .map(|own| own.address)
        .filter(|&address| covered(address))
        .collect();
    let first = served.first()?;
    let holder = match rules.filter {
        PacketFilter::Iptables => "iptables",
        PacketFilter::Nftables => "nftables",
    };
    let name = protocol::name(protocol);
    let left_out = left_out_of_rules(evidence, site, vip);
    let summary = format!(
        "NodePort {port} answers on {first} but not on {vip}: kube-proxy's {holder} rules do not take NodePorts there. \
         {}",
        left_out.words(site, vip)
    );
    let endpoints: Vec<_> = rule.endpoints.iter().map(ToString::to_string).collect();
    let served: Vec<_> = served.iter().map(ToString::to_string).collect();
    let packet = failures.first().map(|failure| {
        let refusal = if failure.was_reset() {
            "RST"
        } else {
            "ICMP port unreachable"
        };
        format!(
            "{} delivered locally, not translated, no socket, {refusal} sent",
            failure.words()
        )
    });
    let begun = Diagnosis::new(&CAUSE, format!("{name} {address}"), summary)
        .stopped(evidence, failures)
        .prove(
            holder,
            format!(
                "{name} NodePort {port} → {} on {}; {vip} is not among them",
                endpoints.join(", "),
                served.join(", ")
            ),
        )
        .prove_if(
            "address",
            site.addresses(vip).next().map(|own| {
                format!(
                    "{vip}/{} is on {}",
                    own.prefix_length,
                    site.device(own.link)
                )
            }),
        )
        .prove_if("kube-proxy", left_out.proof().map(|proof| proof.text))
        .prove_if("packet", packet);
    let fixes = left_out.fixes(site, vip).into_iter();
    let fixed = fixes.fold(begun, |diagnosis, fix| diagnosis.fix(fix.lines, fix.risk));
    let fixed = left_out.missing.into_iter().fold(fixed, Diagnosis::lacking);
    Some(fixed.check(format!("tracer probe {name}://{address}")))
}

/// The rule of a NodePort that has endpoints.
fn node_port<'a>(
    site: &Site<'a>,
    protocol: u8,
    address: SocketAddr,
) -> Option<(&'a ServiceRules, &'a ServiceRule)> {
    let wanted = Destination::NodePort {
        ipv6: address.is_ipv6(),
        port: address.port(),
    };
    let mut rules = site.facts.service_rules.iter().flatten();
    rules.find_map(|rules| {
        let mut services = rules.services.iter();
        let found = services.find(|rule| {
            (rule.protocol, rule.destination) == (protocol, wanted) && !rule.endpoints.is_empty()
        });
        Some((rules, found?))
    })
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, NODE, ip, node, route};
    use crate::node::{Address, KubeProxy, NodePortScope, Prefix, Route, RouteKind};

    /// A node with a second address, a kube-proxy of this command line, the rules of NodePort 30000 for the first
    /// address, and a packet to the second one that the node refused.
    fn bench(line: &str) -> Bench {
        let mut bench = node();
        let mut proxy = KubeProxy::constructed(line);
        proxy.netns = Some(NetnsId(NODE));
        bench.facts.kube_proxies = vec![proxy];
        let site = bench.site();
        site.addresses
            .push(Address::global(ETH0, ip("192.0.2.9"), 24));
        site.routes.push(Route {
            table: Route::LOCAL_TABLE,
            kind: RouteKind::Local,
            ..route("192.0.2.9", 32, ETH0)
        });
        site.service_rules = Some(vec![ServiceRules {
            filter: PacketFilter::Nftables,
            services: vec![ServiceRule {
                protocol: protocol::TCP,
                destination: Destination::NodePort {
                    ipv6: false,
                    port: 30000,
                },
                endpoints: ["10.244.0.9:8080".parse().expect("an endpoint")].into(),
                affinity: None,
                sources: None,
                refusal: None,
            }],
            node_ports: vec![NodePortScope::Within(Prefix {
                address: ip("192.0.2.1"),
                length: 32,
            })],
        }]);
        bench
            .tcp("192.0.2.10:40000", "192.0.2.9:30000")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        bench
    }

    #[test]
    fn an_address_that_the_rules_leave_out_is_named_with_the_reason() {
        use Certainty::{Certain, Likely};
        for (line, certainty, words, fix) in [
            (
                "--proxy-mode=nftables",
                Certain,
                "Without nodePortAddresses",
                "instead of primary",
            ),
            (
                "--proxy-mode=nftables --nodeport-addresses=primary",
                Certain,
                "nodePortAddresses is primary",
                "instead of primary",
            ),
            (
                "--proxy-mode=iptables --nodeport-addresses=192.0.2.1/32",
                Certain,
                "nodePortAddresses leaves 192.0.2.9 out",
                "beside the prefixes",
            ),
            (
                "--proxy-mode=nftables --nodeport-addresses=192.0.2.0/24",
                Likely,
                "it is to make one",
                "curl",
            ),
        ] {
            let found = bench(&format!("kube-proxy {line}")).only();
            assert_eq!((found.code, found.certainty), (CAUSE.code, certainty));
            assert!(found.summary.contains(words), "{line}: {found:#?}");
            assert!(found.fixes[0].lines[0].contains(fix), "{line}: {found:#?}");
            assert_eq!(found.consequences[0].code, "no-listener", "{line}");
        }
    }

    #[test]
    fn what_the_rules_take_or_do_not_have_is_another_case() {
        let line = "kube-proxy --proxy-mode=nftables";
        let changed = |change: fn(&mut ServiceRules)| {
            let mut bench = bench(line);
            let rules = bench.site().service_rules.iter_mut().flatten();
            rules.for_each(change);
            bench.codes()
        };
        assert_eq!(changed(|_| ()), [CAUSE.code]);
        let another = |rules: &mut ServiceRules| rules.services.clear();
        assert_eq!(changed(another), ["no-listener"]);
        let without_endpoint = |rules: &mut ServiceRules| rules.services[0].endpoints.clear();
        assert_eq!(changed(without_endpoint), ["no-listener"]);
        let all = |rules: &mut ServiceRules| {
            rules.node_ports = vec![NodePortScope::Local { ipv6: false }];
        };
        assert_eq!(changed(all), ["no-listener"]);
        let nowhere = |rules: &mut ServiceRules| rules.node_ports.clear();
        assert_eq!(changed(nowhere), ["no-listener"]);
    }
}
