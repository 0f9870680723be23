//! Where the headers of a packet are, and where they end: everything behind them is payload.

use std::ops::Range;

use tracer_ebpf::header::quotes;

use super::packet::{DISCOVERY, protocol};

const IP4_HEADER: usize = 20;
const IP6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const SCTP_HEADER: usize = 12;
const DNS_HEADER: usize = 12;
const DNS_PORT: u16 = 53;
/// Type and class of a question.
const DNS_ASKED: usize = 4;
/// Bits of IPv4's fragment field that say where the fragment begins.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6 extension headers that may come before the transport header.
pub mod extension {
    /// Options for every hop.
    pub const HOP_BY_HOP: u8 = 0;
    /// Nodes to go through.
    pub const ROUTING: u8 = 43;
    /// A part of a packet.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Options for the destination.
    pub const DESTINATION: u8 = 60;
}

/// The network headers of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Where they end, IPv6's extension headers included.
    pub length: usize,
    /// Protocol whose header follows; `None` for a fragment that is not the first, and where the headers
    /// are cut.
    pub transport: Option<u8>,
    /// Number and place of each extension header; the last may be cut.
    pub extensions: Vec<(u8, Range<usize>)>,
}

impl Network {
    /// Reads an IP packet; `None` for what is none, or cut within its fixed header.
    pub fn of(ip: &[u8]) -> Option<Self> {
        match ip.first()? >> 4 {
            4 => Self::of_ip4(ip),
            6 => Self::of_ip6(ip),
            _ => None,
        }
    }

    fn of_ip4(ip: &[u8]) -> Option<Self> {
        let length = usize::from(ip[0] & 15) * 4;
        if length < IP4_HEADER || ip.len() < length {
            return None;
        }
        let first = word(ip, 6)? & FRAGMENT_OFFSET == 0;
        Some(Self {
            length,
            transport: first.then_some(ip[9]),
            extensions: Vec::new(),
        })
    }

    fn of_ip6(ip: &[u8]) -> Option<Self> {
        if ip.len() < IP6_HEADER {
            return None;
        }
        let mut network = Self {
            length: IP6_HEADER,
            transport: None,
            extensions: Vec::new(),
        };
        let mut number = ip[6];
        loop {
            let begin = network.length;
            let unit = |more: usize, bytes: usize| {
                let count = ip.get(begin + 1).map(|&count| usize::from(count));
                count.map_or(usize::MAX, |count| (count + more) * bytes)
            };
            let length = match number {
                extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => unit(1, 8),
                extension::FRAGMENT => 8,
                extension::AUTHENTICATION => unit(2, 4),
                _ => {
                    network.transport = Some(number);
                    return Some(network);
                }
            };
            let end = begin.saturating_add(length).min(ip.len());
            network.extensions.push((number, begin..end));
            network.length = end;
            let cut = end - begin < length;
            let later = || word(ip, begin + 2).is_some_and(|word| word >> 3 != 0);
            if cut || number == extension::FRAGMENT && later() {
                return Some(network);
            }
            number = ip[begin];
        }
    }
}

/// Length of an IP packet's headers as far as they may be there: network and transport, the question of
/// DNS, what neighbour discovery says, and the headers that an ICMP error quotes. `None` for what is no IP.
pub fn header_length(ip: &[u8]) -> Option<usize> {
    let network = Network::of(ip)?;
    let behind = &ip[network.length..];
    let transport = network
        .transport
        .map_or(0, |number| transport_length(number, behind));
    Some(network.length + transport)
}

fn transport_length(number: u8, bytes: &[u8]) -> usize {
    match number {
        protocol::TCP => bytes
            .get(12)
            .map_or(0, |offset| usize::from(offset >> 4) * 4)
            .max(TCP_HEADER),
        protocol::UDP => {
            let dns = [0, 2].iter().any(|&at| word(bytes, at) == Some(DNS_PORT));
            let behind = bytes.get(UDP_HEADER..).filter(|_| dns);
            UDP_HEADER + behind.map_or(0, question_length)
        }
        protocol::ICMP | protocol::ICMP6 => {
            let kind = bytes.first().copied().unwrap_or_default();
            if number == protocol::ICMP6 && DISCOVERY.contains(&kind) {
                return bytes.len();
            }
            let quoted = bytes
                .get(ICMP_HEADER..)
                .filter(|_| quotes(number, kind))
                .and_then(header_length);
            ICMP_HEADER + quoted.unwrap_or(0)
        }
        protocol::SCTP => SCTP_HEADER,
        // The inside of a tunnel, and what no parser here knows.
        _ => 0,
    }
}

