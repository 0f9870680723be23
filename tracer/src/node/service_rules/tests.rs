//! What rules come to, from their decoded form; the rules of whole nodes are tested on real kernels.

use super::*;
use crate::node::netfilter::{Action, Chain, Element, Rule, RuleTable, Set, Subject, Test};

const TCP: u8 = 6;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn prefix(text: &str) -> Prefix {
    Prefix::parse(text).expect("a prefix")
}

fn yes(on: Subject) -> Test {
    Test { negated: false, on }
}

fn not(on: Subject) -> Test {
    Test { negated: true, on }
}

fn rule(tests: Vec<Test>, action: Action) -> Rule {
    Rule {
        number: 0,
        handle: None,
        tests,
        notes: Vec::new(),
        action,
        comment: None,
        packets: None,
    }
}

fn jump(tests: Vec<Test>, chain: &str) -> Rule {
    rule(tests, Action::Jump(chain.into()))
}

fn source(text: &str) -> Subject {
    let Prefix { address, length } = prefix(text);
    Subject::Source(address, length)
}

/// What a rule for an address and port looks at.
fn to(address: &str) -> Vec<Test> {
    let address = at(address);
    let length = if address.is_ipv4() { 32 } else { 128 };
    [
        vec![yes(Subject::Destination(address.ip(), length))],
        to_port(address.port()),
    ]
    .concat()
}

fn to_port(port: u16) -> Vec<Test> {
    vec![
        yes(Subject::Protocol(TCP)),
        yes(Subject::DestinationPort(vec![port..=port])),
    ]
}

fn dnat(to: &str) -> Rule {
    rule(vec![yes(Subject::Protocol(TCP))], Action::Dnat(at(to)))
}

fn table(tool: Tool, family: Family, name: &str, chains: Vec<(&str, Vec<Rule>)>) -> RuleTable {
    RuleTable {
        tool,
        family,
        name: name.into(),
        chains: chains
            .into_iter()
            .map(|(name, rules)| Chain {
                name: name.into(),
                base: None,
                rules,
            })
            .collect(),
    }
}

