//! A packet's headers: both ends, and what identifies it.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv6Extensions, LaxIpSlice};
use serde::{Deserialize, Serialize};
use tracer_ebpf::header::quotes;

/// Transport protocol and both ends of a packet or connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Tuple {
    /// IP protocol number.
    pub protocol: u8,
    /// Source; port 0 where the protocol has none.
    pub source: SocketAddr,
    /// Destination; port 0 where the protocol has none.
    pub destination: SocketAddr,
}

impl Tuple {
    /// The other direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
        }
    }
}

/// IP protocol numbers in use.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// ARP, which has no number of IP's; this one is reserved.
    pub const ARP: u8 = 255;

    /// ICMP of either family, which has no ports.
    pub const fn is_icmp(number: u8) -> bool {
        matches!(number, ICMP | ICMP6)
    }

    /// Usual name of a protocol.
    pub fn name(number: u8) -> String {
        match number {
            ICMP => "icmp".into(),
            TCP => "tcp".into(),
            UDP => "udp".into(),
            SCTP => "sctp".into(),
            ICMP6 => "icmp6".into(),
            ARP => "arp".into(),
            other => format!("protocol {other}"),
        }
    }
}

/// Headers of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Both ends.
    pub tuple: Tuple,
    /// The protocol that the network header names, or IPv6's fragment header right behind it: another than
    /// the tuple's where more headers are between. Filters look no further, as tcpdump does.
    pub named_protocol: u8,
    /// IPv4's identification, or that of IPv6's fragment header.
    pub ip_id: Option<u32>,
    /// What the transport header adds.
    pub transport: Transport,
    /// The packet that an ICMP error quotes, because it did not arrive.
    pub about: Option<Quoted>,
}

/// The packet that an ICMP error quotes; its source is where the error goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// IP protocol number.
    pub protocol: u8,
    /// Port at the source; 0 where the protocol has none.
    pub source_port: u16,
    /// Where it was sent.
    pub destination: IpAddr,
    /// Port at the destination; 0 where the protocol has none.
    pub destination_port: u16,
}

impl Quoted {
    /// The quote of a packet, in an error that goes to its source.
    pub(crate) const fn of(packet: Tuple) -> Self {
        Self {
            protocol: packet.protocol,
            source_port: packet.source.port(),
            destination: packet.destination.ip(),
            destination_port: packet.destination.port(),
        }
    }
}

/// What the transport header adds to the tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Sequence number.
        sequence: u32,
        /// Flags byte: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
        flags: u8,
        /// Bytes of data, by the lengths that the headers give.
        data: u16,
    },
    /// UDP.
    Udp,
    /// ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// ARP, which is no IP: from its sender to its target.
    Arp {
        /// It answers; else it asks.
        reply: bool,
    },
    /// A fragment that is not the first: its transport header is in another packet.
    Fragment {
        /// Where it begins in the whole, in units of eight bytes.
        offset: u16,
    },
    /// Another protocol, or a header that was not captured.
    Other,
}

impl Transport {
    /// A TCP segment without data.
    pub const fn tcp(sequence: u32, flags: u8) -> Self {
        Self::Tcp {
            sequence,
            flags,
            data: 0,
        }
    }
}

/// ICMPv6 types of neighbour discovery: solicitations, advertisements, redirect.
pub(super) const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Protocol and type of ICMP's redirect, which quotes a packet that goes on all the same.
const REDIRECT: (u8, u8) = (protocol::ICMP, 5);
/// Bytes of an ICMP error before the packet that it quotes.
const ICMP_HEADER: usize = 8;

/// TCP flag bits.
pub mod tcp_flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// First packet of a connection.
    pub const SYN: u8 = 2;
    /// Connection refused or gone.
    pub const RST: u8 = 4;
    /// Data is to be handed over.
    pub const PSH: u8 = 8;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
}

impl Packet {
    /// It asks for something: it opens a TCP connection, or belongs to UDP, which has none.
    pub fn opens(&self) -> bool {
        match self.transport {
            Transport::Tcp { flags, .. } => {
                flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
            }
            Transport::Udp => true,
            Transport::Icmp { .. }
            | Transport::Arp { .. }
            | Transport::Fragment { .. }
            | Transport::Other => false,
        }
    }

