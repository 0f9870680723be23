//! What belongs to the packets that a filter matches, as captures tell it.
//!
//! A journey is picked when it matches by itself, or when it has addresses of a flow that was picked: a
//! reply that was lost before it was translated back has no others. It may end before the journey that
//! tells whose it is, so a journey of which that is not known waits a while.

use std::collections::VecDeque;

use hashlink::LruCache;

use super::{Filter, NameOf, key};
use crate::event::{Detail, Event, Packet, Tuple};
use crate::journey::Journey;

/// Most addresses of flows that are known; the kernel's programs know as many.
const MOST_KNOWN: usize = 16_384;
/// Most journeys that wait.
const MOST_WAITING: usize = 4096;
/// A journey under way ends when nothing happened to it for less than this.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Picks the journeys of a filter out of those that ended.
pub struct Following {
    filter: Filter,
    /// The journeys are of what the kernel followed by the filter.
    traced: bool,
    /// Addresses of flows that were picked, the same for both directions.
    known: LruCache<Tuple, ()>,
    /// Journeys that may turn out to belong to such a flow, in the order of their ends.
    waiting: VecDeque<Journey>,
}

impl Default for Following {
    /// Picks everything.
    fn default() -> Self {
        Self::new(Filter::default())
    }
}

impl Following {
    /// Nothing picked yet.
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            traced: false,
            known: LruCache::new(MOST_KNOWN),
            waiting: VecDeque::new(),
        }
    }

    /// For journeys of what the kernel followed by the filter: all of them, but for what `not` excludes.
    pub fn of_traced(filter: Filter) -> Self {
        Self {
            traced: true,
            ..Self::new(filter)
        }
    }

    /// Forgets what was picked and what waits.
    pub fn forget(&mut self) {
        self.known.clear();
        self.waiting.clear();
    }

    /// Leaves in `ended` what is picked by now, of journeys that ended before as well.
    pub fn pick(&mut self, ended: &mut Vec<Journey>, now_ns: u64, name_of: &NameOf<'_>) {
        if self.filter.is_everything() {
            return;
        }
        if self.traced {
            let program = self.filter.program();
            ended.retain(|journey| !program.leaves_out(&key::of_journey(journey, name_of)));
            return;
        }
        let mut learned = false;
        let mut picked = Vec::new();
        let program = *self.filter.program();
        for journey in ended.drain(..) {
            let keys = key::of_journey(&journey, name_of);
            if program.leaves_out(&keys) {
                continue;
            }
            if program.matches_one_of(&keys) || self.is_known(&journey) {
                learned |= self.learn(&journey);
                picked.push(journey);
            } else {
                self.waiting.push_back(journey);
            }
        }
        // Each may tell whose others are.
        while std::mem::take(&mut learned) {
            for journey in std::mem::take(&mut self.waiting) {
                if self.is_known(&journey) {
                    learned |= self.learn(&journey);
                    picked.push(journey);
                } else {
                    self.waiting.push_back(journey);
                }
            }
        }
        self.tire(now_ns);
        *ended = picked;
    }

    /// Gives up what has waited for long.
    fn tire(&mut self, now_ns: u64) {
        while let Some(first) = self.waiting.front()
            && (self.waiting.len() > MOST_WAITING
                || now_ns.saturating_sub(first.end_ns()) > PATIENCE_NS)
        {
            self.waiting.pop_front();
        }
    }

    /// True when the journey has addresses of a flow that was picked.
    fn is_known(&self, journey: &Journey) -> bool {
        let events = journey.events.iter().enumerate();
        let own = events.filter(|&(index, _)| !journey.is_carried(index));
        let quoted = journey.own().filter_map(Packet::quoted);
        journey
            .tuples()
            .chain(quoted)
            .chain(own.flat_map(|(_, event)| entry(event)))
            .any(|tuple| self.known.contains_key(&undirected(tuple)))
    }

    /// Takes up the addresses of a journey; true when one of them is new.
    fn learn(&mut self, journey: &Journey) -> bool {
        let mut learned = false;
        let mut before = None;
        for tuple in journey.tuples() {
            // Addresses alone are not one flow's, and most hooks see what the hook before saw.
            if tuple.source.port() == 0 || before.replace(tuple) == Some(tuple) {
                continue;
            }
            learned |= self.known.insert(undirected(tuple), ()).is_none();
        }
        learned
    }
}

/// The tuples of the conntrack entry that an event shows.
fn entry(event: &Event) -> impl Iterator<Item = Tuple> {
    let tuples = match event.detail {
        Detail::Conntrack {
            original, reply, ..
        } => Some([original, reply]),
        _ => None,
    };
    tuples.into_iter().flatten()
}

