//! kube-proxy's mode and version, and what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Mode, SERVICE_DEVICE, SYNC_PERIOD, programmed};
use crate::kube::ClusterFacts;
use crate::node::netfilter::Ruleset;
use crate::node::{KubeProxy, NetnsFacts, NetnsId, Prefix, ProxyConfiguration, Snapshot};

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
    /// The feature gates that are set.
    pub gates: BTreeMap<String, bool>,
    /// How often it syncs at least.
    pub sync_period: Duration,
    /// Where all this is from.
    pub told: Told,
}

/// Where kube-proxy's mode and configuration are known from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// The process: its flags, or its file.
    Itself,
    /// The ConfigMap.
    ConfigMap,
    /// The process says its mode; its configuration could not be read.
    ModeAlone,
    /// Nobody says anything: the mode is that of what the kernel holds.
    Kernel,
}

impl Told {
    /// What is not known, and what that comes to; `None` when everything is.
    pub const fn lacks(self) -> Option<&'static str> {
        match self {
            Self::Itself | Self::ConfigMap => None,
            Self::ModeAlone => Some(
                "kube-proxy's configuration: without it NodePorts, and in ipvs mode virtual servers of no service, \
                 are not compared",
            ),
            Self::Kernel => Some(
                "kube-proxy's mode and configuration: the mode is that of what the kernel holds; NodePorts, and in \
                 ipvs mode virtual servers of no service, are not compared",
            ),
        }
    }
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
            gates: BTreeMap::new(),
            sync_period: SYNC_PERIOD,
            told: Told::Itself,
        }
    }

    /// From its mode and version; its configuration is not known.
    fn unconfigured(mode: Mode, minor: Option<u16>, told: Told) -> Self {
        Self {
            node_ports: NodePortAddresses::Unknown,
            told,
            ..Self::new(mode, minor, &[])
        }
    }

    /// From kube-proxy's configuration and version.
    fn configured(
        mode: Mode,
        configuration: &ProxyConfiguration,
        minor: Option<u16>,
        told: Told,
    ) -> Self {
        Self {
            mode,
            minor,
            told,
            node_ports: NodePortAddresses::parse(&configuration.node_port_addresses),
            excluded: prefixes(&configuration.excluded_prefixes),
            gates: configuration.feature_gates.clone(),
            sync_period: configuration
                .sync_period
                .as_deref()
                .and_then(|text| humantime::parse_duration(text).ok())
                .unwrap_or(SYNC_PERIOD),
        }
    }

    /// From the ConfigMap, with the version of this node's kubelet in place of kube-proxy's: cluster
    /// tools keep them the same. `None` when its mode is not known.
    pub fn of_cluster(cluster: &ClusterFacts) -> Option<Self> {
        let configuration = cluster.proxy_configuration.as_deref()?;
        let mode = Mode::parse(configuration.mode.as_deref())?;
        cluster.node(cluster.this_node.as_deref()?)?;
        Some(Self::configured(
            mode,
            configuration,
            kubelet_minor(cluster),
            Told::ConfigMap,
        ))
    }

    /// From what a namespace holds for services: the only mode of which there is anything. `None` when
    /// there is nothing, or something of two modes, as a change of the mode leaves it.
    pub fn of_kernel(cluster: &ClusterFacts, facts: &NetnsFacts) -> Option<Self> {
        // Others balance by IPVS too, and do not make this device.
        let has_device = facts.links.iter().any(|link| link.name == SERVICE_DEVICE);
        let by_kube_proxy = |mode| mode != Mode::Ipvs || has_device;
        let holds = |mode: &Mode| {
            by_kube_proxy(*mode) && programmed(facts, *mode).is_some_and(|found| !found.is_empty())
        };
        let mut modes = [Mode::Ipvs, Mode::Iptables, Mode::Nftables]
            .into_iter()
            .filter(holds);
        let mode = modes.next()?;
        modes
            .next()
            .is_none()
            .then(|| Self::unconfigured(mode, kubelet_minor(cluster), Told::Kernel))
    }

    /// From the kube-proxy that runs here, and what the cluster knows. `None` when its mode is not known.
    pub fn known<'a>(
        cluster: Option<&ClusterFacts>,
        mut running: impl Iterator<Item = &'a KubeProxy>,
    ) -> Option<Self> {
        match running.next() {
            Some(proxy) => Self::running(proxy, cluster),
            None => Self::of_cluster(cluster?),
        }
    }

    /// From a running kube-proxy: its own word first, where it was asked, then its file, its flags, and what
    /// the cluster knows. `None` when its mode is not known.
    pub fn running(proxy: &KubeProxy, cluster: Option<&ClusterFacts>) -> Option<Self> {
        let report = proxy.report.as_ref();
        let in_map = cluster.and_then(|cluster| cluster.proxy_configuration.as_deref());
        let own = report.and_then(|report| report.configuration.as_ref());
        // Without a file its flags count, not the ConfigMap.
        let configuration = own.or_else(|| in_map.filter(|_| proxy.config.is_some()));
        // With a file that nobody could read, its mode may be any.
        let hidden = proxy.config.is_some() && configuration.is_none();
        let said = report
            .and_then(|report| report.mode.as_deref())
            .or_else(|| configuration?.mode.as_deref())
            .or(proxy.mode.as_deref());
        if hidden && said.is_none() {
            return None;
        }
        let mode = Mode::parse(said)?;
        let minor = Self::minor_of(proxy, cluster);
        Some(match configuration {
            Some(configuration) => {
                let told = own.map_or(Told::ConfigMap, |_| Told::Itself);
                Self::configured(mode, configuration, minor, told)
            }
            None if hidden => Self::unconfigured(mode, minor, Told::ModeAlone),
            None => Self {
                gates: proxy.feature_gates.clone(),
                excluded: prefixes(&proxy.excluded_prefixes),
                ..Self::new(mode, minor, &proxy.node_port_addresses)
            },
        })
    }

    /// The minor version that a running kube-proxy says, else this node's kubelet's.
    pub fn minor_of(proxy: &KubeProxy, cluster: Option<&ClusterFacts>) -> Option<u16> {
        let said = proxy
            .report
            .as_ref()
            .and_then(|report| report.version.as_deref());
        said.and_then(minor)
            .or_else(|| cluster.and_then(kubelet_minor))
    }
}

