//! `tracer cluster run` as a program, against an API server whose kubelets play scripts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api_server::{ApiServer, Options, Script};
use crate::{Tracer, check};

/// Long enough for a slow machine; what is waited for comes much sooner.
const PATIENCE: Duration = Duration::from_secs(60);

fn diagnosis() -> Value {
    json!({"type": "diagnosis", "cause": "no-listener", "certainty": "certain",
        "subject": "tcp 192.0.2.1:81", "failed_connections": 2, "connections": 3, "summary": "Words.",
        "evidence": [["socket", "none"]], "missing": [], "fixes": [], "check": "", "consequences": []})
}

fn summary() -> Value {
    json!({"type": "summary", "seconds": 1.0, "events": 9, "packets": 3, "failed": 2, "hooks": [], "devices": [],
        "drops": [], "lost": [], "kernel_runs": 9, "kernel_ms": 0.1, "process_ms": 1.0})
}

fn wait(what: &str, so: impl Fn() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !so() {
        check(begun.elapsed() < PATIENCE, || format!("in vain: {what}"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Two nodes until Ctrl-C: last words, one entry for the cause that both saw, nothing left.
///
/// # Errors
/// With what was other than expected.
pub fn interrupted(tracer: &Tracer) -> anyhow::Result<()> {
    let server = ApiServer::start(Options::default())?;
    for node in ["node-a", "node-b"] {
        server.put("nodes", json!({"metadata": {"name": node}}));
        let script = Script::Says {
            lines: vec![diagnosis().to_string()],
            pause: Duration::ZERO,
            stays: true,
            last: vec![summary().to_string()],
            code: 1,
        };
        server.kubelet(node, script);
    }
    let kubeconfig = server.kubeconfig();
    let place = kubeconfig.to_string_lossy();
    let words = [
        "cluster",
        "run",
        "--image",
        "registry.example/tracer:1",
        "--kubeconfig",
        &place,
    ];
    let (running, first) = tracer.begin(&words)?;
    check(first.contains("cluster-run"), || {
        format!("it began with {first:?}")
    })?;
    wait("both pods", || server.names("pods").len() == 2)?;
    wait("both logs", || {
        let asked = server.actions();
        let of_logs = asked.iter().filter(|action| action.resource == "pods/log");
        of_logs.count() >= 2
    })?;
    running.interrupt()?;
    let answer = running.finish()?;
    answer.expect_code(1)?;
    let joined = answer.objects("cluster-diagnosis");
    check(
        joined.len() == 1 && joined[0]["nodes"] == json!(["node-a", "node-b"]),
        || format!("joined: {joined:?}"),
    )?;
    let end = answer.object("cluster-summary")?;
    check(
        end["left"] == json!([]) && end["nodes"][1]["summary"]["packets"] == 3,
        || format!("{end}"),
    )?;
    wait("everything is gone", || {
        server.names("pods").is_empty() && server.names("jobs").is_empty()
    })
}
