//! Empties the ring buffer on a thread of its own, ahead of other work, so that a burst waits in this
//! process instead of being lost while the events before it are looked at.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use caps::Capability;
use tracer_ebpf::event::Event;

use super::privilege;
use super::ring::{LostCounts, Ring};
use super::share::Share;

/// How often the ring buffer is emptied. The kernel side never wakes us: that would cost each packet.
const PERIOD: Duration = Duration::from_millis(10);
/// Events handed over at once.
const BATCH: usize = 4096;
/// Events that may wait here, 96 MiB. Then the ring buffer fills and the kernel side counts what it loses.
const MOST_WAITING: usize = 1 << 19;
/// Share of the room for waiting events below which flows are not left out at once, however fast it fills.
pub const MANY_WAITING: f64 = 0.5;
/// Who takes the waiting events may be away for so long.
const AWAY: Duration = Duration::from_secs(3);
/// So much of what was traced stays where the room would be full by then: a flow that floods alone must not be long
/// among those that stay.
const BRAKE: f64 = 0.125;
/// How often it is looked at how fast the room fills; what the last brake changed shows by then.
const BRAKE_PERIOD: Duration = Duration::from_millis(100);
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
    /// Where flows may be left out.
    brake: Option<Share>,
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

    /// Has flows left out at once where the room for waiting events would be full before anybody takes them.
    pub fn brake(&self, share: Share) {
        self.shared.lock().brake = Some(share);
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

/// How fast the room for waiting events fills.
#[derive(Default)]
struct Filling {
    waiting: usize,
}

impl Filling {
    /// True where the room would be full while nobody takes events: so many wait now, so long after the last look.
    fn is_too_fast(&mut self, waiting: usize, passed: Duration) -> bool {
        let before = std::mem::replace(&mut self.waiting, waiting);
        let more = waiting.saturating_sub(before) as f64 / passed.as_secs_f64();
        waiting as f64 > MOST_WAITING as f64 * MANY_WAITING
            && waiting as f64 + more * AWAY.as_secs_f64() > MOST_WAITING as f64
    }
}

fn work(mut ring: Ring, shared: &Shared) {
    // SAFETY: no memory is involved; 0 is the calling thread. Without the right to it we stay as we are.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    // Kernels before 5.19 let nobody else read the counts of what was lost. What could not be given up does no harm.
    let _ = privilege::keep(&[Capability::CAP_BPF]);
    let (mut filling, mut looked) = (Filling::default(), Instant::now());
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
        let passed = looked.elapsed();
        if passed >= BRAKE_PERIOD {
            looked += passed;
            if filling.is_too_fast(state.count, passed)
                && let Some(share) = &state.brake
            {
                // What the kernel refuses to leave out is counted when it is lost.
                let _ = share.cut(BRAKE);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_would_be_full_before_anybody_comes_is_spared() {
        let mut filling = Filling::default();
        let half = MOST_WAITING / 2;
        let looks: Vec<_> = (1..20)
            .map(|look| look * half / 10)
            .map(|waiting| filling.is_too_fast(waiting, BRAKE_PERIOD))
            .collect();
        // From half on, at each look.
        assert_eq!(looks.iter().position(|&brakes| brakes), Some(10));
        assert!(looks[10..].iter().all(|&brakes| brakes));
    }

    #[test]
    fn room_that_does_not_fill_or_fills_slowly_is_left_alone() {
        let mut filling = Filling::default();
        let most = MOST_WAITING * 3 / 4;
        for waiting in [most, most - 10, most, most + 1000] {
            let first = filling.waiting == 0;
            assert_eq!(filling.is_too_fast(waiting, BRAKE_PERIOD), first);
        }
    }
}
