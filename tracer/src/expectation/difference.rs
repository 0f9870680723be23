//! How what IPVS holds differs from what kube-proxy should have made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::{ExpectedServer, Proxy, ServerKey};
use crate::event::protocol;
use crate::kube::{ClusterFacts, Endpoint, ObjectName};
use crate::node::{VirtualServer, VirtualServerKey};

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// A virtual server is not there.
    MissingServer {
        /// What should be.
        expected: Box<ExpectedServer>,
    },
    /// A virtual server is there that no service asks for.
    SurplusServer {
        /// Which.
        key: ServerKey,
    },
    /// An endpoint that is to serve is no real server.
    MissingEndpoint {
        /// Of which virtual server.
        key: ServerKey,
        /// Of which service.
        service: ObjectName,
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// A real server takes new connections and is not to.
    SurplusEndpoint {
        /// Of which virtual server.
        key: ServerKey,
        /// Of which service.
        service: ObjectName,
        /// The real server.
        endpoint: SocketAddr,
        /// What it is in the cluster.
        surplus: Surplus,
    },
    /// Clients keep their real server, or do not, otherwise than the service says.
    Affinity {
        /// Of which virtual server.
        key: ServerKey,
        /// Of which service.
        service: ObjectName,
        /// As the service says.
        expected: Option<Duration>,
        /// As IPVS has it.
        actual: Option<Duration>,
    },
}

/// What a real server that is not to serve is in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Surplus {
    /// No endpoint of the service.
    Gone,
    /// An endpoint that is not ready.
    NotReady,
    /// An endpoint that is going.
    Terminating,
    /// An endpoint of another node, where only local ones are to serve.
    Remote,
}

impl Surplus {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "no endpoint of the service any more",
            Self::NotReady => "not ready",
            Self::Terminating => "terminating",
            Self::Remote => "on another node",
        }
    }
}

impl Difference {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::MissingServer { expected } => format!(
                "no virtual server {} ({} of s/{})",
                place(&expected.key),
                expected.reach.name(),
                expected.service
            ),
            Self::SurplusServer { key } => {
                format!("virtual server {} belongs to no service", place(key))
            }
            Self::MissingEndpoint {
                key,
                service,
                endpoint,
            } => format!(
                "virtual server {} of s/{service} lacks the ready endpoint {endpoint}",
                place(key)
            ),
            Self::SurplusEndpoint {
                key,
                service,
                endpoint,
                surplus,
            } => format!(
                "virtual server {} of s/{service} still sends to {endpoint}, which is {}",
                place(key),
                surplus.name()
            ),
            Self::Affinity {
                key,
                service,
                expected,
                actual,
            } => {
                let seconds = |time: &Option<Duration>| {
                    time.map_or_else(
                        || "no session affinity".to_owned(),
                        |time| format!("session affinity of {} s", time.as_secs()),
                    )
                };
                format!(
                    "virtual server {} of s/{service} has {} where the service says {}",
                    place(key),
                    seconds(actual),
                    seconds(expected)
                )
            }
        }
    }
}

fn place(key: &ServerKey) -> String {
    format!("{} {}", protocol::name(key.protocol), key.address)
}

/// Sets what should be against what is. Real servers of weight 0 only finish their connections, which
/// kube-proxy allows for.
pub fn compare(
    expected: &[ExpectedServer],
    actual: &[VirtualServer],
    cluster: &ClusterFacts,
    proxy: &Proxy,
) -> Vec<Difference> {
    let actual: BTreeMap<ServerKey, &VirtualServer> = actual
        .iter()
        .filter_map(|server| match server.key {
            VirtualServerKey::Endpoint {
                protocol,
                address,
                port,
            } => {
                let address = SocketAddr::new(address, port);
                Some((ServerKey { protocol, address }, server))
            }
            VirtualServerKey::Mark { .. } => None,
        })
        .collect();
    let mut differences = Vec::new();
    for server in expected {
        match actual.get(&server.key) {
            Some(found) => compare_server(server, found, cluster, &mut differences),
            None => differences.push(Difference::MissingServer {
                expected: Box::new(server.clone()),
            }),
        }
    }
    let known: BTreeSet<ServerKey> = expected.iter().map(|server| server.key).collect();
    let surplus = actual
        .keys()
        .filter(|key| !known.contains(key) && !is_foreign(key, cluster, proxy));
    differences.extend(surplus.map(|key| Difference::SurplusServer { key: *key }));
    differences
}

/// Not kube-proxy's, or a NodePort of a service whose addresses could not be told.
fn is_foreign(key: &ServerKey, cluster: &ClusterFacts, proxy: &Proxy) -> bool {
    let address = key.address.ip();
    address.is_loopback()
        || proxy.excluded.iter().any(|prefix| prefix.contains(address))
        || cluster
            .node_port(key.protocol, key.address.port())
            .is_some()
}

fn compare_server(
    expected: &ExpectedServer,
    actual: &VirtualServer,
    cluster: &ClusterFacts,
    differences: &mut Vec<Difference>,
) {
    let (key, service) = (expected.key, &expected.service);
    let affinity = actual
        .persistence
        .as_ref()
        .map(|persistence| persistence.timeout);
    if affinity != expected.affinity {
        differences.push(Difference::Affinity {
            key,
            service: service.clone(),
            expected: expected.affinity,
            actual: affinity,
        });
    }
    let Some(wanted) = &expected.endpoints else {
        return;
    };
    let found: BTreeMap<SocketAddr, u32> = actual
        .destinations
        .iter()
        .map(|real| (SocketAddr::new(real.address, real.port), real.weight))
        .collect();
    for endpoint in wanted {
        if found.get(endpoint).copied().unwrap_or(0) == 0 {
            differences.push(Difference::MissingEndpoint {
                key,
                service: service.clone(),
                endpoint: *endpoint,
            });
        }
    }
    for (endpoint, weight) in found {
        if weight == 0 || wanted.contains(&endpoint) {
            continue;
        }
        let known = cluster
            .endpoints_of(service)
            .find(|(found, ports)| {
                let served = ports.iter().any(|port| port.port == Some(endpoint.port()));
                found.address == endpoint.ip() && served
            })
            .map(|(found, _)| found);
        differences.push(Difference::SurplusEndpoint {
            key,
            service: service.clone(),
            endpoint,
            surplus: known.map_or(Surplus::Gone, what_it_is),
        });
    }
}

fn what_it_is(endpoint: &Endpoint) -> Surplus {
    if endpoint.terminating {
        Surplus::Terminating
    } else if endpoint.ready {
        Surplus::Remote
    } else {
        Surplus::NotReady
    }
}
