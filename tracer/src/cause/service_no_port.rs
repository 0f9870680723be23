//! `service-no-port`: packets to a service's address, at a port that the service does not have.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::audit::nothing;
use super::evidence::endpoint;
use super::filtered::Kind;
use super::service::{Asked, BEHIND_NO_SERVICE, asked, lacking_fresh, unserved};
use super::{Cause, Diagnosis, Evidence, Site};
use crate::event::protocol;
use crate::expectation::SERVICE_DEVICE;
use crate::flow::{Direction, Flow};
use crate::kube::{Claim, ClusterFacts, ObjectName, Resource, Service, ServicePort};
use crate::node::VirtualServerKey;

pub(super) const CAUSE: Cause = Cause {
    code: "service-no-port",
    title: "the service has no such port",
    explanation: "\
A ClusterIP, or another address of a service's own, is no host: it answers at the ports of the Service
object and nowhere else, not even to ping. Often the client uses the port of the pods (targetPort) or the
NodePort in place of the service's port, or TCP where the service has UDP.

What becomes of such packets depends on kube-proxy. In ipvs mode the address is on the node itself, and no
socket takes them; newer versions reject them before, in KUBE-IPVS-FILTER. In nftables mode
cluster-ips-check rejects them. In iptables mode nothing knows them: they follow the default route out of
the node, and what comes back, if anything, is from somebody who has never heard of the address.

Proof: the service that has the address has no such port by its object; or kube-proxy's virtual servers
hold the address with other ports, or its own rule for such packets rejected it. Without the cluster that is
likely: kube-proxy may not have learned of a new port.

Fix: use a port that the service has, or add the port to the service.",
    references: &[
        "Kubernetes pkg/proxy/nftables/proxier.go: chain cluster-ips-check, \"Reject traffic to invalid ports of \
         ClusterIPs\"",
        "Kubernetes pkg/proxy/ipvs/proxier.go: chain KUBE-IPVS-FILTER rejects what is for addresses of \
         kube-ipvs0 and for no service's port",
        "https://github.com/kubernetes/kubernetes/issues/72236",
    ],
    explains: BEHIND_NO_SERVICE,
    examine,
    audit: nothing,
};

/// Who has the address.
enum Owner<'a> {
    /// A service of the cluster.
    Service(&'a ClusterFacts, &'a Service),
    /// kube-proxy in ipvs mode, which serves these protocols and ports there.
    Ipvs(Vec<(u8, u16)>),
    /// Some service, by kube-proxy's rule.
    Rule,
    /// A service that has the port, though kube-proxy's rule rejects it.
    Behind(&'a Service),
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let refused_by_rule: HashMap<u64, String> = evidence
        .filtered()
        .iter()
        .filter(|stop| stop.kind == Kind::NoServicePort)
        .map(|stop| (stop.failure(evidence).flow.id, stop.place()))
        .collect();
    let mut groups: BTreeMap<Asked, Vec<&Flow>> = BTreeMap::new();
    for flow in unserved(evidence) {
        groups.entry(asked(flow)).or_default().push(flow);
    }
    groups
        .into_iter()
        .filter_map(|(asked, mut flows)| {
            let by_rule = flows
                .iter()
                .any(|flow| refused_by_rule.contains_key(&flow.id));
            let owner = owner(evidence, asked, by_rule)?;
            flows.sort_unstable_by_key(|flow| flow.id);
            Some(say(evidence, asked, &owner, &flows, &refused_by_rule))
        })
        .collect()
}

/// The one that has the address and does not serve the port; `None` where somebody may.
fn owner<'a>(
    evidence: &Evidence<'a>,
    (number, address): Asked,
    by_rule: bool,
) -> Option<Owner<'a>> {
    if let Some(cluster) = evidence.cluster {
        if let Some(service) = cluster.service_at(number, address) {
            return by_rule.then_some(Owner::Behind(service));
        }
        let mut service = None;
        for claim in cluster.claims(address.ip()) {
            match claim {
                Claim::Service(name) => service = service.or_else(|| cluster.service(name)),
                // An external address may be a node's own.
                Claim::Node(_) | Claim::Pod(_) => return by_rule.then_some(Owner::Rule),
            }
        }
        if let Some(service) = service {
            return Some(Owner::Service(cluster, service));
        }
    }
    let served = evidence
        .sites()
        .find_map(|site| served_by_ipvs(site, address.ip()));
    let whole =
        |&(served, port): &(u8, u16)| served == number && (port == address.port() || port == 0);
    match served {
        Some(ports) if !ports.iter().any(whole) => Some(Owner::Ipvs(ports)),
        _ => by_rule.then_some(Owner::Rule),
    }
}

