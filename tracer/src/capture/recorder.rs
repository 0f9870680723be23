//! Takes what a live trace does and hands it to the thread that writes. Nothing here waits for the disk.

use std::sync::Arc;
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
/// Events that may wait for room among the batches: 50 MiB. What comes then is lost to the capture.
const MOST_PENDING: usize = 262_144;

/// One thing for the thread.
pub(super) enum Item {
    Event(raw::Event),
    Record(Box<Record>),
    /// The kernel's symbols are read.
    Symbols(Arc<Symbols>),
}

impl Item {
    fn of(record: Record) -> Self {
        Self::Record(Box::new(record))
    }
}

/// Records a live trace.
pub struct Recorder {
    channel: Option<SyncSender<Vec<Item>>>,
    thread: Option<JoinHandle<anyhow::Result<Written>>>,
    pending: Vec<Item>,
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
        let path = options.path.display().to_string();
        let files = Files::create(options).map_err(Unmade).context(path)?;
        let (channel, batches) = sync_channel::<Vec<Item>>(WAITING);
        let mut writer = Writer::new(files, header, reasons, snaplen)?;
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
            unwritten: 0,
            symbols: None,
            cluster: None,
        })
    }

    /// An event, as the kernel wrote it.
    pub fn event(&mut self, event: &raw::Event) {
        if self.pending.len() >= MOST_PENDING {
            self.unwritten += 1;
        } else {
            self.pending.push(Item::Event(*event));
        }
    }

    /// Facts that were read.
    pub fn facts(&mut self, readings: Vec<Reading>) {
        self.pending
            .extend(readings.into_iter().map(Record::Facts).map(Item::of));
    }

    /// The names that were known when conclusions were drawn.
    pub fn names(&mut self, analysis: &mut Analysis) {
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
            self.pending
                .push(Item::of(Record::Cluster(self.cluster.clone())));
        }
    }

    /// A moment.
    pub fn control(&mut self, control: Control) {
        self.pending.push(Item::of(Record::Control(control)));
    }

    /// Losses and cost.
    pub fn counters(&mut self, counters: Counters) {
        self.pending.push(Item::of(Record::Counters(counters)));
    }

    /// Diagnoses that were reached.
    pub fn diagnoses(&mut self, diagnoses: &[Diagnosis]) {
        for diagnosis in diagnoses {
            if let Ok(text) = serde_json::to_string(&DiagnosisView::from(diagnosis)) {
                self.pending.push(Item::of(Record::Diagnosis(text)));
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
    /// When the thread has given up, and why.
    pub fn hand_over(&mut self) -> anyhow::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let Some(channel) = &self.channel else {
            return Ok(());
        };
        // As many come until the next time, most often.
        let room = Vec::with_capacity(self.pending.len());
        match channel.try_send(std::mem::replace(&mut self.pending, room)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(pending)) => {
                self.pending = pending;
                Ok(())
            }
            Err(TrySendError::Disconnected(_)) => self.join().map(drop),
        }
    }

    /// Writes what is left and ends the capture.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<Written> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<Written> {
        if let Some(channel) = &self.channel {
            // A thread that is gone says why when it is joined.
            let _ = channel.send(std::mem::take(&mut self.pending));
        }
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Written> {
        self.channel = None;
        let Some(thread) = self.thread.take() else {
            anyhow::bail!("the capture has ended before");
        };
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the capture's thread broke down")))
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

    use super::*;
    use crate::capture::{Reader, Replay};
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
        recorder.finish().expect("an end");
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
