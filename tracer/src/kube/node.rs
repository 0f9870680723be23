//! Nodes.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use serde::{Deserialize, Serialize};

use super::pod::truth;
use super::{Claim, ObjectName};
use crate::node::Prefix;

/// A Node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its name; nodes have no namespace.
    pub name: ObjectName,
    /// Its host name.
    pub host_name: Option<String>,
    /// Addresses inside the cluster.
    pub internal_ips: Vec<IpAddr>,
    /// Addresses outside.
    pub external_ips: Vec<IpAddr>,
    /// Prefixes that its pods get addresses of.
    pub pod_prefixes: Vec<Prefix>,
    /// Its `Ready` condition; `None` when it has not been heard of.
    pub ready: Option<bool>,
    /// Version of its kubelet: `v1.20.2`.
    pub kubelet_version: Option<String>,
    /// Container runtime and version: `docker://19.3.11`.
    pub container_runtime: Option<String>,
    /// Zone.
    pub zone: Option<String>,
}

impl Node {
    pub(super) fn claims(&self) -> impl Iterator<Item = (IpAddr, Claim)> {
        self.internal_ips
            .iter()
            .chain(&self.external_ips)
            .map(|&address| (address, Claim::Node(self.name.name.clone())))
    }

    pub(super) fn read(object: api::Node) -> Option<Self> {
        let name = ObjectName::of(&object.metadata)?;
        let mut labels = object.metadata.labels.unwrap_or_default();
        let spec = object.spec.unwrap_or_default();
        let status = object.status.unwrap_or_default();
        let addresses = status.addresses.unwrap_or_default();
        let of_type = |kind: &str| {
            addresses
                .iter()
                .filter(|address| address.type_ == kind)
                .filter_map(|address| address.address.parse().ok())
                .collect()
        };
        // podCIDR is the first of podCIDRs, and alone where the server knows one family only.
        let prefixes = spec
            .pod_cidrs
            .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        let info = status.node_info;
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        Some(Self {
            name,
            host_name: addresses
                .iter()
                .find(|address| address.type_ == "Hostname")
                .map(|address| address.address.clone())
                .or_else(|| labels.remove("kubernetes.io/hostname")),
            internal_ips: of_type("InternalIP"),
            external_ips: of_type("ExternalIP"),
            pod_prefixes: prefixes
                .iter()
                .filter_map(|text| Prefix::parse(text))
                .collect(),
            ready: status
                .conditions
                .unwrap_or_default()
                .iter()
                .find(|condition| condition.type_ == "Ready")
                .and_then(|condition| truth(&condition.status)),
            kubelet_version: info.as_ref().and_then(|info| said(&info.kubelet_version)),
            container_runtime: info
                .as_ref()
                .and_then(|info| said(&info.container_runtime_version)),
            zone: labels.remove("topology.kubernetes.io/zone"),
        })
    }
}
