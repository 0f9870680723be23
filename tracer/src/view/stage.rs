//! The stages of a journey in a person's words: many events, few words.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tracer_ebpf::hook::HookId;

use super::names::Names;
use crate::event::{Detail, Event, Packet, Tuple, icmp, protocol};
use crate::hook::Role;
use crate::journey::{Journey, refuses};
use crate::node::NetnsId;

/// One stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stage {
    /// Namespace, where it is another than the stage before.
    pub namespace: Option<String>,
    /// In words.
    pub text: String,
    /// The packet was lost here.
    pub lost: bool,
    /// Index of the event that it is about, in the journey.
    #[serde(skip)]
    pub event: usize,
}

/// The type of a route that does not say it.
pub(super) const UNSAID: u16 = 0;
/// TCP state numbers: of a listening socket, and of what is left of a closed connection.
const LISTEN: u8 = 10;
const TIME_WAIT: u8 = 6;

/// The stages of a journey.
pub fn path(journey: &Journey, names: &Names<'_>) -> Vec<Stage> {
    let mut builder = Builder {
        names,
        netns: None,
        index: 0,
        stages: Vec::new(),
    };
    for (index, event) in journey.events.iter().enumerate() {
        builder.index = index;
        builder.tunnel(journey, index, event);
        builder.event(journey, index, event);
    }
    builder.stages
}

struct Builder<'a> {
    names: &'a Names<'a>,
    netns: Option<u32>,
    /// Of the event at work.
    index: usize,
    stages: Vec<Stage>,
}

