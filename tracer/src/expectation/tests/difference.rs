//! What is seen when the kernel holds something else.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::event::protocol;
use crate::kube::ObjectName;
use crate::node::{ForwardingMethod, Persistence, RealServer, VirtualServer, VirtualServerKey};

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

/// Compares with what a node with these virtual servers holds.
fn compared(
    servers: &[ExpectedServer],
    actual: Vec<VirtualServer>,
    facts: &ClusterFacts,
    proxy: &Proxy,
) -> Vec<Difference> {
    let mut node = node();
    node.ipvs = Some(actual);
    let actual = programmed(&node, Mode::Ipvs).expect("virtual servers");
    compare(servers, &actual, facts, proxy)
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
            let found = compared(&servers, synced(&servers), &facts, &proxy);
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
        compared(&servers, actual, &facts, &proxy)
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
        assert!(difference.words(Mode::Ipvs).contains("virtual server"));
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
    let found = compared(&servers, actual, &facts, &proxy);
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
