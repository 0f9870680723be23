//! A capture from its beginning to its end, whoever wants to know of it.

use super::{ReadError, Reader, Record};

/// Records between two words of progress.
pub const BETWEEN_PROGRESS: u64 = 4096;

impl Reader {
    /// Hands out every record up to the end or to the first damage, which is given back. `progress` is told
    /// the position now and then.
    ///
    /// # Errors
    /// When `take` fails.
    pub fn each(
        &mut self,
        mut progress: impl FnMut(u64),
        mut take: impl FnMut(Record, &Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<ReadError>> {
        let mut records = 0u64;
        loop {
            match self.next() {
                Ok(Some(record)) => take(record, self)?,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error)),
            }
            records += 1;
            if records.is_multiple_of(BETWEEN_PROGRESS) {
                progress(self.position());
            }
        }
    }
}
