//! Builds the tracer and one target of the tests crate, and says where cargo put that.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::setup::EbpfToolchain;

#[derive(Deserialize)]
struct Message {
    target: Option<MessageTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct MessageTarget {
    name: String,
}

/// Builds the tracer and a binary of the tests crate, both for release; `kind` is `--test` or `--bench`. Unoptimised, the
/// API server of the tests is too slow on emulated processors.
///
/// Both at once: they ask for other features of their common dependencies, which would be built twice.
pub(crate) fn release(toolchain: &EbpfToolchain, kind: &str, target: &str) -> Result<PathBuf> {
    let output = toolchain
        .cargo()?
        .args([
            "build",
            "--release",
            "--package",
            "tracer",
            "--package",
            "tests",
        ])
        .args(["--bin", "tracer", kind, target])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("tracer or tests' {target} does not build; cargo's messages are above");
    }
    executable(&String::from_utf8_lossy(&output.stdout), target)
        .with_context(|| format!("cargo built no {target}"))
}

/// The target's path in cargo's messages, one JSON object a line.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.target.as_ref().is_some_and(|it| it.name == target))
        .find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_of_a_target_is_found() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"tracer"},"executable":"/t/tracer"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"lab"},"executable":"/t/lab-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages, "lab"), Some(PathBuf::from("/t/lab-1")));
        assert_eq!(executable("", "lab"), None);
    }
}
