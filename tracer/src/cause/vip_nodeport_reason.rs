//! Why kube-proxy serves no NodePorts on an address of the node: by its version and configuration, and in ipvs
//! mode the address' local route and its age.

use std::net::IpAddr;
use std::time::Duration;

use super::service::node_addresses;
use super::{Evidence, Fix, Proof, Site, pod_network};
use crate::expectation::{Habit, Mode, NodePortAddresses, Proxy, SERVICE_DEVICE, SYNC_PERIOD};
use crate::node::Prefix;

/// Why kube-proxy left the address out.
pub(super) enum Reason {
    /// Its local route carries another address as source.
    Secondary { source: IpAddr },
    /// nodePortAddresses leaves it out.
    Configured { list: Vec<Prefix> },
    /// nodePortAddresses asks for the node's primary addresses only.
    Primary,
    /// Without nodePortAddresses nftables mode takes the node's primary addresses only.
    PrimaryByDefault,
    /// It is a service address as well.
    ServiceAddress,
    /// kube-proxy is to make one, and has not.
    Late,
    /// Its nodePortAddresses is not known.
    Unknown,
}

/// The reason, what shows it, and what is missing to be certain of it.
pub(super) struct LeftOut {
    pub(super) reason: Reason,
    /// kube-proxy's minor version, where it decides.
    minor: Option<u16>,
    pub(super) missing: Vec<String>,
}

/// What is missing where it is not known whether kube-proxy had time for the address.
const SINCE: &str = "that it stays so for longer than a sync period (30 s)";
/// What is missing where kube-proxy's configuration is not known.
const ITS_ADDRESSES: &str = "kube-proxy's nodePortAddresses";

/// Why the address was left out; `None` where kube-proxy does not work with IPVS.
pub(super) fn left_out(
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    address: IpAddr,
) -> Option<LeftOut> {
    let running = || evidence.facts.kube_proxies_in(site.facts.id);
    let proxy = Proxy::known(evidence.cluster, running());
    if proxy.as_ref().is_some_and(|proxy| proxy.mode != Mode::Ipvs) {
        return None;
    }
    let node_ports = match &proxy {
        Some(proxy) => proxy.node_ports.clone(),
        // It runs, and its configuration file could not be read.
        None if running().next().is_some() => NodePortAddresses::Unknown,
        None => NodePortAddresses::Unset,
    };
    let seen = proxy.is_some() || running().next().is_some() || has_service_device(site);
    let plain = |reason, missing: &[&str]| LeftOut {
        reason,
        minor: None,
        missing: missing.iter().map(|&text| text.to_owned()).collect(),
    };
    let mut found = match node_ports {
        NodePortAddresses::Within(list) if !list.iter().any(|prefix| prefix.contains(address)) => {
            plain(Reason::Configured { list }, &[])
        }
        NodePortAddresses::Primary if !is_first(evidence, address) => plain(Reason::Primary, &[]),
        NodePortAddresses::Within(_) | NodePortAddresses::Primary => plain(Reason::Late, &[SINCE]),
        NodePortAddresses::Unknown => plain(Reason::Unknown, &[ITS_ADDRESSES]),
        NodePortAddresses::Unset | NodePortAddresses::All => {
            let by_version = of_all(evidence, site, address, proxy.as_ref());
            by_version.unwrap_or_else(|| match proxy {
                Some(_) => plain(Reason::Late, &[SINCE]),
                None => plain(
                    Reason::Unknown,
                    &["kube-proxy's nodePortAddresses and the time of its last sync"],
                ),
            })
        }
    };
    if !seen {
        // Keepalived and others balance by IPVS too, on the addresses that they mean to.
        found.missing.push(format!(
            "a sight of kube-proxy here: its process, its ConfigMap or its device {SERVICE_DEVICE}"
        ));
    }
    Some(found)
}

