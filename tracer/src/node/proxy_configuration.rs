//! kube-proxy's configuration (`kubeproxy.config.k8s.io/v1alpha1`), from its ConfigMap or its file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What kube-proxy was told.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ProxyConfiguration {
    /// `mode`: ipvs, iptables, nftables; `None` leaves it to kube-proxy.
    pub mode: Option<String>,
    /// `nodePortAddresses`; empty means kube-proxy's default for its mode.
    pub node_port_addresses: Vec<String>,
    /// `clusterCIDR`, one prefix a family.
    pub cluster_prefixes: Vec<String>,
    /// `ipvs.scheduler`; `None` means `rr`.
    pub scheduler: Option<String>,
    /// `ipvs.excludeCIDRs`: virtual servers in them are not kube-proxy's.
    pub excluded_prefixes: Vec<String>,
    /// `ipvs.strictARP`.
    pub strict_arp: Option<bool>,
    /// `syncPeriod` of its mode's section, as written.
    pub sync_period: Option<String>,
    /// `iptables.masqueradeAll`.
    pub masquerade_all: Option<bool>,
    /// `healthzBindAddress`.
    pub healthz: Option<String>,
    /// `metricsBindAddress`.
    pub metrics: Option<String>,
    /// `featureGates`.
    pub feature_gates: BTreeMap<String, bool>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    mode: Option<String>,
    node_port_addresses: Option<Vec<String>>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    ipvs: Option<Mode>,
    iptables: Option<Mode>,
    nftables: Option<Mode>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    feature_gates: Option<BTreeMap<String, bool>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Mode {
    scheduler: Option<String>,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    strict_arp: Option<bool>,
    sync_period: Option<String>,
    masquerade_all: Option<bool>,
}

impl ProxyConfiguration {
    /// Parses the YAML or JSON of a configuration file.
    ///
    /// # Errors
    /// In words, when it is not one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let ipvs = file.ipvs.unwrap_or_default();
        let iptables = file.iptables.unwrap_or_default();
        let period = match file.mode.as_deref() {
            Some("ipvs") => ipvs.sync_period,
            Some("nftables") => file.nftables.unwrap_or_default().sync_period,
            _ => iptables.sync_period,
        };
        Ok(Self {
            mode: said(file.mode),
            node_port_addresses: file.node_port_addresses.unwrap_or_default(),
            cluster_prefixes: said(file.cluster_cidr).map_or_else(Vec::new, |list| {
                list.split(',')
                    .map(|prefix| prefix.trim().to_owned())
                    .collect()
            }),
            scheduler: said(ipvs.scheduler),
            excluded_prefixes: ipvs.exclude_cidrs.unwrap_or_default(),
            strict_arp: ipvs.strict_arp,
            // kubeadm writes "0s" for kube-proxy's own default.
            sync_period: said(period).filter(|period| period != "0s"),
            masquerade_all: iptables.masquerade_all,
            healthz: said(file.healthz_bind_address),
            metrics: said(file.metrics_bind_address),
            feature_gates: file.feature_gates.unwrap_or_default(),
        })
    }
}

/// An empty text says nothing.
fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kubeadm 1.20 writes, with a mode and addresses of an operator.
    const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:244::/64
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
detectLocalMode: ""
featureGates:
  SupportIPVSProxyMode: true
healthzBindAddress: ""
iptables:
  masqueradeAll: false
  masqueradeBit: null
  syncPeriod: 30s
ipvs:
  excludeCIDRs: null
  scheduler: ""
  strictARP: true
  syncPeriod: 0s
kind: KubeProxyConfiguration
metricsBindAddress: ""
mode: ipvs
nodePortAddresses: ["192.0.2.0/24"]
oomScoreAdj: null
portRange: ""
"#;

    #[test]
    fn kubeadm_s_file_is_read() {
        let found = ProxyConfiguration::parse(KUBEADM).expect("a configuration");
        assert_eq!(found.mode.as_deref(), Some("ipvs"));
        assert_eq!(found.node_port_addresses, ["192.0.2.0/24"]);
        assert_eq!(found.cluster_prefixes, ["10.244.0.0/16", "fd00:244::/64"]);
        assert_eq!(found.strict_arp, Some(true));
        assert_eq!((found.scheduler, found.sync_period), (None, None));
        assert_eq!(found.feature_gates.get("SupportIPVSProxyMode"), Some(&true));
    }

    #[test]
    fn each_mode_has_its_own_sync_period() {
        let sections =
            "ipvs: {syncPeriod: 1m}\niptables: {syncPeriod: 2m}\nnftables: {syncPeriod: 3m}\n";
        for (mode, wanted) in [
            ("ipvs", "1m"),
            ("iptables", "2m"),
            ("\"\"", "2m"),
            ("nftables", "3m"),
        ] {
            let found = ProxyConfiguration::parse(&format!("mode: {mode}\n{sections}"));
            let period = found.expect("a configuration").sync_period;
            assert_eq!(period.as_deref(), Some(wanted), "{mode}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_an_error() {
        for text in ["mode: [1", "mode: {a: b}", "nodePortAddresses: 5", "- a"] {
            assert!(ProxyConfiguration::parse(text).is_err(), "{text}");
        }
    }
}
