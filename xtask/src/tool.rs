//! Runs the system's programs: where they are found, and what is said when they fail.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::step::Step;

/// Folders that hold administration programs and are often absent from a user's PATH.
const ADMINISTRATION: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The caller's PATH with `front` before it and the administration folders behind it.
pub(crate) fn search_path(front: &[&Path]) -> Result<OsString> {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = front.iter().map(|folder| folder.to_path_buf()).collect();
    for folder in env::split_paths(&inherited).chain(ADMINISTRATION.map(PathBuf::from)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    env::join_paths(folders).context("PATH holds a folder name that cannot be passed on")
}

/// The full path of a program, if there is one.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = search_path(&[]).ok()?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// A command that also finds programs in the administration folders and speaks plain English.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Result<Command> {
    let mut command = Command::new(program);
    command.env("PATH", search_path(&[])?).env("LC_ALL", "C");
    Ok(command)
}

/// Runs to the end and gives what was printed; an error holds what the program complained about.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = run(command)?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            name(command),
            output.status,
            complaint.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end whatever the exit status.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", name(command)))
}

/// Runs to the end, showing the latest line as the step's detail; a failure carries all of stderr.
pub(crate) fn run_in_step(command: &mut Command, step: &Step) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", name(command)))?;
    let mut complaint = String::new();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        if let Some(stdout) = stdout {
            scope.spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    step.detail(&line);
                }
            });
        }
        if let Some(mut stderr) = stderr {
            // Only what was read is shown; a read error ends the text early and nothing else.
            let _ = stderr.read_to_string(&mut complaint);
        }
    });
    let status = child
        .wait()
        .with_context(|| format!("lost sight of {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status}): {}", name(command), complaint.trim());
    }
    Ok(())
}

/// The program's name for messages.
pub(crate) fn name(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}
