//! Numbers of the hooks. What each one means, and which kernel symbol it sits on, is userspace's
//! catalogue (`tracer::hook`); the kernel side only stamps the number.

macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $program:literal;)*) => {
        /// A place in the kernel where a packet is seen.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum HookId { $($(#[$doc])* $name = $id),* }

        impl HookId {
            /// Every hook, in the order of a packet's way.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The hook with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($id => Some(Self::$name),)* _ => None }
            }

            /// Stable name; programs are called `kprobe_`, `fentry_` or `tp_` and this.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $program),* }
            }
        }
    };
}

hooks! {
    /// A device handed the packet to the network stack.
    DeviceReceive = 1, "device_receive";
    /// The packet is handed to a device's driver.
    DeviceTransmit = 2, "device_transmit";
    /// The packet crosses a veth pair.
    VethTransmit = 3, "veth_transmit";
    /// A bridge port received the packet.
    BridgeReceive = 4, "bridge_receive";
    /// A bridge sends the packet out of a port.
    BridgeForward = 5, "bridge_forward";
    /// A bridge does not know the port, and sends the packet out of all.
    BridgeFlood = 62, "bridge_flood";
    /// The packet enters a bridge from the bridge device itself.
    BridgeTransmit = 6, "bridge_transmit";
    /// A bridge hands the packet up to its own device.
    BridgeLocal = 7, "bridge_local";
    /// A VXLAN device wraps the packet.
    VxlanTransmit = 34, "vxlan_transmit";
    /// A VXLAN socket unwraps the packet.
    VxlanReceive = 35, "vxlan_receive";
    /// IPv4 begins with a received packet.
    Ip4Receive = 8, "ip4_receive";
    /// The route of a received packet is looked up.
    RouteInput = 9, "route_input";
    /// The route ends here: local delivery.
    LocalDeliver = 10, "local_deliver";
    /// Local delivery after the INPUT hook.
    LocalDeliverFinish = 11, "local_deliver_finish";
    /// The route leads on: forwarding.
    Forward = 12, "forward";
    /// The route is an error.
    RouteError = 13, "route_error";
    /// A packet made on this host enters IPv4 output.
    LocalOut = 14, "local_out";
    /// IPv4 output, before POSTROUTING.
    Output = 15, "output";
    /// IPv4 output, after POSTROUTING, on its way to the neighbour.
    OutputFinish = 16, "output_finish";
    /// The packet is cut into fragments.
    Fragment = 61, "fragment";
    /// The IPv6 packet is cut into fragments.
    Fragment6 = 70, "fragment6";
    /// The source address cannot be right on this device.
    Martian = 53, "martian";
    /// IPv6 begins with a received packet.
    Ip6Receive = 36, "ip6_receive";
    /// The IPv6 route ends here: local delivery.
    Local6Deliver = 37, "local6_deliver";
    /// The IPv6 route leads on: forwarding.
    Forward6 = 38, "forward6";
    /// The IPv6 route is an error.
    Route6Error = 63, "route6_error";
    /// A packet made on this host enters IPv6 output.
    Local6Out = 39, "local6_out";
    /// IPv6 output, before POSTROUTING.
    Output6 = 41, "output6";
    /// IPv6 output, after POSTROUTING, on its way to the neighbour.
    Output6Finish = 42, "output6_finish";
    /// The packet waits until its neighbour's address is known.
    NeighbourQueue = 50, "neighbour_queue";
    /// The neighbour did not answer; packets that waited for it are lost.
    NeighbourFailed = 51, "neighbour_failed";
    /// The same for IPv6.
    Neighbour6Failed = 52, "neighbour6_failed";
    /// A netfilter hook with rules is entered.
    NetfilterHook = 17, "netfilter_hook";
    /// Conntrack knows the TCP packet's entry.
    ConntrackTcp = 43, "conntrack_tcp";
    /// Conntrack knows the UDP packet's entry.
    ConntrackUdp = 44, "conntrack_udp";
    /// Conntrack knows the ICMP packet's entry.
    ConntrackIcmp = 45, "conntrack_icmp";
    /// Conntrack knows the ICMPv6 packet's entry.
    ConntrackIcmp6 = 67, "conntrack_icmp6";
    /// A new entry clashes with one that another packet made meanwhile.
    ConntrackClash = 46, "conntrack_clash";
    /// A new conntrack entry becomes valid.
    ConntrackConfirm = 18, "conntrack_confirm";
    /// A conntrack entry ends: expired, deleted, or never confirmed. No packet belongs to it.
    ConntrackDelete = 65, "conntrack_delete";
    /// Netfilter NAT rewrites the packet.
    Nat = 19, "nat";
    /// IPVS looks for an existing connection.
    IpvsLookup = 20, "ipvs_lookup";
    /// IPVS looks for a virtual server.
    IpvsServiceFind = 21, "ipvs_service_find";
    /// IPVS found a virtual server and schedules a new connection.
    IpvsSchedule = 22, "ipvs_schedule";
    /// IPVS made a connection entry.
    IpvsConnectionNew = 23, "ipvs_connection_new";
    /// IPVS sends the packet to the real server by NAT.
    IpvsNatTransmit = 24, "ipvs_nat_transmit";
    /// The same for IPv6.
    IpvsNat6Transmit = 49, "ipvs_nat6_transmit";
    /// IPVS sends the packet to the real server by direct routing.
    IpvsDirectTransmit = 47, "ipvs_direct_transmit";
    /// IPVS sends the packet to the real server through a tunnel.
    IpvsTunnelTransmit = 48, "ipvs_tunnel_transmit";
    /// IPVS sends the IPv6 packet to the real server by direct routing.
    IpvsDirect6Transmit = 68, "ipvs_direct6_transmit";
    /// IPVS sends the IPv6 packet to the real server through a tunnel.
    IpvsTunnel6Transmit = 69, "ipvs_tunnel6_transmit";
    /// IPVS takes a real server's reply back.
    IpvsReply = 25, "ipvs_reply";
    /// IPVS found a virtual server without a usable real server.
    IpvsLeave = 26, "ipvs_leave";
    /// TCP looks for a socket.
    TcpReceive = 27, "tcp_receive";
    /// UDP looks for a socket.
    UdpReceive = 28, "udp_receive";
    /// A TCP socket that listens takes a request for a connection.
    TcpRequest = 64, "tcp_request";
    /// The packet meets a request for a connection that has been answered: a request that is repeated, or
    /// the end of the handshake. IPv4 and IPv6.
    TcpHalfOpen = 71, "tcp_half_open";
    /// A TCP socket that a process works with keeps the packet until it can take it. IPv4 and IPv6.
    TcpBacklog = 74, "tcp_backlog";
    /// A TCP socket takes the packet.
    TcpDeliver = 29, "tcp_deliver";
    /// The socket of a new connection takes the packet that ends the handshake. IPv4 and IPv6.
    TcpChild = 72, "tcp_child";
    /// What is left of a closed connection takes the packet. IPv4 and IPv6.
    TcpTimeWait = 73, "tcp_time_wait";
    /// A UDP socket takes the packet.
    UdpDeliver = 30, "udp_deliver";
    /// TCP answers the packet with RST.
    TcpReset = 31, "tcp_reset";
    /// An ICMP error is sent about the packet.
    IcmpSend = 32, "icmp_send";
    /// TCP over IPv6 looks for a socket.
    Tcp6Receive = 54, "tcp6_receive";
    /// UDP over IPv6 looks for a socket.
    Udp6Receive = 55, "udp6_receive";
    /// A TCP socket takes an IPv6 packet.
    Tcp6Deliver = 56, "tcp6_deliver";
    /// A UDP socket takes an IPv6 packet.
    Udp6Deliver = 57, "udp6_deliver";
    /// TCP answers an IPv6 packet with RST.
    Tcp6Reset = 58, "tcp6_reset";
    /// An ICMPv6 error is sent about the packet.
    Icmp6Send = 59, "icmp6_send";
    /// ICMP takes the packet.
    IcmpReceive = 60, "icmp_receive";
    /// ICMPv6 takes the packet: an echo, neighbour discovery.
    Icmp6Receive = 66, "icmp6_receive";
    /// The packet is freed as dropped.
    Drop = 33, "drop";
}
