//! Tables out of a capture, for DuckDB, Spark, ClickHouse and the like.
//!
//! Map: `column` is what a column is, `table` holds every table's columns with their meaning and where
//! their values come from, `parquet` writes tables, `lines` JSON objects, `walk` reads a capture and hands out what the tables
//! are made of, `again` writes a capture again.
//!
//! Invariants: the columns of [`table`] are the only description: the files are written by it and
//! `tracer export --schema` prints it. What is not known is null. Memory does not grow with the capture,
//! but for its flows.

mod again;
mod column;
mod lines;
mod parquet;
mod table;
mod walk;

pub use again::{Again, Wanted, again, matching};
pub use column::{Column, Kind, Value};
pub use lines::Lines;
pub use parquet::Tables;
pub use table::{DIAGNOSES, EVENTS, FLOWS, JOURNEYS, Kept, Reached, Row, Seen, Told, describe};
pub use walk::{Sink, matches, walk};
