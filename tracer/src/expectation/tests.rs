//! What each version of kube-proxy makes of the same cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::event::protocol;
use crate::kube::constructed::{cluster, configured};
use crate::kube::{ClusterFacts, ObjectName};
use crate::node::{
    Address, ForwardingMethod, Link, NetnsFacts, NetnsId, OperState, Persistence, Prefix,
    RealServer, Route, RouteKind, RouteProtocol, Scope, VirtualServer, VirtualServerKey,
};

const NODE: &str = "node-a";
/// The versions that CAUSES' rules tell apart.
const VERSIONS: [u16; 7] = [20, 22, 23, 26, 27, 31, 36];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn proxy(minor: u16, node_ports: &[&str]) -> Proxy {
    let list: Vec<String> = node_ports.iter().map(|text| (*text).to_owned()).collect();
    Proxy::new(Some(minor), &list)
}

/// A node: 192.0.2.1/24 with the secondary .50/24, 198.51.100.7/32, and the services' device with a
/// cluster address and 192.0.2.60, which is on the node's own device as well.
fn node() -> NetnsFacts {
    let mut facts = NetnsFacts::unread(NetnsId(1), Some("node"));
    facts.links = [(1, "lo"), (2, "eth0"), (3, SERVICE_DEVICE)]
        .map(|(index, name)| Link {
            index,
            name: name.into(),
            kind: None,
            mtu: None,
            up: true,
            carrier: None,
            state: Some(OperState::Up),
            mac: None,
            master: None,
            peer_index: None,
            peer_netns: None,
            bridge_port: None,
            vxlan: None,
            xdp: None,
        })
        .into();
    for (link, address, prefix, source) in [
        (1, "127.0.0.1", 8, "127.0.0.1"),
        (2, "192.0.2.1", 24, "192.0.2.1"),
        (2, "192.0.2.50", 24, "192.0.2.1"),
        (2, "198.51.100.7", 32, "198.51.100.7"),
        (2, "192.0.2.60", 32, "192.0.2.60"),
        (3, "192.0.2.60", 32, "192.0.2.60"),
        (3, "10.96.0.10", 32, "10.96.0.10"),
        (2, "2001:db8::1", 64, "2001:db8::1"),
        (2, "fe80::1", 64, "fe80::1"),
    ] {
        facts.addresses.push(Address {
            link,
            address: ip(address),
            prefix_length: prefix,
            secondary: address != source,
            flags: 0,
            label: None,
            scope: Scope::Global,
        });
        let four = ip(address).is_ipv4();
        facts.routes.push(Route {
            table: Route::LOCAL_TABLE,
            kind: RouteKind::Local,
            destination: Prefix {
                address: ip(address),
                length: if four { 32 } else { 128 },
            },
            preferred_source: four.then(|| ip(source)),
            gateway: None,
            link: Some(link),
            next_hops: Vec::new(),
            protocol: RouteProtocol::Kernel,
            scope: Scope::Host,
            metric: None,
            dead: false,
        });
    }
    facts
}

fn node_object() -> Value {
    json!({"kind": "Node", "metadata": {"name": NODE}, "status": {
        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
        "nodeInfo": {"kubeletVersion": "v1.22.17"}}})
}

#[test]
fn node_ports_answer_where_the_version_says() {
    let node_object = cluster(NODE, &[node_object()]);
    let node_object = node_object.node(NODE);
    let expect = |minor, list: &[&str], wanted: &[&str]| {
        let found = node_addresses(&node(), node_object, &proxy(minor, list));
        let wanted: BTreeSet<IpAddr> = wanted.iter().map(|text| ip(text)).collect();
        assert_eq!(found, Some(wanted), "1.{minor} {list:?}");
    };
    let six = "2001:db8::1";
    for minor in VERSIONS {
        // A zero prefix is the same as no list.
        for list in [&[][..], &["0.0.0.0/0"], &["192.0.2.0/24", "::/0"]] {
            match minor {
                // The secondary address has the first one's source.
                ..=22 => expect(
                    minor,
                    list,
                    &["192.0.2.1", "198.51.100.7", "192.0.2.60", six],
                ),
                // What is a service address too is taken away.
                23..=26 => expect(
                    minor,
                    list,
                    &["192.0.2.1", "192.0.2.50", "198.51.100.7", six],
                ),
                _ => expect(
                    minor,
                    list,
                    &["192.0.2.1", "192.0.2.50", "198.51.100.7", "192.0.2.60", six],
                ),
            }
        }
        expect(minor, &["192.0.2.48/29", "127.0.0.0/8"], &["192.0.2.50"]);
        expect(minor, &["primary"], &["192.0.2.1"]);
    }
}

