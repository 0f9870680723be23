//! Says why a packet was lost.
//!
//! Data flows one way: `kernel` → `event` → `journey` → `flow` → `cause` (with `node` facts) → `view`.
//! `kube` gives facts of the cluster, `expectation` what kube-proxy should have made of them.
//! `probe` sends a bounded test and picks its journeys out of all others.
//! A capture can replace what is left of `event`. `collector` joins the middle, `session` adds the
//! live kernel on one side and `printer` on the other; `cli` only calls them. `metrics` counts
//! for others what the session sees. `export` makes tables and captures of a capture, `anonymize` takes
//! names out of one, `merge` joins those of several nodes. `fleet` runs tracers on many nodes and joins what their views say.

pub mod analysis;
pub mod anonymize;
pub mod capture;
pub mod cause;
pub mod cli;
pub mod collector;
pub mod event;
pub mod expectation;
pub mod export;
pub mod filter;
pub mod fleet;
pub mod flow;
pub mod hook;
pub mod journey;
pub mod kernel;
pub mod kube;
pub mod merge;
pub mod metrics;
pub mod node;
pub mod printer;
pub mod probe;
pub mod ruling;
pub mod scenario;
pub mod session;
pub mod view;
