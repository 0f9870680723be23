//! Where facts come from: this machine, or a capture that holds what was read when.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Directory, NetnsHandle, Snapshot};

/// Why facts were read. A replay hands out what was read on the same occasion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Occasion {
    /// New namespaces needed names.
    Names,
    /// Packets met rules.
    Rules,
    /// A diagnosis was due.
    Diagnosis,
}

/// Facts, and what they were read for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reading {
    /// What for.
    pub occasion: Occasion,
    /// What was read.
    pub facts: Arc<Snapshot>,
}

/// Where facts come from.
pub enum Source {
    /// This machine.
    Live {
        /// Namespaces that no process and no name leads to.
        held: Vec<NetnsHandle>,
        /// Readings that nobody has taken yet.
        made: Vec<Reading>,
    },
    /// A capture: what was read, in order, and not yet asked for.
    Recorded(VecDeque<Reading>),
}

impl Source {
    /// This machine, with namespaces that are held open.
    pub const fn live(held: Vec<NetnsHandle>) -> Self {
        Self::Live {
            held,
            made: Vec::new(),
        }
    }

    /// A capture.
    pub const fn recorded() -> Self {
        Self::Recorded(VecDeque::new())
    }

    /// Facts are read on this machine.
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }

    /// Other namespaces are held open from now on.
    pub(crate) fn hold(&mut self, namespaces: Vec<NetnsHandle>) {
        if let Self::Live { held, .. } = self {
            *held = namespaces;
        }
    }

    /// The namespaces of this machine; none of a capture.
    pub(crate) fn directory(&self) -> Option<Directory> {
        let Self::Live { held, .. } = self else {
            return None;
        };
        let mut directory = Directory::find();
        for handle in held {
            directory.add(handle.clone());
        }
        Some(directory)
    }

    /// Notes what was read on this machine.
    pub(crate) fn note(&mut self, occasion: Occasion, facts: &Arc<Snapshot>) {
        if let Self::Live { made, .. } = self {
            made.push(Reading {
                occasion,
                facts: Arc::clone(facts),
            });
        }
    }

    /// The readings made since the last call.
    pub fn take_made(&mut self) -> Vec<Reading> {
        match self {
            Self::Live { made, .. } => std::mem::take(made),
            Self::Recorded(_) => Vec::new(),
        }
    }

    /// The newest recorded reading of an occasion. Older ones are passed over: a live trace also reads when
    /// it has nothing to tell yet, and a replay asks only when it tells.
    pub(crate) fn next(&mut self, occasion: Occasion) -> Option<Arc<Snapshot>> {
        let Self::Recorded(readings) = self else {
            return None;
        };
        let at = readings
            .iter()
            .rposition(|reading| reading.occasion == occasion)?;
        readings
            .drain(..=at)
            .next_back()
            .map(|reading| reading.facts)
    }

    /// The last recorded reading, where some were not asked for.
    pub(crate) fn rest(&mut self) -> Option<Arc<Snapshot>> {
        match self {
            Self::Live { .. } => None,
            Self::Recorded(readings) => readings.drain(..).next_back().map(|reading| reading.facts),
        }
    }

    /// Adds what a capture holds.
    pub fn add(&mut self, reading: Reading) {
        if let Self::Recorded(readings) = self {
            readings.push_back(reading);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_gets_what_was_read_on_the_same_occasion() {
        let mut source = Source::recorded();
        let facts = |number| {
            let mut facts = Snapshot::empty();
            facts.taken_ns = Some(number);
            Arc::new(facts)
        };
        for (number, occasion) in [
            (1, Occasion::Rules),
            (2, Occasion::Names),
            (3, Occasion::Diagnosis),
            (4, Occasion::Names),
            (5, Occasion::Names),
            (6, Occasion::Rules),
        ] {
            let facts = facts(number);
            source.add(Reading { occasion, facts });
        }
        assert_eq!(source.next(Occasion::Diagnosis), Some(facts(3)));
        assert_eq!(source.next(Occasion::Diagnosis), None);
        // Nobody asked when the fourth was read.
        assert_eq!(source.next(Occasion::Names), Some(facts(5)));
        assert_eq!(source.rest(), Some(facts(6)));
        assert_eq!(source.rest(), None);
    }
}
