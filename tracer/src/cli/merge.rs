//! `tracer merge`: captures of several nodes as one.

use std::collections::BTreeSet;
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

use clap::Args;

use super::destination::spare;
use super::explain::{damaged, explain, open};
use super::export::{Anonymize, rewrite, scratch};
use super::progress::Progress;
use super::{Exit, Failure, Output, OutputFormat};
use crate::capture::Written;
use crate::filter::Filter;
use crate::merge::{Joined, Merged, merge};
use crate::printer::Show;
use crate::view::json;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Captures of the tracer, of one node each; the clock of the first one counts.
    #[arg(required = true, num_args = 2..)]
    files: Vec<PathBuf>,
    /// The capture that is made.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    anonymize: Anonymize,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let out = &arguments.out;
    spare(arguments.files.iter().map(PathBuf::as_path), out)?;
    let mapping = arguments.anonymize.mapping()?;
    let Merged {
        joined,
        written,
        damaged: wrong,
    } = match mapping {
        None => join(&arguments.files, out)?,
        Some(mapping) => {
            let folder = scratch(out)?;
            let named = folder.path().join("named.pcapng");
            let merged = join(&arguments.files, &named)?;
            let (written, _) = rewrite(&named, Filter::default(), Some(&mapping), out)?;
            Merged { written, ..merged }
        }
    };
    say(&mut stdout(), &joined, &written, Kept::Yes, output)?;
    match wrong.into_iter().next() {
        Some((file, error)) => Err(damaged(&file, error)),
        None => Ok(Exit::Healthy),
    }
}

/// Joins captures, with a bar where that takes long.
fn join(files: &[PathBuf], out: &Path) -> Result<Merged, Failure> {
    let mut packed = false;
    for file in files {
        packed |= open(file)?.is_packed();
    }
    let mut progress = Progress::of_two_readings(files, packed);
    Ok(merge(files, out, |position| progress.moved(position))?)
}

/// Whether the captures are there afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Then their files are named.
    Yes,
    /// They were only joined.
    No,
}

fn say(
    out: &mut impl Write,
    joined: &[Joined],
    written: &Written,
    kept: Kept,
    output: &Output,
) -> io::Result<()> {
    for capture in joined {
        match (output.format, kept) {
            (OutputFormat::Json, _) => json::line(out, "merge", capture)?,
            (_, Kept::Yes) => writeln!(out, "{}: {}", capture.file.display(), capture.words())?,
            (_, Kept::No) => writeln!(out, "{}", capture.words())?,
        }
    }
    if output.format == OutputFormat::Text && kept == Kept::Yes {
        writeln!(out, "{}", written.words())?;
    }
    Ok(())
}

/// Joins captures and prints what they show together; gives the codes of the causes.
pub(super) fn explain_together(
    files: &[PathBuf],
    out: &Path,
    kept: Kept,
    show: Show,
    output: &Output,
) -> Result<BTreeSet<&'static str>, Failure> {
    let merged = join(files, out)?;
    say(&mut stdout(), &merged.joined, &merged.written, kept, output)?;
    for (file, error) in &merged.damaged {
        eprintln!(
            "tracer: {}: {error}; what is before it counts",
            file.display()
        );
    }
    explain(out, Filter::default(), show, output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Colour;

    /// Nobody reads any more.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_printed_is_an_error() {
        for (format, kept) in [
            (OutputFormat::Text, Kept::Yes),
            (OutputFormat::Text, Kept::No),
            (OutputFormat::Json, Kept::Yes),
        ] {
            let output = Output {
                format,
                color: Colour::Never,
                verbose: false,
            };
            let joined = Joined {
                file: PathBuf::new(),
                node: String::new(),
                offset_ns: None,
                error_ns: None,
                pairs: 0,
                joined: 0,
            };
            let said = say(&mut Closed, &[joined], &Written::default(), kept, &output);
            let kind = said.err().map(|error| error.kind());
            assert_eq!(kind, Some(io::ErrorKind::BrokenPipe));
        }
    }
}
