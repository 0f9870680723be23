//! Where a command writes its result.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Failure;

/// Refuses to write over a file that is read, by whatever name it goes.
pub(super) fn spare<'a>(
    inputs: impl IntoIterator<Item = &'a Path>,
    out: &Path,
) -> Result<(), Failure> {
    let Some(written) = identity(out) else {
        return Ok(());
    };
    for input in inputs {
        if identity(input) == Some(written) {
            return Err(Failure::usage(format!(
                "{} is read and cannot be written at once",
                out.display()
            )));
        }
    }
    Ok(())
}

/// Device and inode number of a file; a device or pipe loses nothing when it is written to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata
        .is_file()
        .then_some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[test]
    fn what_is_read_is_not_written_by_any_of_its_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.pcapng");
        std::fs::write(&file, b"evidence").expect("a file");
        let [link, hard] = ["link", "hard"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        std::fs::hard_link(&file, &hard).expect("a link");
        let again = folder.path().join(".").join("a.pcapng");
        for out in [&file, &link, &hard, &again] {
            let refused = spare([Path::new("/dev/null"), &file], out);
            let exit = refused.err().map(|failure| failure.exit);
            assert_eq!(exit, Some(Exit::Usage), "{}", out.display());
        }
        for out in [&folder.path().join("new"), Path::new("/dev/null")] {
            assert!(spare([Path::new("/dev/null"), &file], out).is_ok());
        }
    }
}
