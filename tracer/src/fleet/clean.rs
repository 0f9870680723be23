//! Removes what earlier runs left: after a crash of this program or of its machine.

use std::fmt::Debug;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::run::{BEGINNING, connect, in_time, within};
use super::{FleetError, manifest};
use crate::kube::Place;
use crate::kube::connect::words;

/// How far the clocks of this machine and of the server may be apart, seconds.
const CLOCKS_APART: i64 = 600;

/// One object of an earlier run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// `job` or `pod`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why it is still there.
    pub failed: Option<String>,
}

/// Removes the Jobs and pods of every run in a namespace, runs under way included.
///
/// # Errors
/// When they cannot be listed.
pub async fn clean(place: &Place, namespace: &str) -> Result<Vec<Removed>, FleetError> {
    let client = connect(place).await?;
    let jobs = Api::<Job>::namespaced(client.clone(), namespace);
    let pods = Api::<Pod>::namespaced(client, namespace);
    let refused = |what| {
        move |error: kube::Error| FleetError::Refused {
            what,
            why: words(&error),
        }
    };
    let found = within(BEGINNING, jobs.list(&own(None)))
        .await
        .map_err(refused("the jobs cannot be listed"))?;
    let mut removed = remove(&jobs, "job", found.items).await;
    // Pods of the DaemonSet carry no run.
    let found = within(BEGINNING, pods.list(&own(Some(manifest::RUN))))
        .await
        .map_err(refused("the pods cannot be listed"))?;
    removed.extend(remove(&pods, "pod", found.items).await);
    Ok(removed)
}

/// Removes the runs that are over and still there: servers before 1.21 leave that to others. What cannot
/// be removed now is found again by the next run.
pub(super) async fn remove_ended(jobs: &Api<Job>, pods: &Api<Pod>) {
    let Ok(found) = in_time(jobs.list(&own(None))).await else {
        return;
    };
    let now = Timestamp::now();
    for job in found.items {
        if !is_over(&job, now) {
            continue;
        }
        let of_run = format!("{}={}", manifest::RUN, job.name_any());
        // First: without its Job nobody would find them.
        let Ok(found) = in_time(pods.list(&own(Some(&of_run)))).await else {
            return;
        };
        remove(pods, "pod", found.items).await;
        remove(jobs, "job", vec![job]).await;
    }
}

/// A run that ended, or whose time is over.
fn is_over(job: &Job, now: Timestamp) -> bool {
    let status = job.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    if conditions.any(|found| {
        found.status == "True" && matches!(found.type_.as_str(), "Complete" | "Failed")
    }) {
        return true;
    }
    let spec = job.spec.as_ref();
    let life = spec.and_then(|spec| spec.active_deadline_seconds);
    let made = job.metadata.creation_timestamp.as_ref();
    made.zip(life).is_some_and(|(made, life)| {
        let age = now.as_second().saturating_sub(made.0.as_second());
        age > life.saturating_add(CLOCKS_APART)
    })
}

/// What the tracer created, with one label more.
fn own(label: Option<&str>) -> ListParams {
    let own = manifest::labels();
    let all: Vec<_> = own
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .chain(label.map(str::to_owned))
        .collect();
    ListParams::default().labels(&all.join(","))
}

async fn remove<K>(api: &Api<K>, kind: &'static str, objects: Vec<K>) -> Vec<Removed>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned,
{
    let parameters = DeleteParams::background();
    let mut removed = Vec::with_capacity(objects.len());
    for name in objects.iter().map(kube::ResourceExt::name_any) {
        let deleted = in_time(api.delete(&name, &parameters)).await;
        removed.push(Removed {
            kind,
            name,
            failed: deleted.err().map(|error| words(&error)),
        });
    }
    removed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(made: &str, status: Value) -> Job {
        serde_json::from_value(json!({
            "metadata": {"name": "tracer-run-x", "creationTimestamp": made},
            "spec": {"activeDeadlineSeconds": 200, "template": {}},
            "status": status,
        }))
        .expect("a job")
    }

    #[test]
    fn a_run_is_over_when_its_job_ended_or_is_past_its_time() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let ended = |kind: &str, status: &str| {
            let condition = json!({"type": kind, "status": status});
            is_over(
                &job("2026-01-01T11:59:00Z", json!({"conditions": [condition]})),
                now,
            )
        };
        assert!(ended("Failed", "True") && ended("Complete", "True"));
        assert!(!ended("Failed", "False") && !ended("Suspended", "True"));
        assert!(is_over(&job("2026-01-01T11:00:00Z", json!({})), now));
        // Its clock may be behind ours, and its controller late.
        assert!(!is_over(&job("2026-01-01T11:55:00Z", json!({})), now));
        assert!(!is_over(&job("2026-01-01T12:05:00Z", json!({})), now));
    }
}
