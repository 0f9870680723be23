//! The last while of a trace in memory, written out when a diagnosis fires.
//!
//! It is cut into pieces that each say all they need, so any run of them is a capture.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pieces that the time before a diagnosis, and the room for it, are cut into.
const PIECES: u32 = 8;

/// When to keep what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// Code of the cause that fires; `None` for any.
    pub cause: Option<String>,
    /// Time kept before it.
    pub before: Duration,
    /// Time kept after it.
    pub after: Duration,
    /// Most bytes kept before it, whatever the time: the oldest go early beyond it.
    pub most: usize,
}

impl Trigger {
    /// What is kept in memory at most.
    pub const MOST: usize = 256 << 20;
}

struct Piece {
    begun: Instant,
    bytes: Vec<u8>,
}

/// The last while.
pub(super) struct Ring {
    trigger: Trigger,
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Everything goes to the file until then.
    until: Option<Instant>,
    pub(super) fired: u64,
}

impl Ring {
    pub(super) fn new(trigger: Trigger) -> Self {
        Self {
            trigger,
            pieces: VecDeque::new(),
            bytes: 0,
            until: None,
            fired: 0,
        }
    }

    /// True while bytes go to the file.
    pub(super) const fn is_open(&self) -> bool {
        self.until.is_some()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.pieces.is_empty() {
            self.begin(Instant::now());
        }
        if let Some(piece) = self.pieces.back_mut() {
            piece.bytes.extend_from_slice(bytes);
            self.bytes += bytes.len();
        }
        while self.bytes > self.trigger.most && self.pieces.len() > 1 {
            self.drop_oldest();
        }
    }

    /// True when the piece is long enough, or the time after a diagnosis is over. One with fewer bytes
    /// than `least` is never too big.
    pub(super) fn is_due(&self, now: Instant, least: usize) -> bool {
        match (self.until, self.pieces.back()) {
            (Some(until), _) => now >= until,
            (None, Some(piece)) => {
                let big = (self.trigger.most / PIECES as usize).max(least);
                now.duration_since(piece.begun) >= self.trigger.before / PIECES
                    || piece.bytes.len() >= big
            }
            (None, None) => false,
        }
    }

    /// Begins a piece; those that are too old go.
    pub(super) fn begin(&mut self, now: Instant) {
        self.until = None;
        self.pieces.push_back(Piece {
            begun: now,
            bytes: Vec::new(),
        });
        // A piece is needed until the one behind it is old enough by itself.
        while self.pieces.len() > 1
            && now.duration_since(self.pieces[1].begun) >= self.trigger.before
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.bytes.len();
        }
    }

    /// A diagnosis was reached: gives what there is when it fires.
    pub(super) fn fire(&mut self, cause: &str, now: Instant) -> Vec<Vec<u8>> {
        let wanted = self.trigger.cause.as_deref();
        if wanted.is_some_and(|wanted| wanted != cause) {
            return Vec::new();
        }
        self.fired += 1;
        self.until = Some(now + self.trigger.after);
        self.bytes = 0;
        self.pieces.drain(..).map(|piece| piece.bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(cause: Option<&str>) -> Ring {
        Ring::new(Trigger {
            cause: cause.map(str::to_owned),
            before: Duration::from_secs(8),
            after: Duration::from_secs(3),
            most: 8000,
        })
    }

    #[test]
    fn the_room_is_kept_and_what_is_in_it_is_the_newest() {
        let mut ring = ring(None);
        let now = Instant::now();
        for number in 0..100u8 {
            ring.push(&[number; 200]);
            if ring.is_due(now, 0) {
                ring.begin(now);
            }
        }
        let kept = ring.fire("any", now).concat();
        assert!((6000..=8000).contains(&kept.len()), "{}", kept.len());
        assert!(kept.is_sorted() && kept.last() == Some(&99));
        // What a piece begins with leaves room for something else.
        ring.begin(now);
        ring.push(&[0; 2000]);
        assert!(ring.is_due(now, 0) && !ring.is_due(now, 4000));
    }

    #[test]
    fn only_the_last_while_is_kept() {
        let mut ring = ring(None);
        let start = Instant::now();
        for second in 0..20u8 {
            ring.begin(start + Duration::from_secs(u64::from(second)));
            ring.push(&[second]);
        }
        let kept = ring.fire("any", start + Duration::from_secs(20)).concat();
        // Eight seconds, and the piece that they begin in.
        assert_eq!(kept, (11..20).collect::<Vec<u8>>());
    }

    #[test]
    fn the_wanted_cause_alone_fires() {
        let mut ring = ring(Some("no-route"));
        let now = Instant::now();
        ring.push(b"before");
        assert!(ring.fire("rp-filter", now).is_empty() && !ring.is_open());
        assert_eq!(ring.fire("no-route", now), [b"before"]);
        assert!(ring.is_open());
        assert!(!ring.is_due(now + Duration::from_secs(2), 0));
        assert!(ring.is_due(now + Duration::from_secs(3), 0));
        assert_eq!(ring.fired, 1);
    }
}
