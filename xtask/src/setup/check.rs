//! The programs that tests on this machine need: kubectl and promtool to compare with, and a browser.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::packages;
use crate::failure::missing;
use crate::step::Step;
use crate::workspace::{self, Lock};
use crate::{step, tool};

/// Where promtool is in its package.
const PROMTOOL: &str = "usr/bin/promtool";

/// What Chromium is called; the test of the report looks for the same.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Makes sure that all are there; gives promtool's path.
pub(crate) fn test_programs() -> Result<PathBuf> {
    let debian = packages::debian_like();
    if BROWSERS.iter().all(|browser| tool::find(browser).is_none()) {
        if !debian {
            return Err(absent("Chromium"));
        }
        packages::install("the test of reports", &["chromium"])?;
    }
    if tool::find("kubectl").is_none() {
        if !debian {
            return Err(absent("kubectl"));
        }
        packages::install("the tests", &["kubernetes-client"])?;
    }
    match tool::find("promtool") {
        Some(path) => Ok(path),
        None if debian => promtool(),
        None => Err(absent("promtool")),
    }
}

fn absent(program: &str) -> anyhow::Error {
    missing(format!(
        "the tests need {program}, which this machine lacks; install it with its package manager"
    ))
}

/// Unpacks promtool alone: installing its package would start a Prometheus server on this machine.
fn promtool() -> Result<PathBuf> {
    let folder = workspace::cache("setup")?.join("promtool");
    let program = folder.join(PROMTOOL);
    let _lock = Lock::wait("promtool")?;
    if program.is_file() {
        return Ok(program);
    }
    let fetching = Step::start("downloading promtool");
    let aside = tempfile::tempdir_in(workspace::cache("setup")?)
        .context("cannot create a folder for promtool")?;
    let root = aside.path().join("root");
    tool::output(
        tool::command("apt-get")?
            .args(["download", "prometheus"])
            .current_dir(aside.path()),
    )
    .map_err(|error| missing(format!("promtool cannot be downloaded: {error:#}")))?;
    let archive = archive_in(aside.path())?;
    tool::output(
        tool::command("dpkg-deb")?
            .arg("--extract")
            .arg(archive)
            .arg(&root),
    )?;
    fs::rename(&root, &folder)
        .with_context(|| format!("cannot move promtool to {}", folder.display()))?;
    fetching.done();
    step::note(format!("promtool is kept in {}", folder.display()));
    Ok(program)
}

fn archive_in(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get download left no package")
}
