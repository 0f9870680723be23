//! How a packet's way ends: which drops are losses, and which only free what has arrived.

use tracer_ebpf::hook::HookId;

use crate::event::{ANOTHER_HOSTS_FRAME, Detail, Event, Packet, Transport, protocol};
use crate::hook::Role;

use super::Ending;

/// Drop reasons that do not stand for a loss, by this kernel's numbers: nearly all are a socket's, which frees what has
/// reached it.
///
/// Source: `tcp_validate_incoming`, `tcp_ack`, `tcp_data_queue` and `tcp_rcv_state_process` (net/ipv4/tcp_input.c), which
/// name what they free since 5.17.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct SocketReasons {
    /// They do not say why.
    unsaid: Vec<u32>,
    /// TCP had the data already, or was only asked whether it is alive.
    known_to_tcp: Vec<u32>,
    /// The frame was for another host; `None` where the kernel has no such reason (before 5.19).
    other_host: Option<u32>,
}

/// The latter two are said of what is left in a queue, as a socket's when it closes.
const UNSAID: [&str; 3] = ["NOT_SPECIFIED", "QUEUE_PURGE", "SOCKET_CLOSE"];

/// What TCP says, at the socket, of a packet that came twice or late, and of a probe of a connection that is idle,
/// whose sequence number is an old one.
const KNOWN_TO_TCP: [&str; 10] = [
    "TCP_OLD_DATA",
    "TCP_OFOMERGE",
    OLD_SEQUENCE,
    "TCP_OLD_ACK",
    "TCP_TOO_OLD_ACK",
    "TCP_RFC7323_PAWS",
    "TCP_RFC7323_PAWS_ACK",
    "TCP_RFC7323_TW_PAWS",
    // The second answer to an opening.
    "TCP_INVALID_SYN",
    "TCP_CLOSE",
];
const OLD_SEQUENCE: &str = "TCP_OLD_SEQUENCE";
/// Means an old one too on kernels that have no name for that (before 6.3).
const INVALID_SEQUENCE: &str = "TCP_INVALID_SEQUENCE";

impl<'a> FromIterator<(u32, &'a str)> for SocketReasons {
    /// From the kernel's reasons: each number with its name.
    fn from_iter<I: IntoIterator<Item = (u32, &'a str)>>(names: I) -> Self {
        let names: Vec<_> = names.into_iter().collect();
        let number = |wanted: &str| {
            let found = names.iter().find(|(_, name)| *name == wanted);
            found.map(|&(number, _)| number)
        };
        let numbers = |names: &[&str]| names.iter().filter_map(|name| number(name)).collect();
        let mut known_to_tcp: Vec<_> = numbers(&KNOWN_TO_TCP);
        if number(OLD_SEQUENCE).is_none() {
            known_to_tcp.extend(number(INVALID_SEQUENCE));
        }
        Self {
            unsaid: numbers(&UNSAID),
            known_to_tcp,
            other_host: number("OTHERHOST"),
        }
    }
}

impl SocketReasons {
    /// The kernel does not say why it freed the packet.
    pub(super) fn is_unsaid(&self, reason: Option<u32>) -> bool {
        reason.is_none_or(|reason| reason == ANOTHER_HOSTS_FRAME || self.unsaid.contains(&reason))
    }
}

/// True where a socket takes the packet. What is left of a closed connection takes no opening, and a connection that is
/// not made yet takes an opening that is repeated, or is given up.
pub(super) fn takes(event: &Event) -> bool {
    let is = |what: fn(&Packet) -> bool| event.packet.as_ref().is_some_and(what);
    match event.role() {
        Role::Deliver => event.hook != HookId::TcpTimeWait || !is(Packet::opens),
        Role::HalfOpen => is(Packet::opens) || is(Packet::resets),
        _ => false,
    }
}

/// The ending, when this event is the last of a packet or piece that a socket took or not.
pub(super) fn ending(
    taken: impl FnOnce() -> bool,
    event: &Event,
    reasons: &SocketReasons,
) -> Option<Ending> {
    let Detail::Drop { location, reason } = event.detail else {
        return None;
    };
    let reason = reason.filter(|_| !reasons.is_unsaid(reason));
    // Sockets free what they have used up; only a named reason makes that a loss. An echo reply went to
    // raw sockets before ICMP found no socket of its own kind for it.
    let used_up = match reason {
        None => taken(),
        // Only a socket says so, whether it was seen or not.
        Some(reason) if reasons.known_to_tcp.contains(&reason) => goes_on(event),
        Some(_) => is_echo_reply(event) && taken(),
    };
    if used_up {
        return Some(Ending::Delivered);
    }
    Some(Ending::Dropped { location, reason })
}

