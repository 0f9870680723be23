//! Empties the ring buffer on a thread of its own, ahead of other work, so that a burst waits in this
//! process instead of being lost while the events before it are looked at.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use caps::Capability;
use tracer_ebpf::event::Event;

use super::privilege;
use super::ring::{LostCounts, Ring};

/// How often the ring buffer is emptied. The kernel side never wakes us: that would cost each packet.
const PERIOD: Duration = Duration::from_millis(10);
/// Events handed over at once.
const BATCH: usize = 4096;
/// Events that may wait here, 96 MiB. Then the ring buffer fills and the kernel side counts what it loses.
const MOST_WAITING: usize = 1 << 19;
/// Ahead of the usual processes, as `nice -n -10`: the kernel does not wait.
const NICENESS: i32 = -10;

/// The receiving end.
pub struct Inbox {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Events that the ring buffer holds at most.
    room_in_ring: u64,
}

/// A moment: what the kernel side had submitted by then.
pub struct Mark {
    passes: u64,
    received: u64,
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
        let room_in_ring = ring.room();
        let shared = Arc::<Shared>::default();
        let thread = std::thread::Builder::new().name("ring".into()).spawn({
            let shared = Arc::clone(&shared);
            move || work(ring, &shared)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            room_in_ring,
        })
    }

    /// The next events that came, some thousands at most; `None` where none wait.
    pub fn take(&self) -> Option<Vec<Event>> {
        let mut state = self.shared.lock();
        let batch = state.waiting.pop_front()?;
        state.count -= batch.len();
        Some(batch)
    }

    /// Now.
    pub fn mark(&self) -> Mark {
        let state = self.shared.lock();
        Mark {
            passes: state.passes,
            received: state.received,
        }
    }

    /// Waits until everything that the kernel side had submitted at a moment is here, however long that takes, or no
    /// more fits; gives how many events wait, and whether that is everything.
    pub fn catch_up(&self, mark: &Mark) -> (usize, bool) {
        let mut state = self.shared.lock();
        loop {
            state.wanted = true;
            self.shared.changed.notify_all();
            // The pass under way may have found the ring buffer empty just before the mark. While packets flow it may
            // never be found empty; what was in it then is out once it was filled anew.
            let whole = state.passes >= mark.passes + 2
                || state.received - mark.received >= self.room_in_ring;
            let over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if whole || over || state.count >= MOST_WAITING {
                return (state.count, whole || over);
            }
            let waited = self.shared.changed.wait_timeout(state, PERIOD);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
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
    // Kernels before 5.19 let nobody else read the counts of what was lost. What could not be given up does no harm.
    let _ = privilege::keep(&[Capability::CAP_BPF]);
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
