//! Takes what a live trace does and hands it to the thread that writes. Nothing here waits for the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use anyhow::Context as _;
use caps::Capability;
use tracer_ebpf::event as raw;

use super::error::Unmade;
use super::file::{Files, Options, Written};
use super::record::{Control, Counters, Header, Record};
use super::writer::Writer;
use crate::analysis::Analysis;
use crate::cause::Diagnosis;
use crate::kernel::privilege;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::ClusterFacts;
use crate::node::Reading;
use crate::view::model::DiagnosisView;

/// Batches that may wait for the thread.
const WAITING: usize = 8;
/// Events that may wait for room among the batches: 64 MiB. What comes then is lost to the capture.
const MOST_PENDING: usize = 262_144;

/// One thing for the thread.
pub(super) enum Item {
    /// A batch as it came out of the ring buffer: to copy it would cost the trace a third of what it does else.
    Events(Vec<raw::Event>),
    Record(Box<Record>),
    /// The kernel's symbols are read.
    Symbols(Arc<Symbols>),
}

/// Records a live trace.
pub struct Recorder {
    channel: Option<SyncSender<Vec<Item>>>,
    thread: Option<JoinHandle<anyhow::Result<Written>>>,
    pending: Vec<Item>,
    /// Events in `pending`.
    pending_events: usize,
    /// The file as typed.
    shown: String,
    /// Events that were taken for the capture.
    taken: u64,
    /// Those of them that are in it.
    written: Arc<AtomicU64>,
    unwritten: u64,
    symbols: Option<Arc<Symbols>>,
    cluster: Option<Arc<ClusterFacts>>,
}

impl Recorder {
    /// Makes the file and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn start(
        options: Options,
        header: Header,
        reasons: Arc<DropReasons>,
    ) -> anyhow::Result<Self> {
        let snaplen = options.snaplen;
        let shown = options.path.display().to_string();
        let files = Files::create(options)
            .map_err(Unmade)
            .context(shown.clone())?;
        let (channel, batches) = sync_channel::<Vec<Item>>(WAITING);
        let mut writer = Writer::new(files, header, reasons, snaplen)?;
        let written = writer.written();
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                // The next file may have to be made in a folder that is not root's.
                privilege::keep(&[Capability::CAP_DAC_OVERRIDE])?;
                writer.run(&batches)?;
                writer.finish()
            })?;
        Ok(Self {
            channel: Some(channel),
            thread: Some(thread),
            pending: Vec::new(),
            pending_events: 0,
            shown,
            taken: 0,
            written,
            unwritten: 0,
            symbols: None,
            cluster: None,
        })
    }

    /// Events, as the kernel wrote them.
    pub fn events(&mut self, events: Vec<raw::Event>) {
        if self.has_ended() || self.pending_events >= MOST_PENDING {
            self.unwritten += events.len() as u64;
        } else {
            self.pending_events += events.len();
            self.taken += events.len() as u64;
            self.pending.push(Item::Events(events));
        }
    }

    fn record(&mut self, record: Record) {
        if !self.has_ended() {
            self.pending.push(Item::Record(Box::new(record)));
        }
    }

    /// Facts that were read.
    pub fn facts(&mut self, readings: Vec<Reading>) {
        for reading in readings {
            self.record(Record::Facts(reading));
        }
    }

    /// The names that were known when conclusions were drawn.
    pub fn names(&mut self, analysis: &mut Analysis) {
        if self.has_ended() {
            return;
        }
        // They are read again when a module comes.
        let symbols = analysis.kernel().symbols.read();
        if symbols.map(Arc::as_ptr) != self.symbols.as_ref().map(Arc::as_ptr) {
            self.symbols = symbols.cloned();
            let known = self.symbols.clone().unwrap_or_default();
            self.pending.push(Item::Symbols(known));
        }
        let cluster = analysis.cluster();
        let same = match (&self.cluster, cluster) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.cluster = cluster.cloned();
            self.record(Record::Cluster(self.cluster.clone()));
        }
    }

    /// A moment.
    pub fn control(&mut self, control: Control) {
        self.record(Record::Control(control));
    }

    /// Losses and cost.
    pub fn counters(&mut self, counters: Counters) {
        self.record(Record::Counters(counters));
    }

    /// Diagnoses that were reached.
    pub fn diagnoses(&mut self, diagnoses: &[Diagnosis]) {
        for diagnosis in diagnoses {
            if let Ok(text) = serde_json::to_string(&DiagnosisView::from(diagnosis)) {
                self.record(Record::Diagnosis(text));
            }
        }
    }

    /// True while what was handed over last waits for the thread.
    pub const fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Events that did not reach the capture.
    pub const fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Hands over what there is; it waits here while the thread is behind.
    ///
    /// # Errors
    /// When the thread has given up, and why; once. What it had not written, and what comes then, is counted as
    /// unwritten.
    pub fn hand_over(&mut self) -> anyhow::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let Some(channel) = &self.channel else {
            return Ok(());
        };
        match channel.try_send(std::mem::take(&mut self.pending)) {
            Ok(()) => {
                self.pending_events = 0;
                Ok(())
            }
            Err(TrySendError::Full(pending)) => {
                self.pending = pending;
                Ok(())
            }
            Err(TrySendError::Disconnected(_)) => {
                let ended = self.join();
                self.unwritten += self.taken - self.written.load(Ordering::Relaxed);
                ended.map(drop)
            }
        }
    }

    /// The thread has given up.
    const fn has_ended(&self) -> bool {
        self.channel.is_none()
    }

    /// Writes what is left and ends the capture; `None` for one that gave up before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<Option<Written>> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<Option<Written>> {
        if let Some(channel) = &self.channel {
            // A thread that is gone says why when it is joined.
            let _ = channel.send(std::mem::take(&mut self.pending));
        }
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Option<Written>> {
        self.channel = None;
        let Some(thread) = self.thread.take() else {
            return Ok(None);
        };
        let written = thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the capture's thread broke down")));
        written.map(Some).with_context(|| self.shown.clone())
    }
}

