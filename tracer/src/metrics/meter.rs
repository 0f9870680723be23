//! The counts themselves.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::{
    Counter, Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use super::series::Series;
use crate::event::Tuple;
use crate::kube::{ClusterFacts, ObjectName};
use crate::node::Snapshot;

/// Most series of drops, and of causes: a large node has some hundred pods.
const MOST_SERIES: usize = 1000;
/// A trace that did not move for this long hangs.
const HANGS: Duration = Duration::from_secs(30);

/// Whom a lost packet concerns; empty where it is not known.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Who {
    /// Namespace of the pod, else of the service.
    pub namespace: String,
    /// The pod that it was for, else the one that it is from.
    pub pod: String,
    /// The service that it was for.
    pub service: String,
}

impl Who {
    /// Looks up a packet as first and last seen; pods of this node are known without the cluster as well.
    pub fn of(cluster: Option<&ClusterFacts>, facts: &Snapshot, first: Tuple, last: Tuple) -> Self {
        let service = cluster
            .and_then(|cluster| cluster.service_here(facts, first.protocol, first.destination));
        let pod = pod_at(cluster, facts, last.destination.ip())
            .or_else(|| pod_at(cluster, facts, first.source.ip()));
        let namespace = pod
            .as_ref()
            .map(|pod| &pod.namespace)
            .or(service.map(|service| &service.name.namespace));
        Self {
            namespace: namespace.map_or_else(String::new, |name| name.to_string()),
            pod: pod
                .as_ref()
                .map_or_else(String::new, |pod| pod.name.to_string()),
            service: service.map_or_else(String::new, |found| found.name.name.to_string()),
        }
    }

    fn with(self, first: String) -> [String; 4] {
        [first, self.namespace, self.pod, self.service]
    }
}

/// The pod with an address; one of which only the UID is known has no namespace.
fn pod_at(cluster: Option<&ClusterFacts>, facts: &Snapshot, address: IpAddr) -> Option<ObjectName> {
    let by_cluster = cluster.and_then(|cluster| cluster.pods_at(address).next());
    by_cluster.cloned().or_else(|| {
        let called = facts.pod_at(address)?;
        let named = called.strip_prefix("p/").and_then(ObjectName::parse);
        Some(named.unwrap_or_else(|| ObjectName::new("", called)))
    })
}

