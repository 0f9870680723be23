//! Tests of which rule ended a packet.

use super::*;
use crate::event::protocol;
use crate::node::Link;
use crate::node::netfilter::{
    Base, Chain, Choice, Family, IpSetLookup, Rule, RuleTable, Ruleset, Subject, Test, Tool,
};

fn rule(number: u32, tests: Vec<Subject>, action: Action) -> Rule {
    Rule {
        number,
        handle: None,
        tests: tests
            .into_iter()
            .map(|on| Test { negated: false, on })
            .collect(),
        notes: Vec::new(),
        action,
        comment: None,
        packets: None,
    }
}

fn chain(name: &str, hook: Option<NetfilterHook>, drops: bool, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        base: hook.map(|hook| Base {
            hook,
            priority: 0,
            drops,
            kind: "filter".into(),
            policy_packets: None,
            devices: Vec::new(),
        }),
        rules,
    }
}

fn facts(chains: Vec<Chain>) -> NetnsFacts {
    let mut facts = NetnsFacts::unread(NetnsId(1), Some("node"));
    facts.ruleset = Some(Ruleset {
        tables: vec![RuleTable {
            tool: Tool::IptablesNft,
            family: Family::Ip,
            name: "filter".into(),
            chains,
        }],
    });
    facts
}

fn event(hook: HookId, detail: Detail) -> Event {
    Event {
        time_ns: 1,
        skb: 1,
        netns: Some(1),
        ifindex: None,
        length: Some(60),
        mark: Some(0),
        hook,
        detail,
        packet: Some(Packet {
            tuple: Tuple {
                protocol: protocol::TCP,
                source: "192.0.2.1:4000".parse().expect("an address"),
                destination: "10.0.0.9:80".parse().expect("an address"),
            },
            named_protocol: protocol::TCP,
            ip_id: Some(1),
            transport: Transport::tcp(1, tcp_flag::SYN),
            about: None,
        }),
        not_ip: false,
        arp: None,
    }
}

fn journey(between: &[Event]) -> Journey {
    let mut events = vec![event(
        HookId::NetfilterHook,
        Detail::Netfilter(NetfilterHook::Forward),
    )];
    events.extend(between.iter().cloned());
    let drop = Detail::Drop {
        location: 1,
        reason: None,
    };
    events.push(event(HookId::Drop, drop));
    Journey {
        id: 1,
        events,
        ending: JourneyEnding::Dropped {
            location: 1,
            reason: None,
        },
        ..Journey::default()
    }
}

fn to(port: u16) -> Subject {
    Subject::DestinationPort(vec![port..=port])
}

/// Chain and rule number (0 for the policy) of the first place, whether it is certain, and how many
/// others there are.
fn place(facts: &NetnsFacts, journey: &Journey) -> Option<(String, u32, bool, usize)> {
    let ruling = judge(journey, filtered(journey, true)?, facts)?;
    Some((
        ruling.ending.chain.name.clone(),
        ruling.ending.rule.map_or(0, |rule| rule.number),
        ruling.certain,
        ruling.others.len(),
    ))
}

const FORWARD: Option<NetfilterHook> = Some(NetfilterHook::Forward);

#[test]
fn the_rule_behind_jumps_and_returns() {
    let facts = facts(vec![
        chain(
            "FORWARD",
            FORWARD,
            false,
            vec![
                rule(1, vec![to(81)], Action::Drop),
                rule(2, vec![], Action::Jump("PODS".into())),
                rule(3, vec![], Action::Drop),
            ],
        ),
        chain(
            "PODS",
            None,
            false,
            vec![
                rule(1, vec![to(81)], Action::Accept),
                rule(2, vec![to(80)], Action::Return),
                rule(3, vec![], Action::Drop),
            ],
        ),
    ]);
    assert_eq!(
        place(&facts, &journey(&[])),
        Some(("FORWARD".into(), 3, true, 0))
    );
}

#[test]
fn policy_and_accept() {
    let drops = facts(vec![chain("FORWARD", FORWARD, true, Vec::new())]);
    assert_eq!(
        place(&drops, &journey(&[])),
        Some(("FORWARD".into(), 0, true, 0))
    );
    let accepts = facts(vec![chain(
        "FORWARD",
        FORWARD,
        true,
        vec![rule(1, vec![to(80)], Action::Accept)],
    )]);
    assert_eq!(place(&accepts, &journey(&[])), None);
}

