//! Joins journeys to flows: both directions of a connection and every address it has on the way.
//!
//! A flow is its addresses, counts and times, about 300 bytes, for as long as it is among the
//! [`MOST_FLOWS`] heard of last. The journeys behind it are kept beside: first and last ones of each
//! flow, all together in [`MOST_JOURNEY_BYTES`]. Where that is too little, answered flows without a
//! failure give theirs up first, the quietest before the others; causes read failures and flows
//! without an answer.
//!
//! An ICMP error is an answer of the flow whose packet it quotes. Ports are used again: an address that a
//! newer request is translated to is that one's from then on, and a TCP connection that is opened anew is
//! another flow.

mod leg;
mod quiet;
mod repeated;
mod store;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::event::{Event, Packet, Transport, Tuple, tcp_flag};
use crate::journey::Journey;
use leg::{Leg, Legs, Place};
use quiet::Quiet;
pub use repeated::{Repeated, segment};
use store::Store;

/// Most flows kept; the one that was quiet longest goes first.
const MOST_FLOWS: usize = 1 << 20;
/// Most bytes of kept journeys, all flows together.
const MOST_JOURNEY_BYTES: usize = 96 << 20;
/// Journeys kept of one flow: its first ones and its last ones.
const FIRST_JOURNEYS: usize = 8;
const LAST_JOURNEYS: usize = 8;
/// Tuples of a usual flow beside the client's: behind DNAT, and behind SNAT.
const USUAL_LEGS: usize = 2;
/// Most tuples of one flow beside the client's: a client that never changes its port meets new ones
/// with every new translation.
const MOST_LEGS: u8 = 32;
/// Conntrack keeps a TCP connection that is not established, or was closed, for two minutes at most
/// (`tcp_timeouts` in net/netfilter/nf_conntrack_proto_tcp.c: SYN_SENT, FIN_WAIT, TIME_WAIT). Behind that NAT
/// takes an opening for another connection whatever became of the one before.
const TCP_FORGOTTEN_NS: u64 = 120_000_000_000;

/// Which way a journey goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the one who began.
    Request,
    /// Back to the one who began.
    Reply,
}

/// A connection, or what a datagram protocol has in place of one.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Number, from 1, in the order of first sight.
    pub id: u64,
    /// Addresses as the one who began used them.
    pub client: Tuple,
    /// Journeys of the one who began.
    pub requests: u64,
    /// Journeys back.
    pub replies: u64,
    /// Journeys of either direction that did not arrive, or met no virtual server.
    pub suspicious: u64,
    /// Start of the first journey, CLOCK_MONOTONIC nanoseconds.
    pub first_ns: u64,
    /// Start of the last journey, CLOCK_MONOTONIC nanoseconds.
    pub last_ns: u64,
    /// Addresses on the way beside the client's, in the direction of requests; those that are another
    /// flow's are not here.
    legs: SmallVec<[Leg; USUAL_LEGS]>,
    /// Which of a full `legs` is replaced next.
    next_leg: u8,
    /// Sequence number that its TCP connection began with, as far as it was seen.
    opening: Option<u32>,
    /// Its TCP connection was closed or reset.
    over: bool,
    /// An ICMP error came back, or RST before anything else.
    pub refused: bool,
    kept: Option<Box<Kept>>,
}

/// Journeys of one flow.
#[derive(Clone, Default, Debug)]
struct Kept {
    first: Vec<(Direction, Journey)>,
    last: VecDeque<(Direction, Journey)>,
}

impl Kept {
    /// Adds a journey; gives the one that has to go for it.
    fn push(&mut self, direction: Direction, journey: Journey) -> Option<Journey> {
        if self.first.len() < FIRST_JOURNEYS {
            self.first.push((direction, journey));
            return None;
        }
        let over = (self.last.len() == LAST_JOURNEYS).then(|| self.last.pop_front());
        self.last.push_back((direction, journey));
        over.flatten().map(|(_, journey)| journey)
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &(Direction, Journey)> {
        self.first.iter().chain(&self.last)
    }

    fn bytes(&self) -> usize {
        self.iter().map(|(_, journey)| bytes(journey)).sum()
    }
}

/// Bytes that a kept journey takes.
fn bytes(journey: &Journey) -> usize {
    let branches = journey
        .branches
        .iter()
        .map(|branch| branch.events.capacity());
    let events = journey.events.capacity() + branches.sum::<usize>();
    events * size_of::<Event>() + size_of::<(Direction, Journey)>()
}

impl Flow {
    /// The kept journeys, in order.
    pub fn kept(&self) -> impl DoubleEndedIterator<Item = (Direction, &Journey)> {
        self.kept
            .iter()
            .flat_map(|kept| kept.iter())
            .map(|(direction, journey)| (*direction, journey))
    }

