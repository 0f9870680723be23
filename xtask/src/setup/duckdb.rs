//! DuckDB: the program that the test of exported tables reads them with. It comes from PyPI into a folder
//! of its own, so that no Python on this machine changes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::packages;
use crate::failure::missing;
use crate::step::Step;
use crate::tool;
use crate::workspace::{self, Lock};

/// The version that the test knows.
const VERSION: &str = "2.0.1";

/// Installs it where it is not there yet; gives the folder for PYTHONPATH.
pub(crate) fn duckdb() -> Result<PathBuf> {
    let setup = workspace::cache("setup")?;
    let folder = setup.join(format!("duckdb-{VERSION}"));
    let _lock = Lock::wait("duckdb")?;
    if folder.is_dir() {
        return Ok(folder);
    }
    if packages::debian_like() {
        packages::install("the test of exports", &["python3", "python3-pip"])?;
    }
    let fetching = Step::start("installing DuckDB from PyPI");
    let aside = tempfile::tempdir_in(&setup).context("cannot create a folder for DuckDB")?;
    let root = aside.path().join("root");
    let mut pip = tool::command("python3")?;
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ])
    .arg("--target")
    .arg(&root)
    .arg(format!("duckdb=={VERSION}"));
    tool::output(&mut pip).map_err(|error| {
        missing(format!(
            "DuckDB {VERSION} cannot be installed with pip, check python3, pip and the network: {error:#}"
        ))
    })?;
    fs::rename(&root, &folder)
        .with_context(|| format!("cannot move DuckDB to {}", folder.display()))?;
    fetching.done();
    Ok(folder)
}
