//! Empties the ring buffer on a thread of its own, ahead of other work, so that a burst waits in this
//! process instead of being lost while the events before it are looked at.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracer_ebpf::event::Event;

use super::privilege;
use super::ring::{LostCounts, Ring};

/// How often the ring buffer is emptied. The kernel side never wakes us: that would cost each packet.
const PERIOD: Duration = Duration::from_millis(10);
/// Events handed over at once.
const BATCH: usize = 4096;
/// Events that may wait here, 96 MiB. Then the ring buffer fills and the kernel side counts what it loses.
const MOST_WAITING: usize = 1 << 19;
/// A pass takes much less, unless the machine stands still.
const PATIENCE: Duration = Duration::from_secs(1);
/// Ahead of the usual processes, as `nice -n -10`: the kernel does not wait.
const NICENESS: i32 = -10;

/// The receiving end.
pub struct Inbox {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What was taken.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Events.
    pub count: usize,
    /// When the last one happened, CLOCK_MONOTONIC nanoseconds.
    pub last_ns: Option<u64>,
    /// More may be waiting.
    pub more: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Vec<Event>>,
    /// Events in `waiting`.
    count: usize,
    /// All that ever came.
    received: u64,
    lost: LostCounts,
    /// Times that the ring buffer was found empty.
    passes: u64,
    /// Somebody waits for the next pass.
    wanted: bool,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    /// Begins to empty the ring buffer.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(ring: Ring) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let thread = std::thread::Builder::new().name("ring".into()).spawn({
            let shared = Arc::clone(&shared);
            move || work(ring, &shared)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Gives what came, at most about `limit` events.
    pub fn take(&self, limit: usize, mut take: impl FnMut(&Event)) -> Taken {
        let mut taken = Taken::default();
        while taken.count < limit {
            let batch = {
                let mut state = self.shared.lock();
                let batch = state.waiting.pop_front().unwrap_or_default();
                state.count -= batch.len();
                batch
            };
            let Some(last) = batch.last() else {
                return taken;
            };
            batch.iter().for_each(&mut take);
            taken.count += batch.len();
            taken.last_ns = Some(last.time_ns);
        }
        taken.more = true;
        taken
    }

    /// Waits until what the kernel side has submitted by now is here; returns how many events wait.
    pub fn catch_up(&self) -> usize {
        let mut state = self.shared.lock();
        let passes = state.passes;
        state.wanted = true;
        self.shared.changed.notify_all();
        let behind = |state: &mut State| state.passes == passes && state.count < MOST_WAITING;
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, behind);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.count
    }

    /// Events that came so far, and the share of the room for them that is taken now.
    pub fn load(&self) -> (u64, f64) {
        let state = self.shared.lock();
        (state.received, state.count as f64 / MOST_WAITING as f64)
    }

    /// What was lost so far.
    pub fn lost(&self) -> LostCounts {
        self.shared.lock().lost.clone()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic, and there is nobody to tell.
            let _ = thread.join();
        }
    }
}

fn work(mut ring: Ring, shared: &Shared) {
    // SAFETY: no memory is involved; 0 is the calling thread. Without the right to it we stay as we are.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    // What could not be given up does no harm here.
    let _ = privilege::keep(&[]);
    loop {
        let room = {
            let state = shared.lock();
            if state.stop {
                return;
            }
            BATCH.min(MOST_WAITING - state.count)
        };
        let mut batch = Vec::new();
        ring.drain(room, |event| batch.push(*event));
        let lost = ring.lost();
        let empty = batch.len() < room;
        let mut state = shared.lock();
        state.count += batch.len();
        state.received += batch.len() as u64;
        state.lost = lost;
        if !batch.is_empty() {
            state.waiting.push_back(batch);
        }
        if empty {
            state.passes += 1;
            shared.changed.notify_all();
        }
        if empty || room == 0 {
            let idle = |state: &mut State| !state.stop && !state.wanted;
            let waited = shared.changed.wait_timeout_while(state, PERIOD, idle);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.wanted = false;
        }
    }
}