    /// The kept journeys of one direction, in order.
    pub fn of(&self, direction: Direction) -> impl Iterator<Item = &Journey> {
        self.kept()
            .filter(move |&(way, _)| way == direction)
            .map(|(_, journey)| journey)
    }

    /// It was answered, and nothing that it sent or got was lost.
    pub const fn is_settled(&self) -> bool {
        self.replies > 0 && self.suspicious == 0 && !self.refused
    }

    /// What a TCP packet that is sent now opens is another connection than this flow's.
    fn is_opened_anew(&self, transport: Transport, now_ns: u64) -> bool {
        let Some(sequence) = opening(transport) else {
            return false;
        };
        let forgotten = now_ns.saturating_sub(self.last_ns) > TCP_FORGOTTEN_NS;
        // A refusal may end before what it refuses does.
        let over = self.over && now_ns >= self.last_ns;
        self.opening != Some(sequence) && (over || forgotten)
    }

    /// Notes what a packet says of the TCP connection.
    fn note(&mut self, transport: Transport) {
        const ENDS: u8 = tcp_flag::FIN | tcp_flag::RST;
        if let Some(sequence) = opening(transport) {
            self.opening = Some(sequence);
        } else if matches!(transport, Transport::Tcp { flags, .. } if flags & ENDS != 0) {
            self.over = true;
        }
    }

    fn leg(&self, number: u8) -> Option<Tuple> {
        match number {
            0 => Some(self.client),
            _ => self.legs.get(usize::from(number) - 1).map(Leg::tuple),
        }
    }

    fn has_leg(&self, tuple: &Tuple) -> bool {
        self.client == *tuple || self.legs.iter().any(|leg| leg.tuple() == *tuple)
    }

    /// Every tuple of it with its place.
    fn places(&self) -> impl Iterator<Item = (Tuple, Place)> + '_ {
        let all = (0..=MOST_LEGS).map_while(|number| Some((number, self.leg(number)?)));
        all.map(|(number, tuple)| (tuple, Place::new(self.id, number)))
    }
}

/// The sequence number that a packet opens a TCP connection with.
const fn opening(transport: Transport) -> Option<u32> {
    const SYN_AND_ACK: u8 = tcp_flag::SYN | tcp_flag::ACK;
    match transport {
        Transport::Tcp {
            sequence, flags, ..
        } if flags & SYN_AND_ACK == tcp_flag::SYN => Some(sequence),
        _ => None,
    }
}

/// The addresses that tell which flow a journey is of.
struct Ends {
    first: Tuple,
    last: Tuple,
    /// It is certainly an answer: its TCP flags tell, or it refuses.
    answers: bool,
    /// It is an ICMP error about a request.
    refuses: bool,
}

/// A packet's addresses; those of an ICMP error about a request are its answer's.
fn read(packet: &Packet, refuses: bool) -> Tuple {
    if refuses {
        packet.as_answer()
    } else {
        packet.tuple
    }
}

/// Where a journey was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Added {
    /// The flow's number.
    pub flow: u64,
    /// The journey did not arrive, or met no virtual server.
    pub suspicious: bool,
}

/// What had to be forgotten to stay within bounds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Forgotten {
    /// Flows: a later packet of one begins a new flow.
    pub flows: u64,
    /// Flows that have lost their journeys though they had a failure or no answer.
    pub failures: u64,
}

/// All flows, bounded.
pub struct Flows {
    flows: Store,
    /// Every request-direction tuple that a flow had, before and after NAT.
    legs: Legs,
    next_id: u64,
    most: usize,
    most_journey_bytes: usize,
    journey_bytes: usize,
    /// All flows.
    quiet: Quiet,
    /// Flows with journeys.
    keeping: Quiet,
    /// Those of them that were not settled when their turn came.
    unsettled: Quiet,
    forgotten: Forgotten,
}

impl Default for Flows {
    fn default() -> Self {
        Self::bounded(MOST_FLOWS, MOST_JOURNEY_BYTES)
    }
}

impl Flows {
    /// A store of at most so many flows and so many bytes of journeys.
    pub fn bounded(most: usize, most_journey_bytes: usize) -> Self {
        Self {
            flows: Store::default(),
            legs: Legs::default(),
            next_id: 0,
            most,
            most_journey_bytes,
            journey_bytes: 0,
            quiet: Quiet::default(),
            keeping: Quiet::default(),
            unsettled: Quiet::default(),
            forgotten: Forgotten::default(),
        }
    }

