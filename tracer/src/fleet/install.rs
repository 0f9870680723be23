//! The manifest for always-on use: a DaemonSet that serves counts, and what it needs.

use std::collections::BTreeMap;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::{
    DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet,
};
use k8s_openapi::api::core::v1::{
    ContainerPort, HTTPGetAction, HostPathVolumeSource, Namespace,
    PersistentVolumeClaimVolumeSource, PodSpec, PodTemplateSpec, Probe, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};

use super::manifest::{
    APPARMOR_FIELD, Amounts, apparmor_annotation, node_labels, resources, set_apparmor_field,
    tracing,
};
use super::plan::SYSTEM;
use crate::kube::RBAC;

/// Where the least rights are written for.
const USUAL_NAMESPACE: &str = "kube-system";
/// Name of the volume for captures, and where the container has it.
const CAPTURES: &str = "captures";
const CAPTURES_AT: &str = "/captures";
/// What a node gives the tracer. Its stores are bounded; the limit is several times what was measured.
const REQUESTS: Amounts = [("cpu", "50m"), ("memory", "128Mi")];
/// The second with captures: the last while before a diagnosis is kept in memory, up to 256 MiB.
const LIMITS: [Amounts; 2] = [
    [("cpu", "1"), ("memory", "512Mi")],
    [("cpu", "1"), ("memory", "768Mi")],
];

/// What is installed.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Namespace of everything but kube-proxy's Role.
    pub namespace: String,
    /// Image that holds `tracer` on its PATH.
    pub image: String,
    /// Port of every node that serves the counts.
    pub port: u16,
    /// Where captures around diagnoses are kept; `None` keeps none.
    pub captures: Option<Captures>,
    /// Minor version of the oldest Kubernetes 1 that it is for.
    pub minor: u16,
}

/// Captures that every node keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captures {
    /// The volume.
    pub volume: CaptureVolume,
    /// Most of one node's captures, as `serve --capture-limit` takes it.
    pub limit: String,
}

/// Where captures are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CaptureVolume {
    /// A folder of each node.
    HostPath(String),
    /// A PersistentVolumeClaim that all nodes write to.
    Claim(String),
}

/// The manifest as YAML documents.
///
/// # Errors
/// When a document cannot be written; that would be a fault of this program.
pub fn manifest(installation: &Installation) -> anyhow::Result<String> {
    let mut documents = Vec::new();
    if installation.namespace != USUAL_NAMESPACE {
        documents.push(yaml(&namespace(&installation.namespace))?);
    }
    let rights: Vec<Value> = serde_saphyr::from_multiple(RBAC).context("the rights are no YAML")?;
    for mut document in rights {
        move_account(&mut document, &installation.namespace);
        documents.push(yaml(&document)?);
    }
    documents.push(yaml(&daemon_set(installation))?);
    Ok(documents.join("---\n"))
}

fn yaml(object: &impl Serialize) -> anyhow::Result<String> {
    let mut text =
        serde_saphyr::to_string(object).context("an object cannot be written as YAML")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Its pods are root on their node, which a namespace has to allow.
fn namespace(name: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([(
                "pod-security.kubernetes.io/enforce".into(),
                "privileged".into(),
            )])),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

/// Puts the service account, and whom rights are given to, into a namespace.
fn move_account(document: &mut Value, namespace: &str) {
    if document["kind"] == "ServiceAccount" {
        document["metadata"]["namespace"] = json!(namespace);
    }
    // Looking by index would put a `null` where there are none.
    let subjects = document.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        subject["namespace"] = json!(namespace);
    }
}

fn daemon_set(installation: &Installation) -> DaemonSet {
    let port = i32::from(installation.port);
    let mut words = vec![
        "serve".to_owned(),
        // Both families: probes come to the pod's address, whichever it has.
        format!("--listen=[::]:{}", installation.port),
    ];
    if let Some(captures) = &installation.captures {
        words.push(format!("--capture={CAPTURES_AT}"));
        words.push(format!("--capture-limit={}", captures.limit));
    }
    let most = LIMITS[usize::from(installation.captures.is_some())];
    let amounts = resources(REQUESTS, most);
    let mut spec = tracing(&installation.image, words, Some("tracer"), amounts);
    // It would only fail on others, again and again.
    spec.node_selector = Some(BTreeMap::from([(SYSTEM.into(), "linux".into())]));
    spec.priority_class_name =
        (installation.namespace == USUAL_NAMESPACE).then(|| "system-node-critical".into());
    if let Some(container) = spec.containers.first_mut() {
        container.ports = Some(vec![ContainerPort {
            name: Some("metrics".into()),
            container_port: port,
            ..ContainerPort::default()
        }]);
        container.liveness_probe = Some(probe("/livez", port, 30));
        container.readiness_probe = Some(probe("/healthz", port, 5));
    }
    if let Some(captures) = &installation.captures {
        mount(&mut spec, &captures.volume);
    }
    let mut annotations = if installation.minor < APPARMOR_FIELD {
        apparmor_annotation()
    } else {
        set_apparmor_field(&mut spec);
        BTreeMap::new()
    };
    for (key, value) in [
        ("scrape", "true".to_owned()),
        ("port", port.to_string()),
        ("path", "/metrics".to_owned()),
    ] {
        annotations.insert(format!("prometheus.io/{key}"), value);
    }
    let selector = node_labels();
    DaemonSet {
        metadata: ObjectMeta {
            name: Some("tracer".into()),
            namespace: Some(installation.namespace.clone()),
            labels: Some(selector.clone()),
            ..ObjectMeta::default()
        },
        spec: DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(selector.clone()),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(selector),
                    annotations: Some(annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::String("10%".into())),
                    ..RollingUpdateDaemonSet::default()
                }),
            }),
            ..DaemonSetSpec::default()
        },
        ..DaemonSet::default()
    }
}

