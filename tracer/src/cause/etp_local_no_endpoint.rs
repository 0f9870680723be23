//! `etp-local-no-endpoint`: `externalTrafficPolicy: Local`, and no endpoint on this node.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use super::audit::nothing;
use super::evidence::Evidence;
use super::filtered::{self, Kind, Stop};
use super::service::{Target, lacking_fresh, prove_refusal, refused};
use super::{Cause, Diagnosis};
use crate::flow::{Direction, Flow};
use crate::kube::{ObjectName, Resource, TrafficPolicy};

pub(super) const CAUSE: Cause = Cause {
    code: "etp-local-no-endpoint",
    title: "externalTrafficPolicy is Local, and this node has no endpoint of the service",
    explanation: "\
With externalTrafficPolicy: Local a node gives packets from outside only to endpoints of its own. A node
that has none loses them: kube-proxy in ipvs mode up to 1.20 makes a virtual server without real servers
there (refused), from 1.21 one with the endpoints of other nodes, whose answers go straight back to the
client from an address it never asked (silence). In iptables mode a rule drops such packets, in nftables
mode a map does. Load balancers avoid such nodes by the service's healthCheckNodePort; clients that use a
NodePort or an external address themselves do not.

Proof: the service has ready endpoints on other nodes and none on this one, its policy is Local, and the
packet to its outside address was refused here, or went to another node's endpoint unmasqueraded and
nothing came back. Or: kube-proxy's own rule for services without local endpoints dropped it; for the
service's own address that is its internalTrafficPolicy.

Fix: use a node that has an endpoint, run one on every node, or set the policy to Cluster, which hides the
client's address from the pods.",
    references: &[
        "Kubernetes pkg/proxy/ipvs/proxier.go: up to 1.20 a virtual server without real servers on such a node; \
         from 1.21 one with all endpoints, whose answers to clients from outside are lost because nothing \
         rewrites the client's address",
        "https://github.com/kubernetes/kubernetes/issues/97081",
        "Kubernetes pkg/proxy/iptables/proxier.go: a DROP rule with the comment \"NAMESPACE/NAME:PORT has no local \
         endpoints\"",
        "Kubernetes pkg/proxy/nftables/proxier.go: drop in the maps no-endpoint-services and no-endpoint-nodeports",
    ],
    explains: &["ipvs-no-destination", "no-listener", "masquerade-missing"],
    examine,
    audit: nothing,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found: Vec<Diagnosis> = refused(evidence, applies)
        .into_iter()
        .map(|(target, failures)| {
            let diagnosis = about(&target).stopped(evidence, &failures);
            finish(prove_refusal(evidence, diagnosis, &failures), &target)
        })
        .collect();
    let known: HashSet<u64> = found
        .iter()
        .flat_map(|found| &found.flows)
        .copied()
        .collect();
    for (target, flows) in sent_away(evidence) {
        if flows.iter().any(|flow| known.contains(&flow.id)) {
            continue;
        }
        let ids = flows.iter().map(|flow| flow.id);
        let diagnosis = about(&target).stopped_flows(evidence, ids);
        let packet = flows.first().and_then(|flow| {
            let journey = flow.of(Direction::Request).next()?;
            let real = journey.last_tuple()?;
            Some(format!(
                "#{} went on to {} with the client's address {}; nothing came back",
                journey.id,
                real.destination,
                real.source.ip()
            ))
        });
        found.push(finish(diagnosis.prove_if("packet", packet), &target));
    }
    let known: HashSet<u64> = found
        .iter()
        .flat_map(|found| &found.flows)
        .copied()
        .collect();
    found.extend(
        by_rule(evidence)
            .into_iter()
            .filter(|found| !found.flows.iter().any(|flow| known.contains(flow))),
    );
    found
}

/// Chains of kube-proxy's rules for addresses and ports that are not the services' own.
const OUTSIDE: &[&str] = &[
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "nodeport-endpoints-check",
];
const EXTERNAL: &str = "externalTrafficPolicy";
const INTERNAL: &str = "internalTrafficPolicy";

/// Where the cluster's facts do not tell: kube-proxy's rule does. It has the same one for clients inside.
fn by_rule(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    filtered::diagnoses(
        evidence,
        Kind::NoLocalEndpoints,
        |stop| filtered::target(stop.tuple(evidence)),
        |stop, target| {
            let service = stop.service(evidence);
            let (named, namespace, name) = match service {
                Some((namespace, name)) => (format!("s/{namespace}/{name}"), namespace, name),
                None => (format!("The service at {target}"), "NAMESPACE", "NAME"),
            };
            let policies = policies(evidence, stop);
            let summary = format!(
                "{named} has {} Local and no endpoint on this node, so kube-proxy drops packets to {target} here.",
                policies.join(" or ")
            );
            let begun = Diagnosis::new(&CAUSE, target, summary);
            fixed(begun, namespace, name, policies).check(filtered::check(evidence, stop))
        },
    )
}