    /// Adds a journey; `None` for a journey without addresses, which is nobody's.
    pub fn add(&mut self, journey: Journey) -> Option<Added> {
        let ends = self.ends(&journey)?;
        let packet = journey.first_packet()?;
        let (transport, resets) = (packet.transport, packet.resets());
        let mut found = self.find_any(ends.first, ends.last);
        if let Some(flow) = found.and_then(|(id, _)| self.flows.get(id))
            && flow.is_opened_anew(transport, journey.start_ns())
        {
            self.release(&ends.first);
            found = None;
        }
        let (id, direction) = found
            .or_else(|| self.adopt(&ends, &journey))
            .unwrap_or_else(|| self.begin(&ends, &journey));
        if let Some(flow) = self.flows.get_mut(id) {
            flow.note(transport);
            let reset = direction == Direction::Reply && flow.replies == 0 && resets;
            flow.refused |= ends.refuses || reset;
        }
        self.learn(id, direction, &ends, &journey);
        let suspicious = journey.is_suspicious();
        self.push(id, direction, journey, suspicious);
        self.shed();
        Some(Added {
            flow: id,
            suspicious,
        })
    }

    /// A flow by its number.
    pub fn get(&self, id: u64) -> Option<&Flow> {
        self.flows.get(id)
    }

    /// Every flow, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter()
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// True without flows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was forgotten so far.
    pub const fn forgotten(&self) -> Forgotten {
        self.forgotten
    }

    /// The flow of a tuple, and which way the tuple goes.
    pub fn find(&self, tuple: Tuple) -> Option<(u64, Direction)> {
        self.find_any(tuple, tuple)
    }

    /// The flow of a packet with these addresses at first and last sight, and which way it goes. A reply's last
    /// are its client's, who has them alone; the first, behind NAT, may have been another's before.
    fn find_any(&self, first: Tuple, last: Tuple) -> Option<(u64, Direction)> {
        if let Some(place) = self.place(&first) {
            return Some((place.flow(), Direction::Request));
        }
        let translated = (last != first).then(|| self.place(&last.reversed()));
        let place = translated
            .flatten()
            .or_else(|| self.place(&first.reversed()))?;
        Some((place.flow(), Direction::Reply))
    }

    fn place(&self, tuple: &Tuple) -> Option<Place> {
        self.legs.find(tuple, |place| tuple_at(&self.flows, place))
    }

    /// How a journey is looked for. What is about an answer is no answer: it stays by itself.
    fn ends(&self, journey: &Journey) -> Option<Ends> {
        let (first, last) = (journey.first_packet()?, journey.last_packet()?);
        let refuses = first.about.is_some() && self.place(&first.as_answer()).is_none();
        Some(Ends {
            first: read(first, refuses),
            last: read(last, refuses),
            answers: refuses || first.answers() || first.refuses_opening(),
            refuses,
        })
    }

    /// A flow whose first journey this is. The answer may end before what it answers does.
    fn begin(&mut self, ends: &Ends, journey: &Journey) -> (u64, Direction) {
        if ends.answers {
            (self.open(ends.last.reversed(), journey), Direction::Reply)
        } else {
            (self.open(ends.first, journey), Direction::Request)
        }
    }

    /// A flow that is known by what became of this journey behind NAT, because all that was seen of it so
    /// far came later and ended earlier: the addresses that this one began with are what its client meant.
    fn adopt(&mut self, ends: &Ends, journey: &Journey) -> Option<(u64, Direction)> {
        let &Ends { first, last, .. } = ends;
        if first == last {
            return None;
        }
        let (id, Direction::Request) = self.find(last)? else {
            return None;
        };
        let flow = self.flows.get_mut(id)?;
        if flow.client != last || flow.first_ns <= journey.start_ns() {
            return None;
        }
        (flow.client, flow.first_ns) = (first, journey.start_ns());
        let place = Place::new(id, 0);
        self.legs.remove(&last, place);
        self.legs
            .insert(&first, place, |place| tuple_at(&self.flows, place));
        Some((id, Direction::Request))
    }

    fn open(&mut self, client: Tuple, journey: &Journey) -> u64 {
        if self.flows.len() >= self.most {
            self.forget_quietest();
        }
        self.next_id += 1;
        let (id, start_ns) = (self.next_id, journey.start_ns());
        let flow = Flow {
            id,
            client,
            requests: 0,
            replies: 0,
            suspicious: 0,
            first_ns: start_ns,
            last_ns: start_ns,
            legs: SmallVec::new(),
            next_leg: 0,
            opening: None,
            over: false,
            refused: false,
            kept: None,
        };
        self.flows.insert(flow);
        self.legs.insert(&client, Place::new(id, 0), |place| {
            tuple_at(&self.flows, place)
        });
        self.quiet.push(id, start_ns);
        id
    }

