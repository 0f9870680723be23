//! `tracer cluster run`, `capture`, `clean` and `install`.

use std::collections::BTreeSet;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::merge::{Kept, explain_together};
use super::run::interrupted;
use super::{Exit, Failure, Output, runtime, value};
use crate::capture::{Chunk, Received, ReceivedFile, STANDARD_OUTPUT};
use crate::filter::Expression;
use crate::fleet::{
    self, CaptureVolume, Captures, Choice, FleetError, Installation, News, Plan, Stop,
};
use crate::kube::Place;
use crate::printer::{Format, Printer, Show};
use crate::view::fleet::{self as view, FleetSummary, NodeView};
use crate::view::gather::{Gathered, Line};

/// Lines that wait to be printed.
const QUEUE: usize = 1024;
/// Where the pods go: system components are exempt from pod security there, and the least rights of
/// `tracer cluster rbac` are written for it.
const NAMESPACE: &str = "kube-system";

/// What is said when removing is not waited for.
const LEFT: &str = "interrupted; `tracer cluster clean` or the next run removes what is left";

/// Stands for all nodes together: no node's name has an underscore.
const TOGETHER: &str = "all_nodes";

/// Which cluster, and where in it.
#[derive(Args, Debug)]
pub(super) struct Where {
    /// Kubeconfig; else KUBECONFIG, ~/.kube/config, or the service account of this pod.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in it; else its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of everything that is created; it has to allow privileged pods.
    #[arg(long, value_name = "NAME", default_value = NAMESPACE, value_parser = value::label)]
    namespace: String,
}

impl Where {
    fn place(&self) -> Place {
        Place {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }
}

/// What was typed for `run`.
#[derive(Args, Debug)]
pub(super) struct Run {
    /// Which packets, as in `tracer run`.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Names of nodes with commas between, or a label selector (`zone=b`,
    /// `node-role.kubernetes.io/control-plane`); else every Linux node.
    #[arg(long, value_name = "NODES")]
    nodes: Option<String>,
    /// How long each node traces: 60s, 5m; a plain number is seconds.
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = value::duration)]
    limit: Duration,
    /// Image that holds tracer on its PATH.
    #[arg(long, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    image: String,
    /// Show packets that arrived as well.
    #[arg(long)]
    all: bool,
    /// Service account of the pods, for names of services and pods; empty for none.
    #[arg(long, value_name = "NAME", default_value = "tracer")]
    service_account: String,
    /// Longest wait for a pod to start.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = value::duration)]
    start: Duration,
    /// Leave each node's journeys apart. Else journeys go on from node to node: a capture joins what it
    /// fetched, and a run with a filter fetches what every node saw; without one that is too much.
    #[arg(long)]
    apart: bool,
    #[command(flatten)]
    place: Where,
}

impl Run {
    const fn joins(&self) -> bool {
        !self.apart && !self.filter.is_empty()
    }
}

