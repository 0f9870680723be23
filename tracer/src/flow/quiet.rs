//! Flows in about the order in which they fell quiet.

use std::collections::VecDeque;

/// A queue of flows. Hearing of a flow costs nothing here: one that was heard of since it was queued
/// goes to the back when its turn comes, so that taking one out is paid for by what was heard.
#[derive(Default)]
pub(super) struct Quiet(VecDeque<Turn>);

struct Turn {
    flow: u64,
    heard_ns: u64,
}

impl Quiet {
    /// Adds a flow that was last heard of at this time.
    pub(super) fn push(&mut self, flow: u64, heard_ns: u64) {
        self.0.push_back(Turn { flow, heard_ns });
    }

    /// Takes out the flow that was quiet longest; `heard` says when a flow was last heard of, and
    /// `None` for one that is no more.
    pub(super) fn pop(&mut self, heard: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        while let Some(turn) = self.0.pop_front() {
            match heard(turn.flow) {
                Some(heard_ns) if heard_ns > turn.heard_ns => self.push(turn.flow, heard_ns),
                Some(_) => return Some(turn.flow),
                None => {}
            }
        }
        None
    }

    /// Drops flows that are no more, once they are most of the queue of `live` flows.
    pub(super) fn tidy(&mut self, live: usize, is_there: impl Fn(u64) -> bool) {
        if self.0.len() > 2 * live + 64 {
            self.0.retain(|turn| is_there(turn.flow));
        }
    }
}
