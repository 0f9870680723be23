//! Kernel fields that the programs read. Userspace looks their offsets up in the running kernel's
//! BTF and passes them in as the global `LAYOUT`; one new field is one new line here.

/// Offset of a field that this kernel does not have or whose place is unknown: a kernel address, or none, with it added
/// once or twice is not canonical on x86-64, so that reading gives zero and the programs need not ask.
pub const ABSENT: u64 = 1 << 62;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $structure:literal, $path:literal $(of $module:literal)?;)*) => {
        /// A kernel field; the number is its index in [`Layout`].
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Field { $($(#[$doc])* $name),* }

        /// Where userspace finds each field: structure and dotted member path, in the order of
        /// [`Field`].
        pub const FIELDS: &[FieldName] = &[
            $(FieldName {
                field: Field::$name,
                structure: $structure,
                path: $path,
                module: concat!($($module)?),
            }),*
        ];
    };
}

/// The name of a kernel field.
#[derive(Clone, Copy, Debug)]
pub struct FieldName {
    /// Which field.
    pub field: Field,
    /// Structure name.
    pub structure: &'static str,
    /// Member path, dotted.
    pub path: &'static str,
    /// Module whose BTF describes it, which 5.10 has none of; empty for the kernel's own.
    pub module: &'static str,
}

fields! {
    /// Start of the buffer.
    SkbHead = "sk_buff", "head";
    /// Start of the data.
    SkbData = "sk_buff", "data";
    /// End of the linear data, from head.
    SkbTail = "sk_buff", "tail";
    /// Bytes in all.
    SkbLen = "sk_buff", "len";
    /// From head.
    SkbNetworkHeader = "sk_buff", "network_header";
    /// From head, all ones when unset.
    SkbMacHeader = "sk_buff", "mac_header";
    /// EtherType.
    SkbProtocol = "sk_buff", "protocol";
    /// Whom the frame is for, in the low three bits.
    SkbAddressee = "sk_buff", "pkt_type";
    /// Device.
    SkbDev = "sk_buff", "dev";
    /// Firewall mark.
    SkbMark = "sk_buff", "mark";
    /// Route, with flag bits below.
    SkbRefdst = "sk_buff", "_skb_refdst";
    /// Conntrack entry, with the direction in the low bits.
    SkbNfct = "sk_buff", "_nfct";
    /// Owning socket.
    SkbSk = "sk_buff", "sk";
    /// Interface index.
    NetDeviceIfindex = "net_device", "ifindex";
    /// Name of a device.
    NetDeviceName = "net_device", "name";
    /// Namespace of a device.
    NetDeviceNet = "net_device", "nd_net.net";
    /// Inode number of a namespace.
    NetInum = "net", "ns.inum";
    /// Netfilter hook number.
    HookStateHook = "nf_hook_state", "hook";
    /// Netfilter family.
    HookStatePf = "nf_hook_state", "pf";
    /// Namespace of the netfilter hook.
    HookStateNet = "nf_hook_state", "net";
    /// First tuple hash of a conntrack entry.
    ConnTuplehash = "nf_conn", "tuplehash";
    /// `IPS_*` bits.
    ConnStatus = "nf_conn", "status";
    /// Conntrack zone.
    ConnZone = "nf_conn", "zone.id";
    /// Namespace of a conntrack entry.
    ConnNet = "nf_conn", "ct_net.net";
    /// Size of a tuple hash: the second one follows the first.
    TupleHashTuple = "nf_conntrack_tuple_hash", "tuple";
    /// Route device.
    DstDev = "dst_entry", "dev";
    /// Route error, negative.
    DstError = "dst_entry", "error";
    /// `RTN_*`.
    RtableType = "rtable", "rt_type";
    /// TCP state.
    SockState = "sock_common", "skc_state";
    /// Local port, host order.
    SockNum = "sock_common", "skc_num";
    /// Namespace of a socket.
    SockNet = "sock_common", "skc_net.net";
    /// Connections that wait to be accepted.
    SockAccepting = "sock", "sk_ack_backlog";
    /// How many may.
    SockMostAccepting = "sock", "sk_max_ack_backlog";
    /// Address of a neighbour, the table's family's length.
    NeighbourKey = "neighbour", "primary_key";
    /// `NUD_*` bits.
    NeighbourState = "neighbour", "nud_state";
    /// Device of a neighbour.
    NeighbourDev = "neighbour", "dev";
    /// Device of a bridge port.
    BridgePortDev = "net_bridge_port", "dev";
    /// Address of the real server of an IPVS connection.
    IpvsReal = "ip_vs_conn", "daddr" of "ip_vs";
    /// Port of the real server, network order.
    IpvsRealPort = "ip_vs_conn", "dport" of "ip_vs";
    /// `IP_VS_CONN_F_*`.
    IpvsFlags = "ip_vs_conn", "flags" of "ip_vs";
    /// State of the connection, numbered as its protocol does.
    IpvsState = "ip_vs_conn", "state" of "ip_vs";
}

/// Number of fields.
pub const FIELD_COUNT: usize = FIELDS.len();

/// Offsets and sizes of all fields, in the order of [`Field`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Layout {
    /// Byte offset in the structure, [`ABSENT`] when unknown.
    pub offset: [u64; FIELD_COUNT],
    /// Bytes of the field, 0 when unknown.
    pub size: [u64; FIELD_COUNT],
}

impl Layout {
    /// Nothing known.
    pub const UNKNOWN: Self = Self {
        offset: [ABSENT; FIELD_COUNT],
        size: [0; FIELD_COUNT],
    };
}

/// Settings that the programs read as constants.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Settings {
    /// 1 when the `kfree_skb` tracepoint carries a reason (5.17 and later).
    pub drop_reason: u32,
    /// 1 to keep only events of the namespaces in the `NAMESPACES` map.
    pub only_namespaces: u32,
    /// Bits of [`filter`]; 0 without a filter.
    pub filter: u32,
    /// Offset in `sk_buff` of the first of the fields that are copied, see [`in_window`].
    pub window_start: u32,
    /// Bytes of `sk_buff` that are copied from there; at most [`WINDOW_BYTES`].
    pub window_length: u32,
    /// Offset of each field in the copy, in the order of [`Field`]; [`WINDOW_BYTES`], where a zero is, for one that is
    /// not in it.
    pub window: [u32; FIELD_COUNT],
}

/// Bits of [`Settings::filter`].
pub mod filter {
    /// Follow what belongs to a matching packet.
    pub const FOLLOW: u32 = 1 << 0;
    /// The program tells source from destination.
    pub const DIRECTED: u32 = 1 << 1;
    /// The program asks for device names.
    pub const INTERFACE: u32 = 1 << 2;
    /// The program asks for namespaces.
    pub const NAMESPACE: u32 = 1 << 3;
}

/// Room for the copied part of an `sk_buff`: 128 bytes on the kernels measured (5.10 to 7.3).
pub const WINDOW_BYTES: usize = 136;

/// True for fields of `sk_buff` that are read of nearly every packet; they lie close together and are
/// copied at once.
pub const fn in_window(field: Field) -> bool {
    matches!(
        field,
        Field::SkbHead
            | Field::SkbData
            | Field::SkbTail
            | Field::SkbLen
            | Field::SkbNetworkHeader
            | Field::SkbMacHeader
            | Field::SkbProtocol
            | Field::SkbAddressee
            | Field::SkbMark
            | Field::SkbRefdst
            | Field::SkbNfct
    )
}
