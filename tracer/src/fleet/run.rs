//! A run over many nodes: creates, follows, and removes whatever became of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clean::remove_ended;
use super::pod::{NodeEnd, Seen, Task};
use super::{FleetError, Plan, manifest};
use crate::kube::Place;
use crate::kube::connect::{NoServer, configuration, words};

/// Pause between two lists of the pods: one request for all of them.
const LIST: Duration = Duration::from_millis(500);
/// Pods that are deleted at the same time.
const AT_A_TIME: usize = 16;
/// A tracer that is asked to end has this long for its last words, seconds.
const GRACE: u32 = 10;
/// How long the last words are waited for.
const LAST_WORDS: Duration = Duration::from_secs(15);
/// How long removing, and making the owner, is tried while the server does not answer or is busy.
const REMOVAL: Duration = Duration::from_secs(10);
/// Longest wait for what a run cannot begin without: a list of thousands of nodes takes its time, and
/// webhooks may have as long.
pub(super) const BEGINNING: Duration = Duration::from_secs(30);
/// Longest wait for the answer to any other request.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether the person wants it to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Not yet.
    No,
    /// Now, with the last words of every node.
    Gently,
    /// At once.
    AtOnce,
}

/// What happens, as it happens.
#[derive(Clone, Debug)]
pub enum News {
    /// The owner of everything is made.
    Begun {
        /// Name of the run: of its Job.
        run: String,
        /// Nodes that will be traced.
        nodes: Vec<String>,
    },
    /// A node said a line.
    Line {
        /// The node.
        node: Arc<str>,
        /// Without the time that the server puts before it.
        line: String,
    },
    /// The log of a node cannot be read for now; it is tried again.
    Interrupted {
        /// The node.
        node: Arc<str>,
        /// In words.
        why: String,
    },
    /// It can be read again, from where it was.
    Resumed {
        /// The node.
        node: Arc<str>,
    },
    /// A node is done.
    Ended {
        /// The node.
        node: Arc<str>,
        /// How.
        end: NodeEnd,
    },
}

/// What was left when it was over.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name of the run.
    pub run: String,
    /// What could not be removed, and why.
    pub left: Vec<String>,
}

/// A client of the cluster that a person means.
pub(super) async fn connect(place: &Place) -> Result<Client, FleetError> {
    let config = configuration(place).await.map_err(|none| match none {
        NoServer::NotConfigured => FleetError::NoServer(
            "neither --kubeconfig, KUBECONFIG, ~/.kube/config nor a service account".into(),
        ),
        NoServer::Unusable(why) => FleetError::NoServer(why),
    })?;
    Client::try_from(config).map_err(|error| FleetError::NoServer(words(&error)))
}

/// Traces the chosen nodes. Ends when every node did, or when `stop` says so; removes what it created in
/// any case.
///
/// # Errors
/// When no node can be traced at all: then nothing was left behind but what the error names.
pub async fn run(
    plan: Plan,
    place: &Place,
    mut stop: watch::Receiver<Stop>,
    news: mpsc::Sender<News>,
) -> Result<Outcome, FleetError> {
    let client = connect(place).await?;
    let mut fleet = Fleet {
        pods: Api::namespaced(client.clone(), &plan.namespace),
        jobs: Api::namespaced(client.clone(), &plan.namespace),
        // Known before the server answers, so that it can be removed whatever becomes of the answer.
        run: format!("tracer-run-{}", suffix()),
        names: Vec::new(),
    };
    let (nodes, not) = tokio::select! {
        found = plan.find_nodes(&client) => found?,
        () = asked(&mut stop) => return Err(FleetError::Stopped),
    };
    tokio::select! {
        () = remove_ended(&fleet.jobs, &fleet.pods) => {}
        () = asked(&mut stop) => return Err(FleetError::Stopped),
    }
    let owner = fleet.begin(&plan, &mut stop).await?;
    fleet.names = (0..nodes.len())
        .map(|number| format!("{}-{number}", fleet.run))
        .collect();
    // Nobody listens any more when printing failed; then `stop` says so.
    let _ = news
        .send(News::Begun {
            run: fleet.run.clone(),
            nodes: nodes.clone(),
        })
        .await;
    for (node, end) in not {
        let _ = news
            .send(News::Ended {
                node: node.into(),
                end,
            })
            .await;
    }
    let owner = OwnerReference {
        api_version: "batch/v1".into(),
        kind: "Job".into(),
        name: fleet.run.clone(),
        uid: owner.metadata.uid.unwrap_or_default(),
        ..OwnerReference::default()
    };
    let events = Api::<Event>::namespaced(client, &plan.namespace);
    fleet
        .trace(Arc::new(plan), nodes, owner, events, &mut stop, news)
        .await;
    let left = fleet.remove().await;
    Ok(Outcome {
        run: fleet.run,
        left,
    })
}