/// What virtual servers take at an address that kube-proxy holds for services.
fn served_by_ipvs(site: &Site<'_>, address: IpAddr) -> Option<Vec<(u8, u16)>> {
    let holds = |link: u32| {
        site.link(link)
            .is_some_and(|link| link.name == SERVICE_DEVICE)
    };
    site.addresses(address).find(|own| holds(own.link))?;
    let servers = site.facts.ipvs.iter().flatten();
    let ports: Vec<_> = servers
        .filter_map(|server| match server.key {
            VirtualServerKey::Endpoint {
                protocol,
                address: at,
                port,
            } if at == address => Some((protocol, port)),
            _ => None,
        })
        .collect();
    (!ports.is_empty()).then_some(ports)
}

fn say(
    evidence: &Evidence<'_>,
    asked: Asked,
    owner: &Owner<'_>,
    flows: &[&Flow],
    refused_by_rule: &HashMap<u64, String>,
) -> Diagnosis {
    let (number, address) = asked;
    let what = format!("{} {}", protocol::name(number), endpoint(address));
    let wanted = if protocol::is_icmp(number) {
        "and ping is none of them".to_owned()
    } else {
        format!("not {} {}", protocol::name(number), address.port())
    };
    let (summary, source, proof) = match owner {
        Owner::Service(_, service) => {
            let ports = list(service.ports.iter().map(words));
            let instead = instead(service, number, address.port());
            (
                format!(
                    "{} is an address of s/{}, which answers at {ports}, {wanted}.{}",
                    address.ip(),
                    service.name,
                    instead.map_or_else(String::new, |(_, why)| format!(" {why}"))
                ),
                "service",
                format!("s/{} has {ports}", service.name),
            )
        }
        Owner::Ipvs(served) => {
            let port = |&(number, port): &(u8, u16)| format!("{} {port}", protocol::name(number));
            let ports = list(served.iter().map(port));
            (
                format!(
                    "{} is a service's address, for which kube-proxy serves {ports}, {wanted}.",
                    address.ip()
                ),
                "ipvs",
                format!(
                    "{} is on {SERVICE_DEVICE}, with virtual servers for {ports}",
                    address.ip()
                ),
            )
        }
        Owner::Rule | Owner::Behind(_) => (
            format!(
                "{} is a service's address, and kube-proxy's rules know no such port of it.",
                endpoint(address)
            ),
            "rule",
            "kube-proxy's rule for such packets rejects them".to_owned(),
        ),
    };
    let packet = flows.iter().find_map(|flow| {
        let journey = flow.of(Direction::Request).next()?;
        let tuple = journey.first_tuple()?;
        let end = refused_by_rule.get(&flow.id).map_or_else(
            || "was sent on to no endpoint".to_owned(),
            |place| format!("was rejected by {place}"),
        );
        Some(format!(
            "#{} {} {} → {} {end}",
            journey.id,
            protocol::name(tuple.protocol),
            endpoint(tuple.source),
            endpoint(tuple.destination)
        ))
    });
    let begun = Diagnosis::new(&CAUSE, what, summary)
        .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
        .prove(source, proof)
        .prove_if("packet", packet);
    match owner {
        Owner::Service(cluster, service) => {
            let known = lacking_fresh(begun, cluster, &[Resource::Services]);
            mend(known, asked, service)
        }
        Owner::Behind(service) => begun
            .lacking(format!(
                "why kube-proxy does not know it: s/{} has the port",
                service.name
            ))
            .fix(
                ["kubectl logs -n kube-system -l k8s-app=kube-proxy --tail=50   # or: journalctl -u kube-proxy"],
                "none: this only looks",
            )
            .check(probe(number, address)),
        Owner::Ipvs(_) | Owner::Rule => begun
            .lacking("the Service object: its port may be newer than what kube-proxy made")
            .fix(
                [format!(
                    "kubectl get services -A -o wide | grep -w {}   # clients use one of its ports",
                    address.ip()
                )],
                "none: this only looks",
            )
            .check(probe(number, address)),
    }
}

