//! The virtual servers of every service.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Proxy;
use super::endpoint::serving;
use super::node_address::node_addresses;
use crate::kube::{ClusterFacts, ObjectName, Service, ServiceKind, ServicePort, TrafficPolicy};
use crate::node::NetnsFacts;

/// What a virtual server takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServerKey {
    /// IP protocol number.
    pub protocol: u8,
    /// Address and port.
    pub address: SocketAddr,
}

/// Which address of a service a virtual server is for.
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

/// A virtual server that kube-proxy is to make.
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
    /// Its real servers; `None` when they cannot be told.
    pub endpoints: Option<BTreeSet<SocketAddr>>,
    /// How long a client keeps its real server.
    pub affinity: Option<Duration>,
}

/// Every virtual server that kube-proxy is to make on this node. Without the addresses for NodePorts,
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
    servers.sort_unstable_by_key(|server| server.key);
    // Two services that claim one address and port: kube-proxy keeps one of them.
    servers.dedup_by_key(|server| server.key);
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
    // internalTrafficPolicy is on from 1.22, externalTrafficPolicy for externalIPs too.
    let from_22 = |policy| match proxy.at_least(22) {
        Some(false) => TrafficPolicy::Cluster,
        Some(true) | None => policy,
    };
    let external = service.external_policy;
    let own = |list: &[IpAddr], reach, policy| -> Vec<(IpAddr, u16, Reach, TrafficPolicy)> {
        list.iter()
            .map(|address| (*address, port.port, reach, policy))
            .collect()
    };
    let mut places = own(
        &service.cluster_ips,
        Reach::ClusterIp,
        from_22(service.internal_policy),
    );
    places.extend(own(
        &service.external_ips,
        Reach::ExternalIp,
        from_22(external),
    ));
    places.extend(own(
        &service.load_balancer_ips,
        Reach::LoadBalancer,
        external,
    ));
    if let Some(node_port) = port.node_port {
        let nodes = node_addresses.iter();
        places.extend(nodes.map(|address| (*address, node_port, Reach::NodePort, external)));
    }
    let wanted = places.into_iter().filter(|(address, ..)| families(address));
    // Servers of one service differ in family and policy only.
    let mut known: Vec<(Kind, Option<BTreeSet<SocketAddr>>)> = Vec::new();
    for (address, number, reach, policy) in wanted {
        let kind = (address.is_ipv4(), policy);
        let endpoints = match known.iter().find(|(of, _)| *of == kind) {
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
        });
    }
}
