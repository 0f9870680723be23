//! `dns-stale-conntrack`: a UDP conntrack entry keeps sending a service's packets to an endpoint that
//! is gone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::audit::Finding;
use super::dns_stale_log;
use super::evidence::{Evidence, Failure};
use super::ipvs_stale_connection::swallowed;
use super::service::{claimant, has_kube_proxy};
use super::{Cause, Diagnosis, Site};
use crate::event::{Detail, Tuple, protocol};
use crate::expectation::Proxy;
use crate::flow::Direction;
use crate::hook::Role;
use crate::kube::Resource;
use crate::node::{ConntrackEntry, NetnsId, ProxyLog};

pub(super) const CAUSE: Cause = Cause {
    code: "dns-stale-conntrack",
    title: "a stale UDP conntrack entry sends a service's packets to an endpoint that is gone",
    explanation: "\
For UDP, NAT is decided by the first packet from a client's address and port, and the conntrack entry keeps
the decision for as long as packets come. When the chosen endpoint goes away, clients that reuse their
source port (DNS resolvers do) go on sending to it. kube-proxy has to delete such entries:
  * up to 1.31 it runs the program `conntrack`; without it, or without the module nf_conntrack_netlink, the
    log says so and the entries stay; it does not try again;
  * from 1.32 it uses netlink, and still leaves entries of services scaled to zero and deleted services.

Signs: a packet whose entry leads to an address that is no endpoint of the service; the packet then meets a
neighbour that does not answer, no route, or a foreign pod. An entry without any NAT (its reply comes from
the service address itself) was made before the service's rules; that it waits for a reply proves nothing,
programs that only send have such entries too.

Proof: the entry that the packet met, and the service's present endpoints, which do not hold its target; of
an entry without NAT, that it is older than the packet and in the namespace where kube-proxy works.

Fix: delete the entry; then find out why kube-proxy did not.",
    references: &[
        "Kubernetes pkg/util/conntrack: up to 1.31 kube-proxy runs the program conntrack, and does not try \
         again",
        "Kubernetes pkg/proxy/conntrack: which entries kube-proxy deletes",
        "https://github.com/kubernetes/kubernetes/issues/126130",
        "https://github.com/kubernetes/kubernetes/issues/126847",
        "https://github.com/kubernetes/kubernetes/issues/127318",
        "https://github.com/kubernetes/kubernetes/issues/139628",
        "https://github.com/kubernetes/kubernetes/issues/141371",
        "https://github.com/kubernetes/kubernetes/issues/48370",
        "https://github.com/kubernetes/kubernetes/issues/122740",
    ],
    explains: &["neighbour-failed", "no-route", "route-blackhole", "no-listener"],
    examine,
    audit,
};

/// `IPS_CONFIRMED`: the entry is older than the packet that meets it.
const CONFIRMED: u16 = 1 << 3;

/// A service address, and where a conntrack entry leads instead of to an endpoint of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stale {
    netns: NetnsId,
    service: SocketAddr,
    target: SocketAddr,
}

impl Stale {
    /// The entry has NAT; without, it is older than the service's rules.
    fn is_translated(self) -> bool {
        self.service != self.target
    }
}

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| {
            let stale = led_astray(evidence, failure)?;
            let serving = serving(evidence, stale);
            let other = evidence.site(stale.netns).is_none_or(|_| {
                serving
                    .as_ref()
                    .is_none_or(|list| !list.contains(&stale.target))
            });
            // Without the list of endpoints another client's choice has to differ.
            let known =
                serving.is_some() || (stale.is_translated() && rival(evidence, stale).is_some());
            (other && known).then_some(stale)
        })
        .into_iter()
        .map(|(stale, failures)| judge(evidence, stale, &failures))
        .collect()
}

