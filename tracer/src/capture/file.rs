//! Files of a capture on disk: made for their owner alone, only appended to, rotated.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::open::Open;
use super::ring::{Ring, Trigger};

/// How often the disk is waited for: with what waits before it bounds what a power loss costs. Only the
/// capture's own thread waits.
const SYNC: Duration = Duration::from_secs(1);

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
    /// Why a file that had to go is still there.
    pub not_removed: Option<String>,
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
        let not_removed = self.not_removed.as_ref();
        format!(
            "capture {} · {} events, {} bytes{}",
            files.join(", "),
            self.events,
            self.bytes,
            not_removed.map_or_else(String::new, |why| format!(" · {why}"))
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
    // One that was there before keeps its mode; that of a device is everybody's.
    if file.metadata()?.is_file() {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    }
    Ok(file)
}

/// Removes a file; one that somebody else removed is as good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            format!("{} cannot be removed: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}

/// Files of one capture.
pub(super) struct Files {
    ring: Option<Ring>,
    options: Options,
    open: Open,
    /// Those of earlier traces of the same name, the oldest first.
    earlier: VecDeque<PathBuf>,
    /// Those that exist, the oldest first.
    paths: VecDeque<PathBuf>,
    number: u64,
    /// Bytes of the open file.
    length: u64,
    /// Bytes that the newest file or piece began with.
    beginning: usize,
    not_removed: Option<String>,
    /// Bytes of all.
    total: u64,
    begun: Instant,
    /// When the disk was last waited for.
    synced: Instant,
}

impl Files {
    /// Makes the first file, behind those of earlier traces where it rotates.
    pub(super) fn create(options: Options) -> io::Result<Self> {
        let earlier = earlier(&options)?;
        let number = earlier
            .last_key_value()
            .map_or(1, |(last, _)| last.saturating_add(1));
        let path = numbered(&options, number);
        let mut files = Self {
            open: Open::create(&path, options.zstd)?,
            ring: options.trigger.clone().map(Ring::new),
            options,
            earlier: earlier.into_values().collect(),
            paths: VecDeque::from([path]),
            number,
            length: 0,
            beginning: 0,
            not_removed: None,
            total: 0,
            begun: Instant::now(),
            synced: Instant::now(),
        };
        files.remove_oldest();
        Ok(files)
    }

    /// Writes what a file or piece begins with.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.beginning = bytes.len();
        self.write(bytes)
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

    /// Hands over to the system what waits here, and now and then waits for the disk.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.open.flush()?;
        if self.synced.elapsed() >= SYNC {
            self.open.sync()?;
            self.synced = Instant::now();
        }
        Ok(())
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
        self.piece_is_full(Instant::now())
            || self.ring.as_ref().is_none_or(Ring::is_open) && self.file_is_full()
    }

    /// One that holds hardly more than it began with is not full: facts of a big cluster would be written
    /// again and again, and nothing else.
    const fn least(&self) -> usize {
        self.beginning.saturating_mul(2)
    }

    fn piece_is_full(&self, now: Instant) -> bool {
        let ring = self.ring.as_ref();
        ring.is_some_and(|ring| ring.is_due(now, self.least()))
    }

    fn file_is_full(&self) -> bool {
        match self.options.rotate {
            None => false,
            Some(Rotate { full, .. }) => match full {
                Full::Bytes(bytes) => self.length >= bytes.max(self.least() as u64),
                Full::Time(time) => self.begun.elapsed() >= time,
            },
        }
    }

    /// Ends the file or piece and begins the next.
    pub(super) fn next(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.piece_is_full(now)
            && let Some(ring) = &mut self.ring
        {
            let was_open = ring.is_open();
            ring.begin(now);
            // The next diagnosis has to find room for all that comes before it.
            if !was_open || !self.file_is_full() {
                return self.flush();
            }
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
        self.remove_oldest();
        Ok(())
    }

    /// Removes files where there are too many, those of earlier traces first. What cannot go now is tried
    /// again with the next file; the capture goes on.
    fn remove_oldest(&mut self) {
        let keep = self.options.rotate.map_or(1, |rotate| rotate.keep.max(1));
        let mut excess = (self.earlier.len() + self.paths.len()).saturating_sub(keep);
        self.not_removed = None;
        for files in [&mut self.earlier, &mut self.paths] {
            let count = excess.min(files.len());
            excess -= count;
            let mut oldest: Vec<PathBuf> = files.drain(..count).collect();
            oldest.retain(|path| {
                let removed = remove(path);
                if let Err(error) = &removed {
                    self.not_removed = Some(error.to_string());
                }
                removed.is_err()
            });
            for path in oldest.into_iter().rev() {
                files.push_front(path);
            }
        }
    }

    /// Ends the last file.
    pub(super) fn close(mut self, events: u64) -> io::Result<Written> {
        self.open.close()?;
        // What no diagnosis came for holds nothing.
        if self.ring.is_some()
            && self.length == 0
            && let Some(path) = self.paths.pop_back()
        {
            self.not_removed = remove(&path).err().map(|error| error.to_string());
        }
        Ok(Written {
            fired: self.ring.map(|ring| ring.fired),
            files: self.paths.into(),
            events,
            bytes: self.total,
            not_removed: self.not_removed,
        })
    }
}

