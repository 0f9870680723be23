//! Connections, requests and answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, channel::Channel};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::change::{create, delete, log};
use super::rbac::Action;
use super::store::{KINDS, Kind, api_version, labelled, meets};
use super::{Fault, Shared, Slices, TOKEN};

pub(super) type Body = BoxBody<Bytes, Infallible>;

/// Pause between two bookmarks of a watch.
const BOOKMARK: Duration = Duration::from_millis(500);

pub(super) async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // Ends its connections when it is ended.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(request, shared).await) }
            });
            // A client that goes away is no fault.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Response<Body> {
    let path = request.uri().path().trim_matches('/').to_owned();
    let hangs = |fault: &Fault| match fault {
        Fault::Silent => true,
        Fault::Hang(end) => path.ends_with(end),
        _ => false,
    };
    if shared.fault(hangs).is_some() {
        std::future::pending::<()>().await;
    }
    if let Some(Fault::Slow(pause)) = shared.fault(|fault| matches!(fault, Fault::Slow(_))) {
        tokio::time::sleep(pause).await;
    }
    let authorized = request
        .headers()
        .get("authorization")
        .is_some_and(|value| value.as_bytes() == format!("Bearer {TOKEN}").as_bytes());
    if !authorized {
        return status(401, "Unauthorized", "Unauthorized");
    }
    if let Some(found) = discovery(&path, &shared) {
        return json_answer(200, &found);
    }
    let Some(target) = Target::parse(&path, &shared) else {
        return status(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
    };
    let query = parameters(request.uri().query().unwrap_or_default());
    let method = request.method().clone();
    let body = match request.into_body().collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null),
        Err(error) => return status(400, "BadRequest", &error.to_string()),
    };
    let plural = target.kind.plural;
    let silent = shared.fault(|fault| *fault == Fault::NoAnswer(plural));
    let answer = respond(&method, &target, &query, body, shared);
    if method == Method::POST && answer.status() == 201 && silent.is_some() {
        std::future::pending::<()>().await;
    }
    answer
}

/// What a path of objects is about.
struct Target {
    kind: &'static Kind,
    namespace: Option<String>,
    name: Option<String>,
    /// The log of the named pod is meant.
    log: bool,
}

impl Target {
    fn parse(path: &str, shared: &Shared) -> Option<Self> {
        let steps: Vec<&str> = path.split('/').collect();
        let (group, version, rest) = match steps.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (plural, name, log) = match rest {
            [plural] => (*plural, None, false),
            [plural, name] => (*plural, Some((*name).to_owned()), false),
            ["pods", name, "log"] => ("pods", Some((*name).to_owned()), true),
            _ => return None,
        };
        let kind = KINDS.iter().find(|kind| {
            (kind.group, kind.version, kind.plural) == (group, version, plural)
                && served(kind, shared)
        })?;
        Some(Self {
            kind,
            namespace: namespace.map(str::to_owned),
            name,
            log,
        })
    }
}

/// Whether this server has a kind.
fn served(kind: &Kind, shared: &Shared) -> bool {
    match (kind.group, kind.version) {
        ("discovery.k8s.io", "v1") => shared.slices == Slices::V1,
        ("discovery.k8s.io", _) => shared.slices == Slices::V1Beta1,
        _ => true,
    }
}

/// The documents that say what the server has.
fn discovery(path: &str, shared: &Shared) -> Option<Value> {
    let groups = || {
        let mut groups: Vec<Value> = Vec::new();
        for kind in KINDS
            .iter()
            .filter(|kind| !kind.group.is_empty() && served(kind, shared))
        {
            if groups.iter().any(|known| known["name"] == kind.group) {
                continue;
            }
            let version = json!({"groupVersion": api_version(kind), "version": kind.version});
            groups.push(json!({
                "kind": "APIGroup", "apiVersion": "v1", "name": kind.group,
                "versions": [version], "preferredVersion": version,
            }));
        }
        groups
    };
    match path {
        "version" => {
            let mut parts = shared.version.trim_start_matches('v').split('.');
            Some(json!({
                "major": parts.next(), "minor": parts.next(), "gitVersion": shared.version,
                "gitCommit": "", "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z",
                "goVersion": "go1.24", "compiler": "gc", "platform": "linux/amd64",
            }))
        }
        "api" => Some(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": []})),
        "apis" => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups()})),
        _ => {
            let version = path
                .strip_prefix("api/")
                .or_else(|| path.strip_prefix("apis/"))?;
            if let Some(group) = groups().into_iter().find(|group| group["name"] == version) {
                return Some(group);
            }
            let resources: Vec<Value> = KINDS
                .iter()
                .filter(|kind| api_version(kind) == version && served(kind, shared))
                .map(|kind| {
                    json!({
                        "name": kind.plural, "singularName": kind.kind.to_lowercase(),
                        "namespaced": kind.namespaced, "kind": kind.kind,
                        "verbs": ["create", "delete", "get", "list", "watch"],
                    })
                })
                .collect();
            (!resources.is_empty()).then(|| {
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
                    "resources": resources})
            })
        }
    }
}