/// What was typed for `capture`.
#[derive(Args, Debug)]
pub(super) struct Capture {
    #[command(flatten)]
    run: Run,
    /// Folder for the captures: one pcapng for each node, named after it, and all_nodes.pcapng, in which
    /// journeys go on from node to node.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

/// What was typed for `clean`.
#[derive(Args, Debug)]
pub(super) struct Clean {
    #[command(flatten)]
    place: Where,
}

/// What was typed for `install`.
#[derive(Args, Debug)]
pub(super) struct Install {
    /// Print the manifest; nothing is changed by this program itself.
    #[arg(long, required = true)]
    print: bool,
    /// Image that holds tracer on its PATH.
    #[arg(long, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    image: String,
    /// Namespace of the DaemonSet.
    #[arg(long, value_name = "NAME", default_value = NAMESPACE, value_parser = value::label)]
    namespace: String,
    /// Port of every node that serves the counts.
    #[arg(long, value_name = "PORT", default_value_t = super::serve::PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Keep a capture of what led to each diagnosis, in this folder of each node.
    #[arg(long, value_name = "PATH", conflicts_with = "capture_claim", value_parser = value::absolute)]
    capture_path: Option<String>,
    /// The same in a PersistentVolumeClaim that all nodes may write to.
    #[arg(long, value_name = "NAME")]
    capture_claim: Option<String>,
    /// Most bytes of one node's captures: 500M, 2G.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = limit)]
    capture_limit: String,
    /// Version of the cluster, or an older one. From 1.30 on AppArmor's profile is written in a field that
    /// older servers do not have; servers from 1.36 on heed nothing else.
    #[arg(long, value_name = "VERSION", default_value = "1.20", value_parser = value::kubernetes)]
    kubernetes: u16,
}

/// A size as typed, when it is one that `serve` takes.
fn limit(text: &str) -> Result<String, String> {
    super::capture::room(text).map(|_| text.to_owned())
}

fn failure(error: FleetError) -> Failure {
    match error {
        FleetError::NoNode(_) => Failure::usage(error.to_string()),
        FleetError::NoServer(_) | FleetError::Stopped | FleetError::Refused { .. } => {
            Failure::cannot_trace(error.to_string())
        }
    }
}

/// Traces, and keeps what each node captured.
pub(super) fn capture(arguments: &Capture, output: &Output) -> Result<Exit, Failure> {
    trace(&arguments.run, Some(&arguments.output), output)
}

/// Traces.
pub(super) fn run(arguments: &Run, output: &Output) -> Result<Exit, Failure> {
    trace(arguments, None, output)
}

/// `kept` is the folder in which the captures stay; those of a run that only joins them go with it.
fn trace(arguments: &Run, kept: Option<&Path>, output: &Output) -> Result<Exit, Failure> {
    // Every node would refuse it, after its pod was made.
    Expression::parse(&arguments.filter.join(" "))
        .map_err(|error| Failure::usage(error.to_string()))?;
    let for_now = (kept.is_none() && arguments.joins())
        .then(tempfile::tempdir)
        .transpose()
        .context("no folder can be made for the nodes' captures")?;
    let captures = kept
        .or(for_now.as_ref().map(TempDir::path))
        .map(|folder| {
            Received::new(folder)
                .map_err(|error| Failure::usage(format!("{}: {error}", folder.display())))
        })
        .transpose()?;
    let shown = if arguments.all { "--all" } else { "--failed" };
    let mut words = vec![shown.to_owned()];
    if output.verbose {
        words.push("--verbose".into());
    }
    if captures.is_some() {
        words.push(format!("--write={STANDARD_OUTPUT}"));
    }
    words.extend(arguments.filter.iter().cloned());
    let account = &arguments.service_account;
    let plan = Plan {
        namespace: arguments.place.namespace.clone(),
        image: arguments.image.clone(),
        service_account: (!account.is_empty()).then(|| account.clone()),
        nodes: arguments
            .nodes
            .as_deref()
            .map_or(Choice::All, Choice::parse),
        arguments: words,
        limit: arguments.limit,
        start: arguments.start,
    };
    let format = output.printer_format();
    let style = match format {
        Format::Json { .. } | Format::Silent => None,
        Format::Text { style, .. } => Some(style),
    };
    let place = arguments.place.place();
    let (outcome, printed) = runtime()?.block_on(async {
        let (stopper, stop) = watch::channel(Stop::No);
        let (sender, news) = mpsc::channel(QUEUE);
        let printing = async {
            let printed = print(news, format, captures).await;
            if printed.is_err() {
                // Nobody reads any more (`| head`): what was created still has to go.
                stopper.send_replace(Stop::AtOnce);
            }
            printed
        };
        let listening = async {
            for wish in [Stop::Gently, Stop::AtOnce] {
                interrupted().await;
                stopper.send_replace(wish);
            }
            // Removing ends by itself; who does not wait for it leaves the rest to others.
            interrupted().await;
        };
        let work = async { tokio::join!(fleet::run(plan, &place, stop, sender), printing) };
        let (outcome, printed) = tokio::select! {
            done = work => done,
            () = listening => return Err(Failure::cannot_trace(LEFT)),
        };
        Ok((outcome.map_err(failure)?, printed?))
    })?;
    let Printed {
        gathered,
        ends,
        lacking,
        captures,
    } = printed;
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let joined = captures.as_ref().map(|captures| captures.path(TOGETHER));
    let files = captures.map(Received::finish).unwrap_or_default();
    for file in &files {
        if kept.is_some() {
            printer.object("node-capture", file, &capture_words(file))?;
        } else if file.missing > 0 {
            eprintln!(
                "tracer: {}: {} bytes of what it saw never came; its journeys may have gaps",
                file.node, file.missing
            );
        }
    }
    let show = Show::all_or_failed(arguments.all);
    let named = match joined {
        Some(joined) if files.len() > 1 && !arguments.apart => {
            let kept = kept.map_or(Kept::No, |_| Kept::Yes);
            together(&files, &joined, kept, show, output)
        }
        _ => BTreeSet::new(),
    };
    let diagnoses = gathered.diagnoses();
    for found in &diagnoses {
        if !named.contains(&*found.diagnosis.cause) {
            view::diagnosis(&mut stdout(), found, style)?;
        }
    }
    let summary = FleetSummary {
        run: outcome.run,
        nodes: ends,
        left: outcome.left,
    };
    view::summary(&mut stdout(), &summary, style)?;
    Ok(match (named.is_empty() && diagnoses.is_empty(), lacking) {
        (false, _) => Exit::CauseNamed,
        (true, false) => Exit::Healthy,
        (true, true) => Exit::CannotTrace,
    })
}

/// Joins the nodes' captures and says what they show together; gives the codes of the causes. Captures that
/// cannot be joined are still there one by one.
fn together(
    files: &[ReceivedFile],
    joined: &Path,
    kept: Kept,
    show: Show,
    output: &Output,
) -> BTreeSet<&'static str> {
    let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
    explain_together(&paths, joined, kept, show, output).unwrap_or_else(|failure| {
        eprintln!("tracer: the captures cannot be joined: {:#}", failure.error);
        BTreeSet::new()
    })
}

/// What is said of a run's beginning.
#[derive(Serialize)]
struct Begun<'a> {
    run: &'a str,
    nodes: &'a [String],
}

