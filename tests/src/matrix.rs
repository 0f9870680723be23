//! The fault matrix: every scenario that the tracer can reproduce, with the fault and without, as the
//! field notes call things and with drawn names; each is a row of the report.
//!
//! All of a matrix runs in one process of the tracer, so that attaching is paid once; the rows share
//! its answer. It is captured as well: the last row asks the file for the same answer.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::{Answer, Shared, Skip, Test, Tracer, capture, check};

/// Longest run of a whole matrix in a guest.
const LIMIT: Duration = Duration::from_secs(50 * 60);
/// Seeds of the renamed runs, always the same so that a failure can be repeated.
const SEEDS: [&str; 2] = ["11", "23"];

/// Which variants of each scenario a matrix plays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Every one.
    All,
    /// The first with the fault.
    FirstFault,
}

/// One run of the tracer that plays many scenarios.
struct Matrix {
    name: String,
    more: Vec<&'static str>,
    played: Shared<Played>,
}

/// What a run came to.
struct Played {
    answer: Answer,
    // Taken out once: the answer is long, and every row asks.
    verdicts: Vec<Value>,
    skipped: Vec<Value>,
}

/// A scenario and its variant, as the tracer lists them.
struct Row {
    case: String,
    variant: String,
    healthy: bool,
    /// The cause can be named as likely only.
    likely: bool,
}

/// A test for each row of each matrix.
///
/// # Errors
/// When the tracer does not list its scenarios.
pub fn tests(tracer: &Tracer) -> anyhow::Result<Vec<Test>> {
    let mut tests = matrix("matrix".into(), Rows::All, vec!["--variant", "all"], tracer)?;
    for seed in SEEDS {
        let name = format!("renamed, seed {seed}");
        tests.extend(matrix(
            name,
            Rows::FirstFault,
            vec!["--random", seed],
            tracer,
        )?);
    }
    Ok(tests)
}

fn matrix(
    name: String,
    rows: Rows,
    more: Vec<&'static str>,
    tracer: &Tracer,
) -> anyhow::Result<Vec<Test>> {
    let matrix = Rc::new(Matrix {
        name,
        more,
        played: Shared::default(),
    });
    let listed = listed(tracer)?;
    let mut cases = BTreeSet::new();
    let chosen = listed.iter().filter(|row| {
        let first = cases.insert(row.case.as_str());
        rows == Rows::All || first
    });
    let from_file = Rc::clone(&matrix);
    let explained = Test::new(
        format!("{}: explained from the file as live", matrix.name),
        move |tracer| {
            let answer = &from_file.played(tracer)?.answer;
            capture::explained_as_live(tracer, answer, &from_file.file()).map(drop)
        },
    );
    Ok(chosen
        .map(|row| {
            let (matrix, case, variant) =
                (Rc::clone(&matrix), row.case.clone(), row.variant.clone());
            let (healthy, likely) = (row.healthy, row.likely);
            Test::new(
                format!("{}: {case} {variant}", matrix.name),
                move |tracer| judge(matrix.played(tracer)?, &case, &variant, healthy, likely),
            )
        })
        .chain([explained])
        .collect())
}

/// What `tracer reproduce --list` lists.
fn listed(tracer: &Tracer) -> anyhow::Result<Vec<Row>> {
    let answer = tracer.run(&["reproduce", "--list", "--format", "json"])?;
    answer.expect_code(0)?;
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .context("a name is missing")
    };
    answer
        .objects("case")
        .iter()
        .map(|row| {
            Ok(Row {
                case: text(&row["case"])?,
                variant: text(&row["variant"])?,
                healthy: row["healthy"] == true,
                likely: !row["likely"].is_null(),
            })
        })
        .collect()
}

impl Matrix {
    fn file(&self) -> PathBuf {
        capture::file(&self.name.replace(", ", "-").replace(' ', "-"))
    }

    /// The run that all rows share; the first that asks pays for it.
    fn played(&self, tracer: &Tracer) -> anyhow::Result<&Played> {
        self.played.get(|| {
            let file = self.file().display().to_string();
            let mut arguments = vec!["reproduce", "all", "--format", "json", "--requests", "1"];
            arguments.extend(["-w", &file]);
            arguments.extend(&self.more);
            let answer = tracer.run_within(&arguments, LIMIT)?;
            Ok(Played {
                verdicts: answer.objects("verdict"),
                skipped: answer.objects("skipped"),
                answer,
            })
        })
    }
}

/// The right cause first, certain where it can be, nothing else named, and the fix proven; nothing
/// named for a healthy one.
fn judge(
    played: &Played,
    case: &str,
    variant: &str,
    healthy: bool,
    likely: bool,
) -> anyhow::Result<()> {
    let is_it = |row: &Value| row["case"] == case && row["variant"] == variant;
    if let Some(row) = played.skipped.iter().find(|row| is_it(row)) {
        let why = row["why"].as_str().unwrap_or("the tracer does not say why");
        return Err(Skip(why.to_owned()).into());
    }
    let verdict = (played.verdicts.iter())
        .find(|row| is_it(row))
        .with_context(|| {
            format!(
                "it was not played; exit {}, {}",
                played.answer.code,
                played.answer.stderr.trim()
            )
        })?;
    check(verdict["as_expected"] == true, || {
        let words = |key: &str| verdict[key].to_string();
        format!(
            "found {}, after the fix {}, error {}",
            words("found"),
            words("after"),
            words("error")
        )
    })?;
    check(healthy || likely || verdict["certain"] == true, || {
        format!("it is not certain: {}", verdict["found"])
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_this_kernel_cannot_show_is_skipped_and_not_passed() {
        let played = Played {
            answer: Answer {
                code: 0,
                stdout: String::new(),
                stderr: String::new(),
            },
            verdicts: vec![
                json!({"case": "a", "variant": "x", "as_expected": true, "certain": true}),
            ],
            skipped: vec![json!({"case": "b", "variant": "x", "why": "no such function"})],
        };
        let judged = |case| judge(&played, case, "x", false, false);
        assert_eq!(crate::outcome(&judged("a")), "passed");
        assert_eq!(crate::outcome(&judged("b")), "skipped");
        assert_eq!(
            judged("b").map_err(|error| error.to_string()),
            Err("no such function".into())
        );
        assert_eq!(crate::outcome(&judged("c")), "failed");
    }
}