fn respond(
    method: &Method,
    target: &Target,
    query: &HashMap<String, String>,
    body: Value,
    shared: Arc<Shared>,
) -> Response<Body> {
    let plural = target.kind.plural;
    let watch = query
        .get("watch")
        .is_some_and(|value| value == "true" || value == "1");
    let selector = query.get("fieldSelector").cloned().unwrap_or_default();
    let labels = query.get("labelSelector").cloned().unwrap_or_default();
    let verb = match (method, &target.name, watch) {
        (&Method::POST, ..) => "create",
        (&Method::DELETE, ..) => "delete",
        (_, Some(_), _) => "get",
        (_, None, true) => "watch",
        (_, None, false) => "list",
    };
    let resource = if target.log { "pods/log" } else { plural };
    let action = Action {
        verb,
        group: target.kind.group.to_owned(),
        resource: resource.to_owned(),
        namespace: target.namespace.clone(),
        name: target.name.clone().or_else(|| {
            selector
                .split(',')
                .find_map(|part| part.strip_prefix("metadata.name=").map(str::to_owned))
        }),
    };
    let mut actions = shared
        .actions
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    actions.push(action.clone());
    drop(actions);
    if shared
        .rules
        .as_ref()
        .is_some_and(|rules| !rules.allow(&action))
    {
        let message = format!(
            "{plural} is forbidden: User \"system:serviceaccount:kube-system:tracer\" cannot {verb} resource \"{resource}\" in API group \"{}\"",
            target.kind.group
        );
        return status(403, "Forbidden", &message);
    }
    let once =
        |fault: &Fault| matches!(fault, Fault::Once(on, of, _) if (*on, *of) == (verb, plural));
    let fault = shared.fault(|fault| {
        once(fault) || matches!(fault, Fault::Status(wanted, _) if *wanted == plural)
    });
    if let Some(Fault::Status(_, code) | Fault::Once(_, _, code)) = fault {
        shared.fault_once(once);
        return status(
            code,
            "Failure",
            &format!("{plural}: the server was told to answer {code}"),
        );
    }
    let namespace = target.namespace.clone();
    let wanted = move |object: &Value| {
        namespace
            .as_ref()
            .is_none_or(|namespace| object["metadata"]["namespace"] == namespace.as_str())
            && meets(object, &selector)
            && labelled(object, &labels)
    };
    let name = target.name.clone().unwrap_or_default();
    let namespace = target.namespace.clone().unwrap_or_default();
    match verb {
        "create" => create(target.kind, &namespace, body, shared),
        "delete" => delete(plural, &namespace, &name, &shared),
        "get" if target.log => log(&namespace, &name, query, shared),
        "get" => {
            let store = shared.store();
            let named =
                |object: &Value| wanted(object) && object["metadata"]["name"] == name.as_str();
            match store.page(plural, named, 1, None).items.pop() {
                Some(object) => json_answer(200, &object),
                None => status(404, "NotFound", &format!("{plural} \"{name}\" not found")),
            }
        }
        "list" => list(target.kind, query, &wanted, &shared),
        _ => start_watch(plural, query, wanted, shared),
    }
}

