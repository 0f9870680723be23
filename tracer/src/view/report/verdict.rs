//! A cause on the page: what it is, the picture, the evidence, the fix.

use std::collections::HashSet;

use maud::{Markup, html};

use super::chart::state;
use super::markup::{MOST_LINES, name, prose, rest};
use super::picture::{legend, pictures};
use super::{FlowKey, Verdict, Way};
use crate::view::model::{ConsequenceView, DiagnosisView, FixView, JourneyView};

/// Most flows that a verdict links to.
const MOST_LINKS: usize = 12;

/// One verdict. `known` flows are on the page; the shapes are explained `with_legend`.
pub(super) fn verdict(
    number: usize,
    verdict: &Verdict,
    known: &HashSet<FlowKey>,
    with_legend: bool,
) -> Markup {
    let diagnosis = &verdict.diagnosis;
    html! {
        article.verdict id=(format!("verdict-{number}")) {
            header {
                h3 { span.mark aria-hidden="true" { "✗" } " " (name(&diagnosis.cause)) }
                p.facts {
                    span class=(format!("badge {}", sure(diagnosis))) { (name(&diagnosis.certainty)) }
                    span { (extent(diagnosis)) }
                }
            }
            p.summary { (prose(&diagnosis.summary)) }
            @if let Some(failing) = &verdict.failing {
                (ways(failing, verdict.healthy.as_ref()))
                @if with_legend { (legend()) }
            }
            div.columns {
                (evidence(diagnosis))
                (fixes(&diagnosis.fixes))
            }
            (consequences(&diagnosis.consequences))
            dl.after {
                dt { "Check" } dd { code { (prose(&diagnosis.check)) } }
                dt { "More" } dd { code { "tracer why " (name(&diagnosis.cause)) } }
                (links(verdict, known))
            }
        }
    }
}

/// Class of a certainty.
fn sure(diagnosis: &DiagnosisView) -> &'static str {
    if diagnosis.certainty == "certain" {
        "certain"
    } else {
        "likely"
    }
}

fn extent(diagnosis: &DiagnosisView) -> Markup {
    html! {
        @match &diagnosis.severity {
            Some(severity) => { (name(severity)) " · " (name(&diagnosis.subject)) },
            None => {
                (diagnosis.failed_connections) " of " (diagnosis.connections) " connections to "
                (name(&diagnosis.subject))
            },
        }
    }
}

fn ways(failing: &Way, healthy: Option<&Way>) -> Markup {
    let drawn = pictures(failing, healthy);
    html! {
        div.ways {
            figure {
                figcaption { (heading(&failing.journey)) }
                (drawn.failing)
                (branches(&failing.journey))
            }
            @if let (Some(healthy), Some(picture)) = (healthy, drawn.healthy) {
                figure {
                    figcaption { (heading(&healthy.journey)) }
                    (picture)
                }
            }
        }
    }
}

/// Which packet a picture is of.
fn heading(journey: &JourneyView) -> Markup {
    let (mark, words) = match journey.arrived {
        Some(true) => ("✓", "This one arrived"),
        Some(false) => ("✗", "This one did not arrive"),
        None => ("…", "This one left sight"),
    };
    html! {
        strong class=(state(journey.arrived)) { span aria-hidden="true" { (mark) } " " (words) }
        br;
        "#" (journey.id) " " (name(&journey.protocol)) " "
        span.address { (name(&journey.source)) } " → " span.address { (name(&journey.destination)) }
        @if let Some(real) = &journey.real_destination { " ⇒ " span.address { (name(real)) } }
        br;
        span.quiet { (name(&journey.time)) ", " (journey.duration_us) " µs" }
    }
}

fn branches(journey: &JourneyView) -> Markup {
    html! {
        @for branch in journey.branches.iter().take(MOST_LINES) {
            p.quiet { "and a " (name(&branch.kind)) ": " (name(&branch.ending)) }
        }
        @if journey.gap { p.lost { "Some of its events are missing." } }
    }
}

fn evidence(diagnosis: &DiagnosisView) -> Markup {
    html! {
        section {
            h4 { "Evidence" }
            dl.evidence {
                @for (source, text) in diagnosis.evidence.iter().take(MOST_LINES) {
                    dt { (name(source)) } dd { (prose(text)) }
                }
                @for missing in diagnosis.missing.iter().take(MOST_LINES) {
                    dt.missing { "missing" } dd { (prose(missing)) }
                }
            }
            (rest(diagnosis.evidence.len()))
        }
    }
}

fn fixes(fixes: &[FixView]) -> Markup {
    html! {
        section {
            h4 { "Fix" }
            @for (number, fix) in fixes.iter().take(MOST_LINES).enumerate() {
                @if number > 0 { p.or { "or" } }
                pre tabindex="0" {
                    code {
                        @for line in fix.lines.iter().take(MOST_LINES) { (prose(line)) "\n" }
                    }
                }
                p.risk { "Risk: " (prose(&fix.risk)) }
            }
            (rest(fixes.len()))
        }
    }
}

fn consequences(consequences: &[ConsequenceView]) -> Markup {
    html! {
        @if !consequences.is_empty() {
            section {
                h4 { "Brings about" }
                ul {
                    @for consequence in consequences.iter().take(MOST_LINES) {
                        li { strong { (name(&consequence.cause)) } ": " (prose(&consequence.summary)) }
                    }
                }
                (rest(consequences.len()))
            }
        }
    }
}

fn links(verdict: &Verdict, known: &HashSet<FlowKey>) -> Markup {
    let flows: Vec<FlowKey> = verdict
        .flows
        .iter()
        .copied()
        .filter(|key| known.contains(key))
        .collect();
    html! {
        @if !flows.is_empty() {
            dt { "Flows" }
            dd {
                @for key in flows.iter().take(MOST_LINKS) {
                    a href=(format!("#{}", key.anchor())) { "flow " (key) } " "
                }
                @if flows.len() > MOST_LINKS { "and " (flows.len() - MOST_LINKS) " more" }
            }
        }
    }
}
