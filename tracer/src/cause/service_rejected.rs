//! `service-no-endpoints` where the cluster's facts do not tell: kube-proxy's rule that refuses
//! connections names the service.
//!
//! Source: kube-proxy's pkg/proxy/iptables/proxier.go writes the rule with the comment
//! "NAMESPACE/NAME:PORT has no endpoints"; pkg/proxy/nftables/proxier.go sends to its chain
//! `reject-chain`. In ipvs mode see `ipvs-no-destination`.

use super::filtered::{self, Kind, Stop};
use super::service_no_endpoints::CAUSE;
use super::{Diagnosis, Evidence};

/// The services that rules of kube-proxy refuse.
pub(super) fn diagnoses(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    filtered::diagnoses(
        evidence,
        Kind::NoEndpoints,
        |stop| filtered::target(stop.tuple(evidence)),
        |stop, target| say(evidence, stop, target),
    )
}

fn say<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>, target: String) -> Diagnosis {
    let service = stop.service(evidence);
    let (named, namespace, name) = match service {
        Some((namespace, name)) => (format!("Service {namespace}/{name}"), namespace, name),
        None => (format!("The service at {target}"), "NAMESPACE", "NAME"),
    };
    Diagnosis::new(
        &CAUSE,
        target.clone(),
        format!("{named} has no ready endpoints, so kube-proxy rejects connections to {target}."),
    )
    .fix(
        [
            format!(
                "kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name}"
            ),
            format!("kubectl -n {namespace} describe service {name}   # its selector"),
            format!("kubectl -n {namespace} get pods --show-labels   # matching, and Ready?"),
        ],
        "none: these commands only look; what they show has to be mended",
    )
    .check(filtered::check(evidence, stop))
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, node};
    use crate::cause::filtered::tests::{chain, rule};
    use crate::event::{Detail, NetfilterHook};
    use crate::node::netfilter::{Action, Family, RuleTable, Ruleset, Tool};

    fn bench(comment: &str, answered: bool) -> Bench {
        let reject = Action::Reject("icmp-port-unreachable".into());
        let jump = rule(None, Action::Jump("KUBE-SERVICES".into()), "");
        let mut bench = node();
        bench.site().ruleset = Some(Ruleset {
            tables: vec![RuleTable {
                tool: Tool::IptablesNft,
                family: Family::Ip,
                name: "filter".into(),
                chains: vec![
                    chain("FORWARD", Some((NetfilterHook::Forward, true)), vec![jump]),
                    chain("KUBE-SERVICES", None, vec![rule(Some(80), reject, comment)]),
                ],
            }],
        });
        let route = Detail::Route {
            kind: 1,
            error: 0,
            ifindex: Some(CNI0),
        };
        let mut way = bench
            .tcp("192.0.2.10:40000", "10.96.0.20:80")
            .receive(ETH0)
            .with(HookId::Forward, route)
            .netfilter(NetfilterHook::Forward);
        if answered {
            way = way.with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 });
        }
        way.dropped("NETFILTER_DROP", "nf_hook_slow");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        bench("shop/web:http has no endpoints", true)
    }

    #[test]
    fn the_service_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "tcp 10.96.0.20:80");
        assert!(found.summary.contains("Service shop/web has no ready"));
        assert!(found.fixes[0].lines[0].contains("-n shop"));
    }

    #[test]
    fn another_reject_rule_is_another_case() {
        assert_eq!(bench("keep out", true).codes(), ["filter-rule-drop"]);
    }

    #[test]
    fn an_answer_that_was_not_seen_makes_no_difference() {
        let bench = bench("shop/web:http has no endpoints", false);
        assert_eq!(bench.codes(), [CAUSE.code]);
    }

    #[test]
    fn with_endpoints_there_is_no_rule_and_no_diagnosis() {
        let mut bench = situation();
        bench.site().ruleset = Some(Ruleset::default());
        assert!(bench.codes().is_empty());
    }
}