/// A trace that ends by an error leaves a whole capture as well.
impl Drop for Recorder {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // The error that ended the trace is the one to be told.
            let _ = self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::time::Duration;

    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::capture::{Full, Reader, Replay, Rotate};
    use crate::event::constructed;
    use crate::node::{NetnsFacts, NetnsId, Occasion, Snapshot};
    use crate::printer::{Format, Printer, Show};

    fn options(folder: &std::path::Path) -> Options {
        Options {
            path: folder.join("test.pcapng"),
            rotate: None,
            trigger: None,
            zstd: true,
            snaplen: None,
        }
    }

    fn replay() -> Replay {
        Replay::new(Printer::new(Format::Silent, Show::Nothing))
    }

    fn finish(recorder: Recorder) {
        assert!(recorder.finish().expect("an end").is_some());
    }

    /// Records something, and gives each record of the file with the replay that has taken it.
    fn replayed(
        record: impl FnOnce(&mut Recorder),
        end: fn(Recorder),
        mut taken: impl FnMut(&Record, &mut Replay),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path());
        let path = options.path.clone();
        let mut recorder =
            Recorder::start(options, Header::default(), Arc::default()).expect("a capture");
        record(&mut recorder);
        end(recorder);
        let bytes = std::fs::read(path).expect("the capture");
        let mut reader = Reader::from_stream(Cursor::new(bytes)).expect("a capture");
        let mut replay = replay();
        while let Some(record) = reader.next().expect("no damage") {
            replay
                .take(record.clone(), &reader, &mut |_, _| {})
                .expect("read");
            taken(&record, &mut replay);
        }
    }

    #[test]
    fn facts_of_a_cluster_end_in_the_file_as_they_ended_live() {
        let known = Arc::new(ClusterFacts::unread("https://192.0.2.1:6443"));
        let mut live = replay();
        let record = |recorder: &mut Recorder| {
            for facts in [Some(Arc::clone(&known)), Some(known), None, None] {
                live.analysis().set_cluster(facts);
                recorder.names(live.analysis());
            }
        };
        let mut told = Vec::new();
        replayed(record, finish, |record, replay| {
            if matches!(record, Record::Cluster(_)) {
                told.push(replay.analysis().cluster().is_some());
            }
        });
        // Twice the same is written once.
        assert_eq!(told, [true, false]);
    }

    #[test]
    fn what_was_read_before_a_forget_is_forgotten() {
        let mut facts = Snapshot::empty();
        facts
            .namespaces
            .push(NetnsFacts::unread(NetnsId(1), Some("node")));
        let record = |recorder: &mut Recorder| {
            recorder.control(Control::Step {
                now_ns: 1,
                hurry: false,
            });
            recorder.facts(vec![Reading {
                occasion: Occasion::Names,
                facts: Arc::new(facts),
            }]);
            recorder.control(Control::Forget);
        };
        let mut left = None;
        replayed(record, finish, |record, replay| {
            if matches!(record, Record::Control(Control::Forget)) {
                left = Some(replay.analysis().collector().facts().namespaces.len());
            }
        });
        assert_eq!(left, Some(0));
    }

    /// A capture whose second file is on a disk that is full.
    fn until_the_disk_is_full(folder: &std::path::Path) -> Recorder {
        let options = Options {
            rotate: Some(Rotate {
                full: Full::Time(Duration::ZERO),
                keep: 9,
            }),
            zstd: false,
            ..options(folder)
        };
        let recorder =
            Recorder::start(options, Header::default(), Arc::default()).expect("a capture");
        std::os::unix::fs::symlink("/dev/full", folder.join("test.00002.pcapng")).expect("a link");
        recorder
    }

    /// The capture that is left of the files before the disk was full; gives how many events are in it.
    fn is_whole(folder: &std::path::Path) -> u64 {
        let mut reader = Reader::open(&folder.join("test.00001.pcapng")).expect("a capture");
        let records = std::iter::from_fn(|| reader.next().expect("no damage"));
        let events = records.filter(|record| matches!(record, Record::Event(_)));
        events.count() as u64
    }

    #[test]
    fn a_full_disk_is_said_once_and_what_comes_then_is_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut recorder = until_the_disk_is_full(folder.path());
        let mut taken = 0;
        let error = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            recorder.events(vec![constructed(HookId::DeviceReceive, 0); 2]);
            recorder.control(Control::Forget);
            taken += 2;
            recorder.hand_over().err()
        });
        let error = error.expect("the disk is full");
        let error = format!("{error:#}");
        assert!(
            error.contains("test.pcapng") && error.contains("No space left"),
            "{error}"
        );
        let written = is_whole(folder.path());
        assert!(written > 0);
        assert_eq!(recorder.unwritten(), taken - written);
        for count in taken - written + 1..taken - written + 4 {
            recorder.events(vec![constructed(HookId::DeviceReceive, 0)]);
            recorder.control(Control::Forget);
            recorder.hand_over().expect("it was said");
            assert_eq!(recorder.unwritten(), count);
            assert!(!recorder.is_behind());
        }
        assert!(recorder.finish().expect("it was said").is_none());
    }

    #[test]
    fn a_disk_that_is_full_at_the_very_end_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut recorder = until_the_disk_is_full(folder.path());
        recorder.control(Control::Forget);
        let error = recorder.finish().expect_err("the disk is full");
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
        is_whole(folder.path());
    }

    #[test]
    fn a_trace_that_ends_by_an_error_leaves_a_whole_capture() {
        let record = |recorder: &mut Recorder| recorder.control(Control::Forget);
        let mut told = 0;
        replayed(record, drop, |record, _| {
            told += usize::from(matches!(record, Record::Control(Control::Forget)));
        });
        assert_eq!(told, 1);
    }
}
