//! Facts of a large cluster: how long the first list takes, what it costs in memory, and how soon a
//! change is seen. `cargo bench -p tests --bench cluster`; prints one JSON object a line.
//!
//! The API server runs in a process of its own, so that its memory does not count.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::api_server::{ApiServer, Options as ServerOptions};
use tracer::expectation::{Comparison, Mode, Proxy, expected};
use tracer::kube::{Cluster, ClusterFacts, ObjectName, Options, Place, Resource};
use tracer::node::{Destination, NetnsFacts, NetnsId, PacketFilter, ServiceRule, ServiceRules};

const SERVICES: usize = 5_000;
const ENDPOINTS: usize = 50_000;
const PODS: usize = 500;
const NODE: &str = "node-0";
/// Set in the process that is the server.
const SERVER: &str = "CLUSTER_BENCH_SERVER";

const MOST_LIST: Duration = Duration::from_secs(3);
const MOST_MEMORY_MIB: f64 = 300.0;
const MOST_CHANGE: Duration = Duration::from_millis(100);
/// How often a change is timed.
const CHANGES: usize = 20;
const MOST_COMPARISON: Duration = Duration::from_millis(500);
/// How often a comparison is timed.
const COMPARISONS: usize = 5;

fn main() -> ExitCode {
    let done = if std::env::var_os(SERVER).is_some() {
        serve()
    } else {
        measure()
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The server: says where its kubeconfig is, then makes a change for every line it is given.
fn serve() -> anyhow::Result<()> {
    let server = ApiServer::start(ServerOptions::default())?;
    fill(&server);
    println!("{}", server.kubeconfig().display());
    std::io::stdout().flush()?;
    for line in std::io::stdin().lines() {
        server.put("endpointslices", slice(0, line? == "ready"));
    }
    Ok(())
}

fn fill(server: &ApiServer) {
    for number in 0..100 {
        server.put(
            "nodes",
            json!({"metadata": {"name": format!("node-{number}")},
                "spec": {"podCIDRs": [format!("10.{}.0.0/16", 100 + number)]},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}]}}),
        );
    }
    for number in 0..SERVICES {
        let address = format!("10.96.{}.{}", number / 250, number % 250);
        server.put(
            "services",
            json!({"metadata": metadata(&format!("service-{number}"), json!({})),
                "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "selector": {"app": "x"},
                    "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}}),
        );
        server.put("endpointslices", slice(number, true));
    }
    for number in 0..PODS {
        let address = format!("10.100.{}.{}", number / 250, number % 250);
        server.put(
            "pods",
            json!({"metadata": metadata(&format!("pod-{number}"), json!({"app": "x"})),
                "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "registry.example/app:1", "env": [
                    {"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                    "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
    }
}

/// Metadata with what real objects carry and nobody here needs.
fn metadata(name: &str, labels: Value) -> Value {
    json!({"namespace": "default", "name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(600)},
        "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:ports": {"f:name": {}, "f:port": {}}}}}]})
}

fn slice(service: usize, ready: bool) -> Value {
    let each = ENDPOINTS / SERVICES;
    let endpoints: Vec<Value> = (0..each)
        .map(|number| {
            let number = service * each + number;
            let address = format!("10.{}.{}.{}", 100 + number / 62_500, number / 250 % 250, number % 250);
            json!({"addresses": [address], "nodeName": format!("node-{}", number % 100),
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("app-{number}-abcde"), "uid": "u"}})
        })
        .collect();
    let name = format!("service-{service}");
    json!({"metadata": metadata(&format!("{name}-x7k2p"), json!({"kubernetes.io/service-name": name})),
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints})
}

fn measure() -> anyhow::Result<()> {
    let mut server = Command::new(std::env::current_exe()?)
        .env(SERVER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut commands = server.stdin.take().context("no way to the server")?;
    let mut place = String::new();
    BufReader::new(server.stdout.take().context("no way from the server")?)
        .read_line(&mut place)?;
    let begun = Instant::now();
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(PathBuf::from(place.trim())),
            context: None,
        },
        host_name: NODE.into(),
        ..Options::default()
    })?;
    until(&cluster, |facts| facts.fresh(&Resource::ALL))?;
    let listed = begun.elapsed();
    let service = ObjectName::new("default", "service-0");
    let mut changes = Vec::new();
    for number in 0..CHANGES {
        let ready = number % 2 == 1;
        let begun = Instant::now();
        writeln!(commands, "{}", if ready { "ready" } else { "not" })?;
        until(&cluster, |facts| {
            facts
                .endpoints_of(&service)
                .all(|(endpoint, _)| endpoint.ready == ready)
        })?;
        changes.push(begun.elapsed());
    }
    let slowest = changes.into_iter().max().unwrap_or_default();
    let state = cluster.state();
    let compared = comparison(state.facts().context("no facts")?)?;
    let peak = memory_mib("VmHWM")?;
    // The server ends with the pipe.
    drop(commands);
    server.wait()?;
    let rows = [
        (
            "cluster: listed",
            listed.as_secs_f64(),
            "s",
            MOST_LIST.as_secs_f64(),
        ),
        ("cluster: most memory", peak, "MiB", MOST_MEMORY_MIB),
        (
            "cluster: slowest change seen",
            milliseconds(slowest),
            "ms",
            milliseconds(MOST_CHANGE),
        ),
        (
            "cluster: comparing what kube-proxy made",
            milliseconds(compared),
            "ms",
            milliseconds(MOST_COMPARISON),
        ),
    ];
    for (name, value, unit, at_most) in rows {
        println!(
            "{}",
            json!({"name": name, "value": value, "unit": unit, "at_most": at_most})
        );
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How long it takes to say that a synced node in iptables mode differs in nothing.
fn comparison(facts: &ClusterFacts) -> anyhow::Result<Duration> {
    let proxy = Proxy::new(Mode::Iptables, Some(36), &[]);
    let mut node = NetnsFacts::unread(NetnsId(1), None);
    let services = expected(facts, &node, &proxy)
        .into_iter()
        .map(|server| ServiceRule {
            protocol: server.key.protocol,
            destination: Destination::Address(server.key.address),
            endpoints: server.endpoints.unwrap_or_default(),
            affinity: None,
            sources: None,
            refusal: None,
        })
        .collect();
    node.service_rules = Some(vec![ServiceRules {
        filter: PacketFilter::Iptables,
        services,
        node_ports: Vec::new(),
    }]);
    let mut times = Vec::new();
    for _ in 0..COMPARISONS {
        let begun = Instant::now();
        let found = Comparison::of(facts, &node, &proxy).context("nothing was compared")?;
        times.push(begun.elapsed());
        ensure!(
            found.expected == SERVICES && found.differences.is_empty(),
            "{} expected, {} differences",
            found.expected,
            found.differences.len()
        );
    }
    times.sort_unstable();
    Ok(times[COMPARISONS / 2])
}

fn until(cluster: &Cluster, so: impl Fn(&ClusterFacts) -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !cluster.state().facts().is_some_and(|facts| so(facts)) {
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "in vain: {:?}",
            cluster
                .state()
                .facts()
                .map(|facts| facts.trouble().cloned())
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A line of /proc/self/status, MiB.
fn memory_mib(field: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .context("no such field")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
