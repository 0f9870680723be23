//! What kube-proxy should have made on this node, and how that differs from what the kernel holds.
//!
//! Map: `version` is the table of what kube-proxy's versions and modes do differently, `proxy` its version,
//! mode and configuration here, `node_address` where NodePorts are to answer, `endpoint` which endpoints
//! are to serve, `hint` whom they are left to by hints, `server` what is to be made for each address and port, `programmed` what the kernel holds
//! of it in IPVS, iptables or nftables, `difference` the comparison.
//!
//! Invariants: pure functions of the cluster's and the node's facts. Where versions differ and the
//! version is not known, the answer is none or why there is none, not a guess; such servers are not compared.
//!
//! Sources: kubernetes pkg/proxy/ipvs/proxier.go and netlink_linux.go, pkg/proxy/iptables/proxier.go,
//! pkg/proxy/nftables/proxier.go, pkg/proxy/topology.go, and the pull requests that each rule names.

mod difference;
mod endpoint;
mod hint;
mod node_address;
mod programmed;
mod proxy;
mod server;
mod version;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use difference::{Comparison, Difference, Surplus, compare};
pub use endpoint::{Unsure, serving};
pub use node_address::node_addresses;
pub use programmed::{Programmed, programmed};
pub use proxy::{NodePortAddresses, Proxy, Told, minor, ruled_namespaces};
pub use server::{ExpectedServer, Reach, ServerKey, expected};
pub use version::{Habit, Mode};

/// How often kube-proxy syncs at least, where its configuration does not say.
pub const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// The interface that kube-proxy puts service addresses on.
pub const SERVICE_DEVICE: &str = "kube-ipvs0";
