//! What kubelets do with pods, as far as the tests need it: a script for each node.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::Shared;

/// What becomes of a pod on a node.
#[derive(Clone, Debug)]
pub enum Script {
    /// Its container runs and says this.
    Says {
        /// Lines, in order; parts of a capture among them only when its arguments ask for one.
        lines: Vec<String>,
        /// Pause before each.
        pause: Duration,
        /// Goes on after the lines until it is asked to end.
        stays: bool,
        /// Lines at the end, also when it is asked to end.
        last: Vec<String>,
        /// Exit code.
        code: i32,
    },
    /// Its image cannot be pulled.
    CannotPull,
    /// Nothing happens.
    Hangs,
}

/// The log of a container.
#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) lines: Vec<String>,
    pub(crate) ended: bool,
}

/// When a line was said, by its number: many in each second, some at the same time.
fn time(number: usize) -> String {
    let step = number / 2;
    format!(
        "2026-01-01T00:{:02}:{:02}.{:03}Z",
        step / 240,
        step / 4 % 60,
        step % 4 * 250
    )
}

/// Whole second of a time.
fn second(time: &str) -> &str {
    time.get(.."2026-01-01T00:00:00".len()).unwrap_or(time)
}

impl Log {
    /// The lines from a time on, after the first `skip`, and how many there are in all.
    pub(crate) fn read(&self, since: Option<&str>, stamps: bool, skip: usize) -> (String, usize) {
        let lines = self.lines.iter().enumerate().skip(skip);
        let wanted = lines.filter_map(|(number, line)| {
            let time = time(number);
            if since.is_some_and(|since| second(&time) < second(since)) {
                return None;
            }
            Some(if stamps {
                format!("{time} {line}\n")
            } else {
                format!("{line}\n")
            })
        });
        (wanted.collect(), self.lines.len())
    }
}

/// Plays the script of a pod's node.
pub(crate) async fn play(script: Script, namespace: String, name: String, shared: Arc<Shared>) {
    let set =
        |status: Value| shared.change("pods", &namespace, &name, |pod| pod["status"] = status);
    match script {
        Script::Hangs => {}
        Script::CannotPull => {
            let why = "Back-off pulling image \"registry.example/none\"";
            shared.put(
                "events",
                json!({"metadata": {"namespace": namespace, "name": format!("{name}.1")},
                    "type": "Warning", "reason": "Failed",
                    "involvedObject": {"kind": "Pod", "namespace": namespace, "name": name},
                    "message": "Failed to pull image \"registry.example/none\": not found"}),
            );
            let state =
                |reason: &str, why: &str| json!({"waiting": {"reason": reason, "message": why}});
            set(status("Pending", state("ErrImagePull", "not found")));
            tokio::time::sleep(Duration::from_millis(300)).await;
            set(status("Pending", state("ImagePullBackOff", why)));
        }
        Script::Says {
            lines,
            pause,
            stays,
            last,
            code,
        } => {
            set(status("Running", json!({"running": {}})));
            let captures = shared.arguments(&namespace, &name).contains("--write=-");
            let said = |line: &String| captures || !line.contains("capture-bytes");
            for line in lines.into_iter().filter(said) {
                tokio::time::sleep(pause).await;
                if shared.terminating(&namespace, &name) {
                    break;
                }
                shared.say(&name, vec![line], false);
            }
            while stays && !shared.terminating(&namespace, &name) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            shared.say(&name, last, true);
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            set(status(
                phase,
                json!({"terminated": {"exitCode": code, "reason": "Completed"}}),
            ));
        }
    }
    while !shared.terminating(&namespace, &name) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shared.remove("pods", &namespace, &name);
}

fn status(phase: &str, state: Value) -> Value {
    json!({"phase": phase, "containerStatuses": [{"name": "tracer", "image": "", "imageID": "",
        "ready": false, "restartCount": 0, "state": state}]})
}
