//! What a register of an nftables rule holds while the rule runs.

use std::ops::RangeInclusive;

use super::{Subject, text_of, xt};

/// Bytes to which each field of a key of several is filled up.
pub(super) const WORD: usize = 4;

/// What a register of an nftables rule holds.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Field {
    Source {
        offset: usize,
        length: usize,
    },
    Destination {
        offset: usize,
        length: usize,
    },
    Protocol,
    Ipv6,
    EtherType,
    In,
    Out,
    InIndex,
    OutIndex,
    Mark,
    State,
    SourcePort,
    DestinationPort,
    TcpFlags,
    IcmpType,
    LocalSource,
    LocalDestination,
    /// A value that the rule itself gives.
    Value(Vec<u8>),
    /// In words.
    Other(String),
}

impl Field {
    /// As `nft` names it.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Source { .. } => "saddr".into(),
            Self::Destination { .. } => "daddr".into(),
            Self::Protocol => "meta l4proto".into(),
            Self::Ipv6 => "meta nfproto".into(),
            Self::EtherType => "meta protocol".into(),
            Self::In => "iifname".into(),
            Self::Out => "oifname".into(),
            Self::InIndex => "iif".into(),
            Self::OutIndex => "oif".into(),
            Self::Mark => "meta mark".into(),
            Self::State => "ct state".into(),
            Self::SourcePort => "th sport".into(),
            Self::DestinationPort => "th dport".into(),
            Self::TcpFlags => "tcp flags".into(),
            Self::IcmpType => "icmp type".into(),
            Self::LocalSource => "fib saddr type".into(),
            Self::LocalDestination => "fib daddr type".into(),
            Self::Value(_) => "(value)".into(),
            Self::Other(words) => words.clone(),
        }
    }

    /// The condition that a port is in one of these ranges; `None` for what is no port.
    pub(super) fn ports(&self, ranges: Vec<RangeInclusive<u16>>) -> Option<Subject> {
        match self {
            Self::SourcePort => Some(Subject::SourcePort(ranges)),
            Self::DestinationPort => Some(Subject::DestinationPort(ranges)),
            _ => None,
        }
    }

    /// The condition that the field, under a mask, is a value; `None` for one that cannot be told, and for
    /// addresses and ports, which are compared by ranges.
    pub(super) fn is(&self, mask: Option<&[u8]>, value: &[u8]) -> Option<Subject> {
        const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
        const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
        const AF_INET: u8 = libc::AF_INET as u8;
        const AF_INET6: u8 = libc::AF_INET6 as u8;
        const RTN_LOCAL: u32 = 2;
        let byte = || value.first().copied();
        Some(match (self, mask) {
            (Self::Mark, mask) => {
                let mask = mask.map_or(Some(u32::MAX), native)?;
                let value = native(value)?;
                Subject::Mark { value, mask }
            }
            (Self::TcpFlags, mask) => {
                let mask = mask.map_or(Some(u8::MAX), |mask| mask.first().copied())?;
                Subject::TcpFlags { mask, set: byte()? }
            }
            (_, Some(_)) => return None,
            (Self::Protocol, None) => Subject::Protocol(byte()?),
            (Self::Ipv6, None) => match byte()? {
                AF_INET => Subject::Ipv6(false),
                AF_INET6 => Subject::Ipv6(true),
                _ => return None,
            },
            (Self::EtherType, None) => match value.try_into().ok()? {
                ETHERTYPE_IPV4 => Subject::Ipv6(false),
                ETHERTYPE_IPV6 => Subject::Ipv6(true),
                _ => return None,
            },
            // Without its zero byte a name stands for all that begin with it.
            (Self::In, None) => Subject::In(text_of(value), !value.contains(&0)),
            (Self::Out, None) => Subject::Out(text_of(value), !value.contains(&0)),
            (Self::InIndex, None) => Subject::InIndex(native(value)?),
            (Self::OutIndex, None) => Subject::OutIndex(native(value)?),
            (Self::State, None) => Subject::State(xt::states(native(value)?, 6)),
            (Self::IcmpType, None) => Subject::Icmp {
                kind: byte()?,
                code: None,
            },
            (Self::LocalSource, None) if native(value)? == RTN_LOCAL => Subject::LocalSource,
            (Self::LocalDestination, None) if native(value)? == RTN_LOCAL => {
                Subject::LocalDestination
            }
            _ => return None,
        })
    }

    /// Bytes of the field as a key of its own; `None` for what cannot be looked up.
    pub(super) const fn width(&self) -> Option<usize> {
        match self {
            Self::Source { offset: 0, length } | Self::Destination { offset: 0, length } => {
                Some(*length)
            }
            Self::Protocol | Self::Ipv6 | Self::TcpFlags | Self::IcmpType => Some(1),
            Self::EtherType | Self::SourcePort | Self::DestinationPort => Some(2),
            Self::Mark
            | Self::State
            | Self::InIndex
            | Self::OutIndex
            | Self::LocalSource
            | Self::LocalDestination => Some(4),
            Self::In | Self::Out => Some(16),
            Self::Source { .. } | Self::Destination { .. } | Self::Value(_) | Self::Other(_) => {
                None
            }
        }
    }
}

/// Conntrack, marks and indices are in the machine's byte order.
pub(super) fn native(value: &[u8]) -> Option<u32> {
    match value.len() {
        1 => Some(u32::from(value[0])),
        _ => Some(u32::from_ne_bytes(*value.first_chunk()?)),
    }
}
