//! `lb-source-range`: the client is outside of the service's loadBalancerSourceRanges.

use super::filtered::{self, Kind, Stop};
use super::{Cause, Diagnosis, Evidence, Finding};
use crate::event::Tuple;

pub(super) const CAUSE: Cause = Cause {
    code: "lb-source-range",
    title: "the client is outside of the service's loadBalancerSourceRanges",
    explanation: "\
A Service of type LoadBalancer with loadBalancerSourceRanges accepts only clients whose address is in one
of these prefixes. kube-proxy drops the others on the node, without an answer; the client sees a timeout.
The client may also be hidden: behind a load balancer or NAT its address is that of the device in between.

Proof: the packet was dropped in kube-proxy's chain for source ranges (KUBE-PROXY-FIREWALL or KUBE-FW-*;
in ipvs mode KUBE-SOURCE-RANGES-FIREWALL; in nftables mode firewall-*). kube-proxy up to 1.25 drops there
whatever it marked, which services without a local endpoint are too: that is only likely.

Fix: add the client's prefix to spec.loadBalancerSourceRanges.",
    references: &[
        "Kubernetes pkg/proxy/iptables/proxier.go: from 1.26 chain KUBE-PROXY-FIREWALL drops with the comment \
         \"NAMESPACE/NAME:PORT traffic not accepted by KUBE-FW-…\"; before, KUBE-FW-… marked with 0x8000 what \
         KUBE-FIREWALL drops",
        "Kubernetes pkg/proxy/ipvs: chain KUBE-SOURCE-RANGES-FIREWALL",
        "Kubernetes pkg/proxy/nftables: chains firewall-…",
    ],
    explains: &[],
    examine,
    audit: |_| Vec::<Finding>::new(),
};

/// The chain that drops by mark alone.
const BY_MARK: &str = "KUBE-FIREWALL";

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    filtered::diagnoses(
        evidence,
        Kind::SourceRange,
        |stop| filtered::target(asked(evidence, stop)),
        |stop, target| say(evidence, stop, target),
    )
}

/// What the client asked for: DNAT made something else of the packet.
fn asked<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>) -> Option<Tuple> {
    stop.failure(evidence).journey.first_tuple()
}

fn say<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>, target: String) -> Diagnosis {
    let client = asked(evidence, stop).map_or_else(
        || "CLIENT".to_owned(),
        |tuple| {
            let length = if tuple.source.is_ipv6() { 128 } else { 32 };
            format!("{}/{length}", tuple.source.ip())
        },
    );
    let service = stop.service(evidence);
    let (named, namespace, name) = match service {
        Some((namespace, name)) => (format!("Service {namespace}/{name}"), namespace, name),
        None => (format!("the service at {target}"), "NAMESPACE", "NAME"),
    };
    let by_mark = stop
        .ruling
        .as_ref()
        .is_some_and(|ruling| ruling.ending.chain.name == BY_MARK);
    Diagnosis::new(
        &CAUSE,
        target.clone(),
        format!("{client} is not in the loadBalancerSourceRanges of {named}: kube-proxy drops it."),
    )
    .lacking_if(
        by_mark,
        "which rule marked the packet for KUBE-FIREWALL: source ranges, or a service without a local endpoint",
    )
    .fix(
        [
            format!("kubectl -n {namespace} get service {name} -o jsonpath='{{.spec.loadBalancerSourceRanges}}'"),
            format!(
                "kubectl -n {namespace} patch service {name} --type=json \
                 -p='[{{\"op\":\"add\",\"path\":\"/spec/loadBalancerSourceRanges/-\",\"value\":\"{client}\"}}]'"
            ),
        ],
        "lets this client reach the service",
    )
    .check(filtered::check(evidence, stop))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::Bench;
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::event::NetfilterHook;
    use crate::node::netfilter::{Action, Tool};

    fn bench(name: &str, comment: &str) -> Bench {
        let jump = rule(None, Action::Jump(name.into()), "");
        forwarded(
            Tool::IptablesNft,
            vec![
                chain("FORWARD", Some((NetfilterHook::Forward, false)), vec![jump]),
                chain(name, None, vec![rule(None, Action::Drop, comment)]),
            ],
        )
    }

    pub(in crate::cause) fn situation() -> Bench {
        bench(
            "KUBE-PROXY-FIREWALL",
            "shop/web:http traffic not accepted by KUBE-FW-ABCDEF",
        )
    }

    #[test]
    fn the_client_and_the_service_are_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("192.0.2.10/32"));
        assert!(found.summary.contains("Service shop/web"));
        assert!(found.fixes[0].lines[1].contains("\"value\":\"192.0.2.10/32\""));
    }

    #[test]
    fn a_drop_by_mark_is_likely() {
        let found = bench(BY_MARK, "kubernetes firewall for dropping marked packets").only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
    }

    #[test]
    fn what_else_kube_firewall_drops_is_another_case() {
        let found = bench(BY_MARK, "block incoming localnet connections").only();
        assert_eq!(found.code, "filter-rule-drop");
    }
}
