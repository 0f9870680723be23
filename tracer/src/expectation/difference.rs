//! How what the kernel holds differs from what kube-proxy should have made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::{ExpectedServer, Mode, Programmed, Proxy, ServerKey, Unsure, expected, programmed};
use crate::event::protocol;
use crate::kube::{ClusterFacts, Endpoint, ObjectName, TrafficPolicy};
use crate::node::{NetnsFacts, Prefix};

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// A virtual server or rule is not there.
    MissingServer {
        /// What should be.
        expected: Box<ExpectedServer>,
    },
    /// A virtual server or rule is there that no service asks for.
    SurplusServer {
        /// Which.
        key: ServerKey,
    },
    /// An endpoint that is to serve gets nothing.
    MissingEndpoint {
        /// Of which virtual server.
        key: ServerKey,
        /// Of which service.
        service: ObjectName,
        /// The endpoint.
        endpoint: SocketAddr,
    },
    /// Something gets new connections and is not to.
    SurplusEndpoint {
        /// Of which virtual server.
        key: ServerKey,
        /// Of which service.
        service: ObjectName,
        /// Where they go.
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
        /// As the kernel has it.
        actual: Option<Duration>,
    },
    /// Other sources are let through to a load balancer's address than the service says.
    Sources {
        /// Of which virtual server.
        key: ServerKey,
        /// Of which service.
        service: ObjectName,
        /// As the service says.
        expected: BTreeSet<Prefix>,
        /// As the kernel has it; `None` lets everyone through.
        actual: Option<BTreeSet<Prefix>>,
    },
}

/// What is expected, and how the kernel differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Comparison {
    /// How kube-proxy works.
    pub mode: Mode,
    /// Addresses and ports that something is to be made for.
    pub expected: usize,
    /// Every difference.
    pub differences: Vec<Difference>,
    /// Services whose endpoints could not be compared, by why.
    pub unsure: BTreeMap<Unsure, BTreeSet<ObjectName>>,
}

impl Comparison {
    /// Sets what kube-proxy is to make on a node against what its namespace holds; `None` when that was
    /// not read, or nothing of kube-proxy's mode is there.
    pub fn of(cluster: &ClusterFacts, facts: &NetnsFacts, proxy: &Proxy) -> Option<Self> {
        let actual = programmed(facts, proxy.mode)?;
        let expected = expected(cluster, facts, proxy);
        let mut unsure: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for server in &expected {
            if let Err(why) = server.endpoints {
                unsure
                    .entry(why)
                    .or_default()
                    .insert(server.service.clone());
            }
        }
        Some(Self {
            mode: proxy.mode,
            expected: expected.len(),
            differences: compare(&expected, &actual, cluster, proxy),
            unsure,
        })
    }

    /// What could not be compared, in words.
    pub fn not_compared(&self) -> impl Iterator<Item = String> {
        self.unsure.iter().filter_map(|(why, services)| {
            let first = services.first()?;
            let more = match services.len() {
                1 => String::new(),
                count => format!(" and {} more services", count - 1),
            };
            Some(format!(
                "the endpoints of s/{first}{more} are not compared: {}",
                why.name()
            ))
        })
    }
}

/// What an endpoint that is not to serve is in the cluster.
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
    /// An endpoint that hints leave to other nodes or zones.
    HintedAway,
}

impl Surplus {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "no endpoint of the service any more",
            Self::NotReady => "not ready",
            Self::Terminating => "terminating",
            Self::Remote => "on another node",
            Self::HintedAway => "for other nodes or zones by its hints",
        }
    }
}

impl Difference {
    /// In words.
    pub fn words(&self, mode: Mode) -> String {
        let what = mode.what();
        match self {
            Self::MissingServer { expected } => format!(
                "no {what} {} ({} of s/{})",
                place(&expected.key),
                expected.reach.name(),
                expected.service
            ),
            Self::SurplusServer { key } => {
                format!("{what} {} belongs to no service", place(key))
            }
            Self::MissingEndpoint {
                key,
                service,
                endpoint,
            } => format!(
                "{what} {} of s/{service} lacks the ready endpoint {endpoint}",
                place(key)
            ),
            Self::SurplusEndpoint {
                key,
                service,
                endpoint,
                surplus,
            } => format!(
                "{what} {} of s/{service} still sends to {endpoint}, which is {}",
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
                    "{what} {} of s/{service} has {} where the service says {}",
                    place(key),
                    seconds(actual),
                    seconds(expected)
                )
            }
            Self::Sources {
                key,
                service,
                expected,
                actual,
            } => {
                let let_through = actual.as_ref().map_or_else(|| "everyone".to_owned(), list);
                format!(
                    "{what} {} of s/{service} lets through {let_through} where the service says {}",
                    place(key),
                    list(expected)
                )
            }
        }
    }
}

