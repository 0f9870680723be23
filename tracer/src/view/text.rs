//! Text for a person: first the cause, then the evidence, then the fix.

use std::io::{self, Write};

use super::model::{DiagnosisView, JourneyView, SummaryView};
use super::stage::Stage;

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Use terminal colours.
    pub colour: bool,
}

const RED: &str = "31";
const GREEN: &str = "32";
const BOLD: &str = "1";
const DIM: &str = "2";

/// Fragments and copies of one packet that are shown without -v.
const MOST_BRANCHES: usize = 4;

/// Width of prose, columns.
const WIDTH: usize = 110;

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// One journey: a line of addresses and a line of stages; every event with `verbose`.
///
/// # Errors
/// When writing fails.
pub fn journey(
    out: &mut impl Write,
    view: &JourneyView,
    style: Style,
    verbose: bool,
) -> io::Result<()> {
    let head = format!(
        "{} #{} {} {}",
        view.time,
        view.id,
        view.protocol,
        view.ends()
    );
    let mark = match view.arrived {
        Some(true) => style.paint(GREEN, "✓"),
        Some(false) => style.paint(RED, "✗"),
        None => style.paint(DIM, "…"),
    };
    writeln!(out, "{head:<100} {mark} {} µs", view.duration_us)?;
    let mut stages = stages(&view.path, style);
    if stages.is_empty() {
        stages.push(view.ending.clone());
    } else if view.arrived.is_none() {
        stages.push(style.paint(DIM, &view.ending));
    }
    if view.gap {
        stages.push(style.paint(RED, "events are missing"));
    }
    writeln!(out, "    {}", stages.join(" ▸ "))?;
    let most = if verbose { usize::MAX } else { MOST_BRANCHES };
    for branch in view.branches.iter().take(most) {
        let mut way = self::stages(&branch.path, style);
        way.push(style.paint(DIM, &branch.ending));
        writeln!(out, "      and a {}: {}", branch.kind, way.join(" ▸ "))?;
    }
    if view.branches.len() > most {
        writeln!(out, "      and {} more", view.branches.len() - most)?;
    }
    if verbose {
        for event in &view.events {
            writeln!(out, "      {event}")?;
        }
    }
    Ok(())
}

fn stages(path: &[Stage], style: Style) -> Vec<String> {
    let mut stages = Vec::new();
    for stage in path {
        let mut text = String::new();
        if let Some(namespace) = &stage.namespace {
            text += &style.paint(DIM, &format!("[{namespace}] "));
        }
        text += &if stage.lost {
            style.paint(RED, &format!("✗ {}", stage.text))
        } else {
            stage.text.clone()
        };
        stages.push(text);
    }
    stages
}

/// One diagnosis.
///
/// # Errors
/// When writing fails.
pub fn diagnosis(out: &mut impl Write, view: &DiagnosisView, style: Style) -> io::Result<()> {
    let extent = match &view.severity {
        Some(severity) => format!("{severity} · {}", view.subject),
        None => format!(
            "{} of {} connections to {}",
            view.failed_connections, view.connections, view.subject
        ),
    };
    writeln!(
        out,
        "\n{} {} · {} · {extent}",
        style.paint(RED, "✗"),
        style.paint(BOLD, &view.cause),
        view.certainty,
    )?;
    for line in wrap(&view.summary, WIDTH) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "  {}", style.paint(BOLD, "Evidence"))?;
    for (source, text) in &view.evidence {
        writeln!(out, "    {source:<10} {text}")?;
    }
    for missing in &view.missing {
        writeln!(out, "    {:<10} {missing}", "missing")?;
    }
    if !view.consequences.is_empty() {
        writeln!(out, "  {}", style.paint(BOLD, "Brings about"))?;
    }
    for consequence in &view.consequences {
        let text = format!("{}: {}", consequence.cause, consequence.summary);
        for line in wrap(&text, WIDTH - 2) {
            writeln!(out, "    {line}")?;
        }
    }
    writeln!(out, "  {}", style.paint(BOLD, "Fix"))?;
    for (index, fix) in view.fixes.iter().enumerate() {
        for (number, line) in fix.lines.iter().enumerate() {
            let lead = if index > 0 && number == 0 { "or: " } else { "" };
            writeln!(out, "    {lead}{line}")?;
        }
        writeln!(
            out,
            "      {}",
            style.paint(DIM, &format!("risk: {}", fix.risk))
        )?;
    }
    writeln!(out, "  {}  {}", style.paint(BOLD, "Check"), view.check)?;
    writeln!(
        out,
        "  {}   tracer why {}\n",
        style.paint(BOLD, "More"),
        view.cause
    )
}

/// What the trace came to.
///
/// # Errors
/// When writing fails.
pub fn summary(out: &mut impl Write, view: &SummaryView, style: Style) -> io::Result<()> {
    writeln!(
        out,
        "\n{} {} packets in {:.1} s, {} did not arrive; {} events",
        style.paint(BOLD, "summary"),
        view.packets,
        view.seconds,
        view.failed,
        view.events
    )?;
    for device in &view.devices {
        writeln!(
            out,
            "  device {:<28} in {:<10} out {}",
            device.device, device.received, device.sent
        )?;
    }
    for (reason, count) in &view.drops {
        writeln!(out, "  why    {reason:<28} {count}")?;
    }
    for cause in &view.causes {
        writeln!(
            out,
            "  cause  {:<28} {} of {} connections to {}",
            cause.cause, cause.failed_connections, cause.connections, cause.subject
        )?;
    }
    if view.lost.is_empty() {
        writeln!(out, "  lost   no event was lost")?;
    }
    for (cause, count) in &view.lost {
        writeln!(
            out,
            "  {}",
            style.paint(RED, &format!("lost   {cause:<28} {count}"))
        )?;
    }
    if view.left_out > 0 {
        writeln!(
            out,
            "  left   {} events of flows that were left out to keep tracing cheap",
            view.left_out
        )?;
    }
    writeln!(
        out,
        "  cost   kernel {:.3} ms in {} runs, this process {:.1} ms",
        view.kernel_ms, view.kernel_runs, view.process_ms
    )
}

/// Breaks prose into lines of at most `width` columns.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_at_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 3), ["unbreakable"]);
    }
}