struct Fleet {
    jobs: Api<Job>,
    pods: Api<Pod>,
    run: String,
    /// Names of the pods.
    names: Vec<String>,
}

impl Fleet {
    /// Makes what owns everything. Where no answer came, or the server failed in the middle of it, it is
    /// removed again: it may have been made.
    async fn begin(
        &self,
        plan: &Plan,
        stop: &mut watch::Receiver<Stop>,
    ) -> Result<Job, FleetError> {
        let (parameters, job) = (PostParams::default(), manifest::owner(plan, &self.run));
        let making = async {
            let begun = Instant::now();
            loop {
                match within(BEGINNING, self.jobs.create(&parameters, &job)).await {
                    Err(error) if passing(&error) && begun.elapsed() < REMOVAL => {
                        tokio::time::sleep(LIST).await;
                    }
                    // An earlier try made it though it failed: the name is this run's own.
                    Err(error) if taken(&error) => {
                        return within(BEGINNING, self.jobs.get(&self.run)).await;
                    }
                    made => return made,
                }
            }
        };
        let error = tokio::select! {
            made = making => match made {
                Ok(made) => return Ok(made),
                Err(error) => Some(error),
            },
            () = asked(stop) => None,
        };
        let mut left = Vec::new();
        if !error.as_ref().is_some_and(refused) {
            left = self.remove().await;
        }
        let Some(error) = error else {
            if left.is_empty() {
                return Err(FleetError::Stopped);
            }
            return Err(FleetError::Refused {
                what: "it was stopped; not everything could be removed",
                why: left.join("; "),
            });
        };
        left.insert(0, words(&error));
        if matches!(&error, kube::Error::Api(status) if status.code == 403) {
            left.push("the needed rights: `tracer cluster rbac --run`".into());
        }
        Err(FleetError::Refused {
            what: "the Job that owns everything cannot be created",
            why: left.join("; "),
        })
    }

    async fn trace(
        &self,
        plan: Arc<Plan>,
        nodes: Vec<String>,
        owner: OwnerReference,
        events: Api<Event>,
        stop: &mut watch::Receiver<Stop>,
        news: mpsc::Sender<News>,
    ) {
        let (sender, seen) = watch::channel(Seen::default());
        let mut background = JoinSet::new();
        background.spawn(list(self.pods.clone(), self.run.clone(), sender));
        let mut tasks = JoinSet::new();
        for (number, (node, name)) in nodes.into_iter().zip(&self.names).enumerate() {
            let task = Task {
                plan: Arc::clone(&plan),
                pods: self.pods.clone(),
                events: events.clone(),
                seen: seen.clone(),
                stop: stop.clone(),
                news: news.clone(),
                node: node.into(),
                name: name.clone(),
            };
            let (owner, news) = (owner.clone(), news.clone());
            tasks.spawn(async move {
                let node = Arc::clone(&task.node);
                let end = task.work(owner, number).await;
                let _ = news.send(News::Ended { node, end }).await;
            });
        }
        let mut patience: Option<Instant> = None;
        loop {
            tokio::select! {
                ended = tasks.join_next() => if ended.is_none() { return },
                () = until(patience) => return,
                changed = stop.changed() => {
                    let wish = *stop.borrow_and_update();
                    match (changed, wish) {
                        (Ok(()), Stop::No) => {}
                        (Ok(()), Stop::Gently) => {
                            patience = Some(Instant::now() + LAST_WORDS);
                            tokio::select! {
                                _ = self.delete_pods() => {}
                                _ = stop.wait_for(|wish| *wish == Stop::AtOnce) => return,
                            }
                        }
                        (Ok(()), Stop::AtOnce) | (Err(_), _) => return,
                    }
                }
            }
        }
    }

