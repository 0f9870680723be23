//! Pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1 as api;
use serde::{Deserialize, Serialize};

use super::{Claim, ObjectName};

/// A Pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Unique id; cgroup paths carry it.
    pub uid: String,
    /// Node that it is on.
    pub node: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Shares the node's network namespace, so its addresses are the node's.
    pub host_network: bool,
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: Option<String>,
    /// Its `Ready` condition.
    pub ready: Option<bool>,
    /// Why it is not ready, in the kubelet's words.
    pub not_ready_because: Option<String>,
    /// Set when it is to go.
    pub deletion: Option<Deletion>,
    /// What must be done before its object goes.
    pub finalizers: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// That an object is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was to be gone: `deletionTimestamp`, which already includes the grace period.
    pub due: SystemTime,
    /// Time it was given.
    pub grace: Option<Duration>,
}

impl Pod {
    /// Has ended: its address may belong to another by now.
    pub fn ended(&self) -> bool {
        matches!(self.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = (IpAddr, Claim)> {
        // What shares the node's address does not own it.
        let own = !self.host_network && !self.ended();
        self.addresses
            .iter()
            .filter(move |_| own)
            .map(|&address| (address, Claim::Pod(self.name.clone())))
    }

    pub(super) fn read(object: api::Pod) -> Option<Self> {
        let metadata = object.metadata;
        let name = ObjectName::of(&metadata)?;
        let spec = object.spec.unwrap_or_default();
        let status = object.status.unwrap_or_default();
        let mut addresses: Vec<IpAddr> = status
            .pod_ips
            .unwrap_or_default()
            .into_iter()
            .filter_map(|entry| entry.ip.parse().ok())
            .collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip.and_then(|text| text.parse::<IpAddr>().ok()));
        }
        let ready = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| condition.type_ == "Ready");
        let is_ready = ready
            .as_ref()
            .and_then(|condition| truth(&condition.status));
        Some(Self {
            name,
            uid: metadata.uid.unwrap_or_default(),
            node: spec.node_name,
            addresses,
            host_network: spec.host_network.unwrap_or(false),
            phase: status.phase,
            ready: is_ready,
            not_ready_because: ready
                .filter(|_| is_ready == Some(false))
                .and_then(|condition| condition.message.or(condition.reason)),
            deletion: metadata.deletion_timestamp.map(|due| Deletion {
                due: due.0.into(),
                grace: metadata
                    .deletion_grace_period_seconds
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map(Duration::from_secs),
            }),
            finalizers: metadata.finalizers.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
        })
    }
}

/// A condition's status; `Unknown` is `None`.
pub(super) fn truth(status: &str) -> Option<bool> {
    match status {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}
