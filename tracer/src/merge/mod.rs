//! Joins captures of several nodes: a packet that leaves one and arrives at another is one journey.
//!
//! Map: `sight` reads each capture once and notes where packets leave its node and where they come from
//! elsewhere; `clock` finds from packets that two nodes saw how far their clocks are apart, and how sure
//! that is; `pair` says which arrival goes on with which departure; `weave` reads all captures again, in the
//! order of one clock, and gives both halves of a packet one skb, so that the tracker joins them as it
//! does on one machine; `space` keeps apart what two nodes number alike (namespaces, skbs, functions, drop
//! reasons); `facts` puts what is known of the nodes side by side.
//!
//! Invariants: nothing is guessed: a packet is joined only when what NAT and tunnels leave alone is
//! equal and the times allow it. A clock that cannot be told is left as it is, and that is said.

mod clock;
mod facts;
mod pair;
mod sight;
mod space;
#[cfg(test)]
mod tests;
mod weave;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use crate::capture::{ReadError, Reader, Written};

pub use clock::Offset;

/// What became of one capture.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Joined {
    /// The file.
    pub file: PathBuf,
    /// The machine.
    pub node: String,
    /// Its clock less that of the first capture, nanoseconds; `None` where no packets tell.
    pub offset_ns: Option<i64>,
    /// The offset is right within so much; `None` where packets were seen to go one way only.
    pub error_ns: Option<u64>,
    /// Packets that this capture and another one saw.
    pub pairs: u64,
    /// Packets whose way goes on in this capture.
    pub joined: u64,
}

impl Joined {
    /// In a line, without the file.
    pub fn words(&self) -> String {
        let clock = match (self.offset_ns, self.error_ns) {
            (Some(0), Some(0)) => "its clock is the one that counts".into(),
            (Some(offset), Some(error)) => format!(
                "clock {} µs, ± {} µs",
                signed(offset / 1000),
                error.div_ceil(1000)
            ),
            (Some(offset), None) => format!(
                "clock {} µs at most: packets went one way only",
                signed(offset / 1000)
            ),
            (None, _) => "clock as it is: no packet of it was seen elsewhere".into(),
        };
        format!(
            "{} · {clock} · {} packets seen twice, {} joined",
            self.node, self.pairs, self.joined
        )
    }
}

fn signed(number: i64) -> String {
    format!("{number:+}")
}

/// What a merge came to.
pub struct Merged {
    /// Each capture, in the order given.
    pub joined: Vec<Joined>,
    /// What was written.
    pub written: Written,
    /// Captures that are damaged, and how; what is before the damage is in the result.
    pub damaged: Vec<(PathBuf, ReadError)>,
}

/// Joins captures of the tracer into one. `progress` is told now and then how many bytes were read: all
/// captures are read twice.
///
/// # Errors
/// When one cannot be opened or is another program's, or the result cannot be written.
pub fn merge(
    files: &[PathBuf],
    out: &Path,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Merged> {
    let mut read = 0;
    let mut sights = Vec::with_capacity(files.len());
    for file in files {
        let mut reader = open(file)?;
        let sight = sight::look(&mut reader, |position| progress(read + position));
        sights.push(sight.with_context(|| file.display().to_string())?);
        read += reader.position();
    }
    let offsets = clock::offsets(&sights);
    let pairs = pair::pairs(&sights, &offsets);
    let joined = (files.iter().zip(&sights).zip(&offsets).enumerate())
        .map(|(number, ((file, sight), offset))| Joined {
            file: file.clone(),
            node: sight.header.node.clone(),
            offset_ns: offset.clock_ns,
            error_ns: offset.error_ns,
            pairs: offset.pairs,
            joined: pairs.joined_in(number),
        })
        .collect();
    let readers = files
        .iter()
        .map(|file| open(file))
        .collect::<Result<_, _>>()?;
    let (written, errors) = weave::weave(readers, &sights, &offsets, &pairs, out, |position| {
        progress(read + position)
    })?;
    let damaged = files.iter().cloned().zip(errors);
    Ok(Merged {
        joined,
        written,
        damaged: damaged
            .filter_map(|(file, error)| Some((file, error?)))
            .collect(),
    })
}

fn open(file: &Path) -> anyhow::Result<Reader> {
    Reader::open(file).with_context(|| file.display().to_string())
}