#[test]
fn what_cannot_be_decided_is_certain_only_when_it_stands_alone() {
    let one = facts(vec![chain(
        "FORWARD",
        FORWARD,
        false,
        vec![rule(1, undecided(), Action::Drop)],
    )]);
    assert_eq!(
        place(&one, &journey(&[])),
        Some(("FORWARD".into(), 1, true, 0))
    );
    let mut two = facts(vec![chain(
        "FORWARD",
        FORWARD,
        true,
        vec![
            rule(1, undecided(), Action::Drop),
            rule(2, undecided(), Action::Accept),
        ],
    )]);
    assert_eq!(
        place(&two, &journey(&[])),
        Some(("FORWARD".into(), 1, false, 1))
    );
    // A counter that never moved takes the first one out.
    let tables = &mut two.ruleset.as_mut().expect("rules").tables;
    tables[0].chains[0].rules[0].packets = Some(0);
    assert_eq!(
        place(&two, &journey(&[])),
        Some(("FORWARD".into(), 0, true, 0))
    );
}

/// The places that are possible, in order: chain and rule number.
fn places(facts: &NetnsFacts, journey: &Journey) -> Vec<(String, u32)> {
    let filtered = filtered(journey, true).expect("netfilter dropped it");
    let ruling = judge(journey, filtered, facts).expect("a place");
    assert!(!ruling.certain, "{ruling:?}");
    std::iter::once(&ruling.ending)
        .chain(&ruling.others)
        .map(|ending| {
            let number = ending.rule.map_or(0, |rule| rule.number);
            (ending.chain.name.clone(), number)
        })
        .collect()
}

fn undecided() -> Vec<Subject> {
    vec![Subject::Other("-m set (…)".into())]
}

#[test]
fn an_undecided_accept_leads_to_the_next_base_chain() {
    let mut facts = facts(vec![
        chain(
            "FIRST",
            FORWARD,
            true,
            vec![
                rule(1, undecided(), Action::Accept),
                rule(2, vec![to(80)], Action::Drop),
            ],
        ),
        chain("LATER", FORWARD, true, Vec::new()),
    ]);
    assert_eq!(
        places(&facts, &journey(&[])),
        [("FIRST".into(), 2), ("LATER".into(), 0)]
    );
    // The same when it stands behind a jump that may come back as well.
    let tables = &mut facts.ruleset.as_mut().expect("rules").tables;
    let jump = rule(1, vec![], Action::Jump("MAY_ACCEPT".into()));
    tables[0].chains[0].rules[0] = jump;
    tables[0].chains.push(chain(
        "MAY_ACCEPT",
        None,
        false,
        vec![rule(1, undecided(), Action::Accept)],
    ));
    assert_eq!(
        places(&facts, &journey(&[])),
        [("FIRST".into(), 2), ("LATER".into(), 0)]
    );
}

#[test]
fn an_undecided_return_or_goto_leads_to_the_rules_behind_the_jump() {
    for leaves in [Action::Return, Action::Goto("EMPTY".into())] {
        let facts = facts(vec![
            chain(
                "FORWARD",
                FORWARD,
                false,
                vec![
                    rule(1, vec![], Action::Jump("USER".into())),
                    rule(2, vec![to(80)], Action::Drop),
                    rule(3, vec![], Action::Drop),
                ],
            ),
            chain(
                "USER",
                None,
                false,
                vec![rule(1, undecided(), leaves), rule(2, vec![], Action::Drop)],
            ),
            chain("EMPTY", None, false, Vec::new()),
        ]);
        assert_eq!(
            places(&facts, &journey(&[])),
            [("USER".into(), 2), ("FORWARD".into(), 2)]
        );
    }
}