/// True where the packet's last event says that it was for another host, and these before it do not show that it was
/// sent here.
pub(super) fn for_another_host(before: &[Event], event: &Event, reasons: &SocketReasons) -> bool {
    let Detail::Drop {
        reason: Some(reason),
        ..
    } = event.detail
    else {
        return false;
    };
    let said = if reason == ANOTHER_HOSTS_FRAME {
        // Why it was freed is not said; IP looks at that first of all (`ip_rcv_core`).
        before.last().is_none_or(|last| last.role() == Role::Ip)
    } else {
        reasons.other_host == Some(reason)
    };
    let sent_here = |event: &Event| !matches!(event.role(), Role::Receive | Role::Ip);
    said && !before.iter().any(sent_here)
}

/// TCP, and not the opening of a connection.
fn goes_on(event: &Event) -> bool {
    let packet = event.packet.as_ref();
    packet
        .is_some_and(|packet| matches!(packet.transport, Transport::Tcp { .. }) && !packet.opens())
}

fn is_echo_reply(event: &Event) -> bool {
    let packet = event.packet.as_ref();
    packet.is_some_and(|packet| {
        let kind = match packet.transport {
            Transport::Icmp { kind, .. } => kind,
            _ => return false,
        };
        (packet.tuple.protocol, kind) == (protocol::ICMP, 0)
            || (packet.tuple.protocol, kind) == (protocol::ICMP6, 129)
    })
}

