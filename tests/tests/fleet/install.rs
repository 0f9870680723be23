//! The manifest for always-on use.

use std::process::Command;

use serde_json::Value;
use tests::api_server::Options;
use tests::api_server::rbac::Rules;
use tracer::fleet::{self, CaptureVolume, Captures, Installation};

use super::{NAMESPACE, server};

#[test]
fn without_captures_the_daemon_set_writes_nowhere() {
    let manifest = fleet::manifest(&Installation {
        namespace: NAMESPACE.into(),
        image: "registry.example/tracer:1".into(),
        port: 9464,
        captures: None,
        minor: 20,
    })
    .expect("a manifest");
    assert!(!manifest.contains("captures"), "{manifest}");
    assert!(manifest.contains("memory: 512Mi"), "{manifest}");
}

#[test]
fn kubectl_reads_the_manifest_of_the_daemon_set() {
    let server = server(Options::default());
    for (namespace, volume) in [
        ("kube-system", CaptureVolume::HostPath("/var/tracer".into())),
        ("tracing", CaptureVolume::Claim("tracer-captures".into())),
    ] {
        let manifest = fleet::manifest(&Installation {
            namespace: namespace.into(),
            image: "registry.example/tracer:1".into(),
            port: 9464,
            captures: Some(Captures {
                volume: volume.clone(),
                limit: "2G".into(),
            }),
            minor: 20,
        })
        .expect("a manifest");
        let file = server.folder().join("manifest.yaml");
        std::fs::write(&file, &manifest).expect("a file");
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(server.kubeconfig())
            .arg("--cache-dir")
            .arg(server.folder())
            .args([
                "create",
                "--dry-run=client",
                "--validate=false",
                "-o",
                "json",
                "-f",
            ])
            .arg(&file)
            .output()
            .expect("kubectl (apt-get install kubernetes-client)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{manifest}");
        let objects: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("JSON");
        let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
        let set = find("DaemonSet").expect("a DaemonSet");
        let spec = &set["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        assert_eq!(set["metadata"]["namespace"], namespace);
        assert_eq!(spec["hostNetwork"], true);
        assert_eq!(container["securityContext"]["privileged"], false);
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
        // The last while before a diagnosis is kept in memory.
        assert_eq!(container["resources"]["limits"]["memory"], "768Mi");
        let words = container["args"].to_string();
        assert!(
            words.contains("--capture=/captures") && words.contains("--capture-limit=2G"),
            "{words}"
        );
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        assert!(
            mounts
                .iter()
                .any(|mount| mount["mountPath"] == "/captures" && mount["readOnly"].is_null())
        );
        let volumes = spec["volumes"].as_array().expect("volumes");
        let kept = volumes
            .iter()
            .find(|found| found["name"] == "captures")
            .expect("the volume");
        match volume {
            CaptureVolume::HostPath(path) => assert_eq!(kept["hostPath"]["path"], path),
            CaptureVolume::Claim(name) => {
                assert_eq!(kept["persistentVolumeClaim"]["claimName"], name);
            }
        }
        assert_eq!(
            set["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"],
            "9464"
        );
        let account = find("ServiceAccount").expect("a ServiceAccount");
        assert_eq!(account["metadata"]["namespace"], namespace);
        let binding = find("RoleBinding").expect("a RoleBinding");
        assert_eq!(binding["metadata"]["namespace"], "kube-system");
        assert_eq!(binding["subjects"][0]["namespace"], namespace);
        assert_eq!(find("Namespace").is_some(), namespace != "kube-system");
        // The rights are those of the manifest, no more.
        let rights = |text: &str| Rules::parse(text).expect("rules").rights();
        assert_eq!(rights(&manifest), rights(tracer::kube::RBAC));
    }
}
