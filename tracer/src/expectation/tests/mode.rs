//! What iptables and nftables mode make of the same cluster, version by version.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::event::protocol;
use crate::node::{Destination, NodePortScope, PacketFilter, Refusal, ServiceRule, ServiceRules};

const RULES: [Mode; 2] = [Mode::Iptables, Mode::Nftables];

/// The versions in which a mode exists.
fn versions(mode: Mode) -> impl Iterator<Item = u16> {
    VERSIONS
        .into_iter()
        .filter(move |minor| mode != Mode::Nftables || *minor >= 29)
}

fn of(mode: Mode, minor: u16, node_ports: &[&str]) -> Proxy {
    let list: Vec<String> = node_ports.iter().map(|text| (*text).to_owned()).collect();
    Proxy::new(mode, Some(minor), &list)
}

#[test]
fn node_ports_answer_where_the_mode_says() {
    let object = cluster(NODE, &[node_object()]);
    let addresses = |proxy: &Proxy| {
        let found = node_addresses(&node(), object.node(NODE), proxy)?;
        Some(found.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let all = [
        "10.96.0.10",
        "192.0.2.1",
        "192.0.2.50",
        "192.0.2.60",
        "198.51.100.7",
        "2001:db8::1",
    ];
    for minor in VERSIONS {
        // Whatever the kernel takes for local: a secondary address and a service's are no different.
        for list in [&[][..], &["0.0.0.0/0"]] {
            let found = addresses(&of(Mode::Iptables, minor, list));
            assert_eq!(
                found.as_deref(),
                Some(&all.map(str::to_owned)[..]),
                "1.{minor}"
            );
        }
        for mode in RULES {
            let found = addresses(&of(mode, minor, &["192.0.2.48/29"]));
            assert_eq!(found.as_deref(), Some(&["192.0.2.50".to_owned()][..]));
            let found = addresses(&of(mode, minor, &["primary"]));
            assert_eq!(found.as_deref(), Some(&["192.0.2.1".to_owned()][..]));
        }
    }
    for minor in [31, 36] {
        let found = addresses(&of(Mode::Nftables, minor, &[]));
        assert_eq!(found.as_deref(), Some(&["192.0.2.1".to_owned()][..]));
        let found = addresses(&of(Mode::Nftables, minor, &["0.0.0.0/0"]));
        assert_eq!(found.map(|found| found.len()), Some(all.len()));
    }
    // Whether 1.29 had that default is not known.
    assert_eq!(addresses(&of(Mode::Nftables, 29, &[])), None);
}

/// A row of the table below: what the service says, its endpoints, an address, and who is to serve from
/// which version on.
struct Case {
    spec: fn() -> Value,
    rows: &'static [Row],
    address: &'static str,
    wanted: &'static [(u16, &'static [&'static str])],
}

const HERE: &[&str] = &["10.244.0.5:8080"];
const BOTH: &[&str] = &["10.244.0.5:8080", "10.244.1.5:8080"];
const THERE: &[&str] = &["10.244.1.5:8080"];
const GOING: &[&str] = &["10.244.0.7:8080", "10.244.1.7:8080"];
const NOBODY: &[&str] = &[];
const EVERY: &[Row] = &[READY_HERE, READY_THERE, UNREADY, GOING_HERE, GOING_THERE];
const CLUSTER_IP: &str = "10.96.0.10:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const BALANCED: &str = "203.0.113.1:80";

fn plain() -> Value {
    json!({})
}

fn outside_local() -> Value {
    json!({"externalTrafficPolicy": "Local"})
}

fn inside_local() -> Value {
    json!({"internalTrafficPolicy": "Local"})
}

fn both_local() -> Value {
    json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"})
}

const CASES: &[Case] = &[
    case(plain, EVERY, CLUSTER_IP, &[(0, BOTH)]),
    case(plain, EVERY, NODE_PORT, &[(0, BOTH)]),
    case(plain, EVERY, BALANCED, &[(0, BOTH)]),
    case(plain, &[UNREADY], CLUSTER_IP, &[(0, NOBODY)]),
    // Those that are going serve when nobody else does, from 1.26.
    case(
        plain,
        &[UNREADY, GOING_HERE, GOING_THERE],
        NODE_PORT,
        &[(0, NOBODY), (26, GOING)],
    ),
    case(outside_local, EVERY, NODE_PORT, &[(0, HERE)]),
    case(outside_local, EVERY, BALANCED, &[(0, HERE)]),
    case(outside_local, EVERY, CLUSTER_IP, &[(0, BOTH)]),
    // In contrast to ipvs mode nobody else serves clients from outside.
    case(
        outside_local,
        &[READY_THERE, UNREADY],
        NODE_PORT,
        &[(0, NOBODY)],
    ),
    case(
        outside_local,
        &[READY_THERE, GOING_HERE],
        NODE_PORT,
        &[(0, NOBODY), (26, &["10.244.0.7:8080"])],
    ),
    // internalTrafficPolicy came in 1.22; up to 1.23 it bound clients from outside too.
    case(inside_local, EVERY, CLUSTER_IP, &[(0, BOTH), (22, HERE)]),
    case(
        inside_local,
        EVERY,
        NODE_PORT,
        &[(0, BOTH), (22, HERE), (24, BOTH)],
    ),
    case(
        inside_local,
        &[READY_THERE],
        CLUSTER_IP,
        &[(0, THERE), (22, NOBODY)],
    ),
    // And up to 1.23 meant nothing beside an externalTrafficPolicy of Local.
    case(both_local, EVERY, CLUSTER_IP, &[(0, BOTH), (24, HERE)]),
    case(both_local, EVERY, NODE_PORT, &[(0, HERE)]),
];

const fn case(
    spec: fn() -> Value,
    rows: &'static [Row],
    address: &'static str,
    wanted: &'static [(u16, &'static [&'static str])],
) -> Case {
    Case {
        spec,
        rows,
        address,
        wanted,
    }
}

/// A service with every kind of address.
fn balanced(spec: Value, rows: &[Row]) -> ClusterFacts {
    let mut object = service(spec);
    object["spec"]["type"] = json!("LoadBalancer");
    object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    cluster(NODE, &[node_object(), object, slice(rows)])
}

#[test]
fn endpoints_serve_as_the_version_says() {
    for mode in RULES {
        for minor in versions(mode) {
            for case in CASES {
                let facts = balanced((case.spec)(), case.rows);
                let found = endpoints(&facts, &of(mode, minor, &[]), case.address);
                let (_, wanted) = case
                    .wanted
                    .iter()
                    .rfind(|(from, _)| *from <= minor)
                    .expect("a first version");
                let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
                let (spec, rows) = ((case.spec)(), case.rows);
                assert_eq!(
                    found,
                    Some(wanted),
                    "{mode:?} 1.{minor} {spec} {rows:?} {}",
                    case.address
                );
            }
        }
    }
}

#[test]
fn what_could_not_be_found_out_is_not_compared() {
    let external = || json!({"externalIPs": ["203.0.113.9"], "externalTrafficPolicy": "Local"});
    for minor in VERSIONS {
        let facts = facts(external(), EVERY);
        let servers = expected(&facts, &node(), &of(Mode::Iptables, minor, &[]));
        let server = servers
            .iter()
            .find(|server| server.key.address == at("203.0.113.9:80"))
            .expect("the external address");
        assert_eq!(server.endpoints.is_ok(), minor > 20, "1.{minor}");
    }
}

/// Rules as they would be after a sync.
fn synced(servers: &[ExpectedServer], mode: Mode) -> NetnsFacts {
    let filter = match mode {
        Mode::Nftables => PacketFilter::Nftables,
        _ => PacketFilter::Iptables,
    };
    let mut services: Vec<ServiceRule> = Vec::new();
    let mut node_ports = BTreeSet::new();
    for server in servers {
        let address = server.key.address;
        let ipv6 = address.is_ipv6();
        let destination = if server.reach == Reach::NodePort {
            let length = if ipv6 { 128 } else { 32 };
            let address = address.ip();
            node_ports.insert(NodePortScope::Within(Prefix { address, length }));
            Destination::NodePort {
                ipv6,
                port: server.key.address.port(),
            }
        } else {
            Destination::Address(address)
        };
        let endpoints = server.endpoints.clone().unwrap_or_default();
        let serves = !endpoints.is_empty();
        let rule = ServiceRule {
            protocol: server.key.protocol,
            destination,
            refusal: (!serves).then_some(Refusal::Reject),
            affinity: server.affinity.filter(|_| serves),
            sources: server.sources.clone().filter(|_| serves),
            endpoints,
        };
        if !services
            .iter()
            .any(|known| known.destination == destination)
        {
            services.push(rule);
        }
    }
    let mut facts = node();
    facts.service_rules = Some(vec![ServiceRules {
        filter,
        services,
        node_ports: node_ports.into_iter().collect(),
    }]);
    facts
}

fn ranged() -> Value {
    json!({"loadBalancerSourceRanges": ["198.51.100.7/24", " 203.0.113.0/25"],
        "sessionAffinity": "ClientIP"})
}

#[test]
fn a_synced_node_shows_no_difference() {
    for mode in RULES {
        for minor in versions(mode) {
            for spec in [plain, outside_local, ranged] {
                for rows in [EVERY, &[UNREADY]] {
                    let cluster = balanced(spec(), rows);
                    let proxy = of(mode, minor, &[]);
                    let servers = expected(&cluster, &node(), &proxy);
                    let found = Comparison::of(&cluster, &synced(&servers, mode), &proxy);
                    let found = found.expect("rules");
                    assert_eq!(found.differences, [], "{mode:?} 1.{minor}");
                    assert_eq!(found.expected, servers.len());
                }
            }
        }
    }
}

/// The words of what is different after a change to the rules.
fn differences(mode: Mode, spec: Value, change: impl Fn(&mut ServiceRules)) -> Vec<String> {
    let cluster = balanced(spec, EVERY);
    let proxy = of(mode, 36, &["192.0.2.0/30"]);
    let mut node = synced(&expected(&cluster, &node(), &proxy), mode);
    node.service_rules.iter_mut().flatten().for_each(change);
    let found = Comparison::of(&cluster, &node, &proxy).expect("rules");
    let differences = found.differences.iter();
    differences.map(|found| found.words(mode)).collect()
}

fn rule<'a>(rules: &'a mut ServiceRules, destination: &str) -> &'a mut ServiceRule {
    let wanted = match destination.parse() {
        Ok(port) => Destination::NodePort { ipv6: false, port },
        Err(_) => Destination::Address(at(destination)),
    };
    let mut services = rules.services.iter_mut();
    services
        .find(|rule| rule.destination == wanted)
        .expect("the rule")
}

#[test]
fn every_difference_is_seen_and_named_after_its_mode() {
    for (mode, what) in [
        (Mode::Iptables, "iptables rule for"),
        (Mode::Nftables, "nftables rule for"),
    ] {
        let found = differences(mode, plain(), |rules| {
            rules
                .services
                .retain(|rule| rule.destination != Destination::Address(at(CLUSTER_IP)));
        });
        assert_eq!(
            found,
            [format!(
                "no {what} tcp 10.96.0.10:80 (ClusterIP of s/default/web)"
            )]
        );
        // The port is there, and the address that it is to answer on is not.
        let found = differences(mode, plain(), |rules| rules.node_ports.clear());
        assert_eq!(
            found,
            [format!(
                "no {what} tcp 192.0.2.1:30080 (NodePort of s/default/web)"
            )]
        );
        let found = differences(mode, plain(), |rules| {
            rule(rules, "30080")
                .endpoints
                .remove(&at("10.244.1.5:8080"));
        });
        assert_eq!(
            found,
            [format!(
                "{what} tcp 192.0.2.1:30080 of s/default/web lacks the ready endpoint 10.244.1.5:8080"
            )]
        );
        let found = differences(mode, plain(), |rules| {
            rule(rules, BALANCED)
                .endpoints
                .insert(at("10.244.9.9:8080"));
        });
        assert_eq!(
            found,
            [format!(
                "{what} tcp 203.0.113.1:80 of s/default/web still sends to 10.244.9.9:8080, which is no endpoint of the service any more"
            )]
        );
        let found = differences(mode, ranged(), |rules| rule(rules, BALANCED).sources = None);
        assert_eq!(
            found,
            [format!(
                "{what} tcp 203.0.113.1:80 of s/default/web lets through everyone where the service says 198.51.100.0/24, 203.0.113.0/25"
            )]
        );
        // The address itself is let through for this node.
        let found = differences(mode, ranged(), |rules| {
            let own = Prefix::parse("203.0.113.1/32").expect("a prefix");
            rule(rules, BALANCED)
                .sources
                .get_or_insert_default()
                .insert(own);
        });
        assert_eq!(found, [""; 0]);
        let found = differences(mode, plain(), |rules| {
            rule(rules, CLUSTER_IP).affinity = Some(Duration::from_secs(10));
        });
        assert!(
            found[0].contains("session affinity of 10 s where the service says no"),
            "{found:?}"
        );
        let found = differences(mode, plain(), |rules| {
            let mut other = rule(rules, CLUSTER_IP).clone();
            other.protocol = protocol::UDP;
            rules.services.push(other);
        });
        assert_eq!(
            found,
            [format!("{what} udp 10.96.0.10:80 belongs to no service")]
        );
    }
}

#[test]
fn rules_of_another_mode_are_not_compared() {
    let cluster = balanced(plain(), EVERY);
    let proxy = of(Mode::Nftables, 36, &[]);
    let servers = expected(&cluster, &node(), &proxy);
    assert_eq!(
        Comparison::of(&cluster, &synced(&servers, Mode::Iptables), &proxy),
        None
    );
    assert_eq!(Comparison::of(&cluster, &node(), &proxy), None);
}
