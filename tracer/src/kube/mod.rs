//! Facts of the cluster: services, endpoints, pods, nodes, policies and kube-proxy's configuration,
//! as plain owned values.
//!
//! Map: `connect` finds and asks the API server, `watch` turns what the client's watchers say into
//! changes, `asks` reads pods of other nodes one by one, `cluster` runs both in a thread and hands over
//! [`ClusterFacts`] (`facts`; `changed` is how they change), and one file per kind of object holds its type
//! and picks the needed fields.
//! `source` says how fresh each kind is, `stored` is what a capture keeps of it (objects as they are, like
//! the facts of the node).
//!
//! Invariants:
//! - Nobody waits for the API server: facts are a copy that never changes, and say how old they are.
//! - No type of the Kubernetes client leaves this module.
//! - Secrets are never read: the least rights are in `manifests/rbac.yaml`, and no more is asked for.
//! - This module never decides: it has no opinion about what it reads.

mod asks;
mod changed;
mod cluster;
pub(crate) mod connect;
#[cfg(test)]
pub(crate) mod constructed;
mod endpoint;
mod facts;
mod name;
mod node;
mod objects;
mod pod;
mod policy;
mod service;
mod source;
mod stored;
mod watch;

pub use cluster::{Cluster, Options, State};
pub use connect::Place;
pub use endpoint::{Endpoint, EndpointGroup, EndpointPort, Slice};
pub use facts::{Claim, ClusterFacts};
pub use name::ObjectName;
pub use node::Node;
pub use pod::{Deletion, Pod};
pub use policy::{NetworkPolicy, Selector};
pub use service::{Service, ServiceKind, ServicePort, TrafficPolicy};
pub use source::{Freshness, Resource, Trouble};
pub use stored::StoredCluster;

/// The least rights that reading the facts needs.
pub const RBAC: &str = include_str!("../../manifests/rbac.yaml");
