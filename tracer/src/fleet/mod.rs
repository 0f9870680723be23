//! Tracing many nodes at once: one short-lived pod on each, its lines streamed back, everything removed.
//!
//! Map: `plan` says what is wanted, `manifest` is the objects that are created, `run` creates and removes
//! them, `pod` waits for one pod and follows its log, `clean` removes what an earlier run left, `install` is
//! the DaemonSet for always-on use. What the nodes said is joined and shown by `view`.
//!
//! Invariants:
//! - Whatever is created belongs to one Job that starts nothing itself and removes itself some time after
//!   the run is over: the cluster gets clean even when this process and its connection are gone. Servers
//!   before 1.21 leave that to the next run.
//! - No request is waited for without an end, and whoever wants to stop is heard from the first one on.
//! - One node's trouble never ends the others.
//! - Only objects with the labels of `manifest` are ever removed.
//! - What nodes say comes as the lines of `tracer run --format json`; nothing is decided here.

mod clean;
mod install;
mod manifest;
mod plan;
mod pod;
mod run;

pub use clean::{Removed, clean};
pub use install::{CaptureVolume, Captures, Installation, manifest};
pub use plan::{Choice, Plan};
pub use pod::NodeEnd;
pub use run::{News, Outcome, Stop, run};

/// The least rights that [`run()`] and [`clean()`] need.
pub const RBAC: &str = include_str!("../../manifests/rbac-run.yaml");

/// Why nothing could be traced, in words.
#[derive(thiserror::Error, Debug)]
pub enum FleetError {
    /// No API server to talk to.
    #[error("no cluster: {0}")]
    NoServer(String),
    /// The choice fits no node.
    #[error("no node fits {0}")]
    NoNode(String),
    /// Somebody wanted it to end.
    #[error("stopped before anything was traced")]
    Stopped,
    /// The server refused something that the run cannot do without.
    #[error("{what}: {why}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// In the server's words, with what to do about it.
        why: String,
    },
}
