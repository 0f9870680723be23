//! `dns-stale-conntrack` by what kube-proxy's log says: it could not delete the stale entries, and why.
//!
//! Source: kubernetes pkg/util/conntrack up to 1.31 runs the program `conntrack`, which needs the kernel's module
//! nf_conntrack_netlink, and does not try again.

use std::net::IpAddr;

use super::audit::Finding;
use super::dns_stale_conntrack::CAUSE;
use super::{Diagnosis, Evidence};
use crate::node::ProxyLog;

/// The module that the program talks to.
const MODULE: &str = "nf_conntrack_netlink";

/// What the log says, each reason once.
pub(super) fn findings(evidence: &Evidence<'_>) -> Vec<Finding> {
    let Some(log) = evidence.facts.proxy_log.as_deref() else {
        return Vec::new();
    };
    let no_tool = log.no_tool.as_deref();
    let failed = log.failed.as_deref();
    let no_tool = no_tool.map(|line| Finding::error(no_tool_by_log(log, line)));
    let failed = failed.map(|line| {
        let diagnosis = failed_by_log(log, line);
        if line.contains(MODULE) {
            return Finding::error(diagnosis);
        }
        Finding::warning(
            diagnosis.lacking("that such entries are still there: they may have ended since"),
        )
    });
    no_tool.into_iter().chain(failed).collect()
}

/// kube-proxy says itself that the program is not there.
fn no_tool_by_log(log: &ProxyLog, line: &str) -> Diagnosis {
    let of = services(log);
    Diagnosis::new(
        &CAUSE,
        "kube-proxy's log",
        format!(
            "kube-proxy finds no program `conntrack` and could not delete the stale UDP entries{of}: clients that keep \
             their source port, DNS resolvers first, go on sending to endpoints that are gone."
        ),
    )
    .prove("log", format!("{}: {line}", log.source))
    .fix(
        [
            "apt-get install conntrack   # on the host, or an image of kube-proxy that holds it",
            "systemctl restart kube-proxy   # or: kubectl -n kube-system rollout restart daemonset kube-proxy",
        ],
        "none for existing connections",
    )
    .fix(by_hand(log), "answers under way to the old entries are lost")
    .check("conntrack --version; grep -c 'executable file not found' LOG   # of the new log: 0")
}

/// kube-proxy says that it ran the program, and that this failed.
fn failed_by_log(log: &ProxyLog, line: &str) -> Diagnosis {
    let of = services(log);
    let why = line.rsplit("error: ").next().unwrap_or(line);
    Diagnosis::new(
        &CAUSE,
        "kube-proxy's log",
        format!(
            "kube-proxy could not delete the stale UDP entries{of}, and does not try again: {why}. Clients that keep their \
             source port, DNS resolvers first, go on sending to endpoints that are gone."
        ),
    )
    .prove("log", format!("{}: {line}", log.source))
    .fix(
        [
            format!("modprobe {MODULE}   # what the program conntrack talks to"),
            "conntrack -L -p udp | head   # as root, where kube-proxy runs: what does it say?".to_owned(),
        ],
        "none for existing connections",
    )
    .fix(by_hand(log), "answers under way to the old entries are lost")
    .check("grep 'deleting connection tracking state' LOG   # of the new log: nothing")
}

/// Services that are named one by one.
const NAMED: usize = 4;

/// Whose entries could not be deleted.
fn services(log: &ProxyLog) -> String {
    let services = log.undeleted.iter().take(NAMED).map(IpAddr::to_string);
    let services: Vec<_> = services.collect();
    if services.is_empty() {
        String::new()
    } else {
        format!(" of {}", services.join(", "))
    }
}

/// The commands that delete them.
fn by_hand(log: &ProxyLog) -> impl Iterator<Item = String> {
    let services = log.undeleted.iter().take(NAMED);
    services.map(|address| format!("conntrack -D -p udp --orig-dst {address}   # at once, by hand"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cause::Severity;
    use crate::cause::constructed::{ip, node};

    fn found(log: ProxyLog) -> Vec<Finding> {
        let mut bench = node();
        bench.facts.proxy_log = Some(Arc::new(ProxyLog {
            source: "kube-proxy.log".into(),
            lines: 1,
            undeleted: [ip("10.96.0.2")].into(),
            ..log
        }));
        bench.with_evidence(crate::cause::audit)
    }

    #[test]
    fn that_there_is_no_program_is_a_finding() {
        let line = "error looking for path of conntrack: exec: \"conntrack\": executable file not found in $PATH";
        let found = found(ProxyLog {
            no_tool: Some(line.into()),
            ..ProxyLog::default()
        });
        assert_eq!(found.len(), 1, "{found:#?}");
        let said = &found[0].diagnosis;
        assert!(said.summary.contains("10.96.0.2"), "{said:#?}");
        assert!(said.evidence[0].text.contains("not found in $PATH"));
    }

    #[test]
    fn another_reason_is_a_finding_in_other_words() {
        for (why, severity) in [
            ("exit status 1 nf_conntrack_netlink", Severity::Error),
            ("signal: killed", Severity::Warning),
        ] {
            let found = found(ProxyLog {
                failed: Some(format!(
                    "error deleting connection tracking state, error: {why}"
                )),
                ..ProxyLog::default()
            });
            assert_eq!(found.len(), 1, "{found:#?}");
            let said = &found[0].diagnosis;
            assert_eq!((said.code, found[0].severity), (CAUSE.code, severity));
            assert!(said.summary.contains(why), "{said:#?}");
        }
    }
}
