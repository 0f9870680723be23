//! `filter-rule-drop`: a packet filter rule dropped or rejected the packet.

use super::filtered::{self, Kind, Stop};
use super::{Cause, Diagnosis, Evidence, Finding};
use crate::node::netfilter::{Action, Rule};

pub(super) const CAUSE: Cause = Cause {
    code: "filter-rule-drop",
    title: "a packet filter rule (iptables or nftables) dropped or rejected the packet",
    explanation: "\
A rule of iptables or nftables ended the packet: DROP without an answer, so that the sender sees a
timeout, or REJECT with an ICMP error or a RST. The policy of an INPUT or OUTPUT chain does the same to
what no rule accepts; in ipvs mode an INPUT chain that drops stops NodePorts and ClusterIPs as well,
since their packets pass INPUT.

Proof: the packet ended at a netfilter hook, and its addresses, ports, devices, conntrack state and mark,
held against every rule of that hook, lead to this rule. It is likely only where a condition before it
cannot be decided from outside (a limit, an ipset with exceptions, a set that changes by itself or whose keys
are ranges of several fields); then the other candidates are named. nftables' rules for a bridge or for
one device (families bridge and netdev) end packets that never get to IP, and iptables shows none of them.
Rules for ARP and those of ebtables-legacy are not held against packets: what they drop has no rule named.

Fix: remove or change the rule, or accept the packet in front of it. Rules come back when the program
that made them runs again: look for the one that did. iptables-nft and iptables-legacy keep separate
tables; use the command that the fix names (most systems' iptables is one of both).",
    references: &[
        "Linux net/netfilter/core.c, nf_hook_slow: frees a packet that a hook drops with reason NETFILTER_DROP",
        "https://github.com/kubernetes/kubernetes/issues/98465",
    ],
    explains: &[],
    examine,
    audit: |_| Vec::<Finding>::new(),
};

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    filtered::diagnoses(evidence, Kind::Rule, Stop::place, |stop, place| {
        say(evidence, stop, place)
    })
}

