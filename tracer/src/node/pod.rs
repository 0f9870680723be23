//! Which pod a process belongs to, without asking the API server: from its cgroup and the kubelet's
//! log folders.
//!
//! Sources: kubelet's pkg/kubelet/cm/pod_container_manager_linux.go (`kubepods…/pod<UID>`, and with
//! systemd `kubepods-…-pod<UID with _>.slice`); /var/log/pods/<namespace>_<name>_<UID> since 1.14.

use std::fs;
use std::path::Path;

/// Where the kubelet keeps a folder per pod: as process 1 sees it, since this may be a container.
const LOGS: [&str; 2] = ["proc/1/root/var/log/pods", "var/log/pods"];
/// Length of a UID: 32 hexadecimal digits and 4 dashes.
const UID: usize = 36;

/// The pod of a process: `p/namespace/name`, or with its UID where only that is known. `None` for a
/// process outside pods.
pub(super) fn pod_of(root: &Path, pid: u32) -> Option<String> {
    let cgroup = fs::read_to_string(root.join(format!("proc/{pid}/cgroup"))).ok()?;
    let uid = cgroup.lines().find_map(uid)?;
    let named = LOGS
        .iter()
        .filter_map(|logs| fs::read_dir(root.join(logs)).ok())
        .flatten()
        .flatten()
        .find_map(|entry| {
            let folder = entry.file_name().into_string().ok()?;
            let (pod, of) = folder.rsplit_once('_')?;
            let (namespace, name) = pod.split_once('_')?;
            (of == uid).then(|| format!("p/{namespace}/{name}"))
        });
    Some(named.unwrap_or_else(|| format!("pod {uid}")))
}

/// The pod's UID in a line of /proc/PID/cgroup.
fn uid(line: &str) -> Option<String> {
    if !line.contains("kubepods") {
        return None;
    }
    // With systemd the parents' names stand before the UID, and its dashes are underscores.
    line.match_indices("pod").find_map(|(at, found)| {
        let text = line.get(at + found.len()..)?.get(..UID)?.replace('_', "-");
        let digits = text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
        digits.then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

    #[test]
    fn uids_are_found_in_every_form() {
        let underscores = ID.replace('-', "_");
        for line in [
            format!("4:net_cls:/kubepods/besteffort/pod{ID}/77aa"),
            format!("1:name=systemd:/kubepods/pod{ID}/77aa"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscores}.slice/cri-containerd-77aa.scope"
            ),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{underscores}.slice/crio-77aa.scope"
            ),
        ] {
            assert_eq!(uid(&line).as_deref(), Some(ID), "{line}");
        }
        for line in [
            "0::/system.slice/kubelet.service",
            "0::/kubepods.slice",
            "0::/kubepods/podé",
            "0::/machine.slice/libpod-0a1b2c3d4e5f60718293a4b5c6d7e8f9.scope",
        ] {
            assert_eq!(uid(line), None, "{line}");
        }
    }

    #[test]
    fn names_come_from_the_log_folders() {
        let root = tempfile::tempdir().expect("a folder");
        let process = root.path().join("proc/7");
        fs::create_dir_all(&process).expect("a folder");
        fs::write(
            process.join("cgroup"),
            format!("0::/kubepods/pod{ID}/77aa\n"),
        )
        .expect("a file");
        assert_eq!(pod_of(root.path(), 7), Some(format!("pod {ID}")));
        let logs = root.path().join(LOGS[1]);
        fs::create_dir_all(logs.join(format!("kube-system_coredns-1_{ID}"))).expect("a folder");
        fs::create_dir_all(logs.join("default_web-0_other")).expect("a folder");
        assert_eq!(
            pod_of(root.path(), 7).as_deref(),
            Some("p/kube-system/coredns-1")
        );
        assert_eq!(pod_of(root.path(), 8), None);
    }
}
