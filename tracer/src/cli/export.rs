//! `tracer export`: tables, objects or another capture out of a capture; without names where asked for.

use std::io::{BufWriter, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use tempfile::TempDir;

use super::destination::spare;
use super::explain::{damaged, filter, open, say_skipped};
use super::progress::Progress;
use super::{Exit, Failure, OutputFormat};
use crate::anonymize::{Anonymizer, KEY_BYTES};
use crate::capture::{Foreign, ReadError, STANDARD_OUTPUT, Unmade, Written, create_private};
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
    /// Where to: a file, or a folder for parquet; json goes to standard output without it, or with `-`.
    #[arg(short, long)]
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
    let Some(file) = arguments.file.as_deref().filter(|_| !arguments.schema) else {
        write!(stdout(), "{}", describe())?;
        return Ok(Exit::Healthy);
    };
    let out = arguments
        .out
        .as_deref()
        .unwrap_or(Path::new(STANDARD_OUTPUT));
    if is_standard_output(out) && arguments.format != OutputFormat::Json {
        return Err(Failure::usage(
            "standard output takes json only: name a file, or a folder for parquet, with -o".into(),
        ));
    }
    spare([file], out)?;
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

/// Objects are printed.
fn is_standard_output(out: &Path) -> bool {
    out == Path::new(STANDARD_OUTPUT)
}

/// A folder beside the output, for its owner alone, that goes with its value.
pub(super) fn scratch(out: &Path) -> anyhow::Result<TempDir> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    tempfile::tempdir_in(parent)
        .map_err(Unmade)
        .with_context(|| format!("a folder in {}", parent.display()))
}