/// Totals and states that are set as a whole.
#[derive(Clone, Default, Debug)]
pub struct State {
    /// Kernel events taken.
    pub events: u64,
    /// Packets whose way ended.
    pub packets: u64,
    /// Events lost, by why.
    pub lost: Vec<(String, u64)>,
    /// Events of flows that were left out to keep tracing cheap.
    pub left_out: u64,
    /// Runs of our programs in the kernel.
    pub kernel_runs: u64,
    /// Time in them.
    pub kernel_time: Duration,
    /// Processor time of this process.
    pub process_time: Duration,
    /// Memory of this process, bytes; `None` when it cannot be read.
    pub memory: Option<u64>,
    /// Age of the node's facts; `None` before they were first read.
    pub facts_age: Option<Duration>,
    /// Kinds of the cluster's facts, and whether each is fresh.
    pub fresh: Vec<(&'static str, bool)>,
    /// Kinds of the cluster's facts, and for how long each has not been fresh; `None` where it was never
    /// complete.
    pub stale_for: Vec<(&'static str, Option<Duration>)>,
}

/// The counts of a trace.
pub struct Meter {
    registry: Registry,
    drops: Series,
    causes: Series,
    events: IntCounter,
    packets: IntCounter,
    lost: IntCounterVec,
    left_out: IntCounter,
    kernel_runs: IntCounter,
    kernel_seconds: Counter,
    process_seconds: Counter,
    memory: Gauge,
    facts_age: Gauge,
    fresh: GaugeVec,
    stale_for: GaugeVec,
    begun: Instant,
    /// Milliseconds from `begun` to the last sign of life; 0 before the first.
    beat: AtomicU64,
}

impl Meter {
    /// Counts from zero.
    ///
    /// # Errors
    /// When two counts have one name; a fault of this program.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let seconds = |name: &str, help: &str| {
            let counter = Counter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let build = Gauge::with_opts(
            Opts::new("tracer_build_info", "Version of the tracer; always 1.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        registry.register(Box::new(build.clone()))?;
        build.set(1.0);
        let lost = IntCounterVec::new(
            Opts::new(
                "tracer_lost_events_total",
                "Kernel events that were not counted, by why.",
            ),
            &["why"],
        )?;
        registry.register(Box::new(lost.clone()))?;
        let of_kinds = |name: &str, help: &str| {
            let gauge = GaugeVec::new(Opts::new(name, help), &["kind"])?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        Ok(Self {
            drops: Series::register(
                &registry,
                "tracer_dropped_packets_total",
                "Packets that were dropped or refused, by the kernel's reason and whom they concern.",
                ["reason", "namespace", "pod", "service"],
                MOST_SERIES,
            )?,
            causes: Series::register(
                &registry,
                "tracer_failed_connections_total",
                "Connections that a cause stopped, by the cause and whom they concern.",
                ["cause", "namespace", "pod", "service"],
                MOST_SERIES,
            )?,
            events: counter("tracer_events_total", "Kernel events taken.")?,
            packets: counter(
                "tracer_packets_total",
                "Packets whose way was seen to its end.",
            )?,
            lost,
            left_out: counter(
                "tracer_left_out_events_total",
                "Kernel events of flows that were left out to keep tracing cheap.",
            )?,
            kernel_runs: counter(
                "tracer_kernel_program_runs_total",
                "Runs of the tracer's programs in the kernel.",
            )?,
            kernel_seconds: seconds(
                "tracer_kernel_program_seconds_total",
                "Time that the tracer's programs took in the kernel.",
            )?,
            process_seconds: seconds(
                "tracer_process_cpu_seconds_total",
                "Processor time of the tracer's process.",
            )?,
            memory: gauge(
                "tracer_process_resident_memory_bytes",
                "Memory of the tracer's process.",
            )?,
            facts_age: gauge(
                "tracer_node_facts_age_seconds",
                "Age of what was last read of the node; it is read when something fails.",
            )?,
            fresh: of_kinds(
                "tracer_kubernetes_facts_fresh",
                "1 while a kind of the cluster's objects is complete and followed, else 0.",
            )?,
            stale_for: of_kinds(
                "tracer_kubernetes_facts_stale_seconds",
                "For how long a kind of the cluster's objects has not been fresh; NaN where it was never complete.",
            )?,
            registry,
            begun: Instant::now(),
            beat: AtomicU64::new(0),
        })
    }

    /// A packet was dropped or refused.
    pub fn dropped(&self, reason: String, who: Who) {
        self.drops.count(who.with(reason));
    }

    /// A cause stopped a connection.
    pub fn stopped(&self, cause: &str, who: Who) {
        self.causes.count(who.with(cause.to_owned()));
    }

    /// Sets what is counted elsewhere; also the trace's sign of life.
    pub fn set(&self, state: &State) {
        let rise = |counter: &IntCounter, total: u64| {
            counter.inc_by(total.saturating_sub(counter.get()));
        };
        let rise_seconds = |counter: &Counter, total: Duration| {
            counter.inc_by((total.as_secs_f64() - counter.get()).max(0.0));
        };
        rise(&self.events, state.events);
        rise(&self.packets, state.packets);
        for (why, total) in &state.lost {
            rise(&self.lost.with_label_values(&[why]), *total);
        }
        rise(&self.left_out, state.left_out);
        rise(&self.kernel_runs, state.kernel_runs);
        rise_seconds(&self.kernel_seconds, state.kernel_time);
        rise_seconds(&self.process_seconds, state.process_time);
        // What is not known is no number.
        self.memory
            .set(state.memory.map_or(f64::NAN, |bytes| bytes as f64));
        let age = state.facts_age.map_or(f64::NAN, |age| age.as_secs_f64());
        self.facts_age.set(age);
        for (kind, fresh) in &state.fresh {
            let value = f64::from(u8::from(*fresh));
            self.fresh.with_label_values(&[kind]).set(value);
        }
        for (kind, age) in &state.stale_for {
            let age = age.map_or(f64::NAN, |age| age.as_secs_f64());
            self.stale_for.with_label_values(&[kind]).set(age);
        }
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now.max(1), Ordering::Relaxed);
    }

    /// True once the trace began.
    pub fn ready(&self) -> bool {
        self.beat.load(Ordering::Relaxed) > 0
    }

    /// False when the trace hangs.
    pub fn alive(&self) -> bool {
        let beat = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(beat) < HANGS
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// When a count cannot be written.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::event::protocol;
    use crate::kube::constructed::cluster;
    use crate::node::{Address, NetnsFacts, NetnsId, Route};

    #[test]
    fn a_node_port_counts_on_an_address_that_the_cluster_does_not_know() {
        let objects = [
            json!({"kind": "Node", "metadata": {"name": "node-a"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
            json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
                "spec": {"type": "NodePort", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
                    "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}]}}),
        ];
        let cluster = cluster("node-a", &objects);
        let mut facts = Snapshot::empty();
        facts.namespaces = [
            (1, ["192.0.2.1", "192.0.2.200"]),
            (2, ["10.9.0.1", "10.9.0.2"]),
        ]
        .map(|(id, own)| {
            let mut facts = NetnsFacts::unread(NetnsId(id), None);
            facts.routes = own
                .map(|text| Route::local(text.parse().expect("an address"), 2))
                .to_vec();
            facts
        })
        .to_vec();
        let service = |destination: &str| {
            let tuple = Tuple {
                protocol: protocol::TCP,
                source: "198.51.100.1:40000".parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            };
            Who::of(Some(&cluster), &facts, tuple, tuple).service
        };
        assert_eq!(service("192.0.2.1:30000"), "web");
        assert_eq!(service("192.0.2.200:30000"), "web", "a VIP of the node");
        assert_eq!(service("192.0.2.200:30001"), "");
        assert_eq!(service("10.9.0.2:30000"), "", "another namespace's");
        assert_eq!(service("203.0.113.7:30000"), "", "nobody's here");
    }

    #[test]
    fn pods_of_this_node_are_known_without_the_cluster() {
        let namespace = |id, name: &str, is_pod, addresses: &[&str]| {
            let mut facts = NetnsFacts::unread(NetnsId(id), Some(name));
            facts.is_pod = is_pod;
            facts.addresses = addresses
                .iter()
                .map(|text| Address::global(1, text.parse().expect("an address"), 24))
                .collect();
            facts
        };
        let mut facts = Snapshot::empty();
        facts.namespaces = vec![
            namespace(1, "node", false, &["192.0.2.1"]),
            namespace(2, "p/default/web-0", true, &["127.0.0.1", "10.244.0.5"]),
            namespace(3, "pod 0a1b", true, &["127.0.0.1", "10.244.0.6"]),
        ];
        let who = |source: &str, destination: &str| {
            let tuple = Tuple {
                protocol: protocol::TCP,
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            };
            let who = Who::of(None, &facts, tuple, tuple);
            (who.namespace, who.pod)
        };
        let said = |namespace: &str, pod: &str| (namespace.to_owned(), pod.to_owned());
        assert_eq!(
            who("10.244.0.5:1", "198.51.100.1:2"),
            said("default", "web-0")
        );
        assert_eq!(who("10.244.0.5:1", "10.244.0.6:2"), said("", "pod 0a1b"));
        assert_eq!(who("127.0.0.1:1", "192.0.2.1:2"), said("", ""));
    }
}
