//! `tracer run`: trace this machine live.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::capture::Capture;
use super::cluster::Connection;
use super::command::Command;
use super::limits::LimitArguments;
use super::proxy_log::LogSource;
use super::traced::Traced;
use super::{Exit, Failure, Output, OutputFormat, need_root, runtime, value};
use crate::filter::Filter;
use crate::kernel::attach::Tier;
use crate::kernel::load::{Options, Tracing};
use crate::kernel::privilege;
use crate::printer::{Printer, Show};
use crate::session::Session;
use crate::view::cluster::ClusterView;

/// Packets of a command that are still on their way when it ends are waited for this long.
const AFTER_COMMAND: Duration = Duration::from_secs(1);

/// Of a filter with `not`.
const NOT_SHOWN: &str = "what `not` excludes is not shown; where only the other side of NAT shows that it is \
                         excluded, it is traced, and captured, all the same";

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    traced: Traced,
    /// Stop after this long: 30s, 1m30s; a plain number is seconds.
    #[arg(long = "for", value_name = "TIME", value_parser = value::duration)]
    time: Option<Duration>,
    /// Stop after so many packets were shown.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop at the first cause that is named.
    #[arg(long)]
    until_diagnosis: bool,
    /// Run this shell command, with the rights and input that this one has, and trace until it ends; it is
    /// ended by what else stops the trace. Its output goes to standard error with --format json.
    #[arg(long = "cmd", value_name = "COMMAND")]
    command: Option<String>,
    /// Show packets that arrived as well; with a filter, --cmd or --count they are shown anyway.
    #[arg(long, conflicts_with = "failed")]
    all: bool,
    /// Show only packets that did not arrive; without a filter, --cmd and --count that is so anyway.
    #[arg(long)]
    failed: bool,
    /// Write this process's number into a file once it traces.
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArguments,
    /// Print what the kernel programs themselves say about trouble.
    #[arg(long)]
    program_log: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    capture: Capture,
    #[command(flatten)]
    log: LogSource,
}

impl Arguments {
    /// Which packets are shown: those that were asked for; of a whole node's, those that did not arrive.
    const fn shows(&self, filter: &Filter) -> Show {
        let asked = !filter.is_everything() || self.command.is_some() || self.count.is_some();
        Show::all_or_failed(self.all || asked && !self.failed)
    }
}

/// Why tracing stops.
enum Stop {
    /// Time is up, enough was seen, or somebody asked for it.
    Now,
    /// The command ended.
    Command(std::io::Result<ExitStatus>),
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let expression = arguments.traced.expression()?;
    arguments
        .capture
        .check(output.format == OutputFormat::Json)?;
    need_root("tracing")?;
    let log = arguments.log.read()?;
    let (mut options, mut cluster) = arguments
        .traced
        .resolve(expression, &arguments.connection)?;
    options.program_log = arguments.program_log;
    let printer = Printer::new(output.printer_format(), arguments.shows(&options.filter))
        .at_most(arguments.count);
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut session = Session::start(&options, Vec::new(), printer)?;
        arguments
            .capture
            .start(&mut session, &options.filter.to_string())?;
        privilege::drop_unneeded()?;
        arguments.limits.apply(&mut session);
        session.know_proxy_log(log);
        // Its thread begins with the few capabilities that are left.
        if cluster.is_none() {
            cluster = arguments.connection.start()?;
        }
        if let Some(cluster) = cluster {
            session.watch(cluster);
        }
        let ready = ready(&session, &options);
        let words = ready.words();
        session.printer().object("ready", &ready, &words)?;
        if options.leaves_out() {
            session.printer().remark(NOT_SHOWN)?;
        }
        if let Some(path) = &arguments.ready_file {
            std::fs::write(path, format!("{}\n", std::process::id()))
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let command = arguments
            .command
            .as_deref()
            .map(|line| Command::start(line, output.format == OutputFormat::Json))
            .transpose()?;
        let enough = |printer: &Printer, diagnoses: &[_]| {
            let named = arguments.until_diagnosis && !diagnoses.is_empty();
            (named || printer.is_full()).then_some(Stop::Now)
        };
        let (stop, mut diagnoses) = session
            .collect_until(stop(arguments.time, command.as_ref()), enough)
            .await?;
        if let Some(command) = &command {
            let status = match stop {
                Stop::Command(status) => {
                    diagnoses.extend(session.settle(AFTER_COMMAND).await?);
                    status
                }
                Stop::Now => command.end(),
            };
            let view = command.view(status.context("the command cannot be waited for")?);
            session.printer().object("command", &view, &view.words())?;
        }
        let ended = session.finish()?;
        diagnoses.extend(ended.diagnoses);
        Ok(Exit::of_trace(!diagnoses.is_empty(), ended.capture_failed))
    })
}

