//! Tracing many nodes at once, against an API server whose kubelets play scripts.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api_server::rbac::Rules;
use tests::api_server::{ApiServer, Fault, Options, Script};
use tokio::sync::{mpsc, watch};
use tracer::fleet::{
    self, CaptureVolume, Captures, Choice, FleetError, Installation, News, NodeEnd, Outcome, Plan,
    Stop,
};
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
fn run(
    server: &ApiServer,
    plan: Plan,
    mut meanwhile: impl FnMut(&News, &watch::Sender<Stop>),
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
        let both = async { tokio::join!(fleet::run(plan, &place, stop, sender), listen).0 };
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

#[test]
fn a_node_that_cannot_start_is_said_and_the_others_go_on() {
    let server = server(Options::default());
    server.kubelet("node-a", says(5, Duration::from_millis(10)));
    server.kubelet("node-b", Script::CannotPull);
    let ran = run(&server, plan(Choice::All), |_, _| {});
    assert_eq!(ran.lines("node-a").len(), 6);
    let NodeEnd::NotStarted(why) = ran.end("node-b") else {
        panic!("it started");
    };
    for part in ["ImagePullBackOff", "Failed to pull image", "not found"] {
        assert!(why.contains(part), "{why}");
    }
    clean(&server);
}

#[test]
fn a_pod_that_waits_for_ever_is_said() {
    let server = server(Options::default());
    server.kubelet("node-a", Script::Hangs);
    let mut plan = plan(Choice::parse("node-a"));
    plan.start = Duration::from_secs(2);
    let ran = run(&server, plan, |_, _| {});
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::NotStarted(why) if why.contains("not started within 2 s")),
        "{end:?}"
    );
    clean(&server);
}

#[test]
fn a_failed_trace_is_said_in_its_own_words() {
    let server = server(Options::default());
    server.kubelet(
        "node-a",
        Script::Says {
            lines: vec!["tracer: this kernel has no BTF".into()],
            pause: Duration::ZERO,
            stays: false,
            last: Vec::new(),
            code: 3,
        },
    );
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    assert_eq!(ran.lines("node-a"), ["tracer: this kernel has no BTF"]);
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::Broken(why) if why.contains("exit code 3")),
        "{end:?}"
    );
    clean(&server);
}

#[test]
fn a_lost_connection_loses_no_line() {
    let mut server = server(Options::default());
    server.kubelet("node-a", says(60, Duration::from_millis(50)));
    let place = place(&server);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (_stopper, stop) = watch::channel(Stop::No);
    let (sender, mut receiver) = mpsc::channel(64);
    let plan = plan(Choice::parse("node-a"));
    let running = runtime.spawn(async move { fleet::run(plan, &place, stop, sender).await });
    let (mut lines, mut interrupted, mut resumed) = (Vec::new(), false, false);
    while let Some(news) = runtime.block_on(receiver.recv()) {
        match news {
            News::Line { line, .. } => {
                lines.push(line);
                if lines.len() == 9 {
                    server.stop();
                    std::thread::sleep(Duration::from_millis(700));
                    server.resume().expect("the port again");
                }
            }
            News::Interrupted { .. } => interrupted = true,
            News::Resumed { .. } => resumed = true,
            News::Begun { .. } | News::Ended { .. } => {}
        }
    }
    let outcome = runtime.block_on(running).expect("a task");
    assert!(outcome.expect("an outcome").left.is_empty());
    let mut expected: Vec<_> = (0..60)
        .map(|number| format!("{{\"line\": {number}}}"))
        .collect();
    expected.push("{\"line\": \"last\"}".into());
    assert_eq!(lines, expected);
    assert!(interrupted && resumed);
    clean(&server);
}

