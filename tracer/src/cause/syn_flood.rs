//! `syn-flood`: a listening socket has more half-open connections than it may, so new ones are dropped.
//!
//! A SYN that is dropped for the queue's sake counts as delivered.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::accept_queue_full::{is_full, owner, waits_at};
use super::audit::Finding;
use super::evidence::Evidence;
use super::{Cause, Diagnosis, Site};
use crate::event::Detail;
use crate::flow::{Direction, Flow};
use crate::node::{ListeningSocket, NetnsId};

pub(super) const CAUSE: Cause = Cause {
    code: "syn-flood",
    title: "a listening socket's queue of half-open connections is full: a SYN flood, or answers that get lost",
    explanation: "\
For each SYN the kernel keeps a half-open connection until the client's ACK comes. When as many wait as the
backlog allows, further SYNs are dropped silently unless net.ipv4.tcp_syncookies is on; then the kernel
answers without keeping anything, and only the options of those connections suffer.

Why: somebody floods the port with SYNs (from addresses that never answer), or the SYN-ACKs do not reach
the clients (a route or a firewall on the way back).

Proof: SYNs of a client reached the listening socket and none was answered, the kernel counted
TCPReqQFullDrop, and the socket has as many half-open connections as its backlog.

Fix: net.ipv4.tcp_syncookies=1; then find out where the SYNs come from, or why the answers get lost.",
    references: &[
        "Linux net/ipv4/tcp_input.c, tcp_conn_request: drops the SYN silently when the queue of half-open \
         connections is as long as the backlog and SYN cookies are off (TCPReqQFullDrop); with cookies it \
         answers all the same (TCPReqQFullDoCookies)",
    ],
    explains: &[],
    examine,
    audit,
};

const DROPPED: &str = "TcpExt TCPReqQFullDrop";
const COOKIES: &str = "net/ipv4/tcp_syncookies";

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut targets: BTreeMap<(NetnsId, SocketAddr), Vec<&Flow>> = BTreeMap::new();
    for &flow in evidence.stalled() {
        if let Some(target) = waits_at(flow) {
            targets.entry(target).or_default().push(flow);
        }
    }
    targets
        .into_iter()
        .filter_map(|((netns, target), flows)| {
            let site = evidence.site(netns)?;
            let dropped = site.facts.counters.get(DROPPED).unwrap_or(0);
            let socket = site.listeners(6, target.ip(), target.port()).next();
            // A full accept queue drops SYNs too, and is another cause.
            let other = socket.is_some_and(is_full);
            if dropped == 0 || other {
                return None;
            }
            let waiting = half_open(site, target);
            let first = flows.first()?;
            let tries = first.of(Direction::Request).count();
            // The kernel's diagnosis module may not be loaded; the packet met the socket.
            let backlog = socket
                .and_then(|socket| socket.backlog)
                .or_else(|| flows.iter().find_map(|flow| backlog_met(flow, target)));
            let full = waiting
                .zip(backlog)
                .is_some_and(|(waiting, backlog)| fills(waiting, backlog));
            Some(
                say(site, target, socket, waiting.map(|waiting| (waiting, backlog)))
                    .stopped_flows(evidence, flows.iter().map(|flow| flow.id))
                    .prove(
                        "packet",
                        format!(
                            "flow from {}: {tries} SYNs reached the listening socket, none was answered",
                            first.client.source
                        ),
                    )
                    .prove("counter", format!("TCPReqQFullDrop of {} is {dropped}", site.name()))
                    .lacking_if(
                        !full,
                        "a full queue: it has room now, or its length is not known",
                    ),
            )
        })
        .collect()
}

/// Half-open connections of the socket at an address and port; `None` when they were not counted.
fn half_open(site: &Site<'_>, target: SocketAddr) -> Option<u32> {
    let all = site.facts.half_open.as_ref()?;
    let here = all.iter().filter(|found| {
        let own = found.local.ip();
        found.local.port() == target.port() && (target.ip().is_unspecified() || own == target.ip())
    });
    Some(here.map(|found| found.count).sum())
}

/// As many half-open connections as the backlog; the kernel drops beyond three quarters of
/// tcp_max_syn_backlog too, when that is less.
const fn fills(waiting: u32, backlog: u32) -> bool {
    waiting >= backlog && waiting > 0
}

/// The backlog that a flow's SYN met at the listening socket.
fn backlog_met(flow: &Flow, target: SocketAddr) -> Option<u32> {
    let mut events = flow
        .of(Direction::Request)
        .flat_map(|journey| &journey.events);
    events.find_map(|event| match event.detail {
        Detail::Queue { most, port, .. } if port == target.port() => Some(most),
        _ => None,
    })
}

