//! Whether this node's pods get their network from CNI or from Docker: kubelet's and cri-dockerd's flags
//! and versions.

use super::evidence::Evidence;
use crate::expectation::minor;
use crate::node::Component;

/// What gives pods their network, by command lines and versions.
#[derive(Clone, Copy)]
pub(super) enum Runtime<'a> {
    /// This program leaves it to Docker.
    Docker(&'a Component),
    /// This one does when it is old enough, and what its version is good for.
    Either(&'a Component, &'static str),
    /// CNI.
    Cni,
    /// Neither kubelet nor cri-dockerd was seen.
    Unknown,
}

/// The last kubelet with dockershim.
const LAST_DOCKERSHIM: u16 = 23;

/// By what runs on this node.
pub(super) fn runtime<'a>(evidence: &Evidence<'a>) -> Runtime<'a> {
    let components = &evidence.facts.components;
    let find = |name| components.iter().find(|found| found.name == name);
    let plugin = |found: &Component| found.flag("network-plugin");
    if let Some(docker) = find("cri-dockerd") {
        return match plugin(docker).as_deref() {
            Some("" | "noop") => Runtime::Docker(docker),
            Some(_) => Runtime::Cni,
            None => Runtime::Either(
                docker,
                "the version of cri-dockerd: from 0.2.5 on it uses CNI by itself",
            ),
        };
    }
    let Some(kubelet) = find("kubelet") else {
        return Runtime::Unknown;
    };
    let node = evidence
        .cluster
        .and_then(|cluster| cluster.node(cluster.this_node.as_deref()?));
    let version = node.and_then(|node| minor(node.kubelet_version.as_deref()?));
    let registered = node.and_then(|node| node.container_runtime.as_deref());
    let dockershim = kubelet
        .flag("container-runtime")
        .is_none_or(|runtime| runtime == "docker")
        && kubelet.flag("container-runtime-endpoint").is_none()
        && registered.is_none_or(|runtime| runtime.starts_with("docker:"))
        && version.is_none_or(|version| version <= LAST_DOCKERSHIM);
    let without = matches!(plugin(kubelet).as_deref(), None | Some("" | "noop"));
    match (dockershim && without, version) {
        (false, _) => Runtime::Cni,
        (true, Some(_)) => Runtime::Docker(kubelet),
        (true, None) => Runtime::Either(
            kubelet,
            "the version of kubelet: from 1.24 on its runtime uses CNI without a flag",
        ),
    }
}
