//! The view model: one journey, one diagnosis, one summary, as they are shown.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::names::{Names, named};
use super::stage::{self, Stage};
use crate::cause::{Diagnosis, Finding};
use crate::event::{Detail, Packet, Transport, Tuple, protocol, tcp_flag};
use crate::journey::{BranchKind, Ending, Journey};

/// A finished journey as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JourneyView {
    /// Number.
    pub id: u64,
    /// Wall time of first sight, `HH:MM:SS.micros` UTC.
    pub time: String,
    /// Protocol and what is special about the packet: `tcp SYN`.
    pub protocol: String,
    /// Source as first seen.
    pub source: String,
    /// The source's name in the cluster.
    pub source_name: Option<String>,
    /// Destination as first seen.
    pub destination: String,
    /// The destination's name in the cluster.
    pub destination_name: Option<String>,
    /// Destination after NAT, where it differs.
    pub real_destination: Option<String>,
    /// Its name in the cluster.
    pub real_destination_name: Option<String>,
    /// True when it arrived, false when it was lost or refused, unknown otherwise.
    pub arrived: Option<bool>,
    /// First to last sight, microseconds.
    pub duration_us: u64,
    /// How it ended, in words.
    pub ending: String,
    /// Stages of its way.
    pub path: Vec<Stage>,
    /// Its other fragments, or copies that a bridge made of it.
    #[serde(default)]
    pub branches: Vec<BranchView>,
    /// Events are missing: lost while it was under way, or more than are kept of one packet.
    #[serde(default)]
    pub gap: bool,
    /// Every event, where they are wanted: [`JourneyView::with_events`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventView>,
}

impl JourneyView {
    /// Shows a journey; `None` when it has no addresses.
    pub fn new(journey: &Journey, names: &Names<'_>) -> Option<Self> {
        let packet = journey.first_packet()?;
        let (first, last) = (journey.first_tuple()?, journey.last_tuple()?);
        let changed = (last.destination != first.destination).then_some(last.destination);
        Some(Self {
            id: journey.id,
            time: time_of_day(names.clock.wall(journey.start_ns())),
            protocol: protocol_words(packet),
            source: first.source.to_string(),
            source_name: names.endpoint(first.protocol, first.source),
            destination: first.destination.to_string(),
            destination_name: names.endpoint(first.protocol, first.destination),
            real_destination: changed.map(|real| real.to_string()),
            real_destination_name: changed.and_then(|real| names.endpoint(last.protocol, real)),
            arrived: arrived(journey),
            duration_us: journey.duration_ns() / 1000,
            ending: names.ending(journey),
            path: stage::path(journey, names),
            branches: branches(journey, names),
            gap: journey.gap,
            events: Vec::new(),
        })
    }

    /// Source and destination as first seen, and the destination after NAT; names before addresses.
    pub fn ends(&self) -> String {
        let real = self.real_destination.as_ref().map(|real| {
            let name = self.real_destination_name.as_deref();
            format!(" ⇒ {}", named(name, real))
        });
        format!(
            "{} → {}{}",
            named(self.source_name.as_deref(), &self.source),
            named(self.destination_name.as_deref(), &self.destination),
            real.unwrap_or_default()
        )
    }

    /// Adds each event of the journey.
    #[must_use]
    pub fn with_events(self, journey: &Journey, names: &Names<'_>) -> Self {
        Self {
            events: events(journey, names),
            ..self
        }
    }
}

/// One event of a journey as shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventView {
    /// Since the journey's first event, nanoseconds.
    pub after_ns: u64,
    /// Kernel function or tracepoint.
    pub place: Cow<'static, str>,
    /// Namespace that the packet was in.
    pub namespace: Option<String>,
    /// Device that it was at.
    pub device: Option<String>,
    /// Source and destination here.
    pub packet: Option<(String, String)>,
    /// What the hook adds, in words.
    pub detail: String,
}