#[test]
fn asked_to_stop_the_nodes_say_their_last_words_and_everything_goes() {
    let server = server(Options::default());
    server.kubelet("node-a", stays());
    server.kubelet("node-b", stays());
    let ran = run(&server, plan(Choice::All), |news, stopper| {
        if let News::Line { .. } = news {
            stopper.send_replace(Stop::Gently);
        }
    });
    assert!(ran.outcome.expect("an outcome").left.is_empty());
    let last: usize = ran
        .news
        .iter()
        .filter(|news| matches!(news, News::Line { line, .. } if line.contains("last")))
        .count();
    assert!(last >= 1, "{:?}", ran.news);
    clean(&server);
}

#[test]
fn stopped_at_once_everything_goes_too() {
    let server = server(Options::default());
    server.kubelet("node-a", stays());
    server.kubelet("node-b", Script::Hangs);
    let ran = run(&server, plan(Choice::All), |news, stopper| {
        if let News::Line { .. } = news {
            stopper.send_replace(Stop::AtOnce);
        }
    });
    assert!(ran.outcome.expect("an outcome").left.is_empty());
    clean(&server);
}

#[test]
fn a_refused_pod_is_said_in_the_servers_words() {
    let server = server(Options::default());
    server.misbehave(&[Fault::Refuse(
        "pods",
        "violates PodSecurity \"baseline:latest\": host namespaces",
    )]);
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::NotStarted(why) if why.contains("violates PodSecurity")),
        "{end:?}"
    );
    server.misbehave(&[Fault::Refuse(
        "pods",
        "error looking up serviceaccount: \"tracer\" not found",
    )]);
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    let end = ran.end("node-a");
    assert!(
        matches!(&end, NodeEnd::NotStarted(why) if why.contains("tracer cluster rbac")),
        "{end:?}"
    );
    clean(&server);
}

#[test]
fn a_missing_right_is_named() {
    let rules = Rules::parse(tracer::kube::RBAC).expect("rules");
    let server = server(Options {
        rules: Some(rules),
        ..Options::default()
    });
    let ran = run(&server, plan(Choice::All), |_, _| {});
    let Err(error) = ran.outcome else {
        panic!("it may not");
    };
    let words = error.to_string();
    assert!(
        words.contains("cannot create resource \"jobs\"") && words.contains("rbac --run"),
        "{words}"
    );
    clean(&server);
}

#[test]
fn the_rights_of_the_manifest_are_enough_and_all_needed() {
    let rules = Rules::parse(fleet::RBAC).expect("rules");
    let server = server(Options {
        rules: Some(rules.clone()),
        ..Options::default()
    });
    server.kubelet("node-a", says(2, Duration::ZERO));
    server.kubelet("node-b", Script::CannotPull);
    let ran = run(&server, plan(Choice::All), |_, _| {});
    assert_eq!(ran.end("node-a"), NodeEnd::Finished);
    assert!(
        ran.end("node-b")
            .why()
            .is_some_and(|why| why.contains("Failed to pull"))
    );
    clean(&server);
    removed(&server);
    let used = server.actions();
    for (group, resource, verb) in rules.rights() {
        let needed = used.iter().any(|action| {
            (&action.group, &action.resource, action.verb) == (&group, &resource, verb.as_str())
        });
        assert!(needed, "{verb} {resource} is not needed");
    }
}

/// What `clean` removed.
fn removed(server: &ApiServer) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let removed = runtime
        .block_on(fleet::clean(&place(server), NAMESPACE))
        .expect("a list");
    removed
        .into_iter()
        .map(|object| format!("{} {}", object.kind, object.name))
        .collect()
}