/// The entry of a UDP request that was lost behind it, seen on its way.
fn led_astray(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<Stale> {
    // Where IPVS keeps the decision its own entry is the stale one.
    let by_ipvs = failure.passed(Role::IpvsTransmit) || swallowed(failure).is_some();
    if failure.direction != Direction::Request
        || failure.flow.client.protocol != protocol::UDP
        || by_ipvs
    {
        return None;
    }
    let (netns, original, reply) = entry(evidence, failure)?;
    Some(Stale {
        netns,
        service: original.destination,
        target: reply.source,
    })
}

/// The first conntrack entry that the packet met and that decides where it goes. Of each namespace the first
/// one counts: one that has its NAT already was there before the packet. Without NAT it has to be older, and
/// where kube-proxy works: hosts that do not translate have such entries of everything.
fn entry(evidence: &Evidence<'_>, failure: &Failure<'_>) -> Option<(NetnsId, Tuple, Tuple)> {
    let mut met = Vec::new();
    let events = failure.journey.events.iter().enumerate();
    events
        .filter_map(|(index, event)| match event.detail {
            Detail::Conntrack {
                original,
                reply,
                status,
                ..
            } => Some((failure.netns_at(index)?, original, reply, status)),
            _ => None,
        })
        .find_map(|(netns, original, reply, status)| {
            let first = !met.contains(&netns);
            met.push(netns);
            let decides = original.destination != reply.source
                || (status & CONFIRMED != 0 && has_kube_proxy(evidence, netns));
            (first && decides).then_some((netns, original, reply))
        })
}

/// The service's present endpoints, and who says so: IPVS, else the cluster. `None` when neither knows, or
/// when an entry without NAT is right.
fn serving(evidence: &Evidence<'_>, stale: Stale) -> Option<Vec<SocketAddr>> {
    let by_ipvs = by_ipvs(evidence, stale);
    if stale.is_translated() {
        return by_ipvs.or_else(|| by_cluster(evidence, stale));
    }
    // IPVS translates without the entry, and without endpoints there is nothing to translate to.
    let untouched = by_ipvs.is_none() && has_kube_proxy(evidence, stale.netns);
    by_cluster(evidence, stale).filter(|list| untouched && !list.is_empty())
}

/// The real servers that take connections; `None` when IPVS does not serve it.
fn by_ipvs(evidence: &Evidence<'_>, stale: Stale) -> Option<Vec<SocketAddr>> {
    let server = evidence.site(stale.netns)?.virtual_server(
        protocol::UDP,
        stale.service.ip(),
        stale.service.port(),
    )?;
    Some(
        server
            .destinations
            .iter()
            .filter(|real| real.weight > 0)
            .map(|real| SocketAddr::new(real.address, real.port))
            .collect(),
    )
}

/// The serving endpoints in the service's EndpointSlices, while these are fresh.
fn by_cluster(evidence: &Evidence<'_>, stale: Stale) -> Option<Vec<SocketAddr>> {
    let cluster = evidence
        .cluster
        .filter(|cluster| cluster.fresh(&[Resource::Services, Resource::Endpoints]))?;
    let object = claimant(evidence, stale.netns, protocol::UDP, stale.service)?;
    Some(
        cluster
            .endpoints_of(&object.name)
            .filter(|(endpoint, _)| endpoint.serving)
            .flat_map(|(endpoint, ports)| {
                let udp = ports.iter().filter(|port| port.protocol == protocol::UDP);
                udp.filter_map(|port| Some(SocketAddr::new(endpoint.address, port.port?)))
            })
            .collect(),
    )
}

/// Where another client's packets to the same service arrived.
fn rival(evidence: &Evidence<'_>, stale: Stale) -> Option<(u64, SocketAddr)> {
    evidence
        .flows_to(protocol::UDP, stale.service)
        .iter()
        .flat_map(|flow| flow.of(Direction::Request))
        .filter(|journey| !journey.failed())
        .find_map(|journey| {
            let target = journey.last_tuple()?.destination;
            (target != stale.service && target != stale.target).then_some((journey.id, target))
        })
}

fn judge(evidence: &Evidence<'_>, stale: Stale, failures: &[&Failure<'_>]) -> Diagnosis {
    let Stale {
        netns,
        service,
        target,
    } = stale;
    let place = evidence
        .site(netns)
        .map_or_else(|| format!("netns {netns}"), Site::name);
    let serving = serving(evidence, stale);
    let by_ipvs = by_ipvs(evidence, stale).is_some();
    let rival = rival(evidence, stale);
    let first = failures.first();
    let entry = first.and_then(|failure| entry(evidence, failure));
    let end = first.map_or_else(String::new, |failure| {
        if failure.passed(Role::NeighbourFailed) {
            ": nobody answers there".to_owned()
        } else if failure.passed(Role::RouteError) {
            ": there is no usable route to it".to_owned()
        } else {
            format!(": the packet was {}", failure.drop_words())
        }
    });
    let list = |endpoints: &[SocketAddr]| {
        if endpoints.is_empty() {
            "no endpoint".to_owned()
        } else {
            endpoints
                .iter()
                .take(4)
                .map(SocketAddr::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        }
    };
    let tries = first.map_or(0, |failure| failure.flow.of(Direction::Request).count());
    let (subject, what, followed) = if stale.is_translated() {
        (
            format!("udp {service} → {target}"),
            format!(
                "A conntrack entry in {place} still sends packets for udp {service} to {target}, which is no endpoint of \
                 it any more"
            ),
            format!("followed the entry to {target}"),
        )
    } else {
        (
            format!("udp {service} not translated"),
            format!(
                "A conntrack entry in {place} for udp {service} is older than the service's rules, so its packets are not \
                 translated to an endpoint"
            ),
            "met the entry and went on untranslated".to_owned(),
        )
    };
    Diagnosis::new(
        &CAUSE,
        subject,
        format!("{what}{end}. Each packet from the same client port renews the entry."),
    )
    .stopped(evidence, failures)
    .prove_if(
        "conntrack",
        entry.map(|(_, original, reply)| {
            format!(
                "udp {} → {}, reply {} → {}",
                original.source, original.destination, reply.source, reply.destination
            )
        }),
    )
    .prove_if(if by_ipvs { "ipvs" } else { "endpoints" }, serving.as_ref().map(|now| format!("udp {service} has {}", list(now))))
    .prove_if(
        "packet",
        first.map(|failure| format!("{} {followed}; {tries} packets of its port did", failure.words())),
    )
    .prove_if(
        "packet",
        rival.map(|(id, other)| format!("#{id} to the same service reached {other}")),
    )
    .prove_if(
        "log",
        logged(evidence, service).map(|log| {
            let line = log.no_tool.as_deref().or(log.failed.as_deref());
            let why = line.unwrap_or("it could not delete its entries");
            format!("{}: {why}", log.source)
        }),
    )
    .lacking_if(
        serving.is_none(),
        "the service's present endpoints (its rules or EndpointSlices)",
    )
    .fix(
        delete(service, by_ipvs),
        "the service's UDP clients get a new endpoint; answers under way to the old entries are lost",
    )
    .fix(
        [
            "apt-get install conntrack   # in kube-proxy's image or host, for kube-proxy up to 1.31",
            "systemctl restart kube-proxy   # or: kubectl -n kube-system rollout restart daemonset kube-proxy",
        ],
        "none for existing connections",
    )
    .check(format!(
        "conntrack -L -p udp --orig-dst {} --orig-port-dst {}",
        service.ip(),
        service.port()
    ))
}

/// Commands that make clients choose anew; IPVS keeps entries of its own beside conntrack's.
fn delete(service: SocketAddr, by_ipvs: bool) -> Vec<String> {
    let mut commands = vec![format!(
        "conntrack -D -p udp --orig-dst {} --orig-port-dst {}",
        service.ip(),
        service.port()
    )];
    if by_ipvs {
        commands.push(
            "sysctl -w net.ipv4.vs.expire_nodest_conn=1   # IPVS forgets such connections too"
                .into(),
        );
    }
    commands
}

/// Entries that lead to no endpoint of their service, and a kube-proxy that cannot delete them.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    // Elsewhere, as in a pod with rules of its own, entries for services are not translated.
    let translates = |site: &&Site<'_>| {
        let by_ipvs = site
            .facts
            .ipvs
            .as_ref()
            .is_some_and(|table| !table.is_empty());
        by_ipvs || has_kube_proxy(evidence, site.facts.id)
    };
    for site in evidence.sites().filter(translates) {
        let mut stale: BTreeMap<Stale, Vec<&ConntrackEntry>> = BTreeMap::new();
        for entry in site.facts.udp_entries.iter().flatten() {
            let key = Stale {
                netns: site.facts.id,
                service: entry.original.destination,
                target: entry.reply.source,
            };
            if serving(evidence, key).is_some_and(|list| !list.contains(&key.target)) {
                stale.entry(key).or_default().push(entry);
            }
        }
        found.extend(stale.into_iter().map(|(stale, entries)| {
            let diagnosis = judge(evidence, stale, &[]).prove(
                "conntrack",
                format!(
                    "{} such entries, one of client {}",
                    entries.len(),
                    entries[0].original.source
                ),
            );
            if stale.is_translated() {
                Finding::error(diagnosis)
            } else {
                Finding::warning(diagnosis.lacking(
                    "that its client still sends: the entry of a single packet goes away by itself",
                ))
            }
        }));
    }
    found.extend(dns_stale_log::findings(evidence));
    for proxy in &evidence.facts.kube_proxies {
        if proxy.conntrack_tool != Some(false) {
            continue;
        }
        match Proxy::minor_of(proxy, evidence.cluster) {
            Some(minor) if minor > LAST_WITH_TOOL => {}
            Some(minor) => found.push(Finding::error(
                no_tool(proxy.pid).prove("kube-proxy", format!("its version is 1.{minor}")),
            )),
            None => found
                .push(Finding::warning(no_tool(proxy.pid).lacking(
                    "kube-proxy's version: from 1.32 it does not need the program",
                ))),
        }
    }
    found
}

