//! `ipvs-no-destination`: IPVS has the virtual server and no real server that it may use.

use std::net::SocketAddr;

use super::audit::Finding;
use super::evidence::{Evidence, Failure};
use super::service::lacking_fresh;
use super::{Cause, Diagnosis, Site};
use crate::event::protocol;
use crate::hook::Role;
use crate::kube::Resource;
use crate::node::{ForwardingMethod, NetnsId, RealServer, VirtualServer, VirtualServerKey};

pub(super) const CAUSE: Cause = Cause {
    code: "ipvs-no-destination",
    title: "IPVS has the virtual server and no real server that takes connections",
    explanation: "\
IPVS found the virtual server for the packet, and its scheduler found no real server for it: there is none,
all have weight 0, or all are above their upper threshold. IPVS answers with ICMP port unreachable (TCP
clients see \"connection refused\") and drops the packet.

With kube-proxy this is a service without ready endpoints: its selector matches no pod, its pods are not
ready, or they are all going away.

Proof: the packet was given up in ip_vs_leave, and the virtual server's list of real servers has none with
a weight above 0 and room for connections.

Fix: bring the endpoints back: kubectl get endpointslices, the selector, the pods' readiness; without
Kubernetes add a real server or raise a weight with ipvsadm.",
    references: &[
        "Linux net/netfilter/ipvs/ip_vs_core.c, ip_vs_leave: answers ICMP port unreachable and drops",
        "Linux net/netfilter/ipvs: every scheduler passes over real servers of weight 0 and overloaded ones",
    ],
    explains: &[],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let (index, _) = failure.last(Role::IpvsNoDestination)?;
            let tuple = failure.packet_at(index)?.tuple;
            Some((failure.netns_at(index)?, tuple.protocol, tuple.destination))
        })
        .into_iter()
        .map(|((netns, number, address), failures)| {
            judge(evidence, netns, number, address, &failures)
        })
        .collect()
}

/// A real server that the schedulers pass over.
fn is_unusable(real: &RealServer) -> bool {
    let connections = real.active_connections.unwrap_or(0) + real.inactive_connections.unwrap_or(0);
    real.weight == 0
        || real
            .upper_threshold
            .is_some_and(|most| most > 0 && connections >= most)
}

/// The virtual server has no real server for new connections.
pub(super) fn serves_nobody(server: &VirtualServer) -> bool {
    server.destinations.iter().all(is_unusable)
}

/// What says more of a virtual server that kube-proxy made.
const NEEDED: [Resource; 2] = [Resource::Services, Resource::Endpoints];

