//! The live view of a terminal: flows, the way of the chosen one, causes and drops.
//!
//! [`TopView`] is what is shown at one moment, [`draw`] only paints it, [`Choice`] is what the person at
//! the keys chose. Nothing here reads keys or owns the terminal.

use std::cmp::Reverse;

use ansi_to_tui::IntoText as _;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, List, ListState, Paragraph, Wrap};

use super::model::{DiagnosisView, JourneyView, SummaryView};
use super::names::Names;
use super::table::FlowRow;
use super::text;
use crate::cause::Diagnosis;
use crate::flow::{Direction, Flow, Flows};
use crate::journey::Journey;

/// Most flows in the list.
const MOST_ROWS: usize = 200;

/// What the person at the keys chose.
#[derive(Clone, Default, Debug)]
pub struct Choice {
    /// Number of the chosen flow; the first of the list where there is none.
    flow: Option<u64>,
    /// Only flows with a packet that did not arrive.
    pub failing_only: bool,
    /// What is shown stays as it is.
    pub paused: bool,
    /// The chosen flow has the whole screen.
    pub whole: bool,
}

impl Choice {
    /// Goes so many rows down, or up where it is negative.
    pub fn go(&mut self, rows: isize, view: &TopView) {
        let Some(last) = view.flows.len().checked_sub(1) else {
            return;
        };
        let row = view.row(self).unwrap_or(0).saturating_add_signed(rows);
        self.flow = Some(view.flows[row.min(last)].key.id);
    }
}

/// What is shown at one moment.
#[derive(Clone, Default, Debug)]
pub struct TopView {
    /// Node, kernel, probes and filter.
    head: String,
    /// What the trace came to so far.
    pub summary: SummaryView,
    /// Packets a second, lately.
    pub rate: f64,
    /// Flows in all.
    total: usize,
    /// Flows with a packet that did not arrive.
    failing: usize,
    /// The list: failing flows first, then by the time of the last packet.
    flows: Vec<FlowRow>,
    /// The way of the chosen flow's packet that tells most.
    journey: Option<JourneyView>,
    /// Causes, the root first.
    causes: Vec<DiagnosisView>,
    /// The cause that stopped the chosen flow, as its row in `causes`.
    cause: Option<usize>,
}

impl TopView {
    /// Nothing seen yet.
    pub fn new(head: String) -> Self {
        Self {
            head,
            ..Self::default()
        }
    }

    /// Lists the flows of this moment.
    pub fn list(&mut self, flows: &Flows, names: &Names<'_>, choice: &Choice) {
        // Walking the kept packets of every flow would cost too much; a failed one is suspicious first.
        let fails =
            |flow: &Flow| flow.suspicious > 0 && flow.kept().any(|(_, journey)| journey.failed());
        let mut shown: Vec<(bool, &Flow)> = flows.iter().map(|flow| (fails(flow), flow)).collect();
        self.total = shown.len();
        self.failing = shown.iter().filter(|(fails, _)| *fails).count();
        shown.retain(|(fails, _)| *fails || !choice.failing_only);
        let order = |&(fails, flow): &(bool, &Flow)| (Reverse(fails), Reverse(flow.last_ns));
        if shown.len() > MOST_ROWS {
            shown.select_nth_unstable_by_key(MOST_ROWS, order);
            shown.truncate(MOST_ROWS);
        }
        shown.sort_by_key(order);
        // A live trace has one phase.
        let rows = shown.iter().map(|(_, flow)| FlowRow::new(1, flow, names));
        self.flows = rows.collect();
    }

    /// Shows the way of the chosen flow, and the causes with the one that stopped it.
    pub fn choose(
        &mut self,
        flows: &Flows,
        causes: &[Diagnosis],
        names: &Names<'_>,
        choice: &Choice,
    ) {
        let chosen = self.row(choice).map(|row| self.flows[row].key.id);
        self.journey = chosen
            .and_then(|flow| telling(flows.get(flow)?))
            .and_then(|journey| JourneyView::new(journey, names));
        self.causes = causes.iter().map(DiagnosisView::from).collect();
        self.cause = chosen.and_then(|flow| {
            let mut causes = causes.iter();
            causes.position(|cause| cause.flows.binary_search(&flow).is_ok())
        });
    }

    /// Row of the chosen flow; the first where it is not in the list.
    fn row(&self, choice: &Choice) -> Option<usize> {
        let row = self
            .flows
            .iter()
            .position(|row| Some(row.key.id) == choice.flow);
        row.or_else(|| (!self.flows.is_empty()).then_some(0))
    }
}

/// The journey of a flow that tells most: the last that did not arrive, else the last request.
fn telling(flow: &Flow) -> Option<&Journey> {
    let failed = flow.kept().rfind(|(_, journey)| journey.failed());
    failed
        .map(|(_, journey)| journey)
        .or_else(|| flow.of(Direction::Request).last())
        .or_else(|| flow.of(Direction::Reply).last())
}

const RED: Style = Style::new().fg(Color::Red);
const GREEN: Style = Style::new().fg(Color::Green);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Narrower than this, causes and drops stand below the flows.
const SIDE_BY_SIDE: u16 = 110;

