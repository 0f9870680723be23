//! A measured number and where it should be.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One number, or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<f64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) unit: String,
    /// The target, in the same unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) at_most: Option<f64>,
    /// Why it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) skipped: Option<String>,
}

impl Row {
    pub(super) fn skipped(name: &str, why: &anyhow::Error) -> Self {
        Self {
            name: name.to_owned(),
            skipped: Some(format!("{why:#}")),
            ..Self::default()
        }
    }

    /// Whether the target is met; `None` without a target or a number.
    pub(super) fn met(&self) -> Option<bool> {
        Some(self.value? <= self.at_most?)
    }

    /// The row in a line of the benchmark's output, if there is one.
    pub(super) fn in_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// The rows for a person.
pub(super) fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let name = &row.name;
        let words = match (&row.skipped, row.value) {
            (Some(why), _) => format!("skipped: {why}"),
            (None, Some(value)) => format!("{:>12} {:<14}{}", number(value), row.unit, target(row)),
            (None, None) => "no number".to_owned(),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<width$}  {}", words.trim_end());
    }
    text
}

fn target(row: &Row) -> String {
    let Some(limit) = row.at_most else {
        return String::new();
    };
    let verdict = if row.met() == Some(true) {
        "met"
    } else {
        "NOT MET"
    };
    format!("target at most {}: {verdict}", number(limit))
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_said_beside_numbers() {
        let line =
            r#"{"name": "memory", "value": 600.4, "unit": "MiB", "at_most": 512, "peak": 3}"#;
        let mut row = Row::in_line(line).expect("a row");
        assert_eq!(row.met(), Some(false));
        assert_eq!(
            table(std::slice::from_ref(&row)),
            "memory           600 MiB           target at most 512: NOT MET\n"
        );
        row.value = Some(512.0);
        assert_eq!(row.met(), Some(true));
        assert_eq!(Row::in_line("warming up"), None);
        let skipped = Row::skipped("pwru", &anyhow::anyhow!("no network"));
        assert_eq!(table(&[skipped]), "pwru  skipped: no network\n");
    }
}
