//! The catalogue of hooks: one row per hook says what it means and where it sits on each kernel.

use tracer_ebpf::hook::HookId;

/// What it means for a packet to be seen at a hook. Several hooks share a meaning: IPv4's and IPv6's,
/// TCP's and UDP's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A device handed the packet to the stack.
    Receive,
    /// A device takes the packet.
    Transmit,
    /// The packet crosses a veth pair.
    Veth,
    /// The packet is inside a bridge.
    Bridge,
    /// The bridge sends the packet out of every port.
    Flood,
    /// The packet is wrapped into a tunnel's.
    Encapsulate,
    /// The packet is taken out of a tunnel's.
    Decapsulate,
    /// IP begins with a received packet.
    Ip,
    /// The route is looked up.
    RouteLookup,
    /// The route ends here.
    LocalIn,
    /// Local delivery, after INPUT.
    LocalInFinish,
    /// The route leads on.
    Forward,
    /// The route is an error.
    RouteError,
    /// The source address cannot be right.
    Martian,
    /// A packet made here enters output.
    LocalOut,
    /// Output before POSTROUTING.
    Output,
    /// Output after POSTROUTING.
    ToNeighbour,
    /// The packet is cut into fragments.
    Fragment,
    /// The packet waits for its neighbour.
    NeighbourQueue,
    /// The neighbour did not answer.
    NeighbourFailed,
    /// A netfilter hook is entered.
    Netfilter,
    /// Conntrack knows the entry.
    Conntrack,
    /// A conntrack entry becomes valid.
    ConntrackConfirm,
    /// A conntrack entry clashes with another.
    ConntrackClash,
    /// A conntrack entry is removed.
    ConntrackDelete,
    /// NAT rewrites the packet.
    Nat,
    /// IPVS looks for a connection.
    IpvsLookup,
    /// IPVS looks for a virtual server.
    IpvsService,
    /// IPVS found a virtual server.
    IpvsSchedule,
    /// IPVS made a connection.
    IpvsConnection,
    /// IPVS sends to the real server.
    IpvsTransmit,
    /// IPVS takes a reply back.
    IpvsReply,
    /// IPVS found no usable real server.
    IpvsNoDestination,
    /// A transport looks for a socket.
    Transport,
    /// A listening socket takes a request.
    Request,
    /// The packet meets a request for a connection that has been answered.
    HalfOpen,
    /// A socket that is busy keeps the packet, or the data of it.
    Backlog,
    /// A socket takes the packet.
    Deliver,
    /// The packet is answered with RST.
    Reset,
    /// An ICMP error is sent about the packet.
    IcmpError,
    /// The packet is freed as dropped.
    Drop,
}

/// Part of the network stack that a hook belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    /// Network devices and veth.
    Device,
    /// Bridges.
    Bridge,
    /// Tunnels.
    Tunnel,
    /// IP and routing.
    Ip,
    /// Neighbours.
    Neighbour,
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
            Self::Tunnel => "tunnel",
            Self::Ip => "ip",
            Self::Neighbour => "neighbour",
            Self::Netfilter => "netfilter",
            Self::Conntrack => "conntrack",
            Self::Ipvs => "ipvs",
            Self::Socket => "socket",
            Self::Drop => "drop",
        }
    }
}

impl Role {
    /// Where in the stack this happens.
    pub const fn area(self) -> Area {
        match self {
            Self::Receive | Self::Transmit | Self::Veth => Area::Device,
            Self::Bridge | Self::Flood => Area::Bridge,
            Self::Encapsulate | Self::Decapsulate => Area::Tunnel,
            Self::Ip
            | Self::RouteLookup
            | Self::LocalIn
            | Self::LocalInFinish
            | Self::Forward
            | Self::RouteError
            | Self::Martian
            | Self::LocalOut
            | Self::Output
            | Self::ToNeighbour
            | Self::Fragment => Area::Ip,
            Self::NeighbourQueue | Self::NeighbourFailed => Area::Neighbour,
            Self::Netfilter => Area::Netfilter,
            Self::Conntrack
            | Self::ConntrackConfirm
            | Self::ConntrackClash
            | Self::ConntrackDelete
            | Self::Nat => Area::Conntrack,
            Self::IpvsLookup
            | Self::IpvsService
            | Self::IpvsSchedule
            | Self::IpvsConnection
            | Self::IpvsTransmit
            | Self::IpvsReply
            | Self::IpvsNoDestination => Area::Ipvs,
            Self::Transport
            | Self::Request
            | Self::HalfOpen
            | Self::Backlog
            | Self::Deliver
            | Self::Reset
            | Self::IcmpError => Area::Socket,
            Self::Drop => Area::Drop,
        }
    }
}

