//! Facts of a cluster, read from an API server that behaves, and from one that does not.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api_server::rbac::Rules;
use tests::api_server::{ApiServer, Fault, Options as ServerOptions, Slices};
use tracer::event::{Detail, Event, Packet, Transport, Tuple, protocol};
use tracer::hook::Role;
use tracer::journey::{Ending, Journey};
use tracer::kernel::reasons::DropReasons;
use tracer::kernel::symbols::Symbols;
use tracer::kube::{Cluster, ClusterFacts, Freshness, ObjectName, Options, Place, Resource, State};
use tracer::node::Snapshot;
use tracer::view::cluster::ClusterView;
use tracer::view::model::{Clock, JourneyView, Names};
use tracer::view::text::Style;

/// Long enough for a slow machine; what is waited for comes much sooner.
const PATIENCE: Duration = Duration::from_secs(30);
const NODE: &str = "node-a";

fn server(options: ServerOptions) -> ApiServer {
    let server = ApiServer::start(options).expect("an API server");
    server.put("nodes", node(NODE, "192.0.2.1", "10.244.0.0/24"));
    server.put("nodes", node("node-b", "192.0.2.2", "10.244.1.0/24"));
    server.put("services", service("web", "10.96.0.10", "NodePort", 30080));
    server.put("pods", pod("web-0", NODE, "10.244.0.5"));
    server.put("pods", pod("web-1", "node-b", "10.244.1.5"));
    server.put("pods", pod("other", "node-b", "10.244.1.6"));
    server.put(
        "networkpolicies",
        json!({"metadata": {"namespace": "default", "name": "limit"},
            "spec": {"podSelector": {"matchLabels": {"app": "web-0"}}}}),
    );
    server.put(
        "configmaps",
        json!({"metadata": {"namespace": "kube-system", "name": "kube-proxy"},
            "data": {"config.conf": "mode: ipvs\nnodePortAddresses: [192.0.2.0/24]\n"}}),
    );
    server.put(
        "secrets",
        json!({"metadata": {"namespace": "default", "name": "key"}}),
    );
    server
}

/// A server with the usual objects and a v1 slice.
fn ordinary() -> ApiServer {
    let server = server(ServerOptions::default());
    server.put("endpointslices", slice(true));
    server
}

fn node(name: &str, address: &str, pods: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
    "spec": {"podCIDR": pods, "podCIDRs": [pods]},
    "status": {
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"kubeletVersion": "v1.20.2", "containerRuntimeVersion": "docker://19.3.11"},
    }})
}

