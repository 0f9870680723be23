//! `tracer probe`: sends a bounded test, traces only it, and sets two ways side by side.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::cluster::Connection;
use super::limits::LimitArguments;
use super::run::{interrupted, kernel_release};
use super::{Exit, Failure, Output, nearest, need_root, runtime, value};
use crate::filter::{Error, Expression, Filter, Here};
use crate::flow::Direction;
use crate::journey::Journey;
use crate::kernel::load::Options;
use crate::kernel::privilege;
use crate::node::{Directory, NetnsHandle, NetnsId};
use crate::printer::{Format, Printer, Show};
use crate::probe::{Attempt, Outcome, Send, Target, own};
use crate::session::Session;
use crate::view::model::JourneyView;
use crate::view::probe::{ComparisonView, ProbeView};
use crate::view::stage::Stage;

/// Between tests of one address.
const PAUSE: Duration = Duration::from_millis(50);
/// The largest process number that Linux gives (PID_MAX_LIMIT); larger numbers are inodes.
const LARGEST_PID: u32 = 4_194_304;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// What to test: tcp://ADDRESS:PORT, udp://ADDRESS:PORT or dns://ADDRESS[:53]/NAME.
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Send from another network namespace: its name in /run/netns, a path, a process in it (of a pod,
    /// for one), or its inode number.
    #[arg(long, value_name = "NETNS|PID")]
    from: Option<String>,
    /// Test this as well, and say where the two ways part.
    #[arg(long, value_name = "TARGET")]
    against: Option<Target>,
    /// Tests of each target, one after the other.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    /// Patience for each test: 500ms, 3s; a plain number is seconds.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = value::duration)]
    timeout: Duration,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    connection: Connection,
}

/// A target, its tests, and the journeys of each.
struct Tested<'a> {
    target: &'a Target,
    tests: Vec<(Attempt, Vec<(Direction, Journey)>)>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    need_root("tracing a test")?;
    let from = arguments.from.as_deref().map(namespace).transpose()?;
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let stopped = Arc::new(AtomicBool::new(false));
    // Before what is under way is dropped, which takes a moment.
    let stop = async {
        interrupted().await;
        stopped.store(true, Ordering::Relaxed);
    };
    without_waiting(runtime()?, async {
        tokio::select! {
            done = probe(arguments, from, printer, &stopped) => done,
            () = stop => Err(Failure::cannot_trace("interrupted")),
        }
    })
}

/// Runs to the end of this and no longer: a test that was left under way on another thread takes as long as its
/// patience.
fn without_waiting<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// The namespace that was meant.
fn namespace(text: &str) -> Result<NetnsHandle, Failure> {
    let opened = |opened: std::io::Result<NetnsHandle>| {
        opened.map_err(|error| {
            Failure::usage(format!("namespace {text:?} cannot be opened: {error}"))
        })
    };
    if text.contains('/') {
        return opened(NetnsHandle::from_path(Path::new(text)));
    }
    let directory = Directory::find();
    let id = match text.parse::<u32>() {
        Ok(pid @ 1..=LARGEST_PID) => return opened(NetnsHandle::from_pid(pid)),
        Ok(inode) => Some(NetnsId(inode)),
        Err(_) => directory.named(text),
    };
    id.and_then(|id| directory.open(id)).ok_or_else(|| {
        let near = nearest(text, directory.names().into_iter()).join(", ");
        let near = if near.is_empty() {
            "no namespace has a name here; a process number or an inode number will do".to_owned()
        } else {
            format!("the nearest: {near}")
        };
        Failure::usage(format!("there is no network namespace {text}; {near}"))
    })
}

/// Packets to and from the targets; what the tests' own become on their way is followed.
fn filter<'a>(targets: impl Iterator<Item = &'a Target>) -> Result<Filter, Error> {
    let hosts: Vec<String> = targets
        .map(|target| format!("host {}", target.address.ip().to_canonical()))
        .collect();
    Expression::parse(&hosts.join(" or "))?.resolve(&Here::default())
}

