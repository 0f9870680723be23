//! `network-policy-drop`: a policy chain of the container network dropped the packet.

use std::collections::BTreeSet;

use super::filtered::{self, Kind, Stop};
use super::{Cause, Diagnosis, Evidence, Finding};
use crate::kube::Resource;

pub(super) const CAUSE: Cause = Cause {
    code: "network-policy-drop",
    title: "a NetworkPolicy does not allow the packet: dropped in a policy chain of the container network",
    explanation: "\
A NetworkPolicy that selects a pod allows only what it names; everything else to (or from) the pod is
dropped. Container networks make rules of it: Calico in chains cali-*, kube-router in KUBE-NWPLCY-* and
KUBE-POD-FW-*, Weave in WEAVE-NPC*, Cilium in CILIUM_*. The packet ended in one of these.

Proof: the rule that ended the packet is in such a chain. Which policy it comes from the rule does not
say: that needs the NetworkPolicy objects that select the pod, so this is likely until they are known.

Fix: add the peer and the port to the policy that selects the pod, or remove the policy. Changing the
rules themselves lasts only until the container network writes them again.",
    references: &["https://kubernetes.io/docs/concepts/services-networking/network-policies/"],
    explains: &[],
    examine,
    audit: |_| Vec::<Finding>::new(),
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    filtered::diagnoses(evidence, Kind::NetworkPolicy, Stop::place, |stop, place| {
        say(evidence, stop, place)
    })
}

fn say<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>, place: String) -> Diagnosis {
    let whom = stop.tuple(evidence).map_or_else(String::new, |tuple| {
        format!(
            " from {} to {}",
            tuple.source.ip(),
            super::evidence::endpoint(tuple.destination)
        )
    });
    let chain = stop
        .ruling
        .as_ref()
        .map_or_else(String::new, |ruling| ruling.ending.chain.name.clone());
    let policies = policies(evidence, stop);
    let summary = format!(
        "The container network's policy rules do not allow packets{whom}: {place} dropped it, a rule made from \
         NetworkPolicy objects."
    );
    Diagnosis::new(&CAUSE, place, summary)
        .prove_if(
            "rule",
            stop.comment()
                .map(|comment| format!("{chain} says: {comment}")),
        )
        .prove_if(
            "policy",
            policies
                .as_ref()
                .map(|names| format!("NetworkPolicies that select the pod: {names}")),
        )
        .lacking_if(policies.is_none(), "the NetworkPolicy that selects the pod")
        .fix(
            [
                "kubectl get networkpolicy -A   # those whose podSelector selects the pod",
                "kubectl -n NAMESPACE edit networkpolicy NAME   # add the peer and the port",
            ],
            "allows what the policy was written to stop: ask its owner",
        )
        .check(filtered::check(evidence, stop))
}

/// The policies that select one of the packet's pods, by name; `None` when the cluster knows none.
fn policies<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>) -> Option<String> {
    let cluster = evidence
        .cluster
        .filter(|cluster| cluster.fresh(&[Resource::NetworkPolicies, Resource::Pods]))?;
    let tuple = stop.tuple(evidence)?;
    let names: BTreeSet<String> = [tuple.destination.ip(), tuple.source.ip()]
        .into_iter()
        .flat_map(|address| cluster.pods_at(address))
        .filter_map(|name| cluster.pod(name))
        .flat_map(|pod| cluster.policies_of(pod))
        .map(|policy| policy.name.to_string())
        .collect();
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::event::NetfilterHook;
    use crate::node::netfilter::{Action, Tool};

    fn bench(name: &str) -> crate::cause::constructed::Bench {
        let jump = rule(None, Action::Jump(name.into()), "");
        forwarded(
            Tool::IptablesNft,
            vec![
                chain("FORWARD", Some((NetfilterHook::Forward, false)), vec![jump]),
                chain(
                    name,
                    None,
                    vec![rule(None, Action::Drop, "no policy passed")],
                ),
            ],
        )
    }

    #[test]
    fn every_container_networks_chains_are_known() {
        for name in ["cali-tw-cali0123", "KUBE-POD-FW-ABC", "WEAVE-NPC-INGRESS"] {
            let found = bench(name).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Likely)
            );
            assert_eq!(found.subject, format!("filter/{name} rule 1"));
            assert!(found.missing[0].contains("NetworkPolicy"));
        }
    }

    #[test]
    fn other_chains_are_other_causes() {
        assert_eq!(bench("DOCKER-ISOLATION").codes(), ["filter-rule-drop"]);
    }
}