/// Those that can be read.
fn prefixes(list: &[String]) -> Vec<Prefix> {
    list.iter().filter_map(|text| Prefix::parse(text)).collect()
}

/// The minor version of this node's kubelet.
fn kubelet_minor(cluster: &ClusterFacts) -> Option<u16> {
    let node = cluster.node(cluster.this_node.as_deref()?)?;
    minor(node.kubelet_version.as_deref()?)
}

/// The namespaces in which kube-proxy writes packet filter rules for services: those with an address of
/// this node, in a mode that does so, or one that only they can tell. Without a cluster those where such a
/// kube-proxy runs, or none that is seen and such rules are.
pub fn ruled_namespaces(cluster: Option<&ClusterFacts>, facts: &Snapshot) -> BTreeSet<NetnsId> {
    let node = cluster.map(|cluster| {
        let node = cluster
            .this_node
            .as_deref()
            .and_then(|name| cluster.node(name));
        node.map_or(&[][..], |node| &node.internal_ips)
    });
    let is_ruled = |namespace: &&NetnsFacts| {
        let proxy = Proxy::known(cluster, facts.kube_proxies_in(namespace.id));
        let by_rules = proxy.map(|proxy| proxy.mode != Mode::Ipvs);
        match node {
            Some(own) => {
                own.iter()
                    .any(|address| namespace.address(*address).is_some())
                    && by_rules != Some(false)
            }
            None => by_rules.unwrap_or_else(|| {
                let rules = namespace.ruleset.as_ref();
                rules.is_some_and(Ruleset::holds_services)
            }),
        }
    };
    let wanted = facts.namespaces.iter().filter(is_ruled);
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
