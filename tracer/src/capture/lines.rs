//! A capture as lines of JSON, for a way that carries text only: the log of a container. Each line says at
//! which byte it begins, so that whoever puts them together sees what is missing or comes twice.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// A line is written once it has so many bytes of the capture: far below what servers take.
const FULL: usize = 32 << 10;
const KIND: &str = "capture-bytes";

#[derive(Serialize, Deserialize)]
struct Line {
    r#type: String,
    /// Offset of its first byte in the capture.
    at: u64,
    base64: String,
}

/// Writes a capture as lines. A line holds whole blocks, so that a file which lacks one can be read.
pub(super) struct Lines<W> {
    out: W,
    at: u64,
    waiting: Vec<u8>,
}

impl<W: Write> Lines<W> {
    pub(super) const fn new(out: W) -> Self {
        Self {
            out,
            at: 0,
            waiting: Vec::new(),
        }
    }

    /// Takes whole blocks.
    pub(super) fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(blocks);
        if self.waiting.len() >= FULL {
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            let line = Line {
                r#type: KIND.into(),
                at: self.at,
                base64: STANDARD.encode(&self.waiting),
            };
            // In one piece: others write lines to the same place.
            let text = serde_json::to_string(&line)? + "\n";
            self.out.write_all(text.as_bytes())?;
            self.at += self.waiting.len() as u64;
            self.waiting.clear();
        }
        self.out.flush()
    }
}

/// A line read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    at: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    /// From a line; `None` for one that is no part of a capture.
    pub fn read(line: &str) -> Option<Self> {
        // Most lines are others', and long.
        if !line.contains(KIND) {
            return None;
        }
        let line: Line = serde_json::from_str(line).ok()?;
        let bytes = STANDARD.decode(&line.base64).ok()?;
        (line.r#type == KIND).then_some(Self { at: line.at, bytes })
    }
}

/// The capture of one node as far as it came.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ReceivedFile {
    /// The node.
    pub node: String,
    /// The file.
    pub path: PathBuf,
    /// Bytes in it.
    pub bytes: u64,
    /// Bytes that never came.
    pub missing: u64,
}

/// Captures of many nodes on their way into a folder, one file for each.
pub struct Received {
    folder: PathBuf,
    files: BTreeMap<String, (File, ReceivedFile)>,
}

impl Received {
    /// Makes the folder, where it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
        })
    }

    /// The file of a node.
    pub fn path(&self, node: &str) -> PathBuf {
        // A node's name is a DNS name; whatever a server says, nothing leaves the folder.
        self.folder
            .join(format!("{}.pcapng", node.replace('/', "_")))
    }

    /// A file that one of these nodes would overwrite.
    pub fn in_the_way<'a>(&self, nodes: impl Iterator<Item = &'a str>) -> Option<PathBuf> {
        nodes.map(|node| self.path(node)).find(|path| path.exists())
    }

    /// Puts a part of a node's capture where it belongs.
    ///
    /// # Errors
    /// When it cannot be written, or a file is in the way.
    pub fn take(&mut self, node: &str, chunk: &Chunk) -> io::Result<()> {
        if !self.files.contains_key(node) {
            let path = self.path(node);
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
            let received = ReceivedFile {
                node: node.to_owned(),
                path,
                bytes: 0,
                missing: 0,
            };
            self.files.insert(node.to_owned(), (file, received));
        }
        let Some((file, received)) = self.files.get_mut(node) else {
            return Ok(());
        };
        let expected = received.bytes.saturating_add(received.missing);
        let known = usize::try_from(expected.saturating_sub(chunk.at)).unwrap_or(usize::MAX);
        let fresh = chunk.bytes.get(known..).unwrap_or_default();
        received.missing = (received.missing).saturating_add(chunk.at.saturating_sub(expected));
        received.bytes += fresh.len() as u64;
        file.write_all(fresh)
    }

    /// What came of each node.
    pub fn finish(self) -> Vec<ReceivedFile> {
        self.files
            .into_values()
            .map(|(_, received)| received)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_goes_through_lines_and_gaps_are_counted() {
        let blocks: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte; 1000]).collect();
        let mut lines = Lines::new(Vec::new());
        for block in &blocks {
            lines.write(block).expect("memory");
        }
        lines.flush().expect("memory");
        lines.flush().expect("memory");
        let text = String::from_utf8(lines.out).expect("text");
        let chunks: Vec<Chunk> = text.lines().filter_map(Chunk::read).collect();
        assert_eq!(chunks.len(), text.lines().count());
        assert!(chunks.len() > 4 && chunks.iter().all(|chunk| chunk.bytes.len() % 1000 == 0));

        let folder = tempfile::tempdir().expect("a folder");
        let mut received = Received::new(folder.path()).expect("a folder");
        let nodes = ["node-a".to_owned(), "../node-b".to_owned()];
        assert_eq!(received.in_the_way(nodes.iter().map(String::as_str)), None);
        for chunk in chunks.iter().chain(&chunks[..1]) {
            received.take("node-a", chunk).expect("a file");
        }
        for (number, chunk) in chunks.iter().enumerate() {
            if number != 1 {
                received.take("../node-b", chunk).expect("a file");
            }
        }
        assert!(
            received
                .in_the_way(nodes.iter().map(String::as_str))
                .is_some()
        );
        let files = received.finish();
        let whole = blocks.concat();
        let [b, a] = &files[..] else {
            panic!("{files:?}");
        };
        assert_eq!((a.bytes, a.missing), (whole.len() as u64, 0));
        assert_eq!(fs::read(&a.path).expect("a file"), whole);
        assert_eq!(b.missing, chunks[1].bytes.len() as u64);
        assert_eq!(b.path.parent(), Some(folder.path()));
        // A place that no capture has is survived.
        let far = Chunk {
            at: u64::MAX,
            bytes: vec![1; 8],
        };
        let mut wrong = Received::new(folder.path()).expect("a folder");
        for _ in 0..2 {
            wrong.take("node-c", &far).expect("a file");
        }
        // Nothing is overwritten.
        let mut again = Received::new(folder.path()).expect("a folder");
        assert!(again.take("node-a", &chunks[0]).is_err());
    }

    #[test]
    fn other_lines_are_no_part_of_it() {
        for line in [
            "",
            "{\"type\": \"ready\"}",
            "capture-bytes",
            "{\"type\": \"capture-bytes\", \"at\": 0, \"base64\": \"!\"}",
        ] {
            assert_eq!(Chunk::read(line), None, "{line}");
        }
    }
}
