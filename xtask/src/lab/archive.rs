//! Downloads kernels and single programs from Debian's archive.
//!
//! apt does the work (mirrors, signatures, checksums) on lists and folders of its own below the
//! target folder: it needs no root, and the system's apt does not notice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::kernel::{Series, compare_releases};
use crate::failure::missing;
use crate::step::{self, Step};
use crate::tool;
use crate::workspace;

/// Used when the system's own apt names no Debian mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org";

/// Downloads the newest kernel of the series into `cache/RELEASE` and gives the release.
pub(super) fn download(series: Series, cache: &Path) -> Result<String> {
    if tool::find("apt-get").is_none() {
        return Err(missing(
            "kernels come from Debian's archive, and this machine has no apt-get; \
             run this on Debian or Ubuntu (or copy target/lab/kernels from such a machine)",
        ));
    }
    let why = format!("cannot download kernel {}", series.name());
    fetch(series, cache)
        .map_err(|error| missing(format!("{why}, check network and disk: {error:#}")))
}

fn fetch(series: Series, cache: &Path) -> Result<String> {
    let mut complaints = Vec::new();
    for suites in series.suites() {
        let apt = PrivateApt::create(series.name(), suites)?;
        // A suite may have left the mirror while the others of its group still serve.
        if let Err(error) = apt.update(suites) {
            complaints.push(format!("{error:#}"));
        }
        let Some(release) = apt.newest(series)? else {
            continue;
        };
        let packages = apt.packages(&release)?;
        install(&apt, &packages, &release, cache)?;
        return Ok(release);
    }
    bail!("no such kernel in the archive; {}", complaints.join("; "))
}

/// Downloads and unpacks aside, then renames: a folder named after a release is complete.
fn install(apt: &PrivateApt, packages: &[Package], release: &str, cache: &Path) -> Result<()> {
    let aside = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(cache)
        .with_context(|| format!("cannot create a folder in {}", cache.display()))?;
    let (archives, root) = (aside.path().join("archives"), aside.path().join("root"));
    for folder in [&archives, &root] {
        workspace::create_folder(folder)?;
    }
    apt.download(&format!("Linux {release}"), packages, &archives)?;

    let unpacking = Step::start(format!("unpacking Linux {release}"));
    unpack(&archives, &root)?;
    // Newer packages use /usr/lib only, where depmod and modprobe do not look.
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).context("cannot link lib")?;
    }
    tool::output(tool::command("depmod")?.arg("-b").arg(&root).arg(release))?;
    let finished = cache.join(release);
    fs::rename(&root, &finished)
        .with_context(|| format!("cannot move the kernel to {}", finished.display()))?;
    unpacking.done();
    step::note(format!("Linux {release} is kept in {}", finished.display()));
    Ok(())
}

/// Unpacks every archive of a folder.
fn unpack(archives: &Path, root: &Path) -> Result<()> {
    for archive in files(archives)? {
        tool::output(
            tool::command("dpkg-deb")?
                .arg("--extract")
                .arg(archive)
                .arg(root),
        )?;
    }
    Ok(())
}

/// A program of one package of a suite, unpacked into `cache/PACKAGE` and not installed; `path` is
/// where the package has it.
pub(super) fn program(package: &str, path: &str, suite: &str, cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(package);
    let program = folder.join(path);
    if program.exists() {
        return Ok(program);
    }
    let apt = PrivateApt::create(suite, &[suite])?;
    apt.update(&[suite])?;
    let found = apt
        .package(package)?
        .with_context(|| format!("Debian {suite} has no package {package}"))?;
    let aside = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(cache)
        .with_context(|| format!("cannot create a folder in {}", cache.display()))?;
    let (archives, root) = (aside.path().join("archives"), aside.path().join("root"));
    for folder in [&archives, &root] {
        workspace::create_folder(folder)?;
    }
    apt.download(package, &[found], &archives)?;
    unpack(&archives, &root)?;
    fs::rename(&root, &folder)
        .with_context(|| format!("cannot move {package} to {}", folder.display()))?;
    Ok(program)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot read {}", folder.display()))
}

/// A package to download, and its size in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    bytes: u64,
}

