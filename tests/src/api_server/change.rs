//! Creating and deleting objects, and what containers say.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, channel::Channel};
use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::kubelet::play;
use super::serve::{Body, answer_with, json_answer, status};
use super::store::Kind;
use super::{Fault, Shared};

/// Creates an object, and starts what its node does with it.
pub(super) fn create(
    kind: &'static Kind,
    namespace: &str,
    mut object: Value,
    shared: Arc<Shared>,
) -> Response<Body> {
    let plural = kind.plural;
    let refusal =
        shared.fault(|fault| matches!(fault, Fault::Refuse(refused, _) if *refused == plural));
    if let Some(Fault::Refuse(_, why)) = refusal {
        return status(403, "Forbidden", why);
    }
    if shared.fault_once(|fault| matches!(fault, Fault::Contended(one) if *one == plural)) {
        return status(
            409,
            "Conflict",
            "Operation cannot be fulfilled on resourcequotas \"quota\": the object has been modified",
        );
    }
    if let Some(prefix) = object["metadata"]["generateName"].as_str() {
        let number = shared.store().version;
        object["metadata"]["name"] = json!(format!("{prefix}{number:05}"));
    }
    object["metadata"]["namespace"] = json!(namespace);
    let name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if shared.store().get(plural, namespace, &name).is_some() {
        return status(
            409,
            "AlreadyExists",
            &format!("{plural} \"{name}\" already exists"),
        );
    }
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    let script = shared.scripts().get(node).cloned();
    shared.put(plural, object);
    if let (Some(script), "pods") = (script, plural) {
        let play = play(
            script,
            namespace.to_owned(),
            name.clone(),
            Arc::clone(&shared),
        );
        tokio::spawn(play);
    }
    let made = shared.store().get(plural, namespace, &name);
    json_answer(201, &made.unwrap_or_default())
}

/// Deletes an object; a pod that a kubelet has goes when its container did.
pub(super) fn delete(
    plural: &'static str,
    namespace: &str,
    name: &str,
    shared: &Shared,
) -> Response<Body> {
    let Some(object) = shared.store().get(plural, namespace, name) else {
        return status(404, "NotFound", &format!("{plural} \"{name}\" not found"));
    };
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if plural == "pods" && shared.scripts().contains_key(node) {
        shared.change(plural, namespace, name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
    } else {
        shared.remove(plural, namespace, name);
    }
    json_answer(200, &object)
}

/// The log of a pod, as far as it is, or until it ends.
pub(super) fn log(
    namespace: &str,
    pod: &str,
    query: &HashMap<String, String>,
    shared: Arc<Shared>,
) -> Response<Body> {
    let truth = |key: &str| query.get(key).is_some_and(|value| value == "true");
    let (follow, stamps) = (truth("follow"), truth("timestamps"));
    let since = query.get("sinceTime").cloned();
    if shared.store().get("pods", namespace, pod).is_none() {
        return status(404, "NotFound", &format!("pods \"{pod}\" not found"));
    }
    if !shared.logs().contains_key(pod) {
        let why = format!("container \"tracer\" in pod \"{pod}\" is waiting to start");
        return status(400, "BadRequest", &why);
    }
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(64);
    let pod = pod.to_owned();
    tokio::spawn(async move {
        let mut changed = shared.changed.subscribe();
        let mut read = 0;
        loop {
            let log = shared.logs().get(&pod).cloned().unwrap_or_default();
            let (text, all) = log.read(since.as_deref(), stamps, read);
            read = all;
            if !text.is_empty() && sender.send_data(text.into()).await.is_err() {
                return;
            }
            if log.ended || !follow || changed.changed().await.is_err() {
                return;
            }
        }
    });
    answer_with(200, body.boxed())
}
