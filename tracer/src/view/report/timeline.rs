//! Every flow on the time of the capture, with its packets and their events; and tables of both.

use maud::{Markup, html};

use super::chart::{reach, state, strip, wall};
use super::markup::{Room, count, name, prose};
use super::{FlowView, MOST_EVENTS, PacketView};
use crate::flow::Direction;
use crate::view::model::JourneyView;

/// Most stages of a packet that are written.
const MOST_STAGES: usize = 60;
/// Most events of a packet that are written.
const MOST_EVENTS_EACH: usize = 200;
/// Room for the timeline and for each table, bytes.
const TIMELINE_ROOM: usize = 6 << 20;
const TABLE_ROOM: usize = 2 << 20;

/// Flows, each to be opened.
pub(super) fn flows(flows: &[FlowView]) -> Markup {
    let (first, last) = reach(flows);
    let mut events_left = MOST_EVENTS;
    let mut room = Room::new(TIMELINE_ROOM);
    html! {
        (tools("timeline", "Flows with"))
        div.ends aria-hidden="true" { span { (wall(first)) } span { (wall(last)) } }
        div #timeline {
            @for flow in flows {
                @if let Some(flow) = room.take(self::flow(flow, (first, last), &mut events_left)) { (flow) }
            }
        }
        (room.rest("flow"))
    }
}

fn flow(flow: &FlowView, reach: (u64, u64), events_left: &mut usize) -> Markup {
    let row = &flow.row;
    html! {
        details.flow.item id=(flow.row.key.anchor()) data-lost=(row.failed > 0) {
            summary {
                span.who {
                    span class=(fate(flow)) aria-hidden="true" { (mark(fate(flow))) } " "
                    "flow " (flow.row.key) " · " (name(&row.protocol)) " "
                    span.address { (name(&row.source)) } " → " span.address { (name(&row.destination)) }
                    @if let Some(real) = &row.real_destination { " ⇒ " span.address { (name(real)) } }
                }
                span.quiet.counts { (count(row.packets, "packet")) ", " (row.failed) " lost" }
                (strip(flow, reach))
            }
            ol.packets {
                @for packet in &flow.packets { (self::packet(packet, events_left)) }
            }
            @let shown = flow.packets.len() as u64;
            @if row.packets > shown {
                p.quiet { "The first and last packets are here; " (row.packets - shown) " between them are not." }
            }
        }
    }
}

fn packet(packet: &PacketView, events_left: &mut usize) -> Markup {
    let journey = &packet.journey;
    let shown = journey.events.len().min(*events_left).min(MOST_EVENTS_EACH);
    *events_left -= shown;
    html! {
        li {
            p {
                span class=(state(journey.arrived)) aria-hidden="true" { (mark(state(journey.arrived))) } " "
                (name(&journey.time)) " #" (journey.id) " " (way(packet.direction)) " "
                (name(&journey.protocol)) ", " (name(&journey.ending))
                span.quiet { " · " (journey.duration_us) " µs" }
            }
            p.path { (path(journey)) }
            @if journey.gap { p.lost { "Some of its events are missing." } }
            @if shown > 0 {
                details.events {
                    summary { (count(journey.events.len() as u64, "kernel event")) }
                    pre tabindex="0" {
                        @for event in &journey.events[..shown] { (prose(&event.to_string())) "\n" }
                    }
                    @if journey.events.len() > shown {
                        p.quiet { (journey.events.len() - shown) " more are in the capture: tracer explain -v" }
                    }
                }
            }
        }
    }
}

fn path(journey: &JourneyView) -> Markup {
    html! {
        @for (number, stage) in journey.path.iter().take(MOST_STAGES).enumerate() {
            @if number > 0 { " ▸ " }
            @if let Some(namespace) = &stage.namespace { span.namespace { (name(namespace)) } " " }
            @if stage.lost { span.lost { "✗ " (name(&stage.text)) } } @else { (name(&stage.text)) }
        }
        @if journey.path.len() > MOST_STAGES { " ▸ and " (journey.path.len() - MOST_STAGES) " more" }
    }
}

