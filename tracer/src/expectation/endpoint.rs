//! Which endpoints of a service serve one of its addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::{Habit, Proxy};
use crate::kube::{ClusterFacts, Endpoint, Service, ServicePort, TrafficPolicy};

/// The endpoints that clients of one address of a service's port are to reach. `None` when versions differ
/// and the version is not known, or when zones decide (topology hints are not followed here).
pub fn serving(
    cluster: &ClusterFacts,
    service: &Service,
    port: &ServicePort,
    family: IpAddr,
    policy: TrafficPolicy,
    proxy: &Proxy,
) -> Option<BTreeSet<SocketAddr>> {
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
    if all
        .iter()
        .any(|(endpoint, _)| !endpoint.zone_hints.is_empty())
    {
        return None;
    }
    let everywhere = chosen(&all, proxy, |_| true);
    if policy == TrafficPolicy::Cluster {
        return everywhere;
    }
    let node = cluster.this_node.as_deref()?;
    let local = chosen(&all, proxy, |endpoint| {
        endpoint.node.as_deref() == Some(node)
    })?;
    // Where no client may use the others kube-proxy does not even look at them.
    let one_policy = proxy.does(Habit::OnePolicyForAll) == Some(true)
        && service.external_policy == TrafficPolicy::Cluster;
    let only_local = service.internal_policy == TrafficPolicy::Local
        && (one_policy || !service.reaches_outside());
    if !local.is_empty() || only_local {
        return Some(local);
    }
    match proxy.does(Habit::AllWithoutLocal) {
        Some(true) => everywhere,
        Some(false) => Some(local),
        None => everywhere.filter(BTreeSet::is_empty),
    }
}

/// The ready ones; when there are none, in some versions those that are going and still answer.
fn chosen(
    all: &[(&Endpoint, SocketAddr)],
    proxy: &Proxy,
    wanted: impl Fn(&Endpoint) -> bool,
) -> Option<BTreeSet<SocketAddr>> {
    let pick = |also: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
        all.iter()
            .filter(|(endpoint, _)| wanted(endpoint) && also(endpoint))
            .map(|(_, address)| *address)
            .collect()
    };
    let ready = pick(&|endpoint| endpoint.ready);
    if !ready.is_empty() {
        return Some(ready);
    }
    let going = pick(&|endpoint| endpoint.serving && endpoint.terminating);
    match proxy.does(Habit::ServingTerminating) {
        Some(true) => Some(going),
        Some(false) => Some(ready),
        None => going.is_empty().then_some(going),
    }
}
