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
    /// The packet enters a bridge from the bridge device itself.
    BridgeTransmit = 6, "bridge_transmit";
    /// A bridge hands the packet up to its own device.
    BridgeLocal = 7, "bridge_local";
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
    /// A netfilter hook with rules is entered.
    NetfilterHook = 17, "netfilter_hook";
    /// A new conntrack entry becomes valid.
    ConntrackConfirm = 18, "conntrack_confirm";
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
    /// IPVS takes a real server's reply back.
    IpvsReply = 25, "ipvs_reply";
    /// IPVS found a virtual server without a usable real server.
    IpvsLeave = 26, "ipvs_leave";
    /// TCP looks for a socket.
    TcpReceive = 27, "tcp_receive";
    /// UDP looks for a socket.
    UdpReceive = 28, "udp_receive";
    /// A TCP socket takes the packet.
    TcpDeliver = 29, "tcp_deliver";
    /// A UDP socket takes the packet.
    UdpDeliver = 30, "udp_deliver";
    /// TCP answers the packet with RST.
    TcpReset = 31, "tcp_reset";
    /// An ICMP error is sent about the packet.
    IcmpSend = 32, "icmp_send";
    /// The packet is freed as dropped.
    Drop = 33, "drop";
}