#[test]
fn leftovers_are_found_by_label_and_nothing_else_goes() {
    let server = server(Options::default());
    let own = json!({"app.kubernetes.io/name": "tracer", "app.kubernetes.io/managed-by": "tracer"});
    let mut of_run = own.clone();
    of_run["tracer/run"] = json!("tracer-run-x");
    let object = |name: &str, labels: &Value| json!({"metadata": {"namespace": NAMESPACE, "name": name, "labels": labels}});
    server.put("jobs", object("tracer-run-x", &own));
    server.put("jobs", object("backup", &json!({"app": "backup"})));
    server.put("pods", object("tracer-run-x-0", &of_run));
    // The DaemonSet's.
    server.put("pods", object("tracer-abcde", &own));
    assert_eq!(removed(&server), ["job tracer-run-x", "pod tracer-run-x-0"]);
    assert_eq!(server.names("jobs"), ["backup"]);
    assert_eq!(server.names("pods"), ["tracer-abcde"]);
}

#[test]
fn without_captures_the_daemon_set_writes_nowhere() {
    let manifest = fleet::manifest(&Installation {
        namespace: NAMESPACE.into(),
        image: "registry.example/tracer:1".into(),
        port: 9464,
        captures: None,
    })
    .expect("a manifest");
    assert!(!manifest.contains("captures"), "{manifest}");
    assert!(manifest.contains("memory: 512Mi"), "{manifest}");
}

#[test]
fn kubectl_reads_the_manifest_of_the_daemon_set() {
    let server = server(Options::default());
    for (namespace, volume) in [
        ("kube-system", CaptureVolume::HostPath("/var/tracer".into())),
        ("tracing", CaptureVolume::Claim("tracer-captures".into())),
    ] {
        let manifest = fleet::manifest(&Installation {
            namespace: namespace.into(),
            image: "registry.example/tracer:1".into(),
            port: 9464,
            captures: Some(Captures {
                volume: volume.clone(),
                limit: "2G".into(),
            }),
        })
        .expect("a manifest");
        let file = server.folder().join("manifest.yaml");
        std::fs::write(&file, &manifest).expect("a file");
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(server.kubeconfig())
            .arg("--cache-dir")
            .arg(server.folder())
            .args([
                "create",
                "--dry-run=client",
                "--validate=false",
                "-o",
                "json",
                "-f",
            ])
            .arg(&file)
            .output()
            .expect("kubectl (apt-get install kubernetes-client)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{manifest}");
        let objects: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("JSON");
        let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
        let set = find("DaemonSet").expect("a DaemonSet");
        let spec = &set["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        assert_eq!(set["metadata"]["namespace"], namespace);
        assert_eq!(spec["hostNetwork"], true);
        assert_eq!(container["securityContext"]["privileged"], false);
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
        // The last while before a diagnosis is kept in memory.
        assert_eq!(container["resources"]["limits"]["memory"], "768Mi");
        let words = container["args"].to_string();
        assert!(
            words.contains("--capture=/captures") && words.contains("--capture-limit=2G"),
            "{words}"
        );
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        assert!(
            mounts
                .iter()
                .any(|mount| mount["mountPath"] == "/captures" && mount["readOnly"].is_null())
        );
        let volumes = spec["volumes"].as_array().expect("volumes");
        let kept = volumes
            .iter()
            .find(|found| found["name"] == "captures")
            .expect("the volume");
        match volume {
            CaptureVolume::HostPath(path) => assert_eq!(kept["hostPath"]["path"], path),
            CaptureVolume::Claim(name) => {
                assert_eq!(kept["persistentVolumeClaim"]["claimName"], name);
            }
        }
        assert_eq!(
            set["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"],
            "9464"
        );
        let account = find("ServiceAccount").expect("a ServiceAccount");
        assert_eq!(account["metadata"]["namespace"], namespace);
        let binding = find("RoleBinding").expect("a RoleBinding");
        assert_eq!(binding["metadata"]["namespace"], "kube-system");
        assert_eq!(binding["subjects"][0]["namespace"], namespace);
        assert_eq!(find("Namespace").is_some(), namespace != "kube-system");
        // The rights are those of the manifest, no more.
        let rights = |text: &str| Rules::parse(text).expect("rules").rights();
        assert_eq!(rights(&manifest), rights(tracer::kube::RBAC));
    }
}
