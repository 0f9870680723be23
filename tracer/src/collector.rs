//! From events to answers: journeys, flows, facts when they are needed, diagnoses.
//!
//! Knows nothing of the kernel boundary or of a view: it is fed events and asked for answers, so a
//! capture can feed it as well as the kernel.

mod explained;
mod met;
mod pace;
mod proxy_reports;
mod service_rules;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tracer_ebpf::hook::HookId;

use crate::cause::{self, Certainty, Diagnosis, DropNames, Evidence};
use crate::event::{Event, Tuple};
use crate::flow::{Flow, Flows, Forgotten};
use crate::hook::Role;
use crate::journey::{Ending, Journey, Loss, SocketReasons, Tracker};
use crate::kube::ClusterFacts;
use crate::node::{NetnsHandle, NetnsId, Occasion, ProxyLog, Reading, Snapshot, Source};
use crate::ruling;
use explained::Explained;
use met::Met;
use pace::Pace;
use proxy_reports::ProxyReports;
use service_rules::ServiceRulesReader;

/// Shortest pause between readings that only name new namespaces.
const NAMES_PAUSE_NS: u64 = 100_000_000;
/// Facts older than this are read anew before a diagnosis.
const FACTS_AGE_NS: u64 = 1_000_000_000;

/// What is missing where a loss may stand for a failure.
const LOST_MEANWHILE: &str =
    "events were lost meanwhile, and what did not happen may be among them";

/// Packets through one device.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
}

/// Counts over the whole trace.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    /// Events taken.
    pub events: u64,
    /// Journeys ended.
    pub packets: u64,
    /// Journeys that failed.
    pub failed: u64,
    /// Events per hook, by its number; counted with every event.
    hooks: Vec<u64>,
    /// Packets per namespace and interface index.
    pub devices: BTreeMap<(u32, u32), Traffic>,
    /// Journeys that failed, by the way in which the packet did not arrive.
    pub losses: HashMap<Loss, u64>,
}

impl Counts {
    /// Events of each hook that had any.
    pub fn hooks(&self) -> impl Iterator<Item = (HookId, u64)> + '_ {
        let count = |hook: HookId| self.hooks.get(hook as usize).copied().unwrap_or(0);
        (HookId::ALL.iter().map(move |&hook| (hook, count(hook)))).filter(|&(_, count)| count > 0)
    }

    fn count(&mut self, hook: HookId) {
        let number = hook as usize;
        if number >= self.hooks.len() {
            self.hooks.resize(number + 1, 0);
        }
        self.hooks[number] += 1;
    }
}

/// A connection that a cause stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// Code of the cause.
    pub code: &'static str,
    /// Addresses as the one who began used them.
    pub client: Tuple,
}

/// How many connections a cause stopped, as the look that found most of them counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Code of the cause.
    pub code: &'static str,
    /// What it is about.
    pub subject: String,
    /// Connections that it stopped.
    pub failed: usize,
    /// Connections to the subject in all.
    pub total: usize,
}

/// A diagnosis that was given.
struct Given {
    certainty: Certainty,
    /// Goes on with later looks.
    extent: Extent,
    /// How many were given before.
    number: usize,
}

