//! The kernel's counters of a network namespace (`nstat`, `conntrack -S`): what went wrong how often.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::Missing;
use serde::{Deserialize, Serialize};

/// Counters since the namespace was made, by group and name, such as `TcpExt ListenOverflows`,
/// `Udp RcvbufErrors` or `conntrack insert_failed` (the sum over all processors).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// A counter; `None` when this kernel does not have it or it was not read.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// All counters, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &value)| (name.as_str(), value))
    }
}

impl FromIterator<(String, u64)> for Counters {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(counters: I) -> Self {
        Self(counters.into_iter().collect())
    }
}

type Parse = fn(&str, &mut BTreeMap<String, u64>);

/// Files of the calling thread's network namespace, and how to read them.
const FILES: &[(&str, Parse)] = &[
    ("snmp", two_lines),
    ("netstat", two_lines),
    ("snmp6", one_a_line),
    ("stat/nf_conntrack", per_processor),
    ("softnet_stat", backlogs),
];

/// Counters of the calling thread's network namespace; `root` is its `/proc/…/net`.
pub(super) fn read(root: &Path, missing: &mut Vec<Missing>) -> Counters {
    let mut counters = BTreeMap::new();
    for (file, parse) in FILES {
        match fs::read_to_string(root.join(file)) {
            Ok(text) => parse(&text, &mut counters),
            // No conntrack, or no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => missing.push(Missing {
                what: format!("counters of {file}"),
                why: error.to_string(),
                remedy: None,
            }),
        }
    }
    Counters(counters)
}

/// `Group: name name` and below it `Group: value value`.
fn two_lines(text: &str, counters: &mut BTreeMap<String, u64>) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        let (Some((group, names)), Some((_, values))) =
            (pair[0].split_once(':'), pair[1].split_once(':'))
        else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            // A few are signed and say -1 for "not known".
            if let Ok(value) = value.parse() {
                counters.insert(format!("{group} {name}"), value);
            }
        }
    }
}

/// `Ip6InReceives 12`.
fn one_a_line(text: &str, counters: &mut BTreeMap<String, u64>) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) {
            counters.insert(name.to_owned(), value);
        }
    }
}

/// Names in the first line, then one line of hexadecimal values for each processor. The first column
/// is the same on every line and no sum.
fn per_processor(text: &str, counters: &mut BTreeMap<String, u64>) {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or("").split_whitespace().collect();
    for line in lines {
        for (name, value) in names.iter().zip(line.split_whitespace()).skip(1) {
            if let Ok(value) = u64::from_str_radix(value, 16) {
                *counters.entry(format!("conntrack {name}")).or_default() += value;
            }
        }
    }
}

/// Columns of the queues of received packets that are sums: names in `softnet_seq_show`, net/core/net-procfs.c.
const BACKLOG: [(usize, &str); 2] = [(1, "dropped"), (10, "flow_limit_count")];

/// One line of hexadecimal values without names for each processor; the same in every namespace.
fn backlogs(text: &str, counters: &mut BTreeMap<String, u64>) {
    for line in text.lines() {
        let values: Vec<&str> = line.split_whitespace().collect();
        for (column, name) in BACKLOG {
            let value = values.get(column).map(|hex| u64::from_str_radix(hex, 16));
            if let Some(Ok(value)) = value {
                *counters.entry(format!("softnet {name}")).or_default() += value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_read_in_its_own_form() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("stat")).unwrap();
        for (file, text) in [
            (
                "snmp",
                "Udp: InDatagrams NoPorts RcvbufErrors\nUdp: 5 1 -1\n",
            ),
            ("netstat", "TcpExt: ListenOverflows\nTcpExt: 7\nbroken"),
            ("snmp6", "Ip6InAddrErrors    \t3\nbroken\n"),
            (
                "stat/nf_conntrack",
                "entries found insert_failed\n0000000a 00000001 00000002\n0000000a 00000000 0000000f\n",
            ),
            (
                "softnet_stat",
                "0000ffff 00000002 0 0 0 0 0 0 0 0 00000001 0\n00000001 0000000a\nbroken",
            ),
        ] {
            fs::write(root.path().join(file), text).unwrap();
        }
        let mut missing = Vec::new();
        let counters = read(root.path(), &mut missing);
        assert_eq!(missing, []);
        for (name, value) in [
            ("Udp NoPorts", Some(1)),
            ("Udp RcvbufErrors", None),
            ("TcpExt ListenOverflows", Some(7)),
            ("Ip6InAddrErrors", Some(3)),
            ("conntrack insert_failed", Some(17)),
            ("conntrack entries", None),
            ("softnet dropped", Some(12)),
            ("softnet flow_limit_count", Some(1)),
        ] {
            assert_eq!(counters.get(name), value, "{name}");
        }
    }

    #[test]
    fn the_kernel_of_this_test_counts() {
        let mut missing = Vec::new();
        let counters = read(Path::new("/proc/thread-self/net"), &mut missing);
        assert_eq!(missing, []);
        assert!(counters.get("Ip Forwarding").is_some());
        assert!(counters.get("TcpExt ListenOverflows").is_some());
    }
}
