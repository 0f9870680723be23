//! Columns of journeys and events.

use super::{OfEvent, OfJourney, Row, Seen, Told, column, port};
use crate::event::{Tuple, protocol};
use crate::export::column::Column;
use crate::export::column::Kind::{Flag, Number, Text, Time};
use crate::view::model::JourneyView;

/// Between stages, as in the text view.
const STEP: &str = " ▸ ";

/// One row for each packet.
pub const JOURNEYS: &[Column<OfJourney>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "journey",
        Number,
        "",
        "number of the packet in the capture; joins events",
        |row| row.of.journey.id.into(),
    ),
    column("time", Time, "ns since 1970, UTC", "first sight", |row| {
        row.names.clock.wall_ns(row.of.journey.start_ns()).into()
    }),
    column("duration_ns", Number, "ns", "first to last sight", |row| {
        row.of.journey.duration_ns().into()
    }),
    column(
        "protocol",
        Text,
        "",
        "transport protocol: tcp, udp, icmp …",
        |row| {
            first(row)
                .map(|tuple| protocol::name(tuple.protocol))
                .into()
        },
    ),
    column(
        "packet",
        Text,
        "",
        "protocol and what is special about the packet: tcp SYN",
        |row| row.of.view.protocol.as_str().into(),
    ),
    column("source_address", Text, "", "source as first seen", |row| {
        first(row).map(|tuple| tuple.source.ip().to_string()).into()
    }),
    column(
        "source_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            first(row)
                .and_then(|tuple| port(tuple.source.port()))
                .into()
        },
    ),
    column(
        "source_name",
        Text,
        "",
        "its name in the cluster: p/namespace/pod, n/node",
        |row| row.of.view.source_name.clone().into(),
    ),
    column(
        "destination_address",
        Text,
        "",
        "destination as first seen",
        |row| {
            first(row)
                .map(|tuple| tuple.destination.ip().to_string())
                .into()
        },
    ),
    column(
        "destination_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            first(row)
                .and_then(|tuple| port(tuple.destination.port()))
                .into()
        },
    ),
    column(
        "destination_name",
        Text,
        "",
        "its name in the cluster: s/namespace/service:port",
        |row| row.of.view.destination_name.clone().into(),
    ),
    column(
        "real_address",
        Text,
        "",
        "destination after NAT, where that is another",
        |row| {
            changed(row)
                .map(|tuple| tuple.destination.ip().to_string())
                .into()
        },
    ),
    column("real_port", Number, "", "its port", |row| {
        changed(row)
            .and_then(|tuple| port(tuple.destination.port()))
            .into()
    }),
    column("real_name", Text, "", "its name in the cluster", |row| {
        row.of.view.real_destination_name.clone().into()
    }),
    column(
        "arrived",
        Flag,
        "",
        "a socket took it; false: lost or refused; null: not known",
        |row| row.of.view.arrived.into(),
    ),
    column("ending", Text, "", "how it ended, in words", |row| {
        row.of.view.ending.as_str().into()
    }),
    column("events", Number, "", "events of it", |row| {
        row.of.journey.events.len().into()
    }),
    column(
        "gap",
        Flag,
        "",
        "events are missing: lost while it was under way, or more than are kept",
        |row| row.of.journey.gap.into(),
    ),
    column(
        "path",
        Text,
        "",
        "its way in words: stages with ▸ between, namespaces in brackets",
        |row| path(row.of.view).into(),
    ),
];

/// One row for each event.
pub const EVENTS: &[Column<OfEvent>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "journey",
        Number,
        "",
        "number of the packet; null for an event without one",
        |row| row.of.row.journey.into(),
    ),
    column("time", Time, "ns since 1970, UTC", "when", |row| {
        row.of.row.time_ns.into()
    }),
    column("hook", Text, "", "kernel function or tracepoint", |row| {
        row.of.row.place.into()
    }),
    column(
        "area",
        Text,
        "",
        "part of the network stack: device, netfilter, ipvs, drop …",
        |row| row.of.event.role().area().name().into(),
    ),
    column(
        "netns",
        Number,
        "inode number",
        "network namespace",
        |row| row.of.event.netns.into(),
    ),
    column("namespace", Text, "", "its name", |row| {
        row.of
            .event
            .netns
            .map(|netns| row.names.namespace(netns))
            .into()
    }),
    column(
        "ifindex",
        Number,
        "",
        "index of the device in its namespace",
        |row| row.of.event.ifindex.into(),
    ),
    column("device", Text, "", "its name", |row| {
        let event = row.of.event;
        event
            .ifindex
            .map(|index| row.names.device(event.netns, index))
            .into()
    }),
    column(
        "length",
        Number,
        "bytes",
        "the packet, as the skb counts it",
        |row| row.of.event.length.into(),
    ),
    column("mark", Number, "", "firewall mark", |row| {
        row.of.event.mark.into()
    }),
    column("protocol", Text, "", "transport protocol", |row| {
        header(row)
            .map(|tuple| protocol::name(tuple.protocol))
            .into()
    }),
    column("source_address", Text, "", "source here", |row| {
        header(row)
            .map(|tuple| tuple.source.ip().to_string())
            .into()
    }),
    column(
        "source_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            header(row)
                .and_then(|tuple| port(tuple.source.port()))
                .into()
        },
    ),
    column("destination_address", Text, "", "destination here", |row| {
        header(row)
            .map(|tuple| tuple.destination.ip().to_string())
            .into()
    }),
    column(
        "destination_port",
        Number,
        "",
        "its port; null where the protocol has none",
        |row| {
            header(row)
                .and_then(|tuple| port(tuple.destination.port()))
                .into()
        },
    ),
    column("detail", Text, "", "what the hook adds, in words", |row| {
        Some(row.of.row.detail.as_str())
            .filter(|text| !text.is_empty())
            .into()
    }),
];

fn first(row: Row<'_, Told<'_>>) -> Option<Tuple> {
    row.of.journey.first_tuple()
}

/// The packet after NAT, where that changed its destination.
fn changed(row: Row<'_, Told<'_>>) -> Option<Tuple> {
    let last = row.of.journey.last_tuple()?;
    (first(row)?.destination != last.destination).then_some(last)
}

fn header(row: Row<'_, Seen<'_>>) -> Option<Tuple> {
    row.of.event.packet.as_ref().map(|packet| packet.tuple)
}

fn path(view: &JourneyView) -> String {
    let stages = view.path.iter().map(|stage| {
        let mark = if stage.lost { "✗ " } else { "" };
        match &stage.namespace {
            Some(namespace) => format!("[{namespace}] {mark}{}", stage.text),
            None => format!("{mark}{}", stage.text),
        }
    });
    stages.collect::<Vec<_>>().join(STEP)
}
