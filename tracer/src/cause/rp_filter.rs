//! `rp-filter`: the reverse path filter dropped the packet.

use super::audit::{Finding, is_node};
use super::evidence::Evidence;
use super::source_check::{Refusal, Refused, device_setting, mode, refused};
use super::{Cause, Diagnosis, Failure, Site};
use crate::node::{Address, Prefix, RuleAction};

pub(super) const CAUSE: Cause = Cause {
    code: "rp-filter",
    title: "the reverse path filter drops packets: the way back leads by another device",
    explanation: "\
With rp_filter=1 (strict) the kernel takes a packet only when its own route back to the sender leaves by
the device that the packet came in by; with 2 (loose) any route back will do. The larger of
net.ipv4.conf.all.rp_filter and the device's own value counts. Multi-homed nodes, asymmetric routes,
policy routing and some CNI plugins need 0 or 2. The drop is silent; the sender sees a timeout.

Proof: the packet was dropped with IP_RPFILTER (before 5.17: refused by the source check while the filter
is on), and the route back to its source leads by another device.

Fix: rp_filter=2 on the device, or make the routes symmetric.",
    references: &[
        "Linux net/ipv4/fib_frontend.c, fib_validate_source: refuses a packet when the route back leaves by \
         another device",
        "Linux net/ipv4/ip_input.c, ip_rcv_finish_core: drops it with IP_RPFILTER and counts \
         IPReversePathFilter",
        "Linux Documentation/networking/ip-sysctl.rst: rp_filter",
    ],
    explains: &[],
    examine,
    audit,
};

/// `RT_TABLE_DEFAULT`, `RT_TABLE_MAIN`, `RT_TABLE_LOCAL`: the tables of the rules that are always there.
const USUAL_TABLES: [u32; 3] = [253, 254, 255];

fn examine(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    evidence
        .group(|failure| match refused(evidence, failure)? {
            (refused, Refusal::ReversePath) => Some((refused.netns, refused.ifindex)),
            (_, Refusal::Source) => None,
        })
        .into_values()
        .filter_map(|failures| {
            let (refused, _) = refused(evidence, failures.first()?)?;
            Some(say(evidence, refused, &failures))
        })
        .collect()
}

/// Networks that a node is in by a strict device while its way to them leads by another.
fn audit(evidence: &Evidence<'_>) -> Vec<Finding> {
    evidence
        .sites()
        .filter(|site| is_node(evidence, site) && !routes_by_policy(site))
        .flat_map(|site| site.facts.addresses.iter().map(move |entry| (site, entry)))
        .filter_map(|(site, entry)| Some(Finding::warning(warn(site, entry)?)))
        .collect()
}

/// Other tables than the usual ones are asked, which may lead back by the right device.
fn routes_by_policy(site: &Site<'_>) -> bool {
    site.facts.rules.iter().any(|rule| {
        let usual = USUAL_TABLES.contains(&rule.table);
        !rule.ipv6 && rule.action == RuleAction::Lookup && !usual
    })
}

fn warn(site: &Site<'_>, entry: &Address) -> Option<Diagnosis> {
    let link = site
        .facts
        .links
        .iter()
        .find(|link| link.index == entry.link && link.up)?;
    let network = Prefix {
        address: entry.address,
        length: entry.prefix_length,
    }
    .masked()?;
    let shared = entry.address.is_ipv4() && network.length < 32;
    let back = site
        .main_route(entry.address)
        .filter(|route| route.link.is_some_and(|back| back != entry.link))?;
    if !shared || mode(site, entry.link) != Some(1) {
        return None;
    }
    let (place, device) = (site.name(), &link.name);
    let diagnosis = Diagnosis::new(
        &CAUSE,
        format!("{place} {device}"),
        format!(
            "{place} would drop packets from {network} that come in by {device}: the reverse path filter wants the way \
             back to lead by {device} too, and it is {}.",
            site.route_words(back)
        ),
    )
    .prove("address", format!("{device} has {}/{}", entry.address, entry.prefix_length))
    .prove("sysctl", strictness(device, 1))
    .prove("route", format!("back to {network}: {}", site.route_words(back)))
    .lacking("a packet that was dropped for it: nothing was traced");
    Some(loosen(diagnosis, device).check(format!(
        "sysctl net.ipv4.conf.all.rp_filter {}   # the larger counts: not 1",
        device_setting(device, "rp_filter")
    )))
}

fn strictness(device: &str, mode: i64) -> String {
    format!("rp_filter of {device} is {mode} (the larger of all and {device})")
}

fn loosen(diagnosis: Diagnosis, device: &str) -> Diagnosis {
    let setting = device_setting(device, "rp_filter");
    diagnosis.fix(
        [
            format!("sysctl -w {setting}=2"),
            format!("echo '{setting} = 2' > /etc/sysctl.d/99-rp-filter.conf   # lasting"),
        ],
        "packets with a false source address are held back less; every source still needs some route",
    )
}

