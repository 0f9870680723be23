//! A decoded kernel event: owned, with names and types instead of bytes.
//!
//! Invariant: what the kernel side could not read is `None` here, never zero. Payload ends here: only
//! headers leave this module.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::LaxIpSlice;
use serde::{Deserialize, Serialize};
use tracer_ebpf::event as raw;
use tracer_ebpf::hook::HookId;

use crate::hook::{self, Role};

/// Something that happened to a packet at a hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Address of the `sk_buff`: the packet's identity while it lives.
    pub skb: u64,
    /// Inode number of the network namespace.
    pub netns: Option<u32>,
    /// Device that the packet is at, in that namespace.
    pub ifindex: Option<u32>,
    /// Bytes of the packet, as the skb counts them.
    pub length: Option<u32>,
    /// Firewall mark.
    pub mark: Option<u32>,
    /// Where.
    pub hook: HookId,
    /// What the hook adds.
    pub detail: Detail,
    /// Headers; `None` as well for what is not IP.
    pub packet: Option<Packet>,
    /// The headers were read, and are not IP's (ARP, for one).
    pub not_ip: bool,
}

/// What a hook adds to an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Detail {
    /// Nothing, or it could not be read.
    None,
    /// Netfilter hook entered.
    Netfilter(NetfilterHook),
    /// IPVS looked for this virtual server.
    Service {
        /// Virtual address and port.
        address: SocketAddr,
        /// IP protocol.
        protocol: u8,
    },
    /// IPVS chose this real server.
    Connection {
        /// Real server.
        real: SocketAddr,
        /// Low three bits of the connection flags.
        forwarding: u8,
    },
    /// A conntrack entry.
    Conntrack {
        /// As the first packet came.
        original: Tuple,
        /// As replies are expected.
        reply: Tuple,
        /// NAT of this packet changes its destination (else its source).
        destination_nat: bool,
        /// What the packet is to the entry (`enum ip_conntrack_info`), where the hook says it: 0
        /// established, 1 related, 2 new, 3 and 4 the same in the other direction.
        relation: Option<u8>,
        /// `IPS_*` bits, the low sixteen.
        status: u16,
        /// Zone; 0 is the one that everything is in unless told otherwise.
        zone: u16,
    },
    /// The packet's route.
    Route {
        /// `RTN_*`.
        kind: u16,
        /// errno that the route carries.
        error: u16,
        /// Device that it leads to.
        ifindex: Option<u32>,
    },
    /// The socket that takes the packet.
    Socket {
        /// TCP state number.
        state: u8,
        /// Local port.
        port: u16,
    },
    /// The accept queue of the listening socket that a request came to.
    Queue {
        /// Connections that wait to be accepted.
        waiting: u32,
        /// A request that finds more than this waiting is dropped.
        most: u32,
        /// Local port.
        port: u16,
    },
    /// ICMP error sent about the packet.
    Icmp {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
    /// The packet was freed as dropped.
    Drop {
        /// Return address in the function that dropped it.
        location: u64,
        /// Number in this kernel's `enum skb_drop_reason`.
        reason: Option<u32>,
    },
    /// The neighbour that the packet goes to.
    Neighbour {
        /// Its address.
        address: IpAddr,
        /// Device that it is behind.
        ifindex: u32,
    },
    /// The device that the packet is handed to.
    Device {
        /// Interface index.
        ifindex: u32,
    },
}

/// Netfilter hooks of the IP families.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NetfilterHook {
    /// Before routing.
    PreRouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    PostRouting,
    /// A hook of another family (bridge, ARP).
    Other,
}

impl NetfilterHook {
    const fn from_kernel(hook: raw::Netfilter) -> Self {
        match hook.family {
            2 | 10 => Self::from_number(hook.hook),
            _ => Self::Other,
        }
    }

    /// From the number of a hook of the IP families (`NF_INET_*`).
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::PreRouting,
            1 => Self::Input,
            2 => Self::Forward,
            3 => Self::Output,
            4 => Self::PostRouting,
            _ => Self::Other,
        }
    }

    /// The number that [`NetfilterHook::from_number`] takes.
    pub const fn number(self) -> u8 {
        match self {
            Self::PreRouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::PostRouting => 4,
            Self::Other => u8::MAX,
        }
    }

    /// The chain's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreRouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::PostRouting => "postrouting",
            Self::Other => "netfilter",
        }
    }
}

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

    /// Usual name of a protocol.
    pub fn name(number: u8) -> String {
        match number {
            ICMP => "icmp".into(),
            TCP => "tcp".into(),
            UDP => "udp".into(),
            SCTP => "sctp".into(),
            ICMP6 => "icmp6".into(),
            other => format!("protocol {other}"),
        }
    }
}

/// Headers of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Both ends.
    pub tuple: Tuple,
    /// IPv4 identification.
    pub ip_id: Option<u16>,
    /// What the transport header adds.
    pub transport: Transport,
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
    /// A fragment that is not the first: its transport header is in another packet.
    Fragment,
    /// Another protocol, or a header that was not captured.
    Other,
}

