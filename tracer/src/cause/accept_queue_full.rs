//! `accept-queue-full`: the program does not accept connections as fast as they come.
//!
//! A SYN that is dropped for the queue's sake counts as delivered.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::audit::Finding;
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::event::Detail;
use crate::flow::{Direction, Flow};
use crate::node::{ListeningSocket, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "accept-queue-full",
    title: "the program's accept queue is full: it does not take connections fast enough",
    explanation: "\
The kernel completes handshakes and keeps the connections in the listening socket's accept queue until the
program accepts them. When the queue is full (the backlog that the program asked for, at most
net.core.somaxconn) further SYNs are dropped silently, and clients try again after one, three, seven
seconds. With net.ipv4.tcp_abort_on_overflow=1 they get RST instead.

Why: the program hangs, is overloaded, or asked for a small backlog.

Proof: a SYN reached a listening socket and was never answered, and that socket's queue holds more
connections than its backlog, when the SYN comes or when the sockets are read; or the kernel says that it
dropped the SYN for it. A counter of overflows since the start alone makes it likely.

Fix: repair or restart the program; a larger backlog only helps against bursts.",
    references: &[
        "Linux net/ipv4/tcp_input.c, tcp_conn_request: drops the SYN silently when the accept queue is longer \
         than the backlog, and counts ListenOverflows",
    ],
    explains: &[],
    examine,
    audit,
};

/// TCP state number of a listening socket.
const LISTEN: u8 = 10;

/// A queue longer than its backlog takes no more connections.
pub(super) fn is_full(socket: &ListeningSocket) -> bool {
    socket
        .backlog
        .is_some_and(|backlog| socket.receive_queue > backlog)
}

/// What came to a listening socket.
#[derive(Default)]
struct Came<'a> {
    flows: Vec<&'a Flow>,
    /// The kernel said that it dropped one for the queue's sake.
    refused: bool,
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut targets: BTreeMap<(NetnsId, SocketAddr), Came<'_>> = BTreeMap::new();
    for &flow in evidence.stalled() {
        if let Some(target) = waits_at(flow) {
            targets.entry(target).or_default().flows.push(flow);
        }
    }
    for failure in evidence.failures() {
        if failure.dropped_for(&["TCP_LISTEN_OVERFLOW"], &[])
            && let Some(target) = waits_at(failure.flow)
        {
            let came = targets.entry(target).or_default();
            came.flows.push(failure.flow);
            came.refused = true;
        }
    }
    targets
        .into_iter()
        .filter_map(|((netns, target), came)| judge(evidence, netns, target, &came))
        .collect()
}

/// How many connections a SYN of the flow found waiting in the queue and how many may, where it found it full.
fn full_queue_met(flow: &Flow, target: SocketAddr) -> Option<(u32, u32)> {
    let mut events = flow
        .of(Direction::Request)
        .flat_map(|journey| &journey.events);
    events.find_map(|event| match event.detail {
        Detail::Queue {
            waiting,
            most,
            port,
        } if port == target.port() && waiting > most => Some((waiting, most)),
        _ => None,
    })
}

/// The listening socket that a flow's opening came to: namespace, address and port.
pub(super) fn waits_at(flow: &Flow) -> Option<(NetnsId, SocketAddr)> {
    flow.of(Direction::Request).find_map(|journey| {
        let index = journey.events.iter().rposition(
            |event| matches!(event.detail, Detail::Socket { state, .. } if state == LISTEN),
        )?;
        let tuple = journey.events[..=index]
            .iter()
            .rev()
            .find_map(|event| event.packet.as_ref())?
            .tuple;
        Some((NetnsId(journey.namespace_at(index)?), tuple.destination))
    })
}

fn judge(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    target: SocketAddr,
    Came { flows, refused }: &Came<'_>,
) -> Option<Diagnosis> {
    let site = evidence.site(netns)?;
    let sockets = || site.listeners(6, target.ip(), target.port());
    let full = sockets().find(|socket| is_full(socket));
    let overflows = site
        .facts
        .counters
        .get("TcpExt ListenOverflows")
        .unwrap_or(0);
    let met = flows.iter().find_map(|flow| full_queue_met(flow, target));
    if full.is_none() && met.is_none() && overflows == 0 {
        return None;
    }
    let tries = flows
        .first()
        .map_or(0, |flow| flow.of(Direction::Request).count());
    let who = owner(full.or_else(|| sockets().next()));
    let diagnosis = say(site, target, full, &who)
        .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
        .prove_if(
            "packet",
            flows.first().map(|flow| {
                format!(
                    "flow from {}: {tries} SYNs reached the listening socket, none was answered",
                    flow.client.source
                )
            }),
        )
        .prove_if(
            "packet",
            met.map(|(waiting, most)| {
                format!("a SYN found {waiting} connections in the queue, and {most} may wait")
            }),
        )
        .prove_if(
            "counter",
            (overflows > 0).then(|| format!("ListenOverflows of {} is {overflows}", site.name())),
        )
        .lacking_if(
            full.is_none() && met.is_none() && !refused,
            "a full queue when these SYNs came: it has room now, or its length is not known, and ListenOverflows counts \
             since the start",
        )
        .fix([restart(&who)], "connections in its queue are lost")
        .fix(
            [
                "sysctl -w net.core.somaxconn=4096",
                "a larger backlog in the program's listen(), and restart it",
            ],
            "clients wait longer before they learn that the program is stuck",
        )
        .check(format!(
            "ss -lnt 'sport = :{}'   # Recv-Q below Send-Q",
            target.port()
        ))
        .typed_for(Some(site));
    Some(diagnosis)
}

