//! A live trace: programs, ring buffer, analysis and, where asked for, a capture put together.
//!
//! Map: here events are taken and judged; `recorded` writes them into a capture, `metered` counts for
//! others, `limited` keeps the cost below what `guard` allows, `loss` says what was lost, `gather` is for
//! bounded tests.

mod gather;
mod guard;
mod limited;
mod loss;
mod metered;
mod recorded;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::MissedTickBehavior;

use crate::analysis::{Analysis, Kernel};
use crate::capture::{Control, Recorder};
use crate::cause::Diagnosis;
use crate::event::Decoder;
use crate::flow::Flows;
use crate::journey::Journey;
use crate::kernel::inbox::Inbox;
use crate::kernel::load::{Options, Tracing};
use crate::kernel::modules::Loaded;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols;
use crate::kube::{Cluster, ClusterFacts};
use crate::node::{NetnsHandle, ProxyLog, Source};
use crate::printer::Printer;
use crate::view::attached::AttachedView;
use crate::view::cluster::ClusterView;
use crate::view::model::SummaryView;
use crate::view::names::{Clock, Names, monotonic_ns};

pub use guard::{Limits, SamplingView};
use limited::Limited;
use loss::Known;
use metered::Metered;

/// How often events are looked at.
const PERIOD: Duration = Duration::from_millis(10);
/// How often modules that came or went are looked for.
const MODULES_PERIOD: Duration = Duration::from_secs(1);
/// Most events taken at once, about, so that ends, diagnoses and the guard come in between: what belongs to so many takes
/// up to a fifth of a second on a slow node.
const BATCH: usize = 8_192;

/// A running trace.
pub struct Session {
    tracing: Tracing,
    inbox: Inbox,
    decoder: Decoder,
    /// What was lost so far, as the journeys know it.
    known: Known,
    modules_looked: Instant,
    /// The modules that `symbols` were last read with.
    loaded: Loaded,
    symbols: symbols::Source,
    analysis: Analysis,
    started: Instant,
    attached: Duration,
    cluster: Option<Watched>,
    recorder: Option<Recorder>,
    /// It could not be written to its end, which was said.
    capture_failed: bool,
    /// When the capture was last told the counters.
    counted: Instant,
    meter: Option<Metered>,
    /// Where there are limits.
    limited: Option<Limited>,
}

/// How a trace ended.
pub struct Ended {
    /// The diagnoses of its end.
    pub diagnoses: Vec<Diagnosis>,
    /// Its capture could not be written to its end, which was said.
    pub capture_failed: bool,
}

/// A cluster that is watched beside the trace.
struct Watched {
    cluster: Cluster,
    /// What was last said of it.
    said: ClusterView,
}

impl Session {
    /// Loads, attaches and begins to collect; `held` are namespaces that no process leads to.
    ///
    /// # Errors
    /// When this kernel cannot be traced at all.
    pub fn start(
        options: &Options,
        held: Vec<NetnsHandle>,
        printer: Printer,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let (mut tracing, btf) = Tracing::start(options)?;
        let inbox = Inbox::start(tracing.take_ring()?)
            .context("no thread can be had to empty the ring buffer")?;
        let symbols = symbols::Source::open();
        let kernel = Kernel {
            reasons: Arc::new(DropReasons::read(&btf)),
            // Needed by the first drop only, so that it does not delay the start.
            symbols: symbols.begin(),
            clock: Clock::now(),
        };
        let mut analysis = Analysis::new(Source::live(held), kernel, printer);
        (analysis.collector()).follow_arp(options.filter.asks_for_arp());
        if options.leaves_out() {
            analysis.leave_out(options.filter.clone());
        }
        if options.low_cost {
            analysis.sees_losses_only();
        }
        Ok(Self {
            analysis,
            tracing,
            inbox,
            decoder: Decoder::default(),
            known: Known::none(),
            modules_looked: Instant::now(),
            loaded: Loaded::read(),
            symbols,
            attached: started.elapsed(),
            started: Instant::now(),
            cluster: None,
            recorder: None,
            capture_failed: false,
            counted: Instant::now(),
            meter: None,
            limited: None,
        })
    }

    /// What the kernel calls things.
    pub const fn kernel(&mut self) -> &mut Kernel {
        self.analysis.kernel()
    }

    /// Names addresses by the cluster's facts from now on. Nothing waits for them.
    pub fn watch(&mut self, cluster: Cluster) {
        let state = cluster.state();
        self.analysis.set_cluster(state.facts().cloned());
        self.cluster = Some(Watched {
            said: ClusterView::from(&state),
            cluster,
        });
    }

    /// Takes facts of a cluster that nobody watches: those of a reproduction.
    pub fn set_cluster(&mut self, facts: Option<Arc<ClusterFacts>>) {
        self.analysis.set_cluster(facts);
    }

