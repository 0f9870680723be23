//! The list of programs: each hook body stamped once per attach kind that can carry it.
#![no_std]
#![no_main]
#![allow(unreachable_pub, reason = "a binary exports programs, not items")]

mod filter;
mod probe;
mod read;
mod sampling;

use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext};

/// Stamps a kprobe and an fentry program for functions.
macro_rules! functions {
    ($($kprobe:ident, $fentry:ident => $body:path;)*) => {$(
        #[kprobe]
        fn $kprobe(ctx: ProbeContext) -> u32 {
            $body(&ctx);
            0
        }

        #[fentry]
        fn $fentry(ctx: FEntryContext) -> u32 {
            $body(&ctx);
            0
        }
    )*};
}

/// Stamps a BTF tracepoint program.
macro_rules! tracepoints {
    ($($program:ident => $body:path;)*) => {$(
        #[btf_tracepoint]
        fn $program(ctx: BtfTracePointContext) -> u32 {
            $body(&ctx);
            0
        }
    )*};
}

tracepoints! {
    tp_device_receive => probe::device::receive;
    tp_device_transmit => probe::device::transmit;
    tp_drop => probe::drop::drop;
}

functions! {
    kprobe_veth_transmit, fentry_veth_transmit => probe::device::veth_transmit;
    kprobe_bridge_receive, fentry_bridge_receive => probe::bridge::receive;
    kprobe_bridge_forward, fentry_bridge_forward => probe::bridge::forward;
    kprobe_bridge_transmit, fentry_bridge_transmit => probe::bridge::transmit;
    kprobe_bridge_local, fentry_bridge_local => probe::bridge::local;
    kprobe_bridge_flood, fentry_bridge_flood => probe::bridge::flood;
    kprobe_ip4_receive, fentry_ip4_receive => probe::ip::receive;
    kprobe_route_input, fentry_route_input => probe::ip::route_input;
    kprobe_local_deliver, fentry_local_deliver => probe::ip::local_deliver;
    kprobe_local_deliver_finish, fentry_local_deliver_finish => probe::ip::local_deliver_finish;
    kprobe_forward, fentry_forward => probe::ip::forward;
    kprobe_route_error, fentry_route_error => probe::ip::route_error;
    kprobe_local_out, fentry_local_out => probe::ip::local_out;
    kprobe_output, fentry_output => probe::ip::output;
    kprobe_output_finish, fentry_output_finish => probe::ip::output_finish;
    kprobe_netfilter_hook, fentry_netfilter_hook => probe::netfilter::hook;
    kprobe_conntrack_confirm, fentry_conntrack_confirm => probe::conntrack::confirm;
    kprobe_conntrack_delete, fentry_conntrack_delete => probe::conntrack::delete;
    kprobe_nat, fentry_nat => probe::conntrack::nat;
    kprobe_ipvs_lookup, fentry_ipvs_lookup => probe::ipvs::lookup;
    kprobe_ipvs_service_find, fentry_ipvs_service_find => probe::ipvs::service_find;
    kprobe_ipvs_schedule, fentry_ipvs_schedule => probe::ipvs::schedule;
    kprobe_ipvs_connection_new, fentry_ipvs_connection_new => probe::ipvs::connection_new;
    kprobe_ipvs_nat_transmit, fentry_ipvs_nat_transmit => probe::ipvs::nat_transmit;
    kprobe_ipvs_reply, fentry_ipvs_reply => probe::ipvs::reply;
    kprobe_ipvs_leave, fentry_ipvs_leave => probe::ipvs::leave;
    kprobe_tcp_receive, fentry_tcp_receive => probe::socket::tcp_receive;
    kprobe_udp_receive, fentry_udp_receive => probe::socket::udp_receive;
    kprobe_tcp_request, fentry_tcp_request => probe::socket::tcp_request;
    kprobe_tcp_deliver, fentry_tcp_deliver => probe::socket::tcp_deliver;
    kprobe_udp_deliver, fentry_udp_deliver => probe::socket::udp_deliver;
    kprobe_tcp_half_open, fentry_tcp_half_open => probe::socket::tcp_half_open;
    kprobe_tcp_backlog, fentry_tcp_backlog => probe::socket::tcp_backlog;
    kprobe_tcp_child, fentry_tcp_child => probe::socket::tcp_child;
    kprobe_tcp_time_wait, fentry_tcp_time_wait => probe::socket::tcp_time_wait;
    kprobe_tcp_reset, fentry_tcp_reset => probe::socket::tcp_reset;
    kprobe_vxlan_transmit, fentry_vxlan_transmit => probe::device::vxlan_transmit;
    kprobe_vxlan_receive, fentry_vxlan_receive => probe::device::vxlan_receive;
    kprobe_fragment, fentry_fragment => probe::ip::fragment;
    kprobe_fragment6, fentry_fragment6 => probe::ip::fragment6;
    kprobe_martian, fentry_martian => probe::ip::martian;
    kprobe_ip6_receive, fentry_ip6_receive => probe::ip::receive6;
    kprobe_local6_deliver, fentry_local6_deliver => probe::ip::local_deliver6;
    kprobe_forward6, fentry_forward6 => probe::ip::forward6;
    kprobe_route6_error, fentry_route6_error => probe::ip::route_error6;
    kprobe_local6_out, fentry_local6_out => probe::ip::local_out6;
    kprobe_output6, fentry_output6 => probe::ip::output6;
    kprobe_output6_finish, fentry_output6_finish => probe::ip::output_finish6;
    kprobe_neighbour_queue, fentry_neighbour_queue => probe::neighbour::queue;
    kprobe_neighbour_failed, fentry_neighbour_failed => probe::neighbour::failed;
    kprobe_neighbour6_failed, fentry_neighbour6_failed => probe::neighbour::failed6;
    kprobe_conntrack_tcp, fentry_conntrack_tcp => probe::conntrack::tcp;
    kprobe_conntrack_udp, fentry_conntrack_udp => probe::conntrack::udp;
    kprobe_conntrack_icmp, fentry_conntrack_icmp => probe::conntrack::icmp;
    kprobe_conntrack_icmp6, fentry_conntrack_icmp6 => probe::conntrack::icmp6;
    kprobe_conntrack_clash, fentry_conntrack_clash => probe::conntrack::clash;
    kprobe_ipvs_nat6_transmit, fentry_ipvs_nat6_transmit => probe::ipvs::nat6_transmit;
    kprobe_ipvs_direct_transmit, fentry_ipvs_direct_transmit => probe::ipvs::direct_transmit;
    kprobe_ipvs_tunnel_transmit, fentry_ipvs_tunnel_transmit => probe::ipvs::tunnel_transmit;
    kprobe_ipvs_direct6_transmit, fentry_ipvs_direct6_transmit => probe::ipvs::direct6_transmit;
    kprobe_ipvs_tunnel6_transmit, fentry_ipvs_tunnel6_transmit => probe::ipvs::tunnel6_transmit;
    kprobe_tcp6_receive, fentry_tcp6_receive => probe::socket::tcp_receive6;
    kprobe_udp6_receive, fentry_udp6_receive => probe::socket::udp_receive6;
    kprobe_tcp6_deliver, fentry_tcp6_deliver => probe::socket::tcp_deliver6;
    kprobe_udp6_deliver, fentry_udp6_deliver => probe::socket::udp_deliver6;
    kprobe_tcp6_reset, fentry_tcp6_reset => probe::socket::tcp_reset6;
    kprobe_icmp6_send, fentry_icmp6_send => probe::socket::icmp6_send;
    kprobe_icmp_receive, fentry_icmp_receive => probe::socket::icmp_receive;
    kprobe_icmp6_receive, fentry_icmp6_receive => probe::socket::icmp6_receive;
    kprobe_icmp_send, fentry_icmp_send => probe::socket::icmp_send;
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Programs that use GPL-only helpers must say that their licence allows it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
