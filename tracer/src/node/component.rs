//! Programs that make up a Kubernetes node, as they run: their command lines.

use std::fs;

use super::kube_proxy::flag;
use serde::{Deserialize, Serialize};

/// A program of the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Component {
    /// Name of the program: one of [`COMPONENTS`].
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Words of its command line.
    pub arguments: Vec<String>,
}

/// Programs that are looked for.
pub const COMPONENTS: &[&str] = &[
    "kubelet",
    "cri-dockerd",
    "dockerd",
    "containerd",
    "crio",
    "flanneld",
];

impl Component {
    /// Every such process that can be seen.
    pub fn running() -> Vec<Self> {
        super::namespace::process_ids(std::path::Path::new("/proc"))
            .into_iter()
            .filter_map(|pid| {
                let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                Self::parse(pid, &command_line)
            })
            .collect()
    }

    /// Parses a NUL-separated command line; `None` when it is another program's.
    fn parse(pid: u32, command_line: &[u8]) -> Option<Self> {
        let arguments: Vec<String> = command_line
            .split(|&byte| byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .filter(|word| !word.is_empty())
            .collect();
        let program = arguments.first()?.rsplit('/').next()?;
        let name = COMPONENTS.iter().find(|name| **name == program)?;
        Some(Self {
            name: (*name).to_owned(),
            pid,
            arguments,
        })
    }

    /// The value of a flag, `--name=value` or `--name value`.
    pub fn flag(&self, name: &str) -> Option<String> {
        flag(&self.arguments, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_told_apart() {
        let line = b"/usr/bin/kubelet\0--network-plugin\0cni\0--node-ip=192.0.2.1\0";
        let kubelet = Component::parse(7, line).expect("kubelet");
        assert_eq!((kubelet.name.as_str(), kubelet.pid), ("kubelet", 7));
        assert_eq!(kubelet.flag("network-plugin").as_deref(), Some("cni"));
        assert_eq!(kubelet.flag("node-ip").as_deref(), Some("192.0.2.1"));
        assert_eq!(kubelet.flag("network-plugin-mtu"), None);
        assert_eq!(Component::parse(1, b"/bin/bash\0kubelet\0"), None);
        assert_eq!(Component::parse(1, b""), None);
    }
}
