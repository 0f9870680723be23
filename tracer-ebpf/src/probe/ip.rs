//! IPv4 and IPv6: receive, routing decision, forwarding, output.

use tracer_ebpf::event::{Detail, Route};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight};
use crate::read::{self, Skb};

/// `ip_rcv_core(skb, net)`.
#[inline(always)]
pub fn receive(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Ip4Receive, ctx.argument(0)?, ctx.argument(1)?).emit()
}

/// `ip_route_input_slow(skb, ...)`.
#[inline(always)]
pub fn route_input(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::RouteInput, ctx.argument(0)?).emit()
}

/// `ip_local_deliver(skb)`.
#[inline(always)]
pub fn local_deliver(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::LocalDeliver, ctx.argument(0)?).emit_with(route)
}

/// `ip_local_deliver_finish(net, sk, skb)`.
#[inline(always)]
pub fn local_deliver_finish(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(
        HookId::LocalDeliverFinish,
        ctx.argument(2)?,
        ctx.argument(0)?,
    )
    .emit()
}

/// `ip_forward(skb)`.
#[inline(always)]
pub fn forward(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Forward, ctx.argument(0)?).emit_with(route)
}

/// `ip_error(skb)`.
#[inline(always)]
pub fn route_error(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::RouteError, ctx.argument(0)?).emit_with(route)
}

/// `__ip_local_out(net, sk, skb)`.
#[inline(always)]
pub fn local_out(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::LocalOut, ctx.argument(2)?, ctx.argument(0)?).emit_with(route)
}

/// `ip_output(net, sk, skb)`.
#[inline(always)]
pub fn output(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Output, ctx.argument(2)?, ctx.argument(0)?).emit_with(route)
}

/// `ip_finish_output2(net, sk, skb)`.
#[inline(always)]
pub fn output_finish(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::OutputFinish, ctx.argument(2)?, ctx.argument(0)?).emit_with(route)
}

/// `ip_do_fragment(net, sk, skb, ...)`.
#[inline(always)]
pub fn fragment(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Fragment, ctx.argument(2)?, ctx.argument(0)?).emit_with(route)
}

/// `ip_handle_martian_source(dev, in_dev, skb, ...)`.
#[inline(always)]
pub fn martian(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Martian, ctx.argument(2)?).emit()
}

/// `ip6_rcv_core(skb, dev, net)`.
#[inline(always)]
pub fn receive6(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Ip6Receive, ctx.argument(0)?, ctx.argument(2)?).emit()
}

/// `ip6_input(skb)`.
#[inline(always)]
pub fn local_deliver6(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Local6Deliver, ctx.argument(0)?).emit_with(route6)
}

/// `ip6_forward(skb)`.
#[inline(always)]
pub fn forward6(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Forward6, ctx.argument(0)?).emit_with(route6)
}

/// `ip6_pkt_discard(skb)`: where an IPv6 route without a way leads.
#[inline(always)]
pub fn route_error6(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Route6Error, ctx.argument(0)?).emit_with(route6)
}

/// `__ip6_local_out(net, sk, skb)`.
#[inline(always)]
pub fn local_out6(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Local6Out, ctx.argument(2)?, ctx.argument(0)?).emit_with(route6)
}

/// `ip6_output(net, sk, skb)`.
#[inline(always)]
pub fn output6(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Output6, ctx.argument(2)?, ctx.argument(0)?).emit_with(route6)
}

/// `ip6_finish_output2(net, sk, skb)`.
#[inline(always)]
pub fn output_finish6(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Output6Finish, ctx.argument(2)?, ctx.argument(0)?).emit_with(route6)
}

/// `ip6_fragment(net, sk, skb, ...)`.
#[inline(always)]
pub fn fragment6(ctx: &impl Arguments) -> Option<()> {
    Sight::in_namespace(HookId::Fragment6, ctx.argument(2)?, ctx.argument(0)?).emit_with(route6)
}

/// The IPv4 route that the skb carries.
#[inline(always)]
fn route(detail: &mut Detail, skb: &Skb) -> bool {
    let dst = destination(skb);
    // RTN_UNSPEC, the zero, is no type of a route in use.
    let kind: u16 = read::field(dst, Field::RtableType);
    detail.route = any_route(dst, kind);
    kind != 0
}

/// The IPv6 route that the skb carries; its type is not kept there.
#[inline(always)]
fn route6(detail: &mut Detail, skb: &Skb) -> bool {
    let dst = destination(skb);
    detail.route = any_route(dst, 0);
    // Every route has a device, also one that leads nowhere.
    dst != 0
}

/// The route's `dst_entry`.
#[inline(always)]
fn destination(skb: &Skb) -> u64 {
    // The low bit says whether the reference is counted.
    skb.field::<u64>(Field::SkbRefdst) & !1
}

/// What routes of both families say.
#[inline(always)]
fn any_route(dst: u64, kind: u16) -> Route {
    let error: i16 = read::field(dst, Field::DstError);
    let device = read::field(dst, Field::DstDev);
    Route {
        kind,
        error: error.unsigned_abs(),
        ifindex: read::field(device, Field::NetDeviceIfindex),
    }
}
