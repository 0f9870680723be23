//! `conntrack-invalid`: conntrack could make nothing of a packet, and it was dropped or left untranslated.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use super::audit::nothing;
use super::evidence::{Evidence, Failure};
use super::filtered::{Kind, Stop, diagnoses};
use super::masquerade_missing::{TRACK, TRACK_RISK, hides_from_netfilter};
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, Transport, Tuple, tcp_flag};
use crate::node::{NetnsId, VirtualServerKey};

pub(super) const CAUSE: Cause = Cause {
    code: "conntrack-invalid",
    title: "conntrack finds the packet invalid: it is dropped by a rule, or goes on untranslated and is refused",
    explanation: "\
Conntrack follows each TCP connection's sequence numbers. A packet outside of the window, or of a connection
that it does not know (asymmetric routes, an entry that expired or was deleted), is INVALID and has no entry.
Rules such as kube-proxy's in KUBE-FORWARD drop it. Where no rule does, NAT passes it by: the answer of a
service's pod reaches the client with the pod's own address, and the client resets the connection. With
net.ipv4.vs.conntrack=0 conntrack knows no connection of IPVS, and every answer of a real server is INVALID. What is
still on its way when a connection is reset is INVALID as well; that nobody misses, and it is not told.

Proof: a rule whose condition is the state INVALID dropped the packet; or conntrack saw the packet, its entry
says that it is to be translated, and it went on untranslated and was answered with RST.

Fix: nf_conntrack_tcp_be_liberal=1 takes what is outside of the window; asymmetric routes want repair; where IPVS
hides its connections, net.ipv4.vs.conntrack=1.",
    references: &[
        "Linux net/netfilter/nf_conntrack_proto_tcp.c, nf_conntrack_tcp_packet: refuses packets outside of the \
         window and answers without a request; such packets carry no entry, so NAT passes them by",
        "https://github.com/kubernetes/kubernetes/issues/74840",
        "https://github.com/kubernetes/kubernetes/issues/94861",
        "https://github.com/kubernetes/kubernetes/issues/117924",
    ],
    explains: &[],
    examine,
    audit: nothing,
};

const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const LOOSE: &str = "net/netfilter/nf_conntrack_tcp_loose";

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let hiding: Hiding = evidence
        .sites()
        .filter(|site| hides_from_netfilter(site))
        .map(|site| (site.facts.id, real_servers(site)))
        .collect();
    let mut found = diagnoses(
        evidence,
        Kind::Invalid,
        |stop| match hidden_by(evidence, &hiding, stop) {
            Some(site) => format!("IPVS of {}", site.name()),
            None => stop.place(),
        },
        |stop, subject| match hidden_by(evidence, &hiding, stop) {
            Some(site) => hidden(site, stop, subject),
            None => strange(evidence.site(stop.netns), subject),
        },
    );
    found.extend(
        evidence
            .group(|failure| {
                untranslated(failure).map(|(netns, stray, _)| (netns, stray.source.ip()))
            })
            .into_iter()
            .filter_map(|((netns, _), failures)| refused(evidence, netns, &failures)),
    );
    found
}

/// The real servers of the namespaces whose IPVS hides connections from conntrack.
type Hiding = HashMap<NetnsId, HashSet<(u8, SocketAddr)>>;

/// The namespace whose IPVS hides from conntrack the connection that a real server's packet belongs to.
fn hidden_by<'e, 'a>(
    evidence: &'e Evidence<'a>,
    hiding: &Hiding,
    stop: &Stop<'a>,
) -> Option<&'e Site<'a>> {
    let servers = hiding.get(&stop.netns)?;
    let tuple = stop.tuple(evidence)?;
    servers
        .contains(&(tuple.protocol, tuple.source))
        .then(|| evidence.site(stop.netns))
        .flatten()
}