impl fmt::Display for EventView {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after_ms = self.after_ns as f64 / 1e6;
        let mut line = format!("{after_ms:>9.3} ms  {:<22}", self.place);
        for name in [&self.namespace, &self.device].into_iter().flatten() {
            line += &format!("  {name:<10}");
        }
        if let Some((source, destination)) = &self.packet {
            line += &format!("  {source} → {destination}");
        }
        line += &format!("  {}", self.detail);
        formatter.write_str(line.trim_end())
    }
}

/// A fragment or copy as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BranchView {
    /// `fragment` or `copy`.
    pub kind: Cow<'static, str>,
    /// How it ended, in words.
    pub ending: String,
    /// Stages that it passed alone.
    pub path: Vec<Stage>,
}

fn branches(journey: &Journey, names: &Names<'_>) -> Vec<BranchView> {
    journey
        .branches
        .iter()
        .map(|branch| {
            let mut alone = Journey {
                id: journey.id,
                events: branch.events.clone(),
                ending: branch.ending,
                ..Journey::default()
            };
            let ending = names.ending(&alone);
            // One copy is enough; the others are for nobody, and that is no loss.
            if branch.kind == BranchKind::Copy && !journey.failed() {
                alone.ending = Ending::OutOfSight;
            }
            BranchView {
                kind: match branch.kind {
                    BranchKind::Fragment => "fragment",
                    BranchKind::Copy => "copy",
                }
                .into(),
                ending,
                path: stage::path(&alone, names),
            }
        })
        .collect()
}

fn arrived(journey: &Journey) -> Option<bool> {
    if journey.failed() {
        return Some(false);
    }
    (journey.ending == Ending::Delivered).then_some(true)
}

fn protocol_words(packet: &Packet) -> String {
    let name = protocol::name(packet.tuple.protocol);
    match packet.transport {
        Transport::Tcp { flags, .. } => {
            let flags: Vec<_> = [
                (tcp_flag::SYN, "SYN"),
                (tcp_flag::FIN, "FIN"),
                (tcp_flag::RST, "RST"),
                (tcp_flag::PSH, "PSH"),
                (tcp_flag::ACK, "ACK"),
            ]
            .into_iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, name)| name)
            .collect();
            format!("{name} {}", flags.join("+"))
        }
        Transport::Icmp { kind, code } => format!("{name} {kind}/{code}"),
        Transport::Arp { reply } => {
            format!("{name} {}", if reply { "reply" } else { "who-has" })
        }
        Transport::Fragment { .. } => format!("{name} fragment"),
        Transport::Udp | Transport::Other => name,
    }
}

fn events(journey: &Journey, names: &Names<'_>) -> Vec<EventView> {
    let start = journey.start_ns();
    journey
        .events
        .iter()
        .enumerate()
        .map(|(index, event)| {
            let netns = journey.namespace_at(index);
            EventView {
                after_ns: event.time_ns.saturating_sub(start),
                place: crate::hook::of(event.hook).place.symbol().into(),
                namespace: netns.map(|netns| names.namespace(netns)),
                device: event.ifindex.map(|ifindex| names.device(netns, ifindex)),
                packet: event.packet.as_ref().map(|packet| {
                    let Tuple {
                        source,
                        destination,
                        ..
                    } = packet.tuple;
                    (source.to_string(), destination.to_string())
                }),
                detail: detail(&event.detail, netns, names),
            }
        })
        .collect()
}