/// apt on a sources list and state of its own.
struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    fn create(name: &str, suites: &[&str]) -> Result<Self> {
        let folder = workspace::cache(&format!("lab/apt/{name}"))?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            workspace::create_folder(&folder.join(part))?;
        }
        let write = |name: &str, content: String| {
            let path = folder.join(name);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
        };
        write("status", String::new())?;
        let mirrors = Mirrors::of_system();
        let lines: Vec<String> = suites.iter().map(|suite| mirrors.source(suite)).collect();
        write("sources.list", lines.join("\n") + "\n")?;
        Ok(Self { folder })
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = tool::command(program)?;
        let folder = self.folder.display();
        for option in [
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Get::List-Cleanup=true".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Without it an unreachable mirror is a warning only.
            "APT::Update::Error-Mode=any".to_owned(),
            // Indexes for desktops and file searches, which some machines have configured.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
            // Old suites stop being re-signed; their signatures are still checked.
            "Acquire::Check-Valid-Until=false".to_owned(),
            // The folders are this user's: apt's own user could not write there.
            format!("APT::Sandbox::User={}", current_user()),
        ] {
            command.args(["-o", &option]);
        }
        Ok(command)
    }

    /// Reads the package lists of its suites.
    fn update(&self, suites: &[&str]) -> Result<()> {
        let step = Step::start(format!(
            "reading Debian's package lists of {}",
            suites.join(", ")
        ));
        tool::run_in_step(self.command("apt-get")?.args(["update", "--quiet"]), &step)?;
        step.done();
        Ok(())
    }

    /// The newest release of the series that the lists hold.
    fn newest(&self, series: Series) -> Result<Option<String>> {
        let names = tool::output(
            self.command("apt-cache")?
                .args(["pkgnames", "linux-image-"]),
        )?;
        Ok(newest_release(&names, series))
    }

    /// The packages that hold image and modules: one, or three behind an empty one since 7.x.
    fn packages(&self, release: &str) -> Result<Vec<Package>> {
        let mut found = Vec::new();
        for part in ["linux-image", "linux-base", "linux-binary", "linux-modules"] {
            let name = format!("{part}-{release}");
            found.extend(self.package(&name)?);
        }
        Ok(found)
    }

    fn package(&self, name: &str) -> Result<Option<Package>> {
        let shown =
            tool::run(
                self.command("apt-cache")?
                    .args(["show", "--no-all-versions", name]),
            )?;
        let stanza = String::from_utf8_lossy(&shown.stdout).into_owned();
        let bytes = field(&stanza, "Size").and_then(|size| size.parse().ok());
        Ok(bytes.map(|bytes| Package {
            name: name.to_owned(),
            bytes,
        }))
    }

    fn download(&self, what: &str, packages: &[Package], into: &Path) -> Result<()> {
        let total = packages.iter().map(|package| package.bytes).sum();
        let step = Step::download(
            format!("downloading {what} ({} MB)", total / 1_000_000),
            total,
        );
        let mut command = self.command("apt-get")?;
        command
            .args(["download", "--quiet"])
            .args(packages.iter().map(|package| &package.name));
        let mut child = command
            .current_dir(into)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start apt-get")?;
        while child.try_wait().context("lost sight of apt-get")?.is_none() {
            step.position(size_of(into));
            std::thread::sleep(Duration::from_millis(200));
        }
        let output = child.wait_with_output().context("lost sight of apt-get")?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("apt-get download failed: {}", complaint.trim());
        }
        step.done();
        Ok(())
    }
}

fn current_user() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid())
        .ok()
        .flatten()
        .map_or_else(|| "root".to_owned(), |user| user.name)
}

/// Bytes in a folder's files; files that vanish meanwhile count as nothing.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// A field's value in a stanza of apt-cache.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn newest_release(package_names: &str, series: Series) -> Option<String> {
    package_names
        .lines()
        .filter_map(|name| name.trim().strip_prefix("linux-image-"))
        .filter(|release| series.holds(release))
        .max_by(|left, right| compare_releases(left, right))
        .map(str::to_owned)
}

/// Where this machine's apt gets Debian from.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    debian: String,
    security: String,
}

impl Mirrors {
    fn of_system() -> Self {
        let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        for path in files(Path::new("/etc/apt/sources.list.d")).unwrap_or_default() {
            text.push('\n');
            text.push_str(&fs::read_to_string(path).unwrap_or_default());
        }
        Self::in_sources(&text)
    }

    /// Reads one-line and deb822 sources alike: a mirror is an address of the right last part.
    fn in_sources(text: &str) -> Self {
        let addresses: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(str::split_whitespace)
            .filter(|word| word.contains("://"))
            .map(|word| word.trim_end_matches('/'))
            .collect();
        let ending_with = |last: &str| {
            let suffix = format!("/{last}");
            addresses
                .iter()
                .find(|address| address.ends_with(&suffix))
                .map_or_else(
                    || format!("{DEFAULT_MIRROR}/{last}"),
                    |address| (*address).to_owned(),
                )
        };
        Self {
            debian: ending_with("debian"),
            security: ending_with("debian-security"),
        }
    }

    fn source(&self, suite: &str) -> String {
        let mirror = if suite.ends_with("-security") {
            &self.security
        } else {
            &self.debian
        };
        format!("deb {mirror} {suite} main")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let one_line = "# deb http://old.example/debian bullseye main\n\
                        deb [arch=amd64] http://mirror.example/debian/ bookworm main\n";
        let mirrors = Mirrors::in_sources(one_line);
        assert_eq!(
            mirrors.source("bullseye"),
            "deb http://mirror.example/debian bullseye main"
        );
        assert_eq!(
            mirrors.source("bullseye-security"),
            "deb http://deb.debian.org/debian-security bullseye-security main"
        );

        let deb822 =
            "Types: deb\nURIs: https://a.example/debian-security\nSuites: bookworm-security\n";
        assert_eq!(
            Mirrors::in_sources(deb822).security,
            "https://a.example/debian-security"
        );
        assert_eq!(
            Mirrors::in_sources("").debian,
            "http://deb.debian.org/debian"
        );
    }

    #[test]
    fn newest_release_of_a_series_is_chosen() {
        let names = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\nlinux-image-6.1.0-57-rt-amd64\n\
                     linux-image-6.1.0-58-amd64-unsigned\nlinux-image-6.12.9+deb12-amd64\n";
        assert_eq!(
            newest_release(names, Series::V6_1).as_deref(),
            Some("6.1.0-56-amd64")
        );
        assert_eq!(newest_release(names, Series::V7_3), None);
    }

    #[test]
    fn size_is_not_taken_from_installed_size() {
        let stanza = "Package: a\nInstalled-Size: 15\nSize: 1900\n";
        assert_eq!(field(stanza, "Size"), Some("1900"));
    }
}
