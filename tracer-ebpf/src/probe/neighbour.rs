//! Neighbours: waiting for an address, and giving up.

use tracer_ebpf::event::Detail;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight};
use crate::read;

/// `NUD_VALID`: in any of these states a neighbour is used as it is.
const IN_USE: u8 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

/// `__neigh_event_send(neigh, skb, ...)`; it is also called without a packet, and for a stale neighbour,
/// which is only asked anew: no packet waits for that.
#[inline(always)]
pub fn queue(ctx: &impl Arguments) -> Option<()> {
    let state: u8 = read::field(ctx.argument(0)?, Field::NeighbourState);
    if state & IN_USE != 0 {
        return None;
    }
    about(HookId::NeighbourQueue, ctx)
}

/// `arp_error_report(neigh, skb)`.
#[inline(always)]
pub fn failed(ctx: &impl Arguments) -> Option<()> {
    about(HookId::NeighbourFailed, ctx)
}

/// `ndisc_error_report(neigh, skb)`.
#[inline(always)]
pub fn failed6(ctx: &impl Arguments) -> Option<()> {
    about(HookId::Neighbour6Failed, ctx)
}

#[inline(always)]
fn about(hook: HookId, ctx: &impl Arguments) -> Option<()> {
    let neighbour = ctx.argument(0)?;
    let skb = ctx.argument(1)?;
    if skb == 0 {
        return None;
    }
    Sight::new(hook, skb).emit_with(|detail, _| fill(detail, neighbour))
}

#[inline(always)]
fn fill(detail: &mut Detail, neighbour: u64) -> bool {
    // SAFETY: every bit pattern is a valid `Neighbour`.
    let known = unsafe { &mut detail.neighbour };
    known.state = read::field(neighbour, Field::NeighbourState);
    let device = read::field(neighbour, Field::NeighbourDev);
    known.ifindex = read::field(device, Field::NetDeviceIfindex);
    read::into(
        &mut known.address,
        neighbour.wrapping_add(read::offset(Field::NeighbourKey)),
    )
}
