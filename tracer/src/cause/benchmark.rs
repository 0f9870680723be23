//! How long judging takes: 100,000 flows on a node of a cluster of 5,000 services, in ipvs and in iptables
//! mode. Run it with `cargo test --release -p tracer --lib judging -- --ignored --nocapture`; prints one JSON
//! object a line.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tracer_ebpf::hook::HookId;

use super::constructed::{
    Bench, CNI0, ETH0, Way, at, ip, link, neighbour, node, route, service, socket,
};
use super::filtered::tests::{chain, rule};
use crate::event::{Detail, NetfilterHook};
use crate::expectation::SERVICE_DEVICE;
use crate::kube::Resource;
use crate::kube::constructed::{cluster, configured};
use crate::node::netfilter::{Action, Family, Rule, RuleTable, Ruleset, Subject, Test, Tool};
use crate::node::{
    Address, Destination, NeighbourState, NodePortScope, PacketFilter, Route, RouteKind,
    ServiceRule, ServiceRules,
};

const SERVICES: usize = 5_000;
/// Endpoints of a service that has any.
const ENDPOINTS: usize = 5;
/// Pods of this node.
const LOCAL_PODS: usize = 110;
/// Pods of this node whose policies let nobody in.
const GUARDED: usize = 10;
const KUBE_IPVS0: u32 = 50;
const NO_SUCH_ADDRESS: &str = "10.244.255.255";
/// Seconds that judging may take.
const MOST_S: f64 = 2.0;
/// Twice as many flows may take so many times as long.
const MOST_GROWTH: f64 = 2.6;
/// How often each size is judged; the quickest counts, others use the processors too.
const TIMES: usize = 3;

/// How kube-proxy works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Ipvs,
    Iptables,
}

/// What is judged.
#[derive(Clone, Copy, Debug)]
struct Case {
    mode: Mode,
    /// No packet arrives.
    all_fail: bool,
}

/// What happens to the packets of a service, by its number.
#[derive(PartialEq, Eq)]
enum Fate {
    /// kube-proxy has not made it, and nothing listens on its NodePort.
    Refused,
    /// One of its endpoints is gone, and kube-proxy still sends there.
    Unanswered,
    /// There is no route to its endpoint.
    Unroutable,
    /// It has no endpoints.
    Empty,
    /// In iptables mode a policy keeps its clients out.
    Guarded,
    Arrives,
}

impl Case {
    fn fate(self, service: usize) -> Fate {
        match service % if self.all_fail { 5 } else { 10 } {
            0 => Fate::Refused,
            1 => Fate::Unanswered,
            2 => Fate::Unroutable,
            3 => Fate::Empty,
            4 => Fate::Guarded,
            _ => Fate::Arrives,
        }
    }

    /// The addresses of a service's endpoints, all of them ready.
    fn endpoints(self, service: usize) -> Vec<String> {
        if self.fate(service) == Fate::Empty {
            return Vec::new();
        }
        let numbers = service * ENDPOINTS..(service + 1) * ENDPOINTS;
        numbers
            .map(|pod| format!("10.244.{}.{}", pod / 250, pod % 250))
            .collect()
    }

    /// Where kube-proxy sends to; nowhere when it has not made the service.
    fn targets(self, service: usize) -> Vec<String> {
        let mut targets = self.endpoints(service);
        if self.fate(service) == Fate::Unanswered {
            targets[0] = NO_SUCH_ADDRESS.into();
        }
        targets.iter().map(|pod| format!("{pod}:80")).collect()
    }

    /// The services that kube-proxy has made.
    fn made(self) -> impl Iterator<Item = usize> {
        (0..SERVICES).filter(move |&service| self.fate(service) != Fate::Refused)
    }

    /// The first endpoints of the first services that policies guard.
    fn guarded_pods(self) -> impl Iterator<Item = String> {
        let guarded = (0..SERVICES).filter(move |&service| self.fate(service) == Fate::Guarded);
        guarded
            .filter_map(move |service| self.endpoints(service).into_iter().next())
            .take(GUARDED)
    }
}

fn service_address(service: usize) -> String {
    format!("10.96.{}.{}", service / 250, service % 250)
}