/// The policies that may be the rule's reason.
fn policies<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>) -> &'static [&'static str] {
    let mut path = stop.ruling.iter().flat_map(|ruling| &ruling.ending.path);
    if path.any(|chain| OUTSIDE.contains(chain)) {
        return &[EXTERNAL];
    }
    let to = stop.tuple(evidence);
    let service = to.zip(evidence.cluster).and_then(|(tuple, cluster)| {
        let found = cluster.service_at(tuple.protocol, tuple.destination)?;
        Some(found.cluster_ips.contains(&tuple.destination.ip()))
    });
    match service {
        Some(true) => &[INTERNAL],
        Some(false) => &[EXTERNAL],
        None => &[EXTERNAL, INTERNAL],
    }
}

/// The service serves clients from outside by local endpoints only, and they are all elsewhere.
fn applies(target: &Target<'_>) -> bool {
    let service = target.service;
    let inside = service.cluster_ips.contains(&target.address.ip());
    let Some(node) = target.cluster.this_node.as_deref() else {
        return false;
    };
    let here = |endpoint: &crate::kube::Endpoint| endpoint.node.as_deref() == Some(node);
    let ready = || target.endpoints().filter(|endpoint| endpoint.ready);
    !inside
        && service.external_policy == TrafficPolicy::Local
        && ready().next().is_some()
        && !target
            .endpoints()
            .any(|endpoint| here(endpoint) && endpoint.serving)
}

/// Flows that were sent to another node's endpoint as they were, and that nobody answered.
fn sent_away<'a>(evidence: &Evidence<'a>) -> Vec<(Target<'a>, Vec<&'a Flow>)> {
    let Some(cluster) = evidence.cluster else {
        return Vec::new();
    };
    let mut groups: BTreeMap<(u8, SocketAddr), Vec<&'a Flow>> = BTreeMap::new();
    for flow in evidence.stalled() {
        let unmasqueraded = flow.of(Direction::Request).any(|journey| {
            journey.last_tuple().is_some_and(|last| {
                last.destination != flow.client.destination && last.source == flow.client.source
            })
        });
        if unmasqueraded {
            let key = (flow.client.protocol, flow.client.destination);
            groups.entry(key).or_default().push(flow);
        }
    }
    groups
        .into_iter()
        .filter_map(|((protocol, address), flows)| {
            let target = Target {
                cluster,
                service: cluster.service_at(protocol, address)?,
                protocol,
                address,
            };
            applies(&target).then_some((target, flows))
        })
        .collect()
}

fn about(target: &Target<'_>) -> Diagnosis {
    let node = target.cluster.this_node.as_deref().unwrap_or("this node");
    let summary = format!(
        "{} has externalTrafficPolicy Local, and n/{node} has no endpoint of it, so packets from outside are lost \
         here.",
        target.words()
    );
    Diagnosis::new(&CAUSE, target.words(), summary).prove("service", nodes(target))
}

/// On which nodes its endpoints are.
fn nodes(target: &Target<'_>) -> String {
    let mut nodes: Vec<&str> = target
        .endpoints()
        .filter(|endpoint| endpoint.ready)
        .filter_map(|endpoint| endpoint.node.as_deref())
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    format!(
        "externalTrafficPolicy Local; its {} ready endpoints are on {}",
        target.endpoints().filter(|endpoint| endpoint.ready).count(),
        nodes.join(", ")
    )
}

fn finish(diagnosis: Diagnosis, target: &Target<'_>) -> Diagnosis {
    let ObjectName { namespace, name } = &target.service.name;
    let needed = [Resource::Services, Resource::Endpoints, Resource::Nodes];
    let diagnosis = lacking_fresh(diagnosis, target.cluster, &needed);
    fixed(diagnosis, namespace, name, &[EXTERNAL]).check(target.probe())
}

