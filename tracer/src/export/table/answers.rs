//! Columns of flows and diagnoses.

use super::{OfDiagnosis, OfFlow, column, port};
use crate::event::protocol;
use crate::export::column::Column;
use crate::export::column::Kind::{Flag, Number, Text, Time};
use crate::flow::Direction;

/// One row for each connection, or what a datagram protocol has in place of one.
pub const FLOWS: &[Column<OfFlow>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "phase",
        Number,
        "",
        "part of the capture, from 1: a reproduction forgets what was before the fix",
        |row| row.of.row.key.phase.into(),
    ),
    column("flow", Number, "", "number in the phase", |row| {
        row.of.flow.id.into()
    }),
    column(
        "first_time",
        Time,
        "ns since 1970, UTC",
        "start of its first packet",
        |row| row.names.clock.wall_ns(row.of.flow.first_ns).into(),
    ),
    column(
        "last_time",
        Time,
        "ns since 1970, UTC",
        "start of its last packet",
        |row| row.names.clock.wall_ns(row.of.flow.last_ns).into(),
    ),
    column("protocol", Text, "", "transport protocol", |row| {
        protocol::name(row.of.flow.client.protocol).into()
    }),
    column("client_address", Text, "", "who began", |row| {
        row.of.flow.client.source.ip().to_string().into()
    }),
    column("client_port", Number, "", "its port", |row| {
        port(row.of.flow.client.source.port()).into()
    }),
    column("client_name", Text, "", "its name in the cluster", |row| {
        row.names
            .endpoint(row.of.flow.client.protocol, row.of.flow.client.source)
            .into()
    }),
    column(
        "server_address",
        Text,
        "",
        "whom it asked, before NAT",
        |row| row.of.flow.client.destination.ip().to_string().into(),
    ),
    column("server_port", Number, "", "its port", |row| {
        port(row.of.flow.client.destination.port()).into()
    }),
    column("server_name", Text, "", "its name in the cluster", |row| {
        row.names
            .endpoint(row.of.flow.client.protocol, row.of.flow.client.destination)
            .into()
    }),
    column(
        "requests",
        Number,
        "packets",
        "from the one who began",
        |row| row.of.flow.requests.into(),
    ),
    column("replies", Number, "packets", "back", |row| {
        row.of.flow.replies.into()
    }),
    column(
        "suspicious",
        Number,
        "packets",
        "did not arrive, or met no virtual server",
        |row| row.of.flow.suspicious.into(),
    ),
    column(
        "failed",
        Number,
        "packets",
        "did not arrive, of those that are kept: the first and last 8",
        |row| {
            row.of
                .flow
                .kept()
                .filter(|(_, journey)| journey.failed())
                .count()
                .into()
        },
    ),
    column("answered", Flag, "", "a packet came back", |row| {
        (row.of.flow.replies > 0 || row.of.flow.of(Direction::Reply).next().is_some()).into()
    }),
];

/// One row for each cause and subject of a phase, with the counts of its end.
pub const DIAGNOSES: &[Column<OfDiagnosis>] = &[
    column("node", Text, "", "machine that captured it", |row| {
        row.node.into()
    }),
    column(
        "time",
        Time,
        "ns since 1970, UTC",
        "when it was first reached",
        |row| row.of.time_ns.into(),
    ),
    column(
        "cause",
        Text,
        "",
        "code of the cause: tracer why CODE explains it",
        |row| row.of.diagnosis.code.into(),
    ),
    column("certainty", Text, "", "certain or likely", |row| {
        row.of.diagnosis.certainty.name().into()
    }),
    column(
        "subject",
        Text,
        "",
        "what it is about: protocol, address and port",
        |row| row.of.diagnosis.subject.as_str().into(),
    ),
    column(
        "failed_connections",
        Number,
        "",
        "connections that it stopped",
        |row| row.of.diagnosis.failed.into(),
    ),
    column(
        "connections",
        Number,
        "",
        "connections to the subject in all",
        |row| row.of.diagnosis.total.into(),
    ),
    column("summary", Text, "", "in words", |row| {
        row.of.diagnosis.summary.as_str().into()
    }),
    column(
        "evidence",
        Text,
        "",
        "what proves it, a line each: source, tab, text",
        |row| {
            let lines = row.of.diagnosis.evidence.iter();
            lines
                .map(|proof| format!("{}\t{}", proof.source, proof.text))
                .collect::<Vec<_>>()
                .join("\n")
                .into()
        },
    ),
    column(
        "missing",
        Text,
        "",
        "what is missing to be certain, a line each",
        |row| {
            let missing = &row.of.diagnosis.missing;
            (!missing.is_empty()).then(|| missing.join("\n")).into()
        },
    ),
    column("fix", Text, "", "the best fix: lines to paste", |row| {
        row.of
            .diagnosis
            .fixes
            .first()
            .map(|fix| fix.lines.join("\n"))
            .into()
    }),
    column(
        "check_command",
        Text,
        "",
        "command that shows whether the fix worked",
        |row| {
            Some(row.of.diagnosis.check.as_str())
                .filter(|check| !check.is_empty())
                .into()
        },
    ),
];
