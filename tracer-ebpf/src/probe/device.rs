//! Devices and veth.

use tracer_ebpf::event::Device;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight};
use crate::read;

/// Tracepoint `netif_receive_skb(skb)`.
#[inline(always)]
pub fn receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::DeviceReceive, ctx.argument(0)?).emit()
}

/// Tracepoint `net_dev_start_xmit(skb, dev)`.
#[inline(always)]
pub fn transmit(ctx: &impl Arguments) -> Option<()> {
    to_device(HookId::DeviceTransmit, ctx)
}

/// `veth_xmit(skb, dev)`.
#[inline(always)]
pub fn veth_transmit(ctx: &impl Arguments) -> Option<()> {
    to_device(HookId::VethTransmit, ctx)
}

/// `vxlan_xmit_one(skb, dev, ...)`.
#[inline(always)]
pub fn vxlan_transmit(ctx: &impl Arguments) -> Option<()> {
    to_device(HookId::VxlanTransmit, ctx)
}

/// `vxlan_rcv(sk, skb)`.
#[inline(always)]
pub fn vxlan_receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::VxlanReceive, ctx.argument(1)?).emit()
}

/// A transmit function `(skb, dev)`.
#[inline(always)]
pub fn to_device(hook: HookId, ctx: &impl Arguments) -> Option<()> {
    let device = ctx.argument(1)?;
    Sight::new(hook, ctx.argument(0)?).emit_with(|detail, _| {
        let ifindex = read::field(device, Field::NetDeviceIfindex);
        detail.device = Device { ifindex };
        ifindex != 0
    })
}
