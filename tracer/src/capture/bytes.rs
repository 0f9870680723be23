//! The bytes of a capture, whatever they are wrapped in (gzip, zstd), in pieces of any length and with
//! their position.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::unpack::Unpacked;

/// Bytes asked for at once.
const CHUNK: usize = 1 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What a file is wrapped in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrapping {
    None,
    Gzip,
    Zstd,
}

/// A stream of bytes with a window on its next ones.
pub(super) struct Bytes {
    input: Box<dyn Read + Send>,
    window: Vec<u8>,
    /// Where in the window the next byte is.
    start: usize,
    /// How many bytes the window holds.
    end: usize,
    /// Position of `start` in the unwrapped stream.
    position: u64,
    wrapping: Wrapping,
}

impl Bytes {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::unwrap(File::open(path)?)
    }

    /// Looks what the bytes are wrapped in.
    pub(super) fn unwrap(mut input: impl Read + Send + 'static) -> io::Result<Self> {
        let mut magic = Vec::new();
        (&mut input).take(4).read_to_end(&mut magic)?;
        let wrapping = match magic.as_slice() {
            magic if magic.starts_with(&GZIP) => Wrapping::Gzip,
            magic if magic.starts_with(&ZSTD) => Wrapping::Zstd,
            _ => Wrapping::None,
        };
        let input = io::Cursor::new(magic).chain(input);
        let input: Box<dyn Read + Send> = match wrapping {
            Wrapping::None => Box::new(input),
            Wrapping::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(CHUNK, input))),
            Wrapping::Zstd => Box::new(Unpacked::new(BufReader::with_capacity(CHUNK, input))?),
        };
        Ok(Self {
            input,
            window: Vec::new(),
            start: 0,
            end: 0,
            position: 0,
            wrapping,
        })
    }

    /// The bytes on disk are others.
    pub(super) const fn is_packed(&self) -> bool {
        !matches!(self.wrapping, Wrapping::None)
    }

    /// Position of the next byte.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes without taking them: fewer than asked for only at the end. Memory grows with
    /// what is there, not with what is asked for.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.end - self.start < count {
            if self.start > 0 {
                self.window.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.window.len() - self.end < CHUNK {
                self.window.resize(self.end + CHUNK, 0);
            }
            let read = match self.input.read(&mut self.window[self.end..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if read == 0 {
                break;
            }
            self.end += read;
        }
        let end = self.end.min(self.start.saturating_add(count));
        Ok(&self.window[self.start..end])
    }

    /// The bytes of the window, once they were peeked at.
    pub(super) fn peeked(&self, count: usize) -> &[u8] {
        &self.window[self.start..self.end.min(self.start + count)]
    }

    /// Goes on behind bytes that were peeked at.
    pub(super) fn advance(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.position += count as u64;
    }
}
