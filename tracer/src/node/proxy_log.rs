//! What kube-proxy's log says: that it finds no program `conntrack`, and whose entries it could not delete. Only what
//! follows its last start counts: what it said before may be mended.
//!
//! Sources: kubernetes pkg/proxy/ipvs/proxier.go and pkg/util/conntrack up to 1.31. The wording differs
//! between versions; what stays is the message of os/exec and the service's address.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// Most that is read: the end of the log.
const MOST_BYTES: u64 = 64 << 20;
/// Longest line; the rest of a longer one is passed over.
const MOST_LINE: u64 = 64 << 10;
/// Lines that the journal is asked for.
const JOURNAL_LINES: &str = "100000";
/// What kube-proxy says when it starts: `Version: v1.20.2` up to 1.23, then `"Version info"` (cmd/kube-proxy/app/server.go).
const STARTS: [&str; 2] = ["] Version: ", "] \"Version info\""];
/// Length of the first word of klog's head: `E1209`.
const HEAD: usize = 5;
/// Words before klog's head of a line, where something else wrote the line to a file.
const MOST_WORDS_BEFORE: usize = 8;
/// Services that are kept.
const MOST_SERVICES: usize = 1_024;

/// What was found in kube-proxy's log.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ProxyLog {
    /// The file, or the command that printed it.
    pub source: String,
    /// Lines that were looked at.
    pub lines: u64,
    /// Only the end of it was read.
    pub cut: bool,
    /// The last line that says that there is no program `conntrack`.
    pub no_tool: Option<String>,
    /// The last line that says that entries could not be deleted for another reason.
    #[serde(default)]
    pub failed: Option<String>,
    /// Services whose stale UDP entries could not be deleted.
    pub undeleted: BTreeSet<IpAddr>,
}

impl ProxyLog {
    /// Reads a log file, at most its last 64 MiB.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let cut = length > MOST_BYTES;
        if cut {
            file.seek(SeekFrom::Start(length - MOST_BYTES))?;
        }
        let mut log = Self {
            source: path.display().to_string(),
            cut,
            ..Self::default()
        };
        log.take(BufReader::new(file.take(MOST_BYTES)))?;
        Ok(log)
    }

    /// Reads what the unit kube-proxy wrote to systemd's journal, at most its last 100,000 lines.
    ///
    /// # Errors
    /// When there is no journalctl, or with what it says.
    pub fn read_journal() -> io::Result<Self> {
        let arguments = [
            "-u",
            "kube-proxy",
            "--no-pager",
            "-q",
            "-o",
            "cat",
            "-n",
            JOURNAL_LINES,
        ];
        let mut child = Command::new("journalctl")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut log = Self {
            source: "journalctl -u kube-proxy".to_owned(),
            ..Self::default()
        };
        let read = child.stdout.take().map_or(Ok(()), |output| {
            log.take(BufReader::new(output.take(MOST_BYTES)))
        });
        // With its output closed it ends by itself.
        let status = child.wait()?;
        read?;
        if log.lines == 0 && !status.success() {
            return Err(io::Error::other(format!("journalctl ended with {status}")));
        }
        Ok(log)
    }

    fn take(&mut self, mut reader: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        let mut last_process = None;
        loop {
            line.clear();
            let read = reader
                .by_ref()
                .take(MOST_LINE)
                .read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            self.lines += 1;
            let text = String::from_utf8_lossy(&line);
            let process = process(&text).or(last_process);
            let another = last_process.is_some() && process != last_process;
            if another || STARTS.iter().any(|words| text.contains(words)) {
                (self.no_tool, self.failed) = (None, None);
                self.undeleted.clear();
            }
            last_process = process;
            self.line(&text);
            if read as u64 == MOST_LINE && line.last() != Some(&b'\n') {
                reader.skip_until(b'\n')?;
            }
        }
    }

    fn line(&mut self, line: &str) {
        let line = line.trim_end();
        let no_tool = line.contains("conntrack") && line.contains("executable file not found");
        if no_tool {
            self.no_tool = Some(line.to_owned());
        }
        let failed = !no_tool && line.contains("deleting connection tracking state");
        if failed {
            self.failed = Some(line.to_owned());
        }
        if (failed || no_tool)
            && let Some(address) = service(line)
            && self.undeleted.len() < MOST_SERVICES
        {
            self.undeleted.insert(address);
        }
    }
}