/// Paints the view.
pub fn draw(frame: &mut Frame<'_>, view: &TopView, choice: &Choice) {
    let [head, body, way, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(u16::from(!choice.whole)),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let (across, down) = (Layout::horizontal, Layout::vertical);
    let (flows, [causes, drops]) = if body.width >= SIDE_BY_SIDE {
        let [flows, side] = across([Constraint::Fill(2), Constraint::Fill(1)]).areas(body);
        let halves = down([Constraint::Fill(2), Constraint::Fill(1)]);
        (flows, halves.areas(side))
    } else {
        let [flows, below] = down([Constraint::Fill(3), Constraint::Fill(2)]).areas(body);
        let halves = across([Constraint::Fill(2), Constraint::Fill(1)]);
        (flows, halves.areas(below))
    };
    frame.render_widget(Paragraph::new(header(view, choice)), head);
    draw_flows(frame, flows, view, choice);
    draw_lines(frame, causes, "causes".into(), cause_lines(view));
    draw_lines(frame, drops, "drops".into(), drop_lines(view));
    draw_lines(frame, way, way_title(view, choice), way_text(view));
    let words = "↑↓ choose   enter whole   f failing only   space pause   q quit";
    frame.render_widget(Line::styled(words, DIM), keys);
}

fn header<'a>(view: &'a TopView, choice: &Choice) -> Vec<Line<'a>> {
    let summary = &view.summary;
    let lost: u64 = summary.lost.iter().map(|(_, count)| count).sum();
    let mut counts = vec![
        Span::raw(format!(
            "{} packets in {:.0} s ({:.0}/s), ",
            summary.packets, summary.seconds, view.rate
        )),
        Span::styled(
            format!("{} did not arrive", summary.failed),
            if summary.failed > 0 {
                RED
            } else {
                Style::new()
            },
        ),
        Span::raw(" · "),
        Span::styled(
            format!("{lost} events lost"),
            if lost > 0 { RED } else { Style::new() },
        ),
        Span::raw(format!(
            " · kernel {:.1} ms, this process {:.0} ms",
            summary.kernel_ms, summary.process_ms
        )),
    ];
    if summary.left_out > 0 {
        counts.push(Span::styled(
            format!(" · {} events left out to stay cheap", summary.left_out),
            RED,
        ));
    }
    if choice.paused {
        counts.push(Span::styled(" · paused", BOLD));
    }
    vec![Line::styled(view.head.as_str(), BOLD), Line::from(counts)]
}

fn draw_flows(frame: &mut Frame<'_>, area: Rect, view: &TopView, choice: &Choice) {
    let title = format!(" {} of {} flows fail ", view.failing, view.total);
    let rows = view.flows.iter().map(|row| {
        let (mark, style) = if row.failed > 0 {
            ("✗", RED)
        } else if row.answered {
            ("✓", GREEN)
        } else {
            ("…", DIM)
        };
        let real = row.real_destination.as_ref();
        let real = real.map_or_else(String::new, |real| format!(" ⇒ {real}"));
        Line::from(vec![
            Span::styled(mark, style),
            Span::raw(format!(
                " {} {} → {}{real}  {} {}",
                row.protocol,
                row.source,
                row.destination,
                row.packets,
                if row.packets == 1 {
                    "packet"
                } else {
                    "packets"
                }
            )),
        ])
    });
    let list = List::new(rows)
        .block(Block::bordered().title(title))
        .highlight_style(CHOSEN);
    let mut state = ListState::default().with_selected(view.row(choice));
    frame.render_stateful_widget(list, area, &mut state);
}

fn draw_lines<'a>(frame: &mut Frame<'_>, area: Rect, title: String, lines: impl Into<Text<'a>>) {
    let lines = Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .block(Block::bordered().title(format!(" {title} ")));
    frame.render_widget(lines, area);
}

fn cause_lines(view: &TopView) -> Vec<Line<'_>> {
    if view.causes.is_empty() {
        return vec![Line::styled("none so far", DIM)];
    }
    view.causes
        .iter()
        .map(|cause| {
            Line::from(vec![
                Span::styled("✗ ", RED),
                Span::styled(cause.cause.as_ref(), BOLD),
                Span::raw(format!(
                    " · {} · {} of {} to {}",
                    cause.certainty, cause.failed_connections, cause.connections, cause.subject
                )),
            ])
        })
        .collect()
}

fn drop_lines(view: &TopView) -> Vec<Line<'_>> {
    if view.summary.drops.is_empty() {
        return vec![Line::styled("none so far", DIM)];
    }
    let drops = view.summary.drops.iter();
    drops
        .map(|(reason, count)| Line::raw(format!("{count:>8} {reason}")))
        .collect()
}

fn way_title(view: &TopView, choice: &Choice) -> String {
    let flow = view.row(choice).map(|row| &view.flows[row]);
    flow.map_or_else(
        || "no packet yet".into(),
        |flow| format!("flow {}: {} → {}", flow.key, flow.source, flow.destination),
    )
}

/// What `tracer run` prints of the packet and of its cause.
fn way_text(view: &TopView) -> Text<'static> {
    let style = text::Style { colour: true };
    let mut out = Vec::new();
    // Memory takes whatever is written.
    if let Some(journey) = &view.journey {
        let _ = text::journey(&mut out, journey, style, false);
    }
    if let Some(cause) = view.cause.and_then(|row| view.causes.get(row)) {
        let _ = text::diagnosis(&mut out, cause, style);
    }
    out.into_text().unwrap_or_default()
}

#[cfg(test)]
mod tests;
