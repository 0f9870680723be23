//! Conntrack entries and netfilter NAT.

use tracer_ebpf::event::Detail;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight, emit_without_packet};
use crate::filter;
use crate::read::{self, Skb};

/// `__nf_conntrack_confirm(skb)`.
#[inline(always)]
pub fn confirm(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::ConntrackConfirm, ctx.argument(0)?).emit_with(own_entry)
}

/// `nf_conntrack_tcp_packet(ct, skb, dataoff, ctinfo, state)`.
#[inline(always)]
pub fn tcp(ctx: &impl Arguments) -> Option<()> {
    known(HookId::ConntrackTcp, ctx, 3)
}

/// `nf_conntrack_udp_packet(ct, skb, dataoff, ctinfo, state)`.
#[inline(always)]
pub fn udp(ctx: &impl Arguments) -> Option<()> {
    known(HookId::ConntrackUdp, ctx, 3)
}

/// `nf_conntrack_icmp_packet(ct, skb, ctinfo, state)`.
#[inline(always)]
pub fn icmp(ctx: &impl Arguments) -> Option<()> {
    known(HookId::ConntrackIcmp, ctx, 2)
}

/// `nf_conntrack_icmpv6_packet(ct, skb, ctinfo, state)`.
#[inline(always)]
pub fn icmp6(ctx: &impl Arguments) -> Option<()> {
    known(HookId::ConntrackIcmp6, ctx, 2)
}

#[inline(always)]
fn known(hook: HookId, ctx: &impl Arguments, relation: usize) -> Option<()> {
    let entry = ctx.argument(0)?;
    let relation = ctx.argument(relation)? as u8;
    Sight::new(hook, ctx.argument(1)?).emit_with(|detail, _| fill(detail, entry, 0, relation))
}

/// `nf_ct_resolve_clash(skb, h, reply_hash)`.
#[inline(always)]
pub fn clash(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::ConntrackClash, ctx.argument(0)?).emit_with(own_entry)
}

/// `nf_ct_destroy(ct)`, before 5.18 `destroy_conntrack(ct)`: the end of every entry, also of one that
/// was never confirmed; its status tells.
#[inline(always)]
pub fn delete(ctx: &impl Arguments) -> Option<()> {
    let entry = ctx.argument(0)?;
    if filter::active() && filter::entry_followed(entry) == 0 {
        return None;
    }
    let net: u64 = read::field(entry, Field::ConnNet);
    emit_without_packet(
        HookId::ConntrackDelete,
        read::field(net, Field::NetInum),
        |detail| fill(detail, entry, 0, 0),
    )
}

/// `nf_nat_manip_pkt(skb, ct, manip, direction)`.
#[inline(always)]
pub fn nat(ctx: &impl Arguments) -> Option<()> {
    let entry = ctx.argument(1)?;
    let manipulation = ctx.argument(2)? as u8;
    let direction = ctx.argument(3)? as u8;
    Sight::new(HookId::Nat, ctx.argument(0)?)
        .emit_with(|detail, _| fill(detail, entry, manipulation, direction))
}

/// Copies the entry that the packet carries.
#[inline(always)]
fn own_entry(detail: &mut Detail, skb: &Skb) -> bool {
    // The low three bits hold the packet's relation to the entry.
    let entry = skb.field::<u64>(Field::SkbNfct) & !7;
    fill(detail, entry, 0, 0)
}

/// Copies both tuples of the entry; false when something cannot be read.
#[inline(always)]
fn fill(detail: &mut Detail, entry: u64, manipulation: u8, direction: u8) -> bool {
    let [first, second] = read::tuples(entry);
    // SAFETY: every bit pattern is a valid `Conntrack`.
    let conntrack = unsafe { &mut detail.conntrack };
    if !read::into(&mut conntrack.original, first) || !read::into(&mut conntrack.reply, second) {
        return false;
    }
    let zone: u16 = read::field(entry, Field::ConnZone);
    conntrack.original.direction = zone as u8;
    conntrack.original.family_or_status =
        conntrack.original.family_or_status & 0xff | zone & 0xff00;
    conntrack.reply.family_or_status = read::field::<u32>(entry, Field::ConnStatus) as u16;
    conntrack.reply.protocol_or_manipulation = manipulation;
    conntrack.reply.direction = direction;
    true
}
