//! Parquet files: one for each table, in a folder. Rows are kept until a row group is full.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;

use super::column::{Column, Kind, Value};
use super::table::{DIAGNOSES, EVENTS, FLOWS, JOURNEYS, Kept, Reached, Row, Seen, Told};
use super::walk::Sink;
use crate::capture::{Unmade, create_private};

/// Rows of a row group: readers take a file apart by them.
const GROUP: usize = 65_536;
/// Definition level of a value that is there.
const THERE: i16 = 1;

/// All tables, open for writing.
pub struct Tables {
    folder: PathBuf,
    journeys: Table,
    events: Table,
    flows: Table,
    diagnoses: Table,
}

impl Tables {
    /// Makes a folder with a file for each table; files of these names that are there are replaced.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .map_err(Unmade)
            .with_context(|| folder.display().to_string())?;
        Ok(Self {
            journeys: Table::create(folder, "journeys", JOURNEYS)?,
            events: Table::create(folder, "events", EVENTS)?,
            flows: Table::create(folder, "flows", FLOWS)?,
            diagnoses: Table::create(folder, "diagnoses", DIAGNOSES)?,
            folder: folder.to_owned(),
        })
    }

    /// Writes what is left; gives each table's name and rows.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let tables = [self.journeys, self.events, self.flows, self.diagnoses];
        tables
            .into_iter()
            .map(|table| {
                table
                    .finish()
                    .with_context(|| format!("a table in {}", self.folder.display()))
            })
            .collect()
    }
}

impl Sink for Tables {
    fn journey(&mut self, row: Row<'_, Told<'_>>) -> anyhow::Result<()> {
        self.journeys
            .push(JOURNEYS.iter().map(|column| (column.value)(row)))
    }

    fn event(&mut self, row: Row<'_, Seen<'_>>) -> anyhow::Result<()> {
        self.events
            .push(EVENTS.iter().map(|column| (column.value)(row)))
    }

    fn flow(&mut self, row: Row<'_, Kept<'_>>) -> anyhow::Result<()> {
        self.flows
            .push(FLOWS.iter().map(|column| (column.value)(row)))
    }

    fn diagnosis(&mut self, row: Row<'_, Reached<'_>>) -> anyhow::Result<()> {
        self.diagnoses
            .push(DIAGNOSES.iter().map(|column| (column.value)(row)))
    }
}

/// A table being written.
struct Table {
    name: &'static str,
    writer: SerializedFileWriter<File>,
    columns: Vec<Buffer>,
    /// Rows in the buffers.
    waiting: usize,
    rows: u64,
}

/// Values of a column that wait for their row group.
struct Buffer {
    /// For each row whether its value is there.
    levels: Vec<i16>,
    values: Values,
}

enum Values {
    Flags(Vec<bool>),
    Numbers(Vec<i64>),
    Texts(Vec<ByteArray>),
}

impl Buffer {
    fn new(kind: Kind) -> Self {
        Self {
            levels: Vec::new(),
            values: match kind {
                Kind::Flag => Values::Flags(Vec::new()),
                Kind::Number | Kind::Time => Values::Numbers(Vec::new()),
                Kind::Text => Values::Texts(Vec::new()),
            },
        }
    }

    /// Adds a value; one of another kind than the column's is none.
    fn push(&mut self, value: Value) {
        let there = match (&mut self.values, value) {
            (Values::Flags(flags), Value::Flag(flag)) => {
                flags.push(flag);
                true
            }
            (Values::Numbers(numbers), Value::Number(number)) => {
                numbers.push(number);
                true
            }
            (Values::Texts(texts), Value::Text(text)) => {
                texts.push(text.into_bytes().into());
                true
            }
            _ => false,
        };
        self.levels.push(if there { THERE } else { 0 });
    }

    /// Writes the next column of a row group.
    fn write(&mut self, group: &mut SerializedRowGroupWriter<'_, File>) -> anyhow::Result<()> {
        let mut column = group
            .next_column()?
            .context("a table with more columns than its file")?;
        let levels = Some(self.levels.as_slice());
        match &mut self.values {
            Values::Flags(flags) => {
                column
                    .typed::<BoolType>()
                    .write_batch(flags, levels, None)?;
                flags.clear();
            }
            Values::Numbers(numbers) => {
                column
                    .typed::<Int64Type>()
                    .write_batch(numbers, levels, None)?;
                numbers.clear();
            }
            Values::Texts(texts) => {
                column
                    .typed::<ByteArrayType>()
                    .write_batch(texts, levels, None)?;
                texts.clear();
            }
        }
        self.levels.clear();
        Ok(column.close()?)
    }
}

impl Table {
    fn create<F>(folder: &Path, name: &'static str, columns: &[Column<F>]) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.parquet"));
        let file = create_private(&path)
            .map_err(Unmade)
            .with_context(|| path.display().to_string())?;
        let fields = columns.iter().map(field).collect::<anyhow::Result<_>>()?;
        let schema = Type::group_type_builder(name).with_fields(fields).build()?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .build();
        Ok(Self {
            name,
            writer: SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?,
            columns: columns
                .iter()
                .map(|column| Buffer::new(column.kind))
                .collect(),
            waiting: 0,
            rows: 0,
        })
    }

    fn push(&mut self, row: impl Iterator<Item = Value>) -> anyhow::Result<()> {
        for (column, value) in self.columns.iter_mut().zip(row) {
            column.push(value);
        }
        self.waiting += 1;
        self.rows += 1;
        if self.waiting >= GROUP {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let mut group = self.writer.next_row_group()?;
        for column in &mut self.columns {
            column.write(&mut group)?;
        }
        group.close()?;
        self.waiting = 0;
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<(&'static str, u64)> {
        if self.waiting > 0 {
            self.flush()?;
        }
        self.writer.close()?;
        Ok((self.name, self.rows))
    }
}

/// A column as Parquet describes it.
fn field<F>(column: &Column<F>) -> anyhow::Result<Arc<Type>> {
    let (physical, logical) = match column.kind {
        Kind::Flag => (Physical::BOOLEAN, None),
        Kind::Number => (Physical::INT64, Some(LogicalType::integer(64, true))),
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::Time => (
            Physical::INT64,
            Some(LogicalType::timestamp(false, TimeUnit::NANOS)),
        ),
    };
    let field = Type::primitive_type_builder(column.name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical)
        .build()?;
    Ok(Arc::new(field))
}
