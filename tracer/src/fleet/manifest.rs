//! The objects that a run creates, and what every pod of the tracer needs of its node.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, EnvVar, EnvVarSource, HostPathVolumeSource,
    ObjectFieldSelector, Pod, PodSpec, PodTemplateSpec, ResourceRequirements, SELinuxOptions,
    SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Plan;
use super::plan::MARGIN;

/// Label that says which run an object belongs to: the name of its Job.
pub(super) const RUN: &str = "tracer/run";
/// Label that tells the pods of a run from those of the DaemonSet.
const COMPONENT: &str = "app.kubernetes.io/component";
/// First minor version of Kubernetes that has AppArmor's profile as a field.
pub(super) const APPARMOR_FIELD: u16 = 30;
/// A profile that confines nothing.
const UNCONFINED: &str = "Unconfined";
/// Name of the only container.
pub(super) const CONTAINER: &str = "tracer";
/// The Job goes this long after its time is over, seconds.
const REMOVED_AFTER: i32 = 60;
/// Where `ip netns` keeps its names; the rest of what is read is under /proc and /sys.
const NETNS_NAMES: &str = "/run/netns";

/// Amounts of a node's resources, by name.
pub(super) type Amounts = [(&'static str, &'static str); 2];
/// What a run sets aside: nothing, so that a node that is full can be traced as well. Not written, it would
/// be as much as its limits.
const RUN_REQUESTS: Amounts = [("cpu", "0"), ("memory", "0")];
/// What a run takes at most. Its queues are bounded by 160 MiB; flows and the cluster's facts come on top.
const RUN_LIMITS: Amounts = [("cpu", "2"), ("memory", "1Gi")];

/// What the tracer may do, instead of `privileged`: load programs and enter other network namespaces
/// (SYS_ADMIN, which holds BPF and PERFMON too; runtimes older than those names refuse them), ask netlink,
/// look into other processes and their files in /proc, read kernel addresses, lock memory (before 5.11).
const CAPABILITIES: [&str; 6] = [
    "SYS_ADMIN",
    "NET_ADMIN",
    "SYS_PTRACE",
    "DAC_READ_SEARCH",
    "SYSLOG",
    "SYS_RESOURCE",
];

/// Labels of everything that the tracer creates.
pub(super) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            ("app.kubernetes.io/name", "tracer"),
            ("app.kubernetes.io/managed-by", "tracer"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    )
}

/// Labels of the DaemonSet and its pods. Its controller adopts every pod that its selector fits and no
/// controller owns, and ends all but one on each node: no pod of a run may have all of these.
pub(super) fn node_labels() -> BTreeMap<String, String> {
    let mut labels = labels();
    labels.insert(COMPONENT.into(), "node".into());
    labels
}

/// Labels of a run's pods.
fn run_labels(run: &str) -> BTreeMap<String, String> {
    let mut labels = labels();
    labels.insert(COMPONENT.into(), "run".into());
    labels.insert(RUN.into(), run.into());
    labels
}

