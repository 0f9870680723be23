//! `tracer reproduce`: builds failures in private namespaces, traces them, explains them, applies the
//! fix and proves it. Where this kernel cannot, it runs itself in the lab.
//!
//! Map: `names` is what was typed about addresses and names, `stage` plays a case in a session.

use std::os::unix::process::CommandExt as _;

use clap::Args;
use serde::Serialize;

use super::capture::Capture;
use super::run::{interrupted, kernel_release};
use super::{Exit, Failure, Output, nearest, need_root, runtime};
use crate::kernel::attach::has_kprobes;
use crate::kernel::load::Options as LoadOptions;
use crate::printer::Printer;
use crate::scenario::{self, NotOn, REGISTRY, Scenario, Variant};
use crate::session::Session;

mod names;
mod stage;

use names::Names;
use stage::{Player, VerdictView};

/// The program that boots a lab kernel and runs a command in it.
const LAB: &str = "TRACER_LAB";
/// Every case, or every variant.
const ALL: &str = "all";

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The cases to reproduce, or `all`.
    #[arg(required_unless_present = "list", value_name = "CASE")]
    cases: Vec<String>,
    /// List cases and their variants: those of the cases that are named, or all.
    #[arg(long)]
    list: bool,
    /// Variant of the case, or `all` [default: the first that --list shows].
    #[arg(long)]
    variant: Option<String>,
    #[command(flatten)]
    names: Names,
    /// Load the kernel modules that are needed (ip_vs, veth, bridge); they stay loaded.
    #[arg(long)]
    load_modules: bool,
    #[command(flatten)]
    capture: Capture,
}

#[derive(Serialize)]
struct CaseView {
    case: &'static str,
    variant: &'static str,
    title: &'static str,
    healthy: bool,
    /// Causes that are to be named, the root first.
    expects: &'static [&'static str],
    /// Why the cause can be named as likely only.
    likely: Option<&'static str>,
    /// Kernels that cannot show it, each with the reason.
    not_on: Vec<String>,
}

impl CaseView {
    fn new(scenario: &'static Scenario, variant: &'static Variant) -> Self {
        Self {
            case: scenario.name,
            variant: variant.name,
            title: variant.title,
            healthy: !variant.fault,
            expects: scenario.expected(variant),
            likely: variant.likely,
            not_on: scenario.not_on.iter().map(NotOn::words).collect(),
        }
    }

    fn words(&self) -> String {
        let kind = if self.healthy { "healthy" } else { "fault" };
        let mut words = format!(
            "{:<24} --variant {:<20} {kind:<8} {}",
            self.case, self.variant, self.title
        );
        if let Some(why) = self.likely.filter(|_| !self.healthy) {
            words += &format!("\n{:<24} likely only: {why}", "");
        }
        for row in &self.not_on {
            words += &format!("\n{:<24} not on {row}", "");
        }
        words
    }
}

/// A case to play.
type Chosen = (&'static Scenario, &'static Variant);

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), output.shown());
    if arguments.list {
        return list(arguments, &printer);
    }
    let chosen = choose(&arguments.cases, arguments.variant.as_deref())?;
    need_root("reproducing a failure in private namespaces")?;
    let missing = missing(&chosen, arguments.load_modules);
    if !missing.is_empty() {
        return in_lab(&missing, &printer);
    }
    runtime()?.block_on(reproduce(arguments, &chosen, printer))
}

/// Lists the cases that are named, or all; of each the variant that is named, or all.
fn list(arguments: &Arguments, printer: &Printer) -> Result<Exit, Failure> {
    let all = [ALL.to_owned()];
    let cases = if arguments.cases.is_empty() {
        &all
    } else {
        arguments.cases.as_slice()
    };
    for (scenario, variant) in choose(cases, arguments.variant.as_deref().or(Some(ALL)))? {
        let view = CaseView::new(scenario, variant);
        let words = view.words();
        printer.object("case", &view, &words)?;
    }
    Ok(Exit::Healthy)
}

/// The cases and variants that were asked for.
fn choose(cases: &[String], variant: Option<&str>) -> Result<Vec<Chosen>, Failure> {
    let mut scenarios = Vec::new();
    for name in cases {
        if name == ALL {
            scenarios.extend(REGISTRY);
            continue;
        }
        scenarios.push(scenario::find(name).ok_or_else(|| {
            let near = nearest(name, REGISTRY.iter().map(|scenario| scenario.name)).join(", ");
            Failure::usage(format!(
                "no case is called {name}; the nearest: {near} (all: tracer reproduce --list)"
            ))
        })?);
    }
    let mut chosen = Vec::new();
    for scenario in scenarios {
        let variants: Vec<_> = match variant {
            None => scenario.variants.iter().take(1).collect(),
            Some(ALL) => scenario.variants.iter().collect(),
            Some(name) => scenario
                .variants
                .iter()
                .filter(|variant| variant.name == name)
                .collect(),
        };
        if variants.is_empty() {
            let typed = variant.unwrap_or_default();
            let names = scenario.variants.iter().map(|variant| variant.name);
            let near = nearest(typed, names).join(", ");
            return Err(Failure::usage(format!(
                "{} has no variant {typed}; the nearest: {near}",
                scenario.name
            )));
        }
        chosen.extend(variants.into_iter().map(|variant| (scenario, variant)));
    }
    Ok(chosen)
}

