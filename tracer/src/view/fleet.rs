//! A run over many nodes as shown: lines with their node, then everything joined.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::gather::{FleetDiagnosis, Line, Summary};
use super::json;
use super::text::{self, Style};

/// Ends of the nodes and what was left, for the summary.
#[derive(Clone, Debug, Serialize)]
pub struct FleetSummary {
    /// Name of the run.
    pub run: String,
    /// Each node.
    pub nodes: Vec<NodeView>,
    /// What could not be removed, and why.
    pub left: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// `finished`, `not started` or `ended early`.
    pub state: &'static str,
    /// Why it is not whole.
    pub why: Option<String>,
    /// What it counted; `None` when it said no summary.
    pub summary: Option<Summary>,
}

/// A node's line as JSON: the same object with the node's name.
///
/// # Errors
/// When writing fails.
pub fn json_line(out: &mut impl Write, node: &str, line: &str) -> io::Result<()> {
    let value = match serde_json::from_str(line) {
        Ok(Value::Object(mut object)) => {
            object.insert("node".into(), node.into());
            Value::Object(object)
        }
        _ => serde_json::json!({"type": "remark", "node": node, "text": line}),
    };
    writeln!(out, "{value}")
}

/// A node's line for a person; a diagnosis in one line, because its evidence comes in the end.
///
/// # Errors
/// When writing fails.
pub fn text_line(
    out: &mut impl Write,
    node: &str,
    raw: &str,
    line: &Line,
    style: Style,
    verbose: bool,
) -> io::Result<()> {
    let mut said = Vec::new();
    match line {
        Line::Journey(view) => text::journey(&mut said, view, style, verbose)?,
        Line::Diagnosis(view) => writeln!(
            said,
            "✗ {} · {} · {} of {} connections to {}",
            view.cause, view.certainty, view.failed_connections, view.connections, view.subject
        )?,
        Line::Summary(_) => {}
        // Other objects are for programs; what is no JSON is for a person.
        Line::Other if raw.starts_with('{') => {}
        Line::Other => writeln!(said, "{raw}")?,
    }
    for line in String::from_utf8_lossy(&said).lines() {
        writeln!(out, "{node:<12} {line}")?;
    }
    Ok(())
}

/// One cause on all its nodes.
///
/// # Errors
/// When writing fails.
pub fn diagnosis(
    out: &mut impl Write,
    found: &FleetDiagnosis,
    style: Option<Style>,
) -> io::Result<()> {
    let Some(style) = style else {
        return json::line(out, "cluster-diagnosis", found);
    };
    text::diagnosis(out, &found.diagnosis, style)?;
    writeln!(out, "  Seen on {}", found.nodes.join(", "))?;
    if found.occurrences.len() > 1 {
        for place in &found.occurrences {
            writeln!(
                out,
                "    {:<12} {} of {} connections to {}",
                place.node, place.failed_connections, place.connections, place.subject
            )?;
        }
    }
    Ok(())
}

/// The end.
///
/// # Errors
/// When writing fails.
pub fn summary(
    out: &mut impl Write,
    summary: &FleetSummary,
    style: Option<Style>,
) -> io::Result<()> {
    if style.is_none() {
        return json::line(out, "cluster-summary", summary);
    }
    writeln!(out)?;
    for node in &summary.nodes {
        let mut text = format!("{:<12} {}", node.node, node.state);
        if let Some(summary) = &node.summary {
            text += &format!(": {} packets, {} failed", summary.packets, summary.failed);
            for (why, count) in &summary.lost {
                text += &format!(", {count} events lost ({why})");
            }
        }
        if let Some(why) = &node.why {
            text += &format!(": {why}");
        }
        writeln!(out, "{text}")?;
    }
    if summary.left.is_empty() {
        return writeln!(out, "everything that was created is removed");
    }
    for left in &summary.left {
        writeln!(out, "left behind: {left}")?;
    }
    writeln!(
        out,
        "it removes itself when its time is over; `tracer cluster clean` removes it now"
    )
}