fn fixed(diagnosis: Diagnosis, namespace: &str, name: &str, policies: &[&str]) -> Diagnosis {
    let patch = |policy: &&str| {
        format!(
            "kubectl patch service -n {namespace} {name} -p '{{\"spec\":{{\"{policy}\":\"Cluster\"}}}}'"
        )
    };
    diagnosis
        .fix(
            policies.iter().map(patch),
            "the pods no longer see the addresses of clients from outside; packets go to other nodes too",
        )
        .fix(
            [format!(
                "kubectl get endpointslices -n {namespace} -l kubernetes.io/service-name={name} -o wide   # nodes that do answer"
            )],
            "none: use one of those nodes, or run a pod on every node",
        )
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, service};
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::event::{Detail, NetfilterHook};
    use crate::kube::ClusterFacts;
    use crate::kube::constructed::cluster;
    use crate::node::netfilter::{Action, Choice, Subject, Tool};

    fn facts(endpoint_node: &str) -> ClusterFacts {
        cluster(
            "node-a",
            &[
                json!({"kind": "Node", "metadata": {"name": "node-a"},
                    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
                json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                    "spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "clusterIPs": ["10.96.0.5"],
                        "ports": [{"port": 80, "nodePort": 30080}]}}),
                json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-x",
                        "labels": {"kubernetes.io/service-name": "web"}},
                    "ports": [{"port": 8080}],
                    "endpoints": [{"addresses": ["10.244.1.9"], "nodeName": endpoint_node}]}),
            ],
        )
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.cluster = Some(facts("node-b"));
        bench.site().ipvs = Some(vec![service(6, "192.0.2.1:30080", &[])]);
        bench
            .tcp("198.51.100.10:40000", "192.0.2.1:30080")
            .receive(ETH0)
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsSchedule)
            .at(HookId::IpvsLeave)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 })
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    #[test]
    fn refused_where_kube_proxy_makes_no_real_server() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found
                .evidence
                .iter()
                .any(|proof| proof.text.contains("node-b")),
            "{found:#?}"
        );
        assert_eq!(found.consequences[0].code, "ipvs-no-destination");
    }

    #[test]
    fn silent_where_it_sends_to_other_nodes() {
        let mut bench = situation();
        let mut second = node();
        second.cluster = bench.cluster.take();
        for _ in 0..2 {
            second
                .tcp("198.51.100.10:40000", "192.0.2.1:30080")
                .receive(ETH0)
                .at(HookId::LocalDeliver)
                .at(HookId::IpvsSchedule)
                .to("10.244.1.9:8080")
                .transmit(ETH0)
                .ends();
        }
        let found = second.diagnose();
        let own = found
            .iter()
            .find(|found| found.code == CAUSE.code)
            .expect("the cause");
        assert!(
            own.evidence
                .iter()
                .any(|proof| proof.text.contains("10.244.1.9:8080")),
            "{own:#?}"
        );
    }

    #[test]
    fn a_local_endpoint_is_another_story() {
        let mut bench = situation();
        bench.cluster = Some(facts("node-a"));
        assert_eq!(bench.codes(), ["ipvs-no-destination"]);
    }

    #[test]
    fn without_a_cluster_kube_proxys_rule_tells() {
        let base = |name: &str, rules| chain(name, Some((NetfilterHook::Forward, false)), rules);
        let comment = "shop/web:http has no local endpoints";
        let by_iptables = forwarded(
            Tool::IptablesNft,
            vec![base("FORWARD", vec![rule(Some(80), Action::Drop, comment)])],
        );
        let found = by_iptables.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        // Its chain does not tell for whom the rule is.
        assert!(
            found
                .summary
                .contains("s/shop/web has externalTrafficPolicy or internalTrafficPolicy Local"),
            "{found:#?}"
        );

        let key = Subject::All(vec![
            Subject::Protocol(6),
            Subject::DestinationPort(vec![80..=80]),
        ]);
        let map = |action| Action::Map {
            words: "meta l4proto . th dport vmap @no-endpoint-nodeports".into(),
            set: "no-endpoint-nodeports".into(),
            choices: Some(vec![Choice {
                members: vec![key.clone()],
                action,
            }]),
        };
        let check = "nodeport-endpoints-check";
        let by_nftables = |table: &str, action| {
            let mut bench = forwarded(
                Tool::Nft,
                vec![
                    base(
                        "filter-forward",
                        vec![rule(None, Action::Jump(check.into()), "")],
                    ),
                    chain(check, None, vec![rule(None, map(action), "")]),
                    chain(
                        "reject-chain",
                        None,
                        vec![rule(None, Action::Reject("icmp".into()), "")],
                    ),
                ],
            );
            let rules = bench.site().ruleset.as_mut().expect("rules");
            rules.tables[0].name = table.into();
            bench.only()
        };
        let found = by_nftables("kube-proxy", Action::Drop);
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found.summary.contains("has externalTrafficPolicy Local"),
            "{found:#?}"
        );
        let to_reject = || Action::Goto("reject-chain".into());
        let found = by_nftables("kube-proxy", to_reject());
        assert_eq!(
            (found.code, found.certainty),
            ("service-no-endpoints", Certainty::Certain)
        );
        assert_eq!(by_nftables("mine", Action::Drop).code, "filter-rule-drop");
    }
}
