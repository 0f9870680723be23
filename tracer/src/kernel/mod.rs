//! The kernel boundary: what this kernel has (BTF, symbols), loading and attaching the programs,
//! and taking events out of the ring buffer.
//!
//! Map: `btf` reads type information, `symbols` names code addresses, `load` decides per hook how
//! to attach and keeps the programs alive, `privilege` gives up what is no longer needed, `ring`
//! yields raw events and counts what was lost.
//! Invariant: a hook that cannot be attached is data ([`load::HookState`]), never an error; only a
//! kernel on which nothing can be attached is one.

pub mod btf;
pub mod load;
pub mod privilege;
pub mod ring;
pub mod symbols;