/// The last minor version of kube-proxy that runs the program `conntrack`.
const LAST_WITH_TOOL: u16 = 31;

/// The program that kube-proxy up to 1.31 runs is not there for it.
fn no_tool(pid: u32) -> Diagnosis {
    Diagnosis::new(
        &CAUSE,
        format!("kube-proxy {pid}"),
        format!(
            "kube-proxy (process {pid}) finds no program `conntrack` in its own file system: up to 1.31 it then cannot \
             delete stale UDP entries, and DNS clients hang after an endpoint goes away."
        ),
    )
    .prove("kube-proxy", format!("no conntrack in the PATH of process {pid}, below /proc/{pid}/root"))
    .fix(
        ["apt-get install conntrack   # or an image of kube-proxy that holds it; then restart kube-proxy"],
        "none for existing connections",
    )
    .check(format!("nsenter -t {pid} -m conntrack --version"))
}

/// What kube-proxy's log says about a service's entries.
fn logged<'a>(evidence: &Evidence<'a>, service: SocketAddr) -> Option<&'a ProxyLog> {
    let log = evidence.facts.proxy_log.as_deref()?;
    log.undeleted.contains(&service.ip()).then_some(log)
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, at, ip, neighbour, node, service};
    use crate::node::NeighbourState;

    mod entry;

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple {
            protocol: protocol::UDP,
            source: at(source),
            destination: at(destination),
        }
    }

    fn query(bench: &mut Bench, client: &str, target: &str, fails: bool) {
        let conntrack = Detail::Conntrack {
            original: tuple(client, "10.96.0.10:53"),
            reply: tuple(target, client),
            destination_nat: false,
            relation: None,
            status: 0,
            zone: 0,
        };
        let way = bench
            .udp(client, "10.96.0.10:53")
            .receive(CNI0)
            .with(HookId::ConntrackUdp, conntrack)
            .to(target)
            .at(HookId::Forward);
        if fails {
            let detail = Detail::Neighbour {
                address: ip("10.244.0.7"),
                ifindex: CNI0,
            };
            way.with(HookId::NeighbourQueue, detail.clone())
                .with(HookId::NeighbourFailed, detail)
                .dropped("NEIGH_FAILED", "arp_error_report");
        } else {
            way.transmit(CNI0).ends();
        }
    }

    pub(in crate::cause) fn situation() -> Bench {
        let mut bench = node();
        bench.site().ipvs = Some(vec![service(17, "10.96.0.10:53", &[("10.244.0.8:53", 1)])]);
        bench.site().neighbours = vec![neighbour(CNI0, "10.244.0.7", NeighbourState::Failed)];
        query(&mut bench, "10.244.0.9:4000", "10.244.0.7:53", true);
        bench
    }

    #[test]
    fn the_failed_neighbour_is_its_consequence() {
        let found = situation().only();
        assert_eq!(
            (found.code, found.certainty),
            (CAUSE.code, Certainty::Certain)
        );
        assert_eq!(found.consequences.len(), 1);
        assert_eq!(
            found.fixes[0].lines[0],
            "conntrack -D -p udp --orig-dst 10.96.0.10 --orig-port-dst 53"
        );
    }

    #[test]
    fn an_endpoint_of_the_service_is_another_case() {
        let mut bench = situation();
        bench.site().ipvs = Some(vec![service(17, "10.96.0.10:53", &[("10.244.0.7:53", 1)])]);
        assert_eq!(bench.only().code, "neighbour-failed");
    }

    #[test]
    fn without_the_list_of_endpoints_another_clients_way_makes_it_likely() {
        let mut bench = situation();
        bench.site().ipvs = None;
        assert_eq!(bench.only().code, "neighbour-failed");
        query(&mut bench, "10.244.0.9:4001", "10.244.0.8:53", false);
        let found = bench.diagnose();
        let stale = found.iter().find(|found| found.code == CAUSE.code);
        assert_eq!(stale.map(|found| found.certainty), Some(Certainty::Likely));
    }

    #[test]
    fn a_missing_program_matters_to_those_who_run_it() {
        use crate::cause::audit::Severity;
        use crate::node::{KubeProxy, ProxyReport};
        let wanted = |severity, certainty| Some((severity, certainty));
        for (version, expected) in [
            (Some("v1.20.2"), wanted(Severity::Error, Certainty::Certain)),
            (Some("v1.31.9"), wanted(Severity::Error, Certainty::Certain)),
            (Some("v1.32.0"), None),
            (None, wanted(Severity::Warning, Certainty::Likely)),
        ] {
            let mut bench = node();
            let mut proxy = KubeProxy::constructed("kube-proxy --proxy-mode=ipvs");
            proxy.conntrack_tool = Some(false);
            proxy.report = Some(ProxyReport {
                version: version.map(str::to_owned),
                ..ProxyReport::default()
            });
            bench.facts.kube_proxies = vec![proxy];
            let found = bench.with_evidence(audit);
            let first = found.first();
            let found = first.map(|found| (found.severity, found.diagnosis.certainty));
            assert_eq!(found, expected, "{version:?}");
        }
    }
}
