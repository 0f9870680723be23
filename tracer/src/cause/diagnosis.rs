//! What a cause says when it is found at work.

use super::evidence::{Evidence, Failure};
use super::{Cause, Site};

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

/// A cause that another one explains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consequence {
    /// Code of the cause.
    pub code: &'static str,
    /// What it is about.
    pub subject: String,
    /// In words.
    pub summary: String,
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
    /// Numbers of the flows that it stopped, ascending; they join it to its consequences.
    pub flows: Vec<u64>,
    /// Connections that it stopped.
    pub failed: usize,
    /// Connections to the same address and port in all.
    pub total: usize,
    /// What it brings about.
    pub consequences: Vec<Consequence>,
}

impl Diagnosis {
    /// Says that a cause is at work; certain until something is said to be missing.
    pub(super) fn new(
        cause: &Cause,
        subject: impl Into<String>,
        summary: impl Into<String>,
    ) -> Self {
        Self {
            code: cause.code,
            subject: subject.into(),
            certainty: Certainty::Certain,
            summary: summary.into(),
            evidence: Vec::new(),
            missing: Vec::new(),
            fixes: Vec::new(),
            check: String::new(),
            flows: Vec::new(),
            failed: 0,
            total: 0,
            consequences: Vec::new(),
        }
    }

    /// The failures that it explains, at most one of each flow.
    #[must_use]
    pub(super) fn stopped(self, evidence: &Evidence<'_>, failures: &[&Failure<'_>]) -> Self {
        self.stopped_flows(evidence, failures.iter().map(|failure| failure.flow.id))
    }

    /// The flows that it stopped.
    #[must_use]
    pub(super) fn stopped_flows(
        mut self,
        evidence: &Evidence<'_>,
        flows: impl Iterator<Item = u64>,
    ) -> Self {
        self.flows = flows.collect();
        self.flows.sort_unstable();
        self.flows.dedup();
        self.failed = self.flows.len();
        self.total = evidence.connections_beside(&self.flows).max(self.failed);
        self
    }

    /// Adds evidence.
    #[must_use]
    pub(super) fn prove(mut self, source: &'static str, text: impl Into<String>) -> Self {
        self.evidence.push(Proof {
            source,
            text: text.into(),
        });
        self
    }

    /// Adds evidence, where there is any.
    #[must_use]
    pub(super) fn prove_if(self, source: &'static str, text: Option<impl Into<String>>) -> Self {
        match text {
            Some(text) => self.prove(source, text),
            None => self,
        }
    }

    /// Decisive evidence is missing: it is no more than likely.
    #[must_use]
    pub(super) fn lacking(mut self, what: impl Into<String>) -> Self {
        self.missing.push(what.into());
        self.certainty = Certainty::Likely;
        self
    }

    /// Decisive evidence is missing when `lacks` holds.
    #[must_use]
    pub(super) fn lacking_if(self, lacks: bool, what: impl Into<String>) -> Self {
        if lacks { self.lacking(what) } else { self }
    }

    /// Adds a way to fix it.
    #[must_use]
    pub(super) fn fix<L: Into<String>>(
        mut self,
        lines: impl IntoIterator<Item = L>,
        risk: &'static str,
    ) -> Self {
        self.fixes.push(Fix {
            lines: lines.into_iter().map(Into::into).collect(),
            risk,
        });
        self
    }

    /// The fixes and the check so far, as they are typed on the node where they are about the network of a pod.
    #[must_use]
    pub(super) fn typed_for(mut self, site: Option<&Site<'_>>) -> Self {
        if let Some(site) = site {
            let lines = self.fixes.iter_mut().flat_map(|fix| &mut fix.lines);
            for line in lines.chain([&mut self.check]) {
                *line = site.typed(line);
            }
        }
        self
    }

    /// The command that shows whether the fix worked.
    #[must_use]
    pub(super) fn check(mut self, command: impl Into<String>) -> Self {
        self.check = command.into();
        self
    }
}
