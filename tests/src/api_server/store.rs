//! The objects and the log of their changes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A kind of object that the server knows.
pub struct Kind {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Plural name.
    pub plural: &'static str,
    /// Name of one.
    pub kind: &'static str,
    /// Has namespaces.
    pub namespaced: bool,
}

const RIGHTS: &str = "rbac.authorization.k8s.io";

/// Every kind.
pub const KINDS: &[Kind] = &[
    kind("", "v1", "services", "Service", true),
    kind("", "v1", "endpoints", "Endpoints", true),
    kind("", "v1", "pods", "Pod", true),
    kind("", "v1", "nodes", "Node", false),
    kind("", "v1", "configmaps", "ConfigMap", true),
    kind("", "v1", "secrets", "Secret", true),
    kind("", "v1", "events", "Event", true),
    kind("", "v1", "namespaces", "Namespace", false),
    kind("", "v1", "serviceaccounts", "ServiceAccount", true),
    kind("batch", "v1", "jobs", "Job", true),
    kind("apps", "v1", "daemonsets", "DaemonSet", true),
    kind(RIGHTS, "v1", "clusterroles", "ClusterRole", false),
    kind(RIGHTS, "v1", "roles", "Role", true),
    kind(
        RIGHTS,
        "v1",
        "clusterrolebindings",
        "ClusterRoleBinding",
        false,
    ),
    kind(RIGHTS, "v1", "rolebindings", "RoleBinding", true),
    kind(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        true,
    ),
    kind(
        "discovery.k8s.io",
        "v1beta1",
        "endpointslices",
        "EndpointSlice",
        true,
    ),
    kind(
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        true,
    ),
];

const fn kind(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        group,
        version,
        plural,
        kind,
        namespaced,
    }
}

/// One change.
#[derive(Clone)]
pub struct Change {
    /// Version of the store after it.
    pub version: u64,
    /// Plural name of the kind.
    pub plural: &'static str,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: &'static str,
    /// The object.
    pub object: Value,
}

/// All objects.
#[derive(Default)]
pub struct Store {
    /// Version: the number of changes so far.
    pub version: u64,
    objects: BTreeMap<&'static str, BTreeMap<(String, String), Value>>,
    /// Changes, the oldest first.
    pub log: Vec<Change>,
    /// Changes up to here are forgotten.
    pub compacted: u64,
}

/// A page of a list.
pub struct Page {
    /// Objects.
    pub items: Vec<Value>,
    /// Key to go on from.
    pub next: Option<String>,
}

impl Store {
    /// Makes or changes an object.
    pub fn put(&mut self, plural: &'static str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        if let Some(kind) = KINDS.iter().find(|kind| kind.plural == plural) {
            object["kind"] = json!(kind.kind);
            if object["apiVersion"].is_null() {
                object["apiVersion"] = json!(api_version(kind));
            }
        }
        let before = self
            .objects
            .entry(plural)
            .or_default()
            .insert(key(&object), object.clone());
        let what = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.note(plural, what, object);
    }

    /// Removes an object; nothing when there is none.
    pub fn delete(&mut self, plural: &'static str, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.entry(plural).or_default().remove(&key) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.note(plural, "DELETED", object);
    }

    fn note(&mut self, plural: &'static str, what: &'static str, object: Value) {
        self.log.push(Change {
            version: self.version,
            plural,
            what,
            object,
        });
    }

    /// An object, if it is there.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.objects.get(plural)?.get(&key).cloned()
    }

    /// Forgets every change so far: who wants to go on from one must list anew.
    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
    }

    /// The objects that are wanted, at most `limit`, after the key `after`.
    pub fn page(
        &self,
        plural: &str,
        wanted: impl Fn(&Value) -> bool,
        limit: usize,
        after: Option<&str>,
    ) -> Page {
        let after = after.map(|key| {
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            (namespace.to_owned(), name.to_owned())
        });
        let mut items = Vec::new();
        let mut last = None;
        for (key, object) in self.objects.get(plural).into_iter().flatten() {
            if after.as_ref().is_some_and(|after| key <= after) || !wanted(object) {
                continue;
            }
            if items.len() == limit {
                let next =
                    last.map(|(namespace, name): &(String, String)| format!("{namespace}/{name}"));
                return Page { items, next };
            }
            items.push(object.clone());
            last = Some(key);
        }
        Page { items, next: None }
    }
}

/// Group and version in one.
pub fn api_version(kind: &Kind) -> String {
    if kind.group.is_empty() {
        kind.version.to_owned()
    } else {
        format!("{}/{}", kind.group, kind.version)
    }
}

fn key(object: &Value) -> (String, String) {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (text("namespace"), text("name"))
}

/// Whether an object meets a field selector (`a.b=c`, several with commas).
pub fn meets(object: &Value, selector: &str) -> bool {
    selector
        .split(',')
        .filter_map(|part| part.split_once('='))
        .all(|(path, wanted)| {
            let found = path.split('.').fold(object, |value, step| &value[step]);
            found.as_str().unwrap_or_default() == wanted
        })
}

/// Whether an object's labels meet a selector (`a=b`, several with commas).
pub fn labelled(object: &Value, selector: &str) -> bool {
    selector
        .split(',')
        .filter(|part| !part.is_empty())
        .all(|part| match part.split_once('=') {
            Some((key, value)) => object["metadata"]["labels"][key] == value,
            None => !object["metadata"]["labels"][part].is_null(),
        })
}