/// Why kube-proxy's packet filter rules leave the address out.
pub(super) fn left_out_of_rules(
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    address: IpAddr,
) -> LeftOut {
    let proxy = Proxy::known(
        evidence.cluster,
        evidence.facts.kube_proxies_in(site.facts.id),
    );
    let minor = proxy.as_ref().and_then(|proxy| proxy.minor);
    let by_default = proxy.as_ref().is_some_and(|proxy| {
        proxy.mode == Mode::Nftables && proxy.does(Habit::NodePortsOnPrimary) != Some(false)
    });
    let (reason, lacks) = match proxy.map(|proxy| proxy.node_ports) {
        Some(NodePortAddresses::Within(list))
            if !list.iter().any(|prefix| prefix.contains(address)) =>
        {
            (Reason::Configured { list }, None)
        }
        Some(NodePortAddresses::Primary) => (Reason::Primary, None),
        Some(NodePortAddresses::Unset) if by_default => (Reason::PrimaryByDefault, None),
        Some(NodePortAddresses::Unknown) | None => (Reason::Unknown, Some(ITS_ADDRESSES)),
        Some(_) => (Reason::Late, Some(SINCE)),
    };
    LeftOut {
        reason,
        minor,
        missing: lacks.map(str::to_owned).into_iter().collect(),
    }
}

/// The reason where NodePorts are to answer on every address: some versions leave some out.
fn of_all(
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    address: IpAddr,
    proxy: Option<&Proxy>,
) -> Option<LeftOut> {
    let does = |habit| proxy.and_then(|proxy| proxy.does(habit));
    let source = site
        .local_route(address)
        .and_then(|route| route.preferred_source)
        .filter(|source| *source != address);
    let secondary = site.addresses(address).any(|found| found.secondary);
    let by_source = does(Habit::NodePortsOnRouteSources);
    let minor = proxy.and_then(|proxy| proxy.minor);
    if let Some(source) = source
        && secondary
        && by_source != Some(false)
    {
        // Without the version the table itself shows it, once kube-proxy had time for the address.
        let missing = match by_source {
            None => too_young(evidence, site, address, proxy).map(|age| {
                format!(
                    "kube-proxy's version, or that it stays so for longer than a sync period: {age}"
                )
            }),
            Some(_) => None,
        };
        return Some(LeftOut {
            reason: Reason::Secondary { source },
            minor,
            missing: missing.into_iter().collect(),
        });
    }
    let off_services = does(Habit::NodePortsOffServiceAddresses);
    if on_service_device(site, address) && off_services != Some(false) {
        let mut missing = Vec::new();
        if off_services.is_none() {
            missing.push("kube-proxy's version (1.23 to 1.26 behave so)".to_owned());
        }
        if site
            .addresses(address)
            .all(|found| is_service_device(site, found.link))
        {
            missing.push(format!("that {address} is the node's own address too"));
        }
        return Some(LeftOut {
            reason: Reason::ServiceAddress,
            minor,
            missing,
        });
    }
    None
}

/// The node's first address of its family, by the cluster.
fn is_first(evidence: &Evidence<'_>, address: IpAddr) -> bool {
    let mut own = node_addresses(evidence);
    own.find(|own| own.is_ipv4() == address.is_ipv4()) == Some(address)
}

/// The age, in words, of an address that kube-proxy may not have seen yet: younger than a sync period or of
/// unknown age, and not there when kube-proxy was started.
fn too_young(
    evidence: &Evidence<'_>,
    site: &Site<'_>,
    address: IpAddr,
    proxy: Option<&Proxy>,
) -> Option<String> {
    let mut ages = site.addresses(address).filter_map(|found| found.created_ns);
    let (Some(created), Some(taken)) = (ages.next(), evidence.facts.taken_ns) else {
        return Some("the age of the address is not known".into());
    };
    let created = ages.fold(created, u64::min);
    let age = Duration::from_nanos(taken.saturating_sub(created));
    let period = proxy.map_or(SYNC_PERIOD, |proxy| proxy.sync_period);
    let mut running = evidence.facts.kube_proxies_in(site.facts.id);
    let started_since =
        running.any(|running| running.started_ns.is_some_and(|start| start > created));
    (age < period && !started_since).then(|| format!("the address is {} s old", age.as_secs()))
}

