//! `tracer reproduce`: builds a failure in private namespaces, traces it, explains it, applies the
//! fix and proves it. Where this kernel cannot, it runs itself in the lab.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::capture::Capture;
use super::run::{interrupted, kernel_release};
use super::{Exit, Failure, Output, nearest, need_root, runtime};
use crate::cause::Diagnosis;
use crate::kernel::load::{Abilities, Options as LoadOptions};
use crate::printer::{Printer, Show};
use crate::scenario::traffic::Attempt;
use crate::scenario::vip_nodeport::{self, Case, Options, Target, Variant};
use crate::session::Session;

/// The program that boots a lab kernel and runs a command in it.
const LAB: &str = "TRACER_LAB";

/// Cases that can be reproduced.
const CASES: &[&str] = &["vip-nodeport-unbound"];

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The case to reproduce.
    #[arg(required_unless_present = "list")]
    case: Option<String>,
    /// List cases and their variants.
    #[arg(long)]
    list: bool,
    /// Variant of the case.
    #[arg(long, default_value = "unbound")]
    variant: String,
    /// The node's own address.
    #[arg(long, value_name = "IPV4")]
    node: Option<Ipv4Addr>,
    /// The virtual address.
    #[arg(long, value_name = "IPV4")]
    vip: Option<Ipv4Addr>,
    /// The client's address.
    #[arg(long, value_name = "IPV4")]
    client: Option<Ipv4Addr>,
    /// The pod's address.
    #[arg(long, value_name = "IPV4")]
    pod: Option<Ipv4Addr>,
    /// The bridge's address, in the pod's prefix.
    #[arg(long, value_name = "IPV4")]
    bridge_address: Option<Ipv4Addr>,
    /// Port that the pod listens on.
    #[arg(long, value_name = "PORT")]
    pod_port: Option<u16>,
    /// The NodePort.
    #[arg(long, value_name = "PORT")]
    node_port: Option<u16>,
    /// Name of the node's interface.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Name of the node's bridge.
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// Connections to each address.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    requests: Option<u32>,
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
    healthy: bool,
}

#[derive(Serialize)]
struct AttemptView<'a> {
    phase: &'a str,
    target: &'a str,
    address: String,
    outcome: String,
    answered: bool,
    elapsed_ms: f64,
}

#[derive(Serialize)]
struct VerdictView {
    case: &'static str,
    variant: &'static str,
    explained: bool,
    fixed: bool,
    as_expected: bool,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), output.shown());
    let Some(case) = &arguments.case else {
        for variant in Variant::ALL {
            let view = CaseView {
                case: CASES[0],
                variant: variant.name(),
                healthy: variant.healthy(),
            };
            let kind = if view.healthy { "healthy" } else { "fault" };
            printer.object(
                "case",
                &view,
                &format!("{:<24} --variant {:<20} {kind}", view.case, view.variant),
            )?;
        }
        return Ok(Exit::Healthy);
    };
    if !CASES.contains(&case.as_str()) {
        let near = nearest(case, CASES.iter().copied()).join(", ");
        return Err(Failure::usage(format!(
            "no case is called {case}; the nearest: {near} (all: tracer reproduce --list)"
        )));
    }
    let Some(variant) = Variant::ALL
        .iter()
        .copied()
        .find(|variant| variant.name() == arguments.variant)
    else {
        let near = nearest(
            &arguments.variant,
            Variant::ALL.iter().map(|variant| variant.name()),
        )
        .join(", ");
        return Err(Failure::usage(format!(
            "{case} has no variant {}; the nearest: {near}",
            arguments.variant
        )));
    };
    need_root("reproducing a failure in private namespaces")?;
    let missing = missing(arguments.load_modules);
    if !missing.is_empty() {
        return in_lab(&missing, &printer);
    }
    runtime()?.block_on(reproduce(arguments, variant, printer))
}

