//! The results of all kernels side by side.

use std::iter::Sum;
use std::ops::AddAssign;

use serde::Deserialize;

/// What a lab test reports about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

impl Outcome {
    fn cell(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// One entry of a guest's results.json.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct TestResult {
    test: String,
    outcome: Outcome,
    #[serde(default)]
    detail: String,
}

impl TestResult {
    pub(super) fn failed(test: &str, detail: impl Into<String>) -> Self {
        Self {
            test: test.to_owned(),
            outcome: Outcome::Failed,
            detail: detail.into(),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.outcome == Outcome::Failed
    }
}

/// The results of one kernel.
pub(super) struct Column {
    pub(super) kernel: String,
    pub(super) results: Vec<TestResult>,
}

impl Column {
    pub(super) fn counts(&self) -> Counts {
        let count = |outcome| {
            self.results
                .iter()
                .filter(|result| result.outcome == outcome)
                .count()
        };
        Counts {
            passed: count(Outcome::Passed),
            failed: count(Outcome::Failed),
        }
    }

    fn cell(&self, test: &str) -> &'static str {
        let result = self.results.iter().find(|result| result.test == test);
        result.map_or("-", |result| result.outcome.cell())
    }
}

/// How many tests passed and failed; skipped ones are neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: usize,
    pub(super) failed: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut total, next| {
            total += next;
            total
        })
    }
}

/// One row per test, one column per kernel; below it why tests failed or were skipped.
pub(super) fn render(columns: &[Column]) -> String {
    let mut tests: Vec<&str> = Vec::new();
    for result in columns.iter().flat_map(|column| &column.results) {
        if !tests.contains(&result.test.as_str()) {
            tests.push(&result.test);
        }
    }
    let width = tests
        .iter()
        .map(|test| test.len())
        .chain(["test".len()])
        .max()
        .unwrap_or(0);
    let row = |name: &str, cells: Vec<&str>| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:<7}")).collect();
        format!("{name:<width$}{cells}").trim_end().to_owned() + "\n"
    };
    let mut text = row(
        "test",
        columns
            .iter()
            .map(|column| column.kernel.as_str())
            .collect(),
    );
    for test in tests {
        text += &row(
            test,
            columns.iter().map(|column| column.cell(test)).collect(),
        );
    }
    for column in columns {
        let explained = column
            .results
            .iter()
            .filter(|result| !result.detail.is_empty());
        for result in explained.filter(|result| result.outcome != Outcome::Passed) {
            let outcome = result.outcome.cell();
            text += &format!(
                "{} on {} {outcome}: {}\n",
                result.test, column.kernel, result.detail
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_stand_side_by_side() {
        let columns = [
            Column {
                kernel: "5.10".into(),
                results: serde_json::from_str(
                    r#"[{"test": "hooks/ip_rcv", "outcome": "passed", "detail": ""},
                        {"test": "vip", "outcome": "skipped", "detail": "no module BTF"}]"#,
                )
                .unwrap(),
            },
            Column {
                kernel: "6.1".into(),
                results: vec![TestResult::failed("vip", "no cause named")],
            },
        ];
        assert_eq!(
            render(&columns),
            "test          5.10     6.1\n\
             hooks/ip_rcv  ok       -\n\
             vip           skipped  FAILED\n\
             vip on 5.10 skipped: no module BTF\n\
             vip on 6.1 FAILED: no cause named\n"
        );
        let total: Counts = columns.iter().map(Column::counts).sum();
        assert_eq!(
            total,
            Counts {
                passed: 1,
                failed: 1
            }
        );
    }
}