/// The process that wrote a line, by klog's head: `E1209 20:24:26.204991   14968 proxier.go:1689]`.
fn process(line: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace();
    for _ in 0..=MOST_WORDS_BEFORE {
        let word = words.next()?.as_bytes();
        // A container runtime may have put a quote or a brace before it.
        let head = &word[word.len().saturating_sub(HEAD)..];
        let is_head = head.len() == HEAD
            && b"IWEF".contains(&head[0])
            && head[1..].iter().all(u8::is_ascii_digit);
        if is_head {
            return words.nth(1)?.parse().ok();
        }
    }
    None
}

/// The address of the service that a line is about.
fn service(line: &str) -> Option<IpAddr> {
    ["service IP: ", "service IP ", "IP=\""]
        .iter()
        .find_map(|before| {
            let (_, rest) = line.split_once(before)?;
            let address = rest.split([' ', ',', '"', ';']).next()?;
            address.parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "E1209 20:24:26.204991   14968 proxier.go:1689] Failed to delete stale service IP 10.96.0.2 connections, error: error deleting connection tracking state for UDP service IP: 10.96.0.2, error: error looking for path of conntrack: exec: \"conntrack\": executable file not found in $PATH";

    fn read(text: &str) -> ProxyLog {
        let mut log = ProxyLog::default();
        log.take(text.as_bytes()).expect("a log");
        log
    }

    #[test]
    fn the_missing_program_and_the_service_are_found() {
        let new = "E0102 1 proxier.go:1] \"Failed to delete stale service connections\" err=\"error deleting connection tracking state for UDP service IP: fd00::2, error: error looking for path of conntrack: exec: \\\"conntrack\\\": executable file not found in $PATH\" IP=\"fd00::2\"";
        for (line, address) in [(OLD, "10.96.0.2"), (new, "fd00::2")] {
            let log = read(&format!("I1209 started\n{line}\nI1209 goes on\n"));
            assert_eq!(log.no_tool.as_deref(), Some(line));
            assert_eq!(log.lines, 3);
            let expected: IpAddr = address.parse().expect("an address");
            assert_eq!(log.undeleted.iter().collect::<Vec<_>>(), [&expected]);
        }
    }

    #[test]
    fn what_was_before_the_last_start_does_not_count() {
        let later = "I1210 11:14:40.245693     915 proxier.go:1055] goes on";
        for start in [
            later.to_owned(),
            format!("2023-12-10T11:14:40Z stderr F {later}"),
            // In a container every kube-proxy is process 1.
            "I1210 11:14:39.0   14968 server.go:650] Version: v1.20.2".into(),
            "I1210 11:14:39.0   14968 server.go:483] \"Version info\" version=\"v1.31.0\"".into(),
        ] {
            let log = read(&format!("{OLD}\n{start}\n"));
            assert_eq!((log.no_tool, log.undeleted.len()), (None, 0), "{start}");
            let log = read(&format!("{start}\n{OLD}\n"));
            assert!(log.no_tool.is_some(), "{start}");
        }
        let same = "I1209 20:24:26.205484   14968 proxier.go:1034] Not syncing";
        assert!(read(&format!("{OLD}\n{same}\n")).no_tool.is_some());
        for odd in [
            "",
            "E1209",
            "\u{e4}E1209 1",
            "E1209 1 x",
            "a b c d e f g h i j k",
        ] {
            assert_eq!(process(odd), None, "{odd}");
        }
    }

    #[test]
    fn another_reason_is_told_apart() {
        let line = "E1209 20:24:26.2   14968 proxier.go:1689] Failed to delete stale service IP 10.96.0.2 connections, error: error deleting connection tracking state for UDP service IP: 10.96.0.2, error: exit status 1 (conntrack v1.4.4 (conntrack-tools): Can't open handler)";
        let log = read(line);
        assert_eq!((log.no_tool, log.failed.as_deref()), (None, Some(line)));
        assert_eq!(log.undeleted.len(), 1);
        assert_eq!(read(OLD).failed, None);
    }

    #[test]
    fn a_log_without_trouble_says_nothing() {
        let log = read(
            "I1210 proxier.go:1055] Stale udp service kube-system/kube-dns:dns -> 10.96.0.2\n",
        );
        assert_eq!((log.no_tool, log.undeleted.len()), (None, 0));
    }

    #[test]
    fn long_lines_and_odd_bytes_are_passed_over() {
        let mut text = vec![b'x'; 3 * MOST_LINE as usize];
        text.extend(b"\n\xff\xfe\n");
        text.extend(OLD.as_bytes());
        let mut log = ProxyLog::default();
        log.take(text.as_slice()).expect("a log");
        assert_eq!(log.lines, 3);
        assert!(log.no_tool.is_some());
    }
}
