//! `service-unknown`: packets to an address of the services' range that no service has.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::audit::nothing;
use super::evidence::endpoint;
use super::filtered::{self, Kind, Stop};
use super::service::{Asked, BEHIND_NO_SERVICE, asked, lacking_fresh, unserved};
use super::{Cause, Diagnosis, Evidence};
use crate::event::protocol;
use crate::flow::{Direction, Flow};
use crate::kube::{ClusterFacts, Resource};

pub(super) const CAUSE: Cause = Cause {
    code: "service-unknown",
    title: "no service has this address any more",
    explanation: "\
The address is one of those that the cluster gives to services, and no service has it: the service was
deleted, or made anew with another address, and the client keeps the old one (from a cache, an environment
variable such as WEB_SERVICE_HOST, or its configuration). kube-proxy in nftables mode drops such packets if
it knows the range; in the other modes they follow the default route out of the node.

Proof: kube-proxy's rule for addresses that are not given out dropped the packet, and the cluster has no
service, pod or node with the address. Or, without such a rule, the address lies between those of services:
that is likely, since who else has it is not known.

Fix: find out which service the client means, and have it look the name up again.",
    references: &[
        "Kubernetes pkg/proxy/nftables/proxier.go: chain cluster-ips-check, \"Drop traffic to unallocated \
         ClusterIPs\"",
        "https://kubernetes.io/docs/concepts/services-networking/service/#discovering-services",
    ],
    explains: BEHIND_NO_SERVICE,
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found = filtered::diagnoses(
        evidence,
        Kind::NoService,
        |stop| filtered::target(stop.tuple(evidence)),
        |stop, target| by_rule(evidence, stop, target),
    );
    let known: HashSet<u64> = found
        .iter()
        .flat_map(|found| &found.flows)
        .copied()
        .collect();
    if let Some(cluster) = evidence.cluster {
        found.extend(by_range(evidence, cluster, &known));
    }
    found
}

/// kube-proxy's rule dropped it.
fn by_rule<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>, target: String) -> Diagnosis {
    let asked = stop.tuple(evidence).map(|tuple| tuple.destination.ip());
    let address = asked.map_or_else(|| "ADDRESS".into(), |address| address.to_string());
    let owner = asked
        .zip(evidence.cluster)
        .and_then(|(address, cluster)| cluster.name_of(address));
    let summary = match &owner {
        Some(owner) => format!(
            "kube-proxy's rules know no service with the address {address}, which {owner} has, and drop packets to it."
        ),
        None => format!(
            "No service has the address {address}, which is in the cluster's range for services: kube-proxy drops \
             packets to it."
        ),
    };
    let begun = Diagnosis::new(&CAUSE, target, summary)
        .lacking_if(owner.is_some(), "why kube-proxy does not know its owner");
    let known = match evidence.cluster {
        Some(cluster) => lacking_fresh(begun, cluster, &[Resource::Services]),
        None => begun.lacking("the Service objects: one may be newer than what kube-proxy made"),
    };
    mend(known, &address)
}

/// Nobody is known to have the address, and services have those on both sides of it.
fn by_range(
    evidence: &Evidence<'_>,
    cluster: &ClusterFacts,
    known: &HashSet<u64>,
) -> Vec<Diagnosis> {
    let mut ranges = None;
    let mut groups: BTreeMap<Asked, Vec<&Flow>> = BTreeMap::new();
    for flow in unserved(evidence).filter(|flow| !known.contains(&flow.id)) {
        // What became of a packet that was lost here is known better than whose its address was.
        let failed = flow.suspicious == 0 && (flow.refused || flow.is_stalled());
        let address = flow.client.destination.ip();
        if failed
            && cluster.claims(address).next().is_none()
            && !evidence.sites().any(|site| site.is_local(address))
            && between(
                ranges.get_or_insert_with(|| service_ranges(cluster)),
                address,
            )
        {
            groups.entry(asked(flow)).or_default().push(flow);
        }
    }
    groups
        .into_iter()
        .map(|((number, to), mut flows)| {
            flows.sort_unstable_by_key(|flow| flow.id);
            let address = to.ip().to_string();
            let name = protocol::name(number);
            let summary = format!(
                "{address} lies between the addresses of services, and no service has it: the client keeps the address \
                 of one that is gone."
            );
            let packet = flows.iter().find_map(|flow| {
                let journey = flow.of(Direction::Request).next()?;
                Some(format!("#{} was sent on to no endpoint", journey.id))
            });
            let begun = Diagnosis::new(&CAUSE, format!("{name} {}", endpoint(to)), summary)
                .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
                .prove("cluster", format!("no service, pod or node has {address}"))
                .prove_if("packet", packet)
                .lacking("that the cluster gives this address to services and to nobody else");
            let fresh = lacking_fresh(begun, cluster, &[Resource::Services]);
            mend(fresh, &address)
        })
        .collect()
}