fn say(evidence: &Evidence<'_>, refused: Refused, failures: &[&Failure<'_>]) -> Diagnosis {
    let Refused {
        netns,
        ifindex,
        source,
    } = refused;
    let site = evidence.site(netns);
    let place = site.map_or_else(|| format!("netns {netns}"), Site::name);
    let device = site.map_or_else(|| format!("if{ifindex}"), |site| site.device(ifindex));
    let mode = site.and_then(|site| mode(site, ifindex));
    let back = site.and_then(|site| Some((site, site.main_route(source)?)));
    let asymmetric = back.filter(|(_, route)| route.link != Some(ifindex));
    let named = failures
        .iter()
        .any(|failure| failure.drop.is_some_and(|drop| drop.reason.is_some()));
    let mut summary = format!(
        "{place} drops packets from {source} that come in by {device}: the reverse path filter wants the way back to \
         lead by {device} too"
    );
    summary += &match (asymmetric, back) {
        (Some((site, route)), _) => format!(", and it is {}.", site.route_words(route)),
        (None, Some(_)) => ", and policy routing sends it elsewhere.".into(),
        (None, None) => ", and there is none.".into(),
    };
    let diagnosis = Diagnosis::new(&CAUSE, format!("{place} {device}"), summary)
        .stopped(evidence, failures)
        .prove_if(
            "packet",
            failures.first().map(|first| {
                format!(
                    "{} came in by {device}, {}",
                    first.words(),
                    first.drop_words()
                )
            }),
        )
        .prove_if("sysctl", mode.map(|mode| strictness(&device, mode)))
        .prove_if(
            "route",
            asymmetric
                .map(|(site, route)| format!("back to {source}: {}", site.route_words(route))),
        )
        .lacking_if(
            !named && mode.is_none_or(|mode| mode == 0),
            format!("the value of rp_filter on {device} when the packet came"),
        )
        .lacking_if(
            !named && asymmetric.is_none() && back.is_some(),
            format!("a route back to {source} that leaves by another device"),
        );
    loosen(diagnosis, &device)
        .fix(
            [format!("ip route replace {source}/32 dev {device}   # or give the whole network its route by {device}")],
            "answers to that network go by this device from now on",
        )
        .check(format!("ip route get {source}   # should leave by {device}"))
        .typed_for(site)
}

#[cfg(test)]
pub(super) mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::cause::Certainty;
    use crate::cause::constructed::{Bench, CNI0, ip, link, node, service};
    use crate::node::PolicyRule;

    fn with(reason: &str) -> Bench {
        let mut bench = node();
        bench.sysctl("net/ipv4/conf/all/rp_filter", "1");
        bench
            .udp("192.0.2.77:40000", "192.0.2.1:80")
            .receive(CNI0)
            .at(HookId::RouteInput)
            .at(HookId::Martian)
            .dropped(reason, "ip_rcv_finish_core");
        bench
    }

    pub(in crate::cause) fn situation() -> Bench {
        with("IP_RPFILTER")
    }

    #[test]
    fn the_way_back_leads_elsewhere() {
        for reason in ["IP_RPFILTER", ""] {
            let found = with(reason).only();
            assert_eq!(
                (found.code, found.certainty),
                (CAUSE.code, Certainty::Certain)
            );
            assert!(
                found.summary.contains("192.0.2.0/24 dev eth0"),
                "{found:#?}"
            );
        }
    }

    #[test]
    fn a_setting_is_named_as_sysctl_takes_it_and_in_the_pod_that_has_it() {
        let mut bench = with("IP_RPFILTER");
        bench.site().links[2].name = "eth0.100".into();
        let line = |bench: &Bench| bench.only().fixes[0].lines[0].clone();
        assert_eq!(line(&bench), "sysctl -w net.ipv4.conf.eth0/100.rp_filter=2");

        bench.site().is_pod = true;
        bench.site().path = Some("/proc/7/ns/net".into());
        assert_eq!(
            line(&bench),
            "nsenter --net=/proc/7/ns/net sysctl -w net.ipv4.conf.eth0/100.rp_filter=2"
        );
        let lasting = &bench.only().fixes[0].lines[1];
        assert!(lasting.starts_with("securityContext.sysctls"), "{lasting}");
    }

    #[test]
    fn without_reason_and_setting_it_is_likely() {
        let mut bench = with("");
        bench.without_sysctl("net/ipv4/conf/all/rp_filter");
        assert_eq!(bench.only().certainty, Certainty::Likely);
    }

    #[test]
    fn a_second_card_in_the_same_network_is_found_without_traffic() {
        let findings = |mode: &str, table: u32| {
            let mut bench = node();
            let site = bench.site();
            site.ipvs = Some(vec![service(6, "10.96.0.5:80", &[])]);
            site.links.push(link(9, "eth1"));
            let first = site.addresses[0].clone();
            site.addresses.push(Address {
                link: 9,
                address: ip("192.0.2.2"),
                ..first
            });
            site.rules.push(PolicyRule {
                ipv6: false,
                priority: 100,
                action: RuleAction::Lookup,
                table,
                from: None,
                to: None,
                input: None,
                mark: None,
            });
            for device in ["eth0", "eth1"] {
                bench.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), mode);
            }
            bench.with_evidence(audit)
        };
        let found = findings("1", 254);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].diagnosis.certainty, Certainty::Likely);
        let summary = &found[0].diagnosis.summary;
        assert!(
            summary.contains("from 192.0.2.0/24 that come in by eth1"),
            "{summary}"
        );
        assert!(
            findings("1", 100).is_empty(),
            "another table may lead back by eth1"
        );
        assert!(findings("2", 254).is_empty());
    }
}
