//! How to reach the API server, and asking it what it serves.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use kube::client::Body;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};

use super::Resource;

/// Longest wait for a short answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// Least time from the beginning of a watch to that of the next one of the same objects.
const APART: Duration = Duration::from_secs(1);

/// Where a person's kubeconfig is, or none.
#[derive(Clone, Default, Debug)]
pub struct Place {
    /// `--kubeconfig`; else `KUBECONFIG`, `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Context; else the kubeconfig's current one.
    pub context: Option<String>,
}

/// Why there is nothing to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NoServer {
    /// Nothing was configured: not a fault.
    NotConfigured,
    /// What was configured cannot be used.
    Unusable(String),
}

/// Reads the configuration; asks nobody.
pub(crate) async fn configuration(place: &Place) -> Result<Config, NoServer> {
    let named = match &place.kubeconfig {
        Some(path) => Some(Kubeconfig::read_from(path)),
        None => std::env::var_os("KUBECONFIG").and_then(|files| listed(&files)),
    };
    let options = KubeConfigOptions {
        context: place.context.clone(),
        ..KubeConfigOptions::default()
    };
    let is_named = named.is_some();
    let from_file = match named {
        Some(Ok(file)) => Config::from_custom_kubeconfig(file, &options).await,
        Some(Err(error)) => Err(error),
        None => Config::from_kubeconfig(&options).await,
    };
    let mut config = match from_file {
        Ok(config) => config,
        Err(error) if is_named || !missing_file(&error) => {
            return Err(NoServer::Unusable(with_causes(&error)));
        }
        Err(_) => Config::incluster().map_err(|error| without_account(&error))?,
    };
    config.connect_timeout = Some(ANSWER);
    // The watcher waits between tries, and every error is to be seen.
    config.default_retry = false;
    Ok(config)
}

/// What the files of `KUBECONFIG` say together; in doubt the first counts. As kubectl does it, one that is
/// not there is left out. `None` where it lists nothing.
fn listed(files: &OsStr) -> Option<Result<Kubeconfig, KubeconfigError>> {
    let (mut found, mut missing) = (None::<Kubeconfig>, None);
    for path in std::env::split_paths(files).filter(|path| !path.as_os_str().is_empty()) {
        match Kubeconfig::read_from(path) {
            Ok(next) => match found.take().unwrap_or_default().merge(next) {
                Ok(merged) => found = Some(merged),
                Err(error) => return Some(Err(error)),
            },
            Err(error) if missing_file(&error) => missing = missing.or(Some(error)),
            Err(error) => return Some(Err(error)),
        }
    }
    // With none of them there is nothing to do what was asked for.
    found.map(Ok).or(missing.map(Err))
}

/// Why a pod's service account leads nowhere: this is no pod, it has none, or it cannot be used.
fn without_account(error: &InClusterError) -> NoServer {
    use InClusterError::{ReadCertificateBundle, ReadDefaultNamespace, ReadEnvironmentVariable};
    match error {
        ReadEnvironmentVariable(_) => NoServer::NotConfigured,
        ReadDefaultNamespace(why) | ReadCertificateBundle(why)
            if why.kind() == std::io::ErrorKind::NotFound =>
        {
            NoServer::NotConfigured
        }
        other => NoServer::Unusable(format!(
            "the pod's service account cannot be used: {}",
            with_causes(other)
        )),
    }
}

fn missing_file(error: &KubeconfigError) -> bool {
    use KubeconfigError::{FindPath, ReadConfig};
    match error {
        FindPath => true,
        ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// A client whose started watches are noted: a watch that is taken up again says nothing itself
/// until something changes. They begin a while apart, as what stands between may end each at once.
pub(super) fn noting(
    client: &Client,
    resource: Resource,
    started: UnboundedSender<Resource>,
) -> Client {
    let namespace = client.default_namespace().to_owned();
    let client = client.clone();
    let next = Arc::new(Mutex::new(Instant::now()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let watch = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let client = client.clone();
        let started = started.clone();
        let next = Arc::clone(&next);
        async move {
            if watch {
                let mut next = next.lock().await;
                sleep_until(*next).await;
                *next = Instant::now() + APART;
            }
            let answer = client.send(request).await?;
            if watch && answer.status().is_success() {
                // Nobody listens any more when the trace ends.
                let _ = started.send(resource);
            }
            Ok::<_, kube::Error>(answer)
        }
    });
    Client::new(service, namespace)
}

/// From which objects endpoints are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EndpointApi {
    /// discovery.k8s.io/v1, from 1.21.
    SlicesV1,
    /// discovery.k8s.io/v1beta1.
    SlicesV1Beta1,
    /// core/v1 Endpoints.
    Endpoints,
}

/// What a server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) endpoints: EndpointApi,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "gitVersion")]
    git_version: String,
}

#[derive(Deserialize)]
struct Group {
    versions: Vec<GroupVersion>,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

/// Asks a server what it is.
pub(super) async fn ask(client: &Client) -> Result<Server, String> {
    let version = version(client).await?;
    let asked = in_time(get::<Group>(client, "/apis/discovery.k8s.io"));
    let endpoints = match asked.await? {
        Ok(group) => {
            let serves = |name| group.versions.iter().any(|found| found.version == name);
            if serves("v1") {
                EndpointApi::SlicesV1
            } else if serves("v1beta1") {
                EndpointApi::SlicesV1Beta1
            } else {
                EndpointApi::Endpoints
            }
        }
        Err(kube::Error::Api(status)) if status.code == 404 => EndpointApi::Endpoints,
        Err(error) => return Err(words(&error)),
    };
    Ok(Server { version, endpoints })
}

/// The version of a server; its answer is also its sign of life.
pub(super) async fn version(client: &Client) -> Result<String, String> {
    let version = in_time(get::<Version>(client, "/version")).await?;
    version
        .map(|version| version.git_version)
        .map_err(|error| words(&error))
}

/// A short answer, or that it does not come.
async fn in_time<T>(asked: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(ANSWER, asked)
        .await
        .map_err(|_| format!("no answer within {} s", ANSWER.as_secs()))
}

async fn get<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> kube::Result<T> {
    let request = Request::get(path)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// An error of the client in words for a person.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!("forbidden: {}", status.message),
        kube::Error::Api(status) if status.code == 401 => {
            "unauthorized: the server does not accept these credentials".to_owned()
        }
        kube::Error::Api(status) => format!("{} {}", status.code, status.message),
        kube::Error::SerdeError(error) => format!("an answer that cannot be read: {error}"),
        other => with_causes(other),
    }
}

/// An error with what caused it, each said once.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text += &format!(": {said}");
        }
        cause = error.source();
    }
    text
}