#[test]
fn what_is_not_known_is_not_guessed() {
    let unknown =
        |facts: &NetnsFacts, list: &[String]| node_addresses(facts, None, &Proxy::new(None, list));
    assert_eq!(unknown(&node(), &[]), None);
    assert_eq!(unknown(&node(), &["everywhere".to_owned()]), None);
    assert_eq!(unknown(&node(), &["primary".to_owned()]), None);
    // Where every version agrees the version does not matter.
    let mut plain = node();
    plain
        .addresses
        .retain(|found| found.address == ip("192.0.2.1"));
    plain
        .routes
        .retain(|route| route.destination.address == ip("192.0.2.1"));
    assert_eq!(unknown(&plain, &[]), Some([ip("192.0.2.1")].into()));
}

#[test]
fn versions_are_read() {
    for (text, expected) in [
        ("v1.20.2", Some(20)),
        ("1.31", Some(31)),
        ("v1.27.3+k3s1", Some(27)),
        ("v1.24-eks", Some(24)),
        ("v2.0.0", None),
        ("", None),
    ] {
        assert_eq!(minor(text), expected, "{text}");
    }
}

/// An endpoint: address, node, ready, serving, terminating.
type Row = (&'static str, &'static str, bool, bool, bool);

const READY_HERE: Row = ("10.244.0.5", NODE, true, true, false);
const READY_THERE: Row = ("10.244.1.5", "node-b", true, true, false);
const UNREADY: Row = ("10.244.0.6", NODE, false, false, false);
const GOING_HERE: Row = ("10.244.0.7", NODE, false, true, true);
const GOING_THERE: Row = ("10.244.1.7", "node-b", false, true, true);

fn slice(rows: &[Row]) -> Value {
    let endpoints: Vec<Value> = rows
        .iter()
        .map(|(address, node, ready, serving, terminating)| {
            json!({"addresses": [address], "nodeName": node, "conditions":
                {"ready": ready, "serving": serving, "terminating": terminating}})
        })
        .collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"namespace": "default", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "other", "port": 9}]})
}

fn service(spec: Value) -> Value {
    let mut object = json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"}, "spec": {
        "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn facts(spec: Value, rows: &[Row]) -> ClusterFacts {
    cluster(NODE, &[node_object(), service(spec), slice(rows)])
}

/// The real servers of the virtual server on an address and port; `None` without such a server.
fn endpoints(facts: &ClusterFacts, proxy: &Proxy, address: &str) -> Option<Vec<String>> {
    let servers = expected(facts, &node(), proxy);
    let server = servers
        .into_iter()
        .find(|server| server.key.address == at(address))?;
    let endpoints = server.endpoints.expect("known endpoints");
    Some(endpoints.iter().map(ToString::to_string).collect())
}

