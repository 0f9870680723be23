//! A bounded test as shown, and two ways side by side.

use serde::Serialize;

use super::compare::{Comparison, Row, compare};
use super::stage::Stage;
use crate::probe::{Attempt, Target};

/// Widest left column, characters; longer stages push the right one away.
const LEFT_COLUMN: usize = 64;

/// One test as shown.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeView {
    /// What was tested.
    pub target: String,
    /// Namespace that it was sent from; this process's own when none is said.
    pub from: Option<String>,
    /// Address and port that it was sent from.
    pub source: Option<String>,
    /// What came of it, in words.
    pub outcome: String,
    /// True when the address works, false when it does not, unknown when a datagram met silence.
    pub works: Option<bool>,
    /// How long it took, milliseconds.
    pub elapsed_ms: f64,
    /// Numbers of the journeys that went there.
    pub request: Vec<u64>,
    /// Numbers of the journeys that came back.
    pub reply: Vec<u64>,
}

impl ProbeView {
    /// A test and the numbers of its journeys.
    pub fn new(
        target: &Target,
        from: Option<&str>,
        attempt: &Attempt,
        request: Vec<u64>,
        reply: Vec<u64>,
    ) -> Self {
        Self {
            target: target.to_string(),
            from: from.map(str::to_owned),
            source: attempt.tuple.map(|tuple| tuple.source.to_string()),
            outcome: attempt.outcome.to_string(),
            works: attempt.outcome.works(),
            elapsed_ms: attempt.elapsed.as_secs_f64() * 1e3,
            request,
            reply,
        }
    }

    /// In words, for a person.
    pub fn words(&self) -> String {
        let mark = match self.works {
            Some(true) => "✓",
            Some(false) => "✗",
            None => "…",
        };
        let source = self.source.as_deref().unwrap_or("nowhere");
        let mut text = format!(
            "\n{mark} {} from {source}: {} after {:.1} ms",
            self.target, self.outcome, self.elapsed_ms
        );
        if self.request.is_empty() && self.source.is_some() {
            text += "\n    none of its packets was seen";
        }
        text
    }
}

/// Two ways side by side as shown.
#[derive(Clone, Debug, Serialize)]
pub struct ComparisonView {
    /// `request` or `reply`.
    pub direction: &'static str,
    /// First target.
    pub left: String,
    /// Second target.
    pub right: String,
    /// Stages, aligned.
    pub rows: Vec<RowView>,
    /// Where the ways part: what the first different row is about; none when they do not.
    pub part_at: Option<String>,
}

/// One row as shown.
#[derive(Clone, Debug, Serialize)]
pub struct RowView {
    /// Stage of the first way.
    pub left: Option<Stage>,
    /// Stage of the second way.
    pub right: Option<Stage>,
    /// Both do the same, whatever the addresses.
    pub same: bool,
}

impl From<&Row> for RowView {
    fn from(row: &Row) -> Self {
        Self {
            same: row.same(),
            left: row.left.clone(),
            right: row.right.clone(),
        }
    }
}

impl ComparisonView {
    /// The first packets of one direction; what was not seen parts from the other at once. `None` where
    /// neither was.
    pub fn of(
        direction: &'static str,
        (left, ours): (&Target, Option<&[Stage]>),
        (right, theirs): (&Target, Option<&[Stage]>),
    ) -> Option<Self> {
        if ours.is_none() && theirs.is_none() {
            return None;
        }
        let comparison = compare(ours.unwrap_or_default(), theirs.unwrap_or_default());
        Some(Self::new(direction, left, right, &comparison))
    }

    /// Two ways of one direction.
    fn new(
        direction: &'static str,
        left: &Target,
        right: &Target,
        comparison: &Comparison,
    ) -> Self {
        let parting = comparison.parting.and_then(|at| comparison.rows.get(at));
        Self {
            direction,
            left: left.to_string(),
            right: right.to_string(),
            rows: comparison.rows.iter().map(RowView::from).collect(),
            part_at: parting.map(|row| row.subject().to_owned()),
        }
    }