/// kube-proxy in ipvs mode alone makes this device, and it always has an address: that of the service kubernetes.
fn has_service_device(site: &Site<'_>) -> bool {
    site.facts
        .addresses
        .iter()
        .any(|found| is_service_device(site, found.link))
}

fn is_service_device(site: &Site<'_>, link: u32) -> bool {
    site.link(link)
        .is_some_and(|link| link.name == SERVICE_DEVICE)
}

pub(super) fn on_service_device(site: &Site<'_>, address: IpAddr) -> bool {
    site.addresses(address)
        .any(|found| is_service_device(site, found.link))
}

impl LeftOut {
    /// The reason in words.
    pub(super) fn words(&self, site: &Site<'_>, vip: IpAddr) -> String {
        match &self.reason {
            Reason::Secondary { source } => {
                let prefix = site
                    .addresses(vip)
                    .next()
                    .map(|found| format!("/{}", found.prefix_length))
                    .unwrap_or_default();
                format!(
                    "{vip}{prefix} is a secondary address in the prefix of {source}, so its local route carries src \
                     {source}, and kube-proxy (ipvs, before 1.23) takes node addresses from that src."
                )
            }
            Reason::Configured { .. } => {
                format!("Its configuration nodePortAddresses leaves {vip} out.")
            }
            Reason::Primary => format!(
                "Its configuration nodePortAddresses is primary: NodePorts answer on the node's first address of each \
                 family only, and {vip} is another."
            ),
            Reason::PrimaryByDefault => format!(
                "Without nodePortAddresses its nftables mode takes the node's first address of each family only, and \
                 {vip} is another."
            ),
            Reason::ServiceAddress => format!(
                "{vip} is on {SERVICE_DEVICE} as a service address too, and kube-proxy 1.23 to 1.26 takes such \
                 addresses away from its node addresses."
            ),
            Reason::Late => "By its version and configuration it is to make one: the address is newer than its last \
                             sync, or it does not sync."
                .to_owned(),
            Reason::Unknown => format!(
                "Either nodePortAddresses leaves {vip} out, or the address is newer than kube-proxy's last sync."
            ),
        }
    }

    /// What kube-proxy's configuration and version say of it.
    pub(super) fn proof(&self) -> Option<Proof> {
        let text = match (&self.reason, self.minor) {
            (Reason::Configured { list }, _) => {
                format!("its nodePortAddresses are {}", pod_network::words(list))
            }
            (Reason::Primary, _) => "its nodePortAddresses are primary".to_owned(),
            (Reason::PrimaryByDefault, _) => {
                "its mode is nftables, and it has no nodePortAddresses".to_owned()
            }
            (Reason::Secondary { .. } | Reason::ServiceAddress, Some(minor)) => {
                format!("its version is 1.{minor}")
            }
            _ => return None,
        };
        Some(Proof {
            source: "kube-proxy",
            text,
        })
    }