/// ICMPv6 types of neighbour discovery: solicitations, advertisements, redirect.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

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
            Transport::Icmp { .. } | Transport::Fragment | Transport::Other => false,
        }
    }

    /// It accepts a TCP connection, so that it is certainly an answer.
    pub const fn answers(&self) -> bool {
        const ACCEPTS: u8 = tcp_flag::SYN | tcp_flag::ACK;
        matches!(self.transport, Transport::Tcp { flags, .. } if flags & ACCEPTS == ACCEPTS)
    }

    /// Parses headers; `network` is where the network header begins.
    pub fn parse(bytes: &[u8], network: usize) -> Option<Self> {
        let (ip, _) = LaxIpSlice::from_slice(bytes.get(network..)?).ok()?;
        let (source, destination, ip_id, later_fragment) = match &ip {
            LaxIpSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    IpAddr::from(header.source_addr()),
                    IpAddr::from(header.destination_addr()),
                    Some(header.identification()),
                    header.fragments_offset().value() != 0,
                )
            }
            LaxIpSlice::Ipv6(ip) => (
                IpAddr::from(ip.header().source_addr()),
                IpAddr::from(ip.header().destination_addr()),
                None,
                false,
            ),
        };
        let payload = ip.payload();
        let ip_protocol = payload.ip_number.0;
        let (source_port, destination_port, transport) = if later_fragment {
            (0, 0, Transport::Fragment)
        } else {
            transport(ip_protocol, payload.payload)
        };
        Some(Self {
            tuple: Tuple {
                protocol: ip_protocol,
                source: SocketAddr::new(source, source_port),
                destination: SocketAddr::new(destination, destination_port),
            },
            ip_id,
            transport,
        })
    }

    /// True for a fragment of IPv4 that is not the first.
    pub const fn is_later_fragment(&self) -> bool {
        matches!(self.transport, Transport::Fragment)
    }

    /// True when both are fragments of one IPv4 packet, or one is the packet itself: RFC 791 tells
    /// fragments by addresses, protocol and identification.
    pub fn shares_fragments_with(&self, other: &Self) -> bool {
        let key = |packet: &Self| {
            let Tuple {
                protocol,
                source,
                destination,
            } = packet.tuple;
            Some((packet.ip_id?, protocol, source.ip(), destination.ip()))
        };
        key(self).is_some() && key(self) == key(other)
    }

    /// True when `other` can be the same packet after NAT: addresses and ports may differ, what NAT
    /// leaves alone may not.
    pub fn may_be(&self, other: &Self) -> bool {
        if self.tuple.protocol != other.tuple.protocol || self.ip_id != other.ip_id {
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
            // Put together again, the packet goes on as the fragment that came last.
            (Transport::Fragment, _) | (_, Transport::Fragment) => self.ip_id.is_some(),
            (one, two) => std::mem::discriminant(&one) == std::mem::discriminant(&two),
        }
    }
}

/// Ports and what else the transport header says. The header may be cut behind what is read here (TCP
/// options are not kept), which the parsers of whole headers refuse.
fn transport(number: u8, header: &[u8]) -> (u16, u16, Transport) {
    let word = |at: usize| Some(u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?]));
    let parsed = match number {
        protocol::TCP => (|| {
            let sequence = u32::from(word(4)?) << 16 | u32::from(word(6)?);
            Some((
                word(0)?,
                word(2)?,
                Transport::Tcp {
                    sequence,
                    flags: *header.get(13)?,
                },
            ))
        })(),
        protocol::UDP => word(0)
            .zip(word(2))
            .map(|(source, destination)| (source, destination, Transport::Udp)),
        protocol::ICMP | protocol::ICMP6 => header
            .first()
            .zip(header.get(1))
            .map(|(&kind, &code)| (0, 0, Transport::Icmp { kind, code })),
        _ => None,
    };
    parsed.unwrap_or((0, 0, Transport::Other))
}

impl Event {
    /// What it means to be seen at this hook.
    pub const fn role(&self) -> Role {
        hook::of(self.hook).role
    }

    /// Decodes what the programs wrote; `None` when the hook number is unknown.
    pub fn decode(event: &raw::Event) -> Option<Self> {
        let has = |bit| event.valid & bit != 0;
        let hook = HookId::from_number(event.hook)?;
        let length = usize::from(event.packet_len).min(event.packet.len());
        let packet = (has(raw::valid::PACKET))
            .then(|| Packet::parse(&event.packet[..length], usize::from(event.network_offset)))
            .flatten();
        let detail = if has(raw::valid::DETAIL) {
            Detail::decode(hook, event)
        } else {
            Detail::None
        };
        Some(Self {
            time_ns: event.time_ns,
            skb: event.skb,
            netns: has(raw::valid::NETNS).then_some(event.netns),
            ifindex: has(raw::valid::IFINDEX).then_some(event.ifindex),
            length: has(raw::valid::SKB).then_some(event.length),
            mark: has(raw::valid::SKB).then_some(event.mark),
            hook,
            detail,
            not_ip: has(raw::valid::PACKET) && packet.is_none(),
            packet,
        })
    }
}

