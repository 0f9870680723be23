//! Debian packages: which are missing, and installing those.

use std::process::Command;

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;

use crate::failure::missing;
use crate::step::{self, Step};
use crate::tool;

/// True where packages come from apt.
pub(crate) fn debian_like() -> bool {
    tool::find("apt-get").is_some() && tool::find("dpkg-query").is_some()
}

/// Installs those of the packages that are not installed; touches nothing when all are.
pub(crate) fn install(purpose: &str, packages: &[&str]) -> Result<()> {
    let absent = absent(packages)?;
    if absent.is_empty() {
        return Ok(());
    }
    step::note(format!("installing for {purpose}: {}", absent.join(" ")));
    let administrator = Administrator::obtain(&format!("install {}", absent.join(" ")))?;

    let refresh = Step::start("reading the package lists");
    // A repository that is not Debian's may be out of reach without mattering here.
    let refreshed = tool::run_in_step(administrator.apt()?.arg("update"), &refresh);
    match &refreshed {
        Ok(()) => refresh.done(),
        Err(_) => drop(refresh),
    }

    // Downloading all of them first leaves the system untouched when the network fails half-way.
    for (name, extra) in [
        ("downloading packages", Some("--download-only")),
        ("installing packages", None),
    ] {
        let step = Step::start(name);
        let mut command = administrator.apt()?;
        command.args(["install", "--yes", "--no-install-recommends"]);
        command.args(extra).args(&absent);
        let outcome = tool::run_in_step(&mut command, &step);
        outcome.map_err(|error| {
            let lists = refreshed
                .as_ref()
                .err()
                .map(|error| format!("; before that, {error:#}"));
            missing(format!(
                "{name} for {purpose} failed, check network and disk: {error:#}{}",
                lists.unwrap_or_default()
            ))
        })?;
        step.done();
    }
    Ok(())
}

/// Those of the packages that dpkg does not hold as installed.
pub(crate) fn absent<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // Unknown names make dpkg-query exit with 1; what it knows is on stdout all the same.
    let output = tool::run(
        tool::command("dpkg-query")?
            .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
            .args(packages),
    )?;
    let listing = String::from_utf8_lossy(&output.stdout);
    Ok(packages
        .iter()
        .copied()
        .filter(|package| !is_installed(&listing, package))
        .collect())
}

fn is_installed(listing: &str, package: &str) -> bool {
    listing
        .lines()
        .any(|line| line.split_once(' ') == Some((package, "installed")))
}

/// The right to change the system, by being root or through sudo.
struct Administrator {
    through_sudo: bool,
}

impl Administrator {
    fn obtain(reason: &str) -> Result<Self> {
        if geteuid().is_root() {
            return Ok(Self {
                through_sudo: false,
            });
        }
        if tool::find("sudo").is_none() {
            return Err(missing(format!(
                "cannot {reason}: this needs root and there is no sudo; run it as root once"
            )));
        }
        step::note(format!("using sudo, because only root may {reason}"));
        // Asked here, so that a password prompt never meets a spinner.
        let granted = Command::new("sudo")
            .arg("--validate")
            .status()
            .context("cannot start sudo")?;
        if !granted.success() {
            return Err(missing(format!("cannot {reason}: sudo was refused")));
        }
        Ok(Self { through_sudo: true })
    }

    fn apt(&self) -> Result<Command> {
        let mut command = if self.through_sudo {
            let mut sudo = tool::command("sudo")?;
            sudo.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            sudo
        } else {
            let mut apt = tool::command("apt-get")?;
            apt.env("DEBIAN_FRONTEND", "noninteractive");
            apt
        };
        command.args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fully_installed_packages_count() {
        let listing = "kmod installed\ncpio config-files\nllvm-22-dev half-configured\n";
        assert!(is_installed(listing, "kmod"));
        assert!(!is_installed(listing, "cpio"));
        assert!(!is_installed(listing, "llvm-22-dev"));
        assert!(!is_installed(listing, "kmo"));
    }
}
