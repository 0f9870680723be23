//! What the typed parts of a capture look like in a file.
//!
//! Events come by the million: fixed fields in postcard's encoding behind a version byte. Everything else
//! comes rarely: CBOR with names of fields, compressed. A version-1 event never changes its fields; later
//! versions add behind them, which older readers leave unread.

use std::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracer_ebpf::hook::HookId;

use crate::event::{Detail, Event, NetfilterHook, Packet, Tuple};

/// Version of the typed event.
pub(super) const EVENT_VERSION: u8 = 1;

/// Which parts of an event are known.
pub(super) mod seen {
    pub(in super::super) const NETNS: u8 = 1 << 0;
    pub(in super::super) const IFINDEX: u8 = 1 << 1;
    pub(in super::super) const LENGTH: u8 = 1 << 2;
    pub(in super::super) const MARK: u8 = 1 << 3;
    /// Headers were read and are not IP's.
    pub(in super::super) const NOT_IP: u8 = 1 << 4;
    /// The block's bytes are those of an event before: this one had none.
    pub(in super::super) const BORROWED: u8 = 1 << 5;
}

/// What an event says beyond the block that it is in.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub(super) struct WireEvent {
    pub(super) hook: u16,
    pub(super) seen: u8,
    pub(super) skb: u64,
    length: u32,
    mark: u32,
    detail: WireDetail,
}

/// [`Detail`] in the file; variants are never reordered.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum WireDetail {
    None,
    Netfilter(u8),
    Service(SocketAddr, u8),
    Connection(SocketAddr, u8),
    Conntrack {
        original: WireTuple,
        reply: WireTuple,
        destination_nat: bool,
        relation: Option<u8>,
        status: u16,
        zone: u16,
    },
    Route {
        kind: u16,
        error: u16,
        ifindex: Option<u32>,
    },
    Socket(u8, u16),
    Icmp(u8, u8),
    Drop {
        location: u64,
        reason: Option<u32>,
    },
    Neighbour(IpAddr, u32),
    Device(u32),
    Queue {
        waiting: u32,
        most: u32,
        port: u16,
    },
    Sent {
        real: SocketAddr,
        forwarding: u8,
        protocol: u8,
        state: u16,
    },
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct WireTuple(u8, SocketAddr, SocketAddr);

impl From<Tuple> for WireTuple {
    fn from(tuple: Tuple) -> Self {
        Self(tuple.protocol, tuple.source, tuple.destination)
    }
}

impl From<WireTuple> for Tuple {
    fn from(WireTuple(protocol, source, destination): WireTuple) -> Self {
        Self {
            protocol,
            source,
            destination,
        }
    }
}

impl From<&Detail> for WireDetail {
    fn from(detail: &Detail) -> Self {
        match *detail {
            Detail::None => Self::None,
            Detail::Netfilter(hook) => Self::Netfilter(hook.number()),
            Detail::Service { address, protocol } => Self::Service(address, protocol),
            Detail::Connection { real, forwarding } => Self::Connection(real, forwarding),
            Detail::Conntrack {
                original,
                reply,
                destination_nat,
                relation,
                status,
                zone,
            } => Self::Conntrack {
                original: original.into(),
                reply: reply.into(),
                destination_nat,
                relation,
                status,
                zone,
            },
            Detail::Route {
                kind,
                error,
                ifindex,
            } => Self::Route {
                kind,
                error,
                ifindex,
            },
            Detail::Socket { state, port } => Self::Socket(state, port),
            Detail::Icmp { kind, code } => Self::Icmp(kind, code),
            Detail::Drop { location, reason } => Self::Drop { location, reason },
            Detail::Neighbour { address, ifindex } => Self::Neighbour(address, ifindex),
            Detail::Device { ifindex } => Self::Device(ifindex),
            Detail::Queue {
                waiting,
                most,
                port,
            } => Self::Queue {
                waiting,
                most,
                port,
            },
            Detail::Sent {
                real,
                forwarding,
                protocol,
                state,
            } => Self::Sent {
                real,
                forwarding,
                protocol,
                state,
            },
        }
    }
}