/// The lowest and the highest address of services, of both families.
type Ranges = [Option<(IpAddr, IpAddr)>; 2];

fn service_ranges(cluster: &ClusterFacts) -> Ranges {
    let mut ranges = [None; 2];
    for &address in cluster.services().flat_map(|service| &service.cluster_ips) {
        let range: &mut Option<(IpAddr, IpAddr)> = &mut ranges[usize::from(address.is_ipv6())];
        let (low, high) = range.get_or_insert((address, address));
        *low = address.min(*low);
        *high = address.max(*high);
    }
    ranges
}

fn between(ranges: &Ranges, address: IpAddr) -> bool {
    ranges[usize::from(address.is_ipv6())]
        .is_some_and(|(low, high)| (low..=high).contains(&address))
}

fn mend(diagnosis: Diagnosis, address: &str) -> Diagnosis {
    diagnosis
        .fix(
            [
                "kubectl get services -A   # which one is meant, and its address now".to_owned(),
                format!("kubectl get pods -A -o yaml | grep -n -w {address}   # who has it in its configuration"),
            ],
            "none: this only looks",
        )
        .fix(
            ["kubectl rollout restart -n NAMESPACE deployment/CLIENT   # it looks the name up again"],
            "the client's connections end",
        )
        .check(format!("kubectl get services -A -o wide | grep -w {address}"))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, node};
    use crate::cause::filtered::tests::{chain, rule};
    use crate::event::NetfilterHook;
    use crate::kube::constructed::cluster;
    use crate::node::netfilter::{Action, Family, RuleTable, Ruleset, Tool};

    fn services(addresses: &[&str]) -> ClusterFacts {
        let service = |(index, address): (usize, &&str)| {
            json!({"kind": "Service", "metadata": {"namespace": "shop", "name": format!("s{index}")},
                "spec": {"clusterIPs": [address], "ports": [{"port": 80}]}})
        };
        let all: Vec<_> = addresses.iter().enumerate().map(service).collect();
        cluster("node-a", &all)
    }

    /// kube-proxy's rule for addresses that are not given out drops it.
    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        let jump = rule(None, Action::Jump("cluster-ips-check".into()), "");
        bench.cluster = Some(services(&["10.96.0.10"]));
        bench.site().ruleset = Some(Ruleset {
            tables: vec![RuleTable {
                tool: Tool::Nft,
                family: Family::Ip,
                name: "kube-proxy".into(),
                chains: vec![
                    chain("base", Some((NetfilterHook::Forward, false)), vec![jump]),
                    chain(
                        "cluster-ips-check",
                        None,
                        vec![rule(None, Action::Drop, "")],
                    ),
                ],
            }],
        });
        bench
            .tcp("10.244.0.9:40000", "10.96.7.7:80")
            .receive(CNI0)
            .at(HookId::Forward)
            .netfilter(NetfilterHook::Forward)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn by_kube_proxy_s_rule() {
        let mut bench = situation();
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "tcp 10.96.7.7:80");
        bench.cluster = None;
        assert_eq!(bench.only().certainty, Certainty::Likely);
        // It has a service by now: kube-proxy has not learned of it.
        bench.cluster = Some(services(&["10.96.7.7"]));
        let found = bench.diagnose();
        let own = found.iter().find(|found| found.code == CAUSE.code);
        let own = own.expect("the cause");
        assert_eq!(own.certainty, Certainty::Likely);
        assert!(own.summary.contains("which s/shop/s0 has"), "{own:#?}");
    }

    #[test]
    fn between_the_addresses_of_services_is_likely() {
        let silent = |addresses: &[&str]| {
            let mut bench = node();
            bench.cluster = Some(services(addresses));
            for _ in 0..2 {
                bench
                    .tcp("10.244.0.9:40000", "10.96.7.7:80")
                    .receive(CNI0)
                    .at(HookId::Forward)
                    .transmit(ETH0)
                    .ends();
            }
            bench
        };
        let found = silent(&["10.96.0.10", "10.100.0.1"]).only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
        for beside in [&["10.96.0.10", "10.96.0.11"][..], &[]] {
            assert!(!silent(beside).codes().contains(&CAUSE.code), "{beside:?}");
        }
        // What was lost here has a cause of its own.
        let mut bench = silent(&["10.96.0.10", "10.100.0.1"]);
        let lost = bench.tcp("10.244.0.9:40000", "10.96.7.7:80").receive(CNI0);
        lost.dropped("QDISC_DROP", "dev_queue_xmit");
        assert!(!bench.codes().contains(&CAUSE.code));
    }
}
