//! One kernel event, as the programs write it into the ring buffer.
//!
//! Invariants: fixed size, no implicit padding, native byte order except where a field says
//! "network order". A field that could not be read has its [`valid`] bit clear and must be ignored.

use core::mem::{offset_of, size_of};

/// Bits of [`Event::valid`]: which fields hold what was read from the kernel.
pub mod valid {
    /// `netns` is the inode number of the network namespace.
    pub const NETNS: u16 = 1 << 0;
    /// `ifindex` is the device that the skb is at.
    pub const IFINDEX: u16 = 1 << 1;
    /// `packet[..packet_len]` holds packet bytes.
    pub const PACKET: u16 = 1 << 2;
    /// `length`, `mark` and `protocol` come from the skb.
    pub const SKB: u16 = 1 << 3;
    /// `detail` holds what the hook's row promises.
    pub const DETAIL: u16 = 1 << 4;
}

/// Bytes of a packet kept per event: Ethernet, IPv6 and the longest TCP header, or a question of DNS for a
/// name of some fifty letters.
pub const PACKET_BYTES: usize = 128;
/// Bytes of the part of an event that depends on its hook.
pub const DETAIL_BYTES: usize = 80;

/// One event.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Address of the `sk_buff`; 0 where the hook has none.
    pub skb: u64,
    /// Inode number of the network namespace (`net.ns.inum`).
    pub netns: u32,
    /// Interface index in that namespace.
    pub ifindex: u32,
    /// `skb->len`, bytes.
    pub length: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// A [`crate::hook::HookId`] as a number.
    pub hook: u16,
    /// See [`valid`].
    pub valid: u16,
    /// EtherType, network order.
    pub protocol: u16,
    /// How many bytes of `packet` were read.
    pub packet_len: u8,
    /// Where in `packet` the network header begins: 14 after an Ethernet header, 0 without one.
    pub network_offset: u8,
    /// What the hook adds; its type is given by the hook.
    pub detail: Detail,
    /// The packet from its link header, or from its network header where it has no link header.
    pub packet: [u8; PACKET_BYTES],
}

/// The part of an event that depends on its hook.
#[repr(C)]
#[derive(Clone, Copy)]
pub union Detail {
    /// The whole region.
    pub words: [u64; DETAIL_BYTES / 8],
    /// Netfilter hook entered.
    pub netfilter: Netfilter,
    /// IPVS service lookup.
    pub service: Service,
    /// IPVS connection made.
    pub connection: Connection,
    /// Packet sent by an IPVS connection.
    pub sent: Sent,
    /// Both tuples of a conntrack entry.
    pub conntrack: Conntrack,
    /// Route attached to the skb.
    pub route: Route,
    /// Socket that the packet met.
    pub socket: Socket,
    /// Queue of the listening socket that a request came to.
    pub queue: Queue,
    /// ICMP error sent.
    pub icmp: Icmp,
    /// Packet freed as dropped.
    pub drop: Drop,
    /// Device that the packet goes to.
    pub device: Device,
    /// Neighbour that the packet goes to.
    pub neighbour: Neighbour,
}

/// Netfilter hook entered (`nf_hook_state`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Netfilter {
    /// `NF_INET_*`: 0 pre-routing, 1 local in, 2 forward, 3 local out, 4 post-routing.
    pub hook: u8,
    /// `NFPROTO_*`: 2 IPv4, 10 IPv6, 7 bridge, 3 ARP.
    pub family: u8,
}

/// Arguments of `ip_vs_service_find`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Service {
    /// IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Network order.
    pub port: u16,
    /// IP protocol.
    pub protocol: u16,
    /// Address family.
    pub family: u16,
    /// Zero.
    pub reserved: u16,
    /// Firewall mark that is looked up first.
    pub fwmark: u32,
}

/// Arguments of `ip_vs_conn_new`. Client and virtual address are the packet's own.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    /// Real server's address.
    pub real: [u8; 16],
    /// Network order.
    pub real_port: u16,
    /// Address family of the real server.
    pub family: u16,
    /// `IP_VS_CONN_F_*`; the low three bits are the forwarding method.
    pub flags: u32,
}