/// Writes tables or objects.
fn tables(
    file: &Path,
    filter: Filter,
    format: OutputFormat,
    out: &Path,
) -> Result<Option<ReadError>, Failure> {
    let mut reader = open(file)?;
    let mut progress = if is_standard_output(out) {
        Progress::beside_output(file, reader.is_packed())
    } else {
        Progress::of(file, reader.is_packed())
    };
    let moved = |position| progress.moved(position);
    let named = || out.display().to_string();
    let (error, counts) = if format == OutputFormat::Parquet {
        let mut tables = Tables::create(out)?;
        let error = walk(&mut reader, filter, &mut tables, moved).with_context(named)?;
        (error, tables.finish()?)
    } else {
        let file: Box<dyn Write> = if is_standard_output(out) {
            Box::new(stdout())
        } else {
            Box::new(create_private(out).map_err(Unmade).with_context(named)?)
        };
        let mut lines = Lines::new(BufWriter::with_capacity(1 << 16, file));
        let error = walk(&mut reader, filter, &mut lines, moved).with_context(named)?;
        (error, lines.finish().with_context(named)?)
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
    let events = if filter.is_everything() {
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
    let done = again(&mut reader, &Wanted { events, mapping }, out, moved)?;
    drop(progress);
    say_skipped(&reader);
    match (done.written, done.error) {
        (Some(written), error) => Ok((written, error)),
        (None, Some(error)) => Err(damaged(file, error)),
        (None, None) => Err(anyhow::Error::new(Foreign("written again"))
            .context(file.display().to_string())
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

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

    /// The exit code of a command with its arguments, `{}` for a folder.
    fn exit(folder: &Path, words: &[&str]) -> (Exit, String) {
        let folder = folder.display().to_string();
        let words = words.iter().map(|word| word.replace("{}", &folder));
        let typed = Cli::try_parse_from(std::iter::once("tracer".to_owned()).chain(words));
        let cli = typed.expect("words that are understood");
        let done = match &cli.command {
            Command::Export(arguments) => run(arguments),
            Command::Merge(arguments) => super::super::merge::run(arguments, &cli.output),
            Command::Report(arguments) => super::super::report::run(arguments, &cli.output),
            Command::Explain(arguments) => super::super::explain::run(arguments, &cli.output),
            other => panic!("{other:?}"),
        };
        match done {
            Ok(exit) => (exit, String::new()),
            Err(Failure { exit, error }) => (exit, format!("{error:#}")),
        }
    }

    #[test]
    fn json_goes_to_standard_output_where_no_file_is_named() {
        let captures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/captures");
        for end in ["", " -o -", " --anonymize"] {
            let words = format!("export {{}}/service-no-endpoints.pcapng port 9{end}");
            let (exit, error) = exit(Path::new(captures), &words.split(' ').collect::<Vec<_>>());
            assert_eq!(exit, Exit::Healthy, "{end}: {error}");
        }
        assert!(!Path::new(STANDARD_OUTPUT).exists());
    }

    #[test]
    fn each_kind_of_trouble_has_its_exit_code_and_is_said_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let put = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.join(name), bytes).expect("a file");
        };
        let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
        let own = std::fs::read(captures.join("service-no-endpoints.pcapng")).expect("a capture");
        put("own", &own);
        put("packed", &own[..120]);
        let unpacked = zstd::stream::decode_all(own.as_slice()).expect("a zstd frame");
        put("cut", &unpacked[..120]);
        put("junk", b"no capture");
        let pcap = [&0xa1b2_c3d4u32.to_le_bytes()[..], &[0; 16], &[1, 0, 0, 0]].concat();
        put("other", &pcap);
        for (words, code, said) in [
            (
                "explain {}/none",
                Exit::Usage,
                "{}/none: cannot be read: No such file",
            ),
            ("explain {}", Exit::Usage, "cannot be read: Is a directory"),
            ("explain {}/junk", Exit::Damaged, "junk: damaged at byte 0"),
            (
                "merge {}/none {}/own -o {}/x",
                Exit::Usage,
                "{}/none: cannot be read",
            ),
            (
                "merge {}/junk {}/own -o {}/x",
                Exit::Damaged,
                "{}/junk: damaged at byte 0",
            ),
            (
                "merge {}/cut {}/own -o {}/x",
                Exit::Damaged,
                "{}/cut: damaged at byte",
            ),
            (
                "merge {}/packed {}/own -o {}/x",
                Exit::Damaged,
                "{}/packed: cannot be read at byte 0",
            ),
            (
                "merge {}/other {}/own -o {}/x",
                Exit::Usage,
                "{}/other: another program's",
            ),
            (
                "merge {}/own {}/own -o {}/./own",
                Exit::Usage,
                "is read and cannot be",
            ),
            (
                "export {}/own -o {}/none/x",
                Exit::Usage,
                "{}/none/x: cannot be made",
            ),
            (
                "export {}/own -o /dev/full",
                Exit::CannotTrace,
                "/dev/full: No space",
            ),
            (
                "export {}/own -o {}/own",
                Exit::Usage,
                "is read and cannot be",
            ),
            (
                "export {}/own --format pcapng -o {}/none/x",
                Exit::Usage,
                "{}/none/x: cannot be made",
            ),
            (
                "export {}/own --format pcapng -o /dev/full",
                Exit::CannotTrace,
                "/dev/full: No space",
            ),
            (
                "export {}/own --format parquet -o {}/own/x",
                Exit::Usage,
                "{}/own/x: cannot be made",
            ),
            (
                "export {}/cut --format pcapng -o {}/x",
                Exit::Damaged,
                "{}/cut: damaged at byte",
            ),
            (
                "export {}/other --format pcapng -o {}/x",
                Exit::Usage,
                "{}/other: another program's",
            ),
            (
                "report {}/own -o {}/none/x",
                Exit::Usage,
                "{}/none/x: cannot be made",
            ),
            (
                "report {}/own -o {}/own",
                Exit::Usage,
                "is read and cannot be",
            ),
        ] {
            let (exit, error) = exit(folder, &words.split(' ').collect::<Vec<_>>());
            let said = said.replace("{}", &folder.display().to_string());
            assert_eq!(exit, code, "{words}: {error}");
            assert!(error.contains(&said), "{words}: {error}");
            // Each reason once.
            let reasons: Vec<_> = error.split(": ").collect();
            let once: std::collections::BTreeSet<_> = reasons.iter().collect();
            assert_eq!(reasons.len(), once.len(), "{words}: {error}");
        }
        assert_eq!(std::fs::read(folder.join("own")).expect("a file"), own);
    }
}