/// The ways to mend it where the service is known.
fn mend(diagnosis: Diagnosis, (number, address): Asked, service: &Service) -> Diagnosis {
    let ObjectName { namespace, name } = &service.name;
    let better = instead(service, number, address.port()).map(|(port, _)| port);
    let better = better.or_else(|| service.ports.first());
    let at = |port: &ServicePort| probe(port.protocol, SocketAddr::new(address.ip(), port.port));
    let use_it = better.map(|port| format!("{}   # clients use this port", at(port)));
    let mut diagnosis = diagnosis;
    if let Some(line) = use_it {
        diagnosis = diagnosis.fix([line], "none: this only asks");
    }
    if protocol::is_icmp(number) {
        let check = better.map_or_else(|| format!("kubectl get service -n {namespace} {name}"), at);
        return diagnosis.check(check);
    }
    let port = address.port();
    let protocol = protocol::name(number).to_uppercase();
    let added = format!(
        "{{\"op\":\"add\",\"path\":\"/spec/ports/-\",\"value\":{{\"name\":\"port-{port}\",\"protocol\":\"{protocol}\",\
         \"port\":{port},\"targetPort\":{port}}}}}"
    );
    diagnosis
        .fix(
            [format!(
                "kubectl patch service -n {namespace} {name} --type=json -p '[{added}]'   # targetPort: what the pods listen on"
            )],
            "everybody who may use the service reaches this port of its pods; ports without a name need one first",
        )
        .check(probe(number, address))
}

/// The port that the client probably wants, and why.
fn instead(service: &Service, number: u8, port: u16) -> Option<(&ServicePort, String)> {
    let mut ports = service.ports.iter();
    let of_pods =
        |found: &&ServicePort| found.protocol == number && found.target == port.to_string();
    if let Some(found) = ports.clone().find(of_pods) {
        let why = format!(
            "{port} is the port of its pods (targetPort); clients use {}.",
            found.port
        );
        return Some((found, why));
    }
    let of_node = |found: &&ServicePort| found.protocol == number && found.node_port == Some(port);
    if let Some(found) = ports.clone().find(of_node) {
        let why = format!(
            "{port} is its NodePort, for the addresses of nodes; here clients use {}.",
            found.port
        );
        return Some((found, why));
    }
    let found = ports.find(|found| found.port == port)?;
    let why = format!(
        "It has the port for {} only.",
        protocol::name(found.protocol)
    );
    Some((found, why))
}

fn words(port: &ServicePort) -> String {
    let number = format!("{} {}", protocol::name(port.protocol), port.port);
    if port.name.is_empty() {
        number
    } else {
        format!("{number} ({})", port.name)
    }
}

fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

