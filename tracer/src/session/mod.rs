//! A live trace: programs, ring buffer, collector and printer put together.

mod metered;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::MissedTickBehavior;

use crate::cause::{Certainty, Diagnosis, DropNames};
use crate::collector::Collector;
use crate::event::Event;
use crate::journey::Journey;
use crate::kernel::btf::Btf;
use crate::kernel::load::{Options, Tracing};
use crate::kernel::reasons::DropReasons;
use crate::kernel::ring::Ring;
use crate::kernel::symbols::Symbols;
use crate::kube::{Cluster, ClusterFacts};
use crate::node::{NetnsHandle, ProxyLog};
use crate::printer::Printer;
use crate::view::attached::AttachedView;
use crate::view::cluster::ClusterView;
use crate::view::model::{Clock, DeviceCount, JourneyView, Names, SummaryView, monotonic_ns};

use metered::Metered;

/// How often the ring buffer is emptied. The kernel side never wakes us: that would cost each packet.
const PERIOD: Duration = Duration::from_millis(10);
/// How often modules that came or went are looked for.
const MODULES_PERIOD: Duration = Duration::from_secs(1);
/// Most events taken at once, so that ends and diagnoses come in between.
const BATCH: usize = 65_536;

/// How long after a bounded test its packets are waited for: longer than the silence that ends a journey.
const AFTER_WORK: Duration = Duration::from_millis(450);
/// Most journeys kept while a bounded test runs; more means that others' traffic drowns it.
const MOST_GATHERED: usize = 262_144;
/// What low cost does not see.
const LOW_COST: &str = "only lost packets are seen at low cost, not their way: tracer run shows it";

/// A running trace.
pub struct Session {
    tracing: Tracing,
    ring: Ring,
    /// Events lost so far, as the journeys know it.
    known_lost: u64,
    collector: Collector,
    reasons: DropReasons,
    modules_looked: Instant,
    symbols: std::thread::JoinHandle<Symbols>,
    /// Set once the thread that reads them is done.
    read_symbols: Symbols,
    clock: Clock,
    started: Instant,
    attached: Duration,
    printer: Printer,
    cluster: Option<Watched>,
    meter: Option<Metered>,
    low_cost: bool,
}

