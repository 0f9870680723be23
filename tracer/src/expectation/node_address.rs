//! The addresses on which NodePorts answer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Habit, Mode, NodePortAddresses, Proxy, SERVICE_DEVICE};
use crate::kube::Node;
use crate::node::{NetnsFacts, Route, RouteKind, RouteProtocol};

/// The addresses on which kube-proxy makes NodePorts answer; loopback addresses are left
/// out, since versions differ in whether they make some that never work (k/k#96879). `None` when the
/// version decides and is not known, or the configuration cannot be read.
pub fn node_addresses(
    facts: &NetnsFacts,
    node: Option<&Node>,
    proxy: &Proxy,
) -> Option<BTreeSet<IpAddr>> {
    let all = match &proxy.node_ports {
        NodePortAddresses::Unset if proxy.does(Habit::NodePortsOnPrimary)? => primary(node?),
        NodePortAddresses::Unset | NodePortAddresses::All => everywhere(facts, proxy)?,
        // Every version takes the addresses of the interfaces here.
        NodePortAddresses::Within(prefixes) => facts
            .addresses
            .iter()
            .map(|found| found.address)
            .filter(|address| prefixes.iter().any(|prefix| prefix.contains(*address)))
            .collect(),
        NodePortAddresses::Primary => primary(node?),
        NodePortAddresses::Unknown => return None,
    };
    Some(all.into_iter().filter(is_usable).collect())
}

/// Where NodePorts answer when they are to answer everywhere.
fn everywhere(facts: &NetnsFacts, proxy: &Proxy) -> Option<BTreeSet<IpAddr>> {
    // Rules ask the kernel whether an address is local.
    if proxy.mode != Mode::Ipvs {
        return Some(facts.addresses.iter().map(|found| found.address).collect());
    }
    let all: BTreeSet<IpAddr> = addresses(facts, false).collect();
    let service: BTreeSet<IpAddr> = addresses(facts, true).collect();
    // Takes away every address of the service device, also those that are elsewhere too.
    let without: BTreeSet<IpAddr> = all.difference(&service).copied().collect();
    let sources = route_sources(facts);
    match (
        proxy.does(Habit::NodePortsOnRouteSources),
        proxy.does(Habit::NodePortsOffServiceAddresses),
    ) {
        (Some(true), _) => Some(sources),
        (_, Some(true)) => Some(without),
        (Some(false), Some(false)) => Some(all),
        // Where every version agrees the version does not matter.
        _ => (sources == without && without == all).then_some(all),
    }
}

/// Addresses of the service device, or of all others.
fn addresses(facts: &NetnsFacts, service: bool) -> impl Iterator<Item = IpAddr> {
    facts
        .addresses
        .iter()
        .filter(move |found| is_service_device(facts, Some(found.link)) == service)
        .map(|found| found.address)
}

/// The sources of the kernel's local routes, in IPv6 their destinations (k/k#75443).
fn route_sources(facts: &NetnsFacts) -> BTreeSet<IpAddr> {
    facts
        .routes
        .iter()
        .filter(|route| route.table == Route::LOCAL_TABLE && route.kind == RouteKind::Local)
        .filter(|route| route.protocol == RouteProtocol::Kernel)
        .filter(|route| !is_service_device(facts, route.link))
        .filter_map(|route| match route.destination.address {
            IpAddr::V4(_) => route.preferred_source,
            address @ IpAddr::V6(_) => Some(address),
        })
        .collect()
}

fn is_service_device(facts: &NetnsFacts, link: Option<u32>) -> bool {
    link.and_then(|index| facts.link(index))
        .is_some_and(|link| link.name == SERVICE_DEVICE)
}

/// The first internal address of each family (k/k#123105).
fn primary(node: &Node) -> BTreeSet<IpAddr> {
    let first = |four: bool| {
        let mut own = node.internal_ips.iter().copied();
        own.find(|address| address.is_ipv4() == four)
    };
    [first(true), first(false)].into_iter().flatten().collect()
}

/// Whether the address is one on which versions agree.
pub(super) fn is_usable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !link_local
}