/// What this kernel lacks for the cases.
fn missing(chosen: &[Chosen], load_modules: bool) -> Vec<String> {
    let mut missing: Vec<String> = chosen
        .iter()
        .flat_map(|(scenario, _)| scenario.missing(load_modules))
        .collect();
    if !has_kprobes() {
        missing.push("kprobes".into());
    }
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Runs this very command on a lab kernel.
fn in_lab(missing: &[String], printer: &Printer) -> Result<Exit, Failure> {
    let lack = format!("kernel {} lacks {}", kernel_release(), missing.join(", "));
    let Some(lab) = std::env::var_os(LAB) else {
        return Err(Failure::cannot_trace(format!(
            "{lack}; run this on a node that has them (--load-modules loads modules that are installed), or from the \
             source tree with `cargo xtask run -- reproduce …`, which boots a kernel that has them"
        )));
    };
    printer.remark(&format!("{lack}: running in the lab"))?;
    let program = std::env::current_exe()?;
    // Only returns when the lab cannot be started.
    let error = std::process::Command::new(lab)
        .args(["lab", "--setup", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .arg("--load-modules")
        .env_remove(LAB)
        .exec();
    Err(Failure::cannot_trace(format!(
        "{lack}, and the lab cannot be started: {error}"
    )))
}

/// Plays the cases one after the other in one session, so that attaching is paid once.
async fn reproduce(
    arguments: &Arguments,
    chosen: &[Chosen],
    printer: Printer,
) -> Result<Exit, Failure> {
    let options = arguments.names.options();
    if let Some(seed) = arguments.names.random {
        printer.remark(&format!("names and addresses drawn with seed {seed}"))?;
    }
    let load = LoadOptions {
        namespaces: Some(Vec::new()),
        ..LoadOptions::default()
    };
    let mut session = Session::start(&load, Vec::new(), printer)?;
    arguments.capture.start(&mut session, "")?;
    let attached = session.attached_in().as_secs_f64();
    session.printer().remark(&format!(
        "kernel {} · probes attached in {attached:.1} s",
        kernel_release()
    ))?;

    let work = async {
        let mut verdicts = Vec::new();
        let mut player = Player::new(&mut session, options);
        for &(scenario, variant) in chosen {
            verdicts.extend(player.play(scenario, variant).await?);
        }
        Ok::<_, Failure>(verdicts)
    };
    let verdicts = tokio::select! {
        done = work => done?,
        () = interrupted() => return Err(Failure::cannot_trace("interrupted; nothing is left behind")),
    };
    let ended = session.finish()?;
    let wrong: Vec<_> = verdicts
        .iter()
        .filter(|verdict| !verdict.as_expected)
        .map(VerdictView::complaint)
        .collect();
    if !wrong.is_empty() {
        return Err(Failure::cannot_trace(format!(
            "{} of {} reproductions did not go as expected: {}",
            wrong.len(),
            verdicts.len(),
            wrong.join("; ")
        )));
    }
    let named = verdicts.iter().any(|verdict| !verdict.found.is_empty());
    Ok(Exit::of_trace(named, ended.capture_failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_of_the_cases_that_are_named() {
        let names = |cases: &[&str], variant: Option<&str>| {
            let cases: Vec<String> = cases.iter().map(|&case| case.to_owned()).collect();
            let chosen = choose(&cases, variant).ok()?;
            let names = chosen.into_iter();
            Some(
                names
                    .map(|(scenario, variant)| (scenario.name, variant.name))
                    .collect::<Vec<_>>(),
            )
        };
        let one = names(&["no-route"], Some(ALL)).expect("it is known");
        assert!(one.len() > 1 && one.iter().all(|(name, _)| *name == "no-route"));
        assert_eq!(
            names(&["no-route"], Some("healthy")),
            Some(vec![("no-route", "healthy")])
        );
        assert_eq!(names(&["no-route"], None).map(|names| names.len()), Some(1));
        assert_eq!(names(&["nosuch"], Some(ALL)), None);
    }

    #[test]
    fn one_fault_beside_traffic_is_not_two() {
        let mixed = scenario::find("mixed").expect("it is there");
        for variant in mixed.variants.iter().filter(|variant| variant.fault) {
            let beside = variant.title.contains("healthy traffic");
            assert_eq!(beside, variant.expects.len() == 1, "{}", variant.name);
        }
    }
}