const ETHERTYPE_IPV6: u16 = 0x86dd;
const AF_INET: u16 = libc::AF_INET as u16;

fn address(bytes: &[u8; 16], family: u16) -> IpAddr {
    if family == AF_INET {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(*bytes))
    }
}

fn endpoint(bytes: &[u8; 16], port: u16, family: u16) -> SocketAddr {
    SocketAddr::new(address(bytes, family), u16::from_be(port))
}

impl Detail {
    fn decode(hook: HookId, event: &raw::Event) -> Self {
        let detail = &event.detail;
        // SAFETY: the programs write the member that belongs to the hook, every member is plain data
        // of integers, and the whole region is zeroed before.
        unsafe {
            match hook {
                HookId::NetfilterHook => {
                    Self::Netfilter(NetfilterHook::from_kernel(detail.netfilter))
                }
                HookId::IpvsServiceFind => {
                    let service = detail.service;
                    Self::Service {
                        address: endpoint(&service.address, service.port, service.family),
                        protocol: service.protocol as u8,
                    }
                }
                HookId::IpvsConnectionNew => {
                    let connection = detail.connection;
                    Self::Connection {
                        real: endpoint(&connection.real, connection.real_port, connection.family),
                        forwarding: (connection.flags & 7) as u8,
                    }
                }
                HookId::ConntrackConfirm
                | HookId::ConntrackTcp
                | HookId::ConntrackUdp
                | HookId::ConntrackIcmp
                | HookId::ConntrackDelete
                | HookId::Nat => {
                    let raw::Conntrack { original, reply } = detail.conntrack;
                    let protocol = original.protocol_or_manipulation;
                    let family = original.family_or_status & 0xff;
                    let tuple = |tuple: raw::Tuple| Tuple {
                        protocol,
                        source: endpoint(&tuple.source, tuple.source_port, family),
                        destination: endpoint(&tuple.destination, tuple.destination_port, family),
                    };
                    Self::Conntrack {
                        original: tuple(original),
                        reply: tuple(reply),
                        destination_nat: reply.protocol_or_manipulation == 1,
                        relation: matches!(
                            hook,
                            HookId::ConntrackTcp | HookId::ConntrackUdp | HookId::ConntrackIcmp
                        )
                        .then_some(reply.direction),
                        status: reply.family_or_status,
                        zone: original.family_or_status & 0xff00 | u16::from(original.direction),
                    }
                }
                HookId::LocalDeliver
                | HookId::Forward
                | HookId::RouteError
                | HookId::LocalOut
                | HookId::Output
                | HookId::OutputFinish
                | HookId::Fragment => {
                    let route = detail.route;
                    Self::Route {
                        kind: route.kind,
                        error: route.error,
                        ifindex: (route.ifindex != 0).then_some(route.ifindex),
                    }
                }
                HookId::TcpDeliver
                | HookId::UdpDeliver
                | HookId::Tcp6Deliver
                | HookId::Udp6Deliver => Self::Socket {
                    state: detail.socket.state,
                    port: detail.socket.port,
                },
                HookId::TcpRequest => Self::Queue {
                    waiting: detail.queue.waiting,
                    most: detail.queue.most,
                    port: detail.queue.port,
                },
                HookId::NeighbourQueue | HookId::NeighbourFailed | HookId::Neighbour6Failed => {
                    let ipv6 = event.protocol == ETHERTYPE_IPV6.to_be();
                    let family = if ipv6 { libc::AF_INET6 as u16 } else { AF_INET };
                    Self::Neighbour {
                        address: address(&detail.neighbour.address, family),
                        ifindex: detail.neighbour.ifindex,
                    }
                }
                HookId::IcmpSend | HookId::Icmp6Send => Self::Icmp {
                    kind: detail.icmp.kind,
                    code: detail.icmp.code,
                },
                HookId::Drop => Self::Drop {
                    location: detail.drop.location,
                    reason: (detail.drop.reason != u32::MAX).then_some(detail.drop.reason),
                },
                HookId::DeviceTransmit
                | HookId::VxlanTransmit
                | HookId::VethTransmit
                | HookId::BridgeForward
                | HookId::BridgeTransmit => Self::Device {
                    ifindex: detail.device.ifindex,
                },
                _ => Self::None,
            }
        }
    }
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
        assert_eq!(
            packet.transport,
            Transport::Tcp {
                sequence: 0x1557_8af4,
                flags: tcp_flag::SYN
            }
        );
        assert_eq!(packet.ip_id, Some(0x645e));
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

    #[test]
    fn any_bytes_are_survived() {
        for length in 0..=72 {
            for fill in [0u8, 0x45, 0x60, 0xff] {
                let bytes = vec![fill; length];
                for network in [0, 14, 80] {
                    let _ = Packet::parse(&bytes, network);
                }
            }
        }
    }
}
