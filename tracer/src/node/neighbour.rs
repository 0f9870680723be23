//! Neighbour tables, ARP and NDP (`ip neighbour`).

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, Emitable as _, ParseableParametrized as _};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourHeader, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::link::Mac;
use super::netlink::{Conversation, attributes};
use super::numbered::numbered;
use super::table::rows_or_missing;

/// Above any `gc_thresh3` that a node should have.
const LIMIT: usize = 100_000;

/// A node on the same link, as the kernel knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Neighbour {
    /// Index of the device.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// What the kernel knows about its reachability.
    pub state: NeighbourState,
    /// Its hardware address; `None` while it is not resolved.
    pub mac: Option<Mac>,
}

numbered! {
    /// State of a neighbour entry (`NUD_*`).
    NeighbourState: u16 {
        /// Not looked for yet.
        Empty = 0x00, "none";
        /// Asked, no answer yet.
        Incomplete = 0x01, "incomplete";
        /// Confirmed lately.
        Reachable = 0x02, "reachable";
        /// Confirmed long ago; used until proven wrong.
        Stale = 0x04, "stale";
        /// Will be probed soon.
        Delay = 0x08, "delay";
        /// Is being probed.
        Probe = 0x10, "probe";
        /// Did not answer.
        Failed = 0x20, "failed";
        /// Needs no resolution.
        NoArp = 0x40, "noarp";
        /// Set by the administrator or by an overlay's daemon.
        Permanent = 0x80, "permanent";
    }
}

pub(super) fn read(route: &mut Conversation, missing: &mut Vec<Missing>) -> Vec<Neighbour> {
    let mut neighbours = Vec::new();
    for (family, name) in [
        (AddressFamily::Inet, "IPv4 neighbours"),
        (AddressFamily::Inet6, "IPv6 neighbours"),
    ] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let result = route.dump(RouteNetlinkMessage::GetNeighbour(request), LIMIT, parse);
        neighbours.extend(rows_or_missing(name, result, missing));
    }
    neighbours
}

fn parse(payload: &[u8]) -> Result<Option<Neighbour>, DecodeError> {
    let header = NeighbourHeader::parse(payload)?;
    let state = NeighbourState::from_kernel(header.state.into());
    // Broadcast, multicast and loopback entries: many, and never a finding.
    if state == NeighbourState::NoArp {
        return Ok(None);
    }
    let (mut address, mut mac) = (None, None);
    for attribute in attributes(payload, header.buffer_len()) {
        match NeighbourAttribute::parse_with_param(&attribute, header.family) {
            Ok(NeighbourAttribute::Destination(NeighbourAddress::Inet(v4))) => {
                address = Some(IpAddr::V4(v4))
            }
            Ok(NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6))) => {
                address = Some(IpAddr::V6(v6))
            }
            Ok(NeighbourAttribute::LinkLayerAddress(bytes)) => mac = Mac::from_slice(&bytes),
            Ok(_) | Err(_) => {}
        }
    }
    let address = address.ok_or("neighbour without an address")?;
    Ok(Some(Neighbour {
        link: header.ifindex,
        address,
        state,
        mac,
    }))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::NeighbourState as RawState;

    use super::*;

    fn message(state: RawState, attributes: Vec<NeighbourAttribute>) -> Vec<u8> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 3;
        message.header.state = state;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn destination() -> NeighbourAttribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 244, 1, 15].into()))
    }

    #[test]
    fn reads_resolved_and_failed_entries() {
        let mac = NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]);
        let bytes = message(RawState::Reachable, vec![destination(), mac]);
        let expected = Neighbour {
            link: 3,
            address: [10, 244, 1, 15].into(),
            state: NeighbourState::Reachable,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        };
        assert_eq!(parse(&bytes).unwrap(), Some(expected));
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
        let failed = parse(&message(RawState::Failed, vec![destination()]))
            .unwrap()
            .unwrap();
        assert_eq!((failed.state, failed.mac), (NeighbourState::Failed, None));
        assert_eq!(failed.state.to_string(), "failed");
    }

    #[test]
    fn leaves_out_noise_and_refuses_entries_without_address() {
        assert_eq!(
            parse(&message(RawState::Noarp, vec![destination()])).unwrap(),
            None
        );
        assert!(parse(&message(RawState::Stale, vec![])).is_err());
    }
}
