//! Counts for always-on use, and the small server that hands them out.
//!
//! Map: `meter` holds the counts and is fed by the session, `series` bounds how many there are, `server`
//! answers GET on `/metrics`, `/healthz` and `/livez`.
//!
//! Invariants:
//! - Nothing is decided here: reasons, causes and names come from the rooms before.
//! - Memory and the number of series are bounded whatever the traffic and the cluster's churn.
//! - A slow or hostile reader never holds the trace up: the server has a thread and limits of its own.

mod meter;
mod series;
mod server;

pub use meter::{Meter, State, Who};
pub use server::Server;
