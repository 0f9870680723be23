//! The fragments and copies of a packet: which skb is one of which, and which of them tells what became of it.
//!
//! A packet may be cut, put together again where connections are tracked, and cut again behind NAT: a piece
//! belongs to the part that was cut, whose headers at that place it shares.

use std::cmp::Reverse;

use super::layer::{Layers, Relation, comes_again};
use super::{Area, Branch, BranchKind, Ending, Event, Journey, Role};
use crate::event::Packet;

/// Most fragments or copies kept of one packet: 64 KiB in pieces of the least IPv6 MTU, cut four times.
const MOST_BRANCHES: usize = 256;

/// A packet, or one of its branches by index.
type Part = Option<usize>;

/// Where a branch left, and at which layer of tunnels it is.
struct Origin {
    part: Part,
    /// How many of that part's events came before it.
    from: usize,
    layers: Layers,
}

/// Where the branches of a journey come from, in their order.
#[derive(Default)]
pub(super) struct Origins(Vec<Origin>);

/// How a branch comes from a journey.
pub(super) struct Birth {
    kind: BranchKind,
    part: Part,
    from: usize,
}

fn events(journey: &Journey, part: Part) -> &[Event] {
    match part {
        None => &journey.events,
        Some(index) => (journey.branches.get(index)).map_or(&[], |branch| &branch.events),
    }
}

/// Headers at last sight.
fn last_headers(events: &[Event]) -> Option<&Packet> {
    events.iter().rev().find_map(|event| event.packet.as_ref())
}

impl Origins {
    /// How a packet that appears at an skb of its own comes from this journey.
    pub(super) fn birth(&self, journey: &Journey, event: &Event, packet: &Packet) -> Option<Birth> {
        if journey.branches.len() >= MOST_BRANCHES {
            return None;
        }
        if event.role() == Role::Bridge {
            let last = journey.events.last()?;
            let copied = matches!(last.role(), Role::Bridge | Role::Flood)
                && last.netns == event.netns
                && last_headers(&journey.events) == Some(packet);
            if copied {
                return Some(Birth {
                    kind: BranchKind::Copy,
                    part: None,
                    from: journey.events.len(),
                });
            }
        }
        if event.role() == Role::LocalOut {
            return None;
        }
        let mut parts = (0..journey.branches.len()).rev().map(Some).chain([None]);
        let (part, from) = parts
            .find_map(|part| Some((part, self.cut(journey, part, packet)?)))
            // One that was cut elsewhere has a way of its own, from where it was first seen.
            .or_else(|| {
                let seen = last_headers(&journey.events)?;
                let piece = packet.is_later_fragment() && seen.ip_id.is_some();
                (piece && seen.shares_fragments_with(packet)).then_some((None, 0))
            })?;
        Some(Birth {
            kind: BranchKind::Fragment,
            part,
            from,
        })
    }

    /// How many events the part had when it was cut here, when this packet is a piece of it.
    fn cut(&self, journey: &Journey, part: Part, packet: &Packet) -> Option<usize> {
        let events = events(journey, part);
        let cut = events
            .iter()
            .rposition(|event| event.role() == Role::Fragment)?;
        let (before, after) = events.split_at(cut + 1);
        if !last_headers(before)?.shares_fragments_with(packet) {
            return None;
        }
        // IPv6 gives its pieces an identification as it cuts; the first piece says which.
        let pieces = self.0.iter().zip(&journey.branches);
        let of_it = pieces.filter(|(origin, _)| origin.part == part && origin.from == cut + 1);
        let mut others = after
            .iter()
            .chain(of_it.flat_map(|(_, branch)| &branch.events))
            .filter_map(|event| event.packet.as_ref());
        let known = others.find_map(|packet| packet.ip_id);
        (known.is_none() || known == packet.ip_id).then_some(cut + 1)
    }

    /// Adds a branch without events to the journey; gives its index.
    pub(super) fn add(&mut self, journey: &mut Journey, birth: &Birth) -> usize {
        journey.branches.push(Branch {
            kind: birth.kind,
            events: Vec::new(),
            ending: Ending::OutOfSight,
        });
        self.0.push(Origin {
            part: birth.part,
            from: birth.from,
            layers: Layers::default(),
        });
        journey.branches.len() - 1
    }

