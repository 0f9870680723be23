//! `forward-policy-drop`: no rule accepted a packet that the node was to forward, and the chain's policy
//! is DROP.

use super::audit::is_node;
use super::filtered::{self, Kind, Stop};
use super::pod_network::PodDevices;
use super::{Cause, Diagnosis, Evidence, Finding};
use crate::event::NetfilterHook;
use crate::node::netfilter::{Action, Chain, RuleTable, Subject, Test, Tool, state};

pub(super) const CAUSE: Cause = Cause {
    code: "forward-policy-drop",
    title: "the node does not let the packet through: policy DROP of a FORWARD chain",
    explanation: "\
Packets between pods, and between pods and other hosts, pass the FORWARD chain. No rule accepted this
one, and the chain's policy is DROP, so it was dropped without an answer; the sender sees a timeout.

Who sets it: Docker since 1.13, when it finds net.ipv4.ip_forward off at its start and turns it on;
firewalls (ufw, firewalld) and hardening scripts.

Proof: the packet ended at the forward hook, the rules hold no other place where it can have ended, and
the policy of the chain named is DROP.

Fix: rules that accept the pods' networks, which container networks usually bring themselves; or policy
ACCEPT. With Docker: set net.ipv4.ip_forward=1 before it starts, then it leaves the policy alone.",
    references: &["https://github.com/kubernetes/kubernetes/issues/40182"],
    explains: &[],
    examine,
    audit,
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    filtered::diagnoses(evidence, Kind::ForwardPolicy, Stop::place, |stop, place| {
        say(evidence, stop, place)
    })
}

/// Nodes whose FORWARD chains drop by policy and accept no new connections of their pods.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for site in evidence.sites().filter(|site| is_node(evidence, site)) {
        let pods = PodDevices::of(evidence, site);
        let tables = site
            .facts
            .ruleset
            .iter()
            .flat_map(|ruleset| &ruleset.tables);
        for (table, chain) in
            tables.flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
        {
            let closed = chain.base.as_ref().is_some_and(|base| {
                base.hook == NetfilterHook::Forward && base.drops && base.kind == "filter"
            });
            if closed && !lets_through(&pods, table, chain, MOST_JUMPS) {
                let place = format!("{}/{} policy DROP", table.named(), chain.name);
                found.push(Finding::error(
                    Diagnosis::new(
                        &CAUSE,
                        place.clone(),
                        format!(
                            "{} forwards nothing between its pods and others: the policy is DROP ({place}), and no rule accepts \
                             their network or their devices.",
                            site.name()
                        ),
                    )
                    .prove("rule", format!("{} {place}", table.command()))
                    .fix(
                        [table.accept_by_policy(chain)],
                        "the node forwards everything that no rule drops",
                    )
                    .check(table.show(&chain.name)),
                ));
            }
        }
    }
    found
}

/// The kernel's own limit of jumps.
const MOST_JUMPS: usize = 16;

/// Whether a chain, or one that it jumps to, accepts packets of pods by more than their connection's state
/// or kube-proxy's mark: what container networks bring for their pods. What Docker brings for docker0 alone
/// does not count.
fn lets_through(pods: &PodDevices<'_>, table: &RuleTable, chain: &Chain, jumps: usize) -> bool {
    let mut rules = chain.rules.iter().filter(|rule| pods.may_pass(rule));
    rules.any(|rule| match &rule.action {
        Action::Accept => rule.tests.iter().all(lets_new),
        Action::Jump(name) | Action::Goto(name) => {
            jumps > 0
                && table
                    .chain(name)
                    .is_some_and(|next| lets_through(pods, table, next, jumps - 1))
        }
        // What cannot be told may accept.
        Action::Map { .. } | Action::Other(_) => true,
        _ => false,
    })
}

/// Whether a connection's first packet passes a test on its state, without a mark.
fn lets_new(test: &Test) -> bool {
    match test.on {
        Subject::State(states) => (states & state::NEW != 0) != test.negated,
        Subject::Mark { .. } => false,
        _ => true,
    }
}