fn service(name: &str, address: &str, kind: &str, node_port: u16) -> Value {
    json!({"metadata": {"namespace": "default", "name": name},
        "spec": {"type": kind, "clusterIP": address, "clusterIPs": [address],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http", "nodePort": node_port}]}})
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({"metadata": {"namespace": "default", "name": name, "uid": format!("uid-of-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn slice(ready: bool) -> Value {
    json!({"metadata": {"namespace": "default", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": ready}, "nodeName": "node-b",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1"}}]})
}

fn watching(server: &ApiServer) -> Cluster {
    Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: "Node-A".into(),
        sign_of_life: Duration::from_millis(500),
        ..Options::default()
    })
    .expect("a thread")
}

/// Waits until the facts are so.
fn until(cluster: &Cluster, what: &str, so: impl Fn(&ClusterFacts) -> bool) -> Arc<ClusterFacts> {
    let begun = Instant::now();
    loop {
        let state = cluster.state();
        if let Some(facts) = state.facts().filter(|facts| so(facts)) {
            return Arc::clone(facts);
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "in vain: {what}; {}",
            words(&state)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A state in few words.
fn words(state: &State) -> String {
    let Some(facts) = state.facts() else {
        return format!("{state:?}");
    };
    let kinds = Resource::ALL.map(|kind| (kind, facts.count(kind), facts.freshness(kind)));
    format!("server {:?}, {kinds:?}", facts.trouble())
}

fn all_fresh(facts: &ClusterFacts) -> bool {
    facts.fresh(&Resource::ALL)
}

fn web() -> ObjectName {
    ObjectName::new("default", "web")
}

fn ready(facts: &ClusterFacts) -> Vec<bool> {
    let service = web();
    facts
        .endpoints_of(&service)
        .map(|(endpoint, _)| endpoint.ready)
        .collect()
}

fn name(facts: &ClusterFacts, address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address");
    facts.name(protocol::TCP, address)
}

#[test]
fn addresses_get_their_names() {
    let server = ordinary();
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert_eq!(facts.this_node.as_deref(), Some(NODE));
    assert_eq!(facts.version.as_deref(), Some("v1.31.0"));
    for (address, expected) in [
        ("10.96.0.10:80", Some("s/default/web:http")),
        ("10.96.0.10:81", Some("s/default/web")),
        ("192.0.2.1:30080", Some("s/default/web:http")),
        ("192.0.2.2:22", Some("n/node-b")),
        ("10.244.0.5:1234", Some("p/default/web-0")),
        ("10.244.1.5:8080", Some("p/default/web-1")),
        ("10.244.1.6:1", None),
        ("8.8.8.8:53", None),
    ] {
        assert_eq!(name(&facts, address).as_deref(), expected, "{address}");
    }
    assert_eq!(ready(&facts), [true]);
    let pod = facts
        .pod(&ObjectName::new("default", "web-0"))
        .expect("the pod of this node");
    assert_eq!(facts.policies_of(pod).count(), 1);
    assert_eq!(
        facts
            .node(NODE)
            .and_then(|node| node.kubelet_version.as_deref()),
        Some("v1.20.2")
    );
    let proxy = facts
        .proxy_configuration
        .as_ref()
        .expect("kube-proxy's configuration");
    assert_eq!(proxy.mode.as_deref(), Some("ipvs"));
}

#[test]
fn pods_of_other_nodes_are_read_when_seen() {
    let server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    cluster.want("10.244.1.6".parse().expect("an address"));
    cluster.want("8.8.8.8".parse().expect("an address"));
    let facts = until(&cluster, "the pod is known", |facts| {
        name(facts, "10.244.1.6:1").is_some()
    });
    assert_eq!(
        name(&facts, "10.244.1.6:1").as_deref(),
        Some("p/default/other")
    );
    // What can be no pod was not asked for.
    let single = server
        .actions()
        .iter()
        .filter(|action| action.resource == "pods" && action.verb == "list")
        .count();
    assert_eq!(single, 2);
    // A new list of this node's pods does not forget it.
    server.compact();
    server.misbehave(&[Fault::GoneInWatch("pods")]);
    until(&cluster, "the trouble shows", |facts| {
        facts.freshness(Resource::Pods).trouble().is_some()
    });
    server.misbehave(&[]);
    server.put("pods", pod("web-2", NODE, "10.244.0.6"));
    let facts = until(&cluster, "the new pod", |facts| {
        name(facts, "10.244.0.6:1").is_some()
    });
    assert_eq!(
        name(&facts, "10.244.1.6:1").as_deref(),
        Some("p/default/other")
    );
}

#[test]
fn changes_arrive() {
    let server = ordinary();
    let cluster = watching(&server);
    let before = until(&cluster, "everything is fresh", all_fresh);
    server.put("endpointslices", slice(false));
    until(&cluster, "the endpoint is not ready", |facts| {
        ready(facts) == [false]
    });
    // A copy that was handed out stays as it was.
    assert_eq!(ready(&before), [true]);
    server.put("services", service("web", "10.96.0.11", "ClusterIP", 0));
    let facts = until(&cluster, "the new address", |facts| {
        name(facts, "10.96.0.11:80").is_some()
    });
    assert_eq!(name(&facts, "10.96.0.10:80"), None);
    assert_eq!(name(&facts, "192.0.2.1:30080").as_deref(), Some("n/node-a"));
    server.delete("services", "default", "web");
    until(&cluster, "the service is gone", |facts| {
        facts.service(&web()).is_none()
    });
    server.delete("endpointslices", "default", "web-x");
    let facts = until(&cluster, "the slice is gone", |facts| {
        facts.count(Resource::Endpoints) == 0
    });
    assert_eq!(name(&facts, "10.244.1.5:8080"), None);
    server.delete("configmaps", "kube-system", "kube-proxy");
    until(&cluster, "no configuration", |facts| {
        facts.proxy_configuration.is_none()
    });
}

#[test]
fn long_lists_come_in_pages() {
    let server = ordinary();
    for number in 0..1203 {
        let address = format!("10.97.{}.{}", number / 250, number % 250);
        server.put(
            "services",
            service(&format!("s{number}"), &address, "ClusterIP", 0),
        );
    }
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert_eq!(facts.count(Resource::Services), 1204);
    assert_eq!(
        name(&facts, "10.97.4.202:80").as_deref(),
        Some("s/default/s1202:http")
    );
    let pages = server
        .actions()
        .iter()
        .filter(|action| action.resource == "services" && action.verb == "list")
        .count();
    assert_eq!(pages, 3);
}

#[test]
fn older_servers_have_other_endpoints() {
    let beta = server(ServerOptions {
        slices: Slices::V1Beta1,
        version: "v1.20.2",
        ..ServerOptions::default()
    });
    let mut object = slice(true);
    object["apiVersion"] = json!("discovery.k8s.io/v1beta1");
    let endpoint = object["endpoints"][0].as_object_mut().expect("an endpoint");
    endpoint.remove("nodeName");
    endpoint.insert(
        "topology".into(),
        json!({"kubernetes.io/hostname": "node-b"}),
    );
    beta.put("endpointslices", object);
    let oldest = server(ServerOptions {
        slices: Slices::None,
        version: "v1.16.0",
        ..ServerOptions::default()
    });
    oldest.put(
        "endpoints",
        json!({"metadata": {"namespace": "default", "name": "web"}, "subsets": [{
            "addresses": [{"ip": "10.244.1.5", "nodeName": "node-b",
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-1"}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]}),
    );
    for server in [beta, oldest] {
        let cluster = watching(&server);
        let facts = until(&cluster, "everything is fresh", all_fresh);
        let service = web();
        let (endpoint, ports) = facts.endpoints_of(&service).next().expect("an endpoint");
        assert_eq!(
            endpoint.node.as_deref(),
            Some("node-b"),
            "{:?}",
            facts.version
        );
        assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
        assert_eq!(ports[0].port, Some(8080));
        assert_eq!(
            name(&facts, "10.244.1.5:8080").as_deref(),
            Some("p/default/web-1")
        );
    }
}

#[test]
fn the_rights_of_the_manifest_are_enough_and_all_needed() {
    let rules = Rules::parse(tracer::kube::RBAC).expect("the manifest");
    let mut used = Vec::new();
    for slices in [Slices::V1, Slices::None] {
        let server = server(ServerOptions {
            slices,
            rules: Some(rules.clone()),
            ..ServerOptions::default()
        });
        let cluster = watching(&server);
        until(&cluster, "everything is fresh", all_fresh);
        cluster.want("10.244.1.6".parse().expect("an address"));
        until(&cluster, "the pod is known", |facts| {
            name(facts, "10.244.1.6:1").is_some()
        });
        let begun = Instant::now();
        // A watch follows its list at once, but not at the same moment.
        while begun.elapsed() < PATIENCE
            && server
                .actions()
                .iter()
                .filter(|action| action.verb == "watch")
                .count()
                < Resource::ALL.len()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        used.extend(server.actions());
    }
    assert!(used.iter().all(|action| rules.allow(action)));
    assert!(used.iter().all(|action| action.resource != "secrets"));
    for (group, resource, verb) in rules.rights() {
        assert!(
            used.iter()
                .any(|action| (&action.group, &action.resource, action.verb)
                    == (&group, &resource, &*verb)),
            "{verb} {resource} is never used"
        );
    }
}

#[test]
fn one_forbidden_kind_leaves_the_others_fresh() {
    let server = ordinary();
    server.misbehave(&[Fault::Status("networkpolicies", 403)]);
    let cluster = watching(&server);
    let others = [
        Resource::Services,
        Resource::Endpoints,
        Resource::Pods,
        Resource::Nodes,
    ];
    let facts = until(&cluster, "the others", |facts| {
        facts.fresh(&others) && facts.freshness(Resource::NetworkPolicies) != Freshness::Waiting
    });
    let freshness = facts.freshness(Resource::NetworkPolicies);
    assert!(
        matches!(freshness, Freshness::Unavailable(_)),
        "{freshness:?}"
    );
    let why = &freshness.trouble().expect("a trouble").why;
    assert!(why.contains("403") || why.contains("forbidden"), "{why}");
    server.misbehave(&[]);
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn damaged_answers_are_troubles_that_pass() {
    for fault in [
        Fault::GarbageList("services"),
        Fault::Status("services", 500),
        Fault::Status("services", 429),
    ] {
        let server = ordinary();
        server.misbehave(std::slice::from_ref(&fault));
        let cluster = watching(&server);
        until(&cluster, "the trouble shows", |facts| {
            matches!(
                facts.freshness(Resource::Services),
                Freshness::Unavailable(_)
            )
        });
        server.misbehave(&[]);
        let facts = until(&cluster, "all is well", all_fresh);
        assert_eq!(facts.count(Resource::Services), 1, "{fault:?}");
    }
}

#[test]
fn damaged_watches_are_troubles_that_pass() {
    for fault in [
        Fault::GarbageWatch("services"),
        Fault::GoneInWatch("services"),
    ] {
        let server = ordinary();
        let cluster = watching(&server);
        until(&cluster, "everything is fresh", all_fresh);
        server.misbehave(std::slice::from_ref(&fault));
        let facts = until(&cluster, "the trouble shows", |facts| {
            matches!(facts.freshness(Resource::Services), Freshness::Stale(_))
        });
        // What was known stays known.
        assert!(facts.service(&web()).is_some());
        server.misbehave(&[]);
        server.put("services", service("late", "10.96.0.12", "ClusterIP", 0));
        until(&cluster, "the change", |facts| {
            name(facts, "10.96.0.12:80").is_some()
        });
        until(&cluster, "all is well", all_fresh);
    }
}

#[test]
fn a_forgotten_log_is_listed_anew() {
    let mut server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.stop();
    server.delete("services", "default", "web");
    server.put("services", service("new", "10.96.0.13", "ClusterIP", 0));
    server.compact();
    server.resume().expect("the server listens again");
    let facts = until(&cluster, "the new service", |facts| {
        name(facts, "10.96.0.13:80").is_some() && all_fresh(facts)
    });
    assert_eq!(name(&facts, "10.96.0.10:80"), None);
}

#[test]
fn a_server_that_is_away_makes_facts_stale_and_comes_back() {
    let mut server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.stop();
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let freshness = facts.freshness(Resource::Endpoints);
    assert!(matches!(freshness, Freshness::Stale(_)), "{freshness:?}");
    assert!(
        freshness
            .trouble()
            .expect("a trouble")
            .why
            .contains("refused"),
        "{freshness:?}"
    );
    assert_eq!(ready(&facts), [true]);
    server.resume().expect("the server listens again");
    until(&cluster, "all is well", all_fresh);
}

#[test]
fn a_silent_server_is_noticed_and_nobody_waits_for_it() {
    let server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    server.misbehave(&[Fault::Silent]);
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    assert!(
        facts
            .trouble()
            .expect("a trouble")
            .why
            .contains("no answer")
    );
    server.misbehave(&[]);
    until(&cluster, "all is well", all_fresh);
    let never = {
        server.misbehave(&[Fault::Silent]);
        let begun = Instant::now();
        let cluster = watching(&server);
        let state = cluster.state();
        drop(cluster);
        assert!(begun.elapsed() < Duration::from_secs(1));
        state
    };
    assert!(never.facts().is_none_or(|facts| !all_fresh(facts)));
}

#[test]
fn a_slow_server_is_only_slow() {
    let server = ordinary();
    server.misbehave(&[Fault::Slow(Duration::from_millis(700))]);
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    assert_eq!(ready(&facts), [true]);
}

#[test]
fn wrong_credentials_are_said() {
    let server = ordinary();
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.wrong_kubeconfig()),
            context: None,
        },
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let why = &facts.trouble().expect("a trouble").why;
    assert!(why.contains("unauthorized"), "{why}");
}

#[test]
fn a_machine_that_is_no_node_has_no_pods() {
    let server = ordinary();
    let cluster = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: "elsewhere".into(),
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&cluster, "the trouble shows", |facts| {
        facts.freshness(Resource::Pods).trouble().is_some()
    });
    let why = &facts
        .freshness(Resource::Pods)
        .trouble()
        .expect("a trouble")
        .why;
    assert!(
        why.contains("elsewhere is no node of this cluster"),
        "{why}"
    );
    let by_address = Cluster::start(Options {
        place: Place {
            kubeconfig: Some(server.kubeconfig()),
            context: None,
        },
        host_name: "elsewhere".into(),
        addresses: vec!["192.0.2.2".parse().expect("an address")],
        ..Options::default()
    })
    .expect("a thread");
    let facts = until(&by_address, "everything is fresh", all_fresh);
    assert_eq!(facts.this_node.as_deref(), Some("node-b"));
}

#[test]
fn unusable_configurations_are_said() {
    let server = ordinary();
    let broken = server.folder().join("broken");
    std::fs::write(&broken, "clusters: [1").expect("a file");
    for (path, words) in [
        (broken, "parse"),
        (server.folder().join("none"), "No such file"),
    ] {
        let cluster = Cluster::start(Options {
            place: Place {
                kubeconfig: Some(path),
                context: None,
            },
            ..Options::default()
        })
        .expect("a thread");
        let begun = Instant::now();
        let why = loop {
            if let State::Unusable(why) = cluster.state() {
                break why;
            }
            assert!(begun.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(why.contains(words), "{why}");
    }
}

/// A packet of a pod of this node to a service, as IPVS sends it on.
fn journey() -> Journey {
    let event = |hook, source: &str, destination: &str, detail| Event {
        time_ns: 1,
        skb: 1,
        netns: Some(1),
        ifindex: None,
        length: None,
        mark: None,
        hook,
        detail,
        packet: Some(Packet {
            tuple: Tuple {
                protocol: protocol::TCP,
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            },
            ip_id: None,
            transport: Transport::Other,
        }),
        not_ip: false,
    };
    let chosen = Detail::Connection {
        real: "10.244.1.5:8080".parse().expect("an address"),
        forwarding: 0,
    };
    let hooks = &tracer::hook::CATALOGUE;
    let of = |role| {
        hooks
            .iter()
            .find(|hook| hook.role == role)
            .expect("a hook")
            .id
    };
    Journey {
        id: 1,
        events: vec![
            event(
                of(Role::LocalIn),
                "10.244.0.5:40000",
                "10.96.0.10:80",
                Detail::None,
            ),
            event(
                of(Role::IpvsConnection),
                "10.244.0.5:40000",
                "10.96.0.10:80",
                chosen,
            ),
            event(
                of(Role::Transmit),
                "192.0.2.1:40000",
                "10.244.1.5:8080",
                Detail::None,
            ),
        ],
        ending: Ending::Transmitted,
        ..Journey::default()
    }
}

#[test]
fn journeys_carry_the_names_of_every_leg() {
    let server = ordinary();
    let cluster = watching(&server);
    let facts = until(&cluster, "everything is fresh", all_fresh);
    let shown = |cluster| {
        let names = Names {
            facts: &Snapshot::empty(),
            reasons: &DropReasons::default(),
            symbols: &Symbols::default(),
            clock: Clock::now(),
            cluster,
        };
        let view = JourneyView::new(&journey(), &names).expect("a view");
        let mut text = Vec::new();
        tracer::view::text::journey(&mut text, &view, Style { colour: false }, false)
            .expect("text");
        String::from_utf8(text).expect("text")
    };
    let text = shown(Some(&*facts));
    for part in [
        "p/default/web-0 10.244.0.5:40000 → s/default/web:http 10.96.0.10:80 ⇒ p/default/web-1 10.244.1.5:8080",
        "ipvs: → p/default/web-1 10.244.1.5:8080 (masq)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = shown(None);
    assert!(
        text.contains("10.244.0.5:40000 → 10.96.0.10:80 ⇒ 10.244.1.5:8080"),
        "{text}"
    );
}

#[test]
fn the_state_of_the_facts_is_said_in_words() {
    let mut server = ordinary();
    let cluster = watching(&server);
    until(&cluster, "everything is fresh", all_fresh);
    let fresh = ClusterView::from(&cluster.state());
    assert_eq!(fresh.state, "fresh");
    let words = fresh.words();
    let part = "v1.31.0 · node node-a · 1 services, 1 endpoints, 1 pods of this node, 2 nodes";
    assert!(words.contains(part), "{words}");
    server.stop();
    until(&cluster, "the trouble shows", |facts| {
        facts.trouble().is_some()
    });
    let stale = ClusterView::from(&cluster.state());
    assert!(stale.settled() && !stale.says_the_same(&fresh));
    let words = stale.words();
    assert!(
        words.contains("stale since ") && words.contains("refused"),
        "{words}"
    );
}

/// The server answers kubectl as a real one would; skipped where there is no kubectl.
#[test]
fn kubectl_understands_the_server() {
    let server = ordinary();
    let kubectl = |arguments: &[&str]| {
        Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(server.kubeconfig())
            .arg("--cache-dir")
            .arg(server.folder())
            .args(arguments)
            .output()
    };
    let Ok(output) = kubectl(&["get", "services", "--all-namespaces", "-o", "json"]) else {
        eprintln!("skipped: kubectl is not there (apt-get install kubernetes-client)");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list["items"][0]["metadata"]["name"], "web");
    for (arguments, expected) in [
        (&["get", "nodes", "-o", "name"][..], "node/node-b"),
        (
            &["get", "endpointslices", "-n", "default", "-o", "name"],
            "endpointslice.discovery.k8s.io/web-x",
        ),
        (
            &[
                "get",
                "pods",
                "-n",
                "default",
                "--field-selector",
                "spec.nodeName=node-a",
                "-o",
                "name",
            ],
            "pod/web-0",
        ),
        (
            &[
                "get",
                "pod",
                "-n",
                "default",
                "web-1",
                "-o",
                "jsonpath={.status.podIP}",
            ],
            "10.244.1.5",
        ),
        (
            &[
                "get",
                "networkpolicies",
                "-A",
                "--chunk-size=1",
                "-o",
                "name",
            ],
            "networkpolicy.networking.k8s.io/limit",
        ),
        (
            &[
                "get",
                "pods",
                "-n",
                "default",
                "--watch",
                "--request-timeout=2s",
                "-o",
                "name",
            ],
            "pod/other",
        ),
    ] {
        let output = kubectl(arguments).expect("kubectl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains(expected),
            "{arguments:?}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