impl Builder<'_> {
    fn event(&mut self, journey: &Journey, index: usize, event: &Event) {
        let rest = &journey.events[index + 1..];
        match (&event.detail, event.role()) {
            (_, Role::Receive) => {
                if let Some(ifindex) = event.ifindex {
                    self.device(event, ifindex);
                }
            }
            (Detail::Device { ifindex }, Role::Transmit) => self.device(event, *ifindex),
            (Detail::Netfilter(hook), _) if hook.is_of_ip() => self.step(event, hook.name().into()),
            (_, Role::LocalIn) => self.step(event, "route local".into()),
            (_, Role::Forward) => self.step(event, "route forward".into()),
            (Detail::Route { kind, .. }, Role::RouteError) if *kind != UNSAID => {
                self.lose(event, format!("route: {}", error_kind(*kind)));
            }
            (_, Role::RouteError) => self.lose(event, "no usable route".into()),
            (Detail::Service { address, .. }, _) => {
                let found = |event: &Event| {
                    matches!(event.role(), Role::IpvsSchedule | Role::IpvsNoDestination)
                };
                // The node's own address is no service's, and a tunnel's packet goes there.
                let carried = journey.is_carried(index);
                if !carried && !rest.is_empty() && !rest.iter().any(found) {
                    self.step(event, format!("ipvs: no virtual server {address}"));
                }
            }
            (Detail::Connection { real, forwarding }, _) => {
                let scheduler = self
                    .scheduler(journey)
                    .map_or_else(String::new, |name| format!("{name} "));
                let protocol = event.packet.as_ref().map(|packet| packet.tuple.protocol);
                let real = protocol.map_or_else(
                    || real.to_string(),
                    |protocol| self.names.named(protocol, *real),
                );
                let method = forwarding_method(*forwarding);
                self.step(event, format!("ipvs: {scheduler}→ {real} ({method})"));
            }
            (detail, Role::IpvsTransmit) if !journey.passed(Role::IpvsConnection) => {
                let to = known_connection(detail, self.names);
                self.step(event, format!("ipvs: known connection{to}"));
            }
            (_, Role::IpvsReply) => self.step(event, "ipvs: reply".into()),
            (_, Role::IpvsNoDestination) => self.lose(event, "ipvs: no real server".into()),
            (_, Role::Nat) => self.nat(event, rest),
            // A packet that is taken out of it is said where it is first seen.
            (_, Role::Decapsulate) if !journey.is_carried(index) => {
                self.step(event, "vxlan".into())
            }
            (_, Role::Flood) => self.step(event, "flooded to every port".into()),
            (
                Detail::Queue {
                    waiting,
                    most,
                    port,
                },
                _,
            ) if waiting > most => {
                self.lose(
                    event,
                    format!("accept queue of :{port} full ({waiting} wait, {most} may)"),
                );
            }
            (_, Role::Fragment) => self.step(event, fragmented(journey, event)),
            (_, Role::Martian) => self.lose(event, "impossible source address".into()),
            (_, Role::ConntrackClash) => self.step(event, "conntrack clash".into()),
            (Detail::Neighbour { address, .. }, Role::NeighbourQueue) => {
                self.step(event, format!("waits for neighbour {address}"));
            }
            (Detail::Neighbour { address, ifindex }, Role::NeighbourFailed) => {
                let device = self.names.device(event.netns, *ifindex);
                self.lose(
                    event,
                    format!("neighbour {address} on {device} does not answer"),
                );
            }
            (Detail::Socket { state, port }, _) if !journey.is_carried(index) => {
                self.socket(event, rest, *state, *port);
            }
            (_, Role::Reset) if journey.was_reset() => {
                if !journey.was_taken() {
                    self.lose(event, "tcp: no socket".into());
                }
                self.step(event, "RST sent".into());
            }
            (Detail::Icmp { kind, code }, _) => {
                if refuses(event) {
                    self.ruled(event, journey, "rejected");
                }
                let udp = event
                    .packet
                    .as_ref()
                    .is_some_and(|packet| packet.tuple.protocol == protocol::UDP);
                if udp && journey.passed(Role::Transport) && !journey.was_taken() {
                    self.lose(event, "udp: no socket".into());
                }
                let number = if event.hook == HookId::Icmp6Send {
                    protocol::ICMP6
                } else {
                    protocol::ICMP
                };
                let words = icmp::words(number, *kind, *code);
                self.step(event, format!("ICMP {words} sent"));
            }
            (Detail::Drop { location, reason }, _) if journey.failed() && !journey.rejected() => {
                self.dropped(event, journey, *location, *reason);
            }
            _ => {}
        }
    }

    fn socket(&mut self, event: &Event, rest: &[Event], state: u8, port: u16) {
        // One that is closed has forgotten its port.
        let port = match &event.packet {
            Some(packet) if port == 0 => packet.tuple.destination.port(),
            _ => port,
        };
        let text = match (event.role(), state) {
            // What the packet completes takes it next.
            (Role::HalfOpen, _) if rest.iter().any(|event| event.role() == Role::Deliver) => return,
            (Role::HalfOpen, _) => format!("half-open connection :{port}"),
            (_, LISTEN) => format!("listening socket :{port}"),
            (_, TIME_WAIT) => format!("socket :{port} in TIME_WAIT"),
            _ => format!("socket :{port}"),
        };
        self.step(event, text);
    }

    /// Says where a tunnel's packet is put around this one, and where it is taken out again.
    fn tunnel(&mut self, journey: &Journey, index: usize, event: &Event) {
        let starts = journey.carried.iter().any(|range| range.start == index);
        if starts
            && event.role() == Role::LocalOut
            && let Some(packet) = &event.packet
        {
            let Tuple {
                protocol,
                source,
                destination,
            } = packet.tuple;
            let (tunnel, from, to) = (tunnel_name(protocol), source.ip(), destination.ip());
            self.step(event, format!("{tunnel}: wrapped in {from} → {to}"));
        }
        let ended = journey.carried.iter().find(|range| range.end == index);
        let carrier = ended.and_then(|range| {
            let carrier = &journey.events[range.clone()];
            carrier.iter().find_map(|event| event.packet.as_ref())
        });
        if let Some(carrier) = carrier {
            let tunnel = tunnel_name(carrier.tuple.protocol);
            self.step(event, format!("{tunnel}: unwrapped"));
        }
    }

    fn dropped(&mut self, event: &Event, journey: &Journey, location: u64, reason: Option<u32>) {
        if !self.ruled(event, journey, "dropped") {
            self.lose(event, self.names.drop(location, reason));
        }
    }

    /// Says which rule ended the packet, in place of the hook where it did; false when none is known.
    fn ruled(&mut self, event: &Event, journey: &Journey, what: &str) -> bool {
        let Some((hook, ruling)) = self.names.ruling(journey) else {
            return false;
        };
        let ending = &ruling.ending;
        let comment = ending
            .rule
            .and_then(|rule| rule.comment.as_ref())
            .map_or_else(String::new, |comment| format!(" \"{comment}\""));
        let doubt = if ruling.certain { "" } else { ", probably" };
        let place = ending.place();
        let mut stage = Stage {
            namespace: None,
            text: format!("{}: {what}{doubt} by {place}{comment}", hook.name()),
            lost: true,
            event: self.index,
        };
        match self.stages.last_mut() {
            Some(last) if last.text == hook.name() => {
                stage.namespace = last.namespace.take();
                *last = stage;
            }
            _ => self.push(event, stage.text, true),
        }
        true
    }

    fn device(&mut self, event: &Event, ifindex: u32) {
        let text = self.names.device(event.netns, ifindex);
        self.step(event, text);
    }

    fn nat(&mut self, event: &Event, rest: &[Event]) {
        let after = rest.iter().find_map(|event| event.packet.as_ref());
        let (Some(before), Some(after)) = (event.packet.as_ref(), after) else {
            return;
        };
        let mut changes = Vec::new();
        if before.tuple.source != after.tuple.source {
            let source = self.names.named(after.tuple.protocol, after.tuple.source);
            changes.push(format!("snat {source}"));
        }
        if before.tuple.destination != after.tuple.destination {
            let destination = self
                .names
                .named(after.tuple.protocol, after.tuple.destination);
            changes.push(format!("dnat {destination}"));
        }
        if changes.is_empty() {
            return;
        }
        let text = changes.join(", ");
        match self.stages.last_mut() {
            Some(stage) if !stage.lost => stage.text += &format!(": {text}"),
            _ => self.step(event, text),
        }
    }

    fn step(&mut self, event: &Event, text: String) {
        self.push(event, text, false);
    }

    fn lose(&mut self, event: &Event, text: String) {
        self.push(event, text, true);
    }

    fn push(&mut self, event: &Event, text: String, lost: bool) {
        let moved = event.netns.is_some() && event.netns != self.netns;
        if !moved && self.stages.last().is_some_and(|last| last.text == text) {
            return;
        }
        let namespace = event
            .netns
            .filter(|_| moved)
            .map(|netns| self.names.namespace(netns));
        if moved {
            self.netns = event.netns;
        }
        self.stages.push(Stage {
            namespace,
            text,
            lost,
            event: self.index,
        });
    }

    /// The scheduler of the virtual server that the packet came to, by the node's facts.
    fn scheduler(&self, journey: &Journey) -> Option<String> {
        let (index, address, protocol) =
            journey
                .events
                .iter()
                .enumerate()
                .find_map(|(index, event)| match event.detail {
                    Detail::Service { address, protocol } => Some((index, address, protocol)),
                    _ => None,
                })?;
        let facts = self
            .names
            .facts
            .namespace(NetnsId(journey.namespace_at(index)?))?;
        Some(
            facts
                .virtual_server(protocol, address.ip(), address.port())?
                .scheduler
                .clone(),
        )
    }
}