#[test]
fn endpoints_serve_as_the_version_says() {
    let local = || json!({"externalTrafficPolicy": "Local"});
    let cluster_policy = || json!({});
    let both = ["10.244.0.5:8080", "10.244.1.5:8080"];
    let here = [both[0]];
    let there = [both[1]];
    let going = ["10.244.0.7:8080", "10.244.1.7:8080"];
    for minor in VERSIONS {
        let proxy = proxy(minor, &[]);
        let expect = |spec: Value, rows: &[Row], address: &str, wanted: &[&str]| {
            let found = endpoints(&facts(spec.clone(), rows), &proxy, address);
            let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(found, Some(wanted), "1.{minor} {spec} {rows:?} {address}");
        };
        let (cluster_ip, node_port) = ("10.96.0.10:80", "192.0.2.1:30080");
        let all = [READY_HERE, READY_THERE, UNREADY, GOING_HERE, GOING_THERE];
        for address in [cluster_ip, node_port] {
            expect(cluster_policy(), &all, address, &both);
            expect(cluster_policy(), &[UNREADY], address, &[]);
        }
        expect(local(), &all, node_port, &here);
        // The policy for clients from outside does not bind those inside.
        expect(local(), &all, cluster_ip, &both);
        // No local endpoint.
        let remote = if minor >= 21 { &there[..] } else { &[] };
        expect(local(), &[READY_THERE, UNREADY], node_port, remote);
        // Only endpoints that are going.
        let last = if minor >= 26 { &going[..] } else { &[] };
        expect(
            cluster_policy(),
            &[UNREADY, GOING_HERE, GOING_THERE],
            node_port,
            last,
        );
        let last = if minor >= 26 { &going[..1] } else { &there[..] };
        let last = if minor >= 21 { last } else { &[] };
        expect(local(), &[READY_THERE, GOING_HERE], node_port, last);
        // internalTrafficPolicy and external addresses follow their policy from 1.22.
        let inside = if minor >= 22 { &here[..] } else { &both };
        expect(
            json!({"internalTrafficPolicy": "Local"}),
            &all,
            cluster_ip,
            inside,
        );
        let spec = json!({"externalIPs": ["203.0.113.9"], "externalTrafficPolicy": "Local"});
        expect(spec, &all, "203.0.113.9:80", inside);
    }
}

#[test]
fn only_what_kube_proxy_serves_is_expected() {
    let servers = |object: Value| {
        let facts = cluster(NODE, &[node_object(), object, slice(&[READY_HERE])]);
        expected(&facts, &node(), &proxy(31, &[])).len()
    };
    // The cluster address and four addresses of the node.
    assert_eq!(servers(service(json!({}))), 5);
    assert_eq!(
        servers(service(
            json!({"clusterIP": "None", "clusterIPs": ["None"]})
        )),
        0
    );
    assert_eq!(
        servers(service(
            json!({"type": "ExternalName", "clusterIP": "", "clusterIPs": []})
        )),
        0
    );
    let mut foreign = service(json!({}));
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    assert_eq!(servers(foreign), 0);
    let mut balanced = service(json!({"type": "LoadBalancer"}));
    balanced["status"] = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}});
    assert_eq!(servers(balanced), 6);
}

#[test]
fn zone_hints_leave_the_endpoints_open() {
    let mut object = slice(&[READY_HERE, READY_THERE]);
    object["endpoints"][0]["hints"] = json!({"forZones": [{"name": "a"}]});
    let facts = cluster(NODE, &[node_object(), service(json!({})), object]);
    let servers = expected(&facts, &node(), &proxy(31, &[]));
    assert!(servers.iter().all(|server| server.endpoints.is_none()));
}

/// Virtual servers as IPVS would hold them after a sync.
fn synced(servers: &[ExpectedServer]) -> Vec<VirtualServer> {
    servers
        .iter()
        .map(|server| VirtualServer {
            key: VirtualServerKey::Endpoint {
                protocol: server.key.protocol,
                address: server.key.address.ip(),
                port: server.key.address.port(),
            },
            scheduler: "rr".into(),
            flags: 0,
            persistence: server.affinity.map(|timeout| Persistence {
                timeout,
                prefix_length: 32,
            }),
            destinations: server
                .endpoints
                .iter()
                .flatten()
                .map(|endpoint| real(&endpoint.to_string(), 1))
                .collect(),
        })
        .collect()
}

fn real(address: &str, weight: u32) -> RealServer {
    RealServer {
        address: at(address).ip(),
        port: at(address).port(),
        forwarding: ForwardingMethod::Masquerade,
        weight,
        active_connections: None,
        inactive_connections: None,
        persistent_connections: None,
        upper_threshold: None,
        lower_threshold: None,
    }
}

fn key(address: &str) -> ServerKey {
    ServerKey {
        protocol: protocol::TCP,
        address: at(address),
    }
}

#[test]
fn a_synced_node_shows_no_difference() {
    for minor in VERSIONS {
        for spec in [
            json!({}),
            json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}),
        ] {
            let facts = facts(spec, &[READY_HERE, READY_THERE, GOING_HERE]);
            let proxy = proxy(minor, &[]);
            let servers = expected(&facts, &node(), &proxy);
            let found = compare(&servers, &synced(&servers), &facts, &proxy);
            assert_eq!(found, [], "1.{minor}");
        }
    }
}

