//! A bounded test of one address: what is asked, how it is sent, which of the traced packets are its
//! own, and where the ways of two tests part.
//!
//! Map: `target` what was typed, `send` the only I/O (sockets in one namespace), `dns` question and
//! answer as bytes, `own` the journeys that belong to a test, `compare` two lists of stages side by
//! side. Invariant: nothing here looks at the kernel's events; journeys come in, values go out.

mod compare;
mod dns;
mod own;
mod send;
mod target;

pub use compare::{Comparison, Row, compare};
pub use own::own;
pub use send::{Attempt, Outcome, Send};
pub use target::{Question, Target};