fn list(prefixes: &BTreeSet<Prefix>) -> String {
    let words: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    if words.is_empty() {
        "nobody".to_owned()
    } else {
        words.join(", ")
    }
}

fn place(key: &ServerKey) -> String {
    format!("{} {}", protocol::name(key.protocol), key.address)
}

/// Sets what should be against what is, in time linear in both.
pub fn compare(
    expected: &[ExpectedServer],
    actual: &[Programmed],
    cluster: &ClusterFacts,
    proxy: &Proxy,
) -> Vec<Difference> {
    let actual: BTreeMap<ServerKey, &Programmed> =
        actual.iter().map(|found| (found.key, found)).collect();
    let mut differences = Vec::new();
    for server in expected {
        match actual.get(&server.key) {
            Some(found) => compare_server(proxy.mode, server, found, cluster, &mut differences),
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
    // What it was told to leave alone in IPVS is not known.
    let may_be_excluded = proxy.mode == Mode::Ipvs && proxy.told.lacks().is_some();
    may_be_excluded
        || address.is_loopback()
        || proxy.excluded.iter().any(|prefix| prefix.contains(address))
        || cluster
            .node_port(key.protocol, key.address.port())
            .is_some()
}

/// Whether these sources are let through and no others but the address itself, which kube-proxy adds for
/// this node where a range has the node in it.
fn lets_through(
    actual: Option<&BTreeSet<Prefix>>,
    wanted: &BTreeSet<Prefix>,
    key: ServerKey,
) -> bool {
    let own = |prefix: &Prefix| {
        let whole = if key.address.is_ipv4() { 32 } else { 128 };
        prefix.length == whole && !wanted.contains(prefix)
    };
    actual.is_some_and(|actual| wanted.is_subset(actual) && actual.difference(wanted).all(own))
}

fn compare_server(
    mode: Mode,
    expected: &ExpectedServer,
    actual: &Programmed,
    cluster: &ClusterFacts,
    differences: &mut Vec<Difference>,
) {
    let (key, service) = (expected.key, &expected.service);
    // Rules without endpoints have no place for the rest.
    let rules = !actual.endpoints.is_empty();
    if actual.affinity != expected.affinity && (rules || mode == Mode::Ipvs) {
        differences.push(Difference::Affinity {
            key,
            service: service.clone(),
            expected: expected.affinity,
            actual: actual.affinity,
        });
    }
    if let Some(sources) = &expected.sources
        && rules
        && !lets_through(actual.sources.as_ref(), sources, key)
    {
        differences.push(Difference::Sources {
            key,
            service: service.clone(),
            expected: sources.clone(),
            actual: actual.sources.clone(),
        });
    }
    let Ok(wanted) = &expected.endpoints else {
        return;
    };
    for endpoint in wanted.difference(&actual.endpoints) {
        differences.push(Difference::MissingEndpoint {
            key,
            service: service.clone(),
            endpoint: *endpoint,
        });
    }
    let mut surplus = actual.endpoints.difference(wanted).peekable();
    if surplus.peek().is_none() {
        return;
    }
    let known: HashMap<SocketAddr, &Endpoint> = cluster
        .endpoints_of(service)
        .flat_map(|(found, ports)| {
            let ports = ports.iter().filter_map(|port| port.port);
            ports.map(move |port| (SocketAddr::new(found.address, port), found))
        })
        .collect();
    for &endpoint in surplus {
        let known = known.get(&endpoint);
        differences.push(Difference::SurplusEndpoint {
            key,
            service: service.clone(),
            endpoint,
            surplus: known.map_or(Surplus::Gone, |known| what_it_is(known, expected.policy)),
        });
    }
}

fn what_it_is(endpoint: &Endpoint, policy: TrafficPolicy) -> Surplus {
    if endpoint.terminating {
        Surplus::Terminating
    } else if !endpoint.ready {
        Surplus::NotReady
    } else if policy == TrafficPolicy::Local {
        Surplus::Remote
    } else {
        Surplus::HintedAway
    }
}