/// The rules of iptables tables.
fn iptables(tables: Vec<RuleTable>) -> ServiceRules {
    let tables: Vec<TableWithSets> = tables
        .into_iter()
        .map(|table| TableWithSets {
            table,
            sets: Vec::new(),
        })
        .collect();
    let mut found = of_tables(&tables);
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn nat(chains: Vec<(&str, Vec<Rule>)>) -> RuleTable {
    table(Tool::IptablesLegacy, Family::Ip, "nat", chains)
}

fn endpoints(rules: &ServiceRules, destination: Destination) -> Vec<String> {
    let found = rules
        .services
        .iter()
        .find(|rule| rule.destination == destination);
    let endpoints = &found.expect("the destination").endpoints;
    endpoints.iter().map(ToString::to_string).collect()
}

const NODE_PORT: Destination = Destination::NodePort {
    ipv6: false,
    port: 30080,
};

#[test]
fn what_is_for_this_node_alone_is_not_followed() {
    let rules = iptables(vec![nat(vec![
        ("KUBE-NODEPORTS", vec![jump(to_port(30080), "KUBE-EXT-A")]),
        (
            "KUBE-EXT-A",
            vec![
                jump(vec![yes(source("10.244.0.0/16"))], "KUBE-SVC-A"),
                jump(vec![yes(Subject::In("cni0".into(), false))], "KUBE-SVC-A"),
                jump(vec![yes(Subject::LocalSource)], "KUBE-MARK-MASQ"),
                jump(vec![yes(Subject::LocalSource)], "KUBE-SVC-A"),
                jump(Vec::new(), "KUBE-SVL-A"),
            ],
        ),
        (
            "KUBE-SVC-A",
            vec![
                jump(
                    vec![yes(Subject::Other("-m statistic (…)".into()))],
                    "KUBE-SEP-1",
                ),
                jump(Vec::new(), "KUBE-SEP-2"),
            ],
        ),
        ("KUBE-SVL-A", vec![jump(Vec::new(), "KUBE-SEP-1")]),
        (
            "KUBE-SEP-1",
            vec![
                jump(vec![yes(source("10.244.0.5/32"))], "KUBE-MARK-MASQ"),
                dnat("10.244.0.5:8080"),
            ],
        ),
        ("KUBE-SEP-2", vec![dnat("10.244.1.5:8080")]),
        (
            "KUBE-SERVICES",
            vec![
                jump(
                    [vec![not(source("10.244.0.0/16"))], to("10.96.0.10:80")].concat(),
                    "KUBE-MARK-MASQ",
                ),
                jump(to("10.96.0.10:80"), "KUBE-SVC-A"),
                jump(vec![yes(Subject::LocalDestination)], "KUBE-NODEPORTS"),
            ],
        ),
    ])]);
    assert_eq!(rules.filter, PacketFilter::Iptables);
    assert_eq!(endpoints(&rules, NODE_PORT), ["10.244.0.5:8080"]);
    let cluster_ip = Destination::Address(at("10.96.0.10:80"));
    assert_eq!(
        endpoints(&rules, cluster_ip),
        ["10.244.0.5:8080", "10.244.1.5:8080"]
    );
    assert_eq!(rules.node_ports, [NodePortScope::Local { ipv6: false }]);
    assert!(rules.node_ports[0].covers("192.0.2.1".parse().expect("an address")));
}

#[test]
fn a_firewall_chain_says_who_may_come() {
    let rules = |first: Vec<Test>| {
        iptables(vec![nat(vec![
            (
                "KUBE-SERVICES",
                vec![jump(to("203.0.113.1:80"), "KUBE-FW-A")],
            ),
            (
                "KUBE-FW-A",
                vec![
                    jump(Vec::new(), "KUBE-MARK-MASQ"),
                    jump(first, "KUBE-SVC-A"),
                    jump(Vec::new(), "KUBE-MARK-DROP"),
                ],
            ),
            (
                "KUBE-SVC-A",
                vec![
                    jump(vec![yes(Subject::Recent(10_800))], "KUBE-SEP-1"),
                    jump(Vec::new(), "KUBE-SEP-1"),
                ],
            ),
            ("KUBE-SEP-1", vec![dnat("10.244.0.5:8080")]),
        ])])
        .services
        .remove(0)
    };
    let ranged = rules(vec![yes(source("198.51.100.0/24"))]);
    assert_eq!(ranged.sources, Some([prefix("198.51.100.0/24")].into()));
    assert_eq!(ranged.affinity, Some(Duration::from_secs(10_800)));
    assert_eq!(ranged.endpoints.len(), 1);
    // Up to 1.23 every load balancer has such a chain.
    assert_eq!(rules(Vec::new()).sources, None);
}

#[test]
fn packets_without_an_endpoint_are_refused_in_the_filter_table() {
    let refuse = |tests, action| rule(tests, action);
    let reject = || Action::Reject("icmp-port-unreachable".into());
    let rules = iptables(vec![
        table(
            Tool::IptablesNft,
            Family::Ip,
            "filter",
            vec![
                ("KUBE-SERVICES", vec![refuse(to("10.96.0.12:53"), reject())]),
                (
                    "KUBE-EXTERNAL-SERVICES",
                    vec![refuse(
                        [vec![yes(Subject::LocalDestination)], to_port(30080)].concat(),
                        Action::Drop,
                    )],
                ),
            ],
        ),
        table(
            Tool::IptablesNft,
            Family::Ip6,
            "filter",
            vec![("KUBE-SERVICES", vec![refuse(to("[fd00::12]:53"), reject())])],
        ),
    ]);
    let refusals: Vec<_> = rules
        .services
        .iter()
        .map(|rule| (rule.destination, rule.refusal))
        .collect();
    assert_eq!(
        refusals,
        [
            (
                Destination::Address(at("10.96.0.12:53")),
                Some(Refusal::Reject)
            ),
            (
                Destination::Address(at("[fd00::12]:53")),
                Some(Refusal::Reject)
            ),
            (NODE_PORT, Some(Refusal::Drop)),
        ]
    );
}

#[test]
fn chains_that_lead_round_end() {
    let rules = iptables(vec![nat(vec![
        (
            "KUBE-SERVICES",
            vec![
                jump(to("10.96.0.10:80"), "A"),
                jump(to("10.96.0.11:80"), "GONE"),
            ],
        ),
        ("A", vec![jump(Vec::new(), "B"), dnat("10.244.0.5:8080")]),
        ("B", vec![jump(Vec::new(), "A")]),
    ])]);
    assert_eq!(
        endpoints(&rules, Destination::Address(at("10.96.0.10:80"))),
        ["10.244.0.5:8080"]
    );
    assert_eq!(
        endpoints(&rules, Destination::Address(at("10.96.0.11:80"))),
        [""; 0]
    );
}

fn set(name: &str, timeout: Option<u64>, elements: Vec<(Vec<u8>, Option<Action>)>) -> Set {
    Set {
        name: name.into(),
        timeout: timeout.map(Duration::from_secs),
        elements: elements
            .into_iter()
            .map(|(key, verdict)| Element {
                key,
                conditional: false,
                ends_interval: false,
                verdict,
            })
            .collect(),
        ..Set::default()
    }
}

/// A key of an address, protocol and port as the kernel has it.
fn key(address: &[u8], port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [address, &[TCP, 0, 0, 0, high, low, 0, 0]].concat()
}

#[test]
fn maps_lead_to_endpoints() {
    let goto = |chain: &str| Some(Action::Goto(chain.into()));
    let in_set = |set: &str| Subject::Set {
        what: "saddr".into(),
        set: set.into(),
        members: None,
    };
    let six = "fd00::10"
        .parse::<std::net::Ipv6Addr>()
        .expect("an address")
        .octets();
    let map = |set: &str| Action::Map {
        words: String::new(),
        set: set.into(),
        choices: None,
    };
    let table = table(
        Tool::Nft,
        Family::Ip6,
        "kube-proxy",
        vec![
            (
                "services",
                vec![rule(
                    vec![yes(in_set("nodeport-ips"))],
                    map("service-nodeports"),
                )],
            ),
            (
                "service-a",
                vec![
                    jump(vec![not(source("fd00:1::/32"))], "mark-for-masquerade"),
                    rule(
                        vec![yes(in_set("affinity-1"))],
                        Action::Goto("endpoint-1".into()),
                    ),
                    rule(Vec::new(), map("__map0")),
                ],
            ),
            (
                "external-a",
                vec![
                    jump(Vec::new(), "mark-for-masquerade"),
                    rule(Vec::new(), Action::Goto("service-a".into())),
                ],
            ),
            ("endpoint-1", vec![dnat("[fd00:1::5]:8080")]),
            (
                "firewall-a",
                vec![rule(vec![not(source("2001:db8::/32"))], Action::Drop)],
            ),
        ],
    );
    let sets = vec![
        set(
            "service-ips",
            None,
            vec![(key(&six, 80), goto("service-a"))],
        ),
        set(
            "service-nodeports",
            None,
            vec![(key(&[], 30080), goto("external-a"))],
        ),
        set(
            "no-endpoint-services",
            None,
            vec![(key(&six, 81), Some(Action::Drop))],
        ),
        set(
            "firewall-ips",
            None,
            vec![(key(&six, 80), goto("firewall-a"))],
        ),
        set("nodeport-ips", None, vec![(six.to_vec(), None)]),
        set("affinity-1", Some(60), Vec::new()),
        set("__map0", None, vec![(vec![0, 0, 0, 0], goto("endpoint-1"))]),
    ];
    let found = of_tables(&[TableWithSets { table, sets }]);
    let [rules] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(rules.filter, PacketFilter::Nftables);
    let [service, refused, node_port] = &rules.services[..] else {
        panic!("{rules:#?}");
    };
    assert_eq!(
        service.destination,
        Destination::Address(at("[fd00::10]:80"))
    );
    assert_eq!(service.endpoints, [at("[fd00:1::5]:8080")].into());
    assert_eq!(service.affinity, Some(Duration::from_secs(60)));
    assert_eq!(service.sources, Some([prefix("2001:db8::/32")].into()));
    assert_eq!(refused.refusal, Some(Refusal::Drop));
    assert_eq!(node_port.endpoints, service.endpoints);
    assert_eq!(
        rules.node_ports,
        [NodePortScope::Within(prefix("fd00::10/128"))]
    );
}