    /// It ends a TCP connection at once, or refuses it.
    pub const fn resets(&self) -> bool {
        matches!(self.transport, Transport::Tcp { flags, .. } if flags & tcp_flag::RST != 0)
    }

    /// It accepts a TCP connection, so that it is certainly an answer.
    pub const fn answers(&self) -> bool {
        const ACCEPTS: u8 = tcp_flag::SYN | tcp_flag::ACK;
        matches!(self.transport, Transport::Tcp { flags, .. } if flags & ACCEPTS == ACCEPTS)
    }

    /// It refuses a TCP connection: RST with the number that answers a SYN (RFC 9293, 3.10.7.1).
    pub const fn refuses_opening(&self) -> bool {
        const REFUSES: u8 = tcp_flag::RST | tcp_flag::ACK;
        matches!(self.transport, Transport::Tcp { sequence: 0, flags, .. } if flags & REFUSES == REFUSES)
    }

    /// Both ends as an answer has them: an ICMP error answers the packet that it quotes.
    pub fn as_answer(&self) -> Tuple {
        self.quoted().map_or(self.tuple, Tuple::reversed)
    }

    /// Both ends of the packet that an ICMP error quotes.
    pub fn quoted(&self) -> Option<Tuple> {
        let about = self.about?;
        Some(Tuple {
            protocol: about.protocol,
            source: SocketAddr::new(self.tuple.destination.ip(), about.source_port),
            destination: SocketAddr::new(about.destination, about.destination_port),
        })
    }

    /// Parses headers; `network` is where the network header begins.
    pub fn parse(bytes: &[u8], network: usize) -> Option<Self> {
        Self::parse_ip(bytes.get(network..)?, true)
    }

