//! The headers of a packet: addresses are replaced where they stand, checksums follow by the difference
//! (RFC 1624), so that what was right stays right and what was wrong stays wrong. Everything behind the
//! headers goes: payload, the question of DNS, what no parser here knows.

use std::net::IpAddr;

use tracer_ebpf::header::quotes;

use super::Anonymizer;
use crate::event::layout::{Network, extension};
use crate::event::protocol;
use crate::node::Mac;

const ETHERNET: usize = 14;
const IP4: u16 = 0x0800;
const IP6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
/// Hardware and protocol kinds and lengths, the operation, and twice a MAC and an IPv4 address.
const ARP_LENGTH: usize = 28;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;

/// An Ethernet frame without what tells whose it is; it may be shorter than before.
pub fn frame(mapping: &Anonymizer, frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let Some(kind) = word(&bytes, ETHERNET - 2) else {
        return Vec::new();
    };
    mac(mapping, &mut bytes, 0);
    mac(mapping, &mut bytes, 6);
    let length = match kind {
        IP4 | IP6 => ip(mapping, &mut bytes[ETHERNET..]),
        ARP => arp(mapping, &mut bytes[ETHERNET..]),
        _ => 0,
    };
    bytes.truncate(ETHERNET + length);
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn mac(mapping: &Anonymizer, bytes: &mut [u8], at: usize) {
    if let Some(place) = bytes.get_mut(at..at + 6)
        && let Ok(old) = <[u8; 6]>::try_from(&*place)
    {
        place.copy_from_slice(&mapping.mac(Mac(old)).0);
    }
}

/// Replaces an address; gives what its 16-bit words came to before and come to now, for checksums.
fn address(mapping: &Anonymizer, place: &mut [u8]) -> Difference {
    let old = match *place {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => match <[u8; 16]>::try_from(&*place) {
            Ok(octets) => IpAddr::from(octets),
            Err(_) => return Difference::default(),
        },
    };
    let before = Difference::of(place);
    match mapping.address(old) {
        IpAddr::V4(new) => place.copy_from_slice(&new.octets()),
        IpAddr::V6(new) => place.copy_from_slice(&new.octets()),
    }
    before.to(place)
}

/// Change of a one's complement sum.
#[derive(Clone, Copy, Default)]
struct Difference(u32);

impl Difference {
    /// The complement of some bytes: what taking them out of a sum adds to it.
    fn of(bytes: &[u8]) -> Self {
        Self(!sum(bytes) & 0xffff)
    }

    /// And these put in.
    fn to(self, bytes: &[u8]) -> Self {
        self.and(Self(sum(bytes)))
    }

    fn and(self, other: Self) -> Self {
        Self(fold(self.0 + other.0))
    }

    /// Corrects a checksum; `optional` is UDP's, where zero says that there is none.
    fn correct(self, bytes: &mut [u8], at: usize, optional: bool) {
        let Some(old) = word(bytes, at) else {
            return;
        };
        if optional && old == 0 {
            return;
        }
        let new = !fold(u32::from(!old) + self.0) as u16;
        let new = if optional && new == 0 { u16::MAX } else { new };
        bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
}

fn fold(mut sum: u32) -> u32 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    fold(
        words
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum(),
    )
}

fn arp(mapping: &Anonymizer, bytes: &mut [u8]) -> usize {
    // Ethernet and IPv4; others are not known.
    if bytes.len() < ARP_LENGTH || bytes[2..6] != [8, 0, 6, 4] {
        return 0;
    }
    for at in [8, 18] {
        mac(mapping, bytes, at);
        address(mapping, &mut bytes[at + 6..at + 10]);
    }
    ARP_LENGTH
}

/// An IP packet; gives how many bytes of it are kept.
fn ip(mapping: &Anonymizer, bytes: &mut [u8]) -> usize {
    let Some(network) = Network::of(bytes) else {
        return 0;
    };
    let difference = if bytes[0] >> 4 == 4 {
        ip4(mapping, &mut bytes[..network.length])
    } else {
        ip6(mapping, bytes)
    };
    for (number, place) in network.extensions {
        match number {
            // Zeros are padding.
            extension::HOP_BY_HOP | extension::DESTINATION => {
                bytes[place].iter_mut().skip(2).for_each(|byte| *byte = 0);
            }
            extension::FRAGMENT => {}
            // Others may hold addresses.
            _ => return place.start,
        }
    }
    let header = network.length;
    let behind = &mut bytes[header..];
    let transport = network
        .transport
        .map_or(0, |number| transport(mapping, number, behind, difference));
    header + transport
}

/// A header of IPv4.
fn ip4(mapping: &Anonymizer, header: &mut [u8]) -> Difference {
    let mut difference = address(mapping, &mut header[12..16]);
    difference = difference.and(address(mapping, &mut header[16..20]));
    // Options may record the way.
    let options = Difference::of(&header[20..]);
    header[20..].fill(0);
    difference.and(options).correct(header, 10, false);
    difference
}

/// The fixed header of IPv6.
fn ip6(mapping: &Anonymizer, header: &mut [u8]) -> Difference {
    let difference = address(mapping, &mut header[8..24]);
    difference.and(address(mapping, &mut header[24..40]))
}

/// A transport header behind addresses that changed so; gives how many bytes are kept.
fn transport(mapping: &Anonymizer, number: u8, bytes: &mut [u8], difference: Difference) -> usize {
    let length = match number {
        protocol::TCP => {
            difference.correct(bytes, 16, false);
            bytes
                .get(12)
                .map_or(bytes.len(), |offset| usize::from(offset >> 4) * 4)
        }
        protocol::UDP => {
            difference.correct(bytes, 6, true);
            UDP_HEADER
        }
        protocol::ICMP => icmp(mapping, bytes, number, Difference::default()),
        protocol::ICMP6 => icmp(mapping, bytes, number, difference),
        protocol::SCTP => 12,
        // The inside of a tunnel is cut off when a capture is written.
        _ => 0,
    };
    length.min(bytes.len())
}

/// ICMP, and the packet that an error is about.
fn icmp(mapping: &Anonymizer, bytes: &mut [u8], number: u8, outer: Difference) -> usize {
    if bytes.len() < ICMP_HEADER {
        return bytes.len();
    }
    let about = quotes(number, bytes[0]);
    // A redirect's gateway; discovery's addresses are behind the header, and go.
    let before = Difference::of(bytes);
    if about && bytes[0] == 5 {
        address(mapping, &mut bytes[4..8]);
    }
    let inside = if about {
        ip(mapping, &mut bytes[ICMP_HEADER..])
    } else {
        0
    };
    let all = outer.and(before.to(bytes));
    all.correct(bytes, 2, false);
    ICMP_HEADER + inside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Packet;

    fn checksum(bytes: &[u8]) -> u16 {
        !sum(bytes) as u16
    }

    /// Ethernet, IPv4, UDP and a question of DNS, with right checksums.
    fn question() -> Vec<u8> {
        let mut udp = vec![0x9c, 0x40, 0, 53, 0, 20, 0, 0];
        udp.extend(b"secretquery!");
        let mut pseudo = vec![10, 244, 1, 15, 10, 96, 0, 10, 0, 17, 0, 20];
        pseudo.extend(&udp);
        let sum = checksum(&pseudo);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![
            0x45, 0, 0, 40, 1, 2, 0x40, 0, 64, 17, 0, 0, 10, 244, 1, 15, 10, 96, 0, 10,
        ];
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend(ip);
        frame.extend(udp);
        frame
    }

    #[test]
    fn addresses_go_checksums_follow_and_payload_is_cut() {
        let mapping = Anonymizer::new(&[7; super::super::KEY_BYTES]);
        let old = question();
        let new = frame(&mapping, &old);
        assert_eq!(new.len(), ETHERNET + 20 + UDP_HEADER);
        assert_eq!(sum(&new[ETHERNET..ETHERNET + 20]), 0xffff);
        // The sum over the pseudo header and all of UDP, with the payload that was cut.
        let mut pseudo = new[26..34].to_vec();
        pseudo.extend([0, 17, 0, 20]);
        pseudo.extend(&new[34..]);
        pseudo.extend(&old[42..]);
        assert_eq!(sum(&pseudo), 0xffff);
        let (one, two) = (Packet::parse(&old, 14), Packet::parse(&new, 14));
        let (one, two) = (one.expect("a packet"), two.expect("a packet"));
        assert_eq!(two.tuple, mapping.tuple(one.tuple));
        assert_ne!(one.tuple.source.ip(), two.tuple.source.ip());
        assert_ne!(old[..12], new[..12]);
    }

    #[test]
    fn what_an_icmp_error_is_about_is_mapped_too() {
        let mapping = Anonymizer::new(&[7; super::super::KEY_BYTES]);
        let inner = question()[ETHERNET..].to_vec();
        let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
        icmp.extend(&inner[..28]);
        let sum_of_all = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum_of_all.to_be_bytes());
        let mut whole = question()[..ETHERNET].to_vec();
        whole.extend([
            0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 10, 96, 0, 10, 10, 244, 1, 15,
        ]);
        whole.extend(icmp);
        let new = frame(&mapping, &whole);
        assert_eq!(new.len(), whole.len());
        assert_eq!(sum(&new[34..]), 0xffff);
        for address in [[10, 244, 1, 15], [10, 96, 0, 10]] {
            assert!(!new.windows(4).any(|bytes| bytes == address));
        }
    }

    #[test]
    fn options_before_the_transport_header_say_nothing_any_more() {
        let mapping = Anonymizer::new(&[7; super::super::KEY_BYTES]);
        // A multicast listener's report: router alert, then ICMP for IPv6 with a group in it.
        let mut report = vec![0x33, 0x33, 0, 0, 0, 0x16, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        report.extend([0x60, 0, 0, 0, 0, 36, 0, 1]);
        report.extend(
            "fe80::aa:1"
                .parse::<std::net::Ipv6Addr>()
                .expect("one")
                .octets(),
        );
        report.extend(
            "ff02::16"
                .parse::<std::net::Ipv6Addr>()
                .expect("all")
                .octets(),
        );
        report.extend([58, 0, 5, 2, 0, 0, 1, 0]);
        report.extend([143, 0, 1, 2, 0, 0, 0, 1, 4, 0, 0, 0]);
        report.extend([0xff; 16]);
        let new = frame(&mapping, &report);
        assert_eq!(new.len(), ETHERNET + 40 + 8 + ICMP_HEADER);
        assert_eq!(new[54..62], [58, 0, 0, 0, 0, 0, 0, 0]);
        let packet = Packet::parse(&new, ETHERNET).expect("a packet");
        assert_eq!(packet.tuple.protocol, protocol::ICMP6);
    }

    #[test]
    fn anything_else_is_cut_to_its_link_header() {
        let mapping = Anonymizer::new(&[7; super::super::KEY_BYTES]);
        let mut lldp = question();
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(frame(&mapping, &lldp).len(), ETHERNET);
        for length in 0..question().len() {
            // No length makes it fail.
            frame(&mapping, &question()[..length]);
        }
        assert!(frame(&mapping, &[0; 5]).is_empty());
    }
}
