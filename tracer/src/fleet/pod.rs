//! One node's pod: made, waited for, its log followed line by line, through lost connections.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, LogParams, PostParams};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::run::{News, Stop, absent, asked, in_time, passing, taken, within};
use super::{Plan, manifest};
use crate::kube::connect::words;

/// Pause before a request is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest wait for one answer to a pod that is to be made: webhooks have that long unless told otherwise.
const ADMISSION: Duration = Duration::from_secs(10);
/// How long a pod is tried to be made while the server does not answer.
const CREATION: Duration = Duration::from_secs(15);
/// How it ended on a node that came too late.
const STOPPED: &str = "stopped before it started";
/// Reasons to wait that pass only when a person does something.
const STUCK: [&str; 7] = [
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];

/// How it ended on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeEnd {
    /// Traced to the end, every line was read.
    Finished,
    /// Never began, and why.
    NotStarted(String),
    /// Ended early, and why.
    Broken(String),
    /// Was not to be traced, and why: no Linux.
    Skipped(String),
}

impl NodeEnd {
    /// Why it is not whole.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Finished => None,
            Self::NotStarted(why) | Self::Broken(why) | Self::Skipped(why) => Some(why),
        }
    }

    /// True when something is missing of what was to be traced.
    pub const fn is_lacking(&self) -> bool {
        matches!(self, Self::NotStarted(_) | Self::Broken(_))
    }

    /// One word or two.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::NotStarted(_) => "not started",
            Self::Broken(_) => "ended early",
            Self::Skipped(_) => "skipped",
        }
    }
}

/// The pods of a run as last listed.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// Number of the list, from 1.
    pub(super) round: u64,
    pub(super) pods: Arc<HashMap<String, Pod>>,
}

/// What the task of one node needs.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) plan: Arc<Plan>,
    pub(super) pods: Api<Pod>,
    pub(super) events: Api<Event>,
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) node: Arc<str>,
    /// Name of the pod.
    pub(super) name: String,
}

/// What a pod's object says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Standing {
    /// Not yet; what it waits for, where that is said.
    Waiting(Option<String>),
    /// It will not start by itself.
    Stuck(String),
    /// The container runs.
    Runs,
    /// The container ended; why, unless it ended as it should.
    Ended(Option<String>),
    /// The container never ran and never will.
    Failed(String),
}

/// Joins what the server says in several fields.
fn joined(parts: [Option<&String>; 2]) -> Option<String> {
    let said: Vec<&str> = parts
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    (!said.is_empty()).then(|| said.join(": "))
}

fn standing(pod: &Pod) -> Standing {
    let Some(status) = &pod.status else {
        return Standing::Waiting(None);
    };
    let failed = status.phase.as_deref() == Some("Failed");
    let of_pod = joined([status.reason.as_ref(), status.message.as_ref()]);
    let state = status
        .container_statuses
        .as_ref()
        .and_then(|list| list.first())
        .and_then(|container| container.state.as_ref());
    if let Some(state) = state {
        if let Some(ended) = &state.terminated {
            // 0: nothing wrong; 1: a cause was named.
            let well = !failed || status.reason.is_none() && ended.exit_code == 1;
            let of_container = joined([ended.reason.as_ref(), ended.message.as_ref()]);
            let why = || {
                let words = of_pod.or(of_container).unwrap_or_default();
                format!("exit code {}; {words}", ended.exit_code)
            };
            return Standing::Ended((!well).then(why));
        }
        if state.running.is_some() {
            return Standing::Runs;
        }
    }
    if failed {
        return Standing::Failed(of_pod.unwrap_or_else(|| "the pod failed".into()));
    }
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let waits =
        waiting.and_then(|waiting| joined([waiting.reason.as_ref(), waiting.message.as_ref()]));
    let stuck = waiting
        .and_then(|waiting| waiting.reason.as_deref())
        .is_some_and(|reason| STUCK.contains(&reason));
    match waits {
        Some(why) if stuck => Standing::Stuck(why),
        waits => Standing::Waiting(waits.or_else(|| condition(status))),
    }
}

/// What an unmet condition of the pod says.
fn condition(status: &k8s_openapi::api::core::v1::PodStatus) -> Option<String> {
    status
        .conditions
        .iter()
        .flatten()
        .filter(|condition| condition.status == "False")
        .find_map(|condition| joined([condition.reason.as_ref(), condition.message.as_ref()]))
}

/// How far a log was read.
#[derive(Clone, Default, Debug)]
struct Read {
    /// Time of the last line.
    last: Option<Timestamp>,
    /// Lines of that time.
    of_last: usize,
}

/// Leaves out the lines of a log that were read before the connection was lost: the server goes on from
/// a whole second.
struct Skip {
    last: Option<Timestamp>,
    of_last: usize,
}

impl Read {
    fn resume(&self) -> Skip {
        Skip {
            last: self.last,
            of_last: self.of_last,
        }
    }

