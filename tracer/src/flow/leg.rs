//! Which flow a tuple belongs to: one small entry for every pair of addresses that a flow has on its way.
//!
//! Invariant: an entry leads to a leg of a flow that is there; who takes a leg away takes its entry
//! away first.

use std::hash::BuildHasher as _;
use std::net::{SocketAddr, SocketAddrV4};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::event::Tuple;

/// A tuple in 16 bytes; IPv6's lie elsewhere.
#[derive(Clone, Debug)]
pub(super) enum Leg {
    V4 {
        protocol: u8,
        source: SocketAddrV4,
        destination: SocketAddrV4,
    },
    Other(Box<Tuple>),
}

impl From<Tuple> for Leg {
    fn from(tuple: Tuple) -> Self {
        match (tuple.source, tuple.destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => Self::V4 {
                protocol: tuple.protocol,
                source,
                destination,
            },
            _ => Self::Other(Box::new(tuple)),
        }
    }
}

impl Leg {
    /// The whole tuple.
    pub(super) fn tuple(&self) -> Tuple {
        match self {
            &Self::V4 {
                protocol,
                source,
                destination,
            } => Tuple {
                protocol,
                source: source.into(),
                destination: destination.into(),
            },
            Self::Other(tuple) => **tuple,
        }
    }
}

/// A leg of a flow: the flow's number and, in the low eight bits, the leg's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(u64);

impl Place {
    pub(super) const fn new(flow: u64, leg: u8) -> Self {
        Self(flow << 8 | leg as u64)
    }

    pub(super) const fn flow(self) -> u64 {
        self.0 >> 8
    }

    pub(super) const fn leg(self) -> u8 {
        self.0 as u8
    }
}

/// The places of all legs, found by tuple. The tuples themselves are read where they are: `at` gives
/// the tuple of a place.
#[derive(Default)]
pub(super) struct Legs {
    places: HashTable<Place>,
    hasher: DefaultHashBuilder,
}

impl Legs {
    fn hash(hasher: &DefaultHashBuilder, tuple: &Tuple) -> u64 {
        hasher.hash_one(tuple)
    }

    /// Where a tuple is.
    pub(super) fn find(&self, tuple: &Tuple, at: impl Fn(Place) -> Option<Tuple>) -> Option<Place> {
        let hash = Self::hash(&self.hasher, tuple);
        self.places
            .find(hash, |&place| {
                at(place).is_some_and(|known| known == *tuple)
            })
            .copied()
    }

    /// Adds a tuple that is nowhere yet.
    pub(super) fn insert(
        &mut self,
        tuple: &Tuple,
        place: Place,
        at: impl Fn(Place) -> Option<Tuple>,
    ) {
        let hasher = &self.hasher;
        self.places
            .insert_unique(Self::hash(hasher, tuple), place, |&place| {
                at(place).map_or(0, |tuple| Self::hash(hasher, &tuple))
            });
    }

    /// Takes away what leads to this place by this tuple.
    pub(super) fn remove(&mut self, tuple: &Tuple, place: Place) {
        let hash = Self::hash(&self.hasher, tuple);
        if let Ok(entry) = self.places.find_entry(hash, |&known| known == place) {
            entry.remove();
        }
    }
}
