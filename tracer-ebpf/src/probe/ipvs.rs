//! IPVS: connection lookup, virtual server lookup, scheduling, transmit.
//!
//! `ip_vs_service_find` and `ip_vs_conn_new` are not given the skb. They run below the connection
//! lookup on the same CPU, which remembers it; userspace checks that the addresses agree.

use tracer_ebpf::event::{Connection, Detail, Sent, Service};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight, emit_current, set_current};
use crate::read;

/// `ip_vs_conn_in_get_proto(ipvs, af, skb, iph)`.
#[inline(always)]
pub fn lookup(ctx: &impl Arguments) -> Option<()> {
    let skb = ctx.argument(2)?;
    let seen = Sight::new(HookId::IpvsLookup, skb).emit();
    set_current(if seen.is_some() { skb } else { 0 });
    seen
}

/// `ip_vs_service_find(ipvs, af, fwmark, protocol, vaddr, vport)`.
#[inline(always)]
pub fn service_find(ctx: &impl Arguments) -> Option<()> {
    let family = ctx.argument(1)? as u16;
    let address = ctx.argument(4)?;
    emit_current(HookId::IpvsServiceFind, |detail| {
        detail.service = Service {
            address: read::memory(address)?,
            port: ctx.argument(5)? as u16,
            protocol: ctx.argument(3)? as u16,
            family,
            reserved: 0,
            fwmark: ctx.argument(2)? as u32,
        };
        Some(())
    })
}

/// `ip_vs_schedule(svc, skb, pd, ignored, iph)`.
#[inline(always)]
pub fn schedule(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::IpvsSchedule, ctx.argument(1)?).emit()
}

/// `ip_vs_conn_new(p, dest_af, daddr, dport, flags, dest, fwmark)`.
#[inline(always)]
pub fn connection_new(ctx: &impl Arguments) -> Option<()> {
    let real = ctx.argument(2)?;
    emit_current(HookId::IpvsConnectionNew, |detail| {
        detail.connection = Connection {
            real: read::memory(real)?,
            real_port: ctx.argument(3)? as u16,
            family: ctx.argument(1)? as u16,
            flags: ctx.argument(4)? as u32,
        };
        Some(())
    })
}

/// `ip_vs_nat_xmit(skb, cp, pp, iph)`.
#[inline(always)]
pub fn nat_transmit(ctx: &impl Arguments) -> Option<()> {
    transmit(HookId::IpvsNatTransmit, ctx)
}

/// `ip_vs_nat_xmit_v6(skb, cp, pp, iph)`.
#[inline(always)]
pub fn nat6_transmit(ctx: &impl Arguments) -> Option<()> {
    transmit(HookId::IpvsNat6Transmit, ctx)
}

/// `ip_vs_dr_xmit(skb, cp, pp, iph)`.
#[inline(always)]
pub fn direct_transmit(ctx: &impl Arguments) -> Option<()> {
    transmit(HookId::IpvsDirectTransmit, ctx)
}

/// `ip_vs_tunnel_xmit(skb, cp, pp, iph)`.
#[inline(always)]
pub fn tunnel_transmit(ctx: &impl Arguments) -> Option<()> {
    transmit(HookId::IpvsTunnelTransmit, ctx)
}

/// `ip_vs_dr_xmit_v6(skb, cp, pp, iph)`.
#[inline(always)]
pub fn direct6_transmit(ctx: &impl Arguments) -> Option<()> {
    transmit(HookId::IpvsDirect6Transmit, ctx)
}

/// `ip_vs_tunnel_xmit_v6(skb, cp, pp, iph)`.
#[inline(always)]
pub fn tunnel6_transmit(ctx: &impl Arguments) -> Option<()> {
    transmit(HookId::IpvsTunnel6Transmit, ctx)
}

#[inline(always)]
fn transmit(hook: HookId, ctx: &impl Arguments) -> Option<()> {
    let connection = ctx.argument(1)?;
    Sight::new(hook, ctx.argument(0)?).emit_with(|detail, _| sent(detail, connection))
}

/// Says what the connection is that a packet is sent by; false where this kernel does not describe it.
#[inline(always)]
fn sent(detail: &mut Detail, connection: u64) -> bool {
    if read::module_offset(Field::IpvsState).is_none() {
        return false;
    }
    detail.sent = Sent {
        real: read::module_field(connection, Field::IpvsReal),
        real_port: read::module_field(connection, Field::IpvsRealPort),
        state: read::module_field(connection, Field::IpvsState),
        flags: read::module_field(connection, Field::IpvsFlags),
    };
    true
}

/// `handle_response(af, skb, pd, cp, iph, hook)`.
#[inline(always)]
pub fn reply(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::IpvsReply, ctx.argument(1)?).emit()
}

/// `ip_vs_leave(svc, skb, pd, iph)`.
#[inline(always)]
pub fn leave(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::IpvsLeave, ctx.argument(1)?).emit()
}