/// The ending of what was not seen again.
pub(super) fn unseen(events: &[Event], taken: bool) -> Ending {
    match events.last().map(Event::role) {
        _ if taken => Ending::Delivered,
        // What the backlog cannot hold is freed as dropped; the rest is put behind what is in it already
        // (`tcp_add_backlog`), or comes to the socket.
        Some(Role::Backlog) => Ending::Delivered,
        Some(Role::Transmit) => Ending::Transmitted,
        _ => Ending::OutOfSight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tcp_flag::{ACK, RST, SYN};
    use crate::journey::constructed::event;
    use crate::journey::{Journey, Tracker};

    const NOT_SPECIFIED: u32 = 2;
    const NO_SOCKET: u32 = 3;
    const INVALID: u32 = 4;
    const OLD: u32 = 5;
    const PRUNED: u32 = 6;
    const PURGED: u32 = 7;
    const BAD_CHECKSUM: u32 = 8;

    fn older() -> SocketReasons {
        SocketReasons::from_iter([
            (NOT_SPECIFIED, "NOT_SPECIFIED"),
            (INVALID, INVALID_SEQUENCE),
            (PRUNED, "TCP_OFO_QUEUE_PRUNE"),
        ])
    }

    fn newer() -> SocketReasons {
        SocketReasons::from_iter([
            (INVALID, INVALID_SEQUENCE),
            (OLD, OLD_SEQUENCE),
            (PURGED, "QUEUE_PURGE"),
        ])
    }

    fn tcp(hook: HookId, at: u64, flags: u8) -> Event {
        let mut event = event(hook, 1, at, 100);
        let packet = event.packet.as_mut().expect("headers");
        packet.tuple.protocol = protocol::TCP;
        packet.transport = Transport::tcp(0, flags);
        event
    }

    /// The journey of a TCP packet past these hooks, freed for a reason.
    fn freed(reasons: SocketReasons, flags: u8, hooks: &[HookId], reason: u32) -> Journey {
        let (mut tracker, mut ended) = (Tracker::new(reasons), Vec::new());
        let all = [HookId::TcpReceive].iter().chain(hooks);
        for (at, &hook) in all.enumerate() {
            tracker.push(tcp(hook, at as u64, flags), &mut ended);
        }
        tracker.push(drop(flags, reason), &mut ended);
        ended.pop().expect("it ended")
    }

    fn drop(flags: u8, reason: u32) -> Event {
        Event {
            detail: Detail::Drop {
                location: 1,
                reason: Some(reason),
            },
            ..tcp(HookId::Drop, 100, flags)
        }
    }

    #[test]
    fn what_tcp_has_already_arrived_and_what_it_cannot_take_did_not() {
        for (reasons, flags, reason, arrives) in [
            // A probe of an idle connection, before and since an old sequence number has a name.
            (older(), ACK, INVALID, true),
            (newer(), ACK, OLD, true),
            (newer(), ACK, INVALID, false),
            (older(), ACK, PRUNED, false),
            (older(), SYN, INVALID, false),
            (older(), ACK, NOT_SPECIFIED, true),
            (newer(), ACK, PURGED, true),
        ] {
            let journey = freed(reasons, flags, &[HookId::TcpDeliver], reason);
            assert_eq!(journey.failed(), !arrives, "flags {flags}, reason {reason}");
            assert_eq!(journey.ending == Ending::Delivered, arrives);
        }
        // Where only drops are seen, TCP's word has to do.
        assert!(!freed(newer(), ACK, &[], OLD).failed());
        assert!(freed(newer(), ACK, &[], PURGED).failed());
    }

    #[test]
    fn what_a_busy_socket_keeps_arrived_unless_it_is_freed_as_dropped() {
        let freed = freed(older(), ACK, &[HookId::TcpBacklog], NOT_SPECIFIED);
        assert!(freed.failed());
        let (mut tracker, mut ended) = (Tracker::new(older()), Vec::new());
        tracker.push(tcp(HookId::TcpBacklog, 1, ACK), &mut ended);
        tracker.finish(&mut ended);
        assert_eq!(ended[0].ending, Ending::Delivered);
    }

    #[test]
    fn connections_not_yet_made_and_closed_ones_take_what_is_theirs() {
        for (hook, flags, arrives) in [
            (HookId::TcpTimeWait, ACK, true),
            (HookId::TcpTimeWait, SYN, false),
            (HookId::TcpHalfOpen, SYN, true),
            (HookId::TcpHalfOpen, RST, true),
            // The accept queue is full.
            (HookId::TcpHalfOpen, ACK, false),
            (HookId::TcpChild, ACK, true),
        ] {
            let journey = freed(older(), flags, &[hook], NOT_SPECIFIED);
            assert_eq!(journey.was_taken(), arrives, "{hook:?}, flags {flags}");
            assert_eq!(journey.failed(), !arrives, "{hook:?}, flags {flags}");
        }
    }

    #[test]
    fn a_reset_is_not_answered_and_may_find_nothing() {
        for reason in [NO_SOCKET, NOT_SPECIFIED] {
            let journey = freed(older(), RST, &[HookId::TcpReset], reason);
            assert!(!journey.was_reset() && !journey.rejected() && !journey.failed());
            let journey = freed(older(), ACK, &[HookId::TcpReset], reason);
            assert!(journey.was_reset() && journey.rejected() && journey.failed());
        }
        // One that is damaged finds nothing either, and is lost.
        assert!(freed(older(), RST, &[], BAD_CHECKSUM).failed());
    }

    #[test]
    fn a_frame_for_another_host_is_lost_only_where_it_was_sent_here() {
        const OTHERHOST: u32 = 8;
        const RECEIVED: [HookId; 2] = [HookId::DeviceReceive, HookId::Ip4Receive];
        const SENT: [HookId; 3] = [HookId::Output, HookId::DeviceReceive, HookId::Ip4Receive];
        let reasons = SocketReasons::from_iter([(OTHERHOST, "OTHERHOST")]);
        for (hooks, reason, ending) in [
            (&RECEIVED[..], OTHERHOST, Ending::ForAnotherHost),
            (&SENT, OTHERHOST, dropped(Some(OTHERHOST))),
            // Without reasons of the kernel, where the frame itself says so.
            (&RECEIVED, ANOTHER_HOSTS_FRAME, Ending::ForAnotherHost),
            (&SENT, ANOTHER_HOSTS_FRAME, dropped(None)),
            // What is no bridge's to pass on does not come to IP.
            (&RECEIVED[..1], ANOTHER_HOSTS_FRAME, dropped(None)),
            (&[], ANOTHER_HOSTS_FRAME, Ending::ForAnotherHost),
        ] {
            let (mut tracker, mut ended) = (Tracker::new(reasons.clone()), Vec::new());
            for (at, &hook) in hooks.iter().enumerate() {
                tracker.push(tcp(hook, at as u64, ACK), &mut ended);
            }
            tracker.push(drop(ACK, reason), &mut ended);
            assert_eq!(ended[0].ending, ending, "{hooks:?}");
            assert_eq!(ended[0].failed(), ending != Ending::ForAnotherHost);
        }
    }

    const fn dropped(reason: Option<u32>) -> Ending {
        Ending::Dropped {
            location: 1,
            reason,
        }
    }
}
