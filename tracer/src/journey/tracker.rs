//! Joins events to journeys.

use hashbrown::HashMap;
use hashlink::LinkedHashMap;

use super::branching::{Birth, Origins};
use super::ending::{SocketReasons, ending, for_another_host, takes, unseen};
use super::layer::{Layers, Relation, belongs};
use super::{Branch, Ending, Event, Journey, Role};
use crate::event::{Detail, Packet, protocol};

/// A packet that nothing happened to for this long has ended, or is out of sight. Longer than a
/// queue on the way holds a packet; a neighbour that has to be resolved first takes longer.
const IDLE_NS: u64 = 300_000_000;
/// The same for a packet that was handed to a neighbour: resolving one may take three probes.
const NEIGHBOUR_IDLE_NS: u64 = 4_000_000_000;
/// Most journeys under way; the one that was quiet longest ends early beyond it.
const MOST_ACTIVE: usize = 65_536;
/// Events of a usual journey, so that its list seldom grows.
const USUAL_EVENTS: usize = 32;
/// Most events kept of one journey: a loop of a broken network ends here, and the journey says that there was more.
const MOST_EVENTS: usize = 512;
/// A fragment or copy appears right after something happened to its packet: so many journeys are looked at,
/// and more where a busy node's other processors had more to tell meanwhile.
const LOOKED_BACK: usize = 32;
const MOST_LOOKED_BACK: usize = 512;
/// The kernel copies and cuts at once; it may be interrupted in between.
const MEANWHILE_NS: u64 = 1_000_000;

/// ARP packets are numbered from here, so that the others have the same numbers whether ARP is followed or
/// not.
const FIRST_ARP: u64 = 1_000_000_000_000;

struct Active {
    journey: Journey,
    layers: Layers,
    /// Where its fragments and copies come from.
    origins: Origins,
    /// Every skb of it.
    skbs: Vec<u64>,
    last_ns: u64,
}

/// Which part of which journey an skb is now.
#[derive(Clone, Copy)]
struct Place {
    id: u64,
    /// Index of the branch; `None` for the packet itself.
    branch: Option<usize>,
}

/// Journeys under way.
pub struct Tracker {
    /// By number, the one that something happened to last at the end.
    active: LinkedHashMap<u64, Active>,
    by_skb: HashMap<u64, Place>,
    /// How many of them are between the ends of a veth pair.
    crossing: usize,
    next_id: u64,
    next_arp: u64,
    /// Journeys that ended early because too many were under way.
    pub evicted: u64,
    /// When events were last found to be lost.
    lost_ns: Option<u64>,
    socket_reasons: SocketReasons,
}

impl Tracker {
    /// An empty tracker for the packets of a kernel with these reasons.
    pub fn new(socket_reasons: SocketReasons) -> Self {
        Self {
            active: LinkedHashMap::new(),
            by_skb: HashMap::new(),
            crossing: 0,
            next_id: 1,
            next_arp: FIRST_ARP,
            evicted: 0,
            lost_ns: None,
            socket_reasons,
        }
    }

    /// Number of journeys under way.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Events were lost before this time: every journey that began before it may have a gap.
    pub const fn mark_loss(&mut self, now_ns: u64) {
        self.lost_ns = Some(now_ns);
    }

    /// When events were last lost.
    pub const fn lost_ns(&self) -> Option<u64> {
        self.lost_ns
    }

    /// What this kernel's reasons say of packets at sockets.
    pub fn set_socket_reasons(&mut self, reasons: SocketReasons) {
        self.socket_reasons = reasons;
    }

    /// The journey that begins next gets this number, as it had when it was recorded.
    pub const fn number_next(&mut self, id: u64) {
        self.next_id = id;
    }

    /// The journey under way that an skb belongs to.
    pub fn under_way(&self, skb: u64) -> Option<&Journey> {
        let place = self.by_skb.get(&skb)?;
        self.active.get(&place.id).map(|active| &active.journey)
    }