fn list(
    kind: &Kind,
    query: &HashMap<String, String>,
    wanted: &impl Fn(&Value) -> bool,
    shared: &Shared,
) -> Response<Body> {
    if shared
        .fault(|fault| *fault == Fault::GarbageList(kind.plural))
        .is_some()
    {
        return text_answer(200, "{\"kind\": \"List\", \"items\": [nonsense".into());
    }
    let limit = query
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .filter(|&limit| limit > 0)
        .unwrap_or(usize::MAX);
    let store = shared.store();
    // A token says which version its list is of, and how far it got.
    let (version, after) = match query
        .get("continue")
        .and_then(|token| token.split_once(':'))
    {
        Some((version, key)) => (version.parse().unwrap_or(0), Some(key)),
        None => (store.version, None),
    };
    if after.is_some() && version < store.compacted {
        return status(410, "Expired", "The provided continue parameter is too old");
    }
    let page = store.page(kind.plural, wanted, limit, after);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(next) = page.next {
        metadata["continue"] = json!(format!("{version}:{next}"));
    }
    json_answer(
        200,
        &json!({
            "kind": format!("{}List", kind.kind), "apiVersion": api_version(kind),
            "metadata": metadata, "items": page.items,
        }),
    )
}

fn start_watch(
    plural: &'static str,
    query: &HashMap<String, String>,
    wanted: impl Fn(&Value) -> bool + Send + 'static,
    shared: Arc<Shared>,
) -> Response<Body> {
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<u64>().ok());
    let from = number("resourceVersion").unwrap_or(0);
    if from < shared.store().compacted {
        let gone = gone();
        return json_answer(410, &gone);
    }
    let seconds = number("timeoutSeconds").unwrap_or(300);
    let bookmarks = query
        .get("allowWatchBookmarks")
        .is_some_and(|value| value == "true");
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(64);
    tokio::spawn(async move {
        let end = tokio::time::sleep(Duration::from_secs(seconds));
        tokio::pin!(end);
        let mut changed = shared.changed.subscribe();
        let mut seen = from;
        let mut bookmark = tokio::time::interval(BOOKMARK);
        loop {
            for line in news(plural, &mut seen, &wanted, &shared) {
                if sender.send_data(line.into()).await.is_err() {
                    return;
                }
            }
            if shared
                .fault(|fault| *fault == Fault::EndedWatch(plural))
                .is_some()
            {
                return;
            }
            tokio::select! {
                () = &mut end => return,
                news = changed.changed() => if news.is_err() { return },
                _ = bookmark.tick() => {
                    let line = json!({"type": "BOOKMARK", "object": {
                        "kind": "Bookmark", "apiVersion": "v1",
                        "metadata": {"resourceVersion": seen.to_string()},
                    }});
                    if bookmarks && sender.send_data(format!("{line}\n").into()).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    answer_with(200, body.boxed())
}

/// The lines of a watch for what happened since.
fn news(
    plural: &str,
    seen: &mut u64,
    wanted: &impl Fn(&Value) -> bool,
    shared: &Shared,
) -> Vec<String> {
    let is = |fault: &Fault, garbage: bool| match fault {
        Fault::GarbageWatch(of) => garbage && *of == plural,
        Fault::GoneInWatch(of) => !garbage && *of == plural,
        _ => false,
    };
    if shared.fault(|fault| is(fault, true)).is_some() {
        return vec!["{\"type\": nonsense}\n".into()];
    }
    if shared.fault(|fault| is(fault, false)).is_some() {
        let line = json!({"type": "ERROR", "object": gone()});
        return vec![format!("{line}\n")];
    }
    let store = shared.store();
    let lines = store
        .log
        .iter()
        .skip_while(|change| change.version <= *seen)
        .filter(|change| change.plural == plural && wanted(&change.object))
        .map(|change| {
            format!(
                "{}\n",
                json!({"type": change.what, "object": change.object})
            )
        })
        .collect();
    *seen = store.version.max(*seen);
    lines
}

fn gone() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
        "message": "too old resource version", "code": 410})
}

fn parameters(query: &str) -> HashMap<String, String> {
    form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    json_answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
            "message": message, "code": code}),
    )
}

pub(super) fn json_answer(code: u16, value: &Value) -> Response<Body> {
    text_answer(code, value.to_string())
}

fn text_answer(code: u16, text: String) -> Response<Body> {
    answer_with(code, Full::from(Bytes::from(text)).boxed())
}

pub(super) fn answer_with(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    response
}
