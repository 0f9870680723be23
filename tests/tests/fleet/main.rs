//! Tracing many nodes at once, against an API server whose kubelets play scripts.
//!
//! Map: `trouble` is what nodes, servers and people do to a run, `left` the rights that it needs and what
//! earlier runs left, `install` the manifest for always-on use.

mod install;
mod left;
mod trouble;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api_server::{ApiServer, Options, Script};
use tokio::sync::{mpsc, watch};
use tracer::fleet::{self, Choice, FleetError, News, NodeEnd, Outcome, Plan, Stop};
use tracer::kube::Place;

/// Long enough for a slow machine; what is waited for comes much sooner.
const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "kube-system";

fn node(name: &str, zone: &str, system: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"zone": zone, "kubernetes.io/os": system}}})
}

/// A server with three nodes, one of them another system's.
fn server(options: Options) -> ApiServer {
    let server = ApiServer::start(options).expect("an API server");
    server.put("nodes", node("node-a", "one", "linux"));
    server.put("nodes", node("node-b", "two", "linux"));
    server.put("nodes", node("node-w", "two", "windows"));
    server
}

fn says(count: usize, pause: Duration) -> Script {
    Script::Says {
        lines: (0..count)
            .map(|number| format!("{{\"line\": {number}}}"))
            .collect(),
        pause,
        stays: false,
        last: vec!["{\"line\": \"last\"}".into()],
        code: 0,
    }
}

/// Runs until it is asked to end.
fn stays() -> Script {
    Script::Says {
        lines: vec!["{\"line\": 0}".into()],
        pause: Duration::ZERO,
        stays: true,
        last: vec!["{\"line\": \"last\"}".into()],
        code: 1,
    }
}

fn plan(nodes: Choice) -> Plan {
    Plan {
        namespace: NAMESPACE.into(),
        image: "registry.example/tracer:1".into(),
        service_account: Some("tracer".into()),
        nodes,
        arguments: Vec::new(),
        limit: Duration::from_secs(20),
        start: Duration::from_secs(20),
    }
}

fn place(server: &ApiServer) -> Place {
    Place {
        kubeconfig: Some(server.kubeconfig()),
        context: None,
    }
}

/// A run and what it said.
#[derive(Debug)]
struct Ran {
    outcome: Result<Outcome, FleetError>,
    news: Vec<News>,
}

impl Ran {
    fn lines(&self, of: &str) -> Vec<String> {
        let lines = self.news.iter().filter_map(|news| match news {
            News::Line { node, line } if **node == *of => Some(line.clone()),
            _ => None,
        });
        lines.collect()
    }

    fn end(&self, of: &str) -> NodeEnd {
        let found = self.news.iter().find_map(|news| match news {
            News::Ended { node, end } if **node == *of => Some(end.clone()),
            _ => None,
        });
        found.unwrap_or_else(|| unreachable!("no end of {of}: {:?}", self.news))
    }
}

/// Runs a plan; `meanwhile` sees every piece of news and may ask it to stop.
fn run(server: &ApiServer, plan: Plan, meanwhile: impl FnMut(&News, &watch::Sender<Stop>)) -> Ran {
    run_until(server, plan, meanwhile, std::future::pending())
}

/// The same; it is asked to stop when `enough` is done, too.
fn run_until(
    server: &ApiServer,
    plan: Plan,
    mut meanwhile: impl FnMut(&News, &watch::Sender<Stop>),
    enough: impl Future<Output = ()>,
) -> Ran {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let place = place(server);
    runtime.block_on(async {
        let (stopper, stop) = watch::channel(Stop::No);
        let (sender, mut receiver) = mpsc::channel(64);
        let mut news = Vec::new();
        let listen = async {
            while let Some(found) = receiver.recv().await {
                meanwhile(&found, &stopper);
                news.push(found);
            }
        };
        let ask = async {
            enough.await;
            stopper.send_replace(Stop::Gently);
            std::future::pending().await
        };
        let both = async {
            tokio::select! {
                (outcome, ()) = async { tokio::join!(fleet::run(plan, &place, stop, sender), listen) } => outcome,
                outcome = ask => outcome,
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, both)
            .await
            .expect("the run did not end");
        Ran { outcome, news }
    })
}

/// Nothing of a run is there any more; pods go when their containers did.
fn clean(server: &ApiServer) {
    let begun = Instant::now();
    loop {
        let left = [server.names("pods"), server.names("jobs")].concat();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_line_of_every_node_arrives_and_nothing_is_left() {
    let server = server(Options::default());
    server.kubelet("node-a", says(40, Duration::from_millis(5)));
    server.kubelet("node-b", says(3, Duration::ZERO));
    let mut owner = None;
    let ran = run(&server, plan(Choice::All), |news, _| {
        if let News::Line { .. } = news {
            owner.get_or_insert_with(|| {
                let pods = server.names("pods");
                let pod = server.get("pods", NAMESPACE, &pods[0]).expect("a pod");
                pod["metadata"]["ownerReferences"][0].clone()
            });
        }
    });
    let outcome = ran.outcome.as_ref().expect("an outcome");
    assert!(outcome.left.is_empty(), "{outcome:?}");
    assert_eq!(ran.lines("node-a").len(), 41);
    assert_eq!(
        ran.lines("node-b").last().map(String::as_str),
        Some("{\"line\": \"last\"}")
    );
    assert_eq!(ran.end("node-a"), NodeEnd::Finished);
    let why = ran.end("node-w");
    assert!(
        why.why().is_some_and(|why| why.contains("windows")),
        "{why:?}"
    );
    let owner = owner.expect("an owner");
    assert_eq!(owner["kind"], "Job");
    assert_eq!(owner["name"], outcome.run.as_str());
    assert!(owner["uid"].as_str().is_some_and(|uid| !uid.is_empty()));
    clean(&server);
}

#[test]
fn nodes_are_chosen_by_name_and_by_label() {
    let server = server(Options::default());
    server.kubelet("node-a", says(1, Duration::ZERO));
    server.kubelet("node-b", says(1, Duration::ZERO));
    for (typed, node, other) in [
        ("zone=one", "node-a", "node-b"),
        ("node-b,nowhere", "node-b", "node-a"),
    ] {
        let ran = run(&server, plan(Choice::parse(typed)), |_, _| {});
        assert_eq!(ran.end(node), NodeEnd::Finished, "{typed}");
        assert!(ran.lines(other).is_empty(), "{typed}");
        if typed.contains("nowhere") {
            assert!(matches!(ran.end("nowhere"), NodeEnd::NotStarted(_)));
        }
    }
    let ran = run(&server, plan(Choice::parse("zone=three")), |_, _| {});
    assert!(matches!(ran.outcome, Err(FleetError::NoNode(_))));
    clean(&server);
}
