//! A small Kubernetes API server: TLS with a certificate of its own, a bearer token, the rules of a
//! manifest, lists with pages, watches with bookmarks, pods that kubelets run by a script, and faults on demand.
//! It has no garbage collector: what is not deleted stays.

mod change;
mod kubelet;
pub mod rbac;
mod serve;
pub mod store;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use kubelet::Log;
pub use kubelet::Script;
use rbac::{Action, Rules};
use store::Store;

/// What a bearer must show.
const TOKEN: &str = "a-token-of-the-tests";

/// Which EndpointSlices the server has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slices {
    /// discovery.k8s.io/v1.
    V1,
    /// discovery.k8s.io/v1beta1 only.
    V1Beta1,
    /// None.
    None,
}

/// What the server does wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answers every request for this plural name with this status.
    Status(&'static str, u16),
    /// Answers the first request with this verb for this plural name with this status.
    Once(&'static str, &'static str, u16),
    /// Ends watches of this plural name as soon as they began.
    EndedWatch(&'static str),
    /// Refuses to create objects of this plural name, with these words.
    Refuse(&'static str, &'static str),
    /// Refuses to create the first object of this plural name: others count against the quota as well.
    Contended(&'static str),
    /// Creates objects of this plural name, and never says so.
    NoAnswer(&'static str),
    /// Answers lists of this plural name with what is no JSON.
    GarbageList(&'static str),
    /// Sends what is no JSON into watches of this plural name.
    GarbageWatch(&'static str),
    /// Waits before every answer.
    Slow(Duration),
    /// Takes connections and never answers.
    Silent,
    /// Takes requests whose path ends so, and never answers them; watches that are under way go on.
    Hang(&'static str),
    /// Tells watches of this plural name that their version is too old, in the stream.
    GoneInWatch(&'static str),
}

/// Shared by the handlers and the test.
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) rules: Option<Rules>,
    pub(crate) slices: Slices,
    pub(crate) version: String,
    pub(crate) faults: Mutex<Vec<Fault>>,
    pub(crate) actions: Mutex<Vec<Action>>,
    /// What kubelets do, by node.
    pub(crate) scripts: Mutex<HashMap<String, Script>>,
    /// What containers said, by pod.
    pub(crate) logs: Mutex<HashMap<String, Log>>,
}

impl Shared {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes or changes an object and tells the watches.
    pub(crate) fn put(&self, plural: &'static str, object: Value) {
        let version = {
            let mut store = self.store();
            store.put(plural, object);
            store.version
        };
        self.changed.send_replace(version);
    }

    /// Changes an object that is there.
    pub(crate) fn change(
        &self,
        plural: &'static str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let found = self.store().get(plural, namespace, name);
        if let Some(mut object) = found {
            change(&mut object);
            self.put(plural, object);
        }
    }

    /// Removes an object and tells the watches.
    pub(crate) fn remove(&self, plural: &'static str, namespace: &str, name: &str) {
        let version = {
            let mut store = self.store();
            store.delete(plural, namespace, name);
            store.version
        };
        self.changed.send_replace(version);
    }

    /// Whether a pod is to go, or gone.
    pub(crate) fn terminating(&self, namespace: &str, name: &str) -> bool {
        let pod = self.store().get("pods", namespace, name);
        pod.is_none_or(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
    }

    /// The arguments of a pod's container, as JSON.
    pub(crate) fn arguments(&self, namespace: &str, name: &str) -> String {
        let pod = self.store().get("pods", namespace, name);
        pod.map(|pod| pod["spec"]["containers"][0]["args"].to_string())
            .unwrap_or_default()
    }

    pub(crate) fn logs(&self) -> MutexGuard<'_, HashMap<String, Log>> {
        self.logs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn scripts(&self) -> MutexGuard<'_, HashMap<String, Script>> {
        self.scripts
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A container says lines, and perhaps its last.
    pub(crate) fn say(&self, pod: &str, lines: Vec<String>, last: bool) {
        {
            let mut logs = self.logs();
            let log = logs.entry(pod.to_owned()).or_default();
            log.lines.extend(lines);
            log.ended = last;
        }
        self.changed.send_modify(|_| {});
    }

    pub(crate) fn fault(&self, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        self.faults().iter().find(|fault| wanted(fault)).cloned()
    }

    /// True once for a fault that is over with that.
    pub(crate) fn fault_once(&self, wanted: impl Fn(&Fault) -> bool) -> bool {
        let mut faults = self.faults();
        let place = faults.iter().position(wanted);
        place.map(|place| faults.remove(place)).is_some()
    }

    fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What a server is to be like.
pub struct Options {
    /// Which slices it has.
    pub slices: Slices,
    /// Who may do what; `None` allows everything.
    pub rules: Option<Rules>,
    /// Version that it says it is.
    pub version: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            slices: Slices::V1,
            rules: None,
            version: "v1.31.0",
        }
    }
}

/// A running server; it ends with this value.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    folder: TempDir,
    runtime: tokio::runtime::Runtime,
    serving: Option<JoinSet<()>>,
}

impl ApiServer {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
            certified.signing_key.serialize_der(),
        ));
        let config = ServerConfig::builder_with_provider(Arc::new(
            tokio_rustls::rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let mut server = Self {
            shared: Arc::new(Shared {
                store: Mutex::default(),
                changed: watch::channel(0).0,
                rules: options.rules,
                slices: options.slices,
                version: options.version.to_owned(),
                faults: Mutex::default(),
                actions: Mutex::default(),
                scripts: Mutex::default(),
                logs: Mutex::default(),
            }),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            folder: tempfile::tempdir()?,
            runtime,
            serving: None,
        };
        std::fs::write(server.folder.path().join("ca.pem"), certified.cert.pem())?;
        server.resume()?;
        server.write_kubeconfig(TOKEN, "kubeconfig")?;
        server.write_kubeconfig("another-token", "wrong-token")?;
        Ok(server)
    }

    fn write_kubeconfig(&self, token: &str, name: &str) -> anyhow::Result<()> {
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": self.folder.path().join("ca.pem"),
            }}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(self.folder.path().join(name), text.to_string())?;
        Ok(())
    }

    /// A kubeconfig that the server accepts.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A kubeconfig with a token that the server does not know.
    pub fn wrong_kubeconfig(&self) -> PathBuf {
        self.folder.path().join("wrong-token")
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A folder with what a pod finds of its service account: token, certificate and namespace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn service_account(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.path().join("serviceaccount");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("token"), TOKEN)?;
        std::fs::write(folder.join("namespace"), "default")?;
        std::fs::copy(self.folder.path().join("ca.pem"), folder.join("ca.crt"))?;
        Ok(folder)
    }

    /// A folder that ends with the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes or changes an object.
    pub fn put(&self, plural: &'static str, object: Value) {
        self.shared.put(plural, object);
    }

    /// Removes an object.
    pub fn delete(&self, plural: &'static str, namespace: &str, name: &str) {
        self.shared.remove(plural, namespace, name);
    }

    /// The names of the objects of a kind that are there now.
    pub fn names(&self, plural: &str) -> Vec<String> {
        let page = self.shared.store().page(plural, |_| true, usize::MAX, None);
        let names = page.items.iter();
        names
            .map(|object| {
                object["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    /// An object as it is now.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().get(plural, namespace, name)
    }

    /// Says what becomes of pods on a node from now on.
    pub fn kubelet(&self, node: &str, script: Script) {
        self.shared.scripts().insert(node.to_owned(), script);
    }

    /// Forgets the log of changes: watches from before are answered with 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Does this wrong from now on, and nothing else.
    pub fn misbehave(&self, faults: &[Fault]) {
        let mut own = self
            .shared
            .faults
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *own = faults.to_vec();
        drop(own);
        // Watches look at the faults when something changes.
        self.shared.changed.send_modify(|_| {});
    }

    /// What was asked for so far.
    pub fn actions(&self) -> Vec<Action> {
        let actions = self
            .shared
            .actions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        actions.clone()
    }

    /// Ends every connection and listens no more.
    pub fn stop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            self.runtime.block_on(serving.shutdown());
        }
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let listener = self
            .runtime
            .block_on(TcpListener::bind(self.address))
            .context("the API server cannot listen")?;
        self.address = listener.local_addr()?;
        let (shared, acceptor) = (Arc::clone(&self.shared), self.acceptor.clone());
        let mut serving = JoinSet::new();
        serving.spawn_on(
            serve::accept(listener, acceptor, shared),
            self.runtime.handle(),
        );
        self.serving = Some(serving);
        Ok(())
    }
}
