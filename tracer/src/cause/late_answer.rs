//! `late-answer`: who asked had closed the socket when the answer came.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::no_listener::found_no_socket;
use super::{Cause, Diagnosis, Site};
use crate::event::{Packet, Transport, protocol};
use crate::flow::Direction;
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "late-answer",
    title: "the answer came when nobody waited for it any more",
    explanation: "\
A question was answered, and the answer found its way back; but who had asked had closed the socket by then,
so the kernel there refused it: UDP with ICMP port unreachable, TCP's SYN+ACK with RST. The network did its
work, only not in time for this client, which says that it \"timed out\".

Why: the server is slow (overloaded, or itself waits for another: a DNS server for its forwarder), or the
client is not patient. glibc's resolver waits 5 s for each server, and a program may give it less.

Proof: the question left a network namespace, later the answer came there, and no socket was found for it.
Not meant is a client that asks several servers from one socket and takes the first answer, as musl's
resolver does: when another server has answered it, late ones hurt nobody.

Fix: find out why the answer takes so long; or give the client more time.",
    references: &[
        "Linux net/ipv4/udp.c, udp_rcv: without a socket answers ICMP port unreachable and drops with NO_SOCKET",
        "Linux net/ipv4/tcp_ipv4.c, tcp_v4_rcv: without a socket answers RST and drops with NO_SOCKET",
        "resolv.conf(5): options timeout:n, 5 seconds for each server by default, and attempts:n, 2 by default",
        "musl src/network/res_msend.c: asks all name servers at once and takes the first answer",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// What is asked so soon after an answer may have been on its way before.
const CONTENT: Duration = Duration::from_millis(500);

/// An answer that nobody waited for.
struct Late<'a> {
    failure: &'a Failure<'a>,
    question: &'a Journey,
    /// Where it was asked.
    netns: NetnsId,
    after: Duration,
}

impl<'a> Late<'a> {
    fn of(failure: &'a Failure<'a>) -> Option<Self> {
        if failure.direction != Direction::Reply || !found_no_socket(failure) {
            return None;
        }
        let (index, came) = failure.last(Role::Transport)?;
        let packet = failure.packet_at(index)?;
        let datagram = packet.transport == Transport::Udp;
        (datagram || packet.answers()).then_some(())?;
        let netns = failure.netns_at(index)?;
        let came_ns = came.time_ns;
        // One that is not kept any more may have been taken.
        let kept = failure.flow.of(Direction::Reply).count() as u64;
        (kept == failure.flow.replies).then_some(())?;
        let taken_ns = failure
            .flow
            .of(Direction::Reply)
            .filter(|reply| reply.was_taken() && reply.start_ns() < came_ns)
            .map(Journey::start_ns)
            .max();
        // Who gets an answer while more are under way may want no more of them.
        let content_ns =
            taken_ns.map_or(0, |taken| taken.saturating_add(CONTENT.as_nanos() as u64));
        let question = failure
            .flow
            .of(Direction::Request)
            .filter(|request| (content_ns..came_ns).contains(&request.start_ns()))
            .find(|request| was_asked_in(request, netns))?;
        // From another address it is no answer to who asked, however soon it comes.
        (packet.tuple.reversed() == question.first_tuple()?).then_some(())?;
        Some(Self {
            failure,
            question,
            netns,
            after: Duration::from_nanos(came_ns.saturating_sub(question.start_ns())),
        })
    }

    fn asker(&self) -> (u8, SocketAddr) {
        let client = self.failure.flow.client;
        (client.protocol, client.source)
    }

    fn asked(&self) -> (u8, SocketAddr) {
        let client = self.failure.flow.client;
        (client.protocol, client.destination)
    }
}

/// The packet was made in this namespace, and asks for something.
fn was_asked_in(request: &Journey, netns: NetnsId) -> bool {
    let made = request
        .events
        .iter()
        .position(|event| event.role() == Role::LocalOut);
    made.and_then(|index| request.namespace_at(index)) == Some(netns.0)
        && request.first_packet().is_some_and(Packet::opens)
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let late: Vec<Late<'_>> = evidence.failures().iter().filter_map(Late::of).collect();
    if late.is_empty() {
        return Vec::new();
    }
    let askers: HashSet<_> = late.iter().map(Late::asker).collect();
    let content: HashSet<_> = evidence
        .flows
        .iter()
        .filter(|flow| flow.is_settled())
        .map(|flow| (flow.client.protocol, flow.client.source))
        .filter(|asker| askers.contains(asker))
        .collect();
    let mut groups: BTreeMap<_, Vec<Late<'_>>> = BTreeMap::new();
    for late in late {
        if !content.contains(&late.asker()) {
            let group = groups.entry((late.netns, late.asked()));
            group.or_default().push(late);
        }
    }
    groups
        .into_iter()
        .filter_map(|((netns, (number, asked)), late)| one(evidence, netns, number, asked, &late))
        .collect()
}

