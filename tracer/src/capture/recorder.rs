//! Takes what a live trace does and hands it to the thread that writes. Nothing here waits for the disk.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tracer_ebpf::event as raw;

use super::file::{Files, Options, Written};
use super::record::{Control, Counters, Header, Record};
use super::writer::Writer;
use crate::analysis::Analysis;
use crate::cause::Diagnosis;
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
        let path = options.path.clone();
        let files = Files::create(options)
            .map_err(|error| anyhow::anyhow!("{} cannot be made: {error}", path.display()))?;
        let (channel, batches) = sync_channel::<Vec<Item>>(WAITING);
        let mut writer = Writer::new(files, header, reasons, snaplen)?;
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
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
        if !same && let Some(cluster) = cluster {
            self.pending
                .push(Item::of(Record::Cluster(Arc::clone(cluster))));
            self.cluster = Some(Arc::clone(cluster));
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
        match channel.try_send(std::mem::take(&mut self.pending)) {
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
