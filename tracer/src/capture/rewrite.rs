//! Writes a capture again out of records: filtered, anonymised, or joined from several.
//!
//! It is the live writer without a thread: events get their words anew, from the facts as they are now.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use super::error::Unmade;
use super::file::{Files, Options, Written};
use super::record::{Header, Record, Sighting};
use super::writer::Writer;
use crate::kernel::reasons::DropReasons;

/// Most entries that are taken before the writer looks what is ready.
const BATCH: usize = 4096;

/// A capture that is made of records.
pub struct Rewriter {
    writer: Writer,
    /// Name of the file.
    shown: String,
    taken: usize,
}

impl Rewriter {
    /// Makes the file, for its owner alone.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: PathBuf, header: Header) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let files = Files::create(Options {
            path,
            rotate: None,
            trigger: None,
            zstd: false,
            snaplen: None,
        })
        .map_err(Unmade)
        .with_context(|| shown.clone())?;
        let reasons: DropReasons = header.reasons.iter().cloned().collect();
        // What is there has been cut to what is to be kept: nothing is cut again.
        Ok(Self {
            writer: Writer::new(files, header, Arc::new(reasons), Some(usize::MAX))
                .with_context(|| shown.clone())?,
            shown,
            taken: 0,
        })
    }

    /// Adds an event. With `keep_number` its journey keeps the number it has.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn event(&mut self, sighting: Sighting, keep_number: bool) -> anyhow::Result<()> {
        if let Some(journey) = sighting.journey
            && keep_number
        {
            self.writer.number_next(journey);
        }
        self.writer.take_event(sighting.event, sighting.headers);
        self.taken()
    }

    /// Goes on with what follows a header: the same trace's next file, or another trace, which gets a section
    /// with its own clock and drop reasons.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn go_on_with(&mut self, header: Header) -> anyhow::Result<()> {
        self.writer
            .go_on_with(header)
            .with_context(|| self.shown.clone())
    }

    /// Adds what is no event.
    ///
    /// # Errors
    /// When the file cannot be written, or for what only the beginning of a file has.
    pub fn record(&mut self, record: Record) -> anyhow::Result<()> {
        match record {
            Record::Symbols(symbols) => self.writer.know(symbols),
            Record::Event(_) | Record::Packet(_) | Record::Header(_) => {
                anyhow::bail!("a record that is not written by itself")
            }
            other => self.writer.take_record(other),
        }
        self.taken()
    }

    fn taken(&mut self) -> anyhow::Result<()> {
        self.taken += 1;
        if self.taken.is_multiple_of(BATCH) {
            self.writer
                .write_ready(false)
                .with_context(|| self.shown.clone())?;
        }
        Ok(())
    }

    /// Writes what waits and ends the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> anyhow::Result<Written> {
        self.writer.finish().context(self.shown)
    }
}