    /// Traces these namespaces from now on and no others, when it was started for some only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn trace_only(&mut self, held: Vec<NetnsHandle>) -> anyhow::Result<()> {
        let namespaces: Vec<u32> = held.iter().map(|namespace| namespace.id().0).collect();
        self.tracing.trace_only(&namespaces)?;
        self.analysis.collector().hold(held);
        Ok(())
    }

    /// Hands kube-proxy's log to the causes.
    pub fn know_proxy_log(&mut self, log: Option<Arc<ProxyLog>>) {
        self.analysis.collector().set_proxy_log(log);
    }

    /// What is known of the cluster; `None` when none is watched.
    pub fn cluster(&self) -> Option<&ClusterView> {
        self.cluster.as_ref().map(|watched| &watched.said)
    }

    /// Takes news of the cluster; what changes its state is said.
    fn hear_of_cluster(&mut self) -> anyhow::Result<()> {
        let Some(watched) = &mut self.cluster else {
            return Ok(());
        };
        let Some(state) = watched.cluster.news() else {
            return Ok(());
        };
        self.analysis.set_cluster(state.facts().cloned());
        let view = ClusterView::from(&state);
        if view.settled() && !view.says_the_same(&watched.said) {
            self.analysis
                .printer()
                .object("kubernetes", &view, &view.words())?;
            watched.said = view;
        }
        Ok(())
    }

    /// The programs at work.
    pub const fn tracing(&self) -> &Tracing {
        &self.tracing
    }

    /// How long loading and attaching took.
    pub const fn attached_in(&self) -> Duration {
        self.attached
    }

    /// The printer.
    pub const fn printer(&mut self) -> &mut Printer {
        self.analysis.printer()
    }

    /// Collects until `stop` is done.
    ///
    /// # Errors
    /// When printing fails.
    pub async fn collect<T>(
        &mut self,
        stop: impl Future<Output = T>,
    ) -> anyhow::Result<(T, Vec<Diagnosis>)> {
        self.collect_until(stop, |_, _| None).await
    }

    /// The same, and as well until `enough` says so; it is asked after each step with the printer and
    /// the diagnoses so far.
    ///
    /// # Errors
    /// When printing fails.
    pub async fn collect_until<T>(
        &mut self,
        stop: impl Future<Output = T>,
        enough: impl Fn(&Printer, &[Diagnosis]) -> Option<T>,
    ) -> anyhow::Result<(T, Vec<Diagnosis>)> {
        let mut diagnoses = Vec::new();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                value = &mut stop => {
                    diagnoses.extend(self.step(false)?.0);
                    return Ok((value, diagnoses));
                }
                _ = tick.tick() => {
                    let (found, taken) = self.step(false)?;
                    diagnoses.extend(found);
                    if taken >= BATCH {
                        tick.reset_immediately();
                    }
                }
            }
            if let Some(value) = enough(self.analysis.printer(), &diagnoses) {
                return Ok((value, diagnoses));
            }
        }
    }

    /// Collects until every journey under way has ended, at most for `most`.
    ///
    /// # Errors
    /// When printing fails.
    pub async fn settle(&mut self, most: Duration) -> anyhow::Result<Vec<Diagnosis>> {
        let begun = Instant::now();
        let mut diagnoses = Vec::new();
        while begun.elapsed() < most {
            let (_, found) = self.collect(tokio::time::sleep(PERIOD * 3)).await?;
            diagnoses.extend(found);
            if self.analysis.collector().active() == 0 {
                break;
            }
        }
        diagnoses.extend(self.step(true)?.0);
        Ok(diagnoses)
    }

    /// Judges what comes next by itself.
    pub fn forget(&mut self) {
        self.analysis.forget();
        if let Some(recorder) = &mut self.recorder {
            recorder.control(Control::Forget);
        }
    }

    /// Attaches to modules that were loaded meanwhile, and says so.
    fn follow_modules(&mut self) -> anyhow::Result<()> {
        if self.modules_looked.elapsed() < MODULES_PERIOD {
            return Ok(());
        }
        self.modules_looked = Instant::now();
        let changes = self.tracing.follow_modules();
        let loaded = Loaded::read();
        if loaded != self.loaded || !changes.is_empty() {
            // Code of a new module has addresses of its own.
            self.analysis.kernel().symbols = self.symbols.begin();
            self.loaded = loaded;
        }
        for change in &changes {
            let view = AttachedView::from(change);
            self.analysis
                .printer()
                .object("attached", &view, &view.words())?;
        }
        Ok(())
    }

    /// Takes the events that came; gives how many there were, and the time up to which all were taken.
    fn take(&mut self, hurry: bool) -> anyhow::Result<(usize, u64)> {
        self.tracing.flush_program_log();
        self.hear_of_cluster()?;
        self.follow_modules()?;
        let (mut count, mut until) = (0, monotonic_ns());
        loop {
            self.keep_cheap()?;
            let Some(batch) = self.inbox.take() else {
                break;
            };
            let last_ns = batch.last().map(|event| event.time_ns);
            count += batch.len();
            for event in batch.iter().filter_map(|raw| self.decoder.decode(raw)) {
                self.analysis.push(event);
            }
            if let Some(recorder) = &mut self.recorder {
                recorder.events(batch);
            }
            if count >= BATCH {
                until = last_ns.map_or(until, |last| last.min(until));
                break;
            }
        }
        self.look_for_loss(monotonic_ns(), hurry);
        Ok((count, until))
    }

    /// Looks at the events that came; gives the new diagnoses and how many events there were.
    fn step(&mut self, hurry: bool) -> anyhow::Result<(Vec<Diagnosis>, usize)> {
        let (drained, now) = self.take(hurry)?;
        let (analysis, recorder) = (&mut self.analysis, &mut self.recorder);
        let wanting = Wanting::of(self.cluster.as_ref(), analysis.cluster());
        let step = analysis.step(now, hurry, |journey, _| wanting.want_pods(journey))?;
        let readings = analysis.collector().take_readings();
        if let Some(recorder) = recorder {
            recorder.facts(readings);
            if step.happened || drained > 0 {
                recorder.names(analysis);
                recorder.control(Control::Step { now_ns: now, hurry });
            }
            recorder.diagnoses(&step.diagnoses);
            self.count_for_capture();
            self.hand_over()?;
        }
        self.count_totals(now);
        Ok((step.diagnoses, drained))
    }

    /// Takes everything that the kernel has given so far.
    fn take_rest(&mut self) -> anyhow::Result<Vec<Diagnosis>> {
        let mut diagnoses = Vec::new();
        // What comes after it has no end while packets flow.
        let end = self.inbox.mark();
        loop {
            let (mut rest, whole) = self.inbox.catch_up(&end);
            loop {
                let (found, taken) = self.step(false)?;
                diagnoses.extend(found);
                rest = rest.saturating_sub(taken);
                if taken == 0 || rest == 0 {
                    break;
                }
            }
            if whole {
                return Ok(diagnoses);
            }
        }
    }

    /// Ends the trace: what is under way, a last look for causes, the summary, and the capture.
    ///
    /// # Errors
    /// When printing fails.
    pub fn finish(mut self) -> anyhow::Result<Ended> {
        let mut diagnoses = self.take_rest()?;
        let now = monotonic_ns();
        self.look_for_loss(now, true);
        let wanting = Wanting::of(self.cluster.as_ref(), self.analysis.cluster());
        self.analysis
            .finish(now, |journey, _| wanting.want_pods(journey))?;
        let readings = self.analysis.collector().take_readings();
        if let Some(recorder) = &mut self.recorder {
            recorder.facts(readings);
            recorder.names(&mut self.analysis);
            recorder.control(Control::Finish { now_ns: now });
        }
        diagnoses.extend(self.step(true)?.0);
        self.analysis.collector().name_rest();
        let summary = self.summary();
        self.analysis.printer().summary(&summary)?;
        let readings = self.analysis.collector().take_readings();
        let counters = self.counters();
        if let Some(recorder) = &mut self.recorder {
            recorder.facts(readings);
            recorder.names(&mut self.analysis);
            recorder.counters(counters);
        }
        self.end_capture()?;
        Ok(Ended {
            diagnoses,
            capture_failed: self.capture_failed,
        })
    }

    /// The flows so far, the causes of the last look for them, and what names them.
    pub fn look(&self) -> (&Flows, &[Diagnosis], Names<'_>) {
        let analysis = &self.analysis;
        (analysis.flows(), analysis.causes(), analysis.names())
    }

    /// What the trace came to so far.
    pub fn summary(&mut self) -> SummaryView {
        let cost = self.tracing.cost();
        SummaryView {
            seconds: self.started.elapsed().as_secs_f64(),
            lost: self.lost(),
            left_out: self.tracing.left_out(),
            kernel_runs: cost.runs,
            kernel_ms: cost.time.as_secs_f64() * 1e3,
            process_ms: process_ms(),
            ..self.analysis.summary(monotonic_ns())
        }
    }
}

/// Has the pods read that journeys met and that are on other nodes.
struct Wanting<'a> {
    cluster: Option<(&'a Cluster, Arc<ClusterFacts>)>,
}

impl<'a> Wanting<'a> {
    fn of(watched: Option<&'a Watched>, facts: Option<&Arc<ClusterFacts>>) -> Self {
        Self {
            cluster: watched
                .map(|watched| &watched.cluster)
                .zip(facts.map(Arc::clone)),
        }
    }

    fn want_pods(&self, journey: &Journey) {
        let Some((cluster, facts)) = &self.cluster else {
            return;
        };
        for tuple in [journey.first_tuple(), journey.last_tuple()]
            .into_iter()
            .flatten()
        {
            for address in [tuple.source.ip(), tuple.destination.ip()] {
                if facts.to_be_read(address) {
                    cluster.want(address);
                }
            }
        }
    }
}

/// Processor time of this process so far, milliseconds.
fn process_ms() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike as _;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e3
    })
}
