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
    /// Its sequence number: everything before is acknowledged.
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

    /// The largest packet with data, or else without, that the other side acknowledged before this.
    pub fn largest_before(&self, repeated: &Repeated<'_>) -> Option<&Journey> {
        let is_before = |journey: &Journey| {
            let begins = segment(journey).map(|(sequence, _)| sequence);
            begins.is_some_and(|sequence| (repeated.sequence.wrapping_sub(sequence) as i32) > 0)
        };
        self.of(repeated.direction)
            .filter(|journey| is_before(journey))
            .max_by_key(|journey| segment(journey).map(|(_, bytes)| bytes))
    }
}

/// Sequence number and bytes of data.
pub fn segment(journey: &Journey) -> Option<(u32, u16)> {
    match journey.first_packet()?.transport {
        Transport::Tcp { sequence, data, .. } => Some((sequence, data)),
        _ => None,
    }
}