fn judge(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    number: u8,
    address: SocketAddr,
    failures: &[&Failure<'_>],
) -> Diagnosis {
    let site = evidence.site(netns);
    let server = site.and_then(|site| site.virtual_server(number, address.ip(), address.port()));
    let subject = format!("{} {address}", protocol::name(number));
    let why = match server {
        Some(server) if server.destinations.is_empty() => "it has no real servers".to_owned(),
        Some(server) if server.destinations.iter().all(|real| real.weight == 0) => format!(
            "all of its {} real servers have weight 0",
            server.destinations.len()
        ),
        Some(server) if serves_nobody(server) => format!(
            "its {} real servers have weight 0 or are above their limit of connections",
            server.destinations.len()
        ),
        _ => "no real server took the connection".to_owned(),
    };
    let by_kube_proxy = evidence.facts.kube_proxies_in(netns).next().is_some();
    let mut summary = format!("IPVS has a virtual server {subject}, and {why}.");
    if by_kube_proxy {
        summary += " kube-proxy made it for a service that has no ready endpoints.";
    }
    let flag = if number == protocol::UDP { "-u" } else { "-t" };
    let usable_now = server.is_some_and(|server| !serves_nobody(server));
    let diagnosis = Diagnosis::new(&CAUSE, subject, summary)
        .stopped(evidence, failures)
        .prove_if(
            "packet",
            failures.first().map(|first| {
                format!(
                    "{} found the virtual server and no real server",
                    first.words()
                )
            }),
        )
        .prove_if("ipvs", server.map(words))
        .lacking_if(
            server.is_none(),
            format!(
                "the virtual server in {}",
                site.map_or_else(|| format!("netns {netns}"), Site::name)
            ),
        )
        .lacking_if(usable_now, "it has usable real servers now");
    // The service behind it may have a cause of its own.
    let diagnosis = match evidence.cluster {
        Some(cluster) => lacking_fresh(diagnosis, cluster, &NEEDED),
        None => diagnosis,
    };
    let diagnosis = if by_kube_proxy {
        diagnosis.fix(
            [
                format!(
                    "kubectl get services -A -o wide | grep -w {}   # which service, and its selector",
                    address.ip()
                ),
                "kubectl get endpointslices,pods -n NAMESPACE   # are its pods there and ready?".into(),
            ],
            "none: these only look; repair the selector or the pods' readiness",
        )
    } else {
        diagnosis
    };
    let resting =
        server.and_then(|server| server.destinations.iter().find(|real| real.weight == 0));
    let by_hand = match resting {
        Some(real) => format!(
            "ipvsadm -e {flag} {address} -r {} {} -w 1",
            SocketAddr::new(real.address, real.port),
            method(real.forwarding)
        ),
        None => format!("ipvsadm -a {flag} {address} -r REAL:PORT -m"),
    };
    diagnosis
        .fix(
            [by_hand],
            "kube-proxy takes away what it did not make; use it only without kube-proxy",
        )
        .check(format!(
            "tracer probe {}://{address}",
            protocol::name(number)
        ))
}

/// How ipvsadm(8) is told the forwarding method.
fn method(forwarding: ForwardingMethod) -> &'static str {
    match forwarding {
        ForwardingMethod::Tunnel => "-i",
        ForwardingMethod::DirectRoute => "-g",
        _ => "-m",
    }
}

fn words(server: &VirtualServer) -> String {
    if server.destinations.is_empty() {
        return "the virtual server exists and has no real servers".into();
    }
    let real: Vec<String> = server
        .destinations
        .iter()
        .take(4)
        .map(|real| {
            format!(
                "{} weight {}",
                SocketAddr::new(real.address, real.port),
                real.weight
            )
        })
        .collect();
    format!("the virtual server exists with {}", real.join(", "))
}

/// Virtual servers that serve nobody.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .flat_map(|site| {
            let table = site.facts.ipvs.iter().flatten();
            table
                .filter(|server| serves_nobody(server))
                .filter_map(move |server| match server.key {
                    VirtualServerKey::Endpoint {
                        protocol,
                        address,
                        port,
                    } => Some((site.facts.id, protocol, SocketAddr::new(address, port))),
                    VirtualServerKey::Mark { .. } => None,
                })
        })
        .map(|(netns, number, address)| {
            Finding::warning(judge(evidence, netns, number, address, &[]))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, service};
    use crate::event::Detail;
    use crate::kube::ClusterFacts;

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(6, "10.96.0.5:80", &[])]);
        bench
            .tcp("192.0.2.10:40000", "10.96.0.5:80")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsSchedule)
            .at(HookId::IpvsLeave)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 })
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn a_virtual_server_without_real_servers() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("no real servers"), "{found:#?}");
    }

    #[test]
    fn weights_of_zero_are_named() {
        let mut bench = situation();
        bench.site().ipvs = Some(vec![service(
            6,
            "10.96.0.5:80",
            &[("10.244.0.9:80", 0), ("10.244.0.8:80", 0)],
        )]);
        let found = bench.only();
        assert!(found.summary.contains("all of its 2"), "{found:#?}");
        assert_eq!(found.certainty, Certainty::Certain);
    }

    #[test]
    fn without_the_table_or_with_real_servers_now_it_is_likely() {
        let mut bench = situation();
        bench.site().ipvs = None;
        assert_eq!(bench.only().certainty, Certainty::Likely);
        bench.site().ipvs = Some(vec![service(6, "10.96.0.5:80", &[("10.244.0.9:80", 1)])]);
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_cluster_that_has_not_answered_leaves_it_likely() {
        let mut bench = situation();
        bench.cluster = Some(ClusterFacts::unread("https://192.0.2.1:6443"));
        let found = bench.only();
        assert_eq!(found.certainty, Certainty::Likely);
        assert!(found.missing[0].contains("services"), "{found:#?}");
    }
}
