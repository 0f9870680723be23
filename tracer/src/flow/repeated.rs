//! Data that one side of a TCP connection sends again and again.

use std::iter::once;

use super::{Direction, Flow};
use crate::event::{Transport, protocol};
use crate::journey::Journey;

/// The data and three repetitions: more than a path that loses some packets makes likely.
const COPIES: usize = 4;
/// Sights of one packet are closer together than its repetitions (`TCP_RTO_MIN` in include/net/tcp.h: 200 ms).
const APART_NS: u64 = 150_000_000;
/// A single byte asks whether a closed window has opened.
const LEAST_DATA: u16 = 2;

/// Data that its sender repeats because nobody acknowledges it.
#[derive(Debug)]
pub struct Repeated<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Its sequence number. What is repeated for want of an answer is the first that is not acknowledged (RFC 6298, 5.4).
    pub sequence: u32,
    /// The kept packets that carry it, in order.
    pub copies: Vec<&'a Journey>,
}

impl Flow {
    /// The data that is repeated, where nothing newer was sent and the other side fell silent with its first
    /// repetition.
    pub fn repeated(&self) -> Option<Repeated<'_>> {
        if self.client.protocol != protocol::TCP || self.replies == 0 {
            return None;
        }
        let mut data = self.kept().rev().filter_map(|(direction, journey)| {
            let (sequence, bytes) = segment(journey)?;
            (bytes >= LEAST_DATA).then_some((direction, sequence, journey))
        });
        let (direction, sequence, newest) = data.next()?;
        let mut older = data
            .filter(|&(way, ..)| way == direction)
            .take_while(|&(_, other, _)| other == sequence)
            .map(|(.., journey)| journey);
        let second = older.next()?;
        let mut copies: Vec<_> = once(newest).chain(once(second)).chain(older).collect();
        copies.reverse();
        let mut times: Vec<_> = copies.iter().map(|copy| copy.start_ns()).collect();
        times.dedup_by(|later, before| later.saturating_sub(*before) < APART_NS);
        let &first_again = times.get(1)?;
        let heard = self
            .kept()
            .any(|(way, journey)| way != direction && journey.start_ns() > first_again);
        (times.len() >= COPIES && !heard).then_some(Repeated {
            direction,
            sequence,
            copies,
        })
    }

    /// The largest packet that the other side acknowledged before this, where every byte since the connection
    /// was opened is in a packet that was kept: a larger one may be forgotten, or older than the trace.
    pub fn largest_acknowledged(&self, repeated: &Repeated<'_>) -> Option<&Journey> {
        let sent = || self.of(repeated.direction);
        let opening = sent().find(|journey| opens(journey))?;
        let (begin, _) = segment(opening)?;
        let place = |sequence: u32| sequence.wrapping_sub(begin);
        let mut before: Vec<_> = sent()
            .filter_map(|journey| {
                let (sequence, bytes) = segment(journey)?;
                // SYN takes a number of its own.
                let length = u32::from(bytes) + u32::from(opens(journey));
                Some((place(sequence), length, journey))
            })
            .filter(|&(begins, ..)| begins < place(repeated.sequence))
            .collect();
        before.sort_by_key(|&(begins, ..)| begins);
        let mut reached = 0;
        for &(begins, length, _) in &before {
            if begins > reached {
                return None;
            }
            reached = reached.max(begins.saturating_add(length));
        }
        let (.., largest) = before.into_iter().max_by_key(|&(_, length, _)| length)?;
        (reached >= place(repeated.sequence)).then_some(largest)
    }
}

/// It opens the connection, from either side.
fn opens(journey: &Journey) -> bool {
    let packet = journey.first_packet();
    packet.is_some_and(|packet| packet.opens() || packet.answers())
}

/// Sequence number and bytes of data.
pub fn segment(journey: &Journey) -> Option<(u32, u16)> {
    match journey.first_packet()?.transport {
        Transport::Tcp { sequence, data, .. } => Some((sequence, data)),
        _ => None,
    }
}
