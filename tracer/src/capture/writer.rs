//! The capture's thread: gives each event its place in a journey and its words, and writes it.
//!
//! What happened at an event is often known only when the next ones are there, so events wait in a queue
//! until their journey ended, at most for [`PATIENCE`]. Everything is written in the order it came.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tracer_ebpf::event as raw;

use super::encoder::{Encoder, Told};
use super::file::{Files, Written};
use super::record::{Control, Header, Headers, Record};
use super::recorder::Item;
use crate::event::{Decoder, Detail, Event};
use crate::hook;
use crate::journey::{Journey, Tracker};
use crate::kernel::reasons::DropReasons;
use crate::view::stage;

/// Longest that an event waits for its words. With [`FLUSH`] it bounds what a crash costs.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest that bytes wait for the file.
const FLUSH: Duration = Duration::from_millis(200);
/// Most entries that wait.
const MOST_WAITING: usize = 65_536;

/// One entry of the queue.
enum Waiting {
    Event(Box<Known>),
    Record(Box<Record>),
}

/// An event and what is known of it.
struct Known {
    event: Event,
    journey: Option<u64>,
    headers: Option<Headers>,
    borrowed: bool,
    site: (Option<u32>, Option<u32>),
    words: Option<String>,
    /// Nothing more will be known.
    settled: bool,
    arrived: Instant,
}

/// What an event without bytes of its own is shown with.
#[derive(Clone, Copy)]
struct Last {
    journey: Option<u64>,
    headers: Option<Headers>,
    site: (Option<u32>, Option<u32>),
}

/// The thread.
pub(super) struct Writer {
    files: Files,
    encoder: Encoder,
    decoder: Decoder,
    tracker: Tracker,
    queue: VecDeque<Waiting>,
    /// How many entries have left the queue: the number of its first.
    gone: u64,
    /// Numbers of the entries of each journey under way.
    entries: HashMap<u64, Vec<u64>>,
    last: HashMap<u64, Last>,
    /// Addresses whose names are not known yet.
    unnamed: BTreeSet<u64>,
    out: Vec<u8>,
    events: u64,
    /// Events that nothing more is to be done for but to flush them.
    encoded: u64,
    /// Those of them that are in the file.
    written: Arc<AtomicU64>,
    flushed: Instant,
}

impl Writer {
    pub(super) fn new(
        files: Files,
        header: Header,
        reasons: Arc<DropReasons>,
        snaplen: Option<usize>,
    ) -> anyhow::Result<Self> {
        let encoder = Encoder::new(header, reasons, snaplen);
        let mut writer = Self {
            tracker: Tracker::new(encoder.socket_reasons()),
            files,
            encoder,
            decoder: Decoder::default(),
            queue: VecDeque::new(),
            gone: 0,
            entries: HashMap::new(),
            last: HashMap::new(),
            unnamed: BTreeSet::new(),
            out: Vec::new(),
            events: 0,
            encoded: 0,
            written: Arc::default(),
            flushed: Instant::now(),
        };
        writer.begin_file()?;
        writer.files.flush()?;
        Ok(writer)
    }