async fn probe(
    arguments: &Arguments,
    from: Option<NetnsHandle>,
    printer: Printer,
    stopped: &Arc<AtomicBool>,
) -> Result<Exit, Failure> {
    let held = from.iter().cloned().collect();
    let targets = [Some(&arguments.target), arguments.against.as_ref()];
    let options = Options {
        filter: filter(targets.into_iter().flatten())
            .map_err(|error| Failure::usage(error.to_string()))?,
        ..Options::default()
    };
    let mut session = Session::start(&options, held, printer)?;
    privilege::drop_unneeded()?;
    arguments.limits.apply(&mut session);
    if let Some(cluster) = arguments.connection.start()? {
        session.watch(cluster);
    }
    let attached = session.attached_in().as_secs_f64();
    session.printer().remark(&format!(
        "kernel {} · probes attached in {attached:.1} s",
        kernel_release()
    ))?;
    let send = Send {
        from,
        count: arguments.count,
        timeout: arguments.timeout,
        pause: PAUSE,
        stopped: Arc::clone(stopped),
    };
    let mut tested = Vec::new();
    for target in targets.into_iter().flatten() {
        tested.push(test(&mut session, &send, target).await?);
    }
    let mut ways = Vec::new();
    for tested in &tested {
        ways.push(show(&mut session, arguments, tested)?);
    }
    if let ([one, other], [left, right]) = (&tested[..], &ways[..]) {
        for (direction, name) in [(0, "request"), (1, "reply")] {
            let ours = (one.target, path(left[direction].as_ref()));
            let theirs = (other.target, path(right[direction].as_ref()));
            if let Some(view) = ComparisonView::of(name, ours, theirs) {
                session
                    .printer()
                    .object("comparison", &view, &view.words())?;
            }
        }
    }
    let fails = tested.iter().any(Tested::fails);
    let journeys = tested
        .into_iter()
        .flat_map(|tested| tested.tests)
        .flat_map(|(_, journeys)| journeys)
        .map(|(_, journey)| journey)
        .collect();
    let diagnoses = session.judge(journeys)?;
    if fails && diagnoses.is_empty() {
        session
            .printer()
            .remark("\nno cause was found on this machine: the way above ends where the packet was last seen")?;
    }
    Ok(if fails || !diagnoses.is_empty() {
        Exit::CauseNamed
    } else {
        Exit::Healthy
    })
}

fn path(way: Option<&JourneyView>) -> Option<&[Stage]> {
    way.map(|view| &view.path[..])
}

/// Sends the tests of one target while tracing.
async fn test<'a>(
    session: &mut Session,
    send: &Send,
    target: &'a Target,
) -> Result<Tested<'a>, Failure> {
    let (send, sent) = (send.clone(), target.clone());
    let sending = tokio::task::spawn_blocking(move || send.run(&sent));
    let (attempts, mut journeys) = session.gather(sending).await?;
    let tests = attempts??
        .into_iter()
        .map(|attempt| {
            let own = attempt
                .tuple
                .map_or_else(Vec::new, |tuple| own(&mut journeys, tuple));
            (attempt, own)
        })
        .collect();
    Ok(Tested { target, tests })
}

impl Tested<'_> {
    /// A test was not answered, and it is known that it should have been.
    fn fails(&self) -> bool {
        let fails = |outcome: &Outcome| outcome.works() == Some(false);
        self.tests
            .iter()
            .any(|(attempt, _)| fails(&attempt.outcome))
    }
}

/// Shows the tests of a target; gives back the first way there and the first way back.
fn show(
    session: &mut Session,
    arguments: &Arguments,
    tested: &Tested<'_>,
) -> Result<[Option<JourneyView>; 2], Failure> {
    let mut first = [None, None];
    for (attempt, journeys) in &tested.tests {
        let of = |wanted| -> Vec<Journey> {
            journeys
                .iter()
                .filter(|&&(direction, _)| direction == wanted)
                .map(|(_, journey)| journey.clone())
                .collect()
        };
        let ways = [of(Direction::Request), of(Direction::Reply)];
        let numbers = |journeys: &[Journey]| journeys.iter().map(|journey| journey.id).collect();
        let view = ProbeView::new(
            tested.target,
            arguments.from.as_deref(),
            attempt,
            numbers(&ways[0]),
            numbers(&ways[1]),
        );
        session.printer().object("probe", &view, &view.words())?;
        for (first, way) in first.iter_mut().zip(&ways) {
            let views = session.views(way);
            // A person is told of the first packet each way, and of the others with -v.
            let brief = matches!(
                session.printer().format(),
                Format::Text { verbose: false, .. }
            );
            let most = if brief { 1 } else { views.len() };
            for view in views.iter().take(most) {
                session.printer().journey(view)?;
            }
            if first.is_none() {
                *first = views.into_iter().next();
            }
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_left_under_way_is_not_waited_for() {
        let begun = std::time::Instant::now();
        without_waiting(runtime().expect("a runtime"), async {
            let (begins, begun) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let _ = begins.send(());
                std::thread::sleep(Duration::from_secs(20));
            });
            begun.await.expect("it begins");
        });
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn only_the_targets_packets_are_traced() {
        let targets: Vec<Target> = ["tcp://192.0.2.1:80", "udp://[2001:db8::7]:53"]
            .iter()
            .map(|text| text.parse().expect("a target"))
            .collect();
        let filter = filter(targets.iter()).expect("a filter");
        assert_eq!(filter.to_string(), "host 192.0.2.1 or host 2001:db8::7");
        assert!(!filter.is_everything());
    }
}
