//! When to read what kube-proxy's packet filter rules do: once a packet that they may be for was lost, and not
//! often, since there may be 200,000 of them.

use crate::event::Tuple;
use crate::expectation::ruled_namespaces;
use crate::journey::{Ending, Journey};
use crate::kube::ClusterFacts;
use crate::node::{Directory, Snapshot};

/// What was read before is good for so long; kube-proxy syncs at least every 30 s.
const AGE_NS: u64 = 10_000_000_000;

/// Whether they are wanted, and when they were read.
#[derive(Default)]
pub(super) struct ServiceRulesReader {
    lost: bool,
    read_ns: Option<u64>,
}

impl ServiceRulesReader {
    /// Notes a packet that was lost and may have been for a service: to its address or NodePort, or without a
    /// cluster one that was refused. Without a rule that takes it, it may leave the node as well.
    pub(super) fn remember(&mut self, journey: &Journey, cluster: Option<&ClusterFacts>) {
        let failed = journey.failed();
        if self.lost || !(failed || cluster.is_some() && left(journey)) {
            return;
        }
        let to_service = |cluster: &ClusterFacts| {
            journey.first_tuple().is_some_and(|tuple| {
                let (protocol, to) = (tuple.protocol, tuple.destination);
                // What leaves the node for such a port is mostly for somebody else.
                let node_port = || failed && cluster.node_port(protocol, to.port()).is_some();
                cluster.service_at(protocol, to).is_some() || node_port()
            })
        };
        self.lost = cluster.map_or_else(|| journey.rejected(), to_service);
    }

    /// Puts them into facts that were just read, where they are wanted; `before` are the facts so far.
    pub(super) fn read(
        &mut self,
        facts: &mut Snapshot,
        before: &Snapshot,
        directory: &Directory,
        cluster: Option<&ClusterFacts>,
    ) {
        if !self.lost {
            return;
        }
        let wanted = ruled_namespaces(cluster, facts);
        let young = self
            .read_ns
            .zip(facts.taken_ns)
            .is_some_and(|(read, now)| now.saturating_sub(read) < AGE_NS);
        let known = |id| before.namespace(id)?.service_rules.clone();
        if young && wanted.iter().all(|&id| known(id).is_some()) {
            for namespace in &mut facts.namespaces {
                namespace.service_rules = known(namespace.id);
            }
            return;
        }
        facts.read_service_rules(directory, &wanted);
        self.read_ns = facts.taken_ns;
    }
}

/// The packet went out of sight as it came.
fn left(journey: &Journey) -> bool {
    let to = |tuple: Option<Tuple>| tuple.map(|tuple| tuple.destination);
    matches!(journey.ending, Ending::Transmitted | Ending::OutOfSight)
        && to(journey.first_tuple()) == to(journey.last_tuple())
}
