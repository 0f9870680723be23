//! The file of a capture that is being written, in whatever form.

use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write as _};
use std::path::Path;

use super::file::{STANDARD_OUTPUT, create_private};
use super::lines::Lines;

/// The file that is being written.
pub(super) enum Open {
    Plain(BufWriter<File>),
    Packed(Box<zstd::stream::Encoder<'static, BufWriter<File>>>),
    Lines(Lines<Stdout>),
}

impl Open {
    pub(super) fn create(path: &Path, zstd: bool) -> io::Result<Self> {
        if path == Path::new(STANDARD_OUTPUT) {
            return Ok(Self::Lines(Lines::new(io::stdout())));
        }
        let file = BufWriter::with_capacity(1 << 18, create_private(path)?);
        Ok(if zstd {
            let mut packed = zstd::stream::Encoder::new(file, 3)?;
            packed.include_checksum(true)?;
            Self::Packed(Box::new(packed))
        } else {
            Self::Plain(file)
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Packed(file) => file.write_all(bytes),
            Self::Lines(lines) => lines.write(bytes),
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Packed(file) => file.flush(),
            Self::Lines(lines) => lines.flush(),
        }
    }

    /// Waits until what was flushed is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::Plain(file) => sync(file.get_ref()),
            Self::Packed(file) => sync(file.get_ref().get_ref()),
            Self::Lines(_) => Ok(()),
        }
    }

    pub(super) fn close(self) -> io::Result<()> {
        let mut file = match self {
            Self::Plain(file) => file,
            Self::Packed(file) => file.finish()?,
            Self::Lines(mut lines) => return lines.flush(),
        };
        file.flush()?;
        sync(file.get_ref())
    }
}

/// Waits for the disk. What has none, as a pipe, cannot be waited for.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_data() {
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_no_disk_to_wait_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe.pcapng");
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&pipe, mode).expect("a pipe");
        let read = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::read(pipe))
        };
        let open = Open::create(&pipe, false).expect("a reader is there");
        open.sync().expect("nothing to wait for");
        open.close().expect("nothing to wait for");
        read.join().expect("a reader").expect("a pipe");
    }
}
