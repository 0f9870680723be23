//! The rows of a kernel table, and how far they can be trusted.

use super::Missing;
use super::netlink::{ATTEMPTS, ReadError};

/// Rows of a dump, with what is wrong with them.
#[derive(Debug)]
pub(super) struct Table<T> {
    rows: Vec<T>,
    /// The kernel's table changed while it was read, at every attempt.
    pub(super) interrupted: bool,
    /// Messages that could not be understood.
    unreadable: usize,
    /// Rows beyond the limit.
    beyond_limit: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            interrupted: false,
            unreadable: 0,
            beyond_limit: 0,
        }
    }
}

impl<T> Table<T> {
    /// Adds a row, or counts it when the table is full.
    pub(super) fn keep(&mut self, row: T, limit: usize) {
        if self.rows.len() < limit {
            self.rows.push(row);
        } else {
            self.beyond_limit += 1;
        }
    }

    /// Adds rows; false when they are more than `most` then.
    pub(super) fn keep_all(&mut self, rows: Vec<T>, most: usize) -> bool {
        self.rows.extend(rows);
        self.rows.len() <= most
    }

    /// The rows alone, for a caller that does not mind what is wrong with them.
    pub(super) fn into_rows(self) -> Vec<T> {
        self.rows
    }

    /// Counts an entry that could not be understood.
    pub(super) fn skip_unreadable(&mut self) {
        self.unreadable += 1;
    }
}

/// Gives the rows, and notes in `missing` what could not be read or is not trustworthy.
pub(super) fn rows_or_missing<T>(
    what: &str,
    result: Result<Table<T>, ReadError>,
    missing: &mut Vec<Missing>,
) -> Vec<T> {
    let table = match result {
        Ok(table) => table,
        Err(error) => {
            missing.push(error.missing(what));
            return Vec::new();
        }
    };
    let mut note = |why: String, remedy: Option<&str>| {
        missing.push(Missing {
            what: what.to_owned(),
            why,
            remedy: remedy.map(str::to_owned),
        });
    };
    if table.interrupted {
        note(
            format!(
                "the kernel's table changed during each of {ATTEMPTS} readings: rows may be absent or doubled"
            ),
            Some("read again when the node is calmer"),
        );
    }
    if table.unreadable > 0 {
        note(
            format!("{} entries could not be understood", table.unreadable),
            None,
        );
    }
    if table.beyond_limit > 0 {
        let total = table.rows.len() + table.beyond_limit;
        note(
            format!("only {} of {total} were kept", table.rows.len()),
            None,
        );
    }
    table.rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_tables_keep_their_rows_and_say_so() {
        let mut missing = Vec::new();
        let table = Table {
            rows: vec![1, 2],
            interrupted: true,
            unreadable: 3,
            beyond_limit: 4,
        };
        assert_eq!(
            rows_or_missing("neighbours", Ok(table), &mut missing),
            [1, 2]
        );
        let whys: Vec<_> = missing.iter().map(|fact| fact.why.as_str()).collect();
        assert!(whys[0].contains("changed"));
        assert_eq!(
            whys[1..],
            ["3 entries could not be understood", "only 2 of 6 were kept"]
        );
    }
}