/// What owns the pods of a run. It has no pods of its own, fails when the time is over, and is then
/// removed with everything that it owns; by the server, whoever else is still there. Servers before 1.21
/// do so only when told to: there it stays until the next run.
pub(super) fn owner(plan: &Plan, run: &str) -> Job {
    let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Job {
        metadata: ObjectMeta {
            name: Some(run.into()),
            namespace: Some(plan.namespace.clone()),
            labels: Some(labels()),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(0),
            active_deadline_seconds: Some(seconds(plan.life() + MARGIN)),
            ttl_seconds_after_finished: Some(REMOVED_AFTER),
            template: PodTemplateSpec {
                metadata: None,
                spec: Some(PodSpec {
                    containers: vec![Container {
                        name: CONTAINER.into(),
                        image: Some(plan.image.clone()),
                        ..Container::default()
                    }],
                    restart_policy: Some("Never".into()),
                    automount_service_account_token: Some(false),
                    ..PodSpec::default()
                }),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// The pod that traces one node.
pub(super) fn pod(plan: &Plan, owner: &OwnerReference, number: usize, node: &str) -> Pod {
    let mut words = vec!["run".to_owned(), "--format=json".into()];
    words.push(format!("--for={}ms", plan.limit.as_millis()));
    if plan.service_account.is_none() {
        words.push("--no-kube".into());
    }
    words.extend(plan.arguments.iter().cloned());
    let account = plan.service_account.as_deref();
    let amounts = resources(RUN_REQUESTS, RUN_LIMITS);
    let mut spec = tracing(&plan.image, words, account, amounts);
    // Not through the scheduler: a node that takes no new pods can be traced as well.
    spec.node_name = Some(node.into());
    spec.restart_policy = Some("Never".into());
    spec.active_deadline_seconds = i64::try_from(plan.life().as_secs()).ok();
    // Whatever the server's version is.
    set_apparmor_field(&mut spec);
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{}-{number}", owner.name)),
            namespace: Some(plan.namespace.clone()),
            labels: Some(run_labels(&owner.name)),
            annotations: Some(apparmor_annotation()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// AppArmor's default profile hides other processes. Servers before 1.36 heed this annotation, and those
/// before 1.30 nothing else.
pub(super) fn apparmor_annotation() -> BTreeMap<String, String> {
    BTreeMap::from([(
        format!("container.apparmor.security.beta.kubernetes.io/{CONTAINER}"),
        "unconfined".into(),
    )])
}

/// The same as a field. Servers without it leave it out; kubectl refuses it for them.
pub(super) fn set_apparmor_field(spec: &mut PodSpec) {
    let contexts = spec.containers.iter_mut();
    for context in contexts.filter_map(|container| container.security_context.as_mut()) {
        context.app_armor_profile = Some(AppArmorProfile {
            type_: UNCONFINED.into(),
            ..AppArmorProfile::default()
        });
    }
}

/// What a container sets aside, and takes at most.
pub(super) fn resources(requests: Amounts, limits: Amounts) -> ResourceRequirements {
    let amounts = |amounts: Amounts| {
        let named = amounts.map(|(what, much)| (what.to_owned(), Quantity(much.into())));
        Some(BTreeMap::from(named))
    };
    ResourceRequirements {
        requests: amounts(requests),
        limits: amounts(limits),
        ..ResourceRequirements::default()
    }
}

/// A pod that can trace the node that it is on.
pub(super) fn tracing(
    image: &str,
    words: Vec<String>,
    account: Option<&str>,
    amounts: ResourceRequirements,
) -> PodSpec {
    PodSpec {
        containers: vec![Container {
            name: CONTAINER.into(),
            image: Some(image.into()),
            command: Some(vec!["tracer".into()]),
            args: Some(words),
            resources: Some(amounts),
            env: Some(vec![EnvVar {
                name: "NODE_NAME".into(),
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        field_path: "spec.nodeName".into(),
                        ..ObjectFieldSelector::default()
                    }),
                    ..EnvVarSource::default()
                }),
                ..EnvVar::default()
            }]),
            security_context: Some(SecurityContext {
                run_as_user: Some(0),
                privileged: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".into()]),
                    add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
                }),
                seccomp_profile: Some(SeccompProfile {
                    type_: UNCONFINED.into(),
                    ..SeccompProfile::default()
                }),
                // Heeded on nodes with SELinux only.
                se_linux_options: Some(SELinuxOptions {
                    type_: Some("spc_t".into()),
                    ..SELinuxOptions::default()
                }),
                ..SecurityContext::default()
            }),
            volume_mounts: Some(vec![VolumeMount {
                name: "netns".into(),
                mount_path: NETNS_NAMES.into(),
                read_only: Some(true),
                mount_propagation: Some("HostToContainer".into()),
                ..VolumeMount::default()
            }]),
            ..Container::default()
        }],
        volumes: Some(vec![Volume {
            name: "netns".into(),
            host_path: Some(HostPathVolumeSource {
                path: NETNS_NAMES.into(),
                type_: Some("DirectoryOrCreate".into()),
            }),
            ..Volume::default()
        }]),
        host_network: Some(true),
        host_pid: Some(true),
        // Its own service account only; no cluster DNS is needed, and it may be what is broken.
        dns_policy: Some("Default".into()),
        enable_service_links: Some(false),
        service_account_name: account.map(str::to_owned),
        automount_service_account_token: Some(account.is_some()),
        termination_grace_period_seconds: Some(10),
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        }]),
        ..PodSpec::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::fleet::{Choice, Installation};

    fn plan() -> Plan {
        Plan {
            namespace: "kube-system".into(),
            image: "registry.example/tracer:1".into(),
            service_account: None,
            nodes: Choice::All,
            arguments: vec!["host 192.0.2.1".into()],
            limit: Duration::from_secs(60),
            start: Duration::from_secs(90),
        }
    }

    #[test]
    fn the_daemon_set_adopts_no_pod_of_a_run() {
        let installed = crate::fleet::manifest(&Installation {
            namespace: "kube-system".into(),
            image: "registry.example/tracer:1".into(),
            port: 9464,
            captures: None,
            minor: 20,
        });
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&installed.expect("a manifest")).expect("YAML");
        let set = documents.iter().find(|found| found["kind"] == "DaemonSet");
        let spec = &set.expect("a DaemonSet")["spec"];
        let selector = spec["selector"]["matchLabels"].as_object().expect("labels");
        let fits = |labels: &Value| selector.iter().all(|(key, value)| labels[key] == *value);
        assert!(fits(&spec["template"]["metadata"]["labels"]));
        let pod = pod(&plan(), &OwnerReference::default(), 0, "node-a");
        assert!(!fits(&json!(pod.metadata.labels)));
        // Whoever removes runs finds both.
        let of_all = |found: &BTreeMap<String, String>| {
            let all = labels();
            all.iter().all(|(key, value)| found.get(key) == Some(value))
        };
        assert!(pod.metadata.labels.is_some_and(|found| of_all(&found)));
        assert!(
            owner(&plan(), "tracer-run-x")
                .metadata
                .labels
                .is_some_and(|found| of_all(&found))
        );
    }

    /// Exactly what a pod needs to trace its node: other processes and namespaces, capabilities in the place
    /// of `privileged`, no file system to write to, every taint tolerated.
    pub(in crate::fleet) fn needed(words: &Value, amounts: &Value) -> Value {
        json!({
            "hostPID": true,
            "hostNetwork": true,
            "dnsPolicy": "Default",
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 10,
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": true,
            "serviceAccountName": "tracer",
            "containers": [{
                "name": "tracer",
                "image": "registry.example/tracer:1",
                "command": ["tracer"],
                "args": words,
                "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                "resources": amounts,
                "securityContext": {
                    "privileged": false,
                    "runAsUser": 0,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {
                        "drop": ["ALL"],
                        "add": [
                            "SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYSLOG", "SYS_RESOURCE",
                        ],
                    },
                    "seccompProfile": {"type": "Unconfined"},
                    "seLinuxOptions": {"type": "spc_t"},
                    "appArmorProfile": {"type": "Unconfined"},
                },
                "volumeMounts": [{
                    "name": "netns",
                    "mountPath": "/run/netns",
                    "readOnly": true,
                    "mountPropagation": "HostToContainer",
                }],
            }],
            "volumes": [
                {"name": "netns", "hostPath": {"path": "/run/netns", "type": "DirectoryOrCreate"}},
            ],
        })
    }

    #[test]
    fn a_pod_of_a_run_has_what_it_needs_and_no_more() {
        let reference = OwnerReference {
            api_version: "batch/v1".into(),
            kind: "Job".into(),
            name: "tracer-run-x".into(),
            uid: "1".into(),
            ..OwnerReference::default()
        };
        let amounts = json!({
            // A node that is full is traced as well, and not brought down.
            "requests": {"cpu": "0", "memory": "0"},
            "limits": {"cpu": "2", "memory": "1Gi"},
        });
        let alone = json!([
            "run",
            "--format=json",
            "--for=60000ms",
            "--no-kube",
            "host 192.0.2.1"
        ]);
        let named = json!(["run", "--format=json", "--for=60000ms", "host 192.0.2.1"]);
        for account in [None, Some("tracer")] {
            let plan = Plan {
                service_account: account.map(str::to_owned),
                ..plan()
            };
            let mut wanted = needed(account.map_or(&alone, |_| &named), &amounts);
            wanted["nodeName"] = json!("node-a");
            wanted["restartPolicy"] = json!("Never");
            wanted["activeDeadlineSeconds"] = json!(60 + 90 + 30);
            if account.is_none() {
                wanted["automountServiceAccountToken"] = json!(false);
                let fields = wanted.as_object_mut().expect("an object");
                fields.remove("serviceAccountName");
            }
            let pod = json!(pod(&plan, &reference, 0, "node-a"));
            assert_eq!(pod["spec"], wanted);
            assert_eq!(
                pod["metadata"]["ownerReferences"],
                json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "tracer-run-x", "uid": "1"}])
            );
        }
        // What owns them starts nothing, and could do nothing.
        let job = json!(owner(&plan(), "tracer-run-x"));
        let template = json!({"spec": {
            "containers": [{"name": "tracer", "image": "registry.example/tracer:1"}],
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
        }});
        assert_eq!(
            (&job["spec"]["parallelism"], &job["spec"]["template"]),
            (&json!(0), &template)
        );
    }

    #[test]
    fn everything_ends_by_itself_in_order() {
        let plan = plan();
        let job = owner(&plan, "tracer-run-x").spec.expect("a spec");
        let reference = OwnerReference {
            name: "tracer-run-x".into(),
            ..OwnerReference::default()
        };
        let pod = pod(&plan, &reference, 3, "node-a");
        let spec = pod.spec.expect("a spec");
        let life = spec.active_deadline_seconds.expect("a deadline");
        assert!(life >= 60 + 90 && job.active_deadline_seconds > Some(life));
        assert_eq!(job.parallelism, Some(0));
        assert!(job.ttl_seconds_after_finished.is_some());
        assert_eq!(pod.metadata.owner_references, Some(vec![reference]));
        assert_eq!(pod.metadata.name.as_deref(), Some("tracer-run-x-3"));
        let words = spec.containers[0].args.clone().expect("arguments");
        let expected = [
            "run",
            "--format=json",
            "--for=60000ms",
            "--no-kube",
            "host 192.0.2.1",
        ];
        assert_eq!(words, expected);
        assert_eq!(spec.automount_service_account_token, Some(false));
    }
}
