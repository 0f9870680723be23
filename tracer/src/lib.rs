//! Says why a packet was lost.
//!
//! Data flows one way: `kernel` → `event` → `journey` → `flow` → `cause` (with `node` facts) → `view`.

pub mod hook;
pub mod kernel;
