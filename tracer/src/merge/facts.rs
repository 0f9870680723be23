//! What is known of several nodes, side by side: facts as one snapshot, objects of the cluster as one set.

use std::sync::Arc;

use super::space::Space;
use crate::capture::Counters;
use crate::kube::ClusterFacts;
use crate::node::{Reading, Snapshot};

/// What is known of each node so far.
pub(super) struct Known {
    /// Of each capture: where its numbers are, and what its machine is called in names of namespaces.
    nodes: Vec<(Space, Option<String>)>,
    snapshots: Vec<Option<Snapshot>>,
    clusters: Vec<Option<Arc<ClusterFacts>>>,
    counters: Vec<Counters>,
}

impl Known {
    /// Nothing known of captures with these spaces; a name is put behind those of the node's namespaces.
    pub(super) fn new(nodes: Vec<(Space, Option<String>)>) -> Self {
        let count = nodes.len();
        Self {
            nodes,
            snapshots: vec![None; count],
            clusters: vec![None; count],
            counters: vec![Counters::default(); count],
        }
    }

    /// A reading of one node, with what is known of the others; `aligned` turns its times into the result's.
    pub(super) fn reading(
        &mut self,
        capture: usize,
        reading: Reading,
        aligned: impl Fn(u64) -> u64,
    ) -> Reading {
        let mut own = Arc::unwrap_or_clone(reading.facts);
        let (space, node) = &self.nodes[capture];
        own.taken_ns = own.taken_ns.map(&aligned);
        for facts in &mut own.namespaces {
            facts.id = space.netns(facts.id);
            for address in &mut facts.addresses {
                address.created_ns = address.created_ns.map(&aligned);
            }
            for link in &mut facts.links {
                link.peer_netns = link.peer_netns.map(|id| space.netns(id));
            }
            if let (Some(name), Some(node)) = (&mut facts.name, node) {
                *name = format!("{name}@{node}");
            }
        }
        for proxy in &mut own.kube_proxies {
            proxy.netns = proxy.netns.map(|id| space.netns(id));
            proxy.started_ns = proxy.started_ns.map(&aligned);
        }
        let (taken, taken_ns) = (own.taken, own.taken_ns);
        self.snapshots[capture] = Some(own);
        let mut all = Snapshot::empty();
        (all.taken, all.taken_ns) = (taken, taken_ns);
        for known in self.snapshots.iter().flatten() {
            all.namespaces.extend(known.namespaces.iter().cloned());
            all.kube_proxies.extend(known.kube_proxies.iter().cloned());
            all.components.extend(known.components.iter().cloned());
            all.missing.extend(known.missing.iter().cloned());
            // One network and one log: what is said of the first node's is said.
            all.cni = all.cni.or_else(|| known.cni.clone());
            all.proxy_log = all.proxy_log.or_else(|| known.proxy_log.clone());
        }
        Reading {
            occasion: reading.occasion,
            facts: Arc::new(all),
        }
    }

    /// The cluster as one node knows it, with the pods that the others know; `None` when no node knows it
    /// any more.
    pub(super) fn cluster(
        &mut self,
        capture: usize,
        facts: Option<Arc<ClusterFacts>>,
    ) -> Option<Arc<ClusterFacts>> {
        self.clusters[capture] = facts;
        let mut all: Option<Arc<ClusterFacts>> = None;
        for known in self.clusters.iter().flatten() {
            all = Some(match all {
                Some(before) => Arc::new(before.with(known)),
                None => Arc::clone(known),
            });
        }
        all
    }

    /// Losses and cost of all nodes.
    pub(super) fn counters(
        &mut self,
        capture: usize,
        counters: Counters,
        aligned: impl Fn(u64) -> u64,
    ) -> Counters {
        let mut all = Counters {
            time_ns: aligned(counters.time_ns),
            ..Counters::default()
        };
        self.counters[capture] = counters;
        for known in &self.counters {
            all.left_out += known.left_out;
            all.kernel_runs += known.kernel_runs;
            all.kernel_ns += known.kernel_ns;
            all.process_us += known.process_us;
            for (cause, count) in &known.lost {
                match all.lost.iter_mut().find(|(name, _)| name == cause) {
                    Some((_, sum)) => *sum += count,
                    None => all.lost.push((cause.clone(), *count)),
                }
            }
        }
        all
    }
}
