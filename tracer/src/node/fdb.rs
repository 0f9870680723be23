//! Forwarding databases of bridges and VXLAN devices (`bridge fdb`).

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, Emitable as _, NlaBuffer, parse_ip};
use netlink_packet_route::neighbour::{NeighbourHeader, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::link::Mac;
use super::netlink::{Conversation, attributes};
use super::table::rows_or_missing;

const LIMIT: usize = 100_000;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;

/// Where frames to a hardware address go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FdbEntry {
    /// Index of the device: a bridge's port, or a VXLAN device.
    pub link: u32,
    /// Hardware address; all zero on a VXLAN device is where unknown addresses go.
    pub mac: Mac,
    /// VXLAN: address of the tunnel's other end.
    pub remote: Option<IpAddr>,
    /// Bridge that the entry belongs to.
    pub bridge: Option<u32>,
}

pub(super) fn read(route: &mut Conversation, missing: &mut Vec<Missing>) -> Vec<FdbEntry> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    let result = route.dump(RouteNetlinkMessage::GetNeighbour(request), LIMIT, parse);
    rows_or_missing("forwarding databases of bridges", result, missing)
}

fn parse(payload: &[u8]) -> Result<Option<FdbEntry>, DecodeError> {
    let header = NeighbourHeader::parse(payload)?;
    let mut entry = FdbEntry {
        link: header.ifindex,
        mac: Mac([0; 6]),
        remote: None,
        bridge: None,
    };
    let mut has_mac = false;
    for attribute in attributes(payload, header.buffer_len()) {
        let value = attribute.value();
        match attribute.kind() {
            NDA_DST => entry.remote = parse_ip(value).ok(),
            NDA_LLADDR => {
                if let Some(mac) = Mac::from_slice(value) {
                    (entry.mac, has_mac) = (mac, true);
                }
            }
            NDA_MASTER => entry.bridge = index(&attribute),
            _ => {}
        }
    }
    Ok(has_mac.then_some(entry))
}

fn index(attribute: &NlaBuffer<&[u8]>) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute.value().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};

    use super::*;

    #[test]
    fn reads_an_entry_of_a_tunnel_and_of_a_bridge() {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = 7;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 0, 2, 9].into())),
            NeighbourAttribute::Controller(3),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let expected = FdbEntry {
            link: 7,
            mac: Mac([2, 0, 0, 0, 0, 9]),
            remote: Some([192, 0, 2, 9].into()),
            bridge: Some(3),
        };
        assert_eq!(parse(&bytes).unwrap(), Some(expected));
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
    }
}