#[test]
fn every_difference_is_seen() {
    let facts = facts(json!({}), &[READY_HERE, READY_THERE, UNREADY, GOING_HERE]);
    let proxy = proxy(31, &[]);
    let servers = expected(&facts, &node(), &proxy);
    let service = ObjectName::new("default", "web");
    let differences = |change: &dyn Fn(&mut Vec<VirtualServer>)| {
        let mut actual = synced(&servers);
        change(&mut actual);
        compare(&servers, &actual, &facts, &proxy)
    };
    let surplus = |endpoint: &str, surplus| Difference::SurplusEndpoint {
        key: servers[0].key,
        service: service.clone(),
        endpoint: at(endpoint),
        surplus,
    };
    let missing = differences(&|actual| {
        actual.remove(0);
    });
    assert!(
        matches!(&missing[..], [Difference::MissingServer { expected }] if **expected == servers[0]),
        "{missing:?}"
    );
    for (endpoint, what) in [
        ("10.244.9.9:8080", Surplus::Gone),
        ("10.244.0.5:1", Surplus::Gone),
        ("10.244.0.6:8080", Surplus::NotReady),
        ("10.244.0.7:8080", Surplus::Terminating),
    ] {
        let found = differences(&|actual| actual[0].destinations.push(real(endpoint, 1)));
        assert_eq!(found, [surplus(endpoint, what)]);
        // It may finish its connections.
        let draining = differences(&|actual| actual[0].destinations.push(real(endpoint, 0)));
        assert_eq!(draining, []);
    }
    let lacking = Difference::MissingEndpoint {
        key: servers[0].key,
        service: service.clone(),
        endpoint: at("10.244.0.5:8080"),
    };
    let found = differences(&|actual| {
        actual[0].destinations.remove(0);
    });
    assert_eq!(found, std::slice::from_ref(&lacking));
    let found = differences(&|actual| actual[0].destinations[0].weight = 0);
    assert_eq!(found, [lacking]);
    let found = differences(&|actual| {
        actual[0].persistence = Some(Persistence {
            timeout: Duration::from_secs(60),
            prefix_length: 32,
        });
    });
    assert!(
        matches!(&found[..], [Difference::Affinity { .. }]),
        "{found:?}"
    );
    let found = differences(&|actual| {
        for (address, port) in [("10.96.0.99", 80), ("127.0.0.1", 30080)] {
            let mut server = actual[0].clone();
            server.key = VirtualServerKey::Endpoint {
                protocol: protocol::TCP,
                address: ip(address),
                port,
            };
            actual.push(server);
        }
    });
    assert_eq!(
        found,
        [Difference::SurplusServer {
            key: key("10.96.0.99:80")
        }]
    );
    for difference in found.iter().chain(&missing) {
        assert!(difference.words().contains("virtual server"));
    }
}

#[test]
fn remote_endpoints_are_surplus_where_local_ones_serve() {
    let facts = facts(
        json!({"externalTrafficPolicy": "Local"}),
        &[READY_HERE, READY_THERE],
    );
    let proxy = proxy(31, &[]);
    let servers = expected(&facts, &node(), &proxy);
    let index = servers
        .iter()
        .position(|server| server.key == key("192.0.2.1:30080"))
        .expect("the NodePort");
    let mut actual = synced(&servers);
    actual[index].destinations.push(real("10.244.1.5:8080", 1));
    let found = compare(&servers, &actual, &facts, &proxy);
    assert!(
        matches!(
            &found[..],
            [Difference::SurplusEndpoint {
                surplus: Surplus::Remote,
                ..
            }]
        ),
        "{found:?}"
    );
}

#[test]
fn the_cluster_says_what_kube_proxy_is_like() {
    let of = |yaml: &str| Proxy::of_cluster(&configured(facts(json!({}), &[]), yaml));
    let found = of(
        "mode: ipvs\nnodePortAddresses: [192.0.2.0/24]\nipvs:\n  excludeCIDRs: [203.0.113.0/24]\n",
    );
    let found = found.expect("kube-proxy in ipvs mode");
    assert_eq!(found.minor, Some(22));
    assert!(matches!(found.node_ports, NodePortAddresses::Within(_)));
    assert_eq!(found.excluded.len(), 1);
    assert_eq!(of("mode: iptables"), None);
    assert_eq!(of("mode: ''"), None);
}
