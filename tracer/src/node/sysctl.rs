//! Kernel settings that decide what happens to packets (`sysctl net`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::Missing;
use serde::{Deserialize, Serialize};

/// Settings by their path below /proc/sys, such as `net/ipv4/ip_forward`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Sysctls(BTreeMap<String, String>);

impl Sysctls {
    /// The value as the kernel prints it; `None` when this kernel or its loaded modules have no such setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value, where it is one number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }

    /// All settings, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromIterator<(String, String)> for Sysctls {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(settings: I) -> Self {
        Self(settings.into_iter().collect())
    }
}

const NAMES: &[&str] = &[
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-iptables",
    "net/core/netdev_max_backlog",
    "net/core/somaxconn",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/conf/all/arp_announce",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/log_martians",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/tcp_abort_on_overflow",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/vs/conn_reuse_mode",
    "net/ipv4/vs/conntrack",
    "net/ipv4/vs/drop_entry",
    "net/ipv4/vs/drop_packet",
    "net/ipv4/vs/expire_nodest_conn",
    "net/ipv4/vs/expire_quiescent_template",
    "net/ipv4/vs/sloppy_tcp",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
];

/// For each device: the kernel combines them with those of `all`.
const NAMES_PER_LINK: &[&str] = &["accept_local", "forwarding", "route_localnet", "rp_filter"];

/// Settings of the calling thread's network namespace.
pub(super) fn read<'a>(
    root: &Path,
    links: impl Iterator<Item = &'a str>,
    missing: &mut Vec<Missing>,
) -> Sysctls {
    let per_link = links.flat_map(|link| {
        NAMES_PER_LINK
            .iter()
            .map(move |name| format!("net/ipv4/conf/{link}/{name}"))
    });
    NAMES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(per_link)
        .filter_map(|name| match fs::read_to_string(root.join(&name)) {
            Ok(value) => Some((name, value.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                missing.push(Missing {
                    what: format!("sysctl {name}"),
                    why: error.to_string(),
                    remedy: None,
                });
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_settings_and_leaves_out_those_that_are_not_there() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("net/ipv4/conf/eth0.100");
        fs::create_dir_all(&device).unwrap();
        fs::write(root.path().join("net/ipv4/ip_forward"), "1\n").unwrap();
        fs::write(
            root.path().join("net/ipv4/ip_local_port_range"),
            "32768\t60999\n",
        )
        .unwrap();
        fs::write(device.join("rp_filter"), "2\n").unwrap();
        let mut missing = Vec::new();
        let sysctls = read(root.path(), ["eth0.100"].into_iter(), &mut missing);
        assert_eq!(missing, []);
        assert_eq!(sysctls.number("net/ipv4/ip_forward"), Some(1));
        assert_eq!(sysctls.number("net/ipv4/conf/eth0.100/rp_filter"), Some(2));
        assert_eq!(
            sysctls.get("net/ipv4/ip_local_port_range"),
            Some("32768\t60999")
        );
        assert_eq!(sysctls.number("net/ipv4/ip_local_port_range"), None);
        assert_eq!(sysctls.get("net/ipv4/vs/conntrack"), None);
        assert_eq!(sysctls.iter().count(), 3);
    }

    #[test]
    fn settings_that_cannot_be_read_are_missing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("net/ipv4/ip_forward")).unwrap();
        let mut missing = Vec::new();
        let sysctls = read(root.path(), std::iter::empty(), &mut missing);
        assert_eq!(sysctls.get("net/ipv4/ip_forward"), None);
        assert_eq!(missing[0].what, "sysctl net/ipv4/ip_forward");
    }
}