    /// Takes an event; journeys that it ends go to `ended`. Gives the number of the event's journey.
    pub fn push(&mut self, event: Event, ended: &mut Vec<Journey>) -> Option<u64> {
        if event.skb == 0 {
            return None;
        }
        if let Some(place) = self.by_skb.get(&event.skb).copied() {
            match self.relation(place, &event) {
                Relation::Other => {
                    if let Some(birth) = self.another_piece(place.id, &event) {
                        self.branch(place.id, &birth, event, ended);
                        return Some(place.id);
                    }
                    self.leave(event.skb, place, ended);
                }
                relation => {
                    self.add(place, relation, event, ended);
                    return Some(place.id);
                }
            }
        }
        // Without headers there is nothing to tell about.
        let packet = event.packet.as_ref()?;
        if self.is_left_of_reassembly(&event, packet) {
            return None;
        }
        if let Some(id) = self.moved(&event, packet) {
            self.follow(id, event, ended);
            Some(id)
        } else if let Some((id, birth)) = self.parent(&event, packet) {
            self.branch(id, &birth, event, ended);
            Some(id)
        } else {
            Some(self.start(event, ended))
        }
    }

    fn relation(&self, place: Place, event: &Event) -> Relation {
        let Some(active) = self.active.get(&place.id) else {
            return Relation::Other;
        };
        match place.branch {
            None => active.layers.relation(&active.journey.events, event),
            Some(index) => active.origins.relation(&active.journey, index, event),
        }
    }

    /// The skb is another packet's from now on; a journey that has no other one has ended.
    fn leave(&mut self, skb: u64, place: Place, ended: &mut Vec<Journey>) {
        self.by_skb.remove(&skb);
        let Some(active) = self.active.get_mut(&place.id) else {
            return;
        };
        active.skbs.retain(|&known| known != skb);
        if active.skbs.is_empty() {
            self.end(place.id, ended);
        }
    }

    fn add(&mut self, place: Place, relation: Relation, event: Event, ended: &mut Vec<Journey>) {
        let reasons = &self.socket_reasons;
        let Some(active) = self.active.to_back(&place.id) else {
            return;
        };
        let skb = event.skb;
        active.last_ns = event.time_ns;
        self.crossing -= usize::from(active.is_crossing());
        let over = match place.branch {
            Some(index) => active.add_to_branch(index, event, reasons),
            None => active.add(relation, event, reasons),
        };
        self.crossing += usize::from(active.is_crossing());
        if over {
            self.leave(skb, place, ended);
        }
    }

    fn start(&mut self, event: Event, ended: &mut Vec<Journey>) -> u64 {
        if self.active.len() >= MOST_ACTIVE
            && let Some(&oldest) = self.active.front().map(|(id, _)| id)
        {
            self.evicted += 1;
            self.end(oldest, ended);
        }
        let arp =
            (event.packet.as_ref()).is_some_and(|packet| packet.tuple.protocol == protocol::ARP);
        let next = if arp {
            &mut self.next_arp
        } else {
            &mut self.next_id
        };
        let (id, skb, last_ns) = (*next, event.skb, event.time_ns);
        // A capture numbers the next one as it likes.
        *next = id.wrapping_add(1);
        let active = Active {
            journey: Journey {
                id,
                events: Vec::with_capacity(USUAL_EVENTS),
                ..Journey::default()
            },
            layers: Layers::default(),
            origins: Origins::default(),
            skbs: vec![skb],
            last_ns,
        };
        self.active.insert(id, active);
        let place = Place { id, branch: None };
        self.by_skb.insert(skb, place);
        self.add(place, Relation::Same, event, ended);
        id
    }

    /// The packet that goes on in another skb: where a device needs more room for headers, its output
    /// copies it (`ip_finish_output2`); where a device or socket takes no packet of many segments, the first of
    /// them is told as its way (`validate_xmit_skb`, `udp_rcv_segment`); and a veth device that runs an XDP program
    /// makes room for it (`veth_xdp_rcv_skb`).
    fn moved(&self, event: &Event, packet: &Packet) -> Option<u64> {
        let before = match event.role() {
            Role::Transmit | Role::NeighbourQueue => Role::ToNeighbour,
            Role::Deliver => Role::Transport,
            Role::Receive | Role::Drop if self.crossing > 0 => Role::Veth,
            _ => return None,
        };
        let mut recent = self.recent(event.time_ns);
        recent.find_map(|(&id, active)| active.moves_from(before, event, packet).then_some(id))
    }