/// Gives the container the volume for its captures, the only place that it may write to.
fn mount(spec: &mut PodSpec, volume: &CaptureVolume) {
    let mut made = Volume {
        name: CAPTURES.into(),
        ..Volume::default()
    };
    match volume {
        CaptureVolume::HostPath(path) => {
            made.host_path = Some(HostPathVolumeSource {
                path: path.clone(),
                type_: Some("DirectoryOrCreate".into()),
            });
        }
        CaptureVolume::Claim(name) => {
            made.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: name.clone(),
                ..PersistentVolumeClaimVolumeSource::default()
            });
        }
    }
    spec.volumes.get_or_insert_default().push(made);
    if let Some(container) = spec.containers.first_mut() {
        container
            .volume_mounts
            .get_or_insert_default()
            .push(VolumeMount {
                name: CAPTURES.into(),
                mount_path: CAPTURES_AT.into(),
                ..VolumeMount::default()
            });
    }
}

/// Attaching takes seconds on a busy node; three failures in a row count.
fn probe(path: &str, port: i32, delay: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(port),
            ..HTTPGetAction::default()
        }),
        initial_delay_seconds: Some(delay),
        period_seconds: Some(20),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::manifest::tests::needed;
    use super::*;

    /// Every field that is written, as Kubernetes 1.20 has it (release-1.20 of k8s.io/api: apps/v1, core/v1,
    /// rbac/v1). kubectl refuses what the server does not have, whatever its value.
    const FIELDS: &[&str] = &[
        "Namespace apiVersion kind metadata",
        "ServiceAccount apiVersion kind metadata",
        "ClusterRole apiVersion kind metadata rules",
        "Role apiVersion kind metadata rules",
        "rules apiGroups resourceNames resources verbs",
        "ClusterRoleBinding apiVersion kind metadata roleRef subjects",
        "RoleBinding apiVersion kind metadata roleRef subjects",
        "roleRef apiGroup kind name",
        "subjects kind name namespace",
        "DaemonSet apiVersion kind metadata spec",
        "metadata annotations labels name namespace",
        "spec selector template updateStrategy",
        "selector matchLabels",
        "updateStrategy rollingUpdate type",
        "rollingUpdate maxUnavailable",
        "template metadata spec",
        "spec automountServiceAccountToken containers dnsPolicy enableServiceLinks hostNetwork hostPID",
        "spec nodeSelector priorityClassName serviceAccountName terminationGracePeriodSeconds tolerations volumes",
        "containers args command env image livenessProbe name ports readinessProbe resources",
        "containers securityContext volumeMounts",
        "env name valueFrom",
        "valueFrom fieldRef",
        "fieldRef fieldPath",
        "livenessProbe httpGet initialDelaySeconds periodSeconds timeoutSeconds",
        "readinessProbe httpGet initialDelaySeconds periodSeconds timeoutSeconds",
        "httpGet path port",
        "ports containerPort name",
        "resources limits requests",
        "securityContext capabilities privileged readOnlyRootFilesystem runAsUser seLinuxOptions",
        "securityContext seccompProfile",
        "capabilities add drop",
        "seLinuxOptions type",
        "seccompProfile type",
        "volumeMounts mountPath mountPropagation name readOnly",
        "tolerations operator",
        "volumes hostPath name persistentVolumeClaim",
        "hostPath path type",
        "persistentVolumeClaim claimName",
    ];

    fn installation(volume: CaptureVolume, minor: u16) -> Installation {
        Installation {
            namespace: USUAL_NAMESPACE.into(),
            image: "registry.example/tracer:1".into(),
            port: 9464,
            captures: Some(Captures {
                volume,
                limit: "1G".into(),
            }),
            minor,
        }
    }

    fn written(installation: &Installation) -> Value {
        json!(daemon_set(installation))
    }

    /// Notes which fields are in which, but for maps of names.
    fn fields(of: &str, value: &Value, found: &mut BTreeSet<(String, String)>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| fields(of, item, found)),
            Value::Object(object) => {
                for (name, value) in object {
                    found.insert((of.to_owned(), name.clone()));
                    let names = [
                        "annotations",
                        "labels",
                        "matchLabels",
                        "nodeSelector",
                        "limits",
                        "requests",
                    ];
                    if !names.contains(&name.as_str()) {
                        fields(name, value, found);
                    }
                }
            }
            _ => {}
        }
    }

    #[test]
    fn kubernetes_1_20_has_every_field() {
        let known: BTreeSet<(String, String)> = FIELDS
            .iter()
            .flat_map(|line| {
                let (of, names) = line.split_once(' ').unwrap_or_default();
                let names = names.split(' ');
                names.map(|name| (of.to_owned(), name.to_owned()))
            })
            .collect();
        let mut found = BTreeSet::new();
        for (namespace, volume) in [
            (
                USUAL_NAMESPACE,
                CaptureVolume::HostPath("/var/tracer".into()),
            ),
            ("tracing", CaptureVolume::Claim("captures".into())),
        ] {
            let installed = Installation {
                namespace: namespace.into(),
                ..installation(volume, 20)
            };
            let text = manifest(&installed).expect("a manifest");
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
            for document in documents {
                let kind = document["kind"].as_str().expect("a kind");
                fields(kind, &document, &mut found);
            }
        }
        assert_eq!(found, known);
    }

    #[test]
    fn the_pods_of_the_daemon_set_have_what_they_need_and_no_more() {
        let captures = |volume: CaptureVolume| Installation {
            minor: APPARMOR_FIELD,
            ..installation(volume, 20)
        };
        let without = Installation {
            captures: None,
            namespace: "tracing".into(),
            ..captures(CaptureVolume::Claim(String::new()))
        };
        let probe = |path: &str, delay: u32| {
            json!({"httpGet": {"path": path, "port": 9464}, "initialDelaySeconds": delay,
                "periodSeconds": 20, "timeoutSeconds": 5})
        };
        let amounts = |memory: &str| json!({"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": memory}});
        for (installed, volume) in [
            (&without, None),
            (
                &captures(CaptureVolume::HostPath("/var/tracer".into())),
                Some(
                    json!({"name": "captures", "hostPath": {"path": "/var/tracer", "type": "DirectoryOrCreate"}}),
                ),
            ),
            (
                &captures(CaptureVolume::Claim("kept".into())),
                Some(json!({"name": "captures", "persistentVolumeClaim": {"claimName": "kept"}})),
            ),
        ] {
            let mut words = vec!["serve", "--listen=[::]:9464"];
            let mut memory = "512Mi";
            if volume.is_some() {
                words.extend(["--capture=/captures", "--capture-limit=1G"]);
                memory = "768Mi";
            }
            let mut wanted = needed(&json!(words), &amounts(memory));
            wanted["nodeSelector"] = json!({"kubernetes.io/os": "linux"});
            if installed.namespace == USUAL_NAMESPACE {
                wanted["priorityClassName"] = json!("system-node-critical");
            }
            let container = &mut wanted["containers"][0];
            container["ports"] = json!([{"name": "metrics", "containerPort": 9464}]);
            container["livenessProbe"] = probe("/livez", 30);
            container["readinessProbe"] = probe("/healthz", 5);
            // The only place that it writes to.
            if let Some(volume) = volume {
                let mounts = container["volumeMounts"].as_array_mut().expect("mounts");
                mounts.push(json!({"name": "captures", "mountPath": "/captures"}));
                let volumes = wanted["volumes"].as_array_mut().expect("volumes");
                volumes.push(volume);
            }
            let set = written(installed);
            assert_eq!(set["spec"]["template"]["spec"], wanted);
        }
    }

    #[test]
    fn apparmor_is_told_in_the_way_that_the_servers_version_heeds() {
        for (minor, by_field) in [(20, false), (29, false), (30, true), (36, true)] {
            let volume = CaptureVolume::HostPath("/var/tracer".into());
            let set = written(&installation(volume, minor));
            let template = &set["spec"]["template"];
            let context = &template["spec"]["containers"][0]["securityContext"];
            assert_eq!(context["appArmorProfile"]["type"] == "Unconfined", by_field);
            let annotations = &template["metadata"]["annotations"];
            let annotation = &annotations["container.apparmor.security.beta.kubernetes.io/tracer"];
            assert_eq!(annotation == "unconfined", !by_field, "1.{minor}");
        }
    }
}