/// What this kernel lacks for the case.
fn missing(load_modules: bool) -> Vec<String> {
    let mut missing = vip_nodeport::missing(load_modules);
    if !Abilities::read().kprobe {
        missing.push("kprobes".into());
    }
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

async fn reproduce(
    arguments: &Arguments,
    variant: Variant,
    printer: Printer,
) -> Result<Exit, Failure> {
    let options = options(arguments);
    let quiet = printer.format();
    let announce = move |line: &str| {
        // Losing a remark must not lose the reproduction.
        let _ = Printer::new(quiet, Show::Nothing).remark(&format!("  {line}"));
    };
    printer.remark(&format!("building {} ({})", CASES[0], variant.name()))?;
    let case = vip_nodeport::build(options, variant, Box::new(announce))?;
    let held = case.namespaces();
    let namespaces = held.iter().map(|namespace| namespace.id().0).collect();
    let load = LoadOptions {
        namespaces: Some(namespaces),
        ..LoadOptions::default()
    };
    let mut session = Session::start(&load, held, printer)?;
    arguments.capture.start(&mut session)?;
    let attached = session.attached_in().as_secs_f64();
    session.printer().remark(&format!(
        "kernel {} · probes attached in {attached:.1} s",
        kernel_release()
    ))?;

    let show = session.printer().show();
    let work = async {
        let (case, found, answered) = phase(&mut session, case, "before the fix").await?;
        if variant.healthy() {
            let silent = found.is_empty();
            return Ok((found, silent, answered));
        }
        let explained = is_named(&found) && !answered;
        session.forget();
        session.printer().remark("applying the fix")?;
        let fixed_case = tokio::task::spawn_blocking(move || {
            let mut case = case;
            case.apply_fix().map(|()| case)
        })
        .await??;
        // What the fix itself sent is not the proof.
        session.printer().set_show(Show::Nothing);
        session.settle(Duration::from_millis(500)).await?;
        session.printer().set_show(show);
        session.forget();
        let (_case, after, answered) = phase(&mut session, fixed_case, "after the fix").await?;
        Ok::<_, Failure>((found, explained, after.is_empty() && answered))
    };
    let (found, explained, fixed) = tokio::select! {
        done = work => done?,
        () = interrupted() => return Err(Failure::cannot_trace("interrupted; nothing is left behind")),
    };
    let view = VerdictView {
        case: CASES[0],
        variant: variant.name(),
        explained,
        fixed,
        as_expected: explained && fixed,
    };
    let words = match (variant.healthy(), view.as_expected) {
        (true, true) => "healthy: everything answered, and no cause was named",
        (true, false) if !explained => "healthy traffic was blamed",
        (true, false) => "a healthy address did not answer",
        (false, true) => {
            "explained, fixed and proven: everything answers, and no cause is named any more"
        }
        (false, false) if !explained => "the cause was not named",
        (false, false) => "the fix did not help",
    };
    session
        .printer()
        .object("verdict", &view, &format!("\n{words}"))?;
    session.finish()?;
    if !view.as_expected {
        return Err(Failure::cannot_trace(format!(
            "the reproduction did not go as expected: {words}"
        )));
    }
    Ok(if found.is_empty() {
        Exit::Healthy
    } else {
        Exit::CauseNamed
    })
}

fn is_named(found: &[Diagnosis]) -> bool {
    found.iter().any(|diagnosis| diagnosis.code == CASES[0])
}

/// Sends to every target while tracing, and waits for what comes of it; true when all answered.
async fn phase(
    session: &mut Session,
    mut case: Case,
    name: &'static str,
) -> Result<(Case, Vec<Diagnosis>, bool), Failure> {
    let mut found = Vec::new();
    let mut answered = true;
    for target in case.targets() {
        session
            .printer()
            .remark(&format!("\n{name}: {} {}", target.label, target.address))?;
        let sending = tokio::task::spawn_blocking(move || {
            let attempts = case.send(&target);
            (case, target, attempts)
        });
        let (sent, diagnoses) = session.collect(sending).await?;
        found.extend(diagnoses);
        let (back, target, attempts) = sent?;
        case = back;
        for attempt in attempts? {
            answered &= Case::is_good(&attempt);
            show_attempt(session, name, &target, &attempt)?;
        }
        found.extend(session.settle(Duration::from_secs(2)).await?);
    }
    Ok((case, found, answered))
}

fn show_attempt(
    session: &mut Session,
    phase: &str,
    target: &Target,
    attempt: &Attempt,
) -> Result<(), Failure> {
    let answered = Case::is_good(attempt);
    let view = AttemptView {
        phase,
        target: target.label,
        address: target.address.to_string(),
        outcome: attempt.outcome.to_string(),
        answered,
        elapsed_ms: attempt.elapsed.as_secs_f64() * 1e3,
    };
    let line = format!(
        "client → {}: {} in {:.1} ms",
        view.address, view.outcome, view.elapsed_ms
    );
    session.printer().object("attempt", &view, &line)?;
    Ok(())
}

fn options(arguments: &Arguments) -> Options {
    let mut options = Options::default();
    let set = |to: &mut Ipv4Addr, from: Option<Ipv4Addr>| {
        if let Some(from) = from {
            *to = from;
        }
    };
    set(&mut options.node, arguments.node);
    set(&mut options.vip, arguments.vip);
    set(&mut options.client, arguments.client);
    set(&mut options.pod, arguments.pod);
    set(&mut options.bridge_address, arguments.bridge_address);
    options.pod_port = arguments.pod_port.unwrap_or(options.pod_port);
    options.node_port = arguments.node_port.unwrap_or(options.node_port);
    options.requests = arguments.requests.unwrap_or(options.requests);
    if let Some(interface) = &arguments.interface {
        options.interface.clone_from(interface);
    }
    if let Some(bridge) = &arguments.bridge {
        options.bridge.clone_from(bridge);
    }
    options
}
