//! The share of the flows that the programs trace, for all who may change it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, MapData};
use tracer_ebpf::sample::NOT_BEGUN;

/// Smallest share of the flows.
pub const LEAST: f64 = 1.0 / 65_536.0;

/// The share of the flows that is traced, each whole: 1 for all.
#[derive(Clone)]
pub struct Share(Arc<Mutex<Traced>>);

struct Traced {
    /// Flows with a number below its only entry are left out.
    leave: Array<MapData, u32>,
    share: f64,
}

impl Share {
    /// Nothing is traced before a share is set.
    pub(super) fn new(mut leave: Array<MapData, u32>) -> anyhow::Result<Self> {
        leave.set(0, NOT_BEGUN, 0)?;
        let traced = Traced { leave, share: 0.0 };
        Ok(Self(Arc::new(Mutex::new(traced))))
    }

    /// What is traced now.
    pub fn get(&self) -> f64 {
        self.lock().share
    }

    /// Traces this share from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&self, share: f64) -> anyhow::Result<()> {
        self.lock().set(share)
    }

    /// Traces so much of what is traced now, [`LEAST`] at least.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, part: f64) -> anyhow::Result<()> {
        let mut traced = self.lock();
        let share = (traced.share * part).max(LEAST);
        traced.set(share)
    }

    fn lock(&self) -> MutexGuard<'_, Traced> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traced {
    fn set(&mut self, share: f64) -> anyhow::Result<()> {
        // A share of the range of flow numbers.
        let leave = (1.0 - share.clamp(0.0, 1.0)) * f64::from(NOT_BEGUN - 1);
        self.leave.set(0, leave as u32, 0)?;
        self.share = share;
        Ok(())
    }
}
