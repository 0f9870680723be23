//! Conntrack entries of UDP (`conntrack -L -p udp`), by netlink, for the audit.
//!
//! Attributes are those of the kernel's `linux/netfilter/nfnetlink_conntrack.h`. Asking would load the
//! module; the tracer changes nothing, so it asks only where it is loaded.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netlink_packet_core::{
    DecodeError, NetlinkPayload, NetlinkSerializable, NlaBuffer, parse_ip, parse_u8, parse_u16_be,
    parse_u32_be,
};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::netlink::{Conversation, attributes};
use super::table::rows_or_missing;
use crate::event::{Tuple, protocol};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
const HEADER_BYTES: usize = 4;
/// Entries that are kept; a resolver's node may have many more.
const LIMIT: usize = 200_000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// A conntrack entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConntrackEntry {
    /// As the first packet came.
    pub original: Tuple,
    /// As replies are expected.
    pub reply: Tuple,
    /// A reply came.
    pub replied: bool,
    /// Seconds until it is forgotten.
    pub expires: Option<u32>,
}

/// A request for every entry of a family.
struct Request {
    family: u8,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        GET
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // nfgenmsg: family, version, resource id.
        buffer.copy_from_slice(&[self.family, 0, 0, 0]);
    }
}

impl From<Request> for NetlinkPayload<Request> {
    fn from(request: Request) -> Self {
        Self::InnerMessage(request)
    }
}

/// UDP entries whose destination was changed or that wait for a first reply, of the calling thread's
/// network namespace. `None`: they cannot be asked for, and `missing` says why.
pub(super) fn read_udp(missing: &mut Vec<Missing>) -> Option<Vec<ConntrackEntry>> {
    if !Path::new("/sys/module/nf_conntrack").exists() {
        return Some(Vec::new());
    }
    if !Path::new("/sys/module/nf_conntrack_netlink").exists() {
        missing.push(Missing {
            what: "conntrack entries".into(),
            why: "the module nf_conntrack_netlink is not loaded".into(),
            remedy: Some("modprobe nf_conntrack_netlink".into()),
        });
        return None;
    }
    let mut conversation = match Conversation::open(libc::NETLINK_NETFILTER as isize) {
        Ok(conversation) => conversation,
        Err(error) => {
            missing.push(error.missing("conntrack entries"));
            return None;
        }
    };
    let mut entries = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = Request {
            family: family as u8,
        };
        let result = conversation.dump(request, LIMIT, parse);
        entries.extend(rows_or_missing("conntrack entries", result, missing));
    }
    Some(entries)
}

fn parse(payload: &[u8]) -> Result<Option<ConntrackEntry>, DecodeError> {
    let (mut original, mut reply, mut replied, mut expires) = (None, None, false, None);
    for attribute in attributes(payload, HEADER_BYTES) {
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = tuple(&attribute),
            CTA_TUPLE_REPLY => reply = tuple(&attribute),
            CTA_STATUS => replied = parse_u32_be(attribute.value())? & IPS_SEEN_REPLY != 0,
            CTA_TIMEOUT => expires = parse_u32_be(attribute.value()).ok(),
            _ => {}
        }
    }
    let (original, reply): (Tuple, Tuple) = original
        .zip(reply)
        .ok_or("conntrack entry without tuples")?;
    let wanted =
        original.protocol == protocol::UDP && (original.destination != reply.source || !replied);
    Ok(wanted.then_some(ConntrackEntry {
        original,
        reply,
        replied,
        expires,
    }))
}

fn tuple(attribute: &NlaBuffer<&[u8]>) -> Option<Tuple> {
    let (mut addresses, mut ports, mut number) = ([None; 2], [0; 2], None);
    for part in attributes(attribute.value(), 0) {
        for field in attributes(part.value(), 0) {
            let value = field.value();
            match (part.kind(), field.kind()) {
                // Source and destination, IPv4 then IPv6.
                (CTA_TUPLE_IP, kind @ 1..=4) => {
                    addresses[usize::from(kind - 1) % 2] = parse_ip(value).ok();
                }
                (CTA_TUPLE_PROTO, 1) => number = parse_u8(value).ok(),
                (CTA_TUPLE_PROTO, kind @ 2..=3) => {
                    ports[usize::from(kind - 2)] = parse_u16_be(value).ok()?;
                }
                _ => {}
            }
        }
    }
    let endpoint = |address: Option<IpAddr>, port| Some(SocketAddr::new(address?, port));
    Some(Tuple {
        protocol: number?,
        source: endpoint(addresses[0], ports[0])?,
        destination: endpoint(addresses[1], ports[1])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_bytes(
        kind: u16,
        number: u8,
        source: [u8; 4],
        port: u16,
        to: [u8; 4],
        to_port: u16,
    ) -> Vec<u8> {
        let ip = [attribute(1, &source), attribute(2, &to)].concat();
        let proto = [
            attribute(1, &[number]),
            attribute(2, &port.to_be_bytes()),
            attribute(3, &to_port.to_be_bytes()),
        ]
        .concat();
        attribute(
            kind,
            &[
                attribute(CTA_TUPLE_IP, &ip),
                attribute(CTA_TUPLE_PROTO, &proto),
            ]
            .concat(),
        )
    }

    fn message(number: u8, status: u32) -> Vec<u8> {
        [
            vec![2, 0, 0, 0],
            tuple_bytes(
                CTA_TUPLE_ORIG,
                number,
                [10, 0, 0, 9],
                4000,
                [10, 96, 0, 10],
                53,
            ),
            tuple_bytes(
                CTA_TUPLE_REPLY,
                number,
                [10, 0, 0, 7],
                5353,
                [10, 0, 0, 9],
                4000,
            ),
            attribute(CTA_STATUS, &status.to_be_bytes()),
            attribute(CTA_TIMEOUT, &29_u32.to_be_bytes()),
        ]
        .concat()
    }

    #[test]
    fn reads_an_entry_of_the_kernel() {
        let bytes = message(17, 0x18a);
        let entry = parse(&bytes).unwrap().unwrap();
        assert_eq!(entry.original.destination, "10.96.0.10:53".parse().unwrap());
        assert_eq!(entry.reply.source, "10.0.0.7:5353".parse().unwrap());
        assert_eq!((entry.replied, entry.expires), (true, Some(29)));
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
        assert_eq!(parse(&message(6, 0)).unwrap(), None);
    }
}
