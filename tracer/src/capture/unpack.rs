//! Unpacking of zstd that uses everything before damage. A call into the library that meets damage gives
//! nothing of what it unpacked before it, so no call gets more than one block.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{Decoder, Operation as _};

/// The library asks for a block together with the head of the next one, which is so long.
const BLOCK_HEAD: usize = 3;

/// A stream of zstd frames, unpacked.
pub(super) struct Unpacked<R> {
    input: R,
    decoder: Decoder<'static>,
    /// Bytes that the library asks for next; 0 between frames.
    wanted: usize,
    /// The last block may not have found room as a whole.
    full: bool,
}

impl<R: BufRead> Unpacked<R> {
    pub(super) fn new(input: R) -> io::Result<Self> {
        Ok(Self {
            input,
            decoder: Decoder::new()?,
            wanted: 0,
            full: false,
        })
    }

    /// The rest of the block before, else what comes next; `None` at the end.
    fn step(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        let step = if self.full {
            self.decoder.run_on_buffers(&[], out)?
        } else {
            let there = self.input.fill_buf()?;
            if there.is_empty() {
                return match self.wanted {
                    0 => Ok(None),
                    _ => Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file ends within a zstd frame",
                    )),
                };
            }
            let block = match self.wanted {
                0..=BLOCK_HEAD => self.wanted.max(1),
                wanted => wanted - BLOCK_HEAD,
            };
            let block = &there[..block.min(there.len())];
            let step = self.decoder.run_on_buffers(block, out)?;
            self.input.consume(step.bytes_read);
            step
        };
        self.wanted = step.remaining;
        self.full = step.remaining > 0 && step.bytes_written == out.len();
        Ok(Some(step.bytes_written))
    }
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.step(out)? {
                Some(0) => {}
                Some(count) => return Ok(count),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zstd::stream::raw::Status;

    use super::*;

    /// All that comes before damage.
    fn before_damage(mut input: impl Read, room: usize) -> (Vec<u8>, bool) {
        let (mut all, mut room) = (Vec::new(), vec![0; room]);
        loop {
            match input.read(&mut room) {
                Ok(0) => return (all, false),
                Ok(count) => all.extend(&room[..count]),
                Err(_) => return (all, true),
            }
        }
    }

    /// The same, of the library given one byte at a time, with room for any block.
    fn byte_by_byte(packed: &[u8]) -> Vec<u8> {
        let mut decoder = Decoder::new().expect("memory");
        let (mut all, mut room) = (Vec::new(), vec![0; 1 << 20]);
        for byte in packed {
            match decoder.run_on_buffers(&[*byte], &mut room) {
                Ok(Status { bytes_written, .. }) => all.extend(&room[..bytes_written]),
                Err(_) => break,
            }
        }
        all
    }

    #[test]
    fn everything_before_damage_is_unpacked() {
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let packed = std::fs::read(captures.join("vip-nodeport-unbound.pcapng")).expect("a file");
        let whole = zstd::stream::decode_all(&*packed).expect("no damage");
        for room in [1000, 1 << 20] {
            let unpacked = Unpacked::new(&*packed).expect("memory");
            assert_eq!(before_damage(unpacked, room), (whole.clone(), false));
        }
        // Only the checksum behind the last block is wrong.
        let last = packed.len() - 1;
        for at in [last, packed.len() * 9 / 10, packed.len() / 2] {
            let mut damaged = packed.clone();
            damaged[at] ^= 0xff;
            let expected = byte_by_byte(&damaged);
            assert!(!expected.is_empty(), "byte {at}");
            assert_eq!(at == last, expected == whole, "byte {at}");
            for room in [1000, 1 << 20] {
                let unpacked = Unpacked::new(&*damaged).expect("memory");
                let (found, wrong) = before_damage(unpacked, room);
                assert_eq!(found.len(), expected.len(), "byte {at}");
                assert!(found == expected && wrong);
            }
        }
        let (found, wrong) = before_damage(Unpacked::new(&packed[..last]).expect("memory"), 1000);
        assert!(found == whole && wrong);
    }

    #[test]
    fn frames_behind_each_other_are_one_stream() {
        let frame = |text: &[u8]| zstd::stream::encode_all(text, 1).expect("memory");
        let frames = [frame(b"one"), frame(b""), frame(&[7; 300_000])].concat();
        let (found, wrong) = before_damage(Unpacked::new(&*frames).expect("memory"), 1 << 17);
        assert!(found == [&b"one"[..], &[7; 300_000]].concat() && !wrong);
    }
}