pub(super) fn detail(detail: &Detail, netns: Option<u32>, names: &Names<'_>) -> String {
    match detail {
        Detail::None => String::new(),
        Detail::Netfilter(hook) => hook.name().into(),
        Detail::Service {
            address,
            protocol: number,
        } => format!("looks for {} {address}", protocol::name(*number)),
        Detail::Connection { real, .. } => format!("chose {real}"),
        Detail::Sent {
            real,
            protocol,
            state,
            ..
        } => {
            let state = stage::ipvs_state(*protocol, *state)
                .map_or_else(String::new, |state| format!(", {state}"));
            format!("sent to {real}{state}")
        }
        Detail::Conntrack {
            original,
            reply,
            relation,
            status,
            zone,
            ..
        } => {
            let relation = relation.map_or_else(String::new, |relation| {
                format!("{} ", relation_words(relation))
            });
            let zone = if *zone == 0 {
                String::new()
            } else {
                format!(" zone {zone}")
            };
            let status: String = status_words(*status)
                .map(|word| format!(", {word}"))
                .collect();
            format!(
                "conntrack {relation}{} → {}, reply {} → {}{zone}{status}",
                original.source, original.destination, reply.source, reply.destination
            )
        }
        Detail::Queue {
            waiting,
            most,
            port,
        } => format!("{waiting} of {most} wait to be accepted on port {port}"),
        Detail::Route {
            kind,
            error,
            ifindex,
        } => {
            let device = ifindex.map_or_else(String::new, |ifindex| {
                format!(" dev {}", names.device(netns, ifindex))
            });
            let error = if *error == 0 {
                String::new()
            } else {
                format!(" errno {error}")
            };
            let kind = if *kind == stage::UNSAID {
                String::new()
            } else {
                format!(" {}", stage::route_kind(*kind))
            };
            format!("route{kind}{device}{error}")
        }
        Detail::Socket { state, port } => format!("socket on port {port}, state {state}"),
        Detail::Icmp { kind, code } => format!("icmp {kind}/{code}"),
        Detail::Drop { location, reason } => names.drop(*location, *reason),
        Detail::Neighbour { address, .. } => format!("neighbour {address}"),
        Detail::Device { ifindex } => format!("to {}", names.device(netns, *ifindex)),
    }
}

/// What a packet is to its conntrack entry (`enum ip_conntrack_info`).
const fn relation_words(relation: u8) -> &'static str {
    match relation {
        0 => "established",
        1 => "related",
        2 => "new",
        3 => "established reply",
        4 => "related reply",
        _ => "unknown relation",
    }
}

/// Those bits of a conntrack entry's status (`IPS_*`) that say what has become of it.
fn status_words(status: u16) -> impl Iterator<Item = &'static str> {
    const WORDS: [(u16, &str); 7] = [
        (1 << 0, "expected"),
        (1 << 1, "replied"),
        (1 << 2, "assured"),
        (1 << 3, "confirmed"),
        (1 << 4, "snat"),
        (1 << 5, "dnat"),
        (1 << 9, "dying"),
    ];
    WORDS
        .into_iter()
        .filter(move |(bit, _)| status & bit != 0)
        .map(|(_, word)| word)
}

pub(in crate::view) fn time_of_day(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:06}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_micros()
    )
}

/// A diagnosis as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiagnosisView {
    /// Code of the cause.
    pub cause: Cow<'static, str>,
    /// `certain` or `likely`.
    pub certainty: Cow<'static, str>,
    /// `error` or `warning`, where no packet was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Cow<'static, str>>,
    /// Protocol, address and port it is about.
    pub subject: String,
    /// Connections stopped.
    pub failed_connections: usize,
    /// Connections to the subject in all.
    pub connections: usize,
    /// In words.
    pub summary: String,
    /// Source and text of each piece of evidence.
    pub evidence: Vec<(Cow<'static, str>, String)>,
    /// What is missing to be certain.
    pub missing: Vec<String>,
    /// Ways to fix it.
    pub fixes: Vec<FixView>,
    /// Command that shows whether the fix worked.
    pub check: String,
    /// What it brings about.
    pub consequences: Vec<ConsequenceView>,
}

/// What a cause brings about, as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsequenceView {
    /// Code of the cause.
    pub cause: Cow<'static, str>,
    /// What it is about.
    pub subject: String,
    /// In words.
    pub summary: String,
}

/// A fix as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FixView {
    /// Lines to paste.
    pub lines: Vec<String>,
    /// What it may break.
    pub risk: Cow<'static, str>,
}

