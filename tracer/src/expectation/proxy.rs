//! kube-proxy's version and what it was told.

use crate::kube::ClusterFacts;
use crate::node::{KubeProxy, Prefix, ProxyConfiguration, ProxyReport};

/// What decides what kube-proxy makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
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
    /// On every address of the node: no list, or one with a prefix of length 0.
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
    pub fn new(minor: Option<u16>, node_port_addresses: &[String]) -> Self {
        Self {
            minor,
            node_ports: NodePortAddresses::parse(node_port_addresses),
            excluded: Vec::new(),
        }
    }

    /// From kube-proxy's configuration and version (`v1.20.2`).
    pub fn configured(configuration: &ProxyConfiguration, version: Option<&str>) -> Self {
        Self {
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
    /// tools keep them the same. `None` when kube-proxy is not known to be in ipvs mode.
    pub fn of_cluster(cluster: &ClusterFacts) -> Option<Self> {
        let configuration = cluster.proxy_configuration.as_deref()?;
        if configuration.mode.as_deref() != Some("ipvs") {
            return None;
        }
        let node = cluster.node(cluster.this_node.as_deref()?)?;
        Some(Self::configured(
            configuration,
            node.kubelet_version.as_deref(),
        ))
    }

    /// From a running kube-proxy: its own word first, then its file, its flags, and what the cluster
    /// knows. `None` when it is not known to be in ipvs mode.
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
        let mode = report
            .mode
            .as_deref()
            .or_else(|| configuration?.mode.as_deref())
            .or(proxy.mode.as_deref());
        if mode != Some("ipvs") {
            return None;
        }
        let of_node = || {
            let node = cluster.node(cluster.this_node.as_deref()?)?;
            node.kubelet_version.as_deref()
        };
        let version = report.version.as_deref().or_else(of_node);
        Some(match configuration {
            Some(configuration) => Self::configured(configuration, version),
            None => Self::new(version.and_then(minor), &proxy.node_port_addresses),
        })
    }

    /// Whether the version is at least 1.`wanted`; `None` when it is not known.
    pub(super) fn at_least(&self, wanted: u16) -> Option<bool> {
        self.minor.map(|minor| minor >= wanted)
    }
}

impl NodePortAddresses {
    fn parse(list: &[String]) -> Self {
        if let [only] = list
            && only == "primary"
        {
            return Self::Primary;
        }
        let Some(prefixes) = list
            .iter()
            .map(|text| Prefix::parse(text))
            .collect::<Option<Vec<_>>>()
        else {
            return Self::Unknown;
        };
        if prefixes.iter().all(|prefix| prefix.length > 0) && !prefixes.is_empty() {
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
