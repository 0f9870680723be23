//! Bridge ports and the bridge device.

use tracer_ebpf::event::Device;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight, device};
use crate::read;

/// `br_handle_frame(pskb)`.
#[inline(always)]
pub fn receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::BridgeReceive, read::memory(ctx.argument(0)?)?).emit()
}

/// `__br_forward(to, skb, local_orig)`.
#[inline(always)]
pub fn forward(ctx: &impl Arguments) -> Option<()> {
    let port = ctx.argument(0)?;
    Sight::new(HookId::BridgeForward, ctx.argument(1)?).emit_with(|detail, _| {
        let device = read::field(port, Field::BridgePortDev);
        let ifindex = read::field(device, Field::NetDeviceIfindex);
        detail.device = Device { ifindex };
        ifindex != 0
    })
}

/// `br_flood(br, skb, type, ...)`.
#[inline(always)]
pub fn flood(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::BridgeFlood, ctx.argument(1)?).emit()
}

/// `br_dev_xmit(skb, dev)`.
#[inline(always)]
pub fn transmit(ctx: &impl Arguments) -> Option<()> {
    device::to_device(HookId::BridgeTransmit, ctx)
}

/// `br_pass_frame_up(skb, ...)`.
#[inline(always)]
pub fn local(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::BridgeLocal, ctx.argument(0)?).emit()
}
