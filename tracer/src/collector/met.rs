//! What packets met that the facts have to hold before they can be judged: large tables and other
//! namespaces, which are read only for those who ask.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;

use crate::hook::Role;
use crate::journey::Journey;
use crate::kube::ClusterFacts;
use crate::node::{NetnsId, Snapshot};

/// Most clients of one namespace whose IPVS connections are looked up.
const MOST_IPVS_CLIENTS: usize = 1024;
/// Most namespaces that are read because a neighbour did not answer.
const MOST_PEERS: usize = 256;
/// Most addresses with a NodePort's port that are looked at because a socket took a packet there.
const MOST_AT_NODEPORTS: usize = 4096;

/// What was met so far.
#[derive(Default)]
pub(super) struct Met {
    /// Clients whose packets met an IPVS connection and were lost.
    ipvs_clients: BTreeMap<NetnsId, BTreeSet<SocketAddr>>,
    /// Clients came since they were last looked up.
    unread_clients: bool,
    /// Namespaces where a neighbour did not answer: the other ends of their devices may tell why.
    silent: BTreeSet<NetnsId>,
    /// Addresses with a NodePort's port where sockets took packets.
    at_nodeports: HashSet<(u8, SocketAddr)>,
}

impl Met {
    /// Notes what a packet met; true when it arrived and is to be judged all the same.
    pub(super) fn note(&mut self, journey: &Journey, cluster: Option<&ClusterFacts>) -> bool {
        self.note_ipvs_client(journey);
        self.note_silence(journey);
        self.is_new_at_nodeport(journey, cluster)
    }

    /// Clients came whose IPVS connections were not looked up.
    pub(super) const fn is_unread(&self) -> bool {
        self.unread_clients
    }

    /// Clients whose IPVS connections are wanted; they are looked up now.
    pub(super) fn take_ipvs_clients(&mut self) -> &BTreeMap<NetnsId, BTreeSet<SocketAddr>> {
        self.unread_clients = false;
        &self.ipvs_clients
    }

    fn note_ipvs_client(&mut self, journey: &Journey) {
        let met = journey.failed()
            && journey.passed(Role::IpvsLookup)
            && !journey.passed(Role::IpvsService);
        if !met {
            return;
        }
        let netns = netns_of(journey, Role::IpvsLookup);
        if let (Some(netns), Some(tuple)) = (netns, journey.first_tuple()) {
            let clients = self.ipvs_clients.entry(netns).or_default();
            if clients.len() >= MOST_IPVS_CLIENTS && !self.unread_clients {
                // Those were looked up; one that is lost again comes back.
                clients.clear();
            }
            if clients.len() < MOST_IPVS_CLIENTS {
                self.unread_clients |= clients.insert(tuple.source);
            }
        }
    }

    fn note_silence(&mut self, journey: &Journey) {
        self.silent.extend(netns_of(journey, Role::NeighbourFailed));
    }

    /// The namespaces of the other ends of veth devices where a neighbour did not answer, and of those that a bridge
    /// there leads to.
    pub(super) fn beyond_silence(&self, facts: &Snapshot) -> Vec<NetnsId> {
        let peers = |id: &NetnsId| {
            let links = facts.namespace(*id).map(|namespace| &namespace.links);
            let peers = links.into_iter().flatten();
            peers.filter_map(|link| link.peer_netns).collect::<Vec<_>>()
        };
        let near: BTreeSet<NetnsId> = self.silent.iter().flat_map(peers).collect();
        let mut beyond: Vec<NetnsId> = near
            .iter()
            .flat_map(peers)
            .chain(near.iter().copied())
            .filter(|id| facts.namespace(*id).is_none())
            .collect();
        beyond.sort_unstable();
        beyond.dedup();
        beyond.truncate(MOST_PEERS);
        beyond
    }

    /// True for the first packet that a socket takes on an address with a NodePort's port, untranslated: it
    /// arrived, and perhaps not where its sender meant.
    fn is_new_at_nodeport(&mut self, journey: &Journey, cluster: Option<&ClusterFacts>) -> bool {
        let (Some(cluster), Some(first), Some(last)) =
            (cluster, journey.first_tuple(), journey.last_tuple())
        else {
            return false;
        };
        let to = (last.protocol, last.destination);
        first.destination == last.destination
            && cluster.node_port(to.0, to.1.port()).is_some()
            && journey.passed(Role::Deliver)
            && self.at_nodeports.len() < MOST_AT_NODEPORTS
            && self.at_nodeports.insert(to)
    }
}

/// Where a packet's first event of a role was.
fn netns_of(journey: &Journey, role: Role) -> Option<NetnsId> {
    let mut events = journey.events.iter();
    let event = events.find(|event| event.role() == role)?;
    event.netns.map(NetnsId)
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::journey::Ending;
    use crate::journey::constructed::journey;
    use crate::node::{Link, NetnsFacts};

    /// A client's packet is lost behind a connection of IPVS.
    fn lost(met: &mut Met, port: usize) {
        let client = format!("192.0.2.1:{port}");
        let mut lost = journey(1, 6, &[(client.as_str(), "192.0.2.2:80")]);
        lost.events[0].hook = HookId::IpvsLookup;
        lost.ending = Ending::Dropped {
            location: 1,
            reason: Some(2),
        };
        met.note_ipvs_client(&lost);
    }

    fn taken(met: &mut Met) -> usize {
        met.take_ipvs_clients().values().map(BTreeSet::len).sum()
    }

    /// A namespace whose veth devices lead to these.
    fn namespace(id: u32, peers: &[u32]) -> NetnsFacts {
        let mut facts = NetnsFacts::unread(NetnsId(id), None);
        facts.links = peers
            .iter()
            .map(|&peer| Link {
                peer_netns: Some(NetnsId(peer)),
                ..Link::named(peer, None)
            })
            .collect();
        facts
    }

    #[test]
    fn who_a_silent_neighbour_may_be_is_read_behind_the_bridge_too() {
        let mut silent = journey(1, 6, &[("192.0.2.1:1", "192.0.2.2:80")]);
        (silent.events[0].hook, silent.events[0].netns) = (HookId::NeighbourFailed, Some(2));
        let mut met = Met::default();
        met.note(&silent, None);
        let mut facts = Snapshot::empty();
        facts.namespaces = vec![namespace(1, &[2, 3, 4]), namespace(2, &[1])];
        // The node is known, its other pods are not.
        assert_eq!(met.beyond_silence(&facts), [NetnsId(3), NetnsId(4)]);
        facts.namespaces.remove(0);
        assert_eq!(met.beyond_silence(&facts), [NetnsId(1)]);
    }

    #[test]
    fn clients_beyond_the_bound_have_their_turn_when_the_others_were_looked_up() {
        let mut met = Met::default();
        let beyond = MOST_IPVS_CLIENTS + 1;
        for port in 1..=beyond {
            lost(&mut met, port);
        }
        assert!(met.is_unread());
        assert_eq!(taken(&mut met), MOST_IPVS_CLIENTS);
        assert!(!met.is_unread());
        lost(&mut met, beyond);
        assert!(met.is_unread());
        assert_eq!(taken(&mut met), 1);
    }
}
