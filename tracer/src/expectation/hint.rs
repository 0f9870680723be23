//! Which endpoints the hints of EndpointSlices leave to the clients of a node.
//!
//! As `CategorizeEndpoints` in pkg/proxy/topology.go decides it: where every ready endpoint has hints and at
//! least one of them is for this node, or for the zone in its label `topology.kubernetes.io/zone`, only
//! those serve that are; else the hints mean nothing. What decided whether hints are heeded at all was the
//! service's annotation up to 1.30, and is since that they are there: of `spec.trafficDistribution` only the
//! control plane that writes them takes notice.

use super::{Habit, Proxy, Unsure};
use crate::kube::{ClusterFacts, Endpoint, Service};

/// To whom endpoints are left.
pub(super) enum Near<'a> {
    /// Hints mean nothing.
    Everyone,
    /// Those that are hinted for a node.
    Node(&'a str),
    /// Those that are hinted for a zone.
    Zone(&'a str),
}

impl Near<'_> {
    /// Whether a ready endpoint serves.
    pub(super) fn takes(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Everyone => true,
            Self::Node(node) => has(&endpoint.node_hints, node),
            Self::Zone(zone) => has(&endpoint.zone_hints, zone),
        }
    }
}

fn has(hints: &[String], name: &str) -> bool {
    hints.iter().any(|hint| hint == name)
}

/// What the hints of the ready endpoints of a service's port come to on this node.
pub(super) fn near<'a>(
    cluster: &'a ClusterFacts,
    service: &Service,
    ready: &[&Endpoint],
    proxy: &Proxy,
) -> Result<Near<'a>, Unsure> {
    let hinted = |hints: fn(&Endpoint) -> &[String]| {
        !ready.is_empty() && ready.iter().all(|endpoint| !hints(endpoint).is_empty())
    };
    let for_nodes = hinted(|endpoint| &endpoint.node_hints);
    let for_zones = hinted(|endpoint| &endpoint.zone_hints);
    if !for_nodes && !for_zones {
        return Ok(Near::Everyone);
    }
    let name = cluster.this_node.as_deref().ok_or(Unsure::Node)?;
    let by_node = Near::Node(name);
    if for_nodes
        && ready.iter().any(|endpoint| by_node.takes(endpoint))
        && proxy.does(Habit::NodeHints).ok_or(Unsure::Version)?
    {
        return Ok(by_node);
    }
    if !for_zones || !heeds_zones(service, proxy).ok_or(Unsure::Version)? {
        return Ok(Near::Everyone);
    }
    let node = cluster.node(name).ok_or(Unsure::Node)?;
    // A node without the label is in no zone.
    let by_zone = node.zone.as_deref().map(Near::Zone);
    let meant = |near: &Near<'_>| ready.iter().any(|endpoint| near.takes(endpoint));
    Ok(by_zone.filter(meant).unwrap_or(Near::Everyone))
}

/// Whether hints of zones count for a service; `None` when the version decides and is not known.
fn heeds_zones(service: &Service, proxy: &Proxy) -> Option<bool> {
    if !proxy.does(Habit::ZoneHints)? {
        return Some(false);
    }
    if proxy.does(Habit::ZoneHintsWithoutAnnotation)? {
        return Some(true);
    }
    let newer = proxy.does(Habit::TopologyMode)?;
    let mode = service.topology_mode.as_ref().filter(|_| newer);
    let said = service.topology_hints.as_ref().or(mode);
    Some(match said.map_or("", String::as_str) {
        "" | "disabled" | "Disabled" => false,
        "auto" | "Auto" => true,
        _ => newer,
    })
}
