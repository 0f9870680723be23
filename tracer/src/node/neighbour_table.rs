//! The kernel's neighbour tables (ARP and neighbour discovery). There is one of each family for all network
//! namespaces together, and only the first namespace shows its limits.
//!
//! Sources: Linux net/core/neighbour.c, `neigh_alloc` and `neigh_stat_seq_show`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The table of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NeighbourTable {
    /// IPv6, else IPv4.
    pub ipv6: bool,
    /// Entries of all namespaces.
    pub entries: u64,
    /// With so many of those that may be thrown out no new one is made (`gc_thresh3`).
    pub most: u64,
    /// How often none could be made since the node started.
    pub refused: u64,
}

impl NeighbourTable {
    /// Both tables, as far as this process sees the first network namespace.
    pub(super) fn read() -> Vec<Self> {
        let proc = Path::new("/proc");
        [false, true]
            .into_iter()
            .filter_map(|ipv6| Self::of_family(proc, ipv6))
            .collect()
    }

    fn of_family(proc: &Path, ipv6: bool) -> Option<Self> {
        let (cache, version) = if ipv6 {
            ("ndisc_cache", "ipv6")
        } else {
            ("arp_cache", "ipv4")
        };
        let statistics = fs::read_to_string(proc.join("net/stat").join(cache)).ok()?;
        let limit = format!("sys/net/{version}/neigh/default/gc_thresh3");
        let most = fs::read_to_string(proc.join(limit)).ok()?;
        let (entries, refused) = parse(&statistics)?;
        Some(Self {
            ipv6,
            entries,
            most: most.trim().parse().ok()?,
            refused,
        })
    }

    /// No new entry can be made but for one that is thrown out.
    pub const fn is_full(&self) -> bool {
        self.entries >= self.most
    }
}

/// Entries and refusals from `/proc/net/stat/arp_cache`: names, and a line of hexadecimal numbers for each processor.
fn parse(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split_whitespace().collect();
    let column = |wanted: &str| names.iter().position(|name| *name == wanted);
    let (entries, refused) = (column("entries")?, column("table_fulls")?);
    let mut found = None;
    for line in lines {
        let number = |at: usize| u64::from_str_radix(line.split_whitespace().nth(at)?, 16).ok();
        let (_, before) = found.unwrap_or_default();
        // Every line says the same number of entries.
        found = Some((number(entries)?, number(refused)?.saturating_add(before)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_PROCESSORS: &str = "\
entries  allocs   destroys hash_grows lookups  hits     table_fulls
00000010 00000000 00000000 00000000   00000000 00000000 00000002
00000010 00000000 00000000 00000000   00000000 00000000 0000000a
";

    #[test]
    fn processors_are_added_up() {
        assert_eq!(parse(TWO_PROCESSORS), Some((16, 12)));
    }

    #[test]
    fn damage_is_no_table() {
        for text in [
            "",
            "entries table_fulls",
            "entries\n1",
            "entries table_fulls\nzz 1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for end in 0..TWO_PROCESSORS.len() {
            let _ = parse(&TWO_PROCESSORS[..end]);
        }
    }

    #[test]
    fn both_files_make_a_table() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            fs::write(file, text).expect("a file");
        };
        put("net/stat/arp_cache", TWO_PROCESSORS);
        assert_eq!(NeighbourTable::of_family(folder.path(), false), None);
        put("sys/net/ipv4/neigh/default/gc_thresh3", "16\n");
        let table = NeighbourTable::of_family(folder.path(), false).expect("a table");
        assert!(table.is_full() && table.most == 16 && !table.ipv6);
    }
}
