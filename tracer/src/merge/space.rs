//! Numbers that two nodes use for different things, kept apart: each capture behind the first has its own
//! range of them.

use std::collections::HashMap;

use crate::capture::Header;
use crate::event::{Detail, Event};
use crate::node::NetnsId;

/// Inode numbers of namespaces are given out from 0xf0000000 upwards (include/linux/proc_ns.h): one
/// capture's fit in so many.
const NAMESPACES: u32 = 1 << 24;
/// Addresses of the kernel begin with ones: the upper bits tell captures apart.
const ADDRESS_BITS: u32 = 48;
/// The bit that names of packets have that two captures saw; no kernel address has it without those above.
const JOINED: u64 = 1 << 62;
/// Numbers of drop reasons of kernels that have others than the first.
const REASONS: u32 = 1 << 20;

/// The range of one capture.
#[derive(Clone, Default, Debug)]
pub(super) struct Space {
    number: u32,
    /// Drop reasons whose number is another in the result.
    reasons: HashMap<u32, u32>,
}

impl Space {
    /// The range of a capture; reasons that the result does not have yet are added to it.
    pub(super) fn new(number: usize, header: &Header, reasons: &mut Vec<(u32, String)>) -> Self {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let mut changed = HashMap::new();
        for (reason, name) in &header.reasons {
            let there = reasons
                .iter()
                .find(|(_, known)| known == name)
                .map(|&(there, _)| there);
            let there = there.unwrap_or_else(|| {
                let taken = reasons.iter().any(|(known, _)| known == reason);
                let fresh = if taken {
                    number * REASONS + reason
                } else {
                    *reason
                };
                reasons.push((fresh, name.clone()));
                fresh
            });
            if there != *reason {
                changed.insert(*reason, there);
            }
        }
        Self {
            number,
            reasons: changed,
        }
    }

    pub(super) const fn namespace(&self, id: u32) -> u32 {
        id.wrapping_sub(self.number.wrapping_mul(NAMESPACES))
    }

    pub(super) const fn netns(&self, id: NetnsId) -> NetnsId {
        NetnsId(self.namespace(id.0))
    }

    /// An skb, or the address of a function. Zero stays: it says that there is none.
    pub(super) const fn address(&self, address: u64) -> u64 {
        if address == 0 {
            0
        } else {
            address ^ (self.number as u64) << ADDRESS_BITS
        }
    }

    /// An event as the result has it; `joined` names a packet that two captures saw.
    pub(super) fn event(&self, event: Event, joined: Option<u64>) -> Event {
        let skb = match joined {
            Some(name) => JOINED | name,
            None => self.address(event.skb),
        };
        let detail = match event.detail {
            Detail::Drop { location, reason } => Detail::Drop {
                location: self.address(location),
                reason: reason.map(|reason| *self.reasons.get(&reason).unwrap_or(&reason)),
            },
            other => other,
        };
        Event {
            skb,
            netns: event.netns.map(|netns| self.namespace(netns)),
            detail,
            ..event
        }
    }
}
