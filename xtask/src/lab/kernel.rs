//! The kernels that the lab boots: which there are, and where an unpacked one keeps its files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::archive;
use crate::workspace::{self, Lock};

/// A line of Debian kernels. The newest release of a series is resolved when it is downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 11
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13, also offered to Debian 12
    #[value(name = "6.12")]
    V6_12,
    /// Debian 13 backports
    #[value(name = "7.3")]
    V7_3,
}

impl Series {
    /// Every series, oldest first.
    pub(crate) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7_3];

    /// The series as the command line and the tables name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_3 => "7.3",
        }
    }

    /// Debian suites that carry the series: the first group with a release of it is used.
    pub(super) fn suites(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::V5_10 => &[&["bullseye", "bullseye-security"]],
            Self::V6_1 => &[&["bookworm", "bookworm-security"]],
            Self::V6_12 => &[
                &["bookworm-backports", "bookworm-security"],
                &["trixie", "trixie-security"],
            ],
            Self::V7_3 => &[&["trixie-backports"], &["forky"]],
        }
    }

    /// True for `6.1.0-56-amd64` in series 6.1; flavours such as cloud and rt are not ours.
    pub(super) fn holds(self, release: &str) -> bool {
        release
            .strip_prefix(self.name())
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_suffix("-amd64"))
            .is_some_and(|middle| !middle.ends_with("-cloud") && !middle.ends_with("-rt"))
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says inside.
    pub(super) release: String,
    /// Holds lib/modules/RELEASE.
    pub(super) folder: PathBuf,
    /// The image that QEMU boots.
    pub(super) image: PathBuf,
}

impl Kernel {
    /// The cached kernel of the series, downloaded first when there is none.
    pub(crate) fn obtain(series: Series) -> Result<Self> {
        let cache = workspace::cache("lab/kernels")?;
        if let Some(kernel) = cached(&cache, series)? {
            return Ok(kernel);
        }
        let _lock = Lock::wait("kernels")?;
        // Another xtask may have filled the cache while this one waited for the lock.
        if let Some(kernel) = cached(&cache, series)? {
            return Ok(kernel);
        }
        let release = archive::download(series, &cache)?;
        Self::open(&cache.join(&release), release)
    }

    fn open(folder: &Path, release: String) -> Result<Self> {
        let image = [
            folder.join(format!("boot/vmlinuz-{release}")),
            folder.join(format!("lib/modules/{release}/vmlinuz")),
        ]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| {
            format!(
                "no kernel image in {}; delete that folder and retry",
                folder.display()
            )
        })?;
        Ok(Self {
            release,
            folder: folder.to_owned(),
            image,
        })
    }
}

/// The newest complete kernel of the series; folders get their final name only when complete.
fn cached(cache: &Path, series: Series) -> Result<Option<Kernel>> {
    let mut releases = Vec::new();
    let entries =
        fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))?;
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if series.holds(&name) {
            releases.push(name);
        }
    }
    releases.sort_by(|left, right| compare_releases(left, right));
    releases
        .pop()
        .map(|release| Kernel::open(&cache.join(&release), release))
        .transpose()
}

/// Orders releases by their numbers: `6.1.0-9` before `6.1.0-56`.
pub(super) fn compare_releases(left: &str, right: &str) -> std::cmp::Ordering {
    let numbers = |release: &str| -> Vec<u64> {
        // Without the architecture, whose digits are no version.
        let version = release.strip_suffix("-amd64").unwrap_or(release);
        version
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    numbers(left).cmp(&numbers(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_hold_their_own_releases_only() {
        assert!(Series::V6_1.holds("6.1.0-56-amd64"));
        assert!(Series::V6_12.holds("6.12.117+deb12-amd64"));
        assert!(!Series::V6_1.holds("6.12.117+deb12-amd64"));
        assert!(!Series::V6_1.holds("6.1.0-56-cloud-amd64"));
        assert!(!Series::V6_1.holds("6.1.0-56-rt-amd64"));
        assert!(!Series::V6_1.holds("6.1-amd64"));
        assert!(!Series::V6_1.holds(".partial-6.1.0-56-amd64"));
    }

    #[test]
    fn newest_release_is_last() {
        let mut releases = ["6.1.0-56-amd64", "6.1.0-9-amd64", "6.1.0-47-amd64"];
        releases.sort_by(|left, right| compare_releases(left, right));
        assert_eq!(
            releases,
            ["6.1.0-9-amd64", "6.1.0-47-amd64", "6.1.0-56-amd64"]
        );
        assert!(compare_releases("6.12.90+deb12-amd64", "6.12.90+deb12.1-amd64").is_lt());
    }

    #[test]
    fn names_match_the_command_line() {
        use clap::ValueEnum as _;
        for series in Series::ALL {
            let value = series
                .to_possible_value()
                .map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(series.name()));
        }
    }
}
