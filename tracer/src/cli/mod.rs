//! The command line: what was typed, and one file per command that gathers and calls, without logic
//! of its own.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::capture::{Foreign, ReadError, Unmade};
use crate::printer::{Format, Show};
use crate::view::text::Style;

mod capture;
mod check;
mod cluster;
mod command;
mod definitions;
mod destination;
mod doctor;
mod explain;
mod export;
mod fleet;
mod limits;
mod merge;
mod probe;
mod progress;
mod proxy_log;
mod report;
mod reproduce;
mod run;
mod serve;
mod show;
mod top;
mod traced;
mod value;
mod why;

/// Exit codes, the same for every command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Nothing wrong found.
    Healthy = 0,
    /// A cause was named.
    CauseNamed = 1,
    /// Wrong use.
    Usage = 2,
    /// This machine cannot be traced, or the capture of it not written.
    CannotTrace = 3,
    /// The input is damaged.
    Damaged = 4,
}

impl Exit {
    /// Of a trace: a cause that was named comes before a capture that could not be written.
    const fn of_trace(named: bool, capture_failed: bool) -> Self {
        match (named, capture_failed) {
            (true, _) => Self::CauseNamed,
            (false, true) => Self::CannotTrace,
            (false, false) => Self::Healthy,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Says in plain words why a packet was lost on this node, proves it, and gives the fix.
#[derive(Parser, Debug)]
#[command(name = "tracer", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

/// How answers are written.
#[derive(Args, Clone, Debug)]
struct Output {
    /// Text for a person, or one JSON object a line.
    #[arg(long, value_enum, default_value_t = OutputFormat::Text, global = true)]
    format: OutputFormat,
    /// When to use colours.
    #[arg(long, value_enum, default_value_t = Colour::Auto, global = true)]
    color: Colour,
    /// Show every kernel event of a journey.
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum OutputFormat {
    Text,
    Json,
    /// Of an export only.
    #[value(skip)]
    Parquet,
    /// Of an export only.
    #[value(skip)]
    Pcapng,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Colour {
    Auto,
    Always,
    Never,
}

impl Output {
    fn printer_format(&self) -> Format {
        match self.format {
            OutputFormat::Json => Format::Json {
                verbose: self.verbose,
            },
            OutputFormat::Text | OutputFormat::Parquet | OutputFormat::Pcapng => Format::Text {
                style: self.style(),
                verbose: self.verbose,
            },
        }
    }

    /// Journeys of a reproduction: a person sees what opens connections, unless asked for all.
    fn shown(&self) -> Show {
        if self.format == OutputFormat::Json || self.verbose {
            Show::All
        } else {
            Show::Openings
        }
    }

    fn style(&self) -> Style {
        let colour = match self.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
            }
        };
        Style { colour }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Trace this machine live. Example: tracer run --for 30s --cmd 'curl -m 2 http://192.0.2.7:30000'
    Run(run::Arguments),
    /// The answer of a live trace from its capture, on any machine. Example: tracer explain node.pcapng
    Explain(explain::Arguments),
    /// Watch this machine live: flows, the way of the chosen one, causes and drops.
    /// Example: tracer top port 30000
    Top(top::Arguments),
    /// Send a bounded test, trace only it, and say where it went; with --against set two ways side by side.
    /// Example: tracer probe tcp://192.0.2.7:30000 --against tcp://192.0.2.8:30000
    Probe(probe::Arguments),
    /// Stay on at low cost: counts of what is lost for Prometheus, causes as far as they can be told.
    /// Example: tracer serve --listen 127.0.0.1:9464
    Serve(serve::Arguments),
    /// Build a failure in private namespaces, trace it, explain it, fix it and prove the fix.
    /// Example: tracer reproduce vip-nodeport-unbound
    Reproduce(reproduce::Arguments),
    /// Journeys, flows or events of a capture as tables. Example: tracer show node.pcapng --flows
    Show(show::Arguments),
    /// A capture as one page that loads nothing: causes with pictures of the way, every flow, tables.
    /// Example: tracer report node.pcapng -o node.html
    Report(report::Arguments),
    /// Tables, JSON or another capture out of a capture; --anonymize makes one that can be shared.
    /// Example: tracer export node.pcapng --format parquet -o node/
    Export(export::Arguments),
    /// Captures of several nodes as one: a packet's way goes on from node to node, clocks are aligned.
    /// Example: tracer merge a.pcapng b.pcapng -o both.pcapng
    Merge(merge::Arguments),
    /// Look over this node without traffic; exit code 1 when something is wrong, 0 with warnings alone.
    /// Example: tracer check --format json
    Check(check::Arguments),
    /// Explain a cause. Example: tracer why vip-nodeport-unbound
    Why(why::Arguments),
    /// The Kubernetes cluster: what is known of it, and tracing its nodes at once.
    /// Example: tracer cluster facts
    Cluster(cluster::Arguments),
    /// Say what this kernel lets the tracer see, hook by hook, and what is missing.
    Doctor,
    /// A shell's completions. Example: tracer completions bash > /etc/bash_completion.d/tracer
    Completions(definitions::CompletionArguments),
    /// Man pages of every command. Example: tracer man /usr/local/share/man/man1
    Man(definitions::ManArguments),
}

/// Something that ends a command, with its exit code.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    fn usage(message: String) -> Self {
        Self {
            exit: Exit::Usage,
            error: anyhow::Error::msg(message),
        }
    }

    fn cannot_trace(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::CannotTrace,
            error: anyhow::Error::msg(message.into()),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self {
            exit: exit_of(&error),
            error,
        }
    }
}

/// What an error says of: the command, the file that it was given, or this machine.
fn exit_of(error: &anyhow::Error) -> Exit {
    let of_files = |cause: &(dyn std::error::Error + 'static)| {
        match cause.downcast_ref::<ReadError>() {
            Some(ReadError::Unopened { .. }) => return Some(Exit::Usage),
            Some(ReadError::Input { .. } | ReadError::Damage { .. }) => return Some(Exit::Damaged),
            None => {}
        }
        (cause.is::<Unmade>() || cause.is::<Foreign>()).then_some(Exit::Usage)
    };
    error
        .chain()
        .find_map(of_files)
        .unwrap_or(Exit::CannotTrace)
}

/// Runs what was typed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run(arguments) => run::run(&arguments, &cli.output),
        Command::Explain(arguments) => explain::run(&arguments, &cli.output),
        Command::Top(arguments) => top::run(&arguments, &cli.output),
        Command::Probe(arguments) => probe::run(&arguments, &cli.output),
        Command::Serve(arguments) => serve::run(&arguments, &cli.output),
        Command::Reproduce(arguments) => reproduce::run(&arguments, &cli.output),
        Command::Show(arguments) => show::run(&arguments, &cli.output),
        Command::Report(arguments) => report::run(&arguments, &cli.output),
        Command::Export(arguments) => export::run(&arguments),
        Command::Merge(arguments) => merge::run(&arguments, &cli.output),
        Command::Check(arguments) => check::run(&arguments, &cli.output),
        Command::Why(arguments) => why::run(&arguments, &cli.output),
        Command::Cluster(arguments) => cluster::run(&arguments, &cli.output),
        Command::Doctor => doctor::run(&cli.output),
        Command::Completions(arguments) => definitions::completions(&arguments),
        Command::Man(arguments) => definitions::man(&arguments),
    };
    match done {
        Ok(exit) => exit.into(),
        // Whoever read our output has had enough of it.
        Err(Failure { error, .. }) if is_closed_pipe(&error) => Exit::Healthy.into(),
        Err(Failure { exit, error }) => {
            eprintln!("tracer: {error:#}");
            exit.into()
        }
    }
}

