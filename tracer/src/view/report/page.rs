//! The page: its head, its parts in order, and what keeps it to itself.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use super::markup::{MOST_LINES, Room, count, name, prose, rest};
use super::{About, FlowKey, LeftOut, Report, chart, timeline, verdict};
use crate::view::model::SummaryView;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");
/// Room for the verdicts, bytes.
const VERDICT_ROOM: usize = 8 << 20;

/// Writes a report as HTML that needs nothing else.
pub fn page(report: &Report) -> String {
    let known: HashSet<FlowKey> = report.flows.iter().map(|flow| flow.row.key).collect();
    let mut places = HashMap::new();
    for (number, verdict) in (1..).zip(&report.verdicts) {
        places
            .entry(verdict.diagnosis.cause.as_ref())
            .or_insert(number);
    }
    let pictured = report
        .verdicts
        .iter()
        .position(|verdict| verdict.failing.is_some());
    let mut room = Room::new(VERDICT_ROOM);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title(report)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#verdicts" { "To the verdicts" }
                header.top {
                    h1 { (title(report)) }
                    (about(&report.about))
                    (numbers(&report.summary, report.causes()))
                    nav aria-label="Parts of this page" {
                        a href="#verdicts" { "Verdicts" }
                        a href="#losses" { "Losses over time" }
                        a href="#flows" { "Timeline" }
                        a href="#tables" { "Tables" }
                        a href="#trace" { "The trace" }
                    }
                }
                main {
                    section #verdicts {
                        h2 { "Verdicts" }
                        @if report.verdicts.is_empty() { (nothing_named(&report.summary)) }
                        @for (index, found) in report.verdicts.iter().enumerate() {
                            @let with_legend = pictured == Some(index);
                            @let written = verdict::verdict(index + 1, found, &known, with_legend);
                            @if let Some(written) = room.take(written) { (written) }
                        }
                        (room.rest("cause"))
                    }
                    section #losses {
                        h2 { "Losses over time" }
                        (chart::losses(&report.losses, &|kind| places.get(kind).copied()))
                    }
                    section #flows {
                        h2 { "Timeline by flow" }
                        (left_out(report.left_out))
                        @if report.flows.iter().any(|flow| flow.row.key.phase > 1) {
                            p.quiet { "The trace began anew on the way, and with it the numbers of flows: 2·1 is the first flow of the second part." }
                        }
                        (timeline::flows(&report.flows))
                    }
                    section #tables {
                        h2 { "Flows" }
                        (timeline::flow_table(&report.flows))
                        h2 { "Packets" }
                        (timeline::packet_table(&report.flows))
                    }
                    section #trace {
                        h2 { "The trace" }
                        (trace(&report.summary, &report.about))
                    }
                }
                footer { p { "Made by tracer " (env!("CARGO_PKG_VERSION")) ". This page loads nothing and sends nothing." } }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

/// Only this style and this script, and nothing from anywhere else.
fn policy() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

/// The answer in one line.
fn title(report: &Report) -> Markup {
    let node = &report.about.node;
    html! {
        @match report.verdicts.as_slice() {
            [] if report.summary.failed == 0 => "Nothing wrong found",
            [] => "No cause named",
            [one] => (name(&one.diagnosis.cause)),
            _ => { (report.causes()) " causes named" },
        }
        @if !node.is_empty() { " · " (name(node)) }
    }
}

fn about(about: &About) -> Markup {
    let begin = about.begin.filter(|begin| *begin > SystemTime::UNIX_EPOCH);
    html! {
        @if let Some(damage) = &about.damage {
            p.alarm role="alert" {
                strong { "The file is damaged." } " What comes before the damage is here. " (prose(damage))
            }
        }
        p.quiet {
            (name(&about.file))
            @if let Some(begin) = begin { " · " (humantime::format_rfc3339_seconds(begin)) }
            @if !about.kernel.is_empty() { " · kernel " (name(&about.kernel)) }
            @if !about.tool.is_empty() { " · traced with tracer " (name(&about.tool)) }
            @for filter in &about.filters { " · only " code { (name(filter)) } }
            " · times are UTC"
        }
    }
}

fn numbers(summary: &SummaryView, causes: usize) -> Markup {
    let lost = summary
        .lost
        .iter()
        .fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
    let cell = |number: String, words: &str, bad: bool| {
        html! {
            li { strong.lost[bad] { (number) } " " span { (words) } }
        }
    };
    html! {
        ul.numbers {
            (cell(causes.to_string(), if causes == 1 { "cause named" } else { "causes named" }, causes > 0))
            (cell(summary.failed.to_string(), "packets did not arrive", summary.failed > 0))
            (cell(summary.packets.to_string(), "packets in all", false))
            (cell(format!("{:.1} s", summary.seconds), "traced", false))
            (cell(lost.to_string(), "events lost by the tracer", lost > 0))
        }
    }
}

fn nothing_named(summary: &SummaryView) -> Markup {
    html! {
        p.calm {
            @if summary.failed == 0 {
                "Nothing wrong found: every packet that was meant for one receiver arrived, or left."
            } @else {
                (count(summary.failed, "packet")) " did not arrive, and no cause of the catalogue explains it. \
                 The timeline shows where each one ended."
            }
        }
    }
}

fn left_out(left_out: LeftOut) -> Markup {
    let LeftOut {
        verdicts,
        flows,
        packets,
    } = left_out;
    html! {
        @if left_out != LeftOut::default() {
            p.calm {
                "This page has room for a part only; the capture has all. Left out: "
                (count(verdicts as u64, "cause")) ", " (count(flows as u64, "flow"))
                " (those with a loss are kept first) and " (count(packets, "packet"))
                " of the flows that are here. A filter after the file's name narrows a report down."
            }
        }
    }
}

fn trace(summary: &SummaryView, about: &About) -> Markup {
    html! {
        div.columns {
            section {
                h3 { "Devices" }
                div.scroll {
                    table {
                        thead { tr { th { "Device" } th.number { "In" } th.number { "Out" } } }
                        tbody {
                            @for device in summary.devices.iter().take(MOST_LINES) {
                                tr {
                                    td { (name(&device.device)) }
                                    td.number { (device.received) }
                                    td.number { (device.sent) }
                                }
                            }
                        }
                    }
                }
                (rest(summary.devices.len()))
            }
            section {
                h3 { "Packets that did not arrive" }
                (counts(&summary.drops, "No packet was seen to be lost."))
                h3 { "Events lost by the tracer" }
                (counts(&summary.lost, "No event was lost."))
                h3 { "Not seen" }
                @if about.not_seen.is_empty() { p.quiet { "Nothing is known to be out of sight." } }
                ul {
                    @for line in about.not_seen.iter().take(MOST_LINES) { li { (prose(line)) } }
                }
                (rest(about.not_seen.len()))
                p.quiet {
                    (count(summary.events, "event")) "; the tracer took "
                    (format!("{:.3} ms", summary.kernel_ms)) " in the kernel in "
                    (count(summary.kernel_runs, "run")) " and "
                    (format!("{:.1} ms", summary.process_ms)) " beside it."
                }
            }
        }
    }
}

fn counts(counts: &[(String, u64)], none: &str) -> Markup {
    html! {
        @if counts.is_empty() { p.quiet { (none) } } @else {
            div.scroll {
                table {
                    tbody {
                        @for (words, number) in counts.iter().take(MOST_LINES) {
                            tr { td { (name(words)) } td.number { (number) } }
                        }
                    }
                }
            }
            (rest(counts.len()))
        }
    }
}