impl Role {
    /// True for what only lost or refused packets meet: hooks that cost nothing while all is well.
    pub const fn on_failure_path(self) -> bool {
        matches!(
            self,
            Self::RouteError
                | Self::Martian
                | Self::NeighbourFailed
                | Self::ConntrackClash
                | Self::IpvsNoDestination
                | Self::Reset
                | Self::IcmpError
                | Self::Drop
        )
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
        /// Name that older kernels give it, where theirs is another.
        older: Option<&'static str>,
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

    /// What older kernels call the place, where they call it something else.
    pub const fn older_symbol(self) -> Option<&'static str> {
        match self {
            Self::ModuleFunction { older, .. } => older,
            _ => None,
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
    /// What it means to be seen here.
    pub role: Role,
    /// Where it sits; the same on every kernel measured (5.10, 6.1, 6.12, 7.3).
    pub place: Place,
}

const fn tracepoint(id: HookId, role: Role, name: &'static str) -> Hook {
    Hook {
        id,
        role,
        place: Place::Tracepoint(name),
    }
}

const fn function(id: HookId, role: Role, name: &'static str) -> Hook {
    Hook {
        id,
        role,
        place: Place::Function(name),
    }
}

const fn module(id: HookId, role: Role, module: &'static str, name: &'static str) -> Hook {
    Hook {
        id,
        role,
        place: Place::ModuleFunction {
            module,
            name,
            older: None,
        },
    }
}

const fn renamed(
    id: HookId,
    role: Role,
    module: &'static str,
    name: &'static str,
    older: &'static str,
) -> Hook {
    Hook {
        id,
        role,
        place: Place::ModuleFunction {
            module,
            name,
            older: Some(older),
        },
    }
}

/// Every hook, in the order of a packet's way.
pub const CATALOGUE: &[Hook] = &[
    tracepoint(HookId::DeviceReceive, Role::Receive, "netif_receive_skb"),
    tracepoint(HookId::DeviceTransmit, Role::Transmit, "net_dev_start_xmit"),
    module(HookId::VethTransmit, Role::Veth, "veth", "veth_xmit"),
    module(
        HookId::BridgeReceive,
        Role::Bridge,
        "bridge",
        "br_handle_frame",
    ),
    module(
        HookId::BridgeForward,
        Role::Bridge,
        "bridge",
        "__br_forward",
    ),
    module(HookId::BridgeFlood, Role::Flood, "bridge", "br_flood"),
    module(
        HookId::BridgeTransmit,
        Role::Bridge,
        "bridge",
        "br_dev_xmit",
    ),
    module(
        HookId::BridgeLocal,
        Role::Bridge,
        "bridge",
        "br_pass_frame_up",
    ),
    module(
        HookId::VxlanTransmit,
        Role::Encapsulate,
        "vxlan",
        "vxlan_xmit_one",
    ),
    module(
        HookId::VxlanReceive,
        Role::Decapsulate,
        "vxlan",
        "vxlan_rcv",
    ),
    function(HookId::Ip4Receive, Role::Ip, "ip_rcv_core"),
    function(HookId::RouteInput, Role::RouteLookup, "ip_route_input_slow"),
    function(HookId::LocalDeliver, Role::LocalIn, "ip_local_deliver"),
    function(
        HookId::LocalDeliverFinish,
        Role::LocalInFinish,
        "ip_local_deliver_finish",
    ),
    function(HookId::Forward, Role::Forward, "ip_forward"),
    function(HookId::RouteError, Role::RouteError, "ip_error"),
    function(HookId::LocalOut, Role::LocalOut, "__ip_local_out"),
    function(HookId::Output, Role::Output, "ip_output"),
    function(HookId::OutputFinish, Role::ToNeighbour, "ip_finish_output2"),
    function(HookId::Fragment, Role::Fragment, "ip_do_fragment"),
    function(HookId::Fragment6, Role::Fragment, "ip6_fragment"),
    function(HookId::Martian, Role::Martian, "ip_handle_martian_source"),
    function(HookId::Ip6Receive, Role::Ip, "ip6_rcv_core"),
    function(HookId::Local6Deliver, Role::LocalIn, "ip6_input"),
    function(HookId::Forward6, Role::Forward, "ip6_forward"),
    function(HookId::Route6Error, Role::RouteError, "ip6_pkt_discard"),
    function(HookId::Local6Out, Role::LocalOut, "__ip6_local_out"),
    function(HookId::Output6, Role::Output, "ip6_output"),
    function(
        HookId::Output6Finish,
        Role::ToNeighbour,
        "ip6_finish_output2",
    ),
    function(
        HookId::NeighbourQueue,
        Role::NeighbourQueue,
        "__neigh_event_send",
    ),
    function(
        HookId::NeighbourFailed,
        Role::NeighbourFailed,
        "arp_error_report",
    ),
    function(
        HookId::Neighbour6Failed,
        Role::NeighbourFailed,
        "ndisc_error_report",
    ),
    function(HookId::NetfilterHook, Role::Netfilter, "nf_hook_slow"),
    module(
        HookId::ConntrackTcp,
        Role::Conntrack,
        "nf_conntrack",
        "nf_conntrack_tcp_packet",
    ),
    module(
        HookId::ConntrackUdp,
        Role::Conntrack,
        "nf_conntrack",
        "nf_conntrack_udp_packet",
    ),
    module(
        HookId::ConntrackIcmp,
        Role::Conntrack,
        "nf_conntrack",
        "nf_conntrack_icmp_packet",
    ),
    module(
        HookId::ConntrackIcmp6,
        Role::Conntrack,
        "nf_conntrack",
        "nf_conntrack_icmpv6_packet",
    ),
    module(
        HookId::ConntrackClash,
        Role::ConntrackClash,
        "nf_conntrack",
        "nf_ct_resolve_clash",
    ),
    module(
        HookId::ConntrackConfirm,
        Role::ConntrackConfirm,
        "nf_conntrack",
        "__nf_conntrack_confirm",
    ),
    // Not nf_ct_delete: 5.10 has copies of it inlined where entries are flushed.
    renamed(
        HookId::ConntrackDelete,
        Role::ConntrackDelete,
        "nf_conntrack",
        "nf_ct_destroy",
        "destroy_conntrack",
    ),
    module(HookId::Nat, Role::Nat, "nf_nat", "nf_nat_manip_pkt"),
    module(
        HookId::IpvsLookup,
        Role::IpvsLookup,
        "ip_vs",
        "ip_vs_conn_in_get_proto",
    ),
    module(
        HookId::IpvsServiceFind,
        Role::IpvsService,
        "ip_vs",
        "ip_vs_service_find",
    ),
    module(
        HookId::IpvsSchedule,
        Role::IpvsSchedule,
        "ip_vs",
        "ip_vs_schedule",
    ),
    module(
        HookId::IpvsConnectionNew,
        Role::IpvsConnection,
        "ip_vs",
        "ip_vs_conn_new",
    ),
    module(
        HookId::IpvsNatTransmit,
        Role::IpvsTransmit,
        "ip_vs",
        "ip_vs_nat_xmit",
    ),
    module(
        HookId::IpvsNat6Transmit,
        Role::IpvsTransmit,
        "ip_vs",
        "ip_vs_nat_xmit_v6",
    ),
    module(
        HookId::IpvsDirectTransmit,
        Role::IpvsTransmit,
        "ip_vs",
        "ip_vs_dr_xmit",
    ),
    module(
        HookId::IpvsTunnelTransmit,
        Role::IpvsTransmit,
        "ip_vs",
        "ip_vs_tunnel_xmit",
    ),
    module(
        HookId::IpvsDirect6Transmit,
        Role::IpvsTransmit,
        "ip_vs",
        "ip_vs_dr_xmit_v6",
    ),
    module(
        HookId::IpvsTunnel6Transmit,
        Role::IpvsTransmit,
        "ip_vs",
        "ip_vs_tunnel_xmit_v6",
    ),
    module(
        HookId::IpvsReply,
        Role::IpvsReply,
        "ip_vs",
        "handle_response",
    ),
    module(
        HookId::IpvsLeave,
        Role::IpvsNoDestination,
        "ip_vs",
        "ip_vs_leave",
    ),
    function(HookId::TcpReceive, Role::Transport, "tcp_v4_rcv"),
    function(HookId::UdpReceive, Role::Transport, "udp_rcv"),
    function(HookId::TcpRequest, Role::Request, "tcp_conn_request"),
    function(HookId::TcpHalfOpen, Role::HalfOpen, "tcp_check_req"),
    function(HookId::TcpBacklog, Role::Backlog, "tcp_add_backlog"),
    function(HookId::TcpDeliver, Role::Deliver, "tcp_v4_do_rcv"),
    function(HookId::TcpChild, Role::Deliver, "tcp_child_process"),
    function(
        HookId::TcpTimeWait,
        Role::Deliver,
        "tcp_timewait_state_process",
    ),
    function(HookId::UdpDeliver, Role::Deliver, "udp_queue_rcv_one_skb"),
    function(HookId::TcpReset, Role::Reset, "tcp_v4_send_reset"),
    function(HookId::IcmpSend, Role::IcmpError, "__icmp_send"),
    function(HookId::Tcp6Receive, Role::Transport, "tcp_v6_rcv"),
    function(HookId::Udp6Receive, Role::Transport, "udpv6_rcv"),
    function(HookId::Tcp6Deliver, Role::Deliver, "tcp_v6_do_rcv"),
    function(
        HookId::Udp6Deliver,
        Role::Deliver,
        "udpv6_queue_rcv_one_skb",
    ),
    function(HookId::Tcp6Reset, Role::Reset, "tcp_v6_send_reset"),
    function(HookId::Icmp6Send, Role::IcmpError, "icmp6_send"),
    function(HookId::IcmpReceive, Role::Deliver, "icmp_rcv"),
    function(HookId::Icmp6Receive, Role::Deliver, "icmpv6_rcv"),
    tracepoint(HookId::Drop, Role::Drop, "kfree_skb"),
];

/// Row of each hook number.
const ROWS: [usize; 80] = {
    let mut rows = [0; 80];
    let mut row = 0;
    while row < CATALOGUE.len() {
        rows[CATALOGUE[row].id as usize] = row;
        row += 1;
    }
    rows
};

/// Role of each hook number by itself: asked many times for every event.
static ROLES: [Role; ROWS.len()] = {
    let mut roles = [Role::Drop; ROWS.len()];
    let mut row = 0;
    while row < CATALOGUE.len() {
        roles[CATALOGUE[row].id as usize] = CATALOGUE[row].role;
        row += 1;
    }
    roles
};

/// What it means to be seen at a hook.
pub fn role(id: HookId) -> Role {
    ROLES[id as usize]
}

/// The row of a hook.
pub const fn of(id: HookId) -> &'static Hook {
    &CATALOGUE[row(id)]
}

/// Index of a hook in the catalogue.
pub const fn row(id: HookId) -> usize {
    ROWS[id as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_has_one_row_in_order() {
        let ids: Vec<_> = CATALOGUE.iter().map(|hook| hook.id).collect();
        assert_eq!(ids, HookId::ALL);
        assert!(
            HookId::ALL
                .iter()
                .all(|&id| of(id).id == id && of(id).role == role(id))
        );
    }
}