    /// Ways to have the address served, the best first.
    pub(super) fn fixes(&self, site: &Site<'_>, vip: IpAddr) -> Vec<Fix> {
        let host = if vip.is_ipv4() { 32 } else { 128 };
        let listed = |instead: &str| Fix {
            lines: vec![
                format!(
                    "nodePortAddresses: [{vip}/{host}] {instead}, in kube-proxy's configuration"
                ),
                "systemctl restart kube-proxy".into(),
            ],
            risk: "NodePorts answer only on the addresses that the list names",
        };
        let configuration = listed("beside the prefixes already there");
        let place = site
            .addresses(vip)
            .next()
            .and_then(|address| Some((address, site.link(address.link)?)));
        match (&self.reason, place) {
            (Reason::Secondary { .. }, Some((address, link))) => vec![
                Fix {
                    lines: vec![
                        format!(
                            "ip addr del {vip}/{} dev {name} && ip addr add {vip}/{host} dev {name}",
                            address.prefix_length,
                            name = link.name
                        ),
                        "systemctl restart kube-proxy".into(),
                    ],
                    risk: "connections to the address break for a moment; make it lasting where the address is \
                           configured (keepalived, netplan)",
                },
                configuration,
            ],
            (Reason::Primary | Reason::PrimaryByDefault, _) => {
                vec![listed("and the node's own addresses instead of primary")]
            }
            (Reason::ServiceAddress, _) => vec![
                Fix {
                    lines: vec!["upgrade kube-proxy to 1.27 or later".into()],
                    risk: "as any upgrade",
                },
                configuration,
            ],
            (Reason::Late, _) => vec![Fix {
                lines: vec![
                    "curl -s http://127.0.0.1:10256/healthz   # when did it last sync? It does so every 30 s".into(),
                    "systemctl restart kube-proxy   # where it does not".into(),
                ],
                risk: "kube-proxy starts anew and syncs; established connections go on",
            }],
            _ => vec![configuration],
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cause::constructed::{Bench, NODE, ip};
    use crate::cause::vip_nodeport_audit::tests::{KUBE_IPVS0, with_vip};
    use crate::kube::constructed::cluster;
    use crate::node::{KubeProxy, NetnsId, ProxyConfiguration, ProxyReport};

    /// A node with the secondary address 192.0.2.9/24 and a kube-proxy of this command line, that says this.
    fn bench(line: &str, version: Option<&str>, file: Option<&str>) -> Bench {
        let mut bench = with_vip("192.0.2.1");
        let mut proxy = KubeProxy::constructed(line);
        proxy.netns = Some(NetnsId(NODE));
        proxy.report = Some(ProxyReport {
            version: version.map(str::to_owned),
            configuration: file.map(|text| ProxyConfiguration::parse(text).expect("a file")),
            ..ProxyReport::default()
        });
        bench.facts.kube_proxies = vec![proxy];
        bench
    }

    /// The reason, and whether it is certain.
    fn found(bench: &Bench) -> Option<(&'static str, bool)> {
        bench.with_evidence(|evidence| {
            let site = evidence.site(NetnsId(NODE)).expect("the node");
            let found = left_out(evidence, site, ip("192.0.2.9"))?;
            let name = match found.reason {
                Reason::Secondary { .. } => "secondary",
                Reason::Configured { .. } => "configured",
                Reason::Primary | Reason::PrimaryByDefault => "primary",
                Reason::ServiceAddress => "service",
                Reason::Late => "late",
                Reason::Unknown => "unknown",
            };
            Some((name, found.missing.is_empty()))
        })
    }

    #[test]
    fn configuration_and_version_decide() {
        const IPVS: &str = "kube-proxy --proxy-mode=ipvs";
        const FILE: &str = "kube-proxy --config=/etc/k.yml";
        let only_node = "mode: ipvs\nnodePortAddresses: [192.0.2.1/32]\n";
        let both = "mode: ipvs\nnodePortAddresses: [192.0.2.0/24]\n";
        for (line, version, file, wanted) in [
            (IPVS, Some("v1.20.2"), None, Some(("secondary", true))),
            (IPVS, None, None, Some(("secondary", true))),
            (IPVS, Some("v1.28.0"), None, Some(("late", false))),
            (
                FILE,
                Some("v1.20.2"),
                Some(only_node),
                Some(("configured", true)),
            ),
            // Interfaces are asked then, not routes.
            (FILE, Some("v1.20.2"), Some(both), Some(("late", false))),
            // Nobody could read the file.
            (FILE, Some("v1.20.2"), None, Some(("unknown", false))),
            (
                "kube-proxy --proxy-mode=ipvs --nodeport-addresses=primary",
                Some("v1.31.0"),
                None,
                Some(("primary", true)),
            ),
            (
                "kube-proxy --proxy-mode=ipvs --nodeport-addresses=0.0.0.0/0",
                Some("v1.22.0"),
                None,
                Some(("secondary", true)),
            ),
            ("kube-proxy --proxy-mode=iptables", None, None, None),
        ] {
            let found = found(&bench(line, version, file));
            assert_eq!(found, wanted, "{line} {version:?} {file:?}");
        }
    }

    #[test]
    fn without_a_sight_of_kube_proxy_its_device_has_to_show_it() {
        let mut bench = with_vip("192.0.2.1");
        assert_eq!(found(&bench), Some(("secondary", true)));
        let site = bench.site();
        // As a director of keepalived is, and as kube-proxy in another mode leaves a node.
        site.addresses.retain(|found| found.link != KUBE_IPVS0);
        assert_eq!(found(&bench), Some(("secondary", false)));
        let named = bench.with_evidence(|evidence| {
            let site = evidence.site(NetnsId(NODE)).expect("the node");
            let found = left_out(evidence, site, ip("192.0.2.9")).expect("a reason");
            found.missing
        });
        assert!(named[0].contains(SERVICE_DEVICE), "{named:?}");
    }

    #[test]
    fn an_address_of_unknown_age_may_be_of_this_moment() {
        for (version, certain) in [(None, false), (Some("v1.20.2"), true)] {
            let mut bench = bench("kube-proxy --proxy-mode=ipvs", version, None);
            let vip = ip("192.0.2.9");
            let addresses = bench.site().addresses.iter_mut();
            for found in addresses.filter(|found| found.address == vip) {
                found.created_ns = None;
            }
            assert_eq!(found(&bench), Some(("secondary", certain)), "{version:?}");
        }
    }

    #[test]
    fn an_address_of_this_moment_is_not_blamed_on_its_route() {
        const SECOND: u64 = 1_000_000_000;
        for (version, age, started, certain) in [
            (None, 3, 1000, false),
            (None, 31, 1000, true),
            // kube-proxy is younger than the address.
            (None, 3, 1, true),
            // By its version it never makes one.
            (Some("v1.20.2"), 3, 1000, true),
        ] {
            let mut bench = bench("kube-proxy --proxy-mode=ipvs", version, None);
            bench.facts.taken_ns = Some(5000 * SECOND);
            bench.facts.kube_proxies[0].started_ns = Some((5000 - started) * SECOND);
            let mut own = bench.site().addresses.iter_mut();
            let vip = own.find(|own| own.secondary).expect("the address");
            vip.created_ns = Some((5000 - age) * SECOND);
            let wanted = Some(("secondary", certain));
            assert_eq!(found(&bench), wanted, "{version:?} {age} {started}");
        }
    }

    #[test]
    fn the_fix_belongs_to_the_reason() {
        for (line, words) in [
            (
                "kube-proxy --proxy-mode=ipvs --nodeport-addresses=primary",
                "instead of primary",
            ),
            (
                "kube-proxy --proxy-mode=ipvs --nodeport-addresses=192.0.2.1/32",
                "[192.0.2.9/32] beside",
            ),
            ("kube-proxy --proxy-mode=ipvs", "healthz"),
        ] {
            let bench = bench(line, Some("v1.31.0"), None);
            bench.with_evidence(|evidence| {
                let site = evidence.site(NetnsId(NODE)).expect("the node");
                let vip = ip("192.0.2.9");
                let found = left_out(evidence, site, vip).expect("a reason");
                let first = found.fixes(site, vip).remove(0);
                assert!(first.lines[0].contains(words), "{line}: {:?}", first.lines);
            });
        }
    }

    #[test]
    fn the_node_s_first_address_is_served_with_primary() {
        let mut bench = bench(
            "kube-proxy --proxy-mode=ipvs --nodeport-addresses=primary",
            None,
            None,
        );
        let node = json!({"kind": "Node", "metadata": {"name": "node-a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}});
        bench.cluster = Some(cluster("node-a", &[node]));
        assert_eq!(found(&bench), Some(("late", false)));
    }

    #[test]
    fn an_address_that_is_a_service_s_too() {
        for (version, wanted) in [
            (Some("v1.24.0"), Some(("service", true))),
            (None, Some(("service", false))),
            (Some("v1.27.0"), Some(("late", false))),
        ] {
            let mut bench = bench("kube-proxy --proxy-mode=ipvs", version, None);
            let site = bench.site();
            let mut own = site.addresses.iter_mut();
            let vip = own.find(|own| own.secondary).expect("the address");
            vip.secondary = false;
            let on_service_device = crate::node::Address {
                link: KUBE_IPVS0,
                ..vip.clone()
            };
            site.addresses.push(on_service_device);
            assert_eq!(found(&bench), wanted, "{version:?}");
        }
    }
}
