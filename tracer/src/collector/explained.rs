//! What was explained before. A cause that is mended while the trace goes on leaves failed packets behind,
//! and facts that do not show the cause any more: its consequences would be left to stand for causes.

use std::collections::HashMap;

use crate::cause::{self, Certainty, Diagnosis};
use crate::flow::Flows;

/// Flows that causes stopped for certain, by code, with how many of their packets were suspicious then.
#[derive(Default)]
pub(super) struct Explained(HashMap<&'static str, HashMap<u64, u64>>);

impl Explained {
    /// Remembers what a diagnosis explains, where it brings others about.
    pub(super) fn note(&mut self, diagnosis: &Diagnosis, flows: &Flows) {
        let brings_about =
            cause::find(diagnosis.code).is_some_and(|root| !root.explains.is_empty());
        if diagnosis.certainty != Certainty::Certain || !brings_about {
            return;
        }
        let known = self.0.entry(diagnosis.code).or_default();
        known.retain(|&id, _| flows.get(id).is_some());
        let stopped = diagnosis.flows.iter().filter_map(|&id| flows.get(id));
        known.extend(stopped.map(|flow| (flow.id, flow.suspicious)));
    }

    /// True when a diagnosis is only of flows that a root of it had stopped, and in which nothing failed
    /// since.
    pub(super) fn covers(&self, diagnosis: &Diagnosis, flows: &Flows) -> bool {
        let explained = |id: &u64| {
            let now = flows.get(*id).map(|flow| flow.suspicious);
            self.0.iter().any(|(code, stopped)| {
                let root = cause::find(code);
                now.is_some()
                    && stopped.get(id).copied() == now
                    && root.is_some_and(|root| root.explains.contains(&diagnosis.code))
            })
        };
        !diagnosis.flows.is_empty() && diagnosis.flows.iter().all(explained)
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::event::Event;
    use crate::journey::Journey;
    use crate::journey::constructed::{event, packet};

    fn refused(id: u64, client: &str) -> Journey {
        let events = [HookId::TcpReceive, HookId::TcpReset].map(|hook| Event {
            packet: Some(packet(6, (client, "192.0.2.2:80"))),
            ..event(hook, id, id, 0)
        });
        Journey {
            id,
            events: events.to_vec(),
            ..Journey::default()
        }
    }

    fn diagnosis(code: &'static str, certainty: Certainty, flows: &[u64]) -> Diagnosis {
        Diagnosis {
            code,
            subject: "tcp 192.0.2.2:80".into(),
            certainty,
            summary: String::new(),
            evidence: Vec::new(),
            missing: Vec::new(),
            fixes: Vec::new(),
            check: String::new(),
            flows: flows.to_vec(),
            failed: flows.len(),
            total: flows.len(),
            consequences: Vec::new(),
        }
    }

    #[test]
    fn a_consequence_is_no_cause_once_its_root_is_mended() {
        const ROOT: &str = "vip-nodeport-unbound";
        let mut flows = Flows::default();
        let add = |flows: &mut Flows, id, client| {
            flows.add(refused(id, client)).expect("it is kept").flow
        };
        let one = add(&mut flows, 1, "192.0.2.1:4000");
        let two = add(&mut flows, 2, "192.0.2.1:4001");
        let leaf = diagnosis("no-listener", Certainty::Certain, &[one]);
        let mut explained = Explained::default();
        explained.note(&diagnosis(ROOT, Certainty::Likely, &[one]), &flows);
        assert!(!explained.covers(&leaf, &flows), "the root was not sure");
        explained.note(&diagnosis(ROOT, Certainty::Certain, &[one]), &flows);
        assert!(explained.covers(&leaf, &flows));
        let both = diagnosis("no-listener", Certainty::Certain, &[one, two]);
        assert!(!explained.covers(&both, &flows), "one flow is new");
        let other = diagnosis("rp-filter", Certainty::Certain, &[one]);
        assert!(
            !explained.covers(&other, &flows),
            "the root does not bring it about"
        );
        add(&mut flows, 3, "192.0.2.1:4000");
        assert!(!explained.covers(&leaf, &flows), "it failed again since");
    }
}
