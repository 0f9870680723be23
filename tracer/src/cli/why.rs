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

#[derive(Serialize)]
struct CauseView {
    cause: &'static str,
    title: &'static str,
    explanation: &'static str,
    brings_about: &'static [&'static str],
    /// `tracer reproduce` builds it; else no traffic shows it, and `tracer check` finds it.
    built_in_lab: bool,
    /// Kernels that cannot show it, each with the reason.
    not_on: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let view = |cause: &cause::Cause| CauseView {
        cause: cause.code,
        title: cause.title,
        explanation: cause.explanation,
        brings_about: cause.explains,
        built_in_lab: scenario::builds(cause.code),
        not_on: scenario::find(cause.code)
            .into_iter()
            .flat_map(|scenario| scenario.not_on)
            .map(NotOn::words)
            .collect(),
    };
    let Some(code) = &arguments.code else {
        for cause in CATALOGUE {
            printer.object(
                "cause",
                &view(cause),
                &format!(
                    "{} {:<26} {}",
                    if scenario::builds(cause.code) {
                        ' '
                    } else {
                        '*'
                    },
                    cause.code,
                    cause.title
                ),
            )?;
        }
        if CATALOGUE.iter().any(|cause| !scenario::builds(cause.code)) {
            printer.remark("* not reproduced: no traffic shows it, tracer check finds it")?;
        }
        return Ok(Exit::Healthy);
    };
    let Some(cause) = cause::find(code) else {
        let near = nearest(code, CATALOGUE.iter().map(|cause| cause.code)).join(", ");
        return Err(Failure::usage(format!(
            "no cause is called {code}; the nearest: {near} (all: tracer why --list)"
        )));
    };
    printer.object(
        "cause",
        &view(cause),
        &format!("{}: {}\n\n{}", cause.code, cause.title, cause.explanation),
    )?;
    Ok(Exit::Healthy)
}
