//! The kernel boundary: what this kernel has (BTF, symbols), loading and attaching the programs,
//! and taking events out of the ring buffer.
//!
//! Map: `btf` reads type information, `symbols` names code addresses, `reasons` names drop reasons,
//! `load` loads the programs and keeps them alive, `attach` decides per hook how to attach, `modules`
//! notices what is loaded later, `links` lets go of all of them, `privilege` gives up what is no longer
//! needed, `share` has flows left out, `ring` yields raw events and counts what was lost, `inbox` empties
//! it in time.
//! Invariant: a hook that cannot be attached is data ([`attach::HookState`]), never an error; only a
//! kernel on which nothing can be attached is one.

pub mod attach;
pub mod btf;
pub mod inbox;
mod links;
pub mod load;
pub mod modules;
pub mod privilege;
pub mod reasons;
pub mod ring;
pub mod share;
pub mod symbols;
