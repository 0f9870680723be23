//! `tracer completions` and `tracer man`: made from the definitions of the command line.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Exit, Failure};

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct CompletionArguments {
    /// The shell that is to complete.
    shell: Shell,
}

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct ManArguments {
    /// Where the pages go, one for each command; it is made where it is missing.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

pub(super) fn completions(arguments: &CompletionArguments) -> Result<Exit, Failure> {
    // The whole first: a pipe that is closed early is no panic.
    let mut script = Vec::new();
    let (shell, mut command) = (arguments.shell, Cli::command());
    clap_complete::generate(shell, &mut command, "tracer", &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(Exit::Healthy)
}

pub(super) fn man(arguments: &ManArguments) -> Result<Exit, Failure> {
    let directory = &arguments.directory;
    let cannot = || format!("the pages cannot be written to {}", directory.display());
    fs::create_dir_all(directory).with_context(cannot)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(cannot)?;
    Ok(Exit::Healthy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path().join("man1");
        let arguments = ManArguments {
            directory: directory.clone(),
        };
        assert!(matches!(man(&arguments), Ok(Exit::Healthy)));
        for command in Cli::command().get_subcommands() {
            let page = directory.join(format!("tracer-{}.1", command.get_name()));
            let text = fs::read_to_string(&page).unwrap_or_default();
            assert!(text.contains(".SH SYNOPSIS"), "{}: {text}", page.display());
        }
    }
}