/// Length of the header and the first question of DNS.
fn question_length(dns: &[u8]) -> usize {
    let mut at = DNS_HEADER;
    if word(dns, 4).is_none_or(|questions| questions == 0) {
        return at;
    }
    loop {
        match dns.get(at) {
            Some(0) => return at + 1 + DNS_ASKED,
            Some(&label) if label < 64 => at += 1 + usize::from(label),
            // No name in a question is shortened: this is no DNS.
            Some(_) => return DNS_HEADER,
            // It is longer than what is there.
            None => return at,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip4(number: u8, behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, number, 0, 0];
        bytes.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        bytes.extend(behind);
        bytes
    }

    fn ip6(number: u8, behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IP6_HEADER];
        (bytes[0], bytes[6]) = (0x60, number);
        bytes.extend(behind);
        bytes
    }

    #[test]
    fn extension_headers_come_before_the_transport_header() {
        let udp = [0x9c, 0x40, 0x75, 0x30, 0, 20, 0, 0, b'p', b'a', b'y'];
        let fragment = |offset| [&[17, 0, 0, offset, 0, 0, 0, 9][..], &udp].concat();
        let first = ip6(44, &fragment(1));
        assert_eq!(header_length(&first), Some(40 + 8 + 8));
        // A later one holds payload alone.
        let later = ip6(44, &fragment(8));
        assert_eq!(header_length(&later), Some(40 + 8));
        let mut options = vec![44, 1];
        options.extend([0; 14]);
        options.extend(fragment(0));
        let all = ip6(0, &options);
        assert_eq!(header_length(&all), Some(40 + 16 + 8 + 8));
        let network = Network::of(&all).expect("a packet");
        assert_eq!(network.extensions, [(0, 40..56), (44, 56..64)]);
        assert_eq!(network.transport, Some(17));
        // What says no end is no payload.
        for cut in 41..56 {
            assert_eq!(header_length(&all[..cut]), Some(cut));
        }
    }

    #[test]
    fn tcp_has_its_options_and_a_later_fragment_no_header() {
        let mut tcp = vec![0; 40];
        tcp[12] = 0x80;
        let whole = ip4(6, &tcp);
        assert_eq!(header_length(&whole), Some(20 + 32));
        let mut later = whole.clone();
        later[7] = 4;
        assert_eq!(header_length(&later), Some(20));
        tcp[12] = 0;
        assert_eq!(header_length(&ip4(6, &tcp)), Some(20 + 20));
    }

    #[test]
    fn an_error_of_icmp_quotes_headers_and_an_echo_holds_payload() {
        let quoted = ip4(17, &[0x9c, 0x40, 0x75, 0x30, 0, 20, 0, 0, b's', b'e', b'c']);
        for (kind, length) in [(3, 20 + 8 + 28), (8, 20 + 8), (0, 20 + 8), (13, 20 + 8)] {
            let icmp = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
            assert_eq!(header_length(&ip4(1, &icmp)), Some(length), "type {kind}");
        }
        let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 16]].concat();
        for (kind, length) in [(135, 40 + 24), (128, 40 + 8), (1, 40 + 8)] {
            let mut icmp = solicitation.clone();
            icmp[0] = kind;
            assert_eq!(header_length(&ip6(58, &icmp)), Some(length), "type {kind}");
        }
    }

    #[test]
    fn dns_is_kept_up_to_its_question() {
        let mut dns = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        dns.extend(b"\x03www\x02kb\x00\x00\x01\x00\x01");
        let asked = dns.len();
        dns.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x0a\x00\x00\x01");
        let datagram = |port: u8, dns: &[u8]| {
            let udp = [&[0, port, 0x9c, 0x40, 0, 0, 0, 0][..], dns].concat();
            header_length(&ip4(17, &udp)).expect("a packet")
        };
        assert_eq!(datagram(53, &dns), 28 + asked);
        assert_eq!(datagram(54, &dns), 28);
        // A question that is cut is kept as far as it is there.
        assert!(datagram(53, &dns[..15]) >= 28 + 15);
        // No question, and no DNS.
        dns[5] = 0;
        assert_eq!(datagram(53, &dns), 28 + 12);
        assert_eq!(datagram(53, &[0xff; 40]), 28 + 12);
    }
}