/// What is said of one node on the way.
#[derive(Serialize)]
struct Remark<'a> {
    node: &'a str,
    state: &'a str,
    why: Option<&'a str>,
}

fn capture_words(file: &ReceivedFile) -> String {
    let path = file.path.display();
    let missing = match file.missing {
        0 => String::new(),
        bytes => format!(", {bytes} bytes never came"),
    };
    format!(
        "{:<12} capture {path}: {} bytes{missing}",
        file.node, file.bytes
    )
}

/// What printing leaves for the end.
struct Printed {
    gathered: Gathered,
    ends: Vec<NodeView>,
    /// A node was not traced, or not to the end.
    lacking: bool,
    captures: Option<Received>,
}

/// Prints what happens, as it happens, and keeps what the end needs; captures go into their files.
async fn print(
    mut news: mpsc::Receiver<News>,
    format: Format,
    mut captures: Option<Received>,
) -> std::io::Result<Printed> {
    let printer = Printer::new(format, Show::Nothing);
    let remark = |node: &str, state, why: Option<&str>| {
        let words = match why {
            Some(why) => format!("{node:<12} {state}: {why}"),
            None => format!("{node:<12} {state}"),
        };
        printer.object("node", &Remark { node, state, why }, &words)
    };
    let mut gathered = Gathered::default();
    let mut ends = Vec::new();
    let mut lacking = false;
    while let Some(news) = news.recv().await {
        match news {
            News::Begun { run, nodes } => {
                let names = nodes.iter().map(String::as_str).chain([TOGETHER]);
                let in_the_way = captures.as_ref().and_then(|found| found.in_the_way(names));
                if let Some(path) = in_the_way {
                    return Err(std::io::Error::other(format!(
                        "{} is there already; name another folder with -o",
                        path.display()
                    )));
                }
                printer.object(
                    "cluster-run",
                    &Begun {
                        run: &run,
                        nodes: &nodes,
                    },
                    &format!("{run}: tracing {} · Ctrl-C stops", nodes.join(", ")),
                )?;
            }
            News::Line { node, line } => {
                if let Some(captures) = &mut captures
                    && let Some(chunk) = Chunk::read(&line)
                {
                    captures.take(&node, &chunk)?;
                    continue;
                }
                let read = Line::read(&line);
                match format {
                    Format::Text { style, verbose } => {
                        view::text_line(&mut stdout(), &node, &line, &read, style, verbose)?;
                    }
                    Format::Json { .. } | Format::Silent => {
                        view::json_line(&mut stdout(), &node, &line)?;
                    }
                }
                match read {
                    Line::Diagnosis(diagnosis) => gathered.diagnosis(&node, *diagnosis),
                    Line::Summary(summary) => gathered.summary(&node, summary),
                    Line::Journey(_) | Line::Other => {}
                }
            }
            News::Interrupted { node, why } => remark(&node, "interrupted", Some(&why))?,
            News::Resumed { node } => remark(&node, "resumed", None)?,
            News::Ended { node, end } => {
                if end.why().is_some() {
                    remark(&node, end.name(), end.why())?;
                }
                lacking |= end.is_lacking();
                ends.push(NodeView {
                    node: node.to_string(),
                    state: end.name(),
                    why: end.why().map(str::to_owned),
                    summary: gathered.of(&node).cloned(),
                });
            }
        }
    }
    ends.sort_by(|one, two| one.node.cmp(&two.node));
    Ok(Printed {
        gathered,
        ends,
        lacking,
        captures,
    })
}

/// An object of an earlier run as shown.
#[derive(Serialize)]
struct RemovedView {
    kind: &'static str,
    name: String,
    failed: Option<String>,
}

pub(super) fn clean(arguments: &Clean, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let place = arguments.place.place();
    let removed = runtime()?
        .block_on(fleet::clean(&place, &arguments.place.namespace))
        .map_err(failure)?;
    if removed.is_empty() {
        printer.remark("nothing was left")?;
    }
    let failed = removed.iter().any(|object| object.failed.is_some());
    for object in removed {
        let words = match &object.failed {
            None => format!("removed {} {}", object.kind, object.name),
            Some(why) => format!("{} {} is still there: {why}", object.kind, object.name),
        };
        let view = RemovedView {
            kind: object.kind,
            name: object.name,
            failed: object.failed,
        };
        printer.object("removed", &view, &words)?;
    }
    Ok(if failed {
        Exit::CannotTrace
    } else {
        Exit::Healthy
    })
}

pub(super) fn install(arguments: &Install) -> Result<Exit, Failure> {
    let of_nodes = arguments.capture_path.clone().map(CaptureVolume::HostPath);
    let volume = of_nodes.or_else(|| arguments.capture_claim.clone().map(CaptureVolume::Claim));
    let manifest = fleet::manifest(&Installation {
        namespace: arguments.namespace.clone(),
        image: arguments.image.clone(),
        port: arguments.port,
        captures: volume.map(|volume| Captures {
            volume,
            limit: arguments.capture_limit.clone(),
        }),
        minor: arguments.kubernetes,
    })?;
    write!(stdout(), "{manifest}")?;
    Ok(Exit::Healthy)
}
