//! A decoded kernel event: owned, with names and types instead of bytes.
//!
//! Invariant: what the kernel side could not read is `None` here, never zero. Payload ends here: only
//! headers leave this module.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tracer_ebpf::event as raw;
use tracer_ebpf::hook::HookId;

use crate::hook::{self, Role};

mod arp;
mod decoder;
pub mod icmp;
pub mod layout;
mod netfilter_hook;
mod packet;

pub use arp::Arp;
pub use decoder::Decoder;
pub use netfilter_hook::NetfilterHook;
pub use packet::{Packet, Quoted, Transport, Tuple, protocol, tcp_flag};

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
    /// The headers were read, and are not IP's.
    pub not_ip: bool,
    /// What they are where they are ARP's, until it is followed as a packet ([`Event::follow_arp`]).
    pub arp: Option<Arp>,
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
    /// IPVS sends the packet by a connection.
    Sent {
        /// Real server.
        real: SocketAddr,
        /// Low three bits of the connection flags.
        forwarding: u8,
        /// IP protocol.
        protocol: u8,
        /// State as the protocol numbers it (`IP_VS_TCP_S_*`).
        state: u16,
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
        /// `RTN_*`; 0 for IPv6, whose routes do not say it.
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
        /// Number in this kernel's `enum skb_drop_reason`, or [`ANOTHER_HOSTS_FRAME`].
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

impl Event {
    /// The end of a buffer that no network has seen.
    pub fn is_of_no_network(&self) -> bool {
        self.hook == HookId::Drop && self.not_ip && self.ifindex.is_none()
    }

    /// Makes ARP a packet that has a journey of its own, as IP's are; that is done where it is asked for.
    pub fn follow_arp(&mut self) {
        if let Some(arp) = self.arp.take() {
            self.packet = Some(arp.packet());
            self.not_ip = false;
        }
    }

    /// What it means to be seen at this hook.
    pub fn role(&self) -> Role {
        hook::role(self.hook)
    }

    /// Decodes what the programs wrote; `None` when the hook number is unknown.
    pub fn decode(event: &raw::Event) -> Option<Self> {
        Self::decode_with(event, |bytes| Packet::parse(bytes, 0))
    }

    /// The same; `parse` is given what begins with the network header.
    fn decode_with(
        event: &raw::Event,
        parse: impl FnOnce(&[u8]) -> Option<Packet>,
    ) -> Option<Self> {
        let has = |bit| event.valid & bit != 0;
        let hook = HookId::from_number(event.hook)?;
        let length = usize::from(event.packet_len).min(event.packet.len());
        // A buffer of no network (of a Unix socket, for one) is freed by the same function; what it holds
        // may look like a header.
        let of_no_network =
            hook == HookId::Drop && event.protocol == 0 && !has(raw::valid::IFINDEX);
        let network = event.packet[..length].get(usize::from(event.network_offset)..);
        let network = network.filter(|_| has(raw::valid::PACKET));
        let arp = if event.protocol == Arp::ETHERTYPE.to_be() {
            network.and_then(Arp::parse)
        } else {
            None
        };
        let packet = network
            .filter(|_| !of_no_network && arp.is_none())
            .and_then(parse);
        let detail = if has(raw::valid::DETAIL) {
            Detail::decode(hook, event, packet.as_ref())
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
            arp,
        })
    }
}

/// Stands for the reason of a drop where the kernel has none (before 5.17) and the frame was for another host.
pub const ANOTHER_HOSTS_FRAME: u32 = u32::MAX - 1;
/// `PACKET_OTHERHOST` (include/uapi/linux/if_packet.h).
const ADDRESSED_ELSEWHERE: u8 = 3;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;

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

fn sent(sent: raw::Sent, family: u16, packet: Option<&Packet>) -> Detail {
    packet.map_or(Detail::None, |packet| Detail::Sent {
        real: endpoint(&sent.real, sent.real_port, family),
        forwarding: forwarding(sent.flags),
        protocol: packet.tuple.protocol,
        state: sent.state,
    })
}

