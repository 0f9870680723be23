//! `refused-elsewhere`: another host, or one on the way to it, said no.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::audit::nothing;
use super::evidence::{Evidence, endpoint};
use super::service::host_words;
use super::{Cause, Diagnosis};
use crate::event::{Packet, Transport, icmp, protocol};
use crate::flow::{Direction, Flow};
use crate::hook::Role;
use crate::journey::Journey;
use crate::node::NetnsId;

pub(super) const CAUSE: Cause = Cause {
    code: "refused-elsewhere",
    title: "another host, or one on the way to it, refused the packet",
    explanation: "\
The packets took their way as they should, and word came back that they are not wanted: RST, which a program
shows as \"connection refused\", or an ICMP error. It was not made where this trace looks, but came in by a
device.

Why: RST and \"port unreachable\" say that no program listens on that port of the other host, or that a
firewall with a rejecting rule stands before it. \"Host\" or \"network unreachable\" says that a router has
no way to it, \"administratively prohibited\" that a rule there forbids it.

Proof: the packet that asked, and the refusal that came in by a device; who sent it is its source address.
A firewall may send RST in another host's name. Where another cause explains the same connection, this one
is not named.

Fix: start the program there, or correct the address and port; or change the rule or the route of whoever
refused.",
    references: &[
        "RFC 9293, 3.10.7.1: a SYN to a closed port is answered with RST",
        "RFC 1812, 5.2.7.1: what routers say by destination unreachable, and its codes",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

/// How the word came back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Reset,
    Icmp(String),
}

/// A question and the refusal that came back.
struct Refused<'a> {
    flow: &'a Flow,
    question: &'a Journey,
    answer: &'a Journey,
    /// Where the question went in the end.
    to: SocketAddr,
    /// Who refused it, and how.
    by: IpAddr,
    word: Word,
}

impl<'a> Refused<'a> {
    fn of(flow: &'a Flow) -> Option<Self> {
        // What was lost here is a cause of its own.
        if flow.suspicious > 0 {
            return None;
        }
        let question = flow.of(Direction::Request).next()?;
        // Who says more had an answer before.
        let opens = |journey: &Journey| journey.first_packet().is_some_and(Packet::opens);
        flow.of(Direction::Request).all(opens).then_some(())?;
        let came_in = |answer: &&Journey| {
            let first = answer.events.first();
            first.is_some_and(|event| event.role() == Role::Receive)
        };
        let answer = flow.of(Direction::Reply).find(came_in)?;
        let packet = answer.first_packet()?;
        let number = packet.tuple.protocol;
        let word = match packet.transport {
            Transport::Icmp { kind, code } if icmp::refuses(number, kind, code) => {
                Word::Icmp(icmp::words(number, kind, code))
            }
            _ if packet.resets() => Word::Reset,
            _ => return None,
        };
        Some(Self {
            flow,
            question,
            answer,
            to: question.last_tuple()?.destination,
            by: packet.tuple.source.ip(),
            word,
        })
    }
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut groups: BTreeMap<_, Vec<Refused<'_>>> = BTreeMap::new();
    for refused in evidence
        .refused()
        .iter()
        .filter_map(|flow| Refused::of(flow))
    {
        let number = refused.flow.client.protocol;
        let key = (number, refused.to, refused.by, refused.word.clone());
        groups.entry(key).or_default().push(refused);
    }
    groups
        .into_iter()
        .filter_map(|((number, to, by, word), refused)| {
            one(evidence, number, to, by, &word, &refused)
        })
        .collect()
}

