//! `tracer export`: tables, objects or another capture out of a capture; without names where asked for.

use std::io::{BufWriter, Write as _, stdout};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use tempfile::TempDir;

use super::destination::spare;
use super::explain::{damaged, filter, open, say_skipped};
use super::progress::Progress;
use super::{Exit, Failure, OutputFormat};
use crate::anonymize::{Anonymizer, KEY_BYTES};
use crate::capture::{ReadError, Written, create_private};
use crate::export::{Lines, Tables, Wanted, again, describe, matching, walk};
use crate::filter::Filter;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// A capture of the tracer or, for json and parquet, of another program.
    #[arg(required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Packets to export, in the words of `tracer run`; none for all.
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// json: one object a line, as `tracer run` and `tracer show` print them. parquet: a folder with
    /// journeys, events, flows and diagnoses. pcapng: a capture again.
    #[arg(long, value_name = "json|parquet|pcapng", default_value = "json", value_parser = format)]
    format: OutputFormat,
    /// Where to: a file, or a folder for parquet.
    #[arg(short, long, required_unless_present = "schema")]
    out: Option<PathBuf>,
    /// Print every table's columns with their types and units, and end.
    #[arg(long)]
    schema: bool,
    #[command(flatten)]
    anonymize: Anonymize,
}

/// Whether names stay.
#[derive(Args, Debug)]
pub(super) struct Anonymize {
    /// Replace addresses (prefixes stay prefixes), MACs, and every name and text, and leave payload out.
    #[arg(long)]
    anonymize: bool,
    /// 32 bytes, or 64 hexadecimal digits, that make the same mapping each time; else it is never the same.
    #[arg(long, value_name = "FILE", requires = "anonymize")]
    key: Option<PathBuf>,
}

/// What an export writes.
fn format(text: &str) -> Result<OutputFormat, String> {
    match text {
        "json" => Ok(OutputFormat::Json),
        "parquet" => Ok(OutputFormat::Parquet),
        "pcapng" => Ok(OutputFormat::Pcapng),
        _ => Err("json, parquet or pcapng".into()),
    }
}

impl Anonymize {
    /// The mapping that was asked for.
    pub(super) fn mapping(&self) -> Result<Option<Anonymizer>, Failure> {
        if !self.anonymize {
            return Ok(None);
        }
        let Some(path) = &self.key else {
            return Ok(Some(Anonymizer::random()?));
        };
        let wrong = |why: &str| Failure::usage(format!("the key {}: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| wrong(&error.to_string()))?;
        let key = key(&bytes).ok_or_else(|| {
            wrong("32 bytes or 64 hexadecimal digits are needed; openssl rand -hex 32 makes one")
        })?;
        Ok(Some(Anonymizer::new(&key)))
    }
}

/// A key as a file holds it.
fn key(bytes: &[u8]) -> Option<[u8; KEY_BYTES]> {
    if let Ok(key) = bytes.try_into() {
        return Some(key);
    }
    let digits = std::str::from_utf8(bytes).ok()?.trim();
    if digits.len() != 2 * KEY_BYTES || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(key)
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let (Some(file), Some(out)) = (&arguments.file, &arguments.out) else {
        write!(stdout(), "{}", describe())?;
        return Ok(Exit::Healthy);
    };
    spare([file.as_path()], out)?;
    let filter = filter(&arguments.filter, file)?;
    let mapping = arguments.anonymize.mapping()?;
    let error = match (arguments.format, mapping) {
        (OutputFormat::Pcapng, mapping) => {
            let (written, error) = rewrite(file, filter, mapping.as_ref(), out)?;
            eprintln!("{}", written.words());
            error
        }
        (format, None) => tables(file, filter, format, out)?,
        (format, Some(mapping)) => {
            // The tables are made of a capture that has no names any more, so that nothing is missed.
            let folder = scratch(out)?;
            let nameless = folder.path().join("anonymous.pcapng");
            let (_, error) = rewrite(file, filter, Some(&mapping), &nameless)?;
            tables(&nameless, Filter::default(), format, out)?;
            error
        }
    };
    match error {
        Some(error) => Err(damaged(file, error)),
        None => Ok(Exit::Healthy),
    }
}

/// A folder beside the output, for its owner alone, that goes with its value.
pub(super) fn scratch(out: &Path) -> anyhow::Result<TempDir> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    tempfile::tempdir_in(parent)
        .with_context(|| format!("no folder can be made in {}", parent.display()))
}

/// Writes tables or objects.
fn tables(
    file: &Path,
    filter: Filter,
    format: OutputFormat,
    out: &Path,
) -> Result<Option<ReadError>, Failure> {
    let mut reader = open(file)?;
    let mut progress = Progress::of(file, reader.is_packed());
    let moved = |position| progress.moved(position);
    let (error, counts) = if format == OutputFormat::Parquet {
        let mut tables = Tables::create(out)?;
        let error = walk(&mut reader, filter, &mut tables, moved)?;
        (error, tables.finish()?)
    } else {
        let file =
            create_private(out).with_context(|| format!("{} cannot be made", out.display()))?;
        let mut lines = Lines::new(BufWriter::with_capacity(1 << 16, file));
        let error = walk(&mut reader, filter, &mut lines, moved)?;
        (error, lines.finish()?)
    };
    drop(progress);
    say_skipped(&reader);
    let counts: Vec<_> = counts
        .into_iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    eprintln!("{}: {}", out.display(), counts.join(", "));
    Ok(error)
}

/// Writes a capture again.
pub(super) fn rewrite(
    file: &Path,
    filter: Filter,
    mapping: Option<&Anonymizer>,
    out: &Path,
) -> Result<(Written, Option<ReadError>), Failure> {
    let journeys = if filter.is_everything() {
        None
    } else {
        let mut reader = open(file)?;
        let mut progress = Progress::of(file, reader.is_packed());
        let moved = |position| progress.moved(position);
        Some(matching(&mut reader, filter, moved)?)
    };
    let mut reader = open(file)?;
    let mut progress = Progress::of(file, reader.is_packed());
    let moved = |position| progress.moved(position);
    let done = again(&mut reader, &Wanted { journeys, mapping }, out, moved)?;
    drop(progress);
    say_skipped(&reader);
    let Some(written) = done.written else {
        return Err(Failure::usage(format!(
            "{} is another program's capture: only the tracer's own can be written again",
            file.display()
        )));
    };
    Ok((written, done.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_bytes_or_digits() {
        let hexadecimal = "0f".repeat(KEY_BYTES);
        assert_eq!(key(hexadecimal.as_bytes()), Some([15; KEY_BYTES]));
        assert_eq!(
            key(format!("{hexadecimal}\n").as_bytes()),
            Some([15; KEY_BYTES])
        );
        assert_eq!(key(&[7; KEY_BYTES]), Some([7; KEY_BYTES]));
        for wrong in [&b""[..], b"short", &[b'x'; 64], &[7; 33]] {
            assert_eq!(key(wrong), None);
        }
    }
}