fn node_port(service: usize) -> u16 {
    20_000 + service as u16
}

/// The cluster's objects: services with their slices and pods, as many on the other nodes as they have.
fn objects(case: Case) -> Vec<Value> {
    let mut objects = vec![json!({"kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"podCIDRs": ["10.244.0.0/16"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "nodeInfo": {"kubeletVersion": "v1.31.0"}}})];
    let mut pods = 0;
    for service in 0..SERVICES {
        let name = format!("service-{service}");
        let mut slice = Vec::new();
        for address in case.endpoints(service) {
            let host = if pods < LOCAL_PODS {
                "node-a"
            } else {
                "node-b"
            };
            let pod = format!("{name}-{pods}");
            pods += 1;
            slice.push(json!({"addresses": [address], "nodeName": host,
                "targetRef": {"kind": "Pod", "namespace": "default", "name": pod}}));
            objects.push(json!({"kind": "Pod",
                "metadata": {"namespace": "default", "name": pod, "labels": {"app": name}},
                "spec": {"nodeName": host, "containers": [{"name": "main", "image": "registry.example/app:1"}]},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": "True"}]}}));
        }
        objects.push(json!({"kind": "EndpointSlice",
            "metadata": {"namespace": "default", "name": format!("{name}-x7k2p"),
                "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"port": 80}], "endpoints": slice}));
        objects.push(json!({"kind": "Service", "metadata": {"namespace": "default", "name": name},
            "spec": {"type": "NodePort", "clusterIPs": [service_address(service)], "selector": {"app": name},
                "ports": [{"port": 80, "nodePort": node_port(service)}]}}));
    }
    objects
}

fn cluster_node(case: Case) -> Bench {
    let mut bench = node();
    let facts = cluster("node-a", &objects(case));
    assert!(facts.count(Resource::Pods) >= 20_000);
    let configuration = match case.mode {
        Mode::Ipvs => "mode: ipvs",
        Mode::Iptables => "mode: iptables",
    };
    bench.cluster = Some(configured(facts, configuration));
    let site = bench.site();
    for service in 0..SERVICES {
        for pod in case.targets(service).iter().take(1) {
            let address = at(pod).ip().to_string();
            site.neighbours
                .push(neighbour(CNI0, &address, NeighbourState::Stale));
        }
    }
    match case.mode {
        Mode::Ipvs => make_virtual_servers(&mut bench, case),
        Mode::Iptables => make_rules(&mut bench, case),
    }
    bench
}

fn make_virtual_servers(bench: &mut Bench, case: Case) {
    let site = bench.site();
    site.links.push(link(KUBE_IPVS0, SERVICE_DEVICE));
    let mut servers = Vec::new();
    for number in 0..SERVICES {
        let address = service_address(number);
        site.addresses
            .push(Address::global(KUBE_IPVS0, ip(&address), 32));
        site.routes.push(Route {
            table: Route::LOCAL_TABLE,
            kind: RouteKind::Local,
            ..route(&address, 32, KUBE_IPVS0)
        });
    }
    for number in case.made() {
        let targets = case.targets(number);
        let real: Vec<(&str, u32)> = targets.iter().map(|pod| (pod.as_str(), 1)).collect();
        let port = node_port(number);
        for place in [
            format!("{}:80", service_address(number)),
            format!("192.0.2.1:{port}"),
            format!("10.244.0.1:{port}"),
        ] {
            servers.push(service(6, &place, &real));
        }
        site.sockets.push(socket(6, "192.0.2.1", port));
    }
    site.ipvs = Some(servers);
}

/// The rules as kube-proxy and a container network with policies write them.
fn make_rules(bench: &mut Bench, case: Case) {
    let site = bench.site();
    let mut services = Vec::new();
    for number in case.made() {
        let places = [
            Destination::Address(at(&format!("{}:80", service_address(number)))),
            Destination::NodePort {
                ipv6: false,
                port: node_port(number),
            },
        ];
        services.extend(places.map(|destination| ServiceRule {
            protocol: 6,
            destination,
            endpoints: case.targets(number).iter().map(|pod| at(pod)).collect(),
            affinity: None,
            sources: None,
            refusal: None,
        }));
    }
    site.service_rules = Some(vec![ServiceRules {
        filter: PacketFilter::Iptables,
        services,
        node_ports: vec![NodePortScope::Local { ipv6: false }],
    }]);
    let jump = |chain: &str| rule(None, Action::Jump(chain.into()), "");
    let mut chains = Vec::new();
    for (name, hook) in [
        ("INPUT", NetfilterHook::Input),
        ("FORWARD", NetfilterHook::Forward),
        ("OUTPUT", NetfilterHook::Output),
    ] {
        let rules = vec![jump("KUBE-ROUTER"), jump("KUBE-SERVICES")];
        chains.push(chain(name, Some((hook, false)), rules));
    }
    let refused = case
        .made()
        .filter(|&number| case.fate(number) == Fate::Empty);
    let refused = refused.map(|number| {
        let reject = Action::Reject("icmp-port-unreachable".into());
        let comment = format!("default/service-{number} has no endpoints");
        to(&service_address(number), rule(Some(80), reject, &comment))
    });
    chains.push(chain("KUBE-SERVICES", None, refused.collect()));
    let guarded: Vec<(String, String)> = case
        .guarded_pods()
        .enumerate()
        .map(|(number, address)| (format!("KUBE-POD-FW-{number:016X}"), address))
        .collect();
    let doors = guarded
        .iter()
        .map(|(name, address)| to(address, jump(name)))
        .collect();
    chains.push(chain("KUBE-ROUTER", None, doors));
    chains.extend(guarded.iter().map(|(name, _)| {
        chain(
            name,
            None,
            vec![rule(None, Action::Drop, "no policy passed")],
        )
    }));
    site.ruleset = Some(Ruleset {
        tables: vec![RuleTable {
            tool: Tool::IptablesNft,
            family: Family::Ip,
            name: "filter".into(),
            chains,
        }],
    });
}

/// The rule for packets to one address.
fn to(address: &str, mut rule: Rule) -> Rule {
    rule.tests.insert(
        0,
        Test {
            negated: false,
            on: Subject::Destination(ip(address), 32),
        },
    );
    rule
}

fn flow(bench: &mut Bench, case: Case, guarded: &[String], number: usize) {
    let service = number % SERVICES;
    let client = format!(
        "172.{}.{}.9:{}",
        16 + (number >> 16),
        number >> 8 & 255,
        10_000 + number % 256
    );
    let Case { mode, .. } = case;
    let fate = case.fate(service);
    let asked = match fate {
        Fate::Refused => format!("192.0.2.1:{}", node_port(service)),
        _ => format!("{}:80", service_address(service)),
    };
    let pod = match fate {
        Fate::Guarded => format!("{}:80", guarded[number / 10 % guarded.len()]),
        _ => case.targets(service).first().cloned().unwrap_or_default(),
    };
    let way = bench
        .tcp(&client, &asked)
        .receive(ETH0)
        .at(HookId::Ip4Receive);
    let no_route = Detail::Route {
        kind: 7,
        error: 101,
        ifindex: None,
    };
    match (fate, mode) {
        (Fate::Refused, Mode::Ipvs) => {
            let looked = Detail::Service {
                address: at(&asked),
                protocol: 6,
            };
            way.at(HookId::LocalDeliver)
                .with(HookId::IpvsServiceFind, looked)
                .at(HookId::TcpReceive)
                .at(HookId::TcpReset)
                .dropped("NO_SOCKET", "tcp_v4_rcv");
        }
        (Fate::Refused, Mode::Iptables) => way
            .at(HookId::LocalDeliver)
            .at(HookId::TcpReceive)
            .at(HookId::TcpReset)
            .dropped("NO_SOCKET", "tcp_v4_rcv"),
        (Fate::Unanswered, _) => {
            let detail = Detail::Neighbour {
                address: at(&pod).ip(),
                ifindex: CNI0,
            };
            sent_on(way, mode, &pod)
                .with(HookId::NeighbourQueue, detail.clone())
                .with(HookId::NeighbourFailed, detail)
                .dropped("NEIGH_FAILED", "arp_error_report");
        }
        (Fate::Unroutable, _) => way
            .with(HookId::RouteError, no_route)
            .dropped("NOT_SPECIFIED", "ip_error"),
        (Fate::Empty, Mode::Ipvs) => way
            .at(HookId::LocalDeliver)
            .at(HookId::IpvsSchedule)
            .at(HookId::IpvsLeave)
            .dropped("NETFILTER_DROP", "nf_hook_slow"),
        (Fate::Empty, Mode::Iptables) => forwarded(way)
            .with(HookId::IcmpSend, Detail::Icmp { kind: 3, code: 3 })
            .dropped("NETFILTER_DROP", "nf_hook_slow"),
        (Fate::Guarded, Mode::Iptables) => {
            forwarded(way.to(&pod)).dropped("NETFILTER_DROP", "nf_hook_slow");
        }
        (Fate::Guarded, Mode::Ipvs) | (Fate::Arrives, _) => {
            sent_on(way, mode, &pod).transmit(CNI0).ends();
        }
    }
}

/// Behind the routing to a pod, at the hook FORWARD.
fn forwarded(way: Way<'_>) -> Way<'_> {
    let routed = Detail::Route {
        kind: 1,
        error: 0,
        ifindex: Some(CNI0),
    };
    way.with(HookId::Forward, routed)
        .netfilter(NetfilterHook::Forward)
}

/// Sent to a pod in the mode's way.
fn sent_on<'a>(way: Way<'a>, mode: Mode, pod: &str) -> Way<'a> {
    match mode {
        Mode::Ipvs => way
            .at(HookId::LocalDeliver)
            .to(pod)
            .at(HookId::IpvsNatTransmit),
        Mode::Iptables => forwarded(way.to(pod)),
    }
}

/// Processor time of this thread so far: others that take its processor away do not count.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How long half of these flows take and all of them, and how many diagnoses of each code there are.
fn judge(case: Case, flows: usize) -> (Duration, Duration, BTreeMap<&'static str, usize>) {
    let mut bench = cluster_node(case);
    let guarded: Vec<String> = case.guarded_pods().collect();
    let mut codes = BTreeMap::new();
    let times = [0..flows / 2, flows / 2..flows].map(|part| {
        for number in part {
            flow(&mut bench, case, &guarded, number);
        }
        let once = |_| {
            let begun = spent();
            let found = bench.diagnose();
            let took = spent() - begun;
            codes = BTreeMap::new();
            for diagnosis in &found {
                *codes.entry(diagnosis.code).or_default() += 1;
            }
            took
        };
        (0..TIMES).map(once).min().unwrap_or_default()
    });
    (times[0], times[1], codes)
}

#[test]
#[ignore = "takes a while, and its limit is meant for a release build"]
fn judging_a_hundred_thousand_flows_is_quick_and_linear() {
    // The test's own name may stand in the line.
    println!();
    let mut missed = Vec::new();
    for (mode, all_fail, name, expected) in [
        (Mode::Ipvs, false, "ipvs, half fail", "kube-proxy-stale"),
        (Mode::Ipvs, true, "ipvs, all fail", "no-route"),
        (
            Mode::Iptables,
            false,
            "iptables, half fail",
            "network-policy-drop",
        ),
        (
            Mode::Iptables,
            true,
            "iptables, all fail",
            "service-no-endpoints",
        ),
    ] {
        let (half, whole, codes) = judge(Case { mode, all_fail }, 100_000);
        for (name, value, unit, at_most) in [
            (
                format!("judging 100,000 flows, 5,000 services: {name}"),
                whole.as_secs_f64(),
                "s",
                MOST_S,
            ),
            (
                format!("judging 100,000 flows against 50,000: {name}"),
                whole.as_secs_f64() / half.as_secs_f64(),
                "times",
                MOST_GROWTH,
            ),
        ] {
            println!(
                "{}",
                json!({"name": name, "value": value, "unit": unit, "at_most": at_most})
            );
            if value > at_most {
                missed.push(name);
            }
        }
        assert!(codes.contains_key(expected), "{name}: {codes:?}");
    }
    assert!(missed.is_empty(), "{missed:?}");
}
