//! `tracer check`: looks over this node without traffic.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::cluster::{Connection, settled};
use super::proxy_log::LogSource;
use super::{Exit, Failure, Output};
use crate::cause::{self, DropNames, Evidence, Severity};
use crate::expectation::ruled_namespaces;
use crate::flow::Flows;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::{Cluster, State};
use crate::node::{Directory, Missing, Snapshot};
use crate::printer::{Printer, Show};

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Look only over these network namespaces, by name or inode number; without it over all.
    #[arg(long = "netns", value_name = "NAME")]
    netns: Vec<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    log: LogSource,
}

/// How long the cluster is waited for.
const CLUSTER: Duration = Duration::from_secs(5);

/// Namespaces that are looked over at most; a node has one for each pod.
const MOST_NAMESPACES: usize = 1024;

#[derive(Serialize)]
struct CheckView {
    namespaces: usize,
    errors: usize,
    warnings: usize,
    unread: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let log = arguments.log.read()?;
    let cluster = arguments.connection.start()?;
    let directory = Directory::find();
    let wanted = |name: Option<&str>, number: u32| {
        arguments.netns.is_empty()
            || arguments
                .netns
                .iter()
                .any(|asked| Some(asked.as_str()) == name || *asked == number.to_string())
    };
    let mut ids = directory.ids();
    ids.retain(|&id| wanted(directory.name(id), id.0));
    if ids.is_empty() {
        let names = arguments.netns.join(", ");
        return Err(Failure::usage(format!(
            "no network namespace is called {names} (ip netns list; or its inode number)"
        )));
    }
    let left_out = ids.len().saturating_sub(MOST_NAMESPACES);
    ids.truncate(MOST_NAMESPACES);
    let mut facts = Snapshot::take(&directory, &ids);
    facts.read_node();
    facts.ask_kube_proxies();
    facts.proxy_log = log;
    facts.read_udp_entries(&directory);
    // Rules matter here where packets are forwarded.
    let forwarding = facts
        .namespaces
        .iter()
        .filter(|facts| facts.sysctls.number("net/ipv4/ip_forward") == Some(1))
        .map(|facts| facts.id)
        .collect();
    facts.read_rules(&directory, &forwarding);
    let cluster_view = cluster.as_ref().map(|cluster| settled(cluster, CLUSTER));
    let state = cluster.as_ref().map(Cluster::state);
    let known = state.as_ref().and_then(State::facts);
    if let Some(known) = known {
        let wanted = ruled_namespaces(known, &facts);
        facts.read_service_rules(&directory, &wanted);
    }
    facts.find_owners();
    let (flows, reasons, symbols) = (Flows::default(), DropReasons::default(), Symbols::default());
    let names = DropNames {
        reasons: &reasons,
        symbols: &symbols,
    };
    let evidence = Evidence::new(&flows, &facts, names);
    let findings = cause::audit(&evidence.with_cluster(known.map(Arc::as_ref)));
    for finding in &findings {
        printer.finding(finding)?;
    }
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let mut unread = unread(&facts);
    if left_out > 0 {
        unread.push(format!("{left_out} more network namespaces"));
    }
    if let Some(view) = cluster_view
        && view.settled()
        && !matches!(view.state, "none" | "fresh")
    {
        unread.push(view.words());
    }
    let view = CheckView {
        namespaces: facts.namespaces.len(),
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        unread,
    };
    printer.object("check", &view, &view.words(output.verbose))?;
    Ok(if view.errors > 0 {
        Exit::CauseNamed
    } else {
        Exit::Healthy
    })
}

/// What could not be read, each once.
fn unread(facts: &Snapshot) -> Vec<String> {
    let words = |missing: &Missing| match &missing.remedy {
        Some(remedy) => format!("{}: {} ({remedy})", missing.what, missing.why),
        None => format!("{}: {}", missing.what, missing.why),
    };
    let reports = facts.kube_proxies.iter();
    let mut unread: Vec<String> = facts
        .namespaces
        .iter()
        .flat_map(|facts| &facts.missing)
        .chain(&facts.missing)
        .chain(
            reports
                .filter_map(|proxy| proxy.report.as_ref())
                .flat_map(|report| &report.missing),
        )
        .map(words)
        .collect();
    unread.sort();
    unread.dedup();
    unread
}

impl CheckView {
    fn words(&self, verbose: bool) -> String {
        let mut text = format!(
            "{} network namespaces looked over: {} errors, {} warnings",
            self.namespaces, self.errors, self.warnings
        );
        if self.unread.is_empty() {
            return text;
        }
        if verbose {
            for line in &self.unread {
                text += &format!("\nnot read: {line}");
            }
        } else {
            text += &format!(
                "; {} facts could not be read (-v names them)",
                self.unread.len()
            );
        }
        text
    }
}
