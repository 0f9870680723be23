//! What the causes about bridges, veth pairs and tunnels share: which device a packet left by, and
//! which bridge port leads to an address.

use std::net::IpAddr;

use super::Site;
use super::evidence::{Evidence, Failure};
use super::neighbour_failed::lost_for;
use crate::event::Detail;
use crate::hook::Role;
use crate::node::{BridgePortState, Link, NetnsId};

/// Functions of bridges that free a packet which may not go on. `br_dev_queue_push_xmit` is not among
/// them: it drops what is too large.
pub(super) const BRIDGE_DROPS: &[&str] = &[
    "br_forward",
    "__br_forward",
    "br_flood",
    "br_handle_frame",
    "br_handle_frame_finish",
    "br_dev_xmit",
];

/// The device that a packet was last handed to, or was to leave by, and where it was going next.
pub(super) fn out_device(failure: &Failure<'_>) -> Option<(NetnsId, u32)> {
    let (index, ifindex) =
        failure
            .journey
            .events
            .iter()
            .enumerate()
            .rev()
            .find_map(|(index, event)| match event.detail {
                Detail::Device { ifindex } | Detail::Neighbour { ifindex, .. } => {
                    Some((index, ifindex))
                }
                Detail::Route {
                    ifindex: Some(ifindex),
                    ..
                } if event.role() != Role::LocalIn => Some((index, ifindex)),
                _ => None,
            })?;
    Some((failure.netns_at(index)?, ifindex))
}

/// The port of a bridge behind which an address is, by neighbour table and forwarding database.
pub(super) fn port_to<'a>(site: &Site<'a>, bridge: u32, address: IpAddr) -> Option<&'a Link> {
    let mac = site.neighbour(bridge, address)?.mac?;
    let entry =
        site.facts.fdb.iter().find(|entry| {
            entry.mac == mac && entry.bridge == Some(bridge) && entry.link != bridge
        })?;
    site.link(entry.link)
}

/// The port whose other end has an address, by the facts of the namespace there.
pub(super) fn port_with<'a>(
    evidence: &Evidence<'a>,
    site: &Site<'a>,
    bridge: u32,
    address: IpAddr,
) -> Option<&'a Link> {
    ports(site, bridge).find(|port| {
        let peer = || {
            let peer = evidence.site(port.peer_netns?)?;
            let index = port.peer_index?;
            Some(peer.addresses(address).any(|entry| entry.link == index))
        };
        peer() == Some(true)
    })
}

/// Ports of a bridge.
pub(super) fn ports<'a>(site: &Site<'a>, bridge: u32) -> impl Iterator<Item = &'a Link> {
    site.facts
        .links
        .iter()
        .filter(move |link| link.master == Some(bridge) && link.bridge_port.is_some())
}

/// The port that packets to a neighbour on a bridge go through, and how that is known.
pub(super) fn port_of_neighbour<'a>(
    evidence: &Evidence<'a>,
    failure: &Failure<'_>,
) -> Option<(NetnsId, &'a Link)> {
    let (netns, ifindex, address) = lost_for(failure)?;
    let site = evidence.site(netns)?;
    let port =
        port_to(site, ifindex, address).or_else(|| port_with(evidence, site, ifindex, address))?;
    Some((netns, port))
}

/// A port passes nothing.
pub(super) fn is_blocked(port: &Link) -> bool {
    port.bridge_port
        .and_then(|port| port.state)
        .is_some_and(|state| state != BridgePortState::Forwarding)
}