    /// Notes an event of a branch.
    pub(super) fn note(&mut self, index: usize, event: &Event) {
        if let Some(origin) = self.0.get_mut(index) {
            origin.layers.note(event);
        }
    }

    /// What an event at the skb of a branch is to it. Tunnels are followed for the packet itself only.
    pub(super) fn relation(&self, journey: &Journey, index: usize, event: &Event) -> Relation {
        let Some(origin) = self.0.get(index) else {
            return Relation::Other;
        };
        let own = events(journey, Some(index));
        let parted = events(journey, origin.part).get(..origin.from);
        let returned = event.role() == Role::Receive
            && own.last().is_some_and(|last| last.role() == Role::Transmit)
            && comes_again(parted.unwrap_or_default(), event);
        match origin.layers.relation(own, event) {
            Relation::Same if !returned => Relation::Same,
            _ => Relation::Other,
        }
    }

    /// Makes the way of the piece that decides what became of the packet the journey's own: a fragment
    /// that was lost, the copy that came farthest.
    pub(super) fn settle(mut self, journey: &mut Journey) {
        if journey.branches.is_empty() {
            return;
        }
        if let Some(index) = decisive(journey) {
            self.promote(journey, index);
            journey.branches.retain(|branch| !branch.events.is_empty());
        }
        tell_what_was_reassembled(journey);
    }

    /// Exchanges what a branch did alone with what the journey did after the branch left.
    fn promote(&mut self, journey: &mut Journey, index: usize) {
        let Some(&Origin { part, mut from, .. }) = self.0.get(index) else {
            return;
        };
        // A part is older than its pieces, so this ends.
        if let Some(part) = part.filter(|&part| part < index) {
            self.promote(journey, part);
            from += self.0[part].from;
        }
        let Some(branch) = journey.branches.get_mut(index) else {
            return;
        };
        let tail = journey.events.split_off(from.min(journey.events.len()));
        journey.carried.retain(|range| range.end <= from);
        journey.events.append(&mut branch.events);
        branch.events = tail;
        std::mem::swap(&mut journey.ending, &mut branch.ending);
        self.0[index].from = from;
    }
}

/// The branch that tells what became of the packet; `None` where its own way does.
fn decisive(journey: &Journey) -> Option<usize> {
    let fragments = (journey.branches.iter()).any(|branch| branch.kind == BranchKind::Fragment);
    // Freeing the whole comes first, then its pieces are freed with it.
    let first = |events: &[Event]| Reverse(events.last().map(|event| event.time_ns));
    // What a socket took was whole; the kernel frees the pieces that were put together.
    let rank = |ending: Ending, events: &[Event]| match ending {
        Ending::Delivered => (4, Reverse(None)),
        Ending::Dropped { .. } if fragments => (3, first(events)),
        Ending::Dropped { .. } if was_for_host(events) => (3, Reverse(None)),
        Ending::Transmitted => (2, Reverse(None)),
        Ending::OutOfSight | Ending::Reassembled => (1, Reverse(None)),
        Ending::Dropped { .. } | Ending::ForAnotherHost => (0, Reverse(None)),
    };
    // The skb that was cut is gone; only its pieces are of interest.
    let cut = journey.events.last().map(Event::role) == Some(Role::Fragment);
    let own = (!cut).then(|| rank(journey.ending, &journey.events));
    let ranked = journey.branches.iter().enumerate().rev();
    ranked
        .map(|(index, branch)| (Some(rank(branch.ending, &branch.events)), index))
        .max_by_key(|&(rank, _)| rank)
        .filter(|&(rank, _)| rank > own)
        .map(|(_, index)| index)
}

/// True when the host that a copy came to, or a bridge that filters, did not just find that it is another host's:
/// IP does so first of all (`ip_rcv_core`).
fn was_for_host(events: &[Event]) -> bool {
    let came = |event: &Event| matches!(event.role(), Role::Receive | Role::Flood);
    let since = events.rsplit(came).next().unwrap_or_default();
    since.iter().any(|event| match event.role().area() {
        Area::Ip => event.role() != Role::Ip,
        Area::Netfilter | Area::Conntrack | Area::Ipvs | Area::Socket => true,
        _ => false,
    })
}

