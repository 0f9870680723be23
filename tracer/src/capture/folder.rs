//! A folder of captures that an always-on tracer keeps: each around a diagnosis, all together bounded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file::{Full, Options, Rotate};
use super::ring::Trigger;

/// Time kept before a diagnosis and after it.
const BEFORE: Duration = Duration::from_secs(30);
const AFTER: Duration = Duration::from_secs(15);
/// Files that the newest half of the room is cut into.
const FILES: usize = 4;
/// Less room than this holds nothing useful, bytes.
pub const LEAST_ROOM: u64 = 8 << 20;

/// Makes room in a folder and says how to capture into it: a capture around every diagnosis, whose files
/// have half of `limit` bytes; the other half is for those of earlier starts, the oldest of which go. What
/// comes at once, for one diagnosis, is not cut.
///
/// # Errors
/// When the folder cannot be made or read, or an old capture not removed.
pub fn keep_in(folder: &Path, node: &str, limit: u64, now: SystemTime) -> io::Result<Options> {
    fs::create_dir_all(folder)?;
    let half = limit / 2;
    let prefix = format!("tracer-{}-", node.replace('/', "_"));
    make_room(folder, &prefix, half)?;
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let time = time.replace([':', '-'], "");
    Ok(Options {
        path: folder.join(format!("{prefix}{time}.pcapng")),
        rotate: Some(Rotate {
            full: Full::Bytes(half / FILES as u64),
            keep: FILES,
        }),
        trigger: Some(Trigger {
            cause: None,
            before: BEFORE,
            after: AFTER,
        }),
        zstd: false,
        snaplen: None,
    })
}

/// Removes this node's oldest captures until the rest has at most so many bytes.
fn make_room(folder: &Path, prefix: &str, most: u64) -> io::Result<()> {
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let own = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(prefix) && name.ends_with(".pcapng"));
        if own && entry.file_type()?.is_file() {
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
        fs::remove_file(path)?;
        total -= bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(rotate.full, Full::Bytes(125));
        assert!(
            options
                .trigger
                .is_some_and(|trigger| trigger.cause.is_none())
        );
    }
}
