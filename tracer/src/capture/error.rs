//! What a person has to change before a capture can be read or made; damage is another matter.

use std::io;

/// A file that cannot be made where it was wanted.
#[derive(Debug, thiserror::Error)]
#[error("cannot be made: {0}")]
pub struct Unmade(pub io::Error);

/// A capture that another program made, where only the tracer's own can be used; holds what for.
#[derive(Debug, thiserror::Error)]
#[error("another program's capture: only the tracer's own can be {0}")]
pub struct Foreign(pub &'static str);