/// A transport gets whole packets only: one that came so far holds all of its fragments, whose skbs are freed
/// with it.
fn tell_what_was_reassembled(journey: &mut Journey) {
    let arrived = |event: &Event| matches!(event.role(), Role::Transport | Role::Deliver);
    // A tunnel's packet around a piece is whole by itself.
    let mut own = (0..journey.events.len()).filter(|&index| !journey.is_carried(index));
    let whole = own.any(|index| arrived(&journey.events[index]))
        || (journey.branches.iter()).any(|branch| branch.events.iter().any(arrived));
    if !whole {
        return;
    }
    for branch in &mut journey.branches {
        let silent = match branch.ending {
            Ending::Dropped { reason, .. } => reason.is_none(),
            ending => ending == Ending::OutOfSight,
        };
        if branch.kind == BranchKind::Fragment && silent {
            branch.ending = Ending::Reassembled;
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::hook::HookId;

    use super::*;
    use crate::event::{Detail, Transport, protocol};
    use crate::journey::constructed::{event, packet};
    use crate::journey::{SocketReasons, Tracker};

    const BEFORE: (&str, &str) = ("192.0.2.1:1000", "192.0.2.2:53");
    const AFTER: (&str, &str) = ("10.0.0.1:1000", "10.0.0.2:5353");

    /// What happens, in order: hook, skb, offset of the piece (0 for the first and the whole), addresses.
    fn followed(happens: &[(HookId, u64, u16, (&str, &str))]) -> Vec<Journey> {
        let (mut tracker, mut ended) = (Tracker::new(SocketReasons::default()), Vec::new());
        for (at, &(hook, skb, offset, ends)) in happens.iter().enumerate() {
            let mut event = event(hook, skb, at as u64, 0);
            let mut packet = packet(protocol::UDP, ends);
            packet.ip_id = Some(7);
            if offset != 0 {
                packet.transport = Transport::Fragment { offset };
                packet.tuple.source.set_port(0);
                packet.tuple.destination.set_port(0);
            }
            event.packet = Some(packet);
            if hook == HookId::Drop {
                event.detail = Detail::Drop {
                    location: at as u64,
                    reason: None,
                };
            }
            tracker.push(event, &mut ended);
        }
        tracker.finish(&mut ended);
        ended
    }

    fn hooks(journey: &Journey) -> Vec<HookId> {
        journey.events.iter().map(|event| event.hook).collect()
    }

    const ONE_WAY: [HookId; 5] = [
        HookId::LocalOut,
        HookId::Fragment,
        HookId::OutputFinish,
        HookId::LocalDeliver,
        HookId::UdpDeliver,
    ];

    #[test]
    fn a_piece_in_the_skb_of_another_is_a_piece_of_its_own() {
        let ended = followed(&[
            (HookId::LocalOut, 1, 0, BEFORE),
            (HookId::Fragment, 1, 0, BEFORE),
            (HookId::OutputFinish, 2, 0, BEFORE),
            (HookId::LocalDeliver, 2, 0, BEFORE),
            (HookId::OutputFinish, 2, 370, BEFORE),
            (HookId::LocalDeliver, 2, 370, BEFORE),
            (HookId::UdpDeliver, 2, 0, BEFORE),
            // What reassembly leaves.
            (HookId::Drop, 3, 370, BEFORE),
        ]);
        assert_eq!(ended.len(), 1);
        assert_eq!(hooks(&ended[0]), ONE_WAY);
        assert_eq!(ended[0].ending, Ending::Delivered);
        let pieces: Vec<_> = ended[0].branches.iter().collect();
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].ending, Ending::Reassembled);
    }

    /// Other processors have as much to tell between the cut and the first piece.
    #[test]
    fn a_piece_is_found_behind_what_happened_to_others_meanwhile() {
        let others = |count: u64| (10..10 + count).map(|skb| (HookId::LocalOut, skb, 0, AFTER));
        for (count, journeys) in [(100, 101), (600, 602)] {
            let mut happens = vec![
                (HookId::LocalOut, 1, 0, BEFORE),
                (HookId::Fragment, 1, 0, BEFORE),
            ];
            happens.extend(others(count));
            happens.push((HookId::OutputFinish, 2, 185, BEFORE));
            assert_eq!(followed(&happens).len(), journeys, "{count}");
        }
    }

    #[test]
    fn what_is_cut_again_behind_nat_is_the_same_packet() {
        let ended = followed(&[
            (HookId::LocalOut, 1, 0, BEFORE),
            (HookId::Fragment, 1, 0, BEFORE),
            (HookId::OutputFinish, 1, 0, BEFORE),
            (HookId::OutputFinish, 2, 185, BEFORE),
            (HookId::Forward, 2, 0, BEFORE),
            (HookId::Output, 2, 0, AFTER),
            (HookId::Fragment, 2, 0, AFTER),
            (HookId::OutputFinish, 2, 0, AFTER),
            (HookId::OutputFinish, 3, 185, AFTER),
            (HookId::UdpDeliver, 3, 0, AFTER),
            (HookId::Drop, 1, 0, BEFORE),
        ]);
        assert_eq!(ended.len(), 1);
        assert_eq!(
            hooks(&ended[0]),
            [
                HookId::LocalOut,
                HookId::Fragment,
                HookId::OutputFinish,
                HookId::Forward,
                HookId::Output,
                HookId::Fragment,
                HookId::OutputFinish,
                HookId::UdpDeliver
            ]
        );
        assert!(!ended[0].failed());
        let ends = |tuple: Option<crate::event::Tuple>| tuple.map(|tuple| tuple.destination);
        assert_eq!(ends(ended[0].first_tuple()), BEFORE.1.parse().ok());
        assert_eq!(ends(ended[0].last_tuple()), AFTER.1.parse().ok());
        assert!((ended[0].branches.iter()).all(|piece| piece.ending == Ending::Reassembled));
    }

    /// Which of the copies is the packet's own skb is the bridge's choice.
    #[test]
    fn of_copies_the_host_that_a_packet_is_for_tells_its_end() {
        for (own, other) in [(1, 2), (2, 1)] {
            let ended = followed(&[
                (HookId::BridgeReceive, 1, 0, BEFORE),
                (HookId::BridgeFlood, 1, 0, BEFORE),
                (HookId::BridgeForward, 2, 0, BEFORE),
                (HookId::BridgeForward, 1, 0, BEFORE),
                (HookId::DeviceReceive, own, 0, BEFORE),
                (HookId::Ip4Receive, own, 0, BEFORE),
                (HookId::DeviceReceive, other, 0, BEFORE),
                (HookId::Ip4Receive, other, 0, BEFORE),
                (HookId::LocalDeliver, own, 0, BEFORE),
                (HookId::Drop, other, 0, BEFORE),
                (HookId::Drop, own, 0, BEFORE),
            ]);
            assert_eq!(ended.len(), 1);
            assert!(ended[0].failed());
            assert!(
                hooks(&ended[0]).contains(&HookId::LocalDeliver),
                "skb {own}"
            );
        }
    }

    #[test]
    fn where_the_whole_was_lost_is_told_not_where_its_pieces_were_freed_with_it() {
        let ended = followed(&[
            (HookId::LocalOut, 1, 0, BEFORE),
            (HookId::Fragment, 1, 0, BEFORE),
            (HookId::OutputFinish, 2, 0, BEFORE),
            (HookId::OutputFinish, 3, 185, BEFORE),
            (HookId::LocalDeliver, 3, 185, BEFORE),
            (HookId::Drop, 3, 0, BEFORE),
            (HookId::Drop, 2, 0, BEFORE),
        ]);
        assert_eq!(ended.len(), 1);
        assert!(ended[0].failed());
        let Ending::Dropped { location, .. } = ended[0].ending else {
            panic!("{:?}", ended[0].ending)
        };
        assert_eq!(location, 5);
    }
}