impl From<&Diagnosis> for DiagnosisView {
    fn from(diagnosis: &Diagnosis) -> Self {
        Self {
            cause: diagnosis.code.into(),
            certainty: diagnosis.certainty.name().into(),
            severity: None,
            subject: diagnosis.subject.clone(),
            failed_connections: diagnosis.failed,
            connections: diagnosis.total,
            summary: diagnosis.summary.clone(),
            evidence: diagnosis
                .evidence
                .iter()
                .map(|proof| (proof.source.into(), proof.text.clone()))
                .collect(),
            missing: diagnosis.missing.clone(),
            fixes: diagnosis
                .fixes
                .iter()
                .map(|fix| FixView {
                    lines: fix.lines.clone(),
                    risk: fix.risk.into(),
                })
                .collect(),
            check: diagnosis.check.clone(),
            consequences: diagnosis
                .consequences
                .iter()
                .map(|consequence| ConsequenceView {
                    cause: consequence.code.into(),
                    subject: consequence.subject.clone(),
                    summary: consequence.summary.clone(),
                })
                .collect(),
        }
    }
}

impl From<&Finding> for DiagnosisView {
    fn from(finding: &Finding) -> Self {
        Self {
            severity: Some(finding.severity.name().into()),
            ..Self::from(&finding.diagnosis)
        }
    }
}

/// How many connections a cause stopped in all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CauseCount {
    /// Code of the cause.
    pub cause: Cow<'static, str>,
    /// What it is about.
    pub subject: String,
    /// Connections stopped.
    pub failed_connections: usize,
    /// Connections to the subject in all.
    pub connections: usize,
}

impl From<&DiagnosisView> for CauseCount {
    fn from(diagnosis: &DiagnosisView) -> Self {
        Self {
            cause: diagnosis.cause.clone(),
            subject: diagnosis.subject.clone(),
            failed_connections: diagnosis.failed_connections,
            connections: diagnosis.connections,
        }
    }
}

/// What a trace came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SummaryView {
    /// Seconds traced.
    pub seconds: f64,
    /// Events taken.
    pub events: u64,
    /// Journeys ended.
    pub packets: u64,
    /// Journeys that failed.
    pub failed: u64,
    /// Events by hook.
    pub hooks: Vec<(&'static str, u64)>,
    /// Packets received and sent per device.
    pub devices: Vec<DeviceCount>,
    /// Packets that did not arrive, by the kernel's reason or what refused them.
    pub drops: Vec<(String, u64)>,
    /// How far each cause that was named reaches, in the order in which they were named.
    pub causes: Vec<CauseCount>,
    /// Lost events by cause.
    pub lost: Vec<(String, u64)>,
    /// Events of flows that were left out to keep tracing cheap.
    pub left_out: u64,
    /// Runs of our programs in the kernel.
    pub kernel_runs: u64,
    /// Time of our programs in the kernel, milliseconds.
    pub kernel_ms: f64,
    /// Processor time of this process, milliseconds.
    pub process_ms: f64,
}

/// Packets through one device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceCount {
    /// Namespace and device.
    pub device: String,
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journey::constructed::journey;
    use crate::kernel::reasons::DropReasons;
    use crate::kernel::symbols::Symbols;
    use crate::node::Snapshot;
    use crate::view::names::Clock;

    #[test]
    fn events_are_part_of_the_object_where_they_are_wanted() {
        let (facts, reasons) = (Snapshot::empty(), DropReasons::default());
        let symbols = Symbols::default();
        let names = Names {
            facts: &facts,
            reasons: &reasons,
            symbols: &symbols,
            clock: Clock::recorded(SystemTime::UNIX_EPOCH, 0),
            cluster: None,
        };
        let sent = journey(1, 6, &[("192.0.2.9:4000", "192.0.2.1:80")]);
        let view = JourneyView::new(&sent, &names).expect("it has addresses");
        let object = |view: &JourneyView| serde_json::to_value(view).expect("an object");
        assert!(object(&view).get("events").is_none());
        let view = view.with_events(&sent, &names);
        let event = &object(&view)["events"][0];
        assert_eq!(event["packet"][1], "192.0.2.1:80");
        assert_eq!(event["place"], "ip_output");
        let line = view.events[0].to_string();
        assert!(
            line.contains("ip_output") && line.ends_with("192.0.2.9:4000 → 192.0.2.1:80"),
            "{line}"
        );
    }
}
