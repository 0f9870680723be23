//! A node of a cluster: an API server of its own, IPVS as kube-proxy would make it, and a client.
//!
//! ```text
//! cluster-c 192.0.2.2 ── veth ── 192.0.2.1 (this node), 10.96.0.5 on kube-ipvs0
//! ```

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Options};
use crate::{Tracer, check, finish};

const NODE: &str = "node-a";

/// The node and its API server; dropping it removes both.
struct Cluster {
    server: ApiServer,
}

impl Cluster {
    fn build() -> anyhow::Result<Self> {
        // What is left of an earlier try.
        tear_down();
        let cluster = Self {
            server: ApiServer::start(Options {
                version: "v1.31.0",
                ..Options::default()
            })?,
        };
        for line in [
            "ip link set lo up",
            "ip netns add cluster-c",
            "ip link add cluster-h type veth peer name eth0 netns cluster-c",
            "ip addr add 192.0.2.1/24 dev cluster-h",
            "ip link set cluster-h up",
            "ip link add kube-ipvs0 type dummy",
            "ip addr add 10.96.0.5/32 dev kube-ipvs0",
            "ip -n cluster-c addr add 192.0.2.2/24 dev eth0",
            "ip -n cluster-c link set eth0 up",
            "ip -n cluster-c route add default via 192.0.2.1",
            "ipvsadm -A -t 10.96.0.5:80 -s rr",
        ] {
            command(line)?;
        }
        let put = |plural, object| cluster.server.put(plural, object);
        put(
            "nodes",
            json!({"metadata": {"name": NODE}, "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "nodeInfo": {"kubeletVersion": "v1.31.0"}}}),
        );
        put(
            "services",
            json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {
                "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        );
        put(
            "configmaps",
            json!({"metadata": {"namespace": "kube-system", "name": "kube-proxy"},
                "data": {"config.conf": "mode: ipvs\n"}}),
        );
        put("endpointslices", slice(false));
        Ok(cluster)
    }

    /// Runs a command of the tracer that reads the cluster.
    fn ask(&self, tracer: &Tracer, words: &[&str]) -> anyhow::Result<crate::Answer> {
        let kubeconfig = self.server.kubeconfig();
        let mut arguments = words.to_vec();
        let place = kubeconfig.to_string_lossy();
        arguments.extend(["--kubeconfig", &place, "--node", NODE, "--format", "json"]);
        tracer.run(&arguments)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        tear_down();
    }
}

fn tear_down() {
    for line in [
        "ipvsadm -D -t 10.96.0.5:80",
        "ip link del kube-ipvs0",
        "ip link del cluster-h",
        "ip netns del cluster-c",
    ] {
        // What is not there need not go.
        let _ = command(line);
    }
}

fn slice(ready: bool) -> Value {
    json!({"metadata": {"namespace": "default", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.0.9"], "nodeName": NODE, "conditions": {"ready": ready},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-0"}}]})
}

fn command(line: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let answer = finish(Command::new(words[0]).args(&words[1..]))?;
    check(answer.code == 0, || {
        format!("{line}: {}", answer.stderr.trim())
    })
}

/// A service whose only endpoint is not ready: named, diagnosed, and no difference.
///
/// # Errors
/// With what was other than expected.
pub fn endpoint_not_ready(tracer: &Tracer) -> anyhow::Result<()> {
    let cluster = Cluster::build()?;
    let client = std::thread::spawn(|| {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(600));
            // It is refused.
            let _ = command("ip netns exec cluster-c timeout 1 bash -c exec</dev/tcp/10.96.0.5/80");
        }
    });
    let answer = cluster.ask(tracer, &["run", "--for", "6"])?;
    client.join().ok().context("the client panicked")?;
    answer.expect_code(1)?;
    let diagnosis = answer.object("diagnosis")?;
    check(
        diagnosis["cause"] == "endpoint-not-ready" && diagnosis["certainty"] == "certain",
        || format!("another diagnosis: {diagnosis}"),
    )?;
    let named = answer
        .objects("journey")
        .iter()
        .any(|journey| journey["destination_name"] == "s/default/web:http");
    check(named, || "no journey names the service".into())?;
    let kubernetes = answer.object("kubernetes")?;
    check(kubernetes["node"] == NODE, || format!("{kubernetes}"))
}

/// The table against the cluster: equal, then behind.
///
/// # Errors
/// With what was other than expected.
pub fn differences(tracer: &Tracer) -> anyhow::Result<()> {
    let cluster = Cluster::build()?;
    cluster
        .ask(tracer, &["cluster", "differences"])?
        .expect_code(0)?;
    cluster.server.put("endpointslices", slice(true));
    let answer = cluster.ask(tracer, &["cluster", "differences"])?;
    answer.expect_code(1)?;
    let said = answer.object("difference")?.to_string();
    check(
        said.contains("lacks the ready endpoint 10.244.0.9:8080"),
        || said.clone(),
    )?;
    let audit = cluster.ask(tracer, &["check"])?;
    check(audit.stdout.contains("kube-proxy-stale"), || {
        format!("check says nothing of it: {}", audit.stdout)
    })
}