/// Whose answers belong to connections of IPVS: protocol, address and port of the real servers.
fn real_servers(site: &Site<'_>) -> HashSet<(u8, SocketAddr)> {
    let servers = site.facts.ipvs.iter().flatten();
    servers
        .filter_map(|server| match server.key {
            VirtualServerKey::Endpoint { protocol, .. } => Some((protocol, &server.destinations)),
            VirtualServerKey::Mark { .. } => None,
        })
        .flat_map(|(protocol, destinations)| {
            let at = destinations.iter();
            at.map(move |real| (protocol, SocketAddr::new(real.address, real.port)))
        })
        .collect()
}

fn hidden(site: &Site<'_>, stop: &Stop<'_>, subject: String) -> Diagnosis {
    let place = site.name();
    let summary = format!(
        "Conntrack knows no connection that IPVS of {place} made, because net.ipv4.vs.conntrack is 0: answers of real \
         servers are INVALID to it, and {} drops them.",
        stop.place()
    );
    Diagnosis::new(&CAUSE, subject, summary)
        .prove("sysctl", format!("net.ipv4.vs.conntrack of {place} is 0"))
        .fix(
            [
                TRACK,
                "systemctl restart kube-proxy   # sets it when it starts",
            ],
            TRACK_RISK,
        )
        .check("sysctl net.ipv4.vs.conntrack   # 1")
}

fn strange(site: Option<&Site<'_>>, place: String) -> Diagnosis {
    let summary = format!(
        "Conntrack could make nothing of packets (outside of the TCP window, or of a connection that it does not \
         know), and {place} drops what is INVALID."
    );
    heal(site, Diagnosis::new(&CAUSE, place, summary))
}

/// An answer that its entry wants translated, and that reached the client as it was: where conntrack saw
/// it, its addresses, and those that its client knows.
fn untranslated(failure: &Failure<'_>) -> Option<(NetnsId, Tuple, Tuple)> {
    failure.was_reset().then_some(())?;
    let packet = failure.packet_at(usize::MAX)?;
    let Transport::Tcp { flags, .. } = packet.transport else {
        return None;
    };
    // An answer to an opening that is not translated has other causes.
    let middle = flags & tcp_flag::SYN == 0 && flags & tcp_flag::RST == 0;
    let events = &failure.journey.events;
    let (index, original) =
        events
            .iter()
            .enumerate()
            .find_map(|(index, event)| match event.detail {
                Detail::Conntrack {
                    original, reply, ..
                } if reply == packet.tuple && original.destination != reply.source => {
                    Some((index, original))
                }
                _ => None,
            })?;
    middle.then_some(())?;
    Some((failure.netns_at(index)?, packet.tuple, original))
}