/// The forwarding method of `IP_VS_CONN_F_*`.
const fn forwarding(flags: u32) -> u8 {
    (flags & 7) as u8
}

impl Detail {
    fn decode(hook: HookId, event: &raw::Event, packet: Option<&Packet>) -> Self {
        let detail = &event.detail;
        // SAFETY: the programs write the member that belongs to the hook, every member is plain data
        // of integers, and the whole region is zeroed before.
        unsafe {
            match hook {
                HookId::NetfilterHook => {
                    let raw::Netfilter { hook, family } = detail.netfilter;
                    Self::Netfilter(NetfilterHook::of_family(family, hook))
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
                        forwarding: forwarding(connection.flags),
                    }
                }
                HookId::IpvsNatTransmit
                | HookId::IpvsDirectTransmit
                | HookId::IpvsTunnelTransmit => sent(detail.sent, AF_INET, packet),
                HookId::IpvsNat6Transmit
                | HookId::IpvsDirect6Transmit
                | HookId::IpvsTunnel6Transmit => sent(detail.sent, AF_INET6, packet),
                HookId::ConntrackConfirm
                | HookId::ConntrackClash
                | HookId::ConntrackTcp
                | HookId::ConntrackUdp
                | HookId::ConntrackIcmp
                | HookId::ConntrackIcmp6
                | HookId::ConntrackDelete
                | HookId::Nat => {
                    let raw::Conntrack { original, reply } = detail.conntrack;
                    let protocol = original.protocol_or_manipulation;
                    let family = original.family_or_status & 0xff;
                    // ICMP's tuples have its id, type and code where others have ports.
                    let port = |port| if protocol::is_icmp(protocol) { 0 } else { port };
                    let tuple = |tuple: raw::Tuple| Tuple {
                        protocol,
                        source: endpoint(&tuple.source, port(tuple.source_port), family),
                        destination: endpoint(
                            &tuple.destination,
                            port(tuple.destination_port),
                            family,
                        ),
                    };
                    Self::Conntrack {
                        original: tuple(original),
                        reply: tuple(reply),
                        destination_nat: reply.protocol_or_manipulation == 1,
                        relation: matches!(
                            hook,
                            HookId::ConntrackTcp
                                | HookId::ConntrackUdp
                                | HookId::ConntrackIcmp
                                | HookId::ConntrackIcmp6
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
                | HookId::Fragment
                | HookId::Local6Deliver
                | HookId::Forward6
                | HookId::Route6Error
                | HookId::Local6Out
                | HookId::Output6
                | HookId::Output6Finish
                | HookId::Fragment6 => {
                    let route = detail.route;
                    Self::Route {
                        kind: route.kind,
                        error: route.error,
                        ifindex: (route.ifindex != 0).then_some(route.ifindex),
                    }
                }
                HookId::TcpHalfOpen
                | HookId::TcpBacklog
                | HookId::TcpDeliver
                | HookId::TcpChild
                | HookId::TcpTimeWait
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
                    let family = if ipv6 { AF_INET6 } else { AF_INET };
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
                    reason: match detail.drop.reason {
                        u32::MAX => (detail.drop.addressee == ADDRESSED_ELSEWHERE)
                            .then_some(ANOTHER_HOSTS_FRAME),
                        reason => Some(reason),
                    },
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

/// An event as the kernel gives it, without detail.
#[cfg(test)]
pub(crate) fn constructed(hook: HookId, valid: u16) -> raw::Event {
    raw::Event {
        time_ns: 1,
        skb: 1,
        netns: 0,
        ifindex: 0,
        length: 40,
        mark: 0,
        hook: hook as u16,
        valid,
        protocol: 0,
        packet_len: 40,
        network_offset: 0,
        detail: raw::Detail {
            words: [0; raw::DETAIL_BYTES / 8],
        },
        packet: [0; raw::PACKET_BYTES],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(raw: &raw::Event) -> Event {
        Event::decode(raw).expect("a known hook")
    }

    #[test]
    fn a_clash_says_which_entry_was_refused() {
        let mut raw = constructed(HookId::ConntrackClash, raw::valid::DETAIL);
        let tuple = |port: u16, family_or_status, direction| raw::Tuple {
            source: [0; 16],
            source_port: port.to_be(),
            family_or_status,
            destination: [0; 16],
            destination_port: 53_u16.to_be(),
            protocol_or_manipulation: protocol::UDP,
            direction,
        };
        raw.detail.conntrack = raw::Conntrack {
            original: tuple(4000, AF_INET, 7),
            reply: tuple(4001, 0x10, 0),
        };
        let Detail::Conntrack {
            original,
            reply,
            relation,
            status,
            zone,
            ..
        } = decoded(&raw).detail
        else {
            panic!("no entry");
        };
        assert_eq!((original.protocol, original.source.port()), (17, 4000));
        assert_eq!(reply.source.port(), 4001);
        assert_eq!((relation, status, zone), (None, 0x10, 7));
    }

    #[test]
    fn an_entry_of_icmp_has_no_ports() {
        for (number, ports) in [
            (protocol::ICMP, 0),
            (protocol::ICMP6, 0),
            (protocol::TCP, 77),
        ] {
            let mut raw = constructed(HookId::ConntrackIcmp, raw::valid::DETAIL);
            let tuple = raw::Tuple {
                source: [0; 16],
                source_port: 77_u16.to_be(),
                family_or_status: AF_INET,
                destination: [0; 16],
                destination_port: 77_u16.to_be(),
                protocol_or_manipulation: number,
                direction: 0,
            };
            raw.detail.conntrack = raw::Conntrack {
                original: tuple,
                reply: tuple,
            };
            let Detail::Conntrack {
                original, reply, ..
            } = decoded(&raw).detail
            else {
                panic!("no entry");
            };
            for tuple in [original, reply] {
                let found = (tuple.source.port(), tuple.destination.port());
                assert_eq!(found, (ports, ports), "{number}");
            }
        }
    }

    #[test]
    fn an_ipv6_route_says_its_device_and_error() {
        for hook in HookId::ALL {
            let route = matches!(
                hook::of(*hook).role,
                Role::LocalIn
                    | Role::Forward
                    | Role::RouteError
                    | Role::LocalOut
                    | Role::Output
                    | Role::ToNeighbour
                    | Role::Fragment
            );
            let mut raw = constructed(*hook, raw::valid::DETAIL);
            raw.detail.route = raw::Route {
                kind: 0,
                error: 101,
                ifindex: 3,
            };
            let expected = Detail::Route {
                kind: 0,
                error: 101,
                ifindex: Some(3),
            };
            assert_eq!(decoded(&raw).detail == expected, route, "{hook:?}");
        }
    }

    #[test]
    fn a_kernel_without_reasons_says_whose_frame_it_was() {
        for (reason, addressee, expected) in [
            (u32::MAX, 0, None),
            (u32::MAX, ADDRESSED_ELSEWHERE, Some(ANOTHER_HOSTS_FRAME)),
            (7, ADDRESSED_ELSEWHERE, Some(7)),
        ] {
            let mut raw = constructed(HookId::Drop, raw::valid::DETAIL);
            raw.detail.drop = raw::Drop {
                location: 1,
                reason,
                addressee,
                reserved: [0; 3],
            };
            let detail = Detail::Drop {
                location: 1,
                reason: expected,
            };
            assert_eq!(decoded(&raw).detail, detail);
        }
    }

    #[test]
    fn a_buffer_of_no_network_is_no_packet_whatever_it_holds() {
        let mut raw = constructed(HookId::Drop, raw::valid::SKB | raw::valid::PACKET);
        raw.packet[0] = 0x45;
        raw.packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        let event = decoded(&raw);
        assert!(event.is_of_no_network() && event.packet.is_none());
        raw.protocol = 0x0800_u16.to_be();
        assert!(decoded(&raw).packet.is_some() && !decoded(&raw).is_of_no_network());
        raw.protocol = 0;
        raw.valid |= raw::valid::IFINDEX;
        assert!(decoded(&raw).packet.is_some());
    }
}