impl From<WireDetail> for Detail {
    fn from(detail: WireDetail) -> Self {
        match detail {
            WireDetail::None => Self::None,
            WireDetail::Netfilter(number) => Self::Netfilter(NetfilterHook::from_number(number)),
            WireDetail::Service(address, protocol) => Self::Service { address, protocol },
            WireDetail::Connection(real, forwarding) => Self::Connection { real, forwarding },
            WireDetail::Conntrack {
                original,
                reply,
                destination_nat,
                relation,
                status,
                zone,
            } => Self::Conntrack {
                original: original.into(),
                reply: reply.into(),
                destination_nat,
                relation,
                status,
                zone,
            },
            WireDetail::Route {
                kind,
                error,
                ifindex,
            } => Self::Route {
                kind,
                error,
                ifindex,
            },
            WireDetail::Socket(state, port) => Self::Socket { state, port },
            WireDetail::Icmp(kind, code) => Self::Icmp { kind, code },
            WireDetail::Drop { location, reason } => Self::Drop { location, reason },
            WireDetail::Neighbour(address, ifindex) => Self::Neighbour { address, ifindex },
            WireDetail::Device(ifindex) => Self::Device { ifindex },
            WireDetail::Queue {
                waiting,
                most,
                port,
            } => Self::Queue {
                waiting,
                most,
                port,
            },
            WireDetail::Sent {
                real,
                forwarding,
                protocol,
                state,
            } => Self::Sent {
                real,
                forwarding,
                protocol,
                state,
            },
        }
    }
}

/// Why an event cannot be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unread {
    /// A later version wrote it.
    Version(u8),
    /// A hook that this version does not know.
    Hook(u16),
    /// Its bytes are damaged.
    Damaged,
}

impl WireEvent {
    /// Appends an event; `borrowed` says that the block's bytes are not its own.
    pub(super) fn put(event: &Event, borrowed: bool, out: &mut Vec<u8>) {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let wire = Self {
            hook: event.hook as u16,
            seen: bit(event.netns.is_some(), seen::NETNS)
                | bit(event.ifindex.is_some(), seen::IFINDEX)
                | bit(event.length.is_some(), seen::LENGTH)
                | bit(event.mark.is_some(), seen::MARK)
                | bit(event.not_ip, seen::NOT_IP)
                | bit(borrowed, seen::BORROWED),
            skb: event.skb,
            length: event.length.unwrap_or_default(),
            mark: event.mark.unwrap_or_default(),
            detail: (&event.detail).into(),
        };
        out.push(EVENT_VERSION);
        // Longest: two tuples of IPv6 addresses.
        let mut room = [0; 160];
        if let Ok(bytes) = postcard::to_slice(&wire, &mut room) {
            out.extend_from_slice(bytes);
        }
    }

    /// Reads an event's fixed part.
    pub(super) fn take(bytes: &[u8]) -> Result<Self, Unread> {
        match bytes.split_first() {
            None | Some((0, _)) => Err(Unread::Damaged),
            Some((&EVENT_VERSION, rest)) => postcard::take_from_bytes(rest)
                .map(|(wire, _)| wire)
                .map_err(|_| Unread::Damaged),
            Some((&version, _)) => Err(Unread::Version(version)),
        }
    }

    /// The event, with what the block adds.
    pub(super) fn event(
        self,
        time_ns: u64,
        netns: Option<u32>,
        ifindex: Option<u32>,
        packet: Option<Packet>,
    ) -> Result<Event, Unread> {
        let has = |bit| self.seen & bit != 0;
        Ok(Event {
            time_ns,
            skb: self.skb,
            netns: netns.filter(|_| has(seen::NETNS)),
            ifindex: ifindex.filter(|_| has(seen::IFINDEX)),
            length: has(seen::LENGTH).then_some(self.length),
            mark: has(seen::MARK).then_some(self.mark),
            hook: HookId::from_number(self.hook).ok_or(Unread::Hook(self.hook))?,
            detail: self.detail.into(),
            packet: packet.filter(|_| !has(seen::BORROWED)),
            not_ip: has(seen::NOT_IP),
            arp: None,
        })
    }
}

/// CBOR of a value.
pub(super) fn to_cbor(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    minicbor_serde::to_vec(value).map_err(|error| anyhow::anyhow!("a record has no CBOR: {error}"))
}

/// A value out of CBOR.
pub(super) fn from_cbor<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    minicbor_serde::from_slice(bytes).map_err(|error| error.to_string())
}
