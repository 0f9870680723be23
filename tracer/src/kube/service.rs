//! Services: what clients connect to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

use super::{Claim, ObjectName};
use crate::event::protocol;

/// Set on services that another proxy than kube-proxy serves.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Whether kube-proxy is to heed the hints of endpoints, in some of its versions.
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// The same, from 1.27 on.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// Seconds that a client keeps its endpoint where the service does not say (v1 default).
const DEFAULT_AFFINITY: u64 = 10_800;

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// How far it reaches.
    pub kind: ServiceKind,
    /// Cluster addresses; empty for headless services and names of other services.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses in `status.loadBalancer`, without those of mode `Proxy`, which the node is not to serve.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty allows everyone.
    pub source_ranges: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Which endpoints serve clients from outside the cluster.
    pub external_policy: TrafficPolicy,
    /// Which endpoints serve clients inside the cluster.
    pub internal_policy: TrafficPolicy,
    /// How long a client keeps its endpoint; `None` without session affinity.
    pub affinity: Option<Duration>,
    /// Endpoints count before they are ready.
    pub publish_not_ready: bool,
    /// Pods that it is made of; empty when its endpoints are kept by hand.
    pub selector: BTreeMap<String, String>,
    /// A proxy of this name serves it, not kube-proxy.
    pub other_proxy: Option<String>,
    /// The annotation `topology-aware-hints`.
    #[serde(default)]
    pub topology_hints: Option<String>,
    /// The annotation `topology-mode`, which came in its place.
    #[serde(default)]
    pub topology_mode: Option<String>,
}

/// How far a service reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Inside the cluster.
    ClusterIp,
    /// On a port of each node as well.
    NodePort,
    /// On a load balancer as well.
    LoadBalancer,
    /// Another name of something outside.
    ExternalName,
}

impl ServiceKind {
    /// As in `spec.type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        }
    }
}

/// Which endpoints serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All of them.
    Cluster,
    /// Those of the node that the packet came to.
    Local,
}

/// A port of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name; empty where there is only one port.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port on the service's addresses.
    pub port: u16,
    /// Port of the pods: a number or a name.
    pub target: String,
    /// Port on the nodes.
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// For people: the name, else the number.
    pub fn label(&self) -> String {
        if self.name.is_empty() {
            self.port.to_string()
        } else {
            self.name.clone()
        }
    }
}

impl Service {
    /// No cluster address on purpose: clients go to the pods themselves.
    pub fn headless(&self) -> bool {
        self.cluster_ips.is_empty()
    }

    /// Clients from outside the cluster may use it.
    pub fn reaches_outside(&self) -> bool {
        !self.external_ips.is_empty()
            || !self.load_balancer_ips.is_empty()
            || self.ports.iter().any(|port| port.node_port.is_some())
    }

    /// The port with a number on the service's own addresses.
    pub fn port(&self, protocol: u8, port: u16) -> Option<&ServicePort> {
        self.ports
            .iter()
            .find(|found| (found.protocol, found.port) == (protocol, port))
    }

    /// The addresses that are this service's own, not the nodes'.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips
            .iter()
            .chain(&self.external_ips)
            .chain(&self.load_balancer_ips)
            .copied()
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = (IpAddr, Claim)> {
        self.addresses()
            .map(|address| (address, Claim::Service(self.name.clone())))
    }

    pub(super) fn read(object: api::Service) -> Option<Self> {
        let name = ObjectName::of(&object.metadata)?;
        let spec = object.spec.unwrap_or_default();
        let mut annotations = object.metadata.annotations.unwrap_or_default();
        let balancer = object.status.and_then(|status| status.load_balancer);
        let mut cluster_ips = addresses(spec.cluster_ips.as_deref().unwrap_or_default());
        if cluster_ips.is_empty() {
            cluster_ips = addresses(spec.cluster_ip.as_slice());
        }
        Some(Self {
            name,
            kind: match spec.type_.as_deref() {
                Some("NodePort") => ServiceKind::NodePort,
                Some("LoadBalancer") => ServiceKind::LoadBalancer,
                Some("ExternalName") => ServiceKind::ExternalName,
                _ => ServiceKind::ClusterIp,
            },
            cluster_ips,
            external_ips: addresses(&spec.external_ips.unwrap_or_default()),
            load_balancer_ips: balancer
                .and_then(|balancer| balancer.ingress)
                .unwrap_or_default()
                .into_iter()
                .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|ingress| ingress.ip?.parse().ok())
                .collect(),
            source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
            ports: spec
                .ports
                .unwrap_or_default()
                .into_iter()
                .filter_map(port)
                .collect(),
            external_policy: policy(spec.external_traffic_policy.as_deref()),
            internal_policy: policy(spec.internal_traffic_policy.as_deref()),
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                let seconds = spec
                    .session_affinity_config
                    .and_then(|config| config.client_ip?.timeout_seconds)
                    .and_then(|seconds| u64::try_from(seconds).ok());
                Duration::from_secs(seconds.unwrap_or(DEFAULT_AFFINITY))
            }),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            selector: spec.selector.unwrap_or_default(),
            other_proxy: object
                .metadata
                .labels
                .and_then(|mut labels| labels.remove(OTHER_PROXY)),
            topology_hints: annotations.remove(TOPOLOGY_HINTS),
            topology_mode: annotations.remove(TOPOLOGY_MODE),
        })
    }
}

fn port(port: api::ServicePort) -> Option<ServicePort> {
    let number = u16::try_from(port.port).ok()?;
    Some(ServicePort {
        name: port.name.unwrap_or_default(),
        protocol: protocol_number(port.protocol.as_deref())?,
        port: number,
        target: match port.target_port {
            Some(IntOrString::Int(target)) => target.to_string(),
            Some(IntOrString::String(target)) => target,
            None => number.to_string(),
        },
        node_port: port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port != 0),
    })
}

/// Number of a protocol name; TCP where there is none (v1 default).
pub(super) fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        "SCTP" => Some(protocol::SCTP),
        _ => None,
    }
}

fn policy(name: Option<&str>) -> TrafficPolicy {
    match name {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

/// Those of the texts that are addresses; `None` (headless) is not.
fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