fn say(
    site: &Site<'_>,
    target: SocketAddr,
    socket: Option<&ListeningSocket>,
    waiting: Option<(u32, Option<u32>)>,
) -> Diagnosis {
    let cookies = site.sysctl(COOKIES);
    let effect = if cookies == Some(0) {
        "new ones are dropped silently"
    } else {
        "the kernel answers new ones with SYN cookies only"
    };
    Diagnosis::new(
        &CAUSE,
        format!("tcp {target}"),
        format!(
            "{} has more half-open connections on tcp {target} in {} than its backlog allows: {effect}. Somebody floods it \
             with SYNs, or its answers do not reach the clients.",
            owner(socket),
            site.name()
        ),
    )
    .prove_if(
        "socket",
        waiting.map(|(waiting, backlog)| {
            let of = backlog.map_or_else(String::new, |backlog| format!(", the backlog is {backlog}"));
            format!("{waiting} half-open connections{of}")
        }),
    )
    .prove_if("sysctl", cookies.map(|value| format!("net.ipv4.tcp_syncookies = {value}")))
    .fix(
        ["sysctl -w net.ipv4.tcp_syncookies=1"],
        "none: window scaling and SACK survive in the cookie's time stamp",
    )
    .fix(
        [format!(
            "ss -ant state syn-recv 'sport = :{}' | awk '{{print $4}}' | sort | uniq -c | sort -rn | head   # who floods",
            target.port()
        )],
        "none: this only looks",
    )
    .check(format!("ss -ant state syn-recv 'sport = :{}' | wc -l", target.port()))
    .typed_for(Some(site))
}

/// Sockets whose queue is full now.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for site in evidence.sites() {
        let listening = site
            .facts
            .sockets
            .iter()
            .filter(|socket| socket.protocol == 6);
        for socket in listening {
            let target = SocketAddr::new(socket.address, socket.port);
            let waiting = half_open(site, target).zip(socket.backlog);
            if let Some((waiting, backlog)) = waiting
                && fills(waiting, backlog)
            {
                let queue = Some((waiting, Some(backlog)));
                let diagnosis = say(site, target, Some(socket), queue);
                found.push(match site.sysctl(COOKIES) {
                    Some(0) => Finding::error(diagnosis),
                    _ => Finding::warning(diagnosis),
                });
            }
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::audit::audit as audit_all;
    use crate::cause::constructed::{Bench, ETH0, at, node, socket};
    use crate::node::HalfOpen;

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.sysctl(COOKIES, "0");
        let site = bench.site();
        site.sockets = vec![socket(6, "0.0.0.0", 80)];
        site.half_open = Some(vec![HalfOpen {
            local: at("192.0.2.1:80"),
            count: 128,
        }]);
        site.counters = [(DROPPED.to_owned(), 9)].into_iter().collect();
        for _ in 0..2 {
            bench
                .tcp("192.0.2.10:40000", "192.0.2.1:80")
                .receive(ETH0)
                .at(HookId::TcpReceive)
                .with(
                    HookId::TcpDeliver,
                    Detail::Socket {
                        state: 10,
                        port: 80,
                    },
                )
                .ends();
        }
        bench
    }

    #[test]
    fn a_full_queue_is_named() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found
                .evidence
                .iter()
                .any(|proof| proof.text.starts_with("128 half-open"))
        );
    }

    #[test]
    fn without_its_length_it_is_likely_and_without_drops_nothing() {
        let mut bench = situation();
        bench.site().half_open = None;
        assert_eq!(bench.only().certainty, Certainty::Likely);
        bench.site().counters = std::iter::empty().collect();
        assert_eq!(bench.codes(), [] as [&str; 0]);
    }

    #[test]
    fn the_backlog_that_the_packet_met_will_do() {
        for (most, certainty) in [(128, Certainty::Certain), (129, Certainty::Likely)] {
            let mut bench = situation();
            bench.site().sockets[0].backlog = None;
            assert_eq!(bench.only().certainty, Certainty::Likely);
            let queue = Detail::Queue {
                waiting: 0,
                most,
                port: 80,
            };
            bench
                .tcp("192.0.2.10:40000", "192.0.2.1:80")
                .receive(ETH0)
                .with(HookId::TcpRequest, queue)
                .ends();
            assert_eq!(bench.only().certainty, certainty);
        }
    }

    #[test]
    fn a_full_queue_without_traffic() {
        let mut bench = situation();
        assert_eq!(bench.with_evidence(audit_all).len(), 1);
        bench.site().half_open = Some(vec![HalfOpen {
            local: at("192.0.2.1:80"),
            count: 127,
        }]);
        assert_eq!(bench.with_evidence(audit_all), []);
    }
}
