//! The rights that a run needs, and what earlier runs left.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::api_server::rbac::Rules;
use tests::api_server::{ApiServer, Options, Script};
use tracer::fleet::{self, Choice, NodeEnd};

use super::{NAMESPACE, PATIENCE, clean, place, plan, run, says, server};

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
    let (mut of_run, mut of_node) = (own.clone(), own.clone());
    of_run["app.kubernetes.io/component"] = json!("run");
    of_run["tracer/run"] = json!("tracer-run-x");
    of_node["app.kubernetes.io/component"] = json!("node");
    let object = |name: &str, labels: &Value| json!({"metadata": {"namespace": NAMESPACE, "name": name, "labels": labels}});
    server.put("jobs", object("tracer-run-x", &own));
    server.put("jobs", object("backup", &json!({"app": "backup"})));
    server.put("pods", object("tracer-run-x-0", &of_run));
    // The DaemonSet's.
    server.put("pods", object("tracer-abcde", &of_node));
    assert_eq!(removed(&server), ["job tracer-run-x", "pod tracer-run-x-0"]);
    assert_eq!(server.names("jobs"), ["backup"]);
    assert_eq!(server.names("pods"), ["tracer-abcde"]);
}

#[test]
fn a_run_removes_what_others_left_and_nothing_that_is_under_way() {
    let server = server(Options::default());
    server.kubelet("node-a", says(1, Duration::ZERO));
    let own = json!({"app.kubernetes.io/name": "tracer", "app.kubernetes.io/managed-by": "tracer"});
    let job = |name: &str, made: &str, status: Value| {
        server.put(
            "jobs",
            json!({
                "metadata": {"namespace": NAMESPACE, "name": name, "labels": own,
                    "creationTimestamp": made},
                "spec": {"activeDeadlineSeconds": 200, "template": {}}, "status": status,
            }),
        );
        let mut labels = own.clone();
        labels["tracer/run"] = json!(name);
        server.put(
            "pods",
            json!({"metadata": {"namespace": NAMESPACE, "name": format!("{name}-0"),
                "labels": labels}}),
        );
    };
    let failed = json!({"conditions": [{"type": "Failed", "status": "True"}]});
    job("tracer-run-failed", "2099-01-01T00:00:00Z", failed);
    job("tracer-run-late", "2020-01-01T00:00:00Z", json!({}));
    job("tracer-run-going", "2099-01-01T00:00:00Z", json!({}));
    // Its labels are not the tracer's.
    server.put(
        "jobs",
        json!({"metadata": {"namespace": NAMESPACE, "name": "backup"},
            "spec": {"template": {}},
            "status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
    );
    let ran = run(&server, plan(Choice::parse("node-a")), |_, _| {});
    assert_eq!(ran.end("node-a"), NodeEnd::Finished);
    // Its own pod goes when its container did.
    let begun = Instant::now();
    while server.names("pods").len() > 1 && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.names("pods"), ["tracer-run-going-0"]);
    assert_eq!(server.names("jobs"), ["backup", "tracer-run-going"]);
}
