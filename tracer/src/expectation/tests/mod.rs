//! What each version of kube-proxy makes of the same cluster.

mod difference;
mod hint;
mod mode;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::*;
use crate::kube::ClusterFacts;
use crate::kube::constructed::{cluster, configured};
use crate::node::netfilter::{Family, KUBE_PROXY_TABLE, RuleTable, Ruleset, Tool};
use crate::node::{
    Address, KubeProxy, Link, NetnsFacts, NetnsId, OperState, Prefix, ProxyConfiguration,
    ProxyReport, Route, Scope, Snapshot,
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
    Proxy::new(Mode::Ipvs, Some(minor), &list)
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
            xdp_generic: false,
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
            created_ns: None,
        });
        facts.routes.push(Route {
            preferred_source: ip(address).is_ipv4().then(|| ip(source)),
            ..Route::local(ip(address), link)
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
    let unknown = |facts: &NetnsFacts, list: &[String]| {
        node_addresses(facts, None, &Proxy::new(Mode::Ipvs, None, list))
    };
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
fn of_two_services_at_one_address_neither_is_expected_to_win() {
    let spec = json!({"externalIPs": ["203.0.113.9"]});
    let mut other = service(spec.clone());
    other["metadata"]["name"] = json!("other");
    other["spec"]["clusterIP"] = json!("10.96.0.99");
    other["spec"]["clusterIPs"] = json!(["10.96.0.99"]);
    let facts = cluster(
        NODE,
        &[node_object(), other, service(spec), slice(&[READY_HERE])],
    );
    let servers = expected(&facts, &node(), &proxy(31, &[]));
    let at_address = |text: &str| {
        let mut found = servers
            .iter()
            .filter(|server| server.key.address == at(text));
        (
            found.next().expect("a server").endpoints.clone(),
            found.count(),
        )
    };
    assert_eq!(at_address("203.0.113.9:80"), (Err(Unsure::Contested), 0));
    assert_eq!(at_address("10.96.0.99:80"), (Ok(BTreeSet::new()), 0));
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
fn a_running_kube_proxy_says_what_it_is_like() {
    let cluster = facts(json!({}), &[]);
    let mut running = KubeProxy::constructed("kube-proxy --config=/etc/k.yml");
    // Neither a ConfigMap nor an answer.
    assert_eq!(Proxy::running(&running, Some(&cluster)), None);
    let said = |configuration: Option<&str>| ProxyReport {
        configuration: configuration
            .map(|text| ProxyConfiguration::parse(text).expect("a configuration")),
        mode: Some("ipvs".into()),
        version: Some("v1.20.2".into()),
        ..ProxyReport::default()
    };
    running.report = Some(said(None));
    let found = Proxy::running(&running, Some(&cluster)).expect("its mode");
    assert_eq!((found.mode, found.minor), (Mode::Ipvs, Some(20)));
    // Its file has the list, and nobody could read it.
    assert_eq!(found.node_ports, NodePortAddresses::Unknown);
    running.report = Some(said(Some(
        "mode: ipvs\nnodePortAddresses: [192.0.2.1/32]\n",
    )));
    let found = Proxy::known(None, [&running].into_iter()).expect("its mode");
    assert_eq!(found.minor, Some(20));
    assert!(matches!(found.node_ports, NodePortAddresses::Within(_)));
    // Without its own word the kubelet's version stands for its.
    running.report = None;
    assert_eq!(Proxy::minor_of(&running, Some(&cluster)), Some(22));
    assert_eq!(Proxy::minor_of(&running, None), None);
}

#[test]
fn rules_are_read_where_they_may_tell_the_mode() {
    let mut snapshot = Snapshot::empty();
    snapshot.namespaces.push(node());
    let unknown = cluster(NODE, &[node_object()]);
    let read = |facts: &ClusterFacts| !ruled_namespaces(Some(facts), &snapshot).is_empty();
    assert!(read(&unknown));
    assert!(read(&configured(unknown.clone(), "mode: iptables")));
    assert!(!read(&configured(unknown, "mode: ipvs")));
    // Without a cluster its process tells.
    for (line, read) in [
        (None, false),
        (Some("kube-proxy --proxy-mode=ipvs"), false),
        (Some("kube-proxy --proxy-mode=nftables"), true),
    ] {
        let running = line.map(|line| {
            let mut running = KubeProxy::constructed(line);
            running.netns = Some(snapshot.namespaces[0].id);
            running
        });
        snapshot.kube_proxies = running.into_iter().collect();
        assert_eq!(
            !ruled_namespaces(None, &snapshot).is_empty(),
            read,
            "{line:?}"
        );
    }
    // Where none is seen, its table does.
    snapshot.kube_proxies.clear();
    let table = RuleTable {
        tool: Tool::Nft,
        family: Family::Ip,
        name: KUBE_PROXY_TABLE.into(),
        chains: Vec::new(),
    };
    snapshot.namespaces[0].ruleset = Some(Ruleset {
        tables: vec![table],
    });
    assert!(!ruled_namespaces(None, &snapshot).is_empty());
}

#[test]
fn the_gate_of_terminating_endpoints_counts() {
    let running = |line: &str, version: u16| {
        let mut running = KubeProxy::constructed(line);
        running.report = Some(ProxyReport {
            version: Some(format!("v1.{version}.0")),
            ..ProxyReport::default()
        });
        let proxy = Proxy::running(&running, None).expect("its mode");
        proxy.does(Habit::ServingTerminating)
    };
    let gate = |value| {
        format!("kube-proxy --proxy-mode=ipvs --feature-gates=ProxyTerminatingEndpoints={value}")
    };
    for (minor, unset, on, off) in [
        (20, Some(false), Some(false), Some(false)),
        (22, Some(false), None, Some(false)),
        (25, Some(false), None, Some(false)),
        (26, Some(true), Some(true), Some(false)),
        (28, Some(true), Some(true), Some(true)),
    ] {
        assert_eq!(
            running("kube-proxy --proxy-mode=ipvs", minor),
            unset,
            "1.{minor}"
        );
        assert_eq!(running(&gate("true"), minor), on, "1.{minor}");
        assert_eq!(running(&gate("false"), minor), off, "1.{minor}");
    }
    // As the file has it.
    let yaml = "mode: ipvs\nfeatureGates: {ProxyTerminatingEndpoints: true}\n";
    let of_file = Proxy::of_cluster(&configured(facts(json!({}), &[]), yaml));
    let gates = of_file.expect("its mode").gates;
    assert_eq!(gates.get("ProxyTerminatingEndpoints"), Some(&true));
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
    assert_eq!(found.mode, Mode::Ipvs);
    for (mode, wanted) in [
        ("iptables", Mode::Iptables),
        ("''", Mode::Iptables),
        ("nftables", Mode::Nftables),
    ] {
        let found = of(&format!("mode: {mode}")).expect("a mode");
        assert_eq!(found.mode, wanted);
        assert_eq!(found.node_ports, NodePortAddresses::Unset);
    }
    assert_eq!(of("mode: userspace"), None);
    let flags = "kube-proxy --proxy-mode=ipvs --ipvs-exclude-cidrs=203.0.113.0/24,2001:db8::/64";
    let by_flags = Proxy::running(&KubeProxy::constructed(flags), None);
    assert_eq!(by_flags.map(|proxy| proxy.excluded.len()), Some(2));
}