/// A tunnel by the protocol of its packets; VXLAN is the only one over UDP that is followed.
const fn tunnel_name(number: u8) -> &'static str {
    match number {
        protocol::UDP => "vxlan",
        47 => "gre",
        _ => "ip tunnel",
    }
}

/// Into how many pieces a packet was cut: so many different ones are seen behind that place.
fn fragmented(journey: &Journey, cut: &Event) -> String {
    let pieces = journey
        .every_event()
        .filter(|event| event.role() == Role::ToNeighbour && event.netns == cut.netns)
        .filter(|event| event.time_ns >= cut.time_ns)
        .filter_map(|event| event.packet.as_ref().map(Packet::fragment_offset));
    match pieces.collect::<BTreeSet<_>>().len() {
        0 | 1 => "fragmented".into(),
        pieces => format!("fragmented into {pieces}"),
    }
}

/// Name of an `RTN_*` route type.
pub(super) fn route_kind(kind: u16) -> String {
    match kind {
        1 => "unicast".into(),
        2 => "local".into(),
        3 => "broadcast".into(),
        5 => "multicast".into(),
        6 => "blackhole".into(),
        7 => "unreachable".into(),
        8 => "prohibit".into(),
        other => format!("type {other}"),
    }
}

fn error_kind(kind: u16) -> String {
    match kind {
        1 | 2 => "not usable".into(),
        _ => route_kind(kind),
    }
}

const fn forwarding_method(method: u8) -> &'static str {
    match method {
        0 => "masq",
        1 => "local",
        2 => "tunnel",
        3 => "direct route",
        4 => "bypass",
        _ => "unknown method",
    }
}

/// Where a known IPVS connection leads and how it stands, where the kernel says it.
fn known_connection(detail: &Detail, names: &Names<'_>) -> String {
    let Detail::Sent {
        real,
        forwarding,
        protocol,
        state,
    } = *detail
    else {
        return String::new();
    };
    let (real, method) = (names.named(protocol, real), forwarding_method(forwarding));
    let state = ipvs_state(protocol, state).map_or_else(String::new, |state| format!(", {state}"));
    format!(" → {real} ({method}{state})")
}

/// The state of an IPVS connection in `ipvsadm`'s words, for protocols that have more than one.
pub(super) fn ipvs_state(protocol: u8, state: u16) -> Option<&'static str> {
    const TCP: [&str; 11] = [
        "NONE",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "SYNACK",
    ];
    const SCTP: [&str; 14] = [
        "NONE",
        "INIT1",
        "INIT",
        "COOKIE_SENT",
        "COOKIE_REPLIED",
        "COOKIE_WAIT",
        "COOKIE",
        "COOKIE_ECHOED",
        "ESTABLISHED",
        "SHUTDOWN_SENT",
        "SHUTDOWN_RECEIVED",
        "SHUTDOWN_ACK_SENT",
        "REJECTED",
        "CLOSED",
    ];
    let names: &[&str] = match protocol {
        protocol::TCP => &TCP,
        protocol::SCTP => &SCTP,
        _ => &[],
    };
    names.get(usize::from(state)).copied()
}

#[cfg(test)]
mod tests;