    /// The journeys that something happened to just before, the last one first.
    fn recent(&self, now_ns: u64) -> impl Iterator<Item = (&u64, &Active)> {
        let last_first = self.active.iter().rev().take(MOST_LOOKED_BACK).enumerate();
        last_first
            .take_while(move |(at, (_, active))| {
                *at < LOOKED_BACK || now_ns.saturating_sub(active.last_ns) <= MEANWHILE_NS
            })
            .map(|(_, found)| found)
    }

    fn follow(&mut self, id: u64, event: Event, ended: &mut Vec<Journey>) {
        if let Some(active) = self.active.get_mut(&id) {
            for old in active.skbs.drain(..) {
                self.by_skb.remove(&old);
            }
            active.skbs.push(event.skb);
        }
        let place = Place { id, branch: None };
        self.by_skb.insert(event.skb, place);
        self.add(place, Relation::Same, event, ended);
    }

    /// The packet that a new skb is a fragment or copy of. Both are made of an skb that something
    /// happened to just before.
    fn parent(&self, event: &Event, packet: &Packet) -> Option<(u64, Birth)> {
        let flooded = event.role() == Role::Bridge;
        let cut = packet.is_later_fragment() || event.role() == Role::ToNeighbour;
        if !flooded && !cut {
            return None;
        }
        let mut recent = self.recent(event.time_ns);
        recent.find_map(|(&id, active)| active.begets(event, packet).map(|birth| (id, birth)))
    }

    /// Another fragment of the packet whose skb it has: that was freed, and used again for the next.
    fn another_piece(&self, id: u64, event: &Event) -> Option<Birth> {
        let packet = event.packet.as_ref()?;
        if !packet.is_later_fragment() || self.is_left_of_reassembly(event, packet) {
            return None;
        }
        self.active.get(&id)?.begets(event, packet)
    }

    /// To put fragments together the kernel makes skbs of its own (`inet_frag_reasm_prepare`), first seen where they
    /// are freed.
    fn is_left_of_reassembly(&self, event: &Event, packet: &Packet) -> bool {
        packet.is_later_fragment()
            && matches!(event.detail, Detail::Drop { reason, .. } if self.socket_reasons.is_unsaid(reason))
    }

    fn branch(&mut self, id: u64, birth: &Birth, event: Event, ended: &mut Vec<Journey>) {
        let Some(active) = self.active.get_mut(&id) else {
            return;
        };
        let index = active.origins.add(&mut active.journey, birth);
        active.skbs.push(event.skb);
        let place = Place {
            id,
            branch: Some(index),
        };
        self.by_skb.insert(event.skb, place);
        self.add(place, Relation::Same, event, ended);
    }

    /// Ends journeys that nothing happened to for long, by the kernel's clock.
    pub fn expire(&mut self, now_ns: u64, ended: &mut Vec<Journey>) {
        let over: Vec<u64> = self
            .active
            .iter()
            .take_while(|(_, active)| now_ns.saturating_sub(active.last_ns) > IDLE_NS)
            .filter(|(_, active)| now_ns.saturating_sub(active.last_ns) > active.patience())
            .map(|(&id, _)| id)
            .collect();
        self.end_all(over, ended);
    }

    /// Ends all journeys.
    pub fn finish(&mut self, ended: &mut Vec<Journey>) {
        let all = self.active.keys().copied().collect();
        self.end_all(all, ended);
    }

    fn end_all(&mut self, ids: Vec<u64>, ended: &mut Vec<Journey>) {
        let first = ended.len();
        for id in ids {
            self.end(id, ended);
        }
        ended[first..].sort_by_key(|journey| (journey.start_ns(), journey.id));
    }

