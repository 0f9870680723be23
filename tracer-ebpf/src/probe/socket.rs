//! Transport: the packet meets a socket, or is answered with RST or an ICMP error.

use tracer_ebpf::event::{Icmp, Socket};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use super::{Arguments, Sight};
use crate::read;

/// `tcp_v4_rcv(skb)`.
#[inline(always)]
pub fn tcp_receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::TcpReceive, ctx.argument(0)?).emit()
}

/// `udp_rcv(skb)`.
#[inline(always)]
pub fn udp_receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::UdpReceive, ctx.argument(0)?).emit()
}

/// `tcp_v4_do_rcv(sk, skb)`.
#[inline(always)]
pub fn tcp_deliver(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::TcpDeliver, ctx)
}

/// `udp_queue_rcv_one_skb(sk, skb)`.
#[inline(always)]
pub fn udp_deliver(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::UdpDeliver, ctx)
}

#[inline(always)]
fn deliver(hook: HookId, ctx: &impl Arguments) -> Option<()> {
    let sock = ctx.argument(0)?;
    let net = read::field(sock, Field::SockNet);
    Sight::in_namespace(hook, ctx.argument(1)?, net).emit_with(|detail, _| {
        let state = read::field(sock, Field::SockState);
        let port = read::field(sock, Field::SockNum);
        detail.socket = Socket {
            state,
            reserved: 0,
            port,
        };
        state != 0
    })
}

/// `tcp_v4_send_reset(sk, skb, ...)`.
#[inline(always)]
pub fn tcp_reset(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::TcpReset, ctx.argument(1)?).emit()
}

/// `__icmp_send(skb, type, code, info, ...)`.
#[inline(always)]
pub fn icmp_send(ctx: &impl Arguments) -> Option<()> {
    let (kind, code, info) = (ctx.argument(1)?, ctx.argument(2)?, ctx.argument(3)?);
    Sight::new(HookId::IcmpSend, ctx.argument(0)?).emit_with(|detail, _| {
        detail.icmp = Icmp {
            kind: kind as u8,
            code: code as u8,
            reserved: 0,
            info: u32::from_be(info as u32),
        };
        true
    })
}