fn refused(
    evidence: &Evidence<'_>,
    netns: NetnsId,
    failures: &[&Failure<'_>],
) -> Option<Diagnosis> {
    let first = failures.first()?;
    let (_, answer, original) = untranslated(first)?;
    let site = evidence.site(netns);
    let liberal = site.and_then(|site| site.sysctl(LIBERAL));
    let counted = site.and_then(|site| site.facts.counters.get("conntrack invalid"));
    let asked = original.destination;
    Some(
        heal(site, Diagnosis::new(
            &CAUSE,
            format!("tcp {asked}"),
            format!(
                "Answers of {} to {} kept their own address, although the client knows the connection as {asked}: conntrack \
                 found them INVALID, so NAT passed them by, and the client reset the connection.",
                answer.source, answer.destination
            ),
        ))
        .stopped(evidence, failures)
        .prove(
            "packet",
            format!("{} reached its client untranslated; RST sent", first.words()),
        )
        .prove(
            "conntrack",
            format!(
                "tcp {} → {asked}, reply {} → {}: the answer was to be translated",
                original.source, answer.source, answer.destination
            ),
        )
        .prove_if("sysctl", liberal.map(|value| format!("{} = {value}", LIBERAL.replace('/', "."))))
        .prove_if("counter", counted.filter(|&count| count > 0).map(|count| format!("conntrack counted {count} invalid packets"))),
    )
}

fn heal(site: Option<&Site<'_>>, diagnosis: Diagnosis) -> Diagnosis {
    let diagnosis = if site.and_then(|site| site.sysctl(LOOSE)) == Some(0) {
        diagnosis
            .prove("sysctl", "net.netfilter.nf_conntrack_tcp_loose = 0: connections are not picked up in their middle")
            .fix(
                [
                    "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
                    "echo 'net.netfilter.nf_conntrack_tcp_loose = 1' > /etc/sysctl.d/99-conntrack-loose.conf   # lasting",
                ],
                "conntrack believes the first packet that it sees of a connection",
            )
    } else {
        diagnosis
    };
    diagnosis
        .fix(
            [
                "sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1",
                "echo 'net.netfilter.nf_conntrack_tcp_be_liberal = 1' > /etc/sysctl.d/99-conntrack.conf   # lasting",
            ],
            "packets outside of the window are let through to the endpoints, which check them themselves",
        )
        .fix(
            ["ip route get CLIENT   # on both nodes: do both directions go the same way?"],
            "none: this only looks; conntrack must see both directions",
        )
        .check("conntrack -S | grep -o 'invalid=[0-9]*'   # no longer rises")
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ETH0, at, node, service};
    use crate::cause::filtered::tests::{chain, forwarded, rule};
    use crate::event::NetfilterHook;
    use crate::node::netfilter::{Action, Subject, Test, Tool, state};

    const POD: u32 = 7;

    /// A pod's data packet to a client that asked a service.
    fn answer(translate: bool) -> Bench {
        let mut bench = node();
        let transport = Transport::tcp(5000, tcp_flag::ACK);
        let tuple = |source: &str, destination: &str| Tuple {
            protocol: 6,
            source: at(source),
            destination: at(destination),
        };
        let asked = if translate {
            "10.96.0.5:80"
        } else {
            "10.244.0.9:80"
        };
        bench
            .packet(6, "10.244.0.9:80", "10.244.0.3:4000", transport)
            .receive(CNI0)
            .with(
                HookId::ConntrackTcp,
                Detail::Conntrack {
                    original: tuple("10.244.0.3:4000", asked),
                    reply: tuple("10.244.0.9:80", "10.244.0.3:4000"),
                    destination_nat: false,
                    relation: Some(3),
                    status: 0,
                    zone: 0,
                },
            )
            .at(HookId::Forward)
            .netns(POD)
            .receive(ETH0)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        answer(true)
    }

    #[test]
    fn an_untranslated_answer_is_reset_by_its_client() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert!(found.summary.contains("10.96.0.5:80"), "{found:#?}");
    }

    #[test]
    fn ipvs_that_hides_its_connections_is_told_from_strange_packets() {
        let mut drop_invalid = rule(None, Action::Drop, "");
        drop_invalid.tests.push(Test {
            negated: false,
            on: Subject::State(state::INVALID),
        });
        let forward = chain(
            "FORWARD",
            Some((NetfilterHook::Forward, false)),
            vec![drop_invalid],
        );
        // Whose packet it is that was dropped, and what the sysctl says.
        for (real, value, hides) in [
            ("192.0.2.10:40000", "0", true),
            ("192.0.2.10:40000", "1", false),
            ("192.0.2.11:40000", "0", false),
        ] {
            let mut bench = forwarded(Tool::IptablesNft, vec![forward.clone()]);
            bench.site().ipvs = Some(vec![service(6, "198.51.100.1:80", &[(real, 1)])]);
            bench.sysctl("net/ipv4/vs/conntrack", value);
            let found = bench.only();
            assert_eq!(found.code, CAUSE.code);
            assert_eq!(found.fixes[0].lines[0] == TRACK, hides, "{real} {value}");
        }
    }

    #[test]
    fn an_answer_without_translation_is_another_case() {
        assert_eq!(answer(false).codes(), [] as [&str; 0]);
    }
}