    /// Parses headers that begin with IP's. A packet that is quoted quotes none itself.
    fn parse_ip(bytes: &[u8], may_quote: bool) -> Option<Self> {
        let (ip, _) = LaxIpSlice::from_slice(bytes).ok()?;
        let (named_protocol, source, destination, ip_id, offset, length) = match &ip {
            LaxIpSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    header.protocol().0,
                    IpAddr::from(header.source_addr()),
                    IpAddr::from(header.destination_addr()),
                    Some(u32::from(header.identification())),
                    header.fragments_offset().value(),
                    usize::from(header.total_len()).saturating_sub(header.slice().len()),
                )
            }
            LaxIpSlice::Ipv6(ip) => {
                // Not its iterator, which reads on where the lax parser stopped at a header that is cut.
                let extensions = ip.extensions();
                let fragment = extensions.first_header().and_then(|first| {
                    Ipv6Extensions::from_slice_lax(first, extensions.slice())
                        .0
                        .fragment
                });
                let named = ip.header().next_header();
                let fragment_first = fragment
                    .as_ref()
                    .filter(|_| named == IpNumber::IPV6_FRAGMENTATION_HEADER);
                (
                    fragment_first
                        .map_or(named, |fragment| fragment.next_header)
                        .0,
                    IpAddr::from(ip.header().source_addr()),
                    IpAddr::from(ip.header().destination_addr()),
                    fragment.as_ref().map(|fragment| fragment.identification),
                    fragment.map_or(0, |fragment| fragment.fragment_offset.value()),
                    usize::from(ip.header().payload_length())
                        .saturating_sub(extensions.slice().len()),
                )
            }
        };
        let payload = ip.payload();
        let ip_protocol = payload.ip_number.0;
        let (source_port, destination_port, transport) = if offset == 0 {
            transport(ip_protocol, payload.payload, length)
        } else {
            (0, 0, Transport::Fragment { offset })
        };
        let about = match transport {
            Transport::Icmp { kind, .. } if may_quote && quotes(ip_protocol, kind) => {
                quote(ip_protocol, kind, payload.payload, destination)
            }
            _ => None,
        };
        Some(Self {
            tuple: Tuple {
                protocol: ip_protocol,
                source: SocketAddr::new(source, source_port),
                destination: SocketAddr::new(destination, destination_port),
            },
            named_protocol,
            ip_id,
            transport,
            about,
        })
    }

    /// Where this fragment begins in the whole, in units of eight bytes; 0 for a whole packet.
    pub const fn fragment_offset(&self) -> u16 {
        match self.transport {
            Transport::Fragment { offset } => offset,
            _ => 0,
        }
    }

    /// True for a fragment that is not the first.
    pub const fn is_later_fragment(&self) -> bool {
        matches!(self.transport, Transport::Fragment { .. })
    }

    /// True when both are fragments of one packet, or one can be the packet itself: addresses, protocol
    /// and identification tell fragments (RFC 791, RFC 8200). IPv6 has an identification in fragments only.
    pub fn shares_fragments_with(&self, other: &Self) -> bool {
        let ends = |packet: &Self| {
            let Tuple {
                protocol,
                source,
                destination,
            } = packet.tuple;
            (protocol, source.ip(), destination.ip())
        };
        let same = match (self.ip_id, other.ip_id) {
            (Some(one), Some(two)) => one == two,
            (one, two) => one.is_some() || two.is_some(),
        };
        same && ends(self) == ends(other)
    }

    /// True when `other` can be the same packet after NAT: addresses and ports may differ, what NAT
    /// leaves alone may not.
    pub fn may_be(&self, other: &Self) -> bool {
        let (one, two) = (&self.tuple, &other.tuple);
        if one.protocol != two.protocol || one.source.is_ipv4() != two.source.is_ipv4() {
            return false;
        }
        // Nothing is translated while IPv6 cuts a packet or puts it together.
        if self.ip_id != other.ip_id && !self.shares_fragments_with(other) {
            return false;
        }
        match (self.transport, other.transport) {
            (Transport::Tcp { sequence: one, .. }, Transport::Tcp { sequence: two, .. }) => {
                one == two
            }
            // NAT leaves type and code alone, and does not touch neighbour discovery (RFC 4861), which has
            // no number that would tell one packet from the next.
            (Transport::Icmp { kind, .. }, Transport::Icmp { .. }) => {
                let discovery = self.tuple.protocol == protocol::ICMP6 && DISCOVERY.contains(&kind);
                self.transport == other.transport && (!discovery || self.tuple == other.tuple)
            }
            // No NAT.
            (Transport::Arp { .. }, _) => self == other,
            (Transport::Fragment { offset: one }, Transport::Fragment { offset: two }) => {
                one == two
            }
            // Put together again, the packet goes on as the fragment that came last.
            (Transport::Fragment { .. }, _) => true,
            // Another fragment, in an skb that was freed meanwhile.
            (_, Transport::Fragment { .. }) => false,
            (one, two) => std::mem::discriminant(&one) == std::mem::discriminant(&two),
        }
    }
}

/// Ports and what else the transport header says; `length` is what IP says of both it and the data. The header may
/// be cut behind what is read here (TCP options are not kept), which the parsers of whole headers refuse.
fn transport(number: u8, header: &[u8], length: usize) -> (u16, u16, Transport) {
    let word = |at: usize| Some(u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?]));
    let with_ports = |transport| {
        let (source, destination) = word(0).zip(word(2))?;
        Some((source, destination, transport))
    };
    let tcp = || {
        let words = usize::from(*header.get(12)? >> 4);
        Some(Transport::Tcp {
            sequence: u32::from(word(4)?) << 16 | u32::from(word(6)?),
            flags: *header.get(13)?,
            data: length.saturating_sub(4 * words) as u16,
        })
    };
    let parsed = match number {
        // Routers may quote no more of it than ports and sequence number (RFC 792).
        protocol::TCP => with_ports(tcp().unwrap_or(Transport::Other)),
        protocol::UDP => with_ports(Transport::Udp),
        protocol::SCTP => with_ports(Transport::Other),
        protocol::ICMP | protocol::ICMP6 => header
            .first()
            .zip(header.get(1))
            .map(|(&kind, &code)| (0, 0, Transport::Icmp { kind, code })),
        _ => None,
    };
    parsed.unwrap_or((0, 0, Transport::Other))
}

