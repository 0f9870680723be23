//! What the causes about replies that were not translated back share: the client gets an answer from
//! an address that it never asked.

use super::evidence::{Evidence, Failure};
use crate::event::{Transport, Tuple, protocol, tcp_flag};
use crate::flow::Direction;
use crate::hook::Role;
use crate::node::NetnsId;

/// An answer that its own client refused, because it carries the real server's address.
pub(super) struct Stray<'a> {
    /// The flow of the request.
    pub(super) flow: u64,
    /// Namespace of the client.
    pub(super) client_netns: NetnsId,
    /// The answer's addresses.
    pub(super) answer: Tuple,
    /// What the client asked.
    pub(super) asked: Tuple,
    pub(super) failure: &'a Failure<'a>,
}

/// Whether a lost packet is such an answer.
pub(super) fn stray<'a>(evidence: &Evidence<'_>, failure: &'a Failure<'a>) -> Option<Stray<'a>> {
    if failure.was_taken() {
        return None;
    }
    let (index, _) = failure.last(Role::Transport)?;
    let packet = failure.packet_at(index)?;
    let refused = match packet.transport {
        Transport::Tcp { flags, .. } => {
            flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN | tcp_flag::ACK
                && failure.was_reset()
        }
        Transport::Udp => failure.passed(Role::IcmpError),
        Transport::Icmp { .. }
        | Transport::Arp { .. }
        | Transport::Fragment { .. }
        | Transport::Other => false,
    };
    let back = packet.tuple;
    // An answer may end before its request does, and then begins a flow of its own.
    let (flow, asked) = match failure.direction {
        Direction::Reply => (failure.flow.id, failure.flow.client),
        Direction::Request => {
            let (id, _) = evidence.flows.find(back.reversed())?;
            (id, evidence.flows.get(id)?.client)
        }
    };
    let to_client = back.destination == asked.source && back.protocol == asked.protocol;
    (refused && to_client && back.source != asked.destination).then_some(())?;
    Some(Stray {
        flow,
        client_netns: failure.netns_at(index)?,
        answer: back,
        asked,
        failure,
    })
}

impl Stray<'_> {
    /// The answer in words.
    pub(super) fn words(&self) -> String {
        format!(
            "#{} answers {} from {}, who was asked as {}; {}",
            self.failure.journey.id,
            self.answer.destination,
            self.answer.source,
            self.asked.destination,
            if self.answer.protocol == protocol::TCP {
                "RST sent"
            } else {
                "ICMP port unreachable sent"
            }
        )
    }
}
