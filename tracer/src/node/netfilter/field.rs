//! What a register of an nftables rule holds while the rule runs.

use std::ops::RangeInclusive;

use super::Subject;

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

    /// The condition that a port is in a range; `None` for what is no port.
    pub(super) fn ports(&self, range: RangeInclusive<u16>) -> Option<Subject> {
        match self {
            Self::SourcePort => Some(Subject::SourcePort(vec![range])),
            Self::DestinationPort => Some(Subject::DestinationPort(vec![range])),
            _ => None,
        }
    }
}
