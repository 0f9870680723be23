//! Times as SVG. Shapes stretch with the page, so what is written stands beside them as text.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::FlowView;
use super::losses::{Losses, MOST_SPANS};
use super::markup::{count, duration, name};
use crate::view::model::time_of_day;

/// Kinds of loss that have a colour; the others share one.
const COLOURS: usize = 6;
/// Height of the bars, in units of the picture.
const HEIGHT: u64 = 120;

/// Losses over time: bars, and what they are. `verdict` gives the place of a cause on the page.
pub(super) fn losses(losses: &Losses, verdict: &dyn Fn(&str) -> Option<usize>) -> Markup {
    let Some((first, last)) = losses.reach() else {
        return html! { p.quiet { "No packet was lost." } };
    };
    let kinds = losses.kinds();
    let spans = (last - first + 1).clamp(12, MOST_SPANS);
    let total = |span: u64| -> u64 {
        let counts = kinds.iter().filter_map(|(_, spans, _)| spans.get(&span));
        counts.sum()
    };
    let most = (first..=last).map(total).max().unwrap_or(1).max(1);
    let time = |span: u64| wall(span.saturating_mul(losses.span_ns()));
    html! {
        figure.losses {
            div.scale aria-hidden="true" { span { (most) } span { "0" } }
            svg viewBox=(format!("0 0 {} {HEIGHT}", spans * 10)) preserveAspectRatio="none"
                role="img" aria-label="Packets lost over time; the table below has the numbers" {
                @for span in first..=last {
                    (bar(span, span - first, most, &kinds, &time(span)))
                }
            }
            div.ends aria-hidden="true" {
                span { (time(first)) }
                span { "each bar " (duration(losses.span_ns())) }
                span { (time(first.saturating_add(spans))) }
            }
        }
        div.scroll {
            table {
                thead { tr { th { "What stopped it" } th.number { "Packets" } } }
                tbody {
                    @for (number, (kind, _, total)) in kinds.iter().enumerate() {
                        tr {
                            td {
                                svg.swatch viewBox="0 0 12 12" width="12" height="12" aria-hidden="true" {
                                    rect class=(colour(number)) width="12" height="12" rx="2" {}
                                }
                                @match verdict(kind) {
                                    Some(place) => a href=(format!("#verdict-{place}")) { (name(kind)) },
                                    None => (name(kind)),
                                }
                            }
                            td.number { (total) }
                        }
                    }
                }
            }
        }
    }
}

/// A kind of loss with its counts by span and in all.
type Kind<'a> = (&'a str, &'a BTreeMap<u64, u64>, u64);

fn bar(span: u64, place: u64, most: u64, kinds: &[Kind<'_>], time: &str) -> Markup {
    let mut below = 0;
    let mut parts = Vec::new();
    for (number, (kind, spans, _)) in kinds.iter().enumerate() {
        let Some(&lost) = spans.get(&span) else {
            continue;
        };
        let tall = (u128::from(lost) * u128::from(HEIGHT) / u128::from(most)) as u64;
        let tall = tall.max(2);
        below += tall;
        parts.push((number, *kind, lost, tall, HEIGHT.saturating_sub(below)));
    }
    html! {
        @for (number, kind, lost, tall, y) in parts {
            rect class=(colour(number)) x=(place * 10 + 1) y=(y) width="8" height=(tall) {
                title { (time) ": " (count(lost, "packet")) ", " (name(kind)) }
            }
        }
    }
}

fn colour(number: usize) -> String {
    format!("kind-{}", number.min(COLOURS))
}

/// First and last packet of all flows, nanoseconds since 1970.
pub(super) fn reach(flows: &[FlowView]) -> (u64, u64) {
    let times = || {
        let packets = flows.iter().flat_map(|flow| &flow.packets);
        packets.map(|packet| packet.start_ns)
    };
    let first = times().min().unwrap_or_default();
    (first, times().max().unwrap_or(first))
}

/// The packets of a flow on the time of the whole capture.
pub(super) fn strip(flow: &FlowView, (first, last): (u64, u64)) -> Markup {
    let length = (last - first).max(1);
    // A dot is never cut in half by the edge.
    let place = |time_ns: u64| {
        let part = time_ns.saturating_sub(first) as f64 / length as f64;
        format!("{:.2}%", 1.5 + part * 97.0)
    };
    // What was lost is on top.
    let mut packets: Vec<_> = flow.packets.iter().collect();
    packets.sort_by_key(|packet| packet.journey.arrived == Some(false));
    html! {
        svg.strip aria-hidden="true" {
            line.track x1="0" x2="100%" y1="50%" y2="50%" {}
            @for packet in packets {
                @let state = state(packet.journey.arrived);
                @let radius = if state == "lost" { 5 } else { 4 };
                circle class=(state) cx=(place(packet.start_ns)) cy="50%" r=(radius) {}
            }
        }
    }
}

/// Class of what arrived, was lost, or left.
pub(super) const fn state(arrived: Option<bool>) -> &'static str {
    match arrived {
        Some(true) => "arrived",
        Some(false) => "lost",
        None => "unknown",
    }
}

/// Time of day of nanoseconds since 1970.
pub(super) fn wall(time_ns: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(time_ns));
    time_of_day(time.unwrap_or(SystemTime::UNIX_EPOCH))
}