    /// A line without its time, if it is new.
    fn line<'a>(&mut self, skip: &mut Skip, line: &'a str) -> Option<&'a str> {
        let stamped = line
            .split_once(' ')
            .and_then(|(time, rest)| Some((time.parse::<Timestamp>().ok()?, rest)));
        let Some((time, rest)) = stamped else {
            // The kubelet itself says something.
            return Some(line);
        };
        if skip.last.is_some_and(|last| time < last) {
            return None;
        }
        if skip.last == Some(time) && skip.of_last > 0 {
            skip.of_last -= 1;
            return None;
        }
        if self.last == Some(time) {
            self.of_last += 1;
        } else {
            (self.last, self.of_last) = (Some(time), 1);
        }
        Some(rest)
    }

    fn parameters(&self, follow: bool) -> LogParams {
        LogParams {
            container: Some(manifest::CONTAINER.into()),
            follow,
            timestamps: true,
            since_time: self.last,
            ..LogParams::default()
        }
    }
}

impl Task {
    /// Everything of one node, to its end.
    pub(super) async fn work(mut self, owner: OwnerReference, number: usize) -> NodeEnd {
        if let Err(why) = self.create(&owner, number).await {
            return NodeEnd::NotStarted(why);
        }
        let begun = Instant::now();
        match tokio::time::timeout(self.plan.start, self.started()).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return NodeEnd::NotStarted(why),
            Err(_) => return NodeEnd::NotStarted(self.waited().await),
        }
        let rest = self.plan.life().saturating_sub(begun.elapsed());
        tokio::time::timeout(rest, self.follow())
            .await
            .unwrap_or_else(|_| NodeEnd::Broken("its log did not end in time".into()))
    }

    async fn create(&mut self, owner: &OwnerReference, number: usize) -> Result<(), String> {
        let pod = manifest::pod(&self.plan, owner, number, &self.node);
        let begun = Instant::now();
        loop {
            let parameters = PostParams::default();
            let made = tokio::select! {
                biased;
                () = asked(&mut self.stop) => return Err(STOPPED.into()),
                made = within(ADMISSION, self.pods.create(&parameters, &pod)) => made,
            };
            match made {
                Ok(_) => return Ok(()),
                // The answer to an earlier try was lost: the name is this run's own.
                Err(error) if taken(&error) => return Ok(()),
                // Others count against the namespace's quota at this moment (409).
                Err(error)
                    if (passing(&error) || conflict(&error)) && begun.elapsed() <= CREATION =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(kube::Error::Api(status)) if status.message.contains("serviceaccount") => {
                    return Err(format!(
                        "{}; create it with `tracer cluster rbac | kubectl apply -f -`, or go without names: --service-account ''",
                        status.message
                    ));
                }
                Err(error @ kube::Error::Api(_)) => return Err(words(&error)),
                Err(error) if begun.elapsed() > CREATION => return Err(words(&error)),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    fn asked_to_stop(&self) -> bool {
        *self.stop.borrow() != Stop::No
    }

    fn pod(&self) -> (u64, Option<Pod>) {
        let seen = self.seen.borrow();
        (seen.round, seen.pods.get(&self.name).cloned())
    }

    /// Waits until the container ran.
    async fn started(&mut self) -> Result<(), String> {
        let (first, _) = self.pod();
        loop {
            let (round, pod) = self.pod();
            match pod.as_ref().map(standing) {
                Some(Standing::Runs | Standing::Ended(_)) => return Ok(()),
                Some(Standing::Failed(why)) => return Err(why),
                Some(Standing::Stuck(why)) => return Err(self.with_events(why).await),
                // The list under way may be older than the pod.
                None if round > first + 1 => return Err("the pod was deleted".into()),
                None | Some(Standing::Waiting(_)) => {}
            }
            if self.asked_to_stop() {
                return Err(STOPPED.into());
            }
            tokio::select! {
                changed = self.seen.changed() => changed.map_err(|_| "the run ended".to_owned())?,
                _ = self.stop.changed() => {}
            }
        }
    }

    /// Why a pod did not start in time.
    async fn waited(&self) -> String {
        let waits = match self.pod().1.as_ref().map(standing) {
            Some(Standing::Waiting(Some(why))) => why,
            _ => "nothing is said of why".into(),
        };
        let seconds = self.plan.start.as_secs();
        self.with_events(format!("not started within {seconds} s: {waits}"))
            .await
    }

    /// Adds what the last warning about the pod says.
    async fn with_events(&self, why: String) -> String {
        let about = ListParams::default().fields(&format!("involvedObject.name={}", self.name));
        // Without the right to read events the words of the pod must do.
        let Ok(found) = in_time(self.events.list(&about)).await else {
            return why;
        };
        let warning = found
            .items
            .into_iter()
            .filter(|event| event.type_.as_deref() == Some("Warning"))
            .filter_map(|event| event.message)
            .rfind(|message| !why.contains(message.as_str()));
        match warning {
            Some(message) => format!("{why}; {message}"),
            None => why,
        }
    }

    /// Reads the log until the container ended and every line was read.
    async fn follow(&mut self) -> NodeEnd {
        let mut read = Read::default();
        let mut lost = false;
        loop {
            match self.read(&mut read, true, &mut lost).await {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    return NodeEnd::Broken(words(&kube::Error::Api(status)));
                }
                // The pod is gone, or its container is about to start: its object tells.
                Err(kube::Error::Api(_)) => {}
                Err(error) => self.lose(&mut lost, words(&error)).await,
            }
            match self.next_standing().await {
                Some(Standing::Ended(why)) => {
                    // What came between the last line and the end.
                    let rest = self.read(&mut read, false, &mut lost).await;
                    return match (rest, why) {
                        (_, Some(why)) => NodeEnd::Broken(why),
                        (Err(error), None) if !absent(&error) => {
                            NodeEnd::Broken(format!("its last lines: {}", words(&error)))
                        }
                        _ => NodeEnd::Finished,
                    };
                }
                None if self.asked_to_stop() => return NodeEnd::Finished,
                None => return NodeEnd::Broken("the pod was deleted".into()),
                Some(Standing::Failed(why) | Standing::Stuck(why)) => return NodeEnd::Broken(why),
                Some(Standing::Runs | Standing::Waiting(_)) => {}
            }
        }
    }

    async fn lose(&self, lost: &mut bool, why: String) {
        if !std::mem::replace(lost, true) {
            self.say(News::Interrupted {
                node: Arc::clone(&self.node),
                why,
            })
            .await;
        }
    }

    /// What the next list says of the pod; `None` when it has it no more.
    async fn next_standing(&mut self) -> Option<Standing> {
        let (before, _) = self.pod();
        loop {
            let (round, pod) = self.pod();
            if round > before {
                return pod.as_ref().map(standing);
            }
            if self.seen.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Hands on the new lines of the log until it ends.
    async fn read(&self, read: &mut Read, follow: bool, lost: &mut bool) -> kube::Result<()> {
        let parameters = read.parameters(follow);
        let mut lines = self.pods.log_stream(&self.name, &parameters).await?.lines();
        if std::mem::take(lost) {
            self.say(News::Resumed {
                node: Arc::clone(&self.node),
            })
            .await;
        }
        let mut skip = read.resume();
        while let Some(line) = lines.next().await {
            let line = match line {
                Ok(line) => line,
                Err(error) => {
                    self.lose(lost, error.to_string()).await;
                    return Ok(());
                }
            };
            if let Some(line) = read.line(&mut skip, &line) {
                self.say(News::Line {
                    node: Arc::clone(&self.node),
                    line: line.to_owned(),
                })
                .await;
            }
        }
        Ok(())
    }

    async fn say(&self, news: News) {
        // Nobody listens any more when printing failed; the end comes from there.
        let _ = self.news.send(news).await;
    }
}

fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(status: Value) -> Standing {
        let pod = serde_json::from_value(json!({"metadata": {"name": "x"}, "status": status}));
        standing(&pod.expect("a pod"))
    }

    fn container(phase: &str, state: Value) -> Standing {
        of(json!({"phase": phase, "containerStatuses": [{
            "name": "tracer", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": state}]}))
    }

    #[test]
    fn a_pod_that_waits_is_told_from_one_that_is_stuck() {
        assert_eq!(of(json!({"phase": "Pending"})), Standing::Waiting(None));
        let pulling = json!({"waiting": {"reason": "ErrImagePull", "message": "no such host"}});
        assert_eq!(
            container("Pending", pulling),
            Standing::Waiting(Some("ErrImagePull: no such host".into()))
        );
        let stuck = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}});
        assert_eq!(
            container("Pending", stuck),
            Standing::Stuck("ImagePullBackOff: Back-off".into())
        );
        assert_eq!(
            of(json!({"phase": "Failed", "reason": "OutOfmemory", "message": "too little"})),
            Standing::Failed("OutOfmemory: too little".into())
        );
    }

    #[test]
    fn a_named_cause_is_a_good_end_and_a_failure_is_not() {
        let ended = |code: i32| json!({"terminated": {"exitCode": code, "reason": "Error"}});
        assert_eq!(container("Succeeded", ended(0)), Standing::Ended(None));
        assert_eq!(container("Failed", ended(1)), Standing::Ended(None));
        assert_eq!(
            container("Failed", ended(3)),
            Standing::Ended(Some("exit code 3; Error".into()))
        );
    }

    #[test]
    fn no_line_comes_twice_and_none_is_left_out() {
        let mut read = Read::default();
        let mut all = Vec::new();
        let log = [
            "2026-01-01T00:00:00.1Z a",
            "2026-01-01T00:00:00.25Z b",
            "2026-01-01T00:00:00.25Z b",
            "2026-01-01T00:00:00.25Z c",
            "2026-01-01T00:00:01Z d",
        ];
        // The connection is lost after three lines; the server goes on from the whole second.
        for lines in [&log[..3], &log[..]] {
            let mut skip = read.resume();
            all.extend(lines.iter().filter_map(|line| read.line(&mut skip, line)));
        }
        assert_eq!(all, ["a", "b", "b", "c", "d"]);
        let mut skip = read.resume();
        assert_eq!(
            read.line(&mut skip, "no time at all"),
            Some("no time at all")
        );
    }
}
