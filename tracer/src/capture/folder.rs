//! A folder of captures that an always-on tracer keeps: each around a diagnosis, all together bounded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file::{Full, Options, Rotate, remove};
use super::ring::Trigger;

/// Time kept before a diagnosis and after it.
const BEFORE: Duration = Duration::from_secs(30);
const AFTER: Duration = Duration::from_secs(15);
/// Files that the newest half of the room is cut into.
const FILES: usize = 4;
/// The form of the time of a start in a file's name.
const TIME: &str = "20260101T000000Z";
/// Less room than this holds nothing useful, bytes.
pub const LEAST_ROOM: u64 = 8 << 20;

/// Makes room in a folder and says how to capture into it: a capture around every diagnosis, whose files
/// have half of `limit` bytes; the other half is for those of earlier starts, the oldest of which go. More
/// room is taken only where what every file begins with, the facts, is longer than a file may be.
///
/// # Errors
/// When the folder cannot be made or read, or an old capture not removed.
pub fn keep_in(folder: &Path, node: &str, limit: u64, now: SystemTime) -> io::Result<Options> {
    fs::create_dir_all(folder)?;
    let prefix = format!("tracer-{}-", node.replace('/', "_"));
    make_room(folder, &prefix, limit / 2)?;
    // A file that is nearly full gets what was kept before a diagnosis as a whole, and the entry behind it.
    let file = limit / 2 / FILES as u64;
    let before = (file / 2).min(Trigger::MOST as u64);
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let time = time.replace([':', '-'], "");
    Ok(Options {
        path: folder.join(format!("{prefix}{time}.pcapng")),
        rotate: Some(Rotate {
            full: Full::Bytes(file - before - file / 8),
            keep: FILES,
        }),
        trigger: Some(Trigger {
            cause: None,
            before: BEFORE,
            after: AFTER,
            most: usize::try_from(before).unwrap_or(Trigger::MOST),
        }),
        zstd: false,
        snaplen: None,
    })
}

/// Whether this is the time of a start, and perhaps the number of a file: other nodes' names may go on where
/// this node's ends.
fn is_start(text: &str) -> bool {
    let (time, number) = text.split_once('.').unwrap_or((text, ""));
    let digit = |byte: u8| byte.is_ascii_digit();
    time.len() == TIME.len()
        && (time.bytes().zip(TIME.bytes()))
            .all(|(found, form)| found == form || digit(found) && digit(form))
        && number.bytes().all(digit)
}

/// Removes this node's oldest captures until the rest has at most so many bytes.
fn make_room(folder: &Path, prefix: &str, most: u64) -> io::Result<()> {
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let own = name.to_str().and_then(|name| {
            let behind = name.strip_prefix(prefix)?;
            behind.strip_suffix(".pcapng")
        });
        if own.is_some_and(is_start) && entry.file_type()?.is_file() {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    // Their names hold the time.
    found.sort();
    let mut total: u64 = found.iter().map(|(_, bytes)| bytes).sum();
    for (path, bytes) in found {
        if total <= most {
            break;
        }
        remove(&path)?;
        total -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::file::Files;

    #[test]
    fn the_oldest_captures_of_this_node_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, bytes: usize| {
            fs::write(folder.path().join(name), vec![0; bytes]).expect("a file");
        };
        file("tracer-node-a-20260101T000000Z.00001.pcapng", 600);
        file("tracer-node-a-20260102T000000Z.00001.pcapng", 300);
        file("tracer-node-a-20260102T000000Z.00002.pcapng", 200);
        file("tracer-node-b-20250101T000000Z.00001.pcapng", 9000);
        // Nodes whose names begin as this one's.
        file("tracer-node-a-2-20250101T000000Z.00001.pcapng", 9000);
        file("tracer-node-a-20250101T000000.00001.pcapng", 9000);
        file("notes.txt", 9000);
        let options = keep_in(folder.path(), "node-a", 1000, SystemTime::UNIX_EPOCH).expect("room");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("the folder")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a name")
            })
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "notes.txt",
                "tracer-node-a-2-20250101T000000Z.00001.pcapng",
                "tracer-node-a-20250101T000000.00001.pcapng",
                "tracer-node-a-20260102T000000Z.00001.pcapng",
                "tracer-node-a-20260102T000000Z.00002.pcapng",
                "tracer-node-b-20250101T000000Z.00001.pcapng",
            ]
        );
        assert_eq!(
            options.path.file_name().and_then(|name| name.to_str()),
            Some("tracer-node-a-19700101T000000Z.pcapng")
        );
        let rotate = options.rotate.expect("a rotation");
        assert_eq!(rotate.full, Full::Bytes(48));
        let trigger = options.trigger.expect("a trigger");
        assert_eq!((trigger.cause, trigger.most), (None, 62));
    }

    /// Bytes of everything in a folder.
    fn bytes(folder: &Path) -> u64 {
        let entries = fs::read_dir(folder).expect("the folder");
        entries
            .map(|entry| {
                entry
                    .and_then(|entry| entry.metadata())
                    .expect("a file")
                    .len()
            })
            .sum()
    }

    #[test]
    fn diagnoses_one_after_the_other_stay_within_the_limit() {
        const ENTRY: usize = 16 << 10;
        let folder = tempfile::tempdir().expect("a folder");
        let old = folder.path().join("tracer-a-20260101T000000Z.pcapng");
        fs::write(old, vec![0; LEAST_ROOM as usize / 2]).expect("a file");
        let mut options =
            keep_in(folder.path(), "a", LEAST_ROOM, SystemTime::UNIX_EPOCH).expect("room");
        // The time after a diagnosis is over at once, so that the next one finds the ring in use.
        if let Some(trigger) = &mut options.trigger {
            trigger.after = Duration::ZERO;
        }
        let mut files = Files::create(options).expect("a file");
        let mut most = 0;
        // A little that does not fill a file, and then more than is kept.
        for entries in [20, 128].repeat(10) {
            for _ in 0..entries {
                files.write(&[1; ENTRY]).expect("room");
                if files.is_full() {
                    files.next().expect("the next");
                    files.begin(&[2; 100]).expect("room");
                }
            }
            files.fire("any").expect("room");
            files.flush().expect("room");
            most = most.max(bytes(folder.path()));
        }
        assert!(most <= LEAST_ROOM, "{most}");
        // And the room is used.
        assert!(most > LEAST_ROOM * 3 / 4, "{most}");
    }
}