#[test]
fn what_cannot_be_followed_may_have_done_anything() {
    for unknown in [Action::Other("queue".into()), Action::Jump("GONE".into())] {
        let facts = facts(vec![
            chain(
                "FIRST",
                FORWARD,
                true,
                vec![rule(1, vec![], unknown), rule(2, vec![], Action::Drop)],
            ),
            chain("LATER", FORWARD, true, Vec::new()),
        ]);
        assert_eq!(
            places(&facts, &journey(&[])),
            [
                ("FIRST".into(), 1),
                ("FIRST".into(), 2),
                ("FIRST".into(), 0),
                ("LATER".into(), 0)
            ]
        );
    }
}

fn map(choices: Vec<(Subject, Action)>) -> Action {
    let choice = |(member, action)| Choice {
        members: vec![member],
        action,
    };
    Action::Map {
        words: "(…) vmap (…)".into(),
        set: "__map0".into(),
        choices: Some(choices.into_iter().map(choice).collect()),
    }
}

/// A server's rules as nftables' own documentation writes them.
fn simple_server(first: Subject) -> NetnsFacts {
    let by_protocol = map(vec![
        (Subject::Ipv6(false), Action::Jump("ipv4".into())),
        (Subject::Ipv6(true), Action::Jump("ipv6".into())),
    ]);
    let by_state = map(vec![
        (first, Action::Accept),
        (Subject::State(state::INVALID), Action::Drop),
    ]);
    facts(vec![
        chain(
            "FORWARD",
            FORWARD,
            true,
            vec![rule(1, vec![], by_state), rule(2, vec![], by_protocol)],
        ),
        chain(
            "ipv4",
            None,
            false,
            vec![rule(1, vec![to(80)], Action::Drop)],
        ),
        chain("ipv6", None, false, vec![rule(1, vec![], Action::Drop)]),
    ])
}

#[test]
fn a_verdict_map_is_followed() {
    let established = simple_server(Subject::State(state::ESTABLISHED | state::RELATED));
    assert_eq!(
        place(&established, &journey(&[conntrack(Some(2))])),
        Some(("ipv4".into(), 1, true, 0))
    );
    // Without conntrack's word it may have been invalid, and it may have been accepted.
    assert_eq!(
        places(&established, &journey(&[])),
        [("FORWARD".into(), 1), ("ipv4".into(), 1)]
    );
    // A map that drops nothing is no place itself.
    let own = simple_server(to(80));
    assert_eq!(place(&own, &journey(&[conntrack(Some(2))])), None);
    let mut undecided = map(vec![
        (Subject::Other("(…)".into()), Action::Jump("ipv4".into())),
        (Subject::Other("(…)".into()), Action::Accept),
    ]);
    let ruled = |action: &Action| {
        let mut facts = simple_server(Subject::State(state::ESTABLISHED));
        let tables = &mut facts.ruleset.as_mut().expect("rules").tables;
        tables[0].chains[0].rules = vec![rule(1, vec![], action.clone())];
        facts
    };
    assert_eq!(
        places(&ruled(&undecided), &journey(&[])),
        [("ipv4".into(), 1), ("FORWARD".into(), 0)]
    );
    let goes_on = map(vec![(Subject::Other("(…)".into()), Action::Continue)]);
    assert_eq!(
        place(&ruled(&goes_on), &journey(&[])),
        Some(("FORWARD".into(), 0, true, 0))
    );
    // One that was not read may do anything.
    if let Action::Map { choices, .. } = &mut undecided {
        *choices = None;
    }
    assert_eq!(
        places(&ruled(&undecided), &journey(&[])),
        [("FORWARD".into(), 1), ("FORWARD".into(), 0)]
    );
}

#[test]
fn a_set_is_looked_up() {
    let of_nftables = |members| Subject::Set {
        what: "th dport".into(),
        set: "__set0".into(),
        members,
    };
    let of_ipset = |members| {
        Subject::IpSet(IpSetLookup {
            number: 1,
            name: Some("PORTS".into()),
            of_source: vec![false],
            members,
        })
    };
    let ports = || Subject::DestinationPort(vec![80..=80, 443..=443]);
    let other = || Subject::Other("(…)".into());
    for in_set in [of_nftables, of_ipset] {
        let drops = |members| {
            let rules = vec![rule(1, vec![in_set(members)], Action::Drop)];
            let facts = facts(vec![chain("FORWARD", FORWARD, true, rules)]);
            place(&facts, &journey(&[])).expect("a place")
        };
        assert_eq!(
            drops(Some(vec![other(), ports()])),
            ("FORWARD".into(), 1, true, 0)
        );
        assert_eq!(drops(Some(vec![to(81)])), ("FORWARD".into(), 0, true, 0));
        assert_eq!(drops(Some(Vec::new())), ("FORWARD".into(), 0, true, 0));
        for undecided in [Some(vec![to(81), other()]), None] {
            assert_eq!(drops(undecided), ("FORWARD".into(), 1, false, 1));
        }
    }
}