    fn end(&mut self, id: u64, ended: &mut Vec<Journey>) {
        let Some(active) = self.active.remove(&id) else {
            return;
        };
        self.crossing -= usize::from(active.is_crossing());
        for skb in &active.skbs {
            if self.by_skb.get(skb).is_some_and(|place| place.id == id) {
                self.by_skb.remove(skb);
            }
        }
        let mut journey = active.finish();
        journey.gap |= self
            .lost_ns
            .is_some_and(|lost_ns| lost_ns >= journey.start_ns());
        ended.push(journey);
    }
}

/// Keeps an event; where there are too many, says that some are missing.
fn keep(events: &mut Vec<Event>, event: Event, gap: &mut bool) {
    if events.len() < MOST_EVENTS {
        events.push(event);
    } else {
        *gap = true;
    }
}

impl Active {
    /// Adds an event of the packet itself; true when it is its last.
    fn add(&mut self, relation: Relation, event: Event, reasons: &SocketReasons) -> bool {
        match relation {
            Relation::Wrapped => self.layers.wrap(&self.journey),
            Relation::Unwrapped => self.layers.unwrap(&mut self.journey),
            Relation::Same | Relation::Other => {}
        }
        if !belongs(&self.journey, &event) {
            return false;
        }
        let over = if for_another_host(&self.journey.events, &event, reasons) {
            Some(Ending::ForAnotherHost)
        } else {
            ending(|| self.journey.was_taken(), &event, reasons)
        };
        self.layers.note(&event);
        keep(&mut self.journey.events, event, &mut self.journey.gap);
        if let Some(ending) = over {
            self.journey.ending = ending;
        }
        over.is_some()
    }

    fn add_to_branch(&mut self, index: usize, event: Event, reasons: &SocketReasons) -> bool {
        let Some(branch) = self.journey.branches.get_mut(index) else {
            return true;
        };
        let over = ending(|| branch.was_taken(), &event, reasons);
        self.origins.note(index, &event);
        keep(&mut branch.events, event, &mut self.journey.gap);
        if let Some(ending) = over {
            branch.ending = ending;
        }
        over.is_some()
    }

    /// The packet is between the ends of a veth pair.
    fn is_crossing(&self) -> bool {
        let last = self.journey.events.last();
        last.is_some_and(|last| last.role() == Role::Veth)
    }

    /// True when this packet was last seen in this role, and is now in another skb.
    fn moves_from(&self, before: Role, event: &Event, packet: &Packet) -> bool {
        let last = self.journey.events.last();
        self.journey.branches.is_empty()
            && last.is_some_and(|last| {
                last.role() == before
                    && (before == Role::Veth || last.netns == event.netns)
                    && last.packet.as_ref() == Some(packet)
            })
    }

    /// How a packet that appears at an skb of its own comes from this one.
    fn begets(&self, event: &Event, packet: &Packet) -> Option<Birth> {
        self.origins.birth(&self.journey, event, packet)
    }

    fn patience(&self) -> u64 {
        let last = |events: &[Event]| events.last().map(Event::role);
        let waits = |role| matches!(role, Some(Role::ToNeighbour | Role::NeighbourQueue));
        let mut branches = self.journey.branches.iter();
        // What became of an skb that was cut is in its pieces.
        let cut = self.journey.passed(Role::Fragment);
        if !cut && waits(last(&self.journey.events))
            || branches.any(|branch| waits(last(&branch.events)))
        {
            NEIGHBOUR_IDLE_NS
        } else {
            IDLE_NS
        }
    }

    fn finish(self) -> Journey {
        let Self {
            mut journey,
            layers,
            origins,
            ..
        } = self;
        layers.close(&mut journey);
        if journey.ending == Ending::OutOfSight {
            journey.ending = unseen(&journey.events, journey.was_taken());
        }
        for branch in &mut journey.branches {
            if branch.ending == Ending::OutOfSight {
                branch.ending = unseen(&branch.events, branch.was_taken());
            }
        }
        origins.settle(&mut journey);
        journey
    }
}

impl Branch {
    fn was_taken(&self) -> bool {
        self.events.iter().any(takes)
    }
}

#[cfg(test)]
mod tests;