/// Done on Ctrl-C, on SIGTERM, after the limit, or when the command ends.
async fn stop(limit: Option<Duration>, command: Option<&Command>) -> Stop {
    let limit = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let ended = async {
        match command {
            Some(command) => command.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = limit => Stop::Now,
        () = interrupted() => Stop::Now,
        status = ended => Stop::Command(status),
    }
}

/// Done when the process is asked to end, or its terminal is gone.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    // `nohup` wants it to go on.
    let mut hangup = (!ignores_hangup())
        .then(|| signal(SignalKind::hangup()).ok())
        .flatten();
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hung_up => {}
    }
}

/// Whether whoever started this process had it ignore the end of its terminal.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is signal 1, SIGHUP.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// What is traced from now on.
#[derive(Serialize)]
struct ReadyView {
    /// As typed; `None` for everything.
    filter: Option<String>,
    host: String,
    kernel: String,
    probes: Vec<(&'static str, usize)>,
    attached_seconds: f64,
    not_seen: Vec<String>,
    kubernetes: Option<ClusterView>,
}

fn ready(session: &Session, options: &Options) -> ReadyView {
    let tracing = session.tracing();
    let count = |tier| {
        tracing
            .hooks
            .iter()
            .filter(|state| state.outcome == Ok(tier))
            .count()
    };
    ReadyView {
        filter: (!options.filter.is_everything()).then(|| options.filter.to_string()),
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
        if let Some(filter) = &self.filter {
            text += &format!("\nfilter: {filter}");
        }
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

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use clap::Parser;
    use nix::sys::signal::{Signal, raise};

    use super::*;
    use crate::filter::Here;

    #[test]
    fn a_terminal_that_goes_away_ends_it_as_ctrl_c_does() {
        if ignores_hangup() {
            return;
        }
        runtime().expect("a runtime").block_on(async {
            let mut ended = std::pin::pin!(interrupted());
            // From now on the signal is handled.
            let first = std::future::poll_fn(|context| {
                Poll::Ready(ended.as_mut().poll(context).is_pending())
            });
            assert!(first.await);
            raise(Signal::SIGHUP).expect("a signal");
            let patience = Duration::from_secs(10);
            tokio::time::timeout(patience, ended).await.expect("an end");
        });
    }

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn what_was_asked_for_is_shown_and_of_a_whole_node_what_failed() {
        for (words, shown) in [
            (&[][..], Show::Failed),
            (&["--for", "3s"], Show::Failed),
            (&["--all"], Show::All),
            (&["port", "30000"], Show::All),
            (&["--cmd", "true"], Show::All),
            (&["--count", "3"], Show::All),
            (&["--failed"], Show::Failed),
            (&["port", "30000", "--failed"], Show::Failed),
        ] {
            let words = [&["tracer"], words].concat();
            let arguments = Typed::try_parse_from(&words)
                .expect("it is allowed")
                .arguments;
            let expression = arguments.traced.expression().expect("an expression");
            let filter = expression.resolve(&Here::default()).expect("a filter");
            assert_eq!(arguments.shows(&filter), shown, "{words:?}");
        }
        assert!(Typed::try_parse_from(["tracer", "--all", "--failed"]).is_err());
    }
}
