//! What is to be made for every address and port of every service.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::endpoint::serving;
use super::node_address::node_addresses;
use super::{Habit, Proxy, Unsure};
use crate::kube::{ClusterFacts, ObjectName, Service, ServiceKind, ServicePort, TrafficPolicy};
use crate::node::{NetnsFacts, Prefix};

/// What packets have to be sent to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServerKey {
    /// IP protocol number.
    pub protocol: u8,
    /// Address and port.
    pub address: SocketAddr,
}

/// Which of a service's addresses it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Its cluster address.
    ClusterIp,
    /// One of its externalIPs.
    ExternalIp,
    /// An address of its load balancer.
    LoadBalancer,
    /// Its NodePort on an address of this node.
    NodePort,
}

impl Reach {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "external IP",
            Self::LoadBalancer => "load balancer address",
            Self::NodePort => "NodePort",
        }
    }
}

/// What kube-proxy is to make for one address and port: a virtual server, or rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExpectedServer {
    /// What it takes.
    pub key: ServerKey,
    /// The service.
    pub service: ObjectName,
    /// Which of its addresses.
    pub reach: Reach,
    /// Which endpoints may serve.
    pub policy: TrafficPolicy,
    /// Endpoints that clients from outside the node are to reach, or why they cannot be told.
    pub endpoints: Result<BTreeSet<SocketAddr>, Unsure>,
    /// How long a client keeps its real server.
    pub affinity: Option<Duration>,
    /// Sources that are to be let through; `None`: all, or not known.
    pub sources: Option<BTreeSet<Prefix>>,
}

/// Everything that kube-proxy is to make on this node. Without the addresses for NodePorts,
/// which the version may decide, those of NodePorts are missing.
pub fn expected(cluster: &ClusterFacts, facts: &NetnsFacts, proxy: &Proxy) -> Vec<ExpectedServer> {
    let node = cluster
        .this_node
        .as_deref()
        .and_then(|name| cluster.node(name));
    let node_addresses = node_addresses(facts, node, proxy).unwrap_or_default();
    let mut servers = Vec::new();
    for service in cluster.services() {
        let served = service.kind != ServiceKind::ExternalName
            && !service.headless()
            && service.other_proxy.is_none();
        if !served {
            continue;
        }
        for port in &service.ports {
            of_port(cluster, service, port, &node_addresses, proxy, &mut servers);
        }
    }
    servers.sort_by(|one, two| (one.key, &one.service).cmp(&(two.key, &two.service)));
    // Two services that claim one address and port: kube-proxy keeps one of them, nobody can tell which.
    servers.dedup_by(|other, kept| {
        let same = other.key == kept.key;
        if same && other.service != kept.service {
            (kept.endpoints, kept.sources) = (Err(Unsure::Contested), None);
        }
        same
    });
    servers
}

/// Whether the family is IPv4, and the policy.
type Kind = (bool, TrafficPolicy);

fn of_port(
    cluster: &ClusterFacts,
    service: &Service,
    port: &ServicePort,
    node_addresses: &BTreeSet<IpAddr>,
    proxy: &Proxy,
    servers: &mut Vec<ExpectedServer>,
) {
    let families = |address: &IpAddr| {
        let same = |own: &IpAddr| own.is_ipv4() == address.is_ipv4();
        service.cluster_ips.iter().any(same)
    };
    let policies = Policies::of(service, proxy);
    let own = |list: &[IpAddr], reach, policy| -> Vec<(IpAddr, u16, Reach, TrafficPolicy)> {
        list.iter()
            .map(|address| (*address, port.port, reach, policy))
            .collect()
    };
    let mut places = own(&service.cluster_ips, Reach::ClusterIp, policies.internal);
    places.extend(own(
        &service.external_ips,
        Reach::ExternalIp,
        policies.external_ip,
    ));
    places.extend(own(
        &service.load_balancer_ips,
        Reach::LoadBalancer,
        policies.external,
    ));
    if let Some(node_port) = port.node_port {
        let nodes = node_addresses.iter();
        places
            .extend(nodes.map(|address| (*address, node_port, Reach::NodePort, policies.external)));
    }
    let wanted = places.into_iter().filter(|(address, ..)| families(address));
    // Servers of one service differ in family and policy only.
    let mut known: Vec<(Kind, Result<BTreeSet<SocketAddr>, Unsure>)> = Vec::new();
    for (address, number, reach, policy) in wanted {
        let kind = (address.is_ipv4(), policy);
        let doubtful = reach == Reach::ExternalIp && policies.external_ip_is_doubtful;
        let endpoints = match known.iter().find(|(of, _)| *of == kind) {
            _ if doubtful => Err(Unsure::Version),
            Some((_, endpoints)) => endpoints.clone(),
            None => {
                let endpoints = serving(cluster, service, port, address, policy, proxy);
                known.push((kind, endpoints.clone()));
                endpoints
            }
        };
        servers.push(ExpectedServer {
            key: ServerKey {
                protocol: port.protocol,
                address: SocketAddr::new(address, number),
            },
            service: service.name.clone(),
            reach,
            policy,
            endpoints,
            affinity: service.affinity,
            sources: (reach == Reach::LoadBalancer)
                .then(|| sources(service, address.is_ipv4(), proxy))
                .flatten(),
        });
    }
}

/// Which endpoints serve clients of each kind of address.
struct Policies {
    internal: TrafficPolicy,
    external: TrafficPolicy,
    external_ip: TrafficPolicy,
    /// Whether the policy counts for externalIPs is not known, and matters.
    external_ip_is_doubtful: bool,
}

impl Policies {
    fn of(service: &Service, proxy: &Proxy) -> Self {
        use TrafficPolicy::{Cluster, Local};
        // An unknown version is taken for one of those that people run.
        let has = |habit| proxy.does(habit) != Some(false);
        let (mut internal, mut external) = (service.internal_policy, service.external_policy);
        if !has(Habit::InternalPolicy) {
            internal = Cluster;
        }
        if proxy.does(Habit::OnePolicyForAll) == Some(true) {
            (internal, external) = match (internal, external) {
                (_, Local) => (Cluster, Local),
                (Local, Cluster) => (Local, Local),
                (Cluster, Cluster) => (Cluster, Cluster),
            };
        }
        let for_external_ip = proxy.does(Habit::ExternalIpPolicy);
        Self {
            internal,
            external,
            external_ip: if for_external_ip == Some(false) {
                Cluster
            } else {
                external
            },
            external_ip_is_doubtful: for_external_ip.is_none()
                && proxy.minor.is_some()
                && external == Local,
        }
    }
}

/// The sources of a family that a load balancer's address lets through, as the kernel writes them.
fn sources(service: &Service, ipv4: bool, proxy: &Proxy) -> Option<BTreeSet<Prefix>> {
    if service.source_ranges.is_empty() || proxy.does(Habit::SourceRanges) != Some(true) {
        return None;
    }
    let prefixes: Option<BTreeSet<Prefix>> = service
        .source_ranges
        .iter()
        .map(|text| Prefix::parse(text)?.masked())
        .collect();
    let own = |prefix: &Prefix| prefix.address.is_ipv4() == ipv4;
    Some(prefixes?.into_iter().filter(own).collect())
}