/// The collector.
pub struct Collector {
    tracker: Tracker,
    flows: Flows,
    source: Source,
    facts: Arc<Snapshot>,
    cluster: Option<Arc<ClusterFacts>>,
    /// kube-proxy's log, which every reading of the facts gets.
    proxy_log: Option<Arc<ProxyLog>>,
    /// Namespaces seen in events.
    seen: BTreeSet<u32>,
    /// The namespace of the last event.
    last_seen: Option<u32>,
    /// Those that the facts were read of.
    asked: BTreeSet<u32>,
    /// What packets met that has to be looked up.
    met: Met,
    /// Namespaces whose rules seem to have ended a packet; the rules are many and read only then.
    filtering: BTreeSet<NetnsId>,
    /// When rules were last read.
    rules_ns: Option<u64>,
    /// ARP packets have journeys as well.
    follows_arp: bool,
    /// What kube-proxy's rules do, and when to read it.
    service_rules: ServiceRulesReader,
    /// What kube-proxy says of itself.
    proxy_reports: ProxyReports,
    /// When to look for causes.
    pace: Pace,
    /// What the last look for causes found, with the counts of then.
    causes: Vec<Diagnosis>,
    /// Diagnoses given since the last time that everything was forgotten.
    given: HashMap<(&'static str, String), Given>,
    /// Those given before.
    given_before: Vec<Extent>,
    /// What causes explained, also those that are mended since.
    explained: Explained,
    /// Connections that each cause is known to have stopped.
    stopped: HashMap<&'static str, HashSet<u64>>,
    /// Those that nobody was told of yet.
    newly_stopped: Vec<Stopped>,
    counts: Counts,
}

impl Collector {
    /// A collector that gets its facts from a source, for the packets of a kernel with these reasons.
    pub fn new(source: Source, socket_reasons: SocketReasons) -> Self {
        Self {
            tracker: Tracker::new(socket_reasons),
            flows: Flows::default(),
            source,
            facts: Arc::new(Snapshot::empty()),
            cluster: None,
            proxy_log: None,
            seen: BTreeSet::new(),
            last_seen: None,
            asked: BTreeSet::new(),
            met: Met::default(),
            filtering: BTreeSet::new(),
            rules_ns: None,
            follows_arp: false,
            service_rules: ServiceRulesReader::default(),
            proxy_reports: ProxyReports::default(),
            pace: Pace::default(),
            causes: Vec::new(),
            given: HashMap::new(),
            given_before: Vec::new(),
            explained: Explained::default(),
            stopped: HashMap::new(),
            newly_stopped: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Counts so far.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The facts last read.
    pub fn facts(&self) -> &Snapshot {
        &self.facts
    }

    /// The facts that were read since the last call.
    pub fn take_readings(&mut self) -> Vec<Reading> {
        self.source.take_made()
    }

    /// Facts of a capture, to be used on their occasion.
    pub fn add_reading(&mut self, reading: Reading) {
        self.source.add(reading);
    }

    /// Uses the facts of a capture that this replay did not ask for.
    pub fn catch_up(&mut self) {
        if let Some(facts) = self.source.rest() {
            self.facts = facts;
        }
    }

    /// The journey that begins next gets this number.
    pub const fn number_next(&mut self, id: u64) {
        self.tracker.number_next(id);
    }

    /// What the kernel's reasons say of packets at sockets, once a capture tells them.
    pub fn set_socket_reasons(&mut self, reasons: SocketReasons) {
        self.tracker.set_socket_reasons(reasons);
    }

    /// ARP packets have journeys as well from now on, or no more; they are never judged.
    pub const fn follow_arp(&mut self, follow: bool) {
        self.follows_arp = follow;
    }

    /// Every flow.
    pub const fn all_flows(&self) -> &Flows {
        &self.flows
    }

    /// What the cluster is like from now on.
    pub fn set_cluster(&mut self, cluster: Option<Arc<ClusterFacts>>) {
        self.cluster = cluster;
    }

    /// What the cluster is like, where one is known.
    pub const fn cluster(&self) -> Option<&Arc<ClusterFacts>> {
        self.cluster.as_ref()
    }

    /// Reads facts of these namespaces too, instead of those held so far.
    pub fn hold(&mut self, held: Vec<NetnsHandle>) {
        self.source.hold(held);
    }

    /// What kube-proxy's log says.
    pub fn set_proxy_log(&mut self, log: Option<Arc<ProxyLog>>) {
        self.proxy_log = log;
    }

    /// Takes certainty from a diagnosis that rests only on what did not happen while events were lost: a
    /// lost event may be what is missed.
    fn doubt(&self, diagnosis: &mut Diagnosis) {
        let Some(lost_ns) = self.tracker.lost_ns() else {
            return;
        };
        let seen_whole = |flow: &Flow| {
            flow.first_ns > lost_ns
                || flow
                    .kept()
                    .any(|(_, journey)| matches!(journey.ending, Ending::Dropped { .. }))
        };
        let mut flows = diagnosis.flows.iter().filter_map(|&id| self.flows.get(id));
        if !diagnosis.flows.is_empty() && !flows.any(seen_whole) {
            diagnosis.certainty = Certainty::Likely;
            diagnosis.missing.push(LOST_MEANWHILE.into());
        }
    }

    /// Journeys under way.
    pub fn active(&self) -> usize {
        self.tracker.active()
    }

    /// Journeys that ended early because too many were under way.
    pub const fn evicted(&self) -> u64 {
        self.tracker.evicted
    }

    /// Flows known.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Flows and journeys that had to be forgotten to stay within bounds.
    pub const fn forgotten(&self) -> Forgotten {
        self.flows.forgotten()
    }

    /// Events were lost before this time.
    pub const fn mark_loss(&mut self, now_ns: u64) {
        self.tracker.mark_loss(now_ns);
    }

    /// Takes an event; journeys that it ends go to `ended`. Gives the number of the event's journey.
    pub fn push(&mut self, mut event: Event, ended: &mut Vec<Journey>) -> Option<u64> {
        self.counts.events += 1;
        self.counts.count(event.hook);
        // Events come in runs of one namespace.
        if event.netns != self.last_seen {
            self.last_seen = event.netns;
            self.seen.extend(event.netns);
        }
        match (event.role(), event.netns, event.ifindex) {
            (Role::Receive, Some(netns), Some(ifindex)) => {
                self.counts
                    .devices
                    .entry((netns, ifindex))
                    .or_default()
                    .received += 1;
            }
            (Role::Transmit, Some(netns), Some(ifindex)) => {
                self.counts
                    .devices
                    .entry((netns, ifindex))
                    .or_default()
                    .sent += 1;
            }
            _ => {}
        }
        if event.is_of_no_network() {
            return None;
        }
        if self.follows_arp {
            event.follow_arp();
        }
        self.tracker.push(event, ended)
    }

    /// Ends journeys that nothing happened to for long.
    pub fn expire(&mut self, now_ns: u64, ended: &mut Vec<Journey>) {
        self.tracker.expire(now_ns, ended);
    }

    /// Ends every journey.
    pub fn finish(&mut self, ended: &mut Vec<Journey>) {
        self.tracker.finish(ended);
    }

    /// Makes sure that facts name the namespaces seen so far.
    pub fn name_namespaces(&mut self, now_ns: u64) {
        if let Some(facts) = self.source.next(Occasion::Names) {
            self.facts = facts;
        }
        let recently = self
            .facts
            .taken_ns
            .is_some_and(|taken| now_ns.saturating_sub(taken) < NAMES_PAUSE_NS);
        if !recently {
            self.name_seen();
        }
    }

    /// The same, however recently facts were read, and also for those that were forgotten since.
    pub fn name_rest(&mut self) {
        let counted = self.counts.devices.keys().map(|&(netns, _)| netns);
        self.seen.extend(counted);
        self.name_seen();
    }

    fn name_seen(&mut self) {
        if !self.seen.is_subset(&self.asked) {
            self.read_facts(Occasion::Names);
        }
    }

    /// Makes sure that facts hold the rules of namespaces where these packets seem to have met them.
    pub fn know_rules(&mut self, ended: &[Journey], now_ns: u64) {
        if let Some(facts) = self.source.next(Occasion::Rules) {
            self.facts = facts;
        }
        let met: BTreeSet<NetnsId> = ended
            .iter()
            .filter_map(|journey| ruling::filtered(journey, true))
            .map(|filtered| filtered.netns)
            .collect();
        let recently = self
            .rules_ns
            .is_some_and(|read| now_ns.saturating_sub(read) < FACTS_AGE_NS);
        if met.is_empty() || recently && met.is_subset(&self.filtering) {
            return;
        }
        self.filtering.extend(met);
        if self.seen.is_subset(&self.asked) {
            if let Some(directory) = self.source.directory() {
                Arc::make_mut(&mut self.facts).read_rules(&directory, &self.filtering);
                self.source.note(Occasion::Rules, &self.facts);
            }
        } else {
            self.read_facts(Occasion::Rules);
        }
        self.rules_ns = Some(now_ns);
    }

    /// Adds ended journeys to their flows.
    pub fn keep(&mut self, journeys: Vec<Journey>, now_ns: u64) {
        for journey in journeys {
            self.counts.packets += 1;
            let loss = journey.loss();
            if let Some(loss) = loss {
                self.counts.failed += 1;
                *self.counts.losses.entry(loss).or_default() += 1;
            }
            if journey.is_arp() {
                continue;
            }
            let cluster = self.cluster.as_deref();
            let at_nodeport = self.met.note(&journey, cluster);
            self.service_rules.remember(&journey, cluster);
            let Some(added) = self.flows.add(journey) else {
                continue;
            };
            if let Some(flow) = self.flows.get(added.flow)
                && (added.suspicious
                    || at_nodeport
                    || flow.refused
                    || flow.is_stalled()
                    || flow.is_unheard()
                    || flow.repeated().is_some())
            {
                self.pace.ask(loss, flow.client, now_ns);
            }
        }
        if self.pace.is_asked() && self.source.is_live() {
            self.proxy_reports.ask(now_ns);
        }
    }

    /// True once something asks for a diagnosis and the connections behind it had time to follow; at
    /// once with `hurry`.
    pub fn is_due(&self, now_ns: u64, hurry: bool) -> bool {
        let awaits = self
            .cluster
            .as_ref()
            .is_some_and(|facts| !facts.waiting().is_empty());
        self.pace.is_due(now_ns, hurry, awaits)
    }

    /// New or surer diagnoses, when they are due.
    pub fn diagnose(&mut self, now_ns: u64, hurry: bool, names: DropNames<'_>) -> Vec<Diagnosis> {
        if !self.is_due(now_ns, hurry) {
            return Vec::new();
        }
        let asked_ns = self.pace.asked_ns();
        self.pace.look();
        if let Some(facts) = self.source.next(Occasion::Diagnosis) {
            self.facts = facts;
        }
        // What the packets met may be younger than the facts.
        let heard = self.proxy_reports.hear(hurry);
        let unread = heard || self.met.is_unread() || !self.seen.is_subset(&self.asked);
        if hurry || unread || self.facts_are_old(asked_ns, now_ns) {
            self.read_facts(Occasion::Diagnosis);
        }
        let evidence = Evidence::new(&self.flows, &self.facts, names).seen_until(now_ns);
        self.pace.went_through(
            evidence.failures().len()
                + evidence.stalled().len()
                + evidence.unheard().len()
                + evidence.repeating().len()
                + evidence.refused().len(),
        );
        let mut found = cause::diagnose(&evidence.with_cluster(self.cluster.as_deref()));
        for diagnosis in &mut found {
            self.doubt(diagnosis);
        }
        found.retain(|diagnosis| !self.explained.covers(diagnosis, &self.flows));
        for diagnosis in &found {
            self.explained.note(diagnosis, &self.flows);
            self.note_stopped(diagnosis);
        }
        let new = found
            .iter()
            .filter(|diagnosis| self.give(diagnosis))
            .cloned()
            .collect();
        self.causes = found;
        new
    }

    /// Takes down what a look found; true when it is new or surer.
    fn give(&mut self, diagnosis: &Diagnosis) -> bool {
        let extent = Extent {
            code: diagnosis.code,
            subject: diagnosis.subject.clone(),
            failed: diagnosis.failed,
            total: diagnosis.total,
        };
        let number = self.given.len();
        match self
            .given
            .entry((diagnosis.code, diagnosis.subject.clone()))
        {
            Entry::Vacant(vacant) => {
                vacant.insert(Given {
                    certainty: diagnosis.certainty,
                    extent,
                    number,
                });
                true
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                // Flows that were forgotten are counted no longer.
                if extent.failed >= known.extent.failed {
                    known.extent = extent;
                }
                std::mem::replace(&mut known.certainty, diagnosis.certainty) < diagnosis.certainty
            }
        }
    }

    /// How far each cause that was given reaches by now, in the order in which they were given.
    pub fn extents(&self) -> Vec<Extent> {
        let mut given: Vec<_> = self.given.values().collect();
        given.sort_unstable_by_key(|given| given.number);
        let given = given.into_iter().map(|given| &given.extent);
        self.given_before.iter().chain(given).cloned().collect()
    }

    /// Gives a diagnosis of before the counts that it has come to.
    pub fn recount(&self, diagnosis: &mut Diagnosis) {
        let key = (diagnosis.code, diagnosis.subject.clone());
        if let Some(Given { extent, .. }) = self.given.get(&key) {
            (diagnosis.failed, diagnosis.total) = (extent.failed, extent.total);
        }
        let same = |now: &&Diagnosis| (now.code, &now.subject) == (key.0, &key.1);
        if let Some(now) = self.causes.iter().find(same) {
            diagnosis.flows.clone_from(&now.flows);
        }
    }

    /// Every cause at work, given already or not, as the last look found it.
    pub fn causes(&self) -> &[Diagnosis] {
        &self.causes
    }

    /// Counts each connection once for its cause, as long as its flow is kept.
    fn note_stopped(&mut self, diagnosis: &Diagnosis) {
        let flows = &self.flows;
        let known = self.stopped.entry(diagnosis.code).or_default();
        known.retain(|&id| flows.get(id).is_some());
        for &id in &diagnosis.flows {
            let Some(flow) = flows.get(id) else { continue };
            if known.insert(id) {
                self.newly_stopped.push(Stopped {
                    code: diagnosis.code,
                    client: flow.client,
                });
            }
        }
    }

    /// The connections that causes stopped since the last call; each once per cause.
    pub fn take_stopped(&mut self) -> Vec<Stopped> {
        std::mem::take(&mut self.newly_stopped)
    }

    /// Numbers of the kept flows that a cause is known to have stopped.
    pub fn stopped_by(&self, code: &str) -> impl Iterator<Item = u64> + '_ {
        self.stopped.get(code).into_iter().flatten().copied()
    }

    /// Forgets flows, facts and diagnoses: what comes next is judged by itself.
    pub fn forget(&mut self) {
        self.flows = Flows::default();
        self.facts = Arc::new(Snapshot::empty());
        self.seen.clear();
        self.last_seen = None;
        self.asked.clear();
        self.met = Met::default();
        self.filtering.clear();
        self.rules_ns = None;
        self.service_rules = ServiceRulesReader::default();
        self.proxy_reports = ProxyReports::default();
        self.causes.clear();
        self.given_before = self.extents();
        self.given.clear();
        self.explained = Explained::default();
        self.stopped.clear();
        self.newly_stopped.clear();
        self.pace = Pace::default();
    }

    /// They may not be what the packets met that asked for a look.
    fn facts_are_old(&self, asked_ns: Option<u64>, now_ns: u64) -> bool {
        self.facts.taken_ns.is_none_or(|taken| {
            Some(taken) < asked_ns || now_ns.saturating_sub(taken) > FACTS_AGE_NS
        })
    }

    /// Reads this machine; a capture has given what it holds.
    fn read_facts(&mut self, occasion: Occasion) {
        let Some(directory) = self.source.directory() else {
            return;
        };
        let ids: Vec<NetnsId> = self.seen.iter().map(|&netns| NetnsId(netns)).collect();
        self.asked.clone_from(&self.seen);
        let mut facts = Snapshot::take(&directory, &ids);
        let beyond = self.met.beyond_silence(&facts);
        facts
            .namespaces
            .extend(Snapshot::take(&directory, &beyond).namespaces);
        facts.read_connections(&directory, self.met.take_ipvs_clients());
        facts.read_rules(&directory, &self.filtering);
        self.proxy_reports.put(&mut facts);
        let cluster = self.cluster.as_deref();
        self.service_rules
            .read(&mut facts, &self.facts, &directory, cluster);
        facts.find_owners();
        facts.read_node();
        facts.proxy_log.clone_from(&self.proxy_log);
        self.facts = Arc::new(facts);
        self.source.note(occasion, &self.facts);
    }
}
