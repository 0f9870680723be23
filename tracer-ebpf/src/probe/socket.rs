//! Transport: the packet meets a socket, or is answered with RST or an ICMP error.

use tracer_ebpf::event::{Icmp, Queue, Socket};
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

/// `tcp_add_backlog(sk, skb, …)`.
#[inline(always)]
pub fn tcp_backlog(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::TcpBacklog, ctx)
}

/// `tcp_v4_do_rcv(sk, skb)`.
#[inline(always)]
pub fn tcp_deliver(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::TcpDeliver, ctx)
}

/// `tcp_check_req(sk, skb, req, fastopen, req_stolen)`.
#[inline(always)]
pub fn tcp_half_open(ctx: &impl Arguments) -> Option<()> {
    at_socket(HookId::TcpHalfOpen, ctx.argument(2)?, ctx.argument(1)?)
}

/// `tcp_child_process(parent, child, skb)`.
#[inline(always)]
pub fn tcp_child(ctx: &impl Arguments) -> Option<()> {
    at_socket(HookId::TcpChild, ctx.argument(1)?, ctx.argument(2)?)
}

/// `tcp_timewait_state_process(tw, skb, th, …)`.
#[inline(always)]
pub fn tcp_time_wait(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::TcpTimeWait, ctx)
}

/// `udp_queue_rcv_one_skb(sk, skb)`.
#[inline(always)]
pub fn udp_deliver(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::UdpDeliver, ctx)
}

/// `tcp_v6_rcv(skb)`.
#[inline(always)]
pub fn tcp_receive6(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Tcp6Receive, ctx.argument(0)?).emit()
}

/// `udpv6_rcv(skb)`.
#[inline(always)]
pub fn udp_receive6(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Udp6Receive, ctx.argument(0)?).emit()
}

/// `tcp_v6_do_rcv(sk, skb)`.
#[inline(always)]
pub fn tcp_deliver6(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::Tcp6Deliver, ctx)
}

/// `udpv6_queue_rcv_one_skb(sk, skb)`.
#[inline(always)]
pub fn udp_deliver6(ctx: &impl Arguments) -> Option<()> {
    deliver(HookId::Udp6Deliver, ctx)
}

/// `icmp_rcv(skb)`.
#[inline(always)]
pub fn icmp_receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::IcmpReceive, ctx.argument(0)?).emit()
}

/// `icmpv6_rcv(skb)`.
#[inline(always)]
pub fn icmp6_receive(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Icmp6Receive, ctx.argument(0)?).emit()
}

#[inline(always)]
fn deliver(hook: HookId, ctx: &impl Arguments) -> Option<()> {
    at_socket(hook, ctx.argument(0)?, ctx.argument(1)?)
}

/// `sock` is anything that begins with a `sock_common`: a request and a connection in TIME_WAIT too.
#[inline(always)]
fn at_socket(hook: HookId, sock: u64, skb: u64) -> Option<()> {
    Sight::in_namespace_of(hook, skb, sock, Field::SockNet).emit_with(|detail, _| {
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

/// `tcp_conn_request(rsk_ops, af_ops, sk, skb)`: IPv4's and IPv6's.
#[inline(always)]
pub fn tcp_request(ctx: &impl Arguments) -> Option<()> {
    let sock = ctx.argument(2)?;
    let skb = ctx.argument(3)?;
    Sight::in_namespace_of(HookId::TcpRequest, skb, sock, Field::SockNet).emit_with(|detail, _| {
        let most = read::field(sock, Field::SockMostAccepting);
        detail.queue = Queue {
            waiting: read::field(sock, Field::SockAccepting),
            most,
            port: read::field(sock, Field::SockNum),
            reserved: 0,
        };
        // A socket that listens with room for none is as rare as useless.
        most != 0
    })
}

/// `tcp_v4_send_reset(sk, skb, ...)`.
#[inline(always)]
pub fn tcp_reset(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::TcpReset, ctx.argument(1)?).emit()
}

/// `tcp_v6_send_reset(sk, skb, ...)`.
#[inline(always)]
pub fn tcp_reset6(ctx: &impl Arguments) -> Option<()> {
    Sight::new(HookId::Tcp6Reset, ctx.argument(1)?).emit()
}

/// `__icmp_send(skb, type, code, info, ...)`.
#[inline(always)]
pub fn icmp_send(ctx: &impl Arguments) -> Option<()> {
    icmp_error(HookId::IcmpSend, ctx)
}

/// `icmp6_send(skb, type, code, info, ...)`.
#[inline(always)]
pub fn icmp6_send(ctx: &impl Arguments) -> Option<()> {
    icmp_error(HookId::Icmp6Send, ctx)
}

#[inline(always)]
fn icmp_error(hook: HookId, ctx: &impl Arguments) -> Option<()> {
    let (kind, code, info) = (ctx.argument(1)?, ctx.argument(2)?, ctx.argument(3)?);
    Sight::new(hook, ctx.argument(0)?).emit_with(|detail, _| {
        detail.icmp = Icmp {
            kind: kind as u8,
            code: code as u8,
            reserved: 0,
            info: u32::from_be(info as u32),
        };
        true
    })
}
