//! `tracer run`: trace this machine live.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::capture::Capture;
use super::cluster::Connection;
use super::{Exit, Failure, Output, need_root, runtime};
use crate::kernel::load::{Options, Tier, Tracing};
use crate::kernel::privilege;
use crate::printer::{Printer, Show};
use crate::session::Session;
use crate::view::cluster::ClusterView;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Stop after this many seconds.
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Show packets that arrived as well, not only those that did not.
    #[arg(long)]
    all: bool,
    /// Ring buffer size, MiB, a power of two.
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = buffer)]
    buffer: u32,
    /// Print what the kernel programs themselves say about trouble.
    #[arg(long)]
    program_log: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    capture: Capture,
}

fn buffer(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(size @ 1..=1024) if u32::is_power_of_two(size) => Ok(size),
        _ => Err("a power of two from 1 to 1024 is needed".into()),
    }
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    need_root("tracing")?;
    let show = if arguments.all {
        Show::All
    } else {
        Show::Failed
    };
    let printer = Printer::new(output.printer_format(), show);
    let options = Options {
        ring_bytes: arguments.buffer << 20,
        program_log: arguments.program_log,
        ..Options::default()
    };
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut session = Session::start(&options, Vec::new(), printer)?;
        arguments.capture.start(&mut session)?;
        privilege::drop_unneeded()?;
        // Its thread begins with the few capabilities that are left.
        if let Some(cluster) = arguments.connection.start()? {
            session.watch(cluster);
        }
        let ready = ready(&session);
        let words = ready.words();
        session.printer().object("ready", &ready, &words)?;
        let limit = arguments.seconds.map(Duration::from_secs);
        let (_, mut diagnoses) = session.collect(stop(limit)).await?;
        diagnoses.extend(session.finish()?);
        Ok(if diagnoses.is_empty() {
            Exit::Healthy
        } else {
            Exit::CauseNamed
        })
    })
}

/// Done on Ctrl-C, on SIGTERM, or after the limit.
async fn stop(limit: Option<Duration>) {
    let limit = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = limit => {}
        () = interrupted() => {}
    }
}

/// Done when the process is asked to end.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// What is traced from now on.
#[derive(Serialize)]
struct ReadyView {
    host: String,
    kernel: String,
    probes: Vec<(&'static str, usize)>,
    attached_seconds: f64,
    not_seen: Vec<String>,
    kubernetes: Option<ClusterView>,
}

fn ready(session: &Session) -> ReadyView {
    let tracing = session.tracing();
    let count = |tier| {
        tracing
            .hooks
            .iter()
            .filter(|state| state.outcome == Ok(tier))
            .count()
    };
    ReadyView {
        host: host_name(),
        kernel: kernel_release(),
        probes: [Tier::Fentry, Tier::Kprobe, Tier::Tracepoint]
            .into_iter()
            .map(|tier| (tier.name(), count(tier)))
            .filter(|&(_, count)| count > 0)
            .collect(),
        attached_seconds: session.attached_in().as_secs_f64(),
        not_seen: blind_spots(tracing),
        kubernetes: session.cluster().cloned(),
    }
}

impl ReadyView {
    /// The first lines that a person sees.
    fn words(&self) -> String {
        let probes: usize = self.probes.iter().map(|(_, count)| count).sum();
        let tiers: Vec<_> = self
            .probes
            .iter()
            .map(|(tier, count)| format!("{count} {tier}"))
            .collect();
        let mut text = format!(
            "tracing {} · kernel {} · {probes} probes ({}) attached in {:.1} s · {} · Ctrl-C stops",
            self.host,
            self.kernel,
            tiers.join(", "),
            self.attached_seconds,
            self.kubernetes
                .as_ref()
                .map_or_else(|| "Kubernetes: no".to_owned(), ClusterView::words)
        );
        for blind in &self.not_seen {
            text += &format!("\nnot seen: {blind}");
        }
        text
    }
}

/// What cannot be seen, one line per reason.
pub(super) fn blind_spots(tracing: &Tracing) -> Vec<String> {
    let mut reasons: Vec<(String, Vec<&str>)> = Vec::new();
    for state in &tracing.hooks {
        let Err(gap) = &state.outcome else { continue };
        let reason = gap.to_string();
        let area = state.hook.role.area().name();
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, areas)) if areas.contains(&area) => {}
            Some((_, areas)) => areas.push(area),
            None => reasons.push((reason, vec![area])),
        }
    }
    reasons
        .into_iter()
        .map(|(reason, areas)| format!("{} ({reason})", areas.join(", ")))
        .collect()
}

/// The machine's name.
pub(super) fn host_name() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "this machine".into(),
        |name| name.nodename().to_string_lossy().into_owned(),
    )
}

/// The running kernel's release.
pub(super) fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".into(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}
