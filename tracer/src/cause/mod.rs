//! The catalogue of causes and how they are ranked.
//!
//! Invariants: a cause never does I/O; it sees [`Evidence`] and nothing else, so that replay equals
//! live. It says *certain* only with all its decisive evidence. One file per cause, named by its code.

use crate::flow::Flows;
use crate::node::Snapshot;

mod vip_nodeport_unbound;

/// Everything that a cause may look at.
pub struct Evidence<'a> {
    /// What was seen on the wire.
    pub flows: &'a Flows,
    /// What the node was like, and when.
    pub facts: &'a Snapshot,
}

/// How sure a diagnosis is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Certainty {
    /// Part of the decisive evidence is missing.
    Likely,
    /// All decisive evidence is there.
    Certain,
}

impl Certainty {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

/// A cause of the catalogue.
pub struct Cause {
    /// Stable code, used in commands and files.
    pub code: &'static str,
    /// One line.
    pub title: &'static str,
    /// What it is, how it is proven, how it is fixed.
    pub explanation: &'static str,
    /// Looks for it.
    pub examine: fn(&Evidence<'_>) -> Vec<Diagnosis>,
}

/// The catalogue; the order is the order of ranking among equals.
pub const CATALOGUE: &[Cause] = &[vip_nodeport_unbound::CAUSE];

/// One piece of evidence in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Where it comes from: ipvs, route, address, socket, packet, kube-proxy.
    pub source: &'static str,
    /// What was seen.
    pub text: String,
}

/// One way to fix it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fix {
    /// Commands or configuration to paste, a line each.
    pub lines: Vec<String>,
    /// What it may break.
    pub risk: &'static str,
}

/// A cause found at work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnosis {
    /// Code of the cause.
    pub code: &'static str,
    /// What it is about; the same cause with the same subject is one diagnosis.
    pub subject: String,
    /// How sure.
    pub certainty: Certainty,
    /// The cause in words, for this node.
    pub summary: String,
    /// What proves it.
    pub evidence: Vec<Proof>,
    /// What is missing to be certain.
    pub missing: Vec<String>,
    /// Ways to fix it, the best first.
    pub fixes: Vec<Fix>,
    /// A command that shows whether the fix worked.
    pub check: String,
    /// Connections that it stopped.
    pub failed: usize,
    /// Connections to the same address and port in all.
    pub total: usize,
}

/// The cause with this code.
pub fn find(code: &str) -> Option<&'static Cause> {
    CATALOGUE.iter().find(|cause| cause.code == code)
}

/// Asks every cause; the most certain first.
pub fn diagnose(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let mut found: Vec<_> = CATALOGUE
        .iter()
        .flat_map(|cause| (cause.examine)(evidence))
        .collect();
    found.sort_by_key(|diagnosis| std::cmp::Reverse(diagnosis.certainty));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_explained() {
        for (index, cause) in CATALOGUE.iter().enumerate() {
            assert!(
                CATALOGUE[..index]
                    .iter()
                    .all(|other| other.code != cause.code)
            );
            assert!(!cause.title.is_empty() && cause.explanation.len() > 200);
        }
    }
}