/// What an ICMP error to `goes_to` quotes; none in a redirect, whose packet went on.
fn quote(protocol: u8, kind: u8, error: &[u8], goes_to: IpAddr) -> Option<Quoted> {
    if (protocol, kind) == REDIRECT {
        return None;
    }
    let tuple = Packet::parse_ip(error.get(ICMP_HEADER..)?, false)?.tuple;
    (tuple.source.ip() == goes_to).then(|| Quoted::of(tuple))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_behind_a_link_header() {
        let mut bytes = vec![0u8; 14];
        bytes.extend([
            0x45, 0, 0, 60, 0x64, 0x5e, 0x40, 0, 64, 6, 0, 0, 192, 168, 3, 10, 192, 168, 3, 187,
        ]);
        // The header's length says 40 bytes; its options are cut.
        bytes.extend([
            0x8e, 0x1c, 0x75, 0x30, 0x15, 0x57, 0x8a, 0xf4, 0, 0, 0, 0, 0xa0, 2, 0, 0, 0, 0,
        ]);
        let packet = Packet::parse(&bytes, 14).expect("a packet");
        assert_eq!(
            packet.tuple.destination,
            "192.168.3.187:30000".parse().expect("an address")
        );
        assert_eq!(packet.transport, Transport::tcp(0x1557_8af4, tcp_flag::SYN));
        assert_eq!(packet.ip_id, Some(0x645e));
    }

    #[test]
    fn data_is_what_lengths_leave_though_it_was_not_kept() {
        let tcp = |words: u8| {
            [
                0x8e,
                0x1c,
                0x75,
                0x30,
                0,
                0,
                0,
                9,
                0,
                0,
                0,
                0,
                words << 4,
                0x10,
                0,
                0,
                0,
                0,
                0,
                0,
            ]
        };
        let data = |ip: &[u8], words| match Packet::parse(&[ip, &tcp(words)].concat(), 0) {
            Some(Packet {
                transport: Transport::Tcp { data, .. },
                ..
            }) => Some(data),
            _ => None,
        };
        let [high, low] = 1452_u16.to_be_bytes();
        let ipv4 = [
            0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        let mut ipv6 = [0; 40];
        (ipv6[0], ipv6[5], ipv6[6]) = (0x60, 25, 6);
        for (ip, words, expected) in [
            (&ipv4[..], 8, 1400),
            (&ipv4, 5, 1412),
            (&ipv6, 5, 5),
            // Its options are longer than all of it: no header is wrong enough to stop the parser.
            (&ipv6, 15, 0),
        ] {
            assert_eq!(data(ip, words), Some(expected), "{words} words");
        }
    }

    /// An ICMP message about a UDP or TCP packet from 10.0.0.1:1000 to 10.0.0.2:53.
    fn icmp(kind: u8, protocol: u8) -> Packet {
        let mut bytes = vec![
            0x45, 0, 0, 56, 0, 1, 0, 0, 64, 1, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1,
        ];
        bytes.extend([kind, 3, 0, 0, 0, 0, 0, 0]);
        bytes.extend([
            0x45, 0, 0, 60, 0, 2, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        bytes.extend([3, 0xe8, 0, 53, 1, 2, 3, 4]);
        Packet::parse(&bytes, 0).expect("a packet")
    }

    #[test]
    fn an_icmp_error_answers_what_it_quotes() {
        for protocol in [protocol::UDP, protocol::TCP] {
            let answer = icmp(3, protocol).as_answer();
            assert_eq!(answer.protocol, protocol);
            assert_eq!(answer.source, "10.0.0.2:53".parse().expect("an address"));
            assert_eq!(
                answer.destination,
                "10.0.0.1:1000".parse().expect("an address")
            );
        }
        // A redirect, and an echo whose data looks like a packet.
        for kind in [5, 8] {
            let packet = icmp(kind, protocol::UDP);
            assert_eq!((packet.as_answer(), packet.about), (packet.tuple, None));
        }
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut bytes = vec![
            0x45, 0, 0, 40, 0x64, 0x5e, 0, 0xb9, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
        ];
        bytes.extend([0xab; 20]);
        let packet = Packet::parse(&bytes, 0).expect("a packet");
        assert!(packet.is_later_fragment());
        assert_eq!(packet.tuple.source.port(), 0);
        let mut first = packet.clone();
        first.transport = Transport::Udp;
        first.tuple.source.set_port(1000);
        assert!(packet.shares_fragments_with(&first) && packet.may_be(&first));
        first.ip_id = Some(1);
        assert!(!packet.shares_fragments_with(&first));
    }

    /// An IPv6 packet between two documentation addresses.
    fn ipv6(next_header: u8, payload: &[u8]) -> Packet {
        let length = u8::try_from(payload.len()).expect("a short payload");
        let mut bytes = vec![0x60, 0, 0, 0, 0, length, next_header, 64];
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        bytes.extend(payload);
        Packet::parse(&bytes, 0).expect("a packet")
    }

    /// A UDP fragment over IPv6: bytes before it, whether more follow, identification.
    fn fragment6(offset: u16, more: bool, id: u32) -> Packet {
        let mut bytes = vec![protocol::UDP, 0];
        bytes.extend((offset | u16::from(more)).to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend([3, 0xe8, 0, 53, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        ipv6(44, &bytes)
    }

    #[test]
    fn ipv6_extension_headers_may_be_cut() {
        // Destination options, then what should be more of them, or a fragment header.
        for next_header in [60, 44] {
            for rest in [&[][..], &[17, 0, 0]] {
                let packet = ipv6(60, &[&[next_header, 0, 1, 4, 0, 0, 0, 0], rest].concat());
                assert_eq!(packet.tuple.protocol, next_header);
                assert_eq!((packet.ip_id, packet.transport), (None, Transport::Other));
            }
        }
    }

    #[test]
    fn ipv6_fragments_are_told_by_their_header() {
        let (first, later) = (fragment6(0, true, 70_000), fragment6(1232, false, 70_000));
        assert_eq!(first.ip_id, Some(70_000));
        assert!(!first.is_later_fragment() && first.tuple.source.port() == 1000);
        assert!(later.is_later_fragment() && later.tuple.source.port() == 0);
        assert_eq!(later.tuple.protocol, protocol::UDP);
        assert!(first.shares_fragments_with(&later) && later.may_be(&first));
        assert!(!first.may_be(&later), "another piece");
        let other = fragment6(1232, false, 70_001);
        assert!(!first.shares_fragments_with(&other) && !first.may_be(&other));
        // The whole packet has no identification.
        let mut whole = first.clone();
        whole.ip_id = None;
        for piece in [&first, &later] {
            assert!(whole.shares_fragments_with(piece) && piece.may_be(&whole));
        }
        assert!(whole.may_be(&first) && !whole.may_be(&later));
        assert!(!whole.shares_fragments_with(&whole) && whole.may_be(&whole));
        whole.tuple.destination = "[2001:db8::3]:53".parse().expect("an address");
        assert!(!whole.may_be(&later) && !whole.shares_fragments_with(&later));
    }

    #[test]
    fn sctp_has_ports() {
        let mut bytes = vec![
            0x45, 0, 0, 40, 0, 7, 0, 0, 64, 132, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
        ];
        bytes.extend([0x9c, 0x40, 0x0f, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0]);
        let packet = Packet::parse(&bytes, 0).expect("a packet");
        let ports = [packet.tuple.source, packet.tuple.destination].map(|end| end.port());
        assert_eq!(ports, [40_000, 3868]);
    }

    #[test]
    fn headers_between_are_told_from_the_protocol_behind_them() {
        let ports = [3, 0xe8, 0, 53, 0, 16, 0, 0];
        for (first, between, named) in [
            (60, vec![protocol::UDP, 0, 1, 4, 0, 0, 0, 0], 60),
            (44, vec![protocol::UDP, 0, 0, 1, 0, 0, 0, 7], protocol::UDP),
            (protocol::UDP, vec![], protocol::UDP),
        ] {
            let packet = ipv6(first, &[&between[..], &ports].concat());
            assert_eq!(packet.named_protocol, named, "{first}");
            assert_eq!(packet.tuple.protocol, protocol::UDP, "{first}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        for length in 0..=72 {
            for fill in [0u8, 0x2c, 0x45, 0x60, 0xff] {
                let bytes = vec![fill; length];
                for network in [0, 14, 80] {
                    let _ = Packet::parse(&bytes, network);
                }
            }
        }
    }
}