    /// Two columns, for a person; rows that differ are marked.
    pub fn words(&self) -> String {
        let column = |stage: &Option<Stage>| stage.as_ref().map_or_else(String::new, words);
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| (row.same, column(&row.left), column(&row.right)))
            .collect();
        let width = rows
            .iter()
            .map(|(_, left, _)| left)
            .chain([&self.left])
            .map(|text| text.chars().count())
            .filter(|&width| width <= LEFT_COLUMN)
            .max()
            .unwrap_or(LEFT_COLUMN);
        let mut text = format!("\n  {:<width$}   {}", self.left, self.right);
        for (same, left, right) in rows {
            let mark = if same { ' ' } else { '≠' };
            let line = format!("\n{mark} {left:<width$}   {right}");
            text += line.trim_end();
        }
        let unseen =
            |of: fn(&RowView) -> &Option<Stage>| self.rows.iter().all(|row| of(row).is_none());
        let unseen = if unseen(|row| &row.left) {
            Some(&self.left)
        } else {
            unseen(|row| &row.right).then_some(&self.right)
        };
        let verdict = match (&self.part_at, unseen) {
            (Some(subject), Some(target)) => format!(
                "no {} of {target} was seen: the ways part before \"{subject}\"",
                self.direction
            ),
            (Some(subject), None) => {
                format!("the ways of the {} part at \"{subject}\"", self.direction)
            }
            (None, _) => format!("the {} goes the same way", self.direction),
        };
        text + "\n  " + &verdict
    }
}

fn words(stage: &Stage) -> String {
    let namespace = stage
        .namespace
        .as_ref()
        .map_or_else(String::new, |namespace| format!("[{namespace}] "));
    let lost = if stage.lost { "✗ " } else { "" };
    format!("{namespace}{lost}{}", stage.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_was_not_seen_parts_from_the_other_where_that_begins() {
        let target = |text: &str| text.parse::<Target>().expect("a target");
        let (one, two) = (target("tcp://192.0.2.1:80"), target("tcp://192.0.2.2:80"));
        let way = [Stage {
            namespace: None,
            text: "eth0".into(),
            lost: false,
            event: 0,
        }];
        assert!(ComparisonView::of("reply", (&one, None), (&two, None)).is_none());
        for (ours, theirs, unseen) in [(Some(&way[..]), None, &two), (None, Some(&way[..]), &one)] {
            let view =
                ComparisonView::of("reply", (&one, ours), (&two, theirs)).expect("they part");
            assert_eq!(view.part_at.as_deref(), Some("eth0"));
            let verdict = format!("no reply of {unseen} was seen: the ways part before \"eth0\"");
            assert!(view.words().ends_with(&verdict), "{}", view.words());
        }
    }

    #[test]
    fn columns_stand_under_their_targets_and_the_parting_is_marked() {
        let stage = |text: &str, lost| Stage {
            namespace: None,
            text: text.into(),
            lost,
            event: 0,
        };
        let left = [
            stage("eth0", false),
            stage("ipvs: rr → 192.0.2.9:80 (masq)", false),
        ];
        let right = [stage("eth0", false), stage("tcp: no socket", true)];
        let target = |text: &str| text.parse::<Target>().expect("a target");
        let view = ComparisonView::new(
            "request",
            &target("tcp://192.0.2.1:80"),
            &target("tcp://192.0.2.2:80"),
            &compare(&left, &right),
        );
        let lines = [
            "",
            "  tcp://192.0.2.1:80               tcp://192.0.2.2:80",
            "  eth0                             eth0",
            "≠ ipvs: rr → 192.0.2.9:80 (masq)",
            "≠                                  ✗ tcp: no socket",
            "  the ways of the request part at \"ipvs\"",
        ];
        assert_eq!(view.words(), lines.join("\n"));
    }
}