fn say<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>, place: String) -> Diagnosis {
    let summary = format!(
        "No rule accepts the packet, and the policy of {} is DROP: the node forwards only what a rule accepts.",
        place.trim_end_matches(" policy DROP")
    );
    let begun = Diagnosis::new(&CAUSE, place, summary).check(filtered::check(evidence, stop));
    let (Some(ruling), Some(tuple)) = (&stop.ruling, stop.tuple(evidence)) else {
        return begun;
    };
    let (table, chain) = (ruling.ending.table, ruling.ending.chain);
    let both = [tuple, tuple.reversed()].map(|tuple| {
        // The reply has its port on the other side, so addresses alone are let through.
        let (source, destination) = (tuple.source.ip(), tuple.destination.ip());
        match table.tool {
            Tool::Nft => format!(
                "nft add rule {} {} {} {} saddr {source} {} daddr {destination} accept",
                table.family.name(),
                table.name,
                chain.name,
                if source.is_ipv6() { "ip6" } else { "ip" },
                if source.is_ipv6() { "ip6" } else { "ip" },
            ),
            _ => format!(
                "{} -t {} -A {} -s {source} -d {destination} -j ACCEPT",
                table.command(),
                table.name,
                chain.name
            ),
        }
    });
    begun
        .fix(
            both,
            "lets these two hosts talk on every port; use the pods' networks for all of them",
        )
        .fix(
            [table.accept_by_policy(chain)],
            "the node forwards everything that no rule drops",
        )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ip, link};
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::node::netfilter::Rule;
    use crate::node::{Link, NetnsFacts, NetnsId};

    const FORWARD: Option<(NetfilterHook, bool)> = Some((NetfilterHook::Forward, true));

    pub(in crate::cause) fn situation() -> Bench {
        let rules = vec![rule(Some(81), Action::Accept, "")];
        forwarded(Tool::IptablesNft, vec![chain("FORWARD", FORWARD, rules)])
    }

    #[test]
    fn the_policy_is_named_and_the_commands_are_exact() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "filter/FORWARD policy DROP");
        assert_eq!(
            found.fixes[0].lines,
            [
                "iptables-nft -t filter -A FORWARD -s 192.0.2.10 -d 10.244.0.9 -j ACCEPT",
                "iptables-nft -t filter -A FORWARD -s 10.244.0.9 -d 192.0.2.10 -j ACCEPT",
            ]
        );
        assert_eq!(found.fixes[1].lines, ["iptables-nft -P FORWARD ACCEPT"]);
    }

    #[test]
    fn a_drop_rule_that_cannot_be_decided_makes_it_another_likely_case() {
        let mut undecided = rule(None, Action::Drop, "");
        undecided.tests = vec![Test {
            negated: false,
            on: Subject::Other("-m set (…)".into()),
        }];
        let bench = forwarded(
            Tool::IptablesNft,
            vec![chain("FORWARD", FORWARD, vec![undecided])],
        );
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            ("filter-rule-drop", Certainty::Likely)
        );
        assert!(found.missing[0].contains("FORWARD policy"), "{found:#?}");
    }

    #[test]
    fn a_chain_that_accepts_is_silent() {
        let rules = vec![rule(Some(80), Action::Accept, "")];
        let bench = forwarded(Tool::IptablesNft, vec![chain("FORWARD", FORWARD, rules)]);
        assert!(bench.codes().is_empty());
    }

    fn of(tests: &[(bool, Subject)], action: Action) -> Rule {
        Rule {
            tests: tests
                .iter()
                .map(|(negated, on)| Test {
                    negated: *negated,
                    on: on.clone(),
                })
                .collect(),
            ..rule(None, action, "")
        }
    }

    fn comes(device: &str) -> Subject {
        Subject::In(device.into(), false)
    }

    fn goes(device: &str) -> Subject {
        Subject::Out(device.into(), false)
    }

    /// A node with a pod on cni0 and Docker's rules, as 20.10 writes them for a container with a published
    /// port, and one more rule.
    fn with_docker(more: Option<Rule>) -> Bench {
        let jump = |tests: &[(bool, Subject)], name: &str| of(tests, Action::Jump(name.into()));
        let (from, to) = ((false, comes("docker0")), (false, goes("docker0")));
        let (elsewhence, elsewhere) = ((true, comes("docker0")), (true, goes("docker0")));
        let known = (false, Subject::State(state::RELATED | state::ESTABLISHED));
        let back = || of(&[], Action::Return);
        let container = (false, Subject::Destination(ip("172.17.0.2"), 32));
        let mut forward = vec![
            jump(&[], "DOCKER-USER"),
            jump(&[], "DOCKER-ISOLATION-STAGE-1"),
            of(&[to.clone(), known], Action::Accept),
            jump(std::slice::from_ref(&to), "DOCKER"),
            of(&[from.clone(), elsewhere.clone()], Action::Accept),
            of(&[from.clone(), to.clone()], Action::Accept),
        ];
        forward.extend(more);
        let mut bench = forwarded(
            Tool::IptablesNft,
            vec![
                chain("FORWARD", FORWARD, forward),
                chain("DOCKER-USER", None, vec![back()]),
                chain(
                    "DOCKER",
                    None,
                    vec![of(&[container, elsewhence, to.clone()], Action::Accept)],
                ),
                chain(
                    "DOCKER-ISOLATION-STAGE-1",
                    None,
                    vec![jump(&[from, elsewhere], "DOCKER-ISOLATION-STAGE-2"), back()],
                ),
                chain(
                    "DOCKER-ISOLATION-STAGE-2",
                    None,
                    vec![of(&[to], Action::Drop), back()],
                ),
            ],
        );
        let port = |index, name: &str, bridge| Link {
            kind: Some("veth".into()),
            master: Some(bridge),
            peer_netns: Some(NetnsId(700 + index)),
            ..link(index, name)
        };
        let docker = Link {
            kind: Some("bridge".into()),
            ..link(30, "docker0")
        };
        bench
            .site()
            .links
            .extend([docker, port(40, "vethpod", CNI0), port(41, "veth1a2b", 30)]);
        bench
    }

    #[test]
    fn docker_s_rules_are_for_docker0_alone() {
        let found = with_docker(None).with_evidence(audit);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].diagnosis.subject, "filter/FORWARD policy DROP");
        // Rules that let nothing new of the pods pass change nothing.
        for tests in [
            vec![
                (false, comes("cni0")),
                (false, Subject::State(state::ESTABLISHED)),
            ],
            vec![(false, comes("eth0")), (false, goes("eth0"))],
            vec![
                (false, Subject::Source(ip("172.17.0.0"), 16)),
                (false, comes("docker0")),
            ],
        ] {
            let rule = of(&tests, Action::Accept);
            assert_eq!(
                with_docker(Some(rule)).with_evidence(audit).len(),
                1,
                "{tests:?}"
            );
        }
    }

    #[test]
    fn other_containers_beside_known_pods_do_not_count() {
        let mut bench = with_docker(Some(of(&[(false, comes("lxcbr0"))], Action::Accept)));
        let bridge = Link {
            kind: Some("bridge".into()),
            ..link(31, "lxcbr0")
        };
        let port = Link {
            kind: Some("veth".into()),
            master: Some(31),
            peer_netns: Some(NetnsId(742)),
            ..link(42, "vethlxc")
        };
        bench.site().links.extend([bridge, port]);
        // Where no namespace is known as a pod's, this may be one.
        assert_eq!(bench.with_evidence(audit), []);
        let mut pod = NetnsFacts::unread(NetnsId(740), Some("behind vethpod"));
        pod.is_pod = true;
        bench.facts.namespaces.push(pod);
        assert_eq!(bench.with_evidence(audit).len(), 1);
    }

    #[test]
    fn a_bridge_that_leads_out_is_no_container_s() {
        let rule = of(
            &[(false, comes("eth0")), (false, goes("cni0"))],
            Action::Accept,
        );
        let mut bench = with_docker(Some(rule));
        let mut links = bench.site().links.iter_mut();
        let eth0 = links.find(|link| link.name == "eth0").expect("eth0");
        eth0.kind = Some("bridge".into());
        assert_eq!(bench.with_evidence(audit), []);
    }

    #[test]
    fn rules_for_pods_are_the_container_network_s() {
        for tests in [
            vec![],
            vec![(false, comes("cni0"))],
            vec![(true, comes("docker0")), (false, goes("cni0"))],
            vec![(false, Subject::In("vethp".into(), true))],
            vec![(false, Subject::OutIndex(CNI0))],
            vec![(false, Subject::Source(ip("10.244.0.0"), 16))],
            vec![(false, Subject::Destination(ip("10.244.0.0"), 24))],
            vec![(false, Subject::Other("-m set (…)".into()))],
            vec![
                (false, comes("cni0")),
                (false, Subject::State(state::NEW | state::ESTABLISHED)),
            ],
        ] {
            let rule = of(&tests, Action::Accept);
            assert_eq!(
                with_docker(Some(rule)).with_evidence(audit),
                [],
                "{tests:?}"
            );
        }
    }
}
