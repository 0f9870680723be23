//! What a run over many nodes is to be.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};

use super::FleetError;
use super::pod::NodeEnd;
use super::run::{BEGINNING, within};
use crate::kube::connect::words;

/// Time that a pod has beyond the trace itself: attaching, last diagnoses, ending.
pub(super) const MARGIN: Duration = Duration::from_secs(30);

/// Label with a node's operating system.
pub(super) const SYSTEM: &str = "kubernetes.io/os";

/// Which nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Every one.
    All,
    /// Those with these names.
    Names(Vec<String>),
    /// Those that a label selector fits.
    Labels(String),
}

impl Choice {
    /// Reads what was typed: names with commas between, or a label selector. A selector has one of `=`,
    /// `!`, `(` or `/`, which no node's name has.
    pub fn parse(text: &str) -> Self {
        if text.contains(['=', '!', '(', '/']) {
            return Self::Labels(text.to_owned());
        }
        let names = text.split(',').map(str::trim);
        Self::Names(
            names
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        )
    }

    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::All => "the cluster".into(),
            Self::Names(names) => names.join(", "),
            Self::Labels(selector) => format!("the selector {selector}"),
        }
    }
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Namespace of everything that is created.
    pub namespace: String,
    /// Image that holds `tracer` on its PATH.
    pub image: String,
    /// Service account of the pods, for names of services and pods; `None` leaves them without a token.
    pub service_account: Option<String>,
    /// Which nodes.
    pub nodes: Choice,
    /// Arguments of `tracer run` beside format and time.
    pub arguments: Vec<String>,
    /// How long each node traces.
    pub limit: Duration,
    /// Longest wait for a pod to start: pulling the image takes most of it.
    pub start: Duration,
}

impl Plan {
    /// Longest life of a pod.
    pub(super) fn life(&self) -> Duration {
        self.start + self.limit + MARGIN
    }

    /// The nodes by name, in order, and what becomes of those that cannot be traced.
    pub(super) async fn find_nodes(
        &self,
        client: &Client,
    ) -> Result<(Vec<String>, Vec<(String, NodeEnd)>), FleetError> {
        let mut parameters = ListParams::default();
        if let Choice::Labels(selector) = &self.nodes {
            parameters = parameters.labels(selector);
        }
        let nodes = Api::<Node>::all(client.clone());
        let found = within(BEGINNING, nodes.list(&parameters))
            .await
            .map_err(|error| FleetError::Refused {
                what: "the nodes cannot be listed",
                why: words(&error),
            })?;
        let (mut nodes, mut not) = (Vec::new(), Vec::new());
        for node in found.items {
            let labels = node.metadata.labels.unwrap_or_default();
            let system = labels.get(SYSTEM).cloned();
            let Some(name) = node.metadata.name else {
                continue;
            };
            match (&self.nodes, system) {
                (Choice::Names(names), _) if !names.contains(&name) => {}
                (chosen, Some(system)) if system != "linux" => {
                    let why = format!("runs {system}, not Linux");
                    let end = match chosen {
                        Choice::Names(_) => NodeEnd::NotStarted(why),
                        Choice::All | Choice::Labels(_) => NodeEnd::Skipped(why),
                    };
                    not.push((name, end));
                }
                _ => nodes.push(name),
            }
        }
        if let Choice::Names(names) = &self.nodes {
            let unknown = names
                .iter()
                .filter(|name| !nodes.contains(name) && !not.iter().any(|(no, _)| no == *name));
            let unknown: Vec<_> = unknown
                .map(|name| {
                    let why = "no node of this cluster".to_owned();
                    (name.clone(), NodeEnd::NotStarted(why))
                })
                .collect();
            not.extend(unknown);
        }
        nodes.sort();
        if nodes.is_empty() {
            let mut why = self.nodes.words();
            for (name, end) in not {
                why += &format!("; {name}: {}", end.why().unwrap_or_default());
            }
            return Err(FleetError::NoNode(why));
        }
        Ok((nodes, not))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_selectors_are_told_apart() {
        let names = |list: &[&str]| Choice::Names(list.iter().map(|&name| name.into()).collect());
        let labels = |text: &str| Choice::Labels(text.into());
        for (typed, choice) in [
            ("node-a", names(&["node-a"])),
            (
                "node-a, node-b.example,",
                names(&["node-a", "node-b.example"]),
            ),
            ("zone=b", labels("zone=b")),
            ("!gpu", labels("!gpu")),
            ("zone in (a,b)", labels("zone in (a,b)")),
            (
                "node-role.kubernetes.io/control-plane",
                labels("node-role.kubernetes.io/control-plane"),
            ),
        ] {
            assert_eq!(Choice::parse(typed), choice, "{typed}");
        }
    }
}
