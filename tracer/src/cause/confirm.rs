//! What the causes about clashing conntrack entries share: a packet dropped when its entry was to
//! become valid.
//!
//! Source: `__nf_conntrack_confirm` finds that another entry has one of the tuples, gives up and counts
//! insert_failed (net/netfilter/nf_conntrack_core.c). It is the last function of its hook, so nothing
//! else can drop behind it.

use super::evidence::{Evidence, Failure};
use crate::event::{Detail, Tuple};
use crate::hook::Role;
use crate::node::NetnsId;

/// A packet whose conntrack entry was refused.
pub(super) struct Clash {
    pub(super) netns: NetnsId,
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
}

impl Clash {
    /// The source address or port was to be changed.
    pub(super) fn has_source_nat(&self) -> bool {
        self.reply.destination != self.original.source
    }
}

/// The refused entry of a dropped packet.
pub(super) fn clash(failure: &Failure<'_>) -> Option<Clash> {
    let (index, event) = failure.last(Role::ConntrackConfirm)?;
    let rest = &failure.journey.events[index + 1..];
    let last = rest
        .iter()
        .all(|event| matches!(event.role(), Role::ConntrackClash | Role::Drop));
    let dropped = failure.dropped_for(&["NETFILTER_DROP"], &["nf_hook_slow"]);
    let Detail::Conntrack {
        original, reply, ..
    } = event.detail
    else {
        return None;
    };
    (last && dropped).then_some(())?;
    Some(Clash {
        netns: failure.netns_at(index)?,
        original,
        reply,
    })
}

/// Entries that were refused in a namespace so far, in words.
pub(super) fn refused(evidence: &Evidence<'_>, netns: NetnsId) -> Option<String> {
    let count = evidence
        .site(netns)?
        .facts
        .counters
        .get("conntrack insert_failed")?;
    (count > 0).then(|| format!("insert_failed is {count}"))
}
