//! Takes raw events out of the ring buffer and counts what was lost.

use aya::maps::{MapData, PerCpuArray, RingBuf};
use tracer_ebpf::event::{Event, Lost};

/// The consuming end of the ring buffer.
pub struct Ring {
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    /// Entries whose size was not that of an event.
    malformed: u64,
    /// Of the buffer.
    bytes: u32,
}

/// Bytes that the kernel puts before each entry (`BPF_RINGBUF_HDR_SZ`).
const ENTRY_HEADER: usize = 8;

/// Events lost since the start, per cause.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct LostCounts(Vec<(&'static str, u64)>);

impl LostCounts {
    /// Each cause with a count above zero.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }

    /// All causes together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }
}

impl Ring {
    pub(super) const fn new(
        events: RingBuf<MapData>,
        lost: PerCpuArray<MapData, u64>,
        bytes: u32,
    ) -> Self {
        Self {
            events,
            lost,
            malformed: 0,
            bytes,
        }
    }

    /// Events that fit.
    pub const fn room(&self) -> u64 {
        self.bytes as u64 / (size_of::<Event>() + ENTRY_HEADER) as u64
    }

    /// Takes what is there, at most `limit` events; returns how many were taken.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&Event)) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(entry) = self.events.next() else {
                break;
            };
            if entry.len() == size_of::<Event>() {
                // SAFETY: the length is that of an event, an event is plain data, and the read does
                // not ask for alignment.
                take(&unsafe { entry.as_ptr().cast::<Event>().read_unaligned() });
            } else {
                self.malformed += 1;
            }
            taken += 1;
        }
        taken
    }

    /// What was lost so far; what cannot be read is no proof that nothing was.
    pub fn lost(&self) -> LostCounts {
        let mut counts = Vec::new();
        for cause in Lost::ALL {
            let values = self.lost.get(&(cause as u32), 0);
            counts.push(values.map_or(("count that cannot be read", 1), |values| {
                (cause.name(), values.iter().sum())
            }));
        }
        counts.push(("entry of unknown size", self.malformed));
        counts.retain(|&(_, count)| count > 0);
        LostCounts(counts)
    }
}
