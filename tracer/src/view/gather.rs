//! What the nodes said, joined: the same cause on many nodes is one entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::model::{DiagnosisView, JourneyView};

/// A line of `tracer run --format json` as far as it is understood here.
pub enum Line {
    /// A packet's way.
    Journey(Box<JourneyView>),
    /// A cause.
    Diagnosis(Box<DiagnosisView>),
    /// The end of a node's trace.
    Summary(Summary),
    /// An object of another kind, or what is no JSON: a node's remark.
    Other,
}

/// What one node's trace came to; the fields that the joined summary shows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Events taken.
    pub events: u64,
    /// Journeys ended.
    pub packets: u64,
    /// Journeys that failed.
    pub failed: u64,
    /// Lost events by cause.
    pub lost: Vec<(String, u64)>,
}

#[derive(Deserialize)]
struct Kind {
    r#type: String,
}

impl Line {
    /// Reads a line; a newer tracer's unknown fields are passed over.
    pub fn read(line: &str) -> Self {
        let Ok(Kind { r#type: kind }) = serde_json::from_str(line) else {
            return Self::Other;
        };
        let read = match kind.as_str() {
            "journey" => serde_json::from_str(line).map(|view| Self::Journey(Box::new(view))),
            "diagnosis" => serde_json::from_str(line).map(|view| Self::Diagnosis(Box::new(view))),
            "summary" => serde_json::from_str(line).map(Self::Summary),
            _ => Ok(Self::Other),
        };
        read.unwrap_or(Self::Other)
    }
}

/// Where a cause is at work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Occurrence {
    /// The node that saw it.
    pub node: String,
    /// What it is about there.
    pub subject: String,
    /// Connections stopped.
    pub failed_connections: usize,
    /// Connections to the subject in all.
    pub connections: usize,
}

/// One cause, wherever it was seen.
#[derive(Clone, Debug, Serialize)]
pub struct FleetDiagnosis {
    /// Nodes that saw it, in order.
    pub nodes: Vec<String>,
    /// Each subject on each node.
    pub occurrences: Vec<Occurrence>,
    /// What the node that is surest says, first seen first.
    #[serde(flatten)]
    pub diagnosis: DiagnosisView,
}

/// Everything that was said.
#[derive(Default)]
pub struct Gathered {
    /// By cause, then by node and subject; the last word of a node on a subject counts.
    causes: BTreeMap<String, BTreeMap<(Arc<str>, String), DiagnosisView>>,
    /// Causes in the order of first sight.
    order: Vec<String>,
    summaries: BTreeMap<Arc<str>, Summary>,
}

impl Gathered {
    /// Takes a node's diagnosis.
    pub fn diagnosis(&mut self, node: &Arc<str>, diagnosis: DiagnosisView) {
        let cause = diagnosis.cause.to_string();
        if !self.causes.contains_key(&cause) {
            self.order.push(cause.clone());
        }
        let key = (Arc::clone(node), diagnosis.subject.clone());
        self.causes.entry(cause).or_default().insert(key, diagnosis);
    }

    /// Takes a node's summary.
    pub fn summary(&mut self, node: &Arc<str>, summary: Summary) {
        self.summaries.insert(Arc::clone(node), summary);
    }

    /// The summary of a node.
    pub fn of(&self, node: &str) -> Option<&Summary> {
        self.summaries.get(node)
    }

    /// The causes, in the order of first sight.
    pub fn diagnoses(&self) -> Vec<FleetDiagnosis> {
        let found = self.order.iter().filter_map(|cause| self.causes.get(cause));
        found.filter_map(join).collect()
    }
}

fn join(said: &BTreeMap<(Arc<str>, String), DiagnosisView>) -> Option<FleetDiagnosis> {
    let certain = said.values().find(|view| view.certainty == "certain");
    let diagnosis = certain.or_else(|| said.values().next())?.clone();
    let mut nodes: Vec<_> = said.keys().map(|(node, _)| node.to_string()).collect();
    nodes.dedup();
    let occurrences = said
        .iter()
        .map(|((node, subject), view)| Occurrence {
            node: node.to_string(),
            subject: subject.clone(),
            failed_connections: view.failed_connections,
            connections: view.connections,
        })
        .collect();
    Some(FleetDiagnosis {
        nodes,
        occurrences,
        diagnosis,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(cause: &str, certainty: &str, subject: &str) -> DiagnosisView {
        let line = serde_json::json!({
            "type": "diagnosis", "cause": cause, "certainty": certainty, "subject": subject,
            "failed_connections": 2, "connections": 3, "summary": format!("{certainty} words"),
            "evidence": [["route", "none"]], "missing": [], "fixes": [{"lines": ["do it"], "risk": "none"}],
            "check": "", "consequences": [], "of_a_newer_tracer": 1,
        });
        match Line::read(&line.to_string()) {
            Line::Diagnosis(view) => *view,
            _ => panic!("no diagnosis: {line}"),
        }
    }

    #[test]
    fn one_cause_on_many_nodes_is_one_entry_told_by_the_surest() {
        let (a, b): (Arc<str>, Arc<str>) = ("node-a".into(), "node-b".into());
        let mut gathered = Gathered::default();
        gathered.diagnosis(&b, diagnosis("no-route", "likely", "tcp 192.0.2.1:80"));
        gathered.diagnosis(&a, diagnosis("rp-filter", "certain", "eth0"));
        gathered.diagnosis(&a, diagnosis("no-route", "certain", "tcp 192.0.2.1:80"));
        // The same again, surer: one occurrence.
        gathered.diagnosis(&b, diagnosis("no-route", "likely", "tcp 192.0.2.1:80"));
        let joined = gathered.diagnoses();
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[0].nodes, ["node-a", "node-b"]);
        assert_eq!(joined[0].occurrences.len(), 2);
        assert_eq!(joined[0].diagnosis.summary, "certain words");
        assert_eq!(joined[1].diagnosis.cause, "rp-filter");
    }

    #[test]
    fn what_is_no_line_of_the_tracer_is_a_remark() {
        for line in [
            "",
            "tracer: no BTF",
            "{\"type\": \"ready\"}",
            "{\"type\": \"summary\"}",
        ] {
            assert!(matches!(Line::read(line), Line::Other), "{line}");
        }
    }
}
