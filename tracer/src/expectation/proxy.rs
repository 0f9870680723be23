//! kube-proxy's mode and version, and what it was told.

use std::collections::BTreeSet;

use super::Mode;
use crate::kube::ClusterFacts;
use crate::node::{
    KubeProxy, NetnsFacts, NetnsId, Prefix, ProxyConfiguration, ProxyReport, Snapshot,
};

/// What decides what kube-proxy makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
    /// How it works.
    pub mode: Mode,
    /// Minor version of Kubernetes 1; `None` when not known.
    pub minor: Option<u16>,
    /// Where NodePorts are to answer.
    pub node_ports: NodePortAddresses,
    /// Virtual servers in these prefixes are not kube-proxy's.
    pub excluded: Vec<Prefix>,
}

/// Where NodePorts are to answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// No list: on every address of the node, unless the mode has another default.
    Unset,
    /// On every address of the node: a prefix of length 0.
    All,
    /// On the node's addresses in these prefixes.
    Within(Vec<Prefix>),
    /// On the node's primary addresses (`primary`, from 1.31).
    Primary,
    /// The list cannot be read.
    Unknown,
}

impl Proxy {
    /// From a version and a list of nodePortAddresses.
    pub fn new(mode: Mode, minor: Option<u16>, node_port_addresses: &[String]) -> Self {
        Self {
            mode,
            minor,
            node_ports: NodePortAddresses::parse(node_port_addresses),
            excluded: Vec::new(),
        }
    }

    /// From kube-proxy's configuration and version (`v1.20.2`).
    pub fn configured(
        mode: Mode,
        configuration: &ProxyConfiguration,
        version: Option<&str>,
    ) -> Self {
        Self {
            mode,
            minor: version.and_then(minor),
            node_ports: NodePortAddresses::parse(&configuration.node_port_addresses),
            excluded: configuration
                .excluded_prefixes
                .iter()
                .filter_map(|text| Prefix::parse(text))
                .collect(),
        }
    }

    /// From the ConfigMap, with the version of this node's kubelet in place of kube-proxy's: cluster
    /// tools keep them the same. `None` when its mode is not known.
    pub fn of_cluster(cluster: &ClusterFacts) -> Option<Self> {
        let configuration = cluster.proxy_configuration.as_deref()?;
        let mode = Mode::parse(configuration.mode.as_deref())?;
        let node = cluster.node(cluster.this_node.as_deref()?)?;
        Some(Self::configured(
            mode,
            configuration,
            node.kubelet_version.as_deref(),
        ))
    }

    /// From the command line of the kube-proxy that runs here, where it counts, and what the cluster knows;
    /// nobody is asked. `None` when its mode is not known.
    pub fn known<'a>(
        cluster: &ClusterFacts,
        mut running: impl Iterator<Item = &'a KubeProxy>,
    ) -> Option<Self> {
        match running.next() {
            Some(proxy) => Self::running(proxy, &ProxyReport::default(), cluster),
            None => Self::of_cluster(cluster),
        }
    }

    /// From a running kube-proxy: its own word first, then its file, its flags, and what the cluster
    /// knows. `None` when its mode is not known.
    pub fn running(
        proxy: &KubeProxy,
        report: &ProxyReport,
        cluster: &ClusterFacts,
    ) -> Option<Self> {
        let in_map = cluster.proxy_configuration.as_deref();
        let configuration = report
            .configuration
            .as_ref()
            // Without a file its flags count, not the ConfigMap.
            .or_else(|| in_map.filter(|_| proxy.config.is_some()));
        // With a file that nobody could read, its mode may be any.
        let hidden = proxy.config.is_some() && configuration.is_none();
        let said = report
            .mode
            .as_deref()
            .or_else(|| configuration?.mode.as_deref())
            .or(proxy.mode.as_deref());
        if hidden && said.is_none() {
            return None;
        }
        let mode = Mode::parse(said)?;
        let of_node = || {
            let node = cluster.node(cluster.this_node.as_deref()?)?;
            node.kubelet_version.as_deref()
        };
        let version = report.version.as_deref().or_else(of_node);
        Some(match configuration {
            Some(configuration) => Self::configured(mode, configuration, version),
            None => Self::new(mode, version.and_then(minor), &proxy.node_port_addresses),
        })
    }
}

/// The namespaces in which kube-proxy writes packet filter rules for services: those with an address of
/// this node, in a mode that does so.
pub fn ruled_namespaces(cluster: &ClusterFacts, facts: &Snapshot) -> BTreeSet<NetnsId> {
    let node = cluster
        .this_node
        .as_deref()
        .and_then(|name| cluster.node(name));
    let Some(node) = node else {
        return BTreeSet::new();
    };
    let of_node = |namespace: &&NetnsFacts| {
        let mut own = node.internal_ips.iter();
        let proxy = Proxy::known(cluster, facts.kube_proxies_in(namespace.id));
        own.any(|address| namespace.address(*address).is_some())
            && proxy.is_some_and(|proxy| proxy.mode != Mode::Ipvs)
    };
    let wanted = facts.namespaces.iter().filter(of_node);
    wanted.map(|namespace| namespace.id).collect()
}

impl NodePortAddresses {
    fn parse(list: &[String]) -> Self {
        if let [only] = list
            && only == "primary"
        {
            return Self::Primary;
        }
        if list.is_empty() {
            return Self::Unset;
        }
        let Some(prefixes) = list
            .iter()
            .map(|text| Prefix::parse(text))
            .collect::<Option<Vec<_>>>()
        else {
            return Self::Unknown;
        };
        if prefixes.iter().all(|prefix| prefix.length > 0) {
            Self::Within(prefixes)
        } else {
            Self::All
        }
    }
}

/// The minor version in `v1.20.2` or `1.20`; `None` for what is no version 1.
pub fn minor(version: &str) -> Option<u16> {
    let rest = version.trim_start_matches('v').strip_prefix("1.")?;
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok()
}