    /// Events that are in the file, for another thread.
    pub(super) fn written(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.written)
    }

    /// Writes until nobody hands over any more.
    pub(super) fn run(&mut self, batches: &Receiver<Vec<Item>>) -> anyhow::Result<()> {
        loop {
            match batches.recv_timeout(FLUSH) {
                Ok(batch) => {
                    for item in batch {
                        self.take(item);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.write_ready(false)?;
            if self.flushed.elapsed() >= FLUSH {
                self.files.flush()?;
                self.all_is_written();
                self.flushed = Instant::now();
            }
        }
    }

    /// Writes what waits and ends the file.
    pub(super) fn finish(mut self) -> anyhow::Result<Written> {
        self.write_ready(true)?;
        self.encoder.end(&mut self.out);
        self.write_out()?;
        Ok(self.files.close(self.events)?)
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Events(events) => events.iter().for_each(|event| self.take_raw(event)),
            Item::Symbols(symbols) => {
                self.encoder.symbols = symbols;
                let unnamed = std::mem::take(&mut self.unnamed);
                self.name(unnamed);
            }
            Item::Record(record) => self.take_record(*record),
        }
    }

    fn take_raw(&mut self, raw: &raw::Event) {
        let Some(event) = self.decoder.decode(raw) else {
            self.encoded += 1;
            return;
        };
        if let Detail::Drop { location, .. } = event.detail
            && self.encoder.is_unnamed(location)
        {
            if self.encoder.symbols.is_empty() {
                self.unnamed.insert(location);
            } else {
                self.name([location]);
            }
        }
        self.take_event(event, Headers::of_raw(raw));
    }

    /// Takes what is no event.
    pub(super) fn take_record(&mut self, record: Record) {
        match &record {
            Record::Facts(reading) => self.encoder.know_facts(&reading.facts),
            Record::Cluster(facts) => self.encoder.know_cluster(facts.as_ref()),
            Record::Control(control) => self.conclude(*control),
            _ => {}
        }
        self.queue.push_back(Waiting::Record(Box::new(record)));
    }

    /// Takes an event, with its packet's bytes where it has some.
    pub(super) fn take_event(&mut self, event: Event, own: Option<Headers>) {
        self.events += 1;
        let before = self.last.get(&event.skb).copied();
        let mut ended = Vec::new();
        let number = self.gone + self.queue.len() as u64;
        let journey = self.tracker.push(event.clone(), &mut ended);
        // Without a journey there is no packet that it could be shown with.
        let before = before.filter(|last| last.journey == journey && journey.is_some());
        let headers = own.or(before.and_then(|last| last.headers));
        let site = if event.netns.is_some() || event.ifindex.is_some() {
            (event.netns, event.ifindex)
        } else {
            before.map_or((None, None), |last| last.site)
        };
        if journey.is_some() {
            let last = Last {
                journey,
                headers,
                site,
            };
            self.last.insert(event.skb, last);
        }
        if let Some(journey) = journey {
            self.entries.entry(journey).or_default().push(number);
        }
        self.queue.push_back(Waiting::Event(Box::new(Known {
            borrowed: own.is_none() && headers.is_some(),
            event,
            settled: journey.is_none(),
            journey,
            headers,
            site,
            words: None,
            arrived: Instant::now(),
        })));
        for journey in &ended {
            self.settle(journey, true);
        }
    }

    /// What comes next is of the trace of this header: of another trace than before in a section of its own.
    pub(super) fn go_on_with(&mut self, header: Header) -> anyhow::Result<()> {
        if self.encoder.is_of(&header) {
            return Ok(());
        }
        self.write_ready(true)?;
        self.encoder.end(&mut self.out);
        self.write_out()?;
        let reasons = header.reasons.iter().cloned().collect();
        self.encoder.go_on_with(header, Arc::new(reasons));
        self.tracker = Tracker::new(self.encoder.socket_reasons());
        self.entries.clear();
        self.last.clear();
        self.begin_file()
    }

    /// The journey that begins next gets this number, as it had in another capture.
    pub(super) const fn number_next(&mut self, id: u64) {
        self.tracker.number_next(id);
    }

    /// Takes names of code addresses out of another capture.
    pub(super) fn know(&mut self, symbols: Vec<(u64, String)>) {
        let known = Arc::make_mut(&mut self.encoder.symbols);
        for (address, name) in &symbols {
            known.insert(*address, name);
        }
        self.encoder.remember(&symbols);
        self.queue
            .push_back(Waiting::Record(Box::new(Record::Symbols(symbols))));
    }

    /// Names code addresses in the file.
    fn name(&mut self, locations: impl IntoIterator<Item = u64>) {
        let named: Vec<(u64, String)> = locations
            .into_iter()
            .filter(|&location| self.encoder.is_unnamed(location))
            .map(|location| {
                let name = self.encoder.symbols.name(location).unwrap_or_default();
                (location, name.to_owned())
            })
            .collect();
        if !named.is_empty() {
            self.encoder.remember(&named);
            self.queue
                .push_back(Waiting::Record(Box::new(Record::Symbols(named))));
        }
    }

    /// Ends the journeys that the live trace ends now.
    fn conclude(&mut self, control: Control) {
        let mut ended = Vec::new();
        match control {
            Control::Step { now_ns, .. } => self.tracker.expire(now_ns, &mut ended),
            Control::Finish { .. } => self.tracker.finish(&mut ended),
            Control::Forget | Control::Loss { .. } => {}
        }
        for journey in &ended {
            self.settle(journey, true);
        }
    }

    /// Gives the waiting events of a journey their words.
    fn settle(&mut self, journey: &Journey, over: bool) {
        let Some(entries) = self.entries.get(&journey.id) else {
            return;
        };
        for &number in entries {
            if let Some(known) = waiting(&mut self.queue, self.gone, number) {
                known.settled = true;
            }
        }
        for stage in stage::path(journey, &self.encoder.names()) {
            let Some(event) = journey.events.get(stage.event) else {
                continue;
            };
            // Pieces and copies change places in a journey when it ends; an event stays itself.
            let same = entries.iter().copied().find(|&number| {
                waiting(&mut self.queue, self.gone, number).is_some_and(|known| {
                    known.event.time_ns == event.time_ns
                        && known.event.hook == event.hook
                        && known.event.skb == event.skb
                })
            });
            let Some(known) = same.and_then(|number| waiting(&mut self.queue, self.gone, number))
            else {
                continue;
            };
            let mark = if stage.lost { "✗ " } else { "" };
            let text = format!("{mark}{}", stage.text);
            match &mut known.words {
                Some(words) => {
                    words.push_str(", ");
                    words.push_str(&text);
                }
                None => known.words = Some(text),
            }
        }
        if over {
            self.entries.remove(&journey.id);
            for event in journey.every_event() {
                // Its skb may be another packet's by now.
                if let Entry::Occupied(last) = self.last.entry(event.skb)
                    && last.get().journey == Some(journey.id)
                {
                    last.remove();
                }
            }
        }
    }

    /// Writes entries from the front as far as they are ready; all with `all`.
    pub(super) fn write_ready(&mut self, all: bool) -> anyhow::Result<()> {
        loop {
            let late = match self.queue.front() {
                None => break,
                Some(Waiting::Record(_)) => None,
                Some(Waiting::Event(known)) => {
                    let overdue = all
                        || self.queue.len() > MOST_WAITING
                        || known.arrived.elapsed() >= PATIENCE;
                    if !known.settled && !overdue {
                        break;
                    }
                    (!known.settled).then_some(known.event.skb)
                }
            };
            if let Some(skb) = late
                && let Some(journey) = self.tracker.under_way(skb).cloned()
            {
                self.settle(&journey, false);
            }
            let Some(entry) = self.queue.pop_front() else {
                break;
            };
            self.gone += 1;
            match entry {
                Waiting::Event(known) => {
                    self.encode(&known)?;
                    self.encoded += 1;
                }
                Waiting::Record(record) => {
                    let fires = cause_of(&record);
                    self.encoder.record(*record, &mut self.out)?;
                    if let Some(cause) = fires {
                        self.files.write(&self.out)?;
                        self.out.clear();
                        self.files.fire(&cause)?;
                    }
                }
            }
            self.write_out()?;
        }
        Ok(())
    }

    fn encode(&mut self, known: &Known) -> anyhow::Result<()> {
        let symbol = hook::of(known.event.hook).place.symbol();
        self.encoder.event(
            &Told {
                event: &known.event,
                journey: known.journey,
                headers: known.headers,
                borrowed: known.borrowed,
                site: known.site,
                words: known.words.as_deref().unwrap_or(symbol),
            },
            &mut self.out,
        )
    }

    fn write_out(&mut self) -> anyhow::Result<()> {
        self.files.write(&self.out)?;
        self.out.clear();
        if self.files.is_full() {
            self.encoder.end(&mut self.out);
            self.files.write(&self.out)?;
            self.out.clear();
            self.files.next()?;
            self.all_is_written();
            self.begin_file()?;
        }
        Ok(())
    }

    /// What was encoded is in the file.
    fn all_is_written(&self) {
        self.written.store(self.encoded, Ordering::Relaxed);
    }

    /// Writes what every file begins with.
    fn begin_file(&mut self) -> anyhow::Result<()> {
        self.encoder.begin(&mut self.out)?;
        self.files.begin(&self.out)?;
        self.out.clear();
        Ok(())
    }
}

/// The cause that a diagnosis names.
fn cause_of(record: &Record) -> Option<String> {
    let Record::Diagnosis(text) = record else {
        return None;
    };
    let diagnosis: serde_json::Value = serde_json::from_str(text).ok()?;
    diagnosis["cause"].as_str().map(str::to_owned)
}

fn waiting(queue: &mut VecDeque<Waiting>, gone: u64, number: u64) -> Option<&mut Known> {
    let index = usize::try_from(number.checked_sub(gone)?).ok()?;
    match queue.get_mut(index)? {
        Waiting::Event(known) => Some(known),
        Waiting::Record(_) => None,
    }
}