/// Files that earlier traces of the same name rotated, by their numbers.
fn earlier(options: &Options) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    if options.rotate.is_none() {
        return Ok(found);
    }
    let folder = options.path.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        // The number is what the name ends with but for its own ending.
        let stem = Path::new(&name).file_stem().unwrap_or_default();
        let ending = Path::new(if options.path.extension().is_some() {
            stem
        } else {
            &name
        });
        let digits = ending.extension().and_then(|digits| digits.to_str());
        let Some(number) = digits.and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        let path = numbered(options, number);
        if path.file_name() == Some(&name) {
            found.insert(number, path);
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FULL: u64 = 1000;

    fn files(folder: &Path) -> Files {
        Files::create(Options {
            path: folder.join("x.pcapng"),
            rotate: Some(Rotate {
                full: Full::Bytes(FULL),
                keep: 2,
            }),
            trigger: None,
            zstd: false,
            snaplen: None,
        })
        .expect("a file")
    }

    /// Fills one file after another.
    fn fill(files: &mut Files, count: usize) {
        for _ in 0..count {
            files.write(&[1; FULL as usize]).expect("room");
            assert!(files.is_full());
            files.next().expect("the next file");
        }
    }

    #[test]
    fn a_capture_removed_by_hand_ends_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = files(folder.path());
        fill(&mut files, 1);
        fs::remove_file(folder.path().join("x.00001.pcapng")).expect("it was there");
        fill(&mut files, 3);
        let written = files.close(0).expect("an end");
        assert_eq!((written.files.len(), written.not_removed), (2, None));
    }

    #[test]
    fn what_cannot_be_removed_is_said_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = files(folder.path());
        fill(&mut files, 1);
        // A folder is no file, whoever asks.
        let stuck = folder.path().join("x.00001.pcapng");
        fs::remove_file(&stuck).expect("it was there");
        fs::create_dir(&stuck).expect("a folder");
        fill(&mut files, 4);
        let written = files.close(0).expect("an end");
        assert_eq!(written.files.len(), 3, "{:?}", written.files);
        let why = written.not_removed.clone().expect("why");
        assert!(why.contains("x.00001.pcapng"), "{why}");
        assert!(written.words().contains(&why));
    }

    #[test]
    fn a_file_holds_more_than_it_began_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = files(folder.path());
        let long = 2 * FULL as usize;
        files.begin(&vec![1; long]).expect("room");
        assert!(!files.is_full());
        files.write(&vec![1; long]).expect("room");
        assert!(files.is_full());
    }

    #[test]
    fn a_file_becomes_its_owners_alone_and_a_device_stays_everybodys() {
        let mode = |path: &Path| {
            let metadata = fs::metadata(path).expect("a file");
            metadata.permissions().mode() & 0o777
        };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("old.pcapng");
        fs::write(&file, "").expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
        create_private(&file).expect("a file");
        assert_eq!(mode(&file), 0o600);
        let device = Path::new("/dev/full");
        let before = mode(device);
        create_private(device).expect("a device");
        assert_eq!(mode(device), before);
    }

    #[test]
    fn the_disk_is_waited_for_every_second() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut files = files(folder.path());
        let before = files.synced;
        files.write(b"something").expect("room");
        files.flush().expect("room");
        assert_eq!(files.synced, before);
        files.synced = before.checked_sub(SYNC).expect("a machine that is up");
        files.flush().expect("room");
        assert!(files.synced >= before);
    }

    #[test]
    fn rotation_goes_on_behind_what_earlier_traces_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = || {
            let entries = fs::read_dir(folder.path()).expect("a folder");
            let mut names: Vec<_> = entries
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            names.sort();
            names
        };
        for (name, others) in [
            (
                "n.pcapng",
                ["n.7.pcapng", "n.00009.other", "m.00009.pcapng"],
            ),
            ("bare", ["bare.9", "bare.00009.pcapng", "other.00009"]),
        ] {
            for name in others {
                fs::write(folder.path().join(name), "").expect("a file");
            }
            let options = |trigger| Options {
                path: folder.path().join(name),
                rotate: Some(Rotate {
                    full: Full::Bytes(1),
                    keep: 3,
                }),
                trigger,
                zstd: false,
                snaplen: None,
            };
            let left = |numbers: [u64; 3]| {
                let paths = numbers.map(|number| numbered(&options(None), number));
                paths.map(|path| path.file_name().expect("a name").to_owned())
            };
            let trace = |bytes: &[u8], rotations: usize| {
                let mut files = Files::create(options(None)).expect("a file");
                files.write(bytes).expect("room");
                for _ in 0..rotations {
                    files.rotate().expect("the next file");
                    files.write(bytes).expect("room");
                }
                files.close(0).expect("room").files
            };
            assert_eq!(trace(b"first", 1).len(), 2);
            // The one before is still there, and counts.
            let written = trace(b"second", 1);
            assert_eq!(
                written,
                [3, 4].map(|number| numbered(&options(None), number))
            );
            assert!(left([2, 3, 4]).iter().all(|name| names().contains(name)));
            let second = fs::read(numbered(&options(None), 2)).expect("a file");
            assert_eq!(second, b"first");
            assert!(!names().contains(&left([1, 1, 1])[0]));
            // A trace that keeps nothing leaves what earlier ones kept, but for the room that it needed.
            let trigger = Trigger {
                cause: None,
                before: Duration::ZERO,
                after: Duration::ZERO,
                most: Trigger::MOST,
            };
            let files = Files::create(options(Some(trigger))).expect("a file");
            assert!(files.close(0).expect("room").files.is_empty());
            let kept = left([3, 4, 4]);
            assert!(kept.iter().all(|name| names().contains(name)));
            for name in others {
                assert!(names().iter().any(|there| there == name), "{name}");
            }
        }
    }
}
