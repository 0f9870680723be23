//! Which endpoints of a service serve one of its addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::hint::near;
use super::{Habit, Proxy};
use crate::kube::{ClusterFacts, Endpoint, Service, ServicePort, TrafficPolicy};

/// Why it cannot be told which endpoints are to serve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unsure {
    /// Versions differ.
    Version,
    /// The node decides, and it or its zone is not known.
    Node,
    /// Another service claims the same address and port.
    Contested,
}

impl Unsure {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => {
                "kube-proxy's version decides which are to serve, and it is not known, or not what it does"
            }
            Self::Node => "the node and its zone decide which are to serve, and are not known",
            Self::Contested => "another service claims the same address and port",
        }
    }
}

/// The endpoints that clients of one address of a service's port are to reach, or why they cannot be told.
pub fn serving(
    cluster: &ClusterFacts,
    service: &Service,
    port: &ServicePort,
    family: IpAddr,
    policy: TrafficPolicy,
    proxy: &Proxy,
) -> Result<BTreeSet<SocketAddr>, Unsure> {
    let all: Vec<(&Endpoint, SocketAddr)> = cluster
        .endpoints_of(&service.name)
        .filter(|(endpoint, _)| endpoint.address.is_ipv4() == family.is_ipv4())
        .filter_map(|(endpoint, ports)| {
            let found = ports
                .iter()
                .find(|found| found.name == port.name && found.protocol == port.protocol)?;
            Some((endpoint, SocketAddr::new(endpoint.address, found.port?)))
        })
        .collect();
    let everywhere = || {
        let ready = all.iter().filter(|(endpoint, _)| endpoint.ready);
        let ready: Vec<&Endpoint> = ready.map(|(endpoint, _)| *endpoint).collect();
        let near = near(cluster, service, &ready, proxy)?;
        chosen(&all, proxy, |endpoint| near.takes(endpoint))
    };
    if policy == TrafficPolicy::Cluster {
        return everywhere();
    }
    let node = cluster.this_node.as_deref().ok_or(Unsure::Node)?;
    let local = chosen(&all, proxy, |endpoint| {
        endpoint.node.as_deref() == Some(node)
    })?;
    // Where no client may use the others kube-proxy does not even look at them.
    let one_policy = proxy.does(Habit::OnePolicyForAll) == Some(true)
        && service.external_policy == TrafficPolicy::Cluster;
    let only_local = service.internal_policy == TrafficPolicy::Local
        && (one_policy || !service.reaches_outside());
    if !local.is_empty() || only_local {
        return Ok(local);
    }
    match proxy.does(Habit::AllWithoutLocal) {
        Some(true) => everywhere(),
        Some(false) => Ok(local),
        None => everywhere()
            .ok()
            .filter(BTreeSet::is_empty)
            .ok_or(Unsure::Version),
    }
}

/// The ready ones; when there are none, in some versions those that are going and still answer.
fn chosen(
    all: &[(&Endpoint, SocketAddr)],
    proxy: &Proxy,
    wanted: impl Fn(&Endpoint) -> bool,
) -> Result<BTreeSet<SocketAddr>, Unsure> {
    let pick = |also: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
        all.iter()
            .filter(|(endpoint, _)| wanted(endpoint) && also(endpoint))
            .map(|(_, address)| *address)
            .collect()
    };
    let ready = pick(&|endpoint| endpoint.ready);
    if !ready.is_empty() {
        return Ok(ready);
    }
    let going = pick(&|endpoint| endpoint.serving && endpoint.terminating);
    match proxy.does(Habit::ServingTerminating) {
        Some(true) => Ok(going),
        Some(false) => Ok(ready),
        None if going.is_empty() => Ok(going),
        None => Err(Unsure::Version),
    }
}