fn probe(number: u8, address: SocketAddr) -> String {
    format!("tracer probe {}://{address}", protocol::name(number))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, ip, link, node, service as server};
    use crate::cause::filtered::tests::{chain, rule};
    use crate::event::{Detail, NetfilterHook, Transport};
    use crate::kube::constructed::cluster;
    use crate::node::Address;
    use crate::node::netfilter::{Action, Family, RuleTable, Ruleset, Tool};

    fn ports(ports: Value) -> ClusterFacts {
        cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"},
                    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
                json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
                    "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.10"],
                        "externalIPs": ["192.0.2.1"], "ports": ports}}),
            ],
        )
    }

    fn usual() -> Value {
        json!([{"name": "main", "port": 80, "targetPort": 8080, "nodePort": 30080}])
    }

    /// A SYN that leaves by the default route, again and again, as in iptables mode.
    fn silent(to: &str) -> Bench {
        let mut bench = node();
        bench.cluster = Some(ports(usual()));
        for _ in 0..2 {
            bench
                .tcp("10.244.0.9:40000", to)
                .receive(CNI0)
                .at(HookId::Forward)
                .transmit(ETH0)
                .ends();
        }
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        silent("10.96.0.10:8080")
    }

    /// A rule of kube-proxy's that rejects the packet.
    fn rejected(tool: Tool, table: &str, name: &str) -> Bench {
        let jump = rule(None, Action::Jump(name.into()), "");
        let reject = rule(None, Action::Reject("icmp-port-unreachable".into()), "");
        let mut bench = node();
        bench.site().ruleset = Some(Ruleset {
            tables: vec![RuleTable {
                tool,
                family: Family::Ip,
                name: table.into(),
                chains: vec![
                    chain("base", Some((NetfilterHook::Input, false)), vec![jump]),
                    chain(name, None, vec![reject]),
                ],
            }],
        });
        bench
            .tcp("10.244.0.9:40000", "10.96.0.10:8080")
            .receive(CNI0)
            .at(HookId::LocalDeliver)
            .netfilter(NetfilterHook::Input)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 })
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn the_port_of_the_pods_is_not_the_service_s() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "tcp 10.96.0.10:8080");
        assert!(
            found
                .summary
                .contains("s/shop/web, which answers at tcp 80 (main), not tcp 8080"),
            "{found:#?}"
        );
        assert!(found.summary.contains("8080 is the port of its pods"));
        assert!(found.fixes[0].lines[0].starts_with("tracer probe tcp://10.96.0.10:80 "));
    }

    #[test]
    fn node_ports_and_the_other_protocol_are_told_from_a_port_that_nobody_has() {
        for (to, words) in [
            ("10.96.0.10:30080", "30080 is its NodePort"),
            ("10.96.0.10:9999", "not tcp 9999."),
        ] {
            let found = silent(to).only();
            assert!(found.summary.contains(words), "{found:#?}");
        }
        let mut bench = silent("10.96.0.10:53");
        bench.cluster = Some(ports(json!([{"port": 53, "protocol": "UDP"}])));
        assert!(
            bench
                .only()
                .summary
                .ends_with("answers at udp 53, not tcp 53. It has the port for udp only.")
        );
    }

    #[test]
    fn a_port_that_it_has_and_a_node_s_address_are_other_causes() {
        for to in ["10.96.0.10:80", "192.0.2.1:9999"] {
            assert!(!silent(to).codes().contains(&CAUSE.code), "{to}");
        }
    }

    #[test]
    fn kube_proxy_s_own_rule_is_likely_without_the_cluster() {
        for (tool, table, name) in [
            (Tool::IptablesNft, "filter", "KUBE-IPVS-FILTER"),
            (Tool::Nft, "kube-proxy", "cluster-ips-check"),
        ] {
            let mut bench = rejected(tool, table, name);
            let found = bench.only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Likely)
            );
            bench.cluster = Some(ports(usual()));
            assert_eq!(bench.only().certainty, Certainty::Certain);
            // The service has the port by now.
            bench.cluster = Some(ports(json!([{"port": 8080}])));
            let found = bench.diagnose();
            let own = found.iter().find(|found| found.code == CAUSE.code);
            let own = own.expect("the cause");
            assert_eq!(own.certainty, Certainty::Likely);
            assert!(own.missing[0].contains("s/shop/web has the port"));
        }
        let other = rejected(Tool::IptablesNft, "filter", "MINE");
        assert_eq!(other.codes(), ["filter-rule-drop"]);
    }

    #[test]
    fn virtual_servers_tell_where_the_address_is_a_service_s() {
        let mut bench = node();
        let site = bench.site();
        site.links.push(link(9, SERVICE_DEVICE));
        site.addresses
            .push(Address::global(9, ip("10.96.0.10"), 32));
        site.ipvs = Some(vec![server(6, "10.96.0.10:80", &[("10.244.0.9:8080", 1)])]);
        let mut send = |to| {
            bench
                .tcp("10.244.0.9:40000", to)
                .receive(CNI0)
                .at(HookId::LocalDeliver)
                .at(HookId::TcpReceive)
                .at(HookId::TcpReset)
                .dropped("NO_SOCKET", "tcp_v4_rcv");
        };
        send("10.96.0.10:8080");
        send("192.0.2.1:8080");
        let found = bench.diagnose();
        let own = found.iter().find(|found| found.code == CAUSE.code);
        let own = own.expect("the cause");
        assert_eq!(own.certainty, Certainty::Likely);
        assert_eq!(own.failed, 1);
        assert!(
            own.summary
                .contains("kube-proxy serves tcp 80, not tcp 8080")
        );
        assert_eq!(own.consequences[0].code, "no-listener");
    }

    #[test]
    fn ping_is_no_port() {
        let mut bench = node();
        bench.cluster = Some(ports(usual()));
        let echo = Transport::Icmp { kind: 8, code: 0 };
        bench
            .packet(protocol::ICMP, "10.244.0.9:0", "10.96.0.10:0", echo)
            .receive(CNI0)
            .at(HookId::Forward)
            .transmit(ETH0)
            .ends();
        // An error about an answer of the service's is none.
        let error = Transport::Icmp { kind: 3, code: 3 };
        bench
            .packet(protocol::ICMP, "10.244.0.8:0", "10.96.0.10:0", error)
            .receive(CNI0)
            .at(HookId::Forward)
            .transmit(ETH0)
            .ends();
        let found = bench.only();
        assert_eq!(found.failed, 1);
        assert_eq!(found.subject, "icmp 10.96.0.10");
        assert!(found.summary.contains("and ping is none of them"));
        assert_eq!(found.check, "tracer probe tcp://10.96.0.10:80");
    }
}