    /// Removes the owner and every pod: the server's own collector may be slow, or off.
    async fn remove(&self) -> Vec<String> {
        let begun = Instant::now();
        let mut left = self.delete_pods().await;
        let with_dependents = DeleteParams::background();
        loop {
            match in_time(self.jobs.delete(&self.run, &with_dependents)).await {
                Ok(_) => break,
                Err(error) if absent(&error) => break,
                Err(error) if begun.elapsed() > REMOVAL || refused(&error) => {
                    left.push(format!("job {}: {}", self.run, words(&error)));
                    break;
                }
                Err(_) => tokio::time::sleep(LIST).await,
            }
            left = self.delete_pods().await;
        }
        left
    }

    /// Asks every pod to end; those that could not be asked, and why.
    async fn delete_pods(&self) -> Vec<String> {
        let mut answers = futures::stream::iter(self.names.clone())
            .map(|name| {
                let pods = self.pods.clone();
                async move {
                    let parameters = DeleteParams::default().grace_period(GRACE);
                    let answer = in_time(pods.delete(&name, &parameters)).await;
                    (name, answer)
                }
            })
            .buffer_unordered(AT_A_TIME);
        let mut left = Vec::new();
        while let Some((name, answer)) = answers.next().await {
            if let Err(error) = answer
                && !absent(&error)
            {
                left.push(format!("pod {name}: {}", words(&error)));
                // What has no answer now has none for the next one either.
                if !matches!(error, kube::Error::Api(_)) {
                    break;
                }
            }
        }
        left
    }
}

/// Done at a moment; never without one.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Done when the run is to end, or nobody is there any more who could say so.
pub(super) async fn asked(stop: &mut watch::Receiver<Stop>) {
    let _ = stop.wait_for(|wish| *wish != Stop::No).await;
}

/// What makes the name of a run its own.
fn suffix() -> String {
    std::iter::repeat_with(fastrand::lowercase)
        .take(8)
        .collect()
}

/// A request with an end.
pub(super) async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    within(ANSWER, request).await
}

/// A request that may take so long.
pub(super) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> kube::Result<T> {
    tokio::time::timeout(limit, request)
        .await
        .unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
}

/// True when there is no such object, or no longer.
pub(super) fn absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True when the name is there already.
pub(super) fn taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

/// True when the server is busy or failed over something else, and may do the same thing a moment later.
pub(super) fn passing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 429 || status.code >= 500)
}

/// True when the server will not do it.
fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(_)) && !passing(error)
}

/// Lists the pods of the run, again and again.
async fn list(pods: Api<Pod>, run: String, seen: watch::Sender<Seen>) {
    let of_run = ListParams::default().labels(&format!("{}={run}", manifest::RUN));
    loop {
        // A server that does not answer leaves what is known as it is.
        if let Ok(found) = in_time(pods.list(&of_run)).await {
            let pods: HashMap<String, Pod> = found
                .items
                .into_iter()
                .filter_map(|pod| Some((pod.metadata.name.clone()?, pod)))
                .collect();
            seen.send_modify(|seen| {
                seen.round += 1;
                seen.pods = Arc::new(pods);
            });
        }
        tokio::time::sleep(LIST).await;
    }
}