/// A cluster that is watched beside the trace.
struct Watched {
    cluster: Cluster,
    facts: Option<Arc<ClusterFacts>>,
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
        let btf = Btf::vmlinux()
            .context("this kernel has no BTF; a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed (every current distribution's is)")?;
        let mut tracing = Tracing::start(&btf, options)?;
        let ring = tracing.take_ring()?;
        let reasons = DropReasons::read(&btf);
        let unspecified = reasons.number("NOT_SPECIFIED");
        Ok(Self {
            collector: Collector::new(held, unspecified),
            tracing,
            ring,
            known_lost: 0,
            reasons,
            modules_looked: Instant::now(),
            // Needed by the first drop only, so that it does not delay the start.
            symbols: std::thread::spawn(Symbols::read),
            read_symbols: Symbols::default(),
            clock: Clock::now(),
            attached: started.elapsed(),
            started: Instant::now(),
            printer,
            cluster: None,
            meter: None,
            low_cost: options.low_cost,
        })
    }

    /// Names addresses by the cluster's facts from now on. Nothing waits for them.
    pub fn watch(&mut self, cluster: Cluster) {
        let state = cluster.state();
        self.collector.set_cluster(state.facts().cloned());
        self.cluster = Some(Watched {
            facts: state.facts().cloned(),
            said: ClusterView::from(&state),
            cluster,
        });
    }

    /// Takes facts of a cluster that nobody watches: those of a reproduction.
    pub fn set_cluster(&mut self, facts: Option<Arc<ClusterFacts>>) {
        self.collector.set_cluster(facts);
    }

    /// Traces these namespaces from now on and no others, when it was started for some only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn trace_only(&mut self, held: Vec<NetnsHandle>) -> anyhow::Result<()> {
        let namespaces: Vec<u32> = held.iter().map(|namespace| namespace.id().0).collect();
        self.tracing.trace_only(&namespaces)?;
        self.collector.hold(held);
        Ok(())
    }

    /// Hands kube-proxy's log to the causes.
    pub fn know_proxy_log(&mut self, log: Option<Arc<ProxyLog>>) {
        self.collector.set_proxy_log(log);
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
        watched.facts = state.facts().cloned();
        self.collector.set_cluster(watched.facts.clone());
        let view = ClusterView::from(&state);
        if view.settled() && !view.says_the_same(&watched.said) {
            self.printer.object("kubernetes", &view, &view.words())?;
            watched.said = view;
        }
        Ok(())
    }

    /// Has the pods read that a journey met and that are on other nodes.
    fn want_pods(&self, journey: &Journey) {
        let Some(Watched {
            cluster,
            facts: Some(facts),
            ..
        }) = &self.cluster
        else {
            return;
        };
        for tuple in [journey.first_tuple(), journey.last_tuple()]
            .into_iter()
            .flatten()
        {
            for address in [tuple.source.ip(), tuple.destination.ip()] {
                if facts.may_be_unread_pod(address) {
                    cluster.want(address);
                }
            }
        }
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
        &mut self.printer
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
                    diagnoses.extend(self.step(false)?);
                    return Ok((value, diagnoses));
                }
                _ = tick.tick() => diagnoses.extend(self.step(false)?),
            }
            if let Some(value) = enough(&self.printer, &diagnoses) {
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
            if self.collector.active() == 0 {
                break;
            }
        }
        diagnoses.extend(self.step(true)?);
        Ok(diagnoses)
    }

    /// Judges what comes next by itself.
    pub fn forget(&mut self) {
        self.collector.forget();
    }

    /// Attaches to modules that were loaded meanwhile, and says so.
    fn follow_modules(&mut self) -> anyhow::Result<()> {
        if self.modules_looked.elapsed() < MODULES_PERIOD {
            return Ok(());
        }
        self.modules_looked = Instant::now();
        let changes = self.tracing.follow_modules();
        if changes.is_empty() {
            return Ok(());
        }
        // Code of a new module has addresses of its own.
        self.symbols = std::thread::spawn(Symbols::read);
        self.read_symbols = Symbols::default();
        for change in &changes {
            let view = AttachedView::from(change);
            self.printer.object("attached", &view, &view.words())?;
        }
        Ok(())
    }

    fn step(&mut self, hurry: bool) -> anyhow::Result<Vec<Diagnosis>> {
        let ended = self.take()?;
        let now = monotonic_ns();
        self.settle_journeys(ended, now)?;
        self.count_totals(now);
        self.diagnose(hurry)
    }

    /// Empties the ring buffer; gives back the journeys that ended.
    fn take(&mut self) -> anyhow::Result<Vec<Journey>> {
        self.tracing.flush_program_log();
        self.hear_of_cluster()?;
        self.follow_modules()?;
        let mut ended = Vec::new();
        let collector = &mut self.collector;
        self.ring.drain(BATCH, |raw| {
            if let Some(event) = Event::decode(raw) {
                collector.push(event, &mut ended);
            }
        });
        let now = monotonic_ns();
        let lost = self.ring.lost().total();
        if lost > self.known_lost {
            self.known_lost = lost;
            self.collector.mark_loss(now);
        }
        self.collector.expire(now, &mut ended);
        Ok(ended)
    }

    fn diagnose(&mut self, hurry: bool) -> anyhow::Result<Vec<Diagnosis>> {
        let now = monotonic_ns();
        if !self.collector.is_due(now, hurry) {
            return Ok(Vec::new());
        }
        // A kernel without drop reasons is judged by where it drops.
        self.load_symbols(true);
        let names = DropNames {
            reasons: &self.reasons,
            symbols: &self.read_symbols,
        };
        let mut diagnoses = self.collector.diagnose(now, hurry, names);
        self.count_stopped();
        if self.low_cost {
            for diagnosis in &mut diagnoses {
                diagnosis.certainty = Certainty::Likely;
                diagnosis.missing.push(LOW_COST.into());
            }
        }
        for diagnosis in &diagnoses {
            self.printer.diagnosis(diagnosis)?;
        }
        Ok(diagnoses)
    }

    /// Collects until `work` is done and what it sent has had time to end; gives back every journey of
    /// that time, neither shown nor judged.
    ///
    /// # Errors
    /// When printing fails.
    pub async fn gather<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<(T, Vec<Journey>)> {
        let mut journeys = Vec::new();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        let value = loop {
            tokio::select! {
                value = &mut work => break value,
                _ = tick.tick() => journeys.extend(self.take()?),
            }
            journeys.truncate(MOST_GATHERED);
        };
        let done = Instant::now();
        while done.elapsed() < AFTER_WORK {
            tick.tick().await;
            journeys.extend(self.take()?);
        }
        self.collector.finish(&mut journeys);
        journeys.truncate(MOST_GATHERED);
        Ok((value, journeys))
    }

    /// Judges gathered journeys, and prints what caused their losses.
    ///
    /// # Errors
    /// When printing fails.
    pub fn judge(&mut self, journeys: Vec<Journey>) -> anyhow::Result<Vec<Diagnosis>> {
        let now = monotonic_ns();
        self.collector.know_rules(&journeys, now);
        self.collector.keep(journeys, now);
        self.diagnose(true)
    }

    /// Journeys as they are shown.
    pub fn views(&mut self, journeys: &[Journey]) -> Vec<JourneyView> {
        let now = monotonic_ns();
        self.collector.know_rules(journeys, now);
        self.collector.name_namespaces(now);
        self.load_symbols(true);
        for journey in journeys {
            self.want_pods(journey);
        }
        let names = self.names();
        journeys
            .iter()
            .filter_map(|journey| JourneyView::new(journey, &names))
            .collect()
    }

    fn settle_journeys(&mut self, ended: Vec<Journey>, now: u64) -> anyhow::Result<()> {
        if ended.is_empty() {
            return Ok(());
        }
        self.collector.know_rules(&ended, now);
        self.count_drops(&ended);
        if ended.iter().any(|journey| self.printer.wants(journey)) {
            self.collector.name_namespaces(now);
            self.load_symbols(false);
            for journey in &ended {
                if !self.printer.wants(journey) {
                    continue;
                }
                self.want_pods(journey);
                if let Some(view) = JourneyView::new(journey, &self.names()) {
                    self.printer.journey(&view)?;
                }
            }
        }
        self.collector.keep(ended, now);
        Ok(())
    }

    /// Names for numbers, as known now.
    fn names(&self) -> Names<'_> {
        Names {
            facts: self.collector.facts(),
            reasons: &self.reasons,
            symbols: &self.read_symbols,
            clock: self.clock,
            cluster: self.collector.cluster(),
        }
    }

    /// Takes the symbols once they are read; with `wait` they are there afterwards.
    fn load_symbols(&mut self, wait: bool) {
        if self.read_symbols.is_empty() && (wait || self.symbols.is_finished()) {
            let reader = std::mem::replace(&mut self.symbols, std::thread::spawn(Symbols::default));
            self.read_symbols = reader.join().unwrap_or_default();
        }
    }

    /// Ends the trace: what is under way, a last look for causes, and the summary.
    ///
    /// # Errors
    /// When printing fails.
    pub fn finish(mut self) -> anyhow::Result<Vec<Diagnosis>> {
        self.step(false)?;
        let mut ended = Vec::new();
        self.collector.finish(&mut ended);
        self.settle_journeys(ended, monotonic_ns())?;
        let diagnoses = self.step(true)?;
        let summary = self.summary();
        self.printer.summary(&summary)?;
        Ok(diagnoses)
    }

    /// Everything that was lost, per cause.
    fn lost(&self) -> Vec<(&'static str, u64)> {
        let missed = self
            .tracing
            .missed()
            .map(|missed| ("program skipped by the kernel", missed));
        let forgotten = self.collector.forgotten();
        let here = missed
            .into_iter()
            .chain([
                ("too many packets at once", self.collector.evicted()),
                ("flow forgotten for newer ones", forgotten.flows),
                ("failure forgotten for newer ones", forgotten.failures),
            ])
            .filter(|&(_, count)| count > 0);
        self.ring.lost().iter().chain(here).collect()
    }

    fn summary(&mut self) -> SummaryView {
        self.collector.name_namespaces(monotonic_ns());
        self.load_symbols(true);
        let counts = self.collector.counts();
        let names = self.names();
        let mut drops = std::collections::BTreeMap::<String, u64>::new();
        for (&(reason, location), &count) in &counts.drops {
            *drops.entry(names.drop(location, reason)).or_default() += count;
        }
        let mut drops: Vec<_> = drops.into_iter().collect();
        drops.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let devices = counts
            .devices
            .iter()
            .map(|(&(netns, ifindex), traffic)| DeviceCount {
                device: format!(
                    "{}/{}",
                    names.namespace(netns),
                    names.device(Some(netns), ifindex)
                ),
                received: traffic.received,
                sent: traffic.sent,
            })
            .collect();
        let cost = self.tracing.cost();
        SummaryView {
            seconds: self.started.elapsed().as_secs_f64(),
            events: counts.events,
            packets: counts.packets,
            failed: counts.failed,
            hooks: counts
                .hooks()
                .map(|(hook, count)| (hook.name(), count))
                .collect(),
            devices,
            drops,
            lost: self.lost(),
            kernel_runs: cost.runs,
            kernel_ms: cost.time.as_secs_f64() * 1e3,
            process_ms: process_ms(),
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