fn one(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    number: u8,
    asked: SocketAddr,
    late: &[Late<'_>],
) -> Option<Diagnosis> {
    let latest = late.iter().max_by_key(|late| late.after)?;
    let name = protocol::name(number);
    let site = evidence.site(netns);
    let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let after = format!("{:.2} s", latest.after.as_secs_f64());
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{name} {asked}"),
        format!(
            "The answer from {name} {asked} came {after} after {place} had asked, and nobody there waited for it any \
             more: the answer is slow, or who asked is not patient."
        ),
    )
    .stopped_flows(evidence, late.iter().map(|late| late.failure.flow.id))
    .prove(
        "question",
        format!(
            "#{} left {place} {after} before the answer came",
            latest.question.id
        ),
    )
    .prove(
        "answer",
        format!("{} found no socket in {place}", latest.failure.words()),
    )
    .fix(
        [format!("find out what keeps the answer of {name} {asked} waiting for {after}")],
        "none: nothing is changed",
    )
    .fix(
        ["give the client more time   # DNS: `options timeout:N` in its resolv.conf"],
        "it waits longer where no answer comes at all",
    )
    .check(format!("tracer probe {name}://{asked}   # how long the answer takes"))
    .typed_for(site);
    Some(diagnosis)
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};
    use crate::event::Detail;

    const ASKER: &str = "192.0.2.1:40000";
    const SERVER: &str = "192.0.2.53:53";
    const OTHER: &str = "192.0.2.54:53";

    fn asks(bench: &mut Bench, server: &str) {
        let way = bench.udp(ASKER, server).at(HookId::LocalOut);
        way.transmit(ETH0).ends();
    }

    fn comes_late(bench: &mut Bench, server: &str, reason: &str) {
        bench
            .udp(server, ASKER)
            .receive(ETH0)
            .at(HookId::UdpReceive)
            .at(HookId::IcmpSend)
            .dropped(reason, "__udp4_lib_rcv");
    }

    fn comes_in_time(bench: &mut Bench, server: &str) {
        let way = bench.udp(server, ASKER).receive(ETH0);
        let socket = Detail::Socket {
            state: 1,
            port: 40000,
        };
        way.at(HookId::UdpReceive)
            .with(HookId::UdpDeliver, socket)
            .ends();
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        asks(&mut bench, SERVER);
        comes_late(&mut bench, SERVER, "NO_SOCKET");
        bench
    }

    #[test]
    fn an_answer_that_finds_no_socket_is_late_with_and_without_reasons() {
        for reason in ["NO_SOCKET", ""] {
            let mut bench = node();
            asks(&mut bench, SERVER);
            comes_late(&mut bench, SERVER, reason);
            let found = bench.only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Certain)
            );
            assert_eq!(found.subject, format!("udp {SERVER}"));
        }
    }

    #[test]
    fn the_time_is_that_since_the_question_that_was_not_answered() {
        let mut bench = node();
        let ask = |bench: &mut Bench, time_ns| {
            let way = bench.udp(ASKER, SERVER).at(HookId::LocalOut);
            way.began(time_ns).ends();
        };
        ask(&mut bench, 1_000_000_000);
        let taken = bench.udp(SERVER, ASKER).at(HookId::UdpReceive);
        let socket = Detail::Socket {
            state: 1,
            port: 40000,
        };
        let taken = taken.with(HookId::UdpDeliver, socket);
        taken.began(1_500_000_000).ends();
        ask(&mut bench, 2_000_000_000);
        ask(&mut bench, 7_000_000_000);
        let late = bench.udp(SERVER, ASKER).at(HookId::UdpReceive);
        let late = late.at(HookId::IcmpSend).began(9_250_000_000);
        late.dropped("NO_SOCKET", "__udp4_lib_rcv");
        let summary = bench.only().summary;
        assert!(summary.contains("7.25 s"), "{summary}");
    }

    #[test]
    fn who_has_an_answer_from_another_server_missed_nothing() {
        let mut bench = node();
        for server in [SERVER, OTHER] {
            asks(&mut bench, server);
        }
        comes_in_time(&mut bench, OTHER);
        comes_late(&mut bench, SERVER, "NO_SOCKET");
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }

    #[test]
    fn who_asks_many_things_at_once_and_takes_one_answer_missed_nothing() {
        let mut bench = node();
        asks(&mut bench, SERVER);
        comes_in_time(&mut bench, SERVER);
        asks(&mut bench, SERVER);
        comes_late(&mut bench, SERVER, "NO_SOCKET");
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }

    #[test]
    fn an_answer_that_is_not_kept_may_have_been_taken() {
        let mut bench = node();
        for _ in 0..20 {
            asks(&mut bench, SERVER);
        }
        comes_in_time(&mut bench, SERVER);
        for _ in 0..19 {
            comes_late(&mut bench, SERVER, "NO_SOCKET");
        }
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }

    #[test]
    fn an_answer_from_another_address_is_not_late() {
        let mut bench = node();
        let way = bench.udp(ASKER, SERVER).at(HookId::LocalOut);
        way.to(OTHER).transmit(ETH0).ends();
        comes_late(&mut bench, OTHER, "NO_SOCKET");
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
    }

    #[test]
    fn what_nobody_here_asked_for_is_no_late_answer() {
        let mut bench = node();
        // Passed on for somebody else, whose NAT was forgotten meanwhile.
        let way = bench.udp(ASKER, SERVER).receive(ETH0).transmit(ETH0);
        way.ends();
        comes_late(&mut bench, SERVER, "NO_SOCKET");
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
    }
}
