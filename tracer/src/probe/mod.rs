//! A bounded test of one address: what is asked, how it is sent, and which of the traced packets are its
//! own.
//!
//! Map: `target` what was typed, `send` the only I/O (sockets in one namespace), `dns` question and
//! answer as bytes and `own` the journeys that belong to a test. Invariant: nothing here looks at the kernel's events; journeys come in, values go out.

mod dns;
mod own;
mod send;
mod target;

pub use own::own;
pub use send::{Attempt, Outcome, Send};
pub use target::{Question, Target};
