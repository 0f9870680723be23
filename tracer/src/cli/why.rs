//! `tracer why`: a cause in words, from the catalogue.

use clap::Args;
use serde::Serialize;

use super::{Exit, Failure, Output, nearest};
use crate::cause::{self, CATALOGUE};
use crate::printer::{Printer, Show};
use crate::scenario::{self, NotOn};

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Code of the cause.
    #[arg(required_unless_present = "list")]
    code: Option<String>,
    /// List every cause.
    #[arg(long)]
    list: bool,
}

/// What is said more of a cause in the list begins below its title.
const LIST_MARGIN: usize = 29;

#[derive(Serialize)]
struct CauseView {
    cause: &'static str,
    title: &'static str,
    explanation: &'static str,
    /// Where its facts come from.
    references: &'static [&'static str],
    brings_about: &'static [&'static str],
    /// `tracer reproduce` builds it.
    built_in_lab: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_reproduced: Option<&'static str>,
    /// Kernels that cannot show it, each with the reason.
    not_on: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let Some(code) = &arguments.code else {
        for cause in CATALOGUE {
            let view = CauseView::of(cause);
            printer.object("cause", &view, &view.line())?;
        }
        return Ok(Exit::Healthy);
    };
    let Some(cause) = cause::find(code) else {
        let near = nearest(code, CATALOGUE.iter().map(|cause| cause.code)).join(", ");
        return Err(Failure::usage(format!(
            "no cause is called {code}; the nearest: {near} (all: tracer why --list)"
        )));
    };
    let view = CauseView::of(cause);
    printer.object("cause", &view, &view.words())?;
    Ok(Exit::Healthy)
}

impl CauseView {
    fn of(cause: &cause::Cause) -> Self {
        Self {
            cause: cause.code,
            title: cause.title,
            explanation: cause.explanation,
            references: cause.references,
            brings_about: cause.explains,
            built_in_lab: scenario::builds(cause.code),
            not_reproduced: scenario::why_not_built(cause.code),
            not_on: scenario::find(cause.code)
                .into_iter()
                .flat_map(|scenario| scenario.not_on)
                .map(NotOn::words)
                .collect(),
        }
    }

    /// In the list of all.
    fn line(&self) -> String {
        let line = format!("  {:<26} {}", self.cause, self.title);
        self.more().iter().fold(line, |line, more| {
            line + &format!("\n{:LIST_MARGIN$}{more}", "")
        })
    }

    /// By itself.
    fn words(&self) -> String {
        let mut words = format!("{}: {}\n\n{}", self.cause, self.title, self.explanation);
        let more = self.more();
        if !more.is_empty() {
            words += &format!("\n\n{}", more.join("\n"));
        }
        words + &format!("\n\nSources:\n  {}", self.references.join("\n  "))
    }

    /// What it brings about, why no reproduction builds it, and the kernels that cannot show it.
    fn more(&self) -> Vec<String> {
        let brings_about = (!self.brings_about.is_empty())
            .then(|| format!("brings about: {}", self.brings_about.join(", ")));
        let unbuilt = self
            .not_reproduced
            .map(|why| format!("not reproduced: {why}"));
        let not_on = self.not_on.iter().map(|row| format!("not on {row}"));
        brings_about
            .into_iter()
            .chain(unbuilt)
            .chain(not_on)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_tells_what_json_does() {
        let view = CauseView {
            cause: "kube-proxy-stale",
            title: "title",
            explanation: "Explained.",
            references: &[
                "https://example.org/1",
                "`ip_vs_in` (net/netfilter/ipvs/ip_vs_core.c)",
            ],
            brings_about: &["no-route", "no-listener"],
            built_in_lab: false,
            not_reproduced: Some("nothing shows it"),
            not_on: vec!["5.10.x: no reason".into()],
        };
        for text in [view.line(), view.words()] {
            assert!(
                text.contains("brings about: no-route, no-listener\n"),
                "{text}"
            );
            assert!(
                text.contains("not reproduced: nothing shows it\n"),
                "{text}"
            );
            assert!(
                text.contains("\nnot on 5.10.x: no reason")
                    || text.ends_with("  not on 5.10.x: no reason"),
                "{text}"
            );
        }
        let sources = view.words();
        let (_, sources) = sources.split_once("\n\nSources:\n").expect("sources");
        let sources: Vec<_> = sources.lines().map(str::trim).collect();
        assert_eq!(sources, view.references);
        let plain = CauseView {
            brings_about: &[],
            not_reproduced: None,
            not_on: Vec::new(),
            ..view
        };
        assert!(plain.words().contains("Explained.\n\nSources:"));
        assert_eq!(plain.line().lines().count(), 1);
    }

    #[test]
    fn the_schema_allows_every_cause_and_asks_for_its_sources() {
        let schema = serde_json::from_str(include_str!("../../schema/output.schema.json"))
            .expect("the schema is JSON");
        let validator = jsonschema::validator_for(&schema).expect("the schema is one");
        for cause in CATALOGUE {
            let mut object = serde_json::to_value(CauseView::of(cause)).expect("it is JSON");
            object["type"] = "cause".into();
            let allowed = validator.validate(&object);
            assert!(allowed.is_ok(), "{}: {allowed:?}", cause.code);
            object["references"] = serde_json::json!([]);
            assert!(!validator.is_valid(&object), "{}", cause.code);
        }
    }
}
