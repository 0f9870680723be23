//! Captures: pcapng files that other programs open as they are, and that explain themselves later.
//!
//! Map: `block` is pcapng's framing, `bytes` takes it out of a file in whatever wrapping (`unpack` out of
//! zstd), `wire` is what the typed parts look like in a file and `record` what they mean. `recorder` takes
//! what a live trace does and hands it to a thread, where `writer` gives each event its place and words,
//! `headers` says what is kept of its packet, `encoder` makes blocks of it and `file` puts them on disk
//! (`open` is the one being written), or `lines` on standard output for another program to put together, or
//! `folder` bounds those of a tracer that stays on, or `ring` keeps the last while until a diagnosis fires.
//! `reader` gives records back, one by one or `each`, `foreign` what other programs wrote, `there` what
//! names meant where it was made, `error` what was wrong of whoever asked, and `replay` feeds it all to the
//! analysis that a live trace feeds; `report` does so for a page. `rewrite` makes a capture of records
//! again.
//!
//! Invariants:
//! - Live and replayed analysis see the same events, facts and moments in the same order, so they say the
//!   same. A capture holds the moments too ([`Control`]).
//! - Typed records are versioned. What a reader does not know it skips, counts and says.
//! - Every byte of a file may be wrong. What comes before the damage is used, and the reader's memory is
//!   bounded by [`MOST_BLOCK`] and [`MOST_UNPACKED`], whatever lengths the file claims.
//! - No payload: headers only, unless asked for.

mod block;
mod bytes;
mod each;
mod encoder;
mod error;
mod file;
mod folder;
mod foreign;
mod headers;
mod lines;
mod open;
mod reader;
mod record;
mod recorder;
mod replay;
mod report;
mod rewrite;
mod ring;
#[cfg(test)]
mod tests;
mod there;
mod unpack;
mod wire;
mod writer;

pub use each::BETWEEN_PROGRESS;
pub use error::{Foreign, Unmade};
pub use file::{Full, Options, Rotate, STANDARD_OUTPUT, Written, create_private};
pub use folder::{LEAST_ROOM, keep_in};
pub use lines::{Chunk, Received, ReceivedFile};
pub use reader::{Interface, ReadError, Reader, Skipped};
pub use record::{Control, Counters, Header, Headers, Packet, Record, Sighting};
pub use recorder::Recorder;
pub use replay::{Ended, Replay};
pub use report::{Reported, report};
pub use rewrite::Rewriter;
pub use ring::Trigger;
pub use there::There;

/// Private enterprise number of our custom blocks and options: IANA's for examples (RFC 5612) until
/// one is assigned.
pub const ENTERPRISE: u32 = 32_473;
/// Longest block that is written or believed, bytes.
pub const MOST_BLOCK: usize = 64 << 20;
/// Most bytes that a compressed record may have unpacked.
pub const MOST_UNPACKED: usize = 256 << 20;
