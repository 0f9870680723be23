//! What kube-proxy in ipvs mode should have made on this node, and how that differs from what IPVS
//! holds.
//!
//! Map: `proxy` is kube-proxy's version and configuration, `node_address` where NodePorts are to
//! answer, `endpoint` which endpoints are to serve, `server` the virtual servers of all that,
//! `difference` the comparison.
//!
//! Invariants: pure functions of the cluster's and the node's facts. Where versions differ and the
//! version is not known, the answer is `None`, not a guess; such servers are not compared.
//!
//! Sources: kubernetes pkg/proxy/ipvs/proxier.go and netlink_linux.go, pkg/proxy/topology.go, and the
//! pull requests that each rule names.

mod difference;
mod endpoint;
mod node_address;
mod proxy;
mod server;

#[cfg(test)]
mod tests;

pub use difference::{Difference, Surplus, compare};
pub use endpoint::serving;
pub use node_address::node_addresses;
pub use proxy::{NodePortAddresses, Proxy, minor};
pub use server::{ExpectedServer, Reach, ServerKey, expected};

/// The interface that kube-proxy puts service addresses on.
pub const SERVICE_DEVICE: &str = "kube-ipvs0";
