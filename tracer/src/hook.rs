//! The catalogue of hooks: one row per hook says what it means and where it sits on each kernel.

use tracer_ebpf::hook::HookId;

/// Part of the network stack that a hook belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    /// Network devices and veth.
    Device,
    /// Bridges.
    Bridge,
    /// IPv4 and routing.
    Ip,
    /// Netfilter hooks.
    Netfilter,
    /// Connection tracking and NAT.
    Conntrack,
    /// IPVS.
    Ipvs,
    /// TCP, UDP and ICMP.
    Socket,
    /// Drops.
    Drop,
}

impl Area {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Bridge => "bridge",
            Self::Ip => "ip",
            Self::Netfilter => "netfilter",
            Self::Conntrack => "conntrack",
            Self::Ipvs => "ipvs",
            Self::Socket => "socket",
            Self::Drop => "drop",
        }
    }
}

/// What a hook's programs attach to.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A BTF tracepoint of the kernel itself.
    Tracepoint(&'static str),
    /// A kernel function by its exact name.
    Function(&'static str),
    /// A function of a module that may be built in, loaded or absent.
    ModuleFunction {
        /// Module that holds the function.
        module: &'static str,
        /// Exact name.
        name: &'static str,
    },
}

impl Place {
    /// The kernel's name for the place.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Tracepoint(name) | Self::Function(name) | Self::ModuleFunction { name, .. } => {
                name
            }
        }
    }

    /// Module that must be loaded.
    pub const fn module(self) -> Option<&'static str> {
        match self {
            Self::ModuleFunction { module, .. } => Some(module),
            _ => None,
        }
    }
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Number that the programs stamp.
    pub id: HookId,
    /// Part of the network stack.
    pub area: Area,
    /// Where it sits; the same on every kernel measured (5.10, 6.1, 6.12, 7.3).
    pub place: Place,
    /// The stage in a person's words.
    pub stage: &'static str,
}

const fn row(id: HookId, area: Area, place: Place, stage: &'static str) -> Hook {
    Hook {
        id,
        area,
        place,
        stage,
    }
}

const fn function(name: &'static str) -> Place {
    Place::Function(name)
}

const fn in_module(module: &'static str, name: &'static str) -> Place {
    Place::ModuleFunction { module, name }
}

/// Every hook, in the order of a packet's way.
pub const CATALOGUE: &[Hook] = &[
    row(
        HookId::DeviceReceive,
        Area::Device,
        Place::Tracepoint("netif_receive_skb"),
        "received",
    ),
    row(
        HookId::DeviceTransmit,
        Area::Device,
        Place::Tracepoint("net_dev_start_xmit"),
        "sent",
    ),
    row(
        HookId::VethTransmit,
        Area::Device,
        in_module("veth", "veth_xmit"),
        "veth",
    ),
    row(
        HookId::BridgeReceive,
        Area::Bridge,
        in_module("bridge", "br_handle_frame"),
        "bridge port",
    ),
    row(
        HookId::BridgeForward,
        Area::Bridge,
        in_module("bridge", "__br_forward"),
        "bridge forward",
    ),
    row(
        HookId::BridgeTransmit,
        Area::Bridge,
        in_module("bridge", "br_dev_xmit"),
        "bridge",
    ),
    row(
        HookId::BridgeLocal,
        Area::Bridge,
        in_module("bridge", "br_pass_frame_up"),
        "bridge to host",
    ),
    row(HookId::Ip4Receive, Area::Ip, function("ip_rcv_core"), "ip"),
    row(
        HookId::RouteInput,
        Area::Ip,
        function("ip_route_input_slow"),
        "route lookup",
    ),
    row(
        HookId::LocalDeliver,
        Area::Ip,
        function("ip_local_deliver"),
        "route local",
    ),
    row(
        HookId::LocalDeliverFinish,
        Area::Ip,
        function("ip_local_deliver_finish"),
        "to transport",
    ),
    row(
        HookId::Forward,
        Area::Ip,
        function("ip_forward"),
        "route forward",
    ),
    row(
        HookId::RouteError,
        Area::Ip,
        function("ip_error"),
        "no usable route",
    ),
    row(
        HookId::LocalOut,
        Area::Ip,
        function("__ip_local_out"),
        "local output",
    ),
    row(HookId::Output, Area::Ip, function("ip_output"), "ip output"),
    row(
        HookId::OutputFinish,
        Area::Ip,
        function("ip_finish_output2"),
        "to neighbour",
    ),
    row(
        HookId::NetfilterHook,
        Area::Netfilter,
        function("nf_hook_slow"),
        "netfilter",
    ),
    row(
        HookId::ConntrackConfirm,
        Area::Conntrack,
        in_module("nf_conntrack", "__nf_conntrack_confirm"),
        "conntrack new",
    ),
    row(
        HookId::Nat,
        Area::Conntrack,
        in_module("nf_nat", "nf_nat_manip_pkt"),
        "nat",
    ),
    row(
        HookId::IpvsLookup,
        Area::Ipvs,
        in_module("ip_vs", "ip_vs_conn_in_get_proto"),
        "ipvs lookup",
    ),
    row(
        HookId::IpvsServiceFind,
        Area::Ipvs,
        in_module("ip_vs", "ip_vs_service_find"),
        "ipvs service lookup",
    ),
    row(
        HookId::IpvsSchedule,
        Area::Ipvs,
        in_module("ip_vs", "ip_vs_schedule"),
        "ipvs virtual server",
    ),
    row(
        HookId::IpvsConnectionNew,
        Area::Ipvs,
        in_module("ip_vs", "ip_vs_conn_new"),
        "ipvs connection",
    ),
    row(
        HookId::IpvsNatTransmit,
        Area::Ipvs,
        in_module("ip_vs", "ip_vs_nat_xmit"),
        "ipvs masq",
    ),
    row(
        HookId::IpvsReply,
        Area::Ipvs,
        in_module("ip_vs", "handle_response"),
        "ipvs reply",
    ),
    row(
        HookId::IpvsLeave,
        Area::Ipvs,
        in_module("ip_vs", "ip_vs_leave"),
        "ipvs: no real server",
    ),
    row(
        HookId::TcpReceive,
        Area::Socket,
        function("tcp_v4_rcv"),
        "tcp",
    ),
    row(HookId::UdpReceive, Area::Socket, function("udp_rcv"), "udp"),
    row(
        HookId::TcpDeliver,
        Area::Socket,
        function("tcp_v4_do_rcv"),
        "tcp socket",
    ),
    row(
        HookId::UdpDeliver,
        Area::Socket,
        function("udp_queue_rcv_one_skb"),
        "udp socket",
    ),
    row(
        HookId::TcpReset,
        Area::Socket,
        function("tcp_v4_send_reset"),
        "RST sent",
    ),
    row(
        HookId::IcmpSend,
        Area::Socket,
        function("__icmp_send"),
        "ICMP error sent",
    ),
    row(
        HookId::Drop,
        Area::Drop,
        Place::Tracepoint("kfree_skb"),
        "dropped",
    ),
];

/// The row of a hook.
pub fn of(id: HookId) -> &'static Hook {
    CATALOGUE
        .iter()
        .find(|hook| hook.id == id)
        .unwrap_or(&CATALOGUE[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_has_one_row_in_order() {
        let ids: Vec<_> = CATALOGUE.iter().map(|hook| hook.id).collect();
        assert_eq!(ids, HookId::ALL);
        assert!(HookId::ALL.iter().all(|&id| of(id).id == id));
    }
}