#[test]
fn a_place_that_several_ways_lead_to_is_one() {
    let jump = || Action::Jump("BLOCK".into());
    let facts = facts(vec![
        chain(
            "FORWARD",
            FORWARD,
            false,
            vec![rule(1, undecided(), jump()), rule(2, undecided(), jump())],
        ),
        chain("BLOCK", None, false, vec![rule(1, vec![], Action::Drop)]),
    ]);
    assert_eq!(
        place(&facts, &journey(&[])),
        Some(("BLOCK".into(), 1, true, 0))
    );
}

#[test]
fn an_answer_tells_reject_from_drop() {
    let icmp = event(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 });
    let facts = facts(vec![chain(
        "FORWARD",
        FORWARD,
        false,
        vec![
            rule(1, vec![Subject::Other("?".into())], Action::Drop),
            rule(
                2,
                vec![to(80)],
                Action::Reject("icmp-port-unreachable".into()),
            ),
        ],
    )]);
    assert_eq!(
        place(&facts, &journey(&[icmp])),
        Some(("FORWARD".into(), 2, true, 0))
    );
}

/// The packet's entry, and what the packet is to it.
fn conntrack(relation: Option<u8>) -> Event {
    let tuple = event(HookId::Drop, Detail::None)
        .packet
        .expect("a packet")
        .tuple;
    event(
        HookId::ConntrackTcp,
        Detail::Conntrack {
            original: tuple,
            reply: tuple.reversed(),
            destination_nat: false,
            relation,
            status: 0,
            zone: 0,
        },
    )
}

#[test]
fn the_state_that_conntrack_saw() {
    let facts = facts(vec![chain(
        "FORWARD",
        FORWARD,
        false,
        vec![
            rule(1, vec![Subject::State(state::ESTABLISHED)], Action::Accept),
            rule(2, vec![Subject::State(state::NEW)], Action::Drop),
            rule(3, vec![], Action::Drop),
        ],
    )]);
    assert_eq!(
        place(&facts, &journey(&[conntrack(Some(2))])),
        Some(("FORWARD".into(), 2, true, 0))
    );
    let unknown = place(&facts, &journey(&[conntrack(None)]));
    assert_eq!(unknown, Some(("FORWARD".into(), 2, false, 1)));
}

#[test]
fn a_redirect_is_no_rejection() {
    let facts = facts(vec![chain(
        "FORWARD",
        FORWARD,
        false,
        vec![rule(1, vec![to(80)], Action::Drop)],
    )]);
    // The way out is the way in: `ip_forward` tells the sender before the rules are asked.
    let redirect = event(HookId::IcmpSend, Detail::Icmp { kind: 5, code: 1 });
    let mut redirected = journey(&[]);
    redirected.events.insert(0, redirect.clone());
    let expected = Some(("FORWARD".into(), 1, true, 0));
    assert_eq!(place(&facts, &redirected), expected);
    assert_eq!(place(&facts, &journey(&[redirect])), expected);
    // An error that answers the packet is of a rule that rejects.
    let error = event(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 });
    assert_eq!(place(&facts, &journey(&[error])), None);
}

#[test]
fn a_tracked_echo_is_not_translated() {
    let tuple = |source: &str, destination: &str| Tuple {
        protocol: protocol::ICMP,
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
    };
    // As captures of earlier versions have it: the echo's id, its type, and the reply's.
    let original = tuple("192.0.2.1:77", "10.0.0.9:2048");
    let reply = tuple("10.0.0.9:77", "192.0.2.1:0");
    assert_eq!(translated(&original, &reply), 0);
    let elsewhere = tuple("10.0.0.7:77", "192.0.2.1:0");
    assert_eq!(translated(&original, &elsewhere), state::DNAT);
}