/// The same for both directions.
fn undirected(tuple: Tuple) -> Tuple {
    if tuple.source <= tuple.destination {
        tuple
    } else {
        tuple.reversed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Quoted;
    use crate::filter::{Expression, Here};
    use crate::journey::constructed::journey;

    const CLIENT: (&str, &str) = ("192.0.2.2:4000", "192.0.2.1:30000");
    const POD: (&str, &str) = ("10.244.0.1:4000", "10.244.0.9:3000");

    fn following(text: &str) -> Following {
        let expression = Expression::parse(text).expect(text);
        Following::new(expression.resolve(&Here::default()).expect(text))
    }

    fn picked(following: &mut Following, mut ended: Vec<Journey>, now_ns: u64) -> Vec<u64> {
        following.pick(&mut ended, now_ns, &|_, _| None);
        ended.iter().map(|journey| journey.id).collect()
    }

    /// The request, its reply that is lost before it is translated back, and another flow's packet.
    fn journeys() -> [Journey; 3] {
        let lost = (POD.1, POD.0);
        [
            journey(1, 17, &[CLIENT, POD]),
            journey(2, 17, &[lost]),
            journey(3, 17, &[("10.244.0.1:4001", POD.1)]),
        ]
    }

    #[test]
    fn a_reply_that_was_lost_before_it_was_translated_back_is_picked_with_its_request() {
        let [request, reply, other] = journeys();
        let mut one = following("port 30000");
        assert_eq!(picked(&mut one, vec![request.clone()], 1), [1]);
        assert_eq!(picked(&mut one, vec![other.clone(), reply.clone()], 2), [2]);
        // It may end first.
        let mut two = following("port 30000");
        assert!(picked(&mut two, vec![reply.clone(), other], 1).is_empty());
        assert_eq!(picked(&mut two, vec![request.clone()], 2), [1, 2]);
        // But not long before, or in another phase.
        let mut three = following("port 30000");
        assert!(picked(&mut three, vec![reply.clone()], 1).is_empty());
        assert!(picked(&mut three, vec![], 3 * PATIENCE_NS).is_empty());
        assert_eq!(picked(&mut three, vec![request], 3 * PATIENCE_NS), [1]);
        three.forget();
        assert!(picked(&mut three, vec![reply], 3 * PATIENCE_NS).is_empty());
    }

    #[test]
    fn a_refusal_is_picked_with_what_it_is_about() {
        let [request, reply, other] = journeys();
        let about = |journey: &Journey, id| {
            let mut error =
                crate::journey::constructed::journey(id, 1, &[("192.0.2.1:0", "192.0.2.2:0")]);
            let icmp = error.events[0].packet.as_mut().expect("headers");
            let about = journey.first_tuple().expect("addresses");
            icmp.tuple.destination.set_ip(about.source.ip());
            icmp.about = Some(Quoted::of(about));
            error
        };
        // By what it quotes, and by the flow of that.
        let errors = [about(&request, 4), about(&reply, 5), about(&other, 6)];
        let mut following = following("port 30000");
        assert_eq!(picked(&mut following, errors.to_vec(), 1), [4]);
        assert_eq!(picked(&mut following, vec![request], 2), [1, 5]);
    }

    #[test]
    fn no_more_journeys_wait_than_there_is_room_for() {
        let mut following = following("port 30000");
        let [request, reply, other] = journeys();
        let mut many = vec![other; MOST_WAITING];
        many.insert(0, reply);
        assert!(picked(&mut following, many, 1).is_empty());
        assert_eq!(following.waiting.len(), MOST_WAITING);
        assert_eq!(picked(&mut following, vec![request], 1), [1]);
    }

    #[test]
    fn an_entry_tells_whose_a_packet_is() {
        let [request, mut reply, _] = journeys();
        let tuple = |ends| journey(1, 17, &[ends]).first_tuple().expect("addresses");
        reply.events[0].packet = None;
        reply.events[0].detail = Detail::Conntrack {
            original: tuple(POD),
            reply: tuple((POD.1, POD.0)),
            destination_nat: false,
            relation: None,
            status: 0,
            zone: 0,
        };
        let mut following = following("port 30000");
        assert_eq!(picked(&mut following, vec![reply, request], 1), [1, 2]);
    }

    #[test]
    fn what_is_excluded_on_one_side_of_nat_is_left_out() {
        let answer = |one: (_, _), two: (_, _)| journey(4, 17, &[(one.1, one.0), (two.1, two.0)]);
        let [request, _, other] = journeys();
        let all = vec![request, answer(POD, CLIENT), other];
        for (words, expected) in [
            ("udp and not port 30000", &[3][..]),
            ("not src host 192.0.2.2", &[3]),
            ("not (host 192.0.2.2 and port 53)", &[1, 4, 3]),
            ("not (host 192.0.2.2 and port 4000)", &[3]),
            ("not not port 30000", &[1, 4]),
            // Its flow is known, and excluded all the same.
            ("port 3000 and not host 192.0.2.1", &[3]),
            ("port 30000 or not port 3000", &[1, 4]),
            ("not tcp", &[1, 4, 3]),
            ("not udp", &[]),
        ] {
            assert_eq!(
                picked(&mut following(words), all.clone(), 1),
                expected,
                "{words}"
            );
        }
        // The kernel has followed them.
        let mut traced = Following::of_traced(following("tcp and not port 30000").filter);
        assert_eq!(picked(&mut traced, all, 1), [3]);
    }

    #[test]
    fn without_a_filter_everything_is_picked() {
        let mut following = Following::default();
        assert_eq!(picked(&mut following, journeys().to_vec(), 1), [1, 2, 3]);
        assert!(following.waiting.is_empty());
    }
}