/// True when the error came of writing to a pipe that nobody reads any more.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Refuses to go on without root, in words.
fn need_root(what: &str) -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::cannot_trace(format!(
        "{what} needs root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN); run it with sudo"
    )))
}

/// A runtime on this thread: threads that change their namespace are made by hand.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// The names nearest to a mistyped one, the best first.
fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<_> = names
        .map(|name| (strsim::jaro_winkler(typed, name), name))
        .collect();
    scored.sort_by(|one, two| two.0.total_cmp(&one.0));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_hold() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_closed_pipe_is_found_behind_what_was_said_of_it() {
        let kind = |kind| anyhow::Error::from(std::io::Error::from(kind)).context("printing");
        assert!(is_closed_pipe(&kind(std::io::ErrorKind::BrokenPipe)));
        assert!(!is_closed_pipe(&kind(std::io::ErrorKind::StorageFull)));
    }

    #[test]
    fn a_named_cause_comes_before_a_capture_that_failed() {
        assert_eq!(Exit::of_trace(true, true), Exit::CauseNamed);
        assert_eq!(Exit::of_trace(true, false), Exit::CauseNamed);
        assert_eq!(Exit::of_trace(false, true), Exit::CannotTrace);
        assert_eq!(Exit::of_trace(false, false), Exit::Healthy);
    }

    #[test]
    fn the_nearest_name_comes_first() {
        assert_eq!(
            nearest(
                "vip-nodport",
                ["no-listener", "vip-nodeport-unbound"].into_iter()
            )[0],
            "vip-nodeport-unbound"
        );
    }
}
