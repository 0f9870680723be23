//! Removes what earlier runs left: after a crash of this program or of its machine.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use super::run::connect;
use super::{FleetError, manifest};
use crate::kube::Place;
use crate::kube::connect::words;

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
    let own: Vec<_> = manifest::labels()
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let of_run = ListParams::default().labels(&own.join(","));
    let found = jobs
        .list(&of_run)
        .await
        .map_err(refused("the jobs cannot be listed"))?;
    let mut removed = Vec::new();
    for name in found.items.into_iter().filter_map(|job| job.metadata.name) {
        let deleted = jobs.delete(&name, &DeleteParams::background()).await;
        removed.push(Removed {
            kind: "job",
            name,
            failed: deleted.err().map(|error| words(&error)),
        });
    }
    // Pods of the DaemonSet carry no run.
    let of_run = ListParams::default().labels(&format!("{},{}", own.join(","), manifest::RUN));
    let found = pods
        .list(&of_run)
        .await
        .map_err(refused("the pods cannot be listed"))?;
    for name in found.items.into_iter().filter_map(|pod| pod.metadata.name) {
        let deleted = pods.delete(&name, &DeleteParams::default()).await;
        removed.push(Removed {
            kind: "pod",
            name,
            failed: deleted.err().map(|error| words(&error)),
        });
    }
    Ok(removed)
}
