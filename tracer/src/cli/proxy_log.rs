//! kube-proxy's log on the command line: options that other commands share.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Failure;
use crate::node::ProxyLog;

/// Where kube-proxy's log is.
#[derive(Args, Clone, Debug)]
pub(super) struct LogSource {
    /// kube-proxy's log, for what it says about conntrack entries.
    #[arg(long = "log", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Read kube-proxy's log from systemd's journal (journalctl -u kube-proxy).
    #[arg(long, conflicts_with = "file")]
    journal: bool,
}

impl LogSource {
    /// What it says; `None` when no log is asked for.
    pub(super) fn read(&self) -> Result<Option<Arc<ProxyLog>>, Failure> {
        let read = match &self.file {
            Some(file) => ProxyLog::read(file)
                .map_err(|error| format!("the log {} cannot be read: {error}", file.display())),
            None if self.journal => ProxyLog::read_journal()
                .map_err(|error| format!("the journal of kube-proxy cannot be read: {error}")),
            None => return Ok(None),
        };
        read.map(|log| Some(Arc::new(log))).map_err(Failure::usage)
    }
}