/// Flows in a table.
pub(super) fn flow_table(flows: &[FlowView]) -> Markup {
    let heads = [
        ("Flow", true),
        ("First packet", false),
        ("Protocol", false),
        ("From", false),
        ("To", false),
        ("Really to", false),
        ("Packets", true),
        ("Lost", true),
        ("Answered", false),
    ];
    let mut room = Room::new(TABLE_ROOM);
    html! {
        (tools("flow-rows", "Flows with"))
        div.scroll tabindex="0" role="region" aria-label="Flows" {
            table.sortable {
                (head(&heads))
                tbody #flow-rows {
                    @for (number, flow) in flows.iter().enumerate() {
                        @if let Some(row) = room.take(flow_row(number, flow)) { (row) }
                    }
                }
            }
        }
        (room.rest("flow"))
    }
}

fn flow_row(number: usize, flow: &FlowView) -> Markup {
    let row = &flow.row;
    let first = flow.packets.first();
    html! {
        tr.item data-lost=(row.failed > 0) {
            td data-value=(number) { (link(flow)) }
            td { (name(first.map_or("", |packet| &packet.journey.time))) }
            td { (name(&row.protocol)) }
            td.address { (name(&row.source)) }
            td.address { (name(&row.destination)) }
            td.address { (name(row.real_destination.as_deref().unwrap_or(""))) }
            td.number { (row.packets) }
            td.number.lost[row.failed > 0] { (row.failed) }
            td { @if row.answered { "yes" } @else { "no" } }
        }
    }
}

/// Packets in a table.
pub(super) fn packet_table(flows: &[FlowView]) -> Markup {
    let heads = [
        ("Packet", true),
        ("Time", false),
        ("Flow", true),
        ("What", false),
        ("From", false),
        ("To", false),
        ("Ending", false),
        ("µs", true),
    ];
    let mut packets: Vec<(usize, &FlowView, &PacketView)> = flows
        .iter()
        .enumerate()
        .flat_map(|(number, flow)| {
            flow.packets
                .iter()
                .map(move |packet| (number, flow, packet))
        })
        .collect();
    packets.sort_by_key(|(_, _, packet)| packet.start_ns);
    let mut room = Room::new(TABLE_ROOM);
    html! {
        (tools("packet-rows", "Packets with"))
        div.scroll tabindex="0" role="region" aria-label="Packets" {
            table.sortable {
                (head(&heads))
                tbody #packet-rows {
                    @for (number, flow, packet) in packets {
                        @if let Some(row) = room.take(packet_row(number, flow, packet)) { (row) }
                    }
                }
            }
        }
        (room.rest("packet"))
    }
}

fn packet_row(number: usize, flow: &FlowView, packet: &PacketView) -> Markup {
    let journey = &packet.journey;
    html! {
        tr.item data-lost=(journey.arrived == Some(false)) {
            td.number data-value=(journey.id) { "#" (journey.id) }
            td { (name(&journey.time)) }
            td data-value=(number) { (link(flow)) }
            td { (name(&journey.protocol)) }
            td.address { (name(&journey.source)) }
            td.address { (name(&journey.destination)) }
            td class=(state(journey.arrived)) {
                (mark(state(journey.arrived))) " " (name(&journey.ending))
            }
            td.number { (journey.duration_us) }
        }
    }
}

/// What narrows a list down. Without a script there is nothing to narrow, and it stays hidden.
fn tools(list: &str, words: &str) -> Markup {
    html! {
        div.tools data-for=(list) hidden {
            label { (words) " " input type="search" placeholder="address, port, word …" autocomplete="off"; }
            label { input type="checkbox"; " only what did not arrive" }
            output aria-live="polite" {}
        }
    }
}

/// Heads of a table; the script makes them buttons that sort.
fn head(heads: &[(&str, bool)]) -> Markup {
    html! {
        thead {
            tr {
                @for (words, number) in heads {
                    th.number[*number] scope="col" data-number=(number) { (words) }
                }
            }
        }
    }
}

fn link(flow: &FlowView) -> Markup {
    html! { a href=(format!("#{}", flow.row.key.anchor())) { (flow.row.key) } }
}

const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "→ request",
        Direction::Reply => "← reply",
    }
}

fn fate(flow: &FlowView) -> &'static str {
    match (flow.row.failed > 0, flow.row.answered) {
        (true, _) => "lost",
        (false, true) => "arrived",
        (false, false) => "unknown",
    }
}

fn mark(state: &str) -> &'static str {
    match state {
        "arrived" => "✓",
        "lost" => "✗",
        _ => "…",
    }
}