fn one(
    evidence: &Evidence<'_>,
    number: u8,
    to: SocketAddr,
    by: IpAddr,
    word: &Word,
    all: &[Refused<'_>],
) -> Option<Diagnosis> {
    let Refused {
        flow,
        question,
        answer,
        ..
    } = all.first()?;
    let name = protocol::name(number);
    let (said, no_program) = match word {
        Word::Reset => ("RST".to_owned(), true),
        Word::Icmp(words) => (format!("ICMP {words}"), words == "port unreachable"),
    };
    let mut summary = if no_program {
        format!(
            "{said} came back from {by}: nothing listens on {name} {to} there, or a firewall rejects the packets."
        )
    } else {
        format!(
            "{said} came back from {by}, so {name} {to} cannot be had: a route or a rule there forbids it."
        )
    };
    let asked = flow.client.destination;
    if asked != to {
        summary += &format!(" They were sent to {asked}, which leads there.");
    }
    let came_in = answer.events.first()?;
    let site = came_in
        .netns
        .and_then(|netns| evidence.site(NetnsId(netns)));
    let device = site
        .zip(came_in.ifindex)
        .map(|(site, index)| format!("{} of {}", site.device(index), site.name()));
    let after = answer.start_ns().saturating_sub(question.start_ns());
    let host = host_words(evidence, by);
    let diagnosis = Diagnosis::new(&CAUSE, format!("{name} {to} refused by {by}"), summary)
        .stopped_flows(evidence, all.iter().map(|refused| refused.flow.id))
        .prove(
            "question",
            format!(
                "#{} {name} {} → {}",
                question.id,
                endpoint(flow.client.source),
                endpoint(asked)
            ),
        )
        .prove(
            "answer",
            format!(
                "#{} {said} from {by} came in by {} {:.1} ms later",
                answer.id,
                device.unwrap_or_else(|| "a device".into()),
                after as f64 / 1e6
            ),
        );
    let diagnosis = if no_program {
        let list = if number == protocol::UDP {
            "ss -lnup"
        } else {
            "ss -lntp"
        };
        diagnosis
            .fix(
                [format!(
                    "{list} 'sport = :{}'   # on {host}: which program listens, and where?",
                    to.port()
                )],
                "none: this only looks",
            )
            .fix(
                [format!(
                    "let {name} port {} through the firewall that rejects it",
                    to.port()
                )],
                "the port becomes reachable from there",
            )
    } else {
        diagnosis.fix(
            [format!(
                "ip route get {}   # on {host}, and look at its rules",
                to.ip()
            )],
            "none: this only looks",
        )
    };
    Some(diagnosis.check(format!("tracer probe {name}://{asked}")))
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, ETH0, node};
    use crate::event::tcp_flag;

    const CLIENT: &str = "192.0.2.1:40000";
    const SERVER: &str = "198.51.100.7:443";
    const ROUTER: &str = "192.0.2.254:0";

    fn asks(bench: &mut Bench, number: u8) {
        let way = match number {
            protocol::UDP => bench.udp(CLIENT, SERVER),
            _ => bench.tcp(CLIENT, SERVER),
        };
        way.at(HookId::LocalOut).transmit(ETH0).ends();
    }

    fn says(bench: &mut Bench, flags: u8, hook: HookId) {
        let transport = Transport::tcp(0, flags);
        let way = bench.packet(protocol::TCP, SERVER, CLIENT, transport);
        let way = if hook == HookId::DeviceReceive {
            way.receive(ETH0)
        } else {
            way.at(hook)
        };
        way.at(HookId::TcpReceive).ends();
    }

    fn errs(bench: &mut Bench, number: u8, kind: u8, code: u8) {
        let transport = Transport::Icmp { kind, code };
        let way = bench.packet(protocol::ICMP, ROUTER, "192.0.2.1:0", transport);
        let way = way.about(number, CLIENT, SERVER).receive(ETH0);
        way.at(HookId::IcmpReceive).ends();
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        asks(&mut bench, protocol::TCP);
        says(
            &mut bench,
            tcp_flag::RST | tcp_flag::ACK,
            HookId::DeviceReceive,
        );
        bench
    }

    #[test]
    fn a_reset_from_outside_is_said_with_its_sender() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(
            found.summary.contains("RST came back from 198.51.100.7"),
            "{found:#?}"
        );
        assert!(
            found.evidence[1].text.contains("eth0 of node"),
            "{found:#?}"
        );
    }

    #[test]
    fn the_refusal_may_end_before_what_it_refuses() {
        let mut bench = node();
        let flags = tcp_flag::RST | tcp_flag::ACK;
        says(&mut bench, flags, HookId::DeviceReceive);
        let asked = bench.tcp(CLIENT, SERVER).at(HookId::LocalOut);
        asked.began(1).transmit(ETH0).ends();
        let found = bench.only();
        assert_eq!((found.code, found.failed), (CAUSE.code, 1));
        assert_eq!(
            found.subject,
            format!("tcp {SERVER} refused by 198.51.100.7")
        );
    }

    #[test]
    fn icmp_says_who_and_why() {
        for (number, code, words) in [
            (protocol::TCP, 13, "administratively prohibited"),
            (protocol::TCP, 1, "host unreachable"),
            (protocol::UDP, 3, "nothing listens on udp 198.51.100.7:443"),
        ] {
            let mut bench = node();
            asks(&mut bench, number);
            errs(&mut bench, number, 3, code);
            let found = bench.only();
            assert_eq!(found.code, CAUSE.code);
            assert!(found.summary.contains(words), "{found:#?}");
            assert!(found.summary.contains("192.0.2.254"), "{found:#?}");
        }
    }

    #[test]
    fn a_copy_that_the_socket_throws_away_later_is_not_the_answer() {
        let mut bench = node();
        asks(&mut bench, protocol::TCP);
        let transport = Transport::Icmp { kind: 3, code: 13 };
        let copy = bench.packet(protocol::ICMP, ROUTER, "192.0.2.1:0", transport);
        let copy = copy.about(protocol::TCP, CLIENT, SERVER);
        copy.at(HookId::Drop).ends();
        errs(&mut bench, protocol::TCP, 3, 13);
        assert_eq!(bench.only().code, CAUSE.code);
    }

    #[test]
    fn that_a_packet_is_too_big_is_no_refusal() {
        let mut bench = node();
        asks(&mut bench, protocol::UDP);
        errs(&mut bench, protocol::UDP, 3, 4);
        errs(&mut bench, protocol::UDP, 11, 0);
        assert!(!bench.codes().contains(&CAUSE.code), "{:?}", bench.codes());
    }

    #[test]
    fn a_connection_that_was_accepted_or_was_there_before_was_not_refused() {
        let mut bench = node();
        asks(&mut bench, protocol::TCP);
        says(
            &mut bench,
            tcp_flag::SYN | tcp_flag::ACK,
            HookId::DeviceReceive,
        );
        says(&mut bench, tcp_flag::RST, HookId::DeviceReceive);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
        let mut bench = node();
        let transport = Transport::tcp(9, tcp_flag::ACK);
        let way = bench.packet(protocol::TCP, CLIENT, SERVER, transport);
        way.at(HookId::LocalOut).transmit(ETH0).ends();
        says(&mut bench, tcp_flag::RST, HookId::DeviceReceive);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }

    #[test]
    fn what_is_refused_where_the_trace_looks_has_another_cause() {
        let mut bench = node();
        asks(&mut bench, protocol::TCP);
        says(&mut bench, tcp_flag::RST, HookId::LocalOut);
        assert!(bench.codes().is_empty(), "{:?}", bench.codes());
    }
}
