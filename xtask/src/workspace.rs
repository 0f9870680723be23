//! Where things are: the repository, its target folder, and locks on what is shared there.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The repository's top folder.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo's target folder, where everything that xtask caches lives too.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(configured) => root().join(configured),
        None => root().join("target"),
    }
}

/// A folder below the target folder, created if absent.
pub(crate) fn cache(name: &str) -> Result<PathBuf> {
    let folder = target().join(name);
    create_folder(&folder)?;
    Ok(folder)
}

/// Creates a folder and its parents.
pub(crate) fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Held while a shared cache is filled, so that two xtasks never fill it together.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until no other xtask holds the lock of that name.
    pub(crate) fn wait(name: &str) -> Result<Self> {
        let path = cache("setup")?.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}
