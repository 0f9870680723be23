//! `tracer check`: looks over this node without traffic.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::cluster::{Connection, settled};
use super::proxy_log::LogSource;
use super::{Exit, Failure, Output};
use crate::cause::{self, DropNames, Evidence, Severity};
use crate::expectation::{Mode, Proxy, ruled_namespaces};
use crate::flow::Flows;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::{Cluster, ClusterFacts, State};
use crate::node::{Directory, Missing, NetnsId, Snapshot};
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
    /// What is worth knowing and no fault.
    remarks: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let log = arguments.log.read()?;
    let cluster = arguments.connection.start()?;
    let directory = Directory::find();
    let mut ids = wanted(&directory, &arguments.netns)?;
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
    let wanted = ruled_namespaces(known.map(Arc::as_ref), &facts);
    facts.read_service_rules(&directory, &wanted);
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
    let remarks = [
        hidden(&directory),
        empty_log(&facts),
        ipvs_mode(&facts, known.map(Arc::as_ref)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let view = CheckView {
        namespaces: facts.namespaces.len(),
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        unread,
        remarks,
    };
    printer.object("check", &view, &view.words(output.verbose))?;
    Ok(if view.errors > 0 {
        Exit::CauseNamed
    } else {
        Exit::Healthy
    })
}

/// The namespaces that were asked for, or all.
fn wanted(directory: &Directory, asked: &[String]) -> Result<Vec<NetnsId>, Failure> {
    let mut ids = directory.ids();
    let is = |asked: &String, id: NetnsId| {
        directory.name(id) == Some(asked.as_str()) || *asked == id.0.to_string()
    };
    let unknown: Vec<&str> = asked
        .iter()
        .filter(|asked| !ids.iter().any(|&id| is(asked, id)))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(Failure::usage(format!(
            "no network namespace is called {} (ip netns list; or its inode number)",
            unknown.join(", ")
        )));
    }
    if !asked.is_empty() {
        ids.retain(|&id| asked.iter().any(|asked| is(asked, id)));
    }
    Ok(ids)
}

/// That others' namespaces are out of sight.
fn hidden(directory: &Directory) -> Option<String> {
    let count = directory.hidden_processes();
    (count > 0).then(|| {
        format!(
            "the network namespaces of {count} processes and what is in them cannot be seen without root: run it as root, \
             or with CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_NET_ADMIN"
        )
    })
}

/// That a log was asked for and holds nothing.
fn empty_log(facts: &Snapshot) -> Option<String> {
    let log = facts.proxy_log.as_ref().filter(|log| log.lines == 0)?;
    Some(format!(
        "the log {} is empty: it says nothing about conntrack entries, good or bad",
        log.source
    ))
}

/// That kube-proxy works in a mode that goes away.
fn ipvs_mode(facts: &Snapshot, cluster: Option<&ClusterFacts>) -> Option<String> {
    let of_cluster = || cluster.and_then(Proxy::of_cluster);
    let proxy = if facts.kube_proxies.is_empty() {
        of_cluster()?
    } else {
        let mut running = facts.kube_proxies.iter();
        running.find_map(|running| {
            Proxy::running(running, cluster).filter(|proxy| proxy.mode == Mode::Ipvs)
        })?
    };
    (proxy.mode == Mode::Ipvs).then(|| {
        "kube-proxy works in ipvs mode, which is deprecated since Kubernetes 1.35 and is to be gone by default in 1.40: \
         plan for nftables mode (mode: nftables in its configuration, from 1.31)"
            .to_owned()
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
        if !self.unread.is_empty() && !verbose {
            text += &format!(
                "; {} facts could not be read (-v names them)",
                self.unread.len()
            );
        }
        for line in &self.remarks {
            text += &format!("\nremark: {line}");
        }
        if verbose {
            for line in &self.unread {
                text += &format!("\nnot read: {line}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{KubeProxy, NetnsHandle, ProxyLog};

    #[test]
    fn every_name_that_was_asked_for_has_to_be_known() {
        let here = NetnsHandle::current().expect("a namespace");
        let id = here.id();
        let mut directory = Directory::default();
        directory.add(here.named("good"));
        let ask = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|&name| name.to_owned()).collect();
            wanted(&directory, &asked).ok()
        };
        assert_eq!(ask(&[]), Some(vec![id]));
        assert_eq!(ask(&["good"]), Some(vec![id]));
        assert_eq!(ask(&[&id.0.to_string()]), Some(vec![id]));
        assert_eq!(ask(&["good", "nosuch"]), None);
    }

    #[test]
    fn a_mode_that_goes_away_is_said() {
        let mut facts = Snapshot::empty();
        assert_eq!(ipvs_mode(&facts, None), None);
        for (mode, said) in [("iptables", false), ("nftables", false), ("ipvs", true)] {
            facts.kube_proxies = vec![KubeProxy::constructed(&format!(
                "kube-proxy --proxy-mode={mode}"
            ))];
            assert_eq!(ipvs_mode(&facts, None).is_some(), said, "{mode}");
        }
    }

    #[test]
    fn an_empty_log_is_said_even_without_v() {
        let mut facts = Snapshot::empty();
        assert_eq!(empty_log(&facts), None);
        for (lines, said) in [(0, true), (1, false)] {
            facts.proxy_log = Some(Arc::new(ProxyLog {
                source: "kube-proxy.log".into(),
                lines,
                ..ProxyLog::default()
            }));
            assert_eq!(empty_log(&facts).is_some(), said, "{lines}");
        }
        let view = CheckView {
            namespaces: 1,
            errors: 0,
            warnings: 0,
            unread: vec!["that".into()],
            remarks: vec!["this".into()],
        };
        assert!(
            view.words(false)
                .ends_with("; 1 facts could not be read (-v names them)\nremark: this")
        );
        assert!(
            view.words(true)
                .ends_with("warnings\nremark: this\nnot read: that")
        );
    }
}
