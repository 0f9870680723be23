//! Files of a capture on disk: made for their owner alone, only appended to, rotated.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Stdout, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::lines::Lines;
use super::ring::{Ring, Trigger};

/// The path that stands for standard output, where the capture is written as lines.
pub const STANDARD_OUTPUT: &str = "-";

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file, or [`STANDARD_OUTPUT`]; with rotation a number goes before its ending.
    pub path: PathBuf,
    /// When to begin a new file.
    pub rotate: Option<Rotate>,
    /// Keep only what is around a diagnosis.
    pub trigger: Option<Trigger>,
    /// Compress everything.
    pub zstd: bool,
    /// Bytes kept of each packet; `None` keeps its headers.
    pub snaplen: Option<usize>,
}

/// When to begin a new file, and how many to keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rotate {
    /// When a file is full.
    pub full: Full,
    /// Files kept; the oldest goes first.
    pub keep: usize,
}

/// When a file is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// After so many bytes, before compression.
    Bytes(u64),
    /// After so much time.
    Time(Duration),
}

/// What was written.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Written {
    /// The files, those that were rotated away left out.
    pub files: Vec<PathBuf>,
    /// Events.
    pub events: u64,
    /// Bytes before compression.
    pub bytes: u64,
    /// How often a diagnosis fired, where that was waited for.
    pub fired: Option<u64>,
}

impl Written {
    /// In a line.
    pub fn words(&self) -> String {
        if self.fired == Some(0) {
            return "capture: no diagnosis fired, so nothing was kept".into();
        }
        let files: Vec<_> = self
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        format!(
            "capture {} · {} events, {} bytes",
            files.join(", "),
            self.events,
            self.bytes
        )
    }
}

/// Makes a file, or empties the one that is there, for its owner alone.
///
/// # Errors
/// When the system refuses.
pub fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    // One that was there before keeps its mode.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

/// The file that is being written.
enum Open {
    Plain(BufWriter<File>),
    Packed(Box<zstd::stream::Encoder<'static, BufWriter<File>>>),
    Lines(Lines<Stdout>),
}

impl Open {
    fn create(path: &Path, zstd: bool) -> io::Result<Self> {
        if path == Path::new(STANDARD_OUTPUT) {
            return Ok(Self::Lines(Lines::new(io::stdout())));
        }
        let file = BufWriter::with_capacity(1 << 18, create_private(path)?);
        Ok(if zstd {
            let mut packed = zstd::stream::Encoder::new(file, 3)?;
            packed.include_checksum(true)?;
            Self::Packed(Box::new(packed))
        } else {
            Self::Plain(file)
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Packed(file) => file.write_all(bytes),
            Self::Lines(lines) => lines.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Packed(file) => file.flush(),
            Self::Lines(lines) => lines.flush(),
        }
    }

    fn close(self) -> io::Result<()> {
        match self {
            Self::Plain(mut file) => file.flush(),
            Self::Packed(file) => file.finish()?.flush(),
            Self::Lines(mut lines) => lines.flush(),
        }
    }
}

/// Files of one capture.
pub(super) struct Files {
    ring: Option<Ring>,
    options: Options,
    open: Open,
    /// Those that exist, the oldest first.
    paths: VecDeque<PathBuf>,
    number: u64,
    /// Bytes of the open file.
    length: u64,
    /// Bytes of all.
    total: u64,
    begun: Instant,
}

impl Files {
    /// Makes the first file.
    pub(super) fn create(options: Options) -> io::Result<Self> {
        let path = numbered(&options, 1);
        Ok(Self {
            open: Open::create(&path, options.zstd)?,
            ring: options.trigger.clone().map(Ring::new),
            options,
            paths: VecDeque::from([path]),
            number: 1,
            length: 0,
            total: 0,
            begun: Instant::now(),
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(ring) = &mut self.ring
            && !ring.is_open()
        {
            ring.push(bytes);
            return Ok(());
        }
        self.length += bytes.len() as u64;
        self.total += bytes.len() as u64;
        self.open.write(bytes)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.open.flush()
    }

    /// A diagnosis was reached: what is kept for it goes to the file.
    pub(super) fn fire(&mut self, cause: &str) -> io::Result<()> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        for bytes in ring.fire(cause, Instant::now()) {
            self.length += bytes.len() as u64;
            self.total += bytes.len() as u64;
            self.open.write(&bytes)?;
        }
        Ok(())
    }

    /// True when a new file or piece has to begin.
    pub(super) fn is_full(&self) -> bool {
        let ring = self.ring.as_ref();
        ring.is_some_and(|ring| ring.is_due(Instant::now()))
            || ring.is_none_or(Ring::is_open) && self.file_is_full()
    }

    fn file_is_full(&self) -> bool {
        match self.options.rotate {
            None => false,
            Some(Rotate { full, .. }) => match full {
                Full::Bytes(bytes) => self.length >= bytes,
                Full::Time(time) => self.begun.elapsed() >= time,
            },
        }
    }

    /// Ends the file or piece and begins the next.
    pub(super) fn next(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if let Some(ring) = &mut self.ring
            && ring.is_due(now)
        {
            ring.begin(now);
            return self.open.flush();
        }
        self.rotate()
    }

    /// Ends the file and begins the next; the oldest goes where there are too many.
    fn rotate(&mut self) -> io::Result<()> {
        self.number += 1;
        let path = numbered(&self.options, self.number);
        let next = Open::create(&path, self.options.zstd)?;
        std::mem::replace(&mut self.open, next).close()?;
        self.paths.push_back(path);
        (self.length, self.begun) = (0, Instant::now());
        let keep = self.options.rotate.map_or(1, |rotate| rotate.keep.max(1));
        while self.paths.len() > keep
            && let Some(oldest) = self.paths.pop_front()
        {
            fs::remove_file(oldest)?;
        }
        Ok(())
    }

    /// Ends the last file.
    pub(super) fn close(self, events: u64) -> io::Result<Written> {
        self.open.close()?;
        let fired = self.ring.map(|ring| ring.fired);
        if fired == Some(0) {
            for path in &self.paths {
                fs::remove_file(path)?;
            }
        }
        Ok(Written {
            fired,
            files: if fired == Some(0) {
                Vec::new()
            } else {
                self.paths.into()
            },
            events,
            bytes: self.total,
        })
    }
}

/// The name of a file: with rotation a number goes before the ending.
fn numbered(options: &Options, number: u64) -> PathBuf {
    if options.rotate.is_none() {
        return options.path.clone();
    }
    let stem = options.path.file_stem().unwrap_or_default();
    let mut name = stem.to_owned();
    name.push(format!(".{number:05}"));
    if let Some(ending) = options.path.extension() {
        name.push(".");
        name.push(ending);
    }
    options.path.with_file_name(name)
}