fn say<'a>(evidence: &Evidence<'a>, stop: &Stop<'a>, place: String) -> Diagnosis {
    let Some(ruling) = &stop.ruling else {
        let summary =
            format!("Netfilter dropped the packet at the {place}; its rules are not known.");
        return Diagnosis::new(&CAUSE, place, summary)
            .check("nft list ruleset; iptables-legacy-save");
    };
    let ending = &ruling.ending;
    let summary = match ending.rule {
        Some(rule) => {
            let did = if matches!(rule.action, Action::Reject(_)) {
                "rejects"
            } else {
                "drops"
            };
            format!(
                "A rule of the node {did} the packet: {place}, {}.",
                ending.table.text(rule)
            )
        }
        None => format!(
            "No rule accepts the packet, and the policy of {} is DROP.",
            place.trim_end_matches(" policy DROP")
        ),
    };
    let mut begun = Diagnosis::new(&CAUSE, place, summary).check(filtered::check(evidence, stop));
    if let Some(tuple) = stop.tuple(evidence) {
        begun = begun.fix(
            [filtered::accept(ending, &tuple)],
            "lets this connection through and nothing else; widen it as needed",
        );
    }
    // A map decides about other packets as well.
    let of_its_own = |rule: &Rule| !matches!(rule.action, Action::Map { .. });
    let delete = |rule| ending.table.delete(ending.chain, rule);
    let diagnosis = match ending
        .rule
        .map(|rule| of_its_own(rule).then(|| delete(rule)).flatten())
    {
        Some(Some(command)) => begun.fix(
            [command],
            "everything that the rule stopped passes; by its number or handle, so look again first: rules may have moved",
        ),
        Some(None) => begun,
        None => begun.fix(
            [ending.table.accept_by_policy(ending.chain)],
            "everything that no rule drops reaches the node",
        ),
    };
    diagnosis.typed_for(evidence.site(stop.netns))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0};
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::event::NetfilterHook;
    use crate::node::netfilter::{Chain, Choice, Subject, Tool};

    const FORWARD: Option<(NetfilterHook, bool)> = Some((NetfilterHook::Forward, false));

    fn chains() -> Vec<Chain> {
        vec![
            chain(
                "FORWARD",
                FORWARD,
                vec![
                    rule(Some(81), Action::Drop, ""),
                    rule(None, Action::Jump("BLOCK".into()), ""),
                ],
            ),
            chain("BLOCK", None, vec![rule(Some(80), Action::Drop, "audit 7")]),
        ]
    }

    pub(in crate::cause) fn situation() -> Bench {
        forwarded(Tool::IptablesLegacy, chains())
    }

    #[test]
    fn the_rule_is_named_with_exact_commands() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.subject, "filter/BLOCK rule 1");
        assert!(found.summary.contains("--dport 80 -j DROP \"audit 7\""));
        assert!(
            found
                .evidence
                .iter()
                .any(|proof| proof.text.contains("FORWARD → BLOCK"))
        );
        assert_eq!(
            found.fixes[0].lines,
            [
                "iptables-legacy -t filter -I BLOCK 1 -s 192.0.2.10 -d 10.244.0.9 -p tcp --dport 80 -j ACCEPT"
            ]
        );
        assert_eq!(found.fixes[1].lines, ["iptables-legacy -D BLOCK 1"]);
    }

    #[test]
    fn nftables_are_named_by_handle() {
        let found = forwarded(Tool::Nft, chains()).only();
        assert_eq!(found.subject, "ip filter/BLOCK handle 7");
        assert_eq!(
            found.fixes[1].lines,
            ["nft delete rule ip filter BLOCK handle 7"]
        );
    }

    #[test]
    fn a_map_is_not_to_be_deleted() {
        let map = Action::Map {
            words: "th dport vmap @ports".into(),
            set: "ports".into(),
            choices: Some(vec![Choice {
                members: vec![Subject::DestinationPort(vec![80..=80])],
                action: Action::Drop,
            }]),
        };
        let chains = vec![chain("FORWARD", FORWARD, vec![rule(None, map, "")])];
        let found = forwarded(Tool::Nft, chains).only();
        assert_eq!(
            (found.subject.as_str(), found.certainty),
            ("ip filter/FORWARD handle 7", Certainty::Certain)
        );
        let [fix] = &found.fixes[..] else {
            panic!("{found:#?}");
        };
        assert!(fix.lines[0].starts_with("nft insert rule ip filter FORWARD handle 7 "));
    }

    #[test]
    fn without_the_rules_it_is_likely() {
        let mut bench = situation();
        bench.site().ruleset = None;
        let found = bench.only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Likely)
        );
        assert_eq!(found.missing, ["the rules of node"]);
    }

    #[test]
    fn an_input_policy_is_a_rule_too() {
        let input = chain("INPUT", Some((NetfilterHook::Input, true)), Vec::new());
        let mut bench = forwarded(Tool::IptablesNft, vec![chain("FORWARD", FORWARD, vec![])]);
        let ruleset = bench.site().ruleset.as_mut().expect("rules");
        ruleset.tables[0].chains.push(input);
        assert!(bench.codes().is_empty());
        bench
            .udp("192.0.2.10:40000", "192.0.2.1:53")
            .receive(ETH0)
            .netfilter(NetfilterHook::Input)
            .dropped("NETFILTER_DROP", "nf_hook_slow");
        let found = bench.only();
        assert_eq!(found.subject, "filter/INPUT policy DROP");
        assert_eq!(found.fixes[1].lines, ["iptables-nft -P INPUT ACCEPT"]);
    }

    #[test]
    fn a_drop_by_somebody_else_is_silent() {
        let mut bench = forwarded(Tool::Nft, Vec::new());
        bench
            .tcp("192.0.2.10:40001", "10.244.0.9:80")
            .receive(ETH0)
            .netfilter(NetfilterHook::Forward)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        assert!(!bench.codes().contains(&CAUSE.code));
    }
}