/// The connection (`ip_vs_conn`) that IPVS sends a packet by.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sent {
    /// Real server's address, of the hook's family.
    pub real: [u8; 16],
    /// Network order.
    pub real_port: u16,
    /// Numbered as the packet's protocol does (`IP_VS_TCP_S_*`).
    pub state: u16,
    /// `IP_VS_CONN_F_*`; the low three bits are the forwarding method.
    pub flags: u32,
}

/// One direction of a conntrack entry: `nf_conntrack_tuple`, the same on every kernel measured
/// (5.10 to 7.3), so that it is copied as it is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tuple {
    /// Source address, IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Network order; the ICMP id for ICMP.
    pub source_port: u16,
    /// In the original tuple the address family, with the high byte of the entry's zone above it; in
    /// the reply tuple the programs put the low 16 bits of the entry's status (`IPS_*`) here, where
    /// the family would only be said again.
    pub family_or_status: u16,
    /// Destination address, IPv4 in the first four bytes.
    pub destination: [u8; 16],
    /// Network order; ICMP type and code for ICMP.
    pub destination_port: u16,
    /// IP protocol in the original tuple; in the reply tuple what NAT changes: 0 source, 1 destination.
    pub protocol_or_manipulation: u8,
    /// In the original tuple the low byte of the entry's zone. In the reply tuple the packet's direction: for NAT 0 original, 1 reply; where conntrack knows
    /// the entry its `enum ip_conntrack_info` (0 established, 1 related, 2 new, 3 and 4 the replies).
    pub direction: u8,
}

/// A conntrack entry (`nf_conn`) as it was when the event happened.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Conntrack {
    /// As the first packet came.
    pub original: Tuple,
    /// As replies are expected.
    pub reply: Tuple,
}

/// The route attached to the skb (`rtable`, `rt6_info`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Route {
    /// `RTN_*`: 1 unicast, 2 local, 3 broadcast, 6 blackhole, 7 unreachable, 8 prohibit; 0 for IPv6,
    /// whose routes do not say it.
    pub kind: u16,
    /// Error that the route carries, as a positive errno; 0 for none.
    pub error: u16,
    /// Device that the route leads to; 0 where it was not read.
    pub ifindex: u32,
}

/// A socket (`sock_common`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Socket {
    /// TCP state number (10 is LISTEN).
    pub state: u8,
    /// Zero.
    pub reserved: u8,
    /// Local port, host order.
    pub port: u16,
}

/// The accept queue of a listening socket (`struct sock`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Queue {
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// One more than this is refused.
    pub most: u32,
    /// Local port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// An ICMP error about the packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Icmp {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Zero.
    pub reserved: u16,
    /// The rest of the header: the MTU for "fragmentation needed".
    pub info: u32,
}

/// A packet freed with a drop.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Drop {
    /// Return address inside the function that dropped the packet.
    pub location: u64,
    /// `enum skb_drop_reason` of the running kernel; `u32::MAX` where the kernel has none.
    pub reason: u32,
    /// Whom the frame is for (`PACKET_*`, three bits of `skb->pkt_type`'s byte): 3 for another host.
    pub addressee: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The device that a packet is handed to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
}

/// A neighbour (`struct neighbour`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Neighbour {
    /// Its address, IPv4 in the first four bytes; the packet's family tells which.
    pub address: [u8; 16],
    /// Device that it is behind.
    pub ifindex: u32,
    /// `NUD_*` bits.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Ways in which the kernel side can lose an event, as indices of the `LOST` map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Lost {
    /// The ring buffer was full.
    RingFull = 0,
    /// The skb could not be read.
    UnreadableSkb = 1,
}

impl Lost {
    /// Every way, in the order of their indices.
    pub const ALL: [Self; 2] = [Self::RingFull, Self::UnreadableSkb];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring buffer full",
            Self::UnreadableSkb => "packet buffer unreadable",
        }
    }
}

const _: () = {
    assert!(size_of::<Event>() == 248);
    assert!(offset_of!(Event, detail) == 40);
    assert!(offset_of!(Event, packet) == 40 + DETAIL_BYTES);
    assert!(size_of::<Detail>() == DETAIL_BYTES);
    assert!(size_of::<Tuple>() == 2 * 16 + 3 * 2 + 2);
    assert!(size_of::<Conntrack>() == 2 * size_of::<Tuple>());
    assert!(size_of::<Connection>() == 16 + 2 * 2 + 4);
    assert!(size_of::<Service>() == 16 + 4 * 2 + 4);
};