    /// Takes up the addresses that a journey had on its way. NAT gives one flow at a time each of them: a
    /// request that is translated to what was an older flow's has it now.
    fn learn(&mut self, id: u64, direction: Direction, ends: &Ends, journey: &Journey) {
        let mut before = None;
        for tuple in journey.own().map(|packet| read(packet, ends.refuses)) {
            // Most hooks see what the hook before saw.
            if before.replace(tuple) == Some(tuple) {
                continue;
            }
            let request = match direction {
                Direction::Request => tuple,
                Direction::Reply => tuple.reversed(),
            };
            let known = self.flows.get(id).is_none_or(|flow| flow.has_leg(&request));
            if known {
                continue;
            }
            let owner = self.place(&request);
            let heard_ns = owner.and_then(|place| heard(&self.flows, place.flow()));
            let newer = heard_ns.is_some_and(|heard_ns| heard_ns < journey.start_ns());
            if direction == Direction::Request && newer {
                self.release(&request);
            } else if owner.is_some() {
                continue;
            }
            self.add_leg(id, request);
        }
    }

    /// Takes a tuple away from its flow, which keeps only the name of its client.
    fn release(&mut self, tuple: &Tuple) {
        let Some(place) = self.place(tuple) else {
            return;
        };
        self.legs.remove(tuple, place);
        let (Some(index), Some(flow)) =
            (place.leg().checked_sub(1), self.flows.get_mut(place.flow()))
        else {
            return;
        };
        flow.legs.swap_remove(usize::from(index));
        // The last one has its place now.
        if let Some(moved) = flow.leg(place.leg()) {
            let before = Place::new(flow.id, flow.legs.len() as u8 + 1);
            self.legs.remove(&moved, before);
            self.legs
                .insert(&moved, place, |place| tuple_at(&self.flows, place));
        }
    }

    fn add_leg(&mut self, id: u64, tuple: Tuple) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        let index = if flow.legs.len() < usize::from(MOST_LEGS) {
            flow.legs.push(tuple.into());
            flow.legs.len() as u8 - 1
        } else {
            let index = flow.next_leg;
            flow.next_leg = (index + 1) % MOST_LEGS;
            let old = std::mem::replace(&mut flow.legs[usize::from(index)], tuple.into());
            self.legs.remove(&old.tuple(), Place::new(id, index + 1));
            index
        };
        self.legs
            .insert(&tuple, Place::new(id, index + 1), |place| {
                tuple_at(&self.flows, place)
            });
    }

    fn push(&mut self, id: u64, direction: Direction, mut journey: Journey, suspicious: bool) {
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        match direction {
            Direction::Request => flow.requests += 1,
            Direction::Reply => flow.replies += 1,
        }
        flow.suspicious += u64::from(suspicious);
        flow.last_ns = flow.last_ns.max(journey.start_ns());
        if flow.kept.is_none() {
            self.keeping.push(id, flow.last_ns);
        }
        journey.events.shrink_to_fit();
        self.journey_bytes += bytes(&journey);
        let over = flow.kept.get_or_insert_default().push(direction, journey);
        self.journey_bytes -= over.as_ref().map_or(0, bytes);
    }

    /// Gives up journeys beyond what may be kept.
    fn shed(&mut self) {
        while self.journey_bytes > self.most_journey_bytes {
            let heard = |id| heard(&self.flows, id);
            let (id, first_turn) = match self.keeping.pop(heard) {
                Some(id) => (id, true),
                None => match self.unsettled.pop(heard) {
                    Some(id) => (id, false),
                    None => return,
                },
            };
            let Some(flow) = self.flows.get_mut(id) else {
                continue;
            };
            if first_turn && !flow.is_settled() {
                self.unsettled.push(id, flow.last_ns);
                continue;
            }
            self.forgotten.failures += u64::from(!flow.is_settled());
            self.journey_bytes -= flow.kept.take().map_or(0, |kept| kept.bytes());
        }
    }

    fn forget_quietest(&mut self) {
        let Some(id) = self.quiet.pop(|id| heard(&self.flows, id)) else {
            return;
        };
        let Some(flow) = self.flows.get(id) else {
            return;
        };
        for (tuple, place) in flow.places() {
            self.legs.remove(&tuple, place);
        }
        self.forgotten.flows += 1;
        self.journey_bytes -= flow.kept.as_ref().map_or(0, |kept| kept.bytes());
        self.flows.remove(id);
        for queue in [&mut self.keeping, &mut self.unsettled] {
            queue.tidy(self.flows.len(), |id| self.flows.get(id).is_some());
        }
    }
}

fn tuple_at(flows: &Store, place: Place) -> Option<Tuple> {
    flows.get(place.flow())?.leg(place.leg())
}

fn heard(flows: &Store, id: u64) -> Option<u64> {
    flows.get(id).map(|flow| flow.last_ns)
}