#[test]
fn drops_of_ipvs_are_not_the_rules() {
    let facts = facts(vec![chain("FORWARD", FORWARD, true, Vec::new())]);
    let leave = event(HookId::IpvsLeave, Detail::None);
    assert_eq!(place(&facts, &journey(&[leave])), None);
    assert!(filtered(&journey(&[]), false).is_none());
}

#[test]
fn hooks_in_front_of_ip_have_rules_of_their_own() {
    /// Came in by port 5 of the bridge 3, and ended where it was at device 6.
    fn ruled(hook: NetfilterHook, base: NetfilterHook, devices: &[&str], on: Subject) -> bool {
        let at = |ifindex, hook, detail| Event {
            ifindex: Some(ifindex),
            ..event(hook, detail)
        };
        let mut ended = journey(&[]);
        ended.events[0] = at(6, HookId::NetfilterHook, Detail::Netfilter(hook));
        let received = at(5, HookId::DeviceReceive, Detail::None);
        ended.events.insert(0, received);
        let drop = rule(1, vec![on], Action::Drop);
        let mut facts = facts(vec![chain("way", Some(base), false, vec![drop])]);
        let table = &mut facts.ruleset.as_mut().expect("rules").tables[0];
        // The bridge's family by its number.
        table.family = Family::Other(7);
        let base = table.chains[0].base.as_mut().expect("a base chain");
        base.devices = devices.iter().copied().map(str::to_owned).collect();
        let named = |index, name: &str| Link::named(index, Some(name.into()));
        let mut port = named(5, "veth5");
        port.master = Some(3);
        facts.links = vec![named(3, "cni0"), port, named(6, "veth6")];
        place(&facts, &ended) == Some(("way".into(), 1, true, 0))
    }
    use NetfilterHook::{BridgeForward, Egress, Forward, Ingress};
    let input = |name: &str| Subject::In(name.into(), false);
    let output = |name: &str| Subject::Out(name.into(), false);
    for (is_ruled, hook, base, devices, on) in [
        (true, BridgeForward, BridgeForward, &[][..], input("veth5")),
        (true, BridgeForward, BridgeForward, &[], output("veth6")),
        // A bridge's rules know the port alone.
        (false, BridgeForward, BridgeForward, &[], input("cni0")),
        (false, BridgeForward, Forward, &[], to(80)),
        (false, Forward, BridgeForward, &[], to(80)),
        (true, Ingress, Ingress, &["veth6"], to(80)),
        (true, Ingress, Ingress, &["eth0", "veth*"], input("veth6")),
        (false, Ingress, Ingress, &["eth0", "lan*"], to(80)),
        (true, Egress, Egress, &["veth6"], output("veth6")),
        (false, Egress, Egress, &["veth5"], to(80)),
    ] {
        let ruled = ruled(hook, base, devices, on.clone());
        assert_eq!(ruled, is_ruled, "{hook:?} {base:?} {devices:?} {on:?}");
    }
}

#[test]
fn a_bridge_runs_the_rules_of_its_prerouting_by_itself() {
    let drop = vec![rule(1, vec![], Action::Drop)];
    let hook = Some(NetfilterHook::BridgePreRouting);
    let mut facts = facts(vec![chain("way", hook, false, drop)]);
    let tables = &mut facts.ruleset.as_mut().expect("rules").tables;
    tables[0].family = Family::Other(7);
    let mut ended = journey(&[]);
    ended.events[0] = event(HookId::BridgeReceive, Detail::None);
    assert_eq!(place(&facts, &ended), Some(("way".into(), 1, true, 0)));
    // It went on.
    let forwarded = event(HookId::BridgeForward, Detail::None);
    ended.events.insert(1, forwarded);
    assert_eq!(place(&facts, &ended), None);
    assert!(by_netfilter(None, Some("br_handle_frame")));
    assert!(!by_netfilter(
        Some("NOT_SPECIFIED"),
        Some("br_handle_frame")
    ));
}