/// The finding about one socket.
pub(super) fn say(
    site: &Site<'_>,
    target: SocketAddr,
    full: Option<&ListeningSocket>,
    who: &str,
) -> Diagnosis {
    let place = site.name();
    Diagnosis::new(
        &CAUSE,
        format!("tcp {target}"),
        format!(
            "{who} does not accept connections on tcp {target} in {place} as fast as they come: its accept queue is full, \
             and new ones are dropped silently."
        ),
    )
    .prove_if(
        "socket",
        full.map(|socket| {
            format!(
                "{} connections wait to be accepted, the backlog is {}",
                socket.receive_queue,
                socket.backlog.unwrap_or(0)
            )
        }),
    )
}

/// Sockets whose queue is full now.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .flat_map(|site| {
            let full = site
                .facts
                .sockets
                .iter()
                .filter(|socket| socket.protocol == 6 && is_full(socket));
            full.map(move |socket| {
                let target = SocketAddr::new(socket.address, socket.port);
                let who = owner(Some(socket));
                Finding::error(
                    say(site, target, Some(socket), &who)
                        .fix([restart(&who)], "connections in its queue are lost")
                        .check(format!(
                            "ss -lnt 'sport = :{}'   # Recv-Q below Send-Q",
                            target.port()
                        ))
                        .typed_for(Some(site)),
                )
            })
        })
        .collect()
}

pub(super) fn owner(socket: Option<&ListeningSocket>) -> String {
    socket.and_then(|socket| socket.owner.as_ref()).map_or_else(
        || "the program".to_owned(),
        |owner| format!("{} (process {})", owner.command, owner.pid),
    )
}

fn restart(who: &str) -> String {
    format!("find out why {who} does not accept (stuck, overloaded, stopped), and restart it")
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node, socket};
    use crate::event::{Transport, tcp_flag};

    fn syn(bench: &mut Bench, times: usize) {
        for _ in 0..times {
            bench
                .tcp("192.0.2.10:40000", "192.0.2.1:80")
                .receive(ETH0)
                .at(HookId::TcpReceive)
                .with(
                    HookId::TcpDeliver,
                    Detail::Socket {
                        state: LISTEN,
                        port: 80,
                    },
                )
                .ends();
        }
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.site().sockets = vec![ListeningSocket {
            receive_queue: 129,
            ..socket(6, "0.0.0.0", 80)
        }];
        syn(&mut bench, 2);
        bench
    }

    #[test]
    fn a_full_queue_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
    }

    #[test]
    fn a_queue_with_room_is_at_most_likely() {
        let mut bench = situation();
        bench.site().sockets[0].receive_queue = 128;
        assert_eq!(bench.codes(), [] as [&str; 0]);
        bench.site().counters = [("TcpExt ListenOverflows".to_owned(), 3)]
            .into_iter()
            .collect();
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn an_old_counter_and_a_queue_of_unknown_length_make_it_likely() {
        let mut bench = situation();
        bench.site().counters = [("TcpExt ListenOverflows".to_owned(), 3)]
            .into_iter()
            .collect();
        bench.site().sockets[0].backlog = None;
        for waiting in [1, 0] {
            bench.site().sockets[0].receive_queue = waiting;
            assert_eq!(bench.only().certainty, Certainty::Likely);
        }
    }

    #[test]
    fn the_queue_that_the_packet_met_will_do() {
        for (waiting, codes) in [(129, &[CAUSE.code][..]), (128, &[])] {
            let mut bench = situation();
            bench.site().sockets[0].backlog = None;
            let queue = Detail::Queue {
                waiting,
                most: 128,
                port: 80,
            };
            bench
                .tcp("192.0.2.10:40000", "192.0.2.1:80")
                .receive(ETH0)
                .with(HookId::TcpRequest, queue)
                .ends();
            assert_eq!(bench.codes(), codes, "{waiting}");
            let found = bench.diagnose();
            let sure = found
                .iter()
                .all(|found| found.certainty == Certainty::Certain);
            assert!(sure, "{found:#?}");
        }
    }

    #[test]
    fn one_syn_or_an_answer_is_healthy() {
        let mut bench = node();
        bench.site().sockets = situation().site().sockets.clone();
        syn(&mut bench, 1);
        assert_eq!(bench.codes(), [] as [&str; 0]);
        syn(&mut bench, 1);
        let flags = tcp_flag::SYN | tcp_flag::ACK;
        bench
            .packet(
                6,
                "192.0.2.1:80",
                "192.0.2.10:40000",
                Transport::tcp(1, flags),
            )
            .transmit(ETH0)
            .ends();
        assert_eq!(bench.codes(), [] as [&str; 0]);
    }
}
