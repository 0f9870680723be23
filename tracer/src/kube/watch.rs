//! Watching the objects: what the watcher says, turned into changes of plain values.

use std::fmt::Debug;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Node as ApiNode, Pod as ApiPod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy as ApiPolicy;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::runtime::watcher::{Config, Error, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;

use super::asks::Question;
use super::connect::{EndpointApi, noting, with_causes, words};
use super::facts::Object;
use super::{NetworkPolicy, Node, ObjectName, Pod, Resource, Service, Slice};
use crate::node::ProxyConfiguration;

/// Where kubeadm puts kube-proxy's configuration, and under which key.
const PROXY_NAMESPACE: &str = "kube-system";
const PROXY_CONFIG_MAP: &str = "kube-proxy";
const PROXY_KEY: &str = "config.conf";

/// Objects of a page.
const PAGE: u32 = 500;
/// Seconds after which a watch is begun anew, so that a dead connection is noticed.
pub(super) const WATCH_SECONDS: u32 = 60;

/// What became of one kind of object.
pub(super) struct Update {
    pub(super) resource: Resource,
    pub(super) change: Change,
}

/// A change.
pub(super) enum Change {
    /// A complete list begins.
    Begun,
    /// It names an object.
    Named(Box<Object>),
    /// It is complete.
    Complete,
    /// An object is new or other than before.
    Put(Box<Object>),
    /// An object cannot be read; `named` when the list has it.
    Damaged {
        name: ObjectName,
        named: bool,
        why: String,
    },
    /// An object is gone.
    Gone(ObjectName),
    /// Something went wrong; it is tried again.
    Failed(String),
}

pub(super) type Updates = BoxStream<'static, Update>;

/// Watches that need no knowledge of this node.
pub(super) fn cluster_wide(
    client: &Client,
    endpoints: EndpointApi,
    started: &UnboundedSender<Resource>,
) -> Vec<Updates> {
    let of = |resource| noting(client, resource, started.clone());
    vec![
        updates(
            Resource::Services,
            Api::<ApiService>::all(of(Resource::Services)),
            Config::default(),
            |object| Ok(Service::read(object).map(Object::Service)),
        ),
        endpoint_updates(of(Resource::Endpoints), endpoints),
        updates(
            Resource::Nodes,
            Api::<ApiNode>::all(of(Resource::Nodes)),
            Config::default(),
            |object| Ok(Node::read(object).map(Object::Node)),
        ),
        updates(
            Resource::NetworkPolicies,
            Api::<ApiPolicy>::all(of(Resource::NetworkPolicies)),
            Config::default(),
            |object| Ok(NetworkPolicy::read(object).map(Object::Policy)),
        ),
        updates(
            Resource::ProxyConfiguration,
            Api::<ConfigMap>::namespaced(of(Resource::ProxyConfiguration), PROXY_NAMESPACE),
            Config::default().fields(&format!("metadata.name={PROXY_CONFIG_MAP}")),
            configuration,
        ),
    ]
}

fn endpoint_updates(client: Client, endpoints: EndpointApi) -> Updates {
    let resource = Resource::Endpoints;
    let config = Config::default();
    match endpoints {
        EndpointApi::SlicesV1 => updates(
            resource,
            Api::<EndpointSlice>::all(client),
            config,
            |object| Ok(Slice::read(object).map(Object::Slice)),
        ),
        EndpointApi::SlicesV1Beta1 => {
            let kind = ApiResource {
                group: "discovery.k8s.io".into(),
                version: "v1beta1".into(),
                api_version: "discovery.k8s.io/v1beta1".into(),
                kind: "EndpointSlice".into(),
                plural: "endpointslices".into(),
            };
            updates(
                resource,
                Api::<DynamicObject>::all_with(client, &kind),
                config,
                |object| {
                    let name = ObjectName::of(&object.metadata);
                    let named = name.map_or_else(String::new, |name| format!(" {name}"));
                    Slice::read_beta(object)
                        .map(|slice| slice.map(Object::Slice))
                        .map_err(|error| {
                            format!("the EndpointSlice{named} cannot be read: {error}")
                        })
                },
            )
        }
        EndpointApi::Endpoints => {
            updates(resource, Api::<Endpoints>::all(client), config, |object| {
                Ok(Slice::read_core(object).map(Object::Slice))
            })
        }
    }
}

/// Watches the pods of a node.
pub(super) fn pods(client: &Client, node: &str, started: &UnboundedSender<Resource>) -> Updates {
    updates(
        Resource::Pods,
        Api::<ApiPod>::all(noting(client, Resource::Pods, started.clone())),
        Config::default().fields(&format!("spec.nodeName={node}")),
        |object| Ok(Pod::read(object).map(Object::Pod)),
    )
}

/// Pods on any node as the server's cache has them: no index leads to an address.
pub(super) async fn pods_asked_for(
    client: &Client,
    question: &Question,
) -> Result<Vec<Pod>, String> {
    let named = |name: &ObjectName| {
        let pods = Api::namespaced(client.clone(), &name.namespace);
        list(pods, format!("metadata.name={}", name.name))
    };
    match question {
        Question::Name(name) => named(name).await,
        Question::Address(address, name) => {
            if let Some(name) = name {
                let found = named(name).await?;
                let has = |pod: &Pod| pod.claims().any(|(own, _)| own == *address);
                if found.iter().any(has) {
                    return Ok(found);
                }
            }
            let pods = Api::all(client.clone());
            list(pods, format!("status.podIP={address}")).await
        }
    }
}

async fn list(pods: Api<ApiPod>, field: String) -> Result<Vec<Pod>, String> {
    let found = pods
        .list(&ListParams::default().fields(&field).match_any())
        .await
        .map_err(|error| words(&error))?;
    Ok(found.items.into_iter().filter_map(Pod::read).collect())
}

fn configuration(object: ConfigMap) -> Result<Option<Object>, String> {
    let Some(name) = ObjectName::of(&object.metadata) else {
        return Ok(None);
    };
    let text = object.data.and_then(|mut data| data.remove(PROXY_KEY));
    let Some(text) = text else {
        // Not kubeadm's: others keep something else under this name.
        return Ok(None);
    };
    let found = ProxyConfiguration::parse(&text)
        .map_err(|error| format!("the ConfigMap {name} cannot be read: {error}"))?;
    Ok(Some(Object::Configuration(name, found)))
}

fn updates<K>(
    resource: Resource,
    api: Api<K>,
    config: Config,
    read: impl Fn(K) -> Result<Option<Object>, String> + Send + 'static,
) -> Updates
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = config.page_size(PAGE).timeout(WATCH_SECONDS);
    let put = move |object: K, named: bool| {
        // Without a name nobody can ask for it.
        let name = ObjectName::of(object.meta())?;
        match read(object) {
            Ok(Some(object)) if named => Some(Change::Named(Box::new(object))),
            Ok(Some(object)) => Some(Change::Put(Box::new(object))),
            // Nothing of it is wanted, whatever it was before; a list does without naming it.
            Ok(None) => (!named).then_some(Change::Gone(name)),
            Err(why) => Some(Change::Damaged { name, named, why }),
        }
    };
    let begin = move || {
        watcher(api.clone(), config.clone())
            .default_backoff()
            .scan(false, |ended, event| {
                let go_on = !*ended;
                *ended = event.as_ref().is_err_and(missed);
                std::future::ready(go_on.then_some(event))
            })
    };
    futures::stream::repeat_with(begin)
        .flatten()
        .filter_map(move |event| {
            let change = match event {
                Ok(Event::Init) => Some(Change::Begun),
                Ok(Event::InitApply(object)) => put(object, true),
                Ok(Event::InitDone) => Some(Change::Complete),
                Ok(Event::Apply(object)) => put(object, false),
                Ok(Event::Delete(object)) => ObjectName::of(object.meta()).map(Change::Gone),
                Err(error) => Some(Change::Failed(failure(&error))),
            };
            std::future::ready(change.map(|change| Update { resource, change }))
        })
        .boxed()
}

/// Something happened that the watcher will not say: the server no longer knows it, and the watcher would ask
/// for the same again and again where the answer to the request says so, not the stream; or it was said and
/// cannot be read, and the next change would hide that. A new list says what is there.
fn missed(error: &Error) -> bool {
    match error {
        Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => true,
        _ => false,
    }
}

fn failure(error: &Error) -> String {
    match error {
        // The client takes any object that it cannot read for a status, here one that says nothing.
        Error::WatchFailed(kube::Error::Api(status)) if status.code == 0 => {
            "a change that cannot be read".to_owned()
        }
        Error::InitialListFailed(error)
        | Error::WatchStartFailed(error)
        | Error::WatchFailed(error) => words(error),
        Error::WatchError(status) => format!("{} {}", status.code, status.message),
        Error::NoResourceVersion => with_causes(error),
    }
}
