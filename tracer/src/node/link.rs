//! Network devices (`ip -d link`).

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::ParseableParametrized as _;
use netlink_packet_core::{
    DecodeError, Emitable, NlaBuffer, parse_ip, parse_string, parse_u8, parse_u16_be, parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkMessage,
};
use serde::{Deserialize, Serialize};

use super::namespace::NetnsId;
use super::netlink::{Conversation, ReadError, attributes};
use super::numbered::numbered;
use super::table::Table;

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// What made it: `veth`, `bridge`, `vxlan`, `dummy` …; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// The lower layer can carry packets.
    pub carrier: Option<bool>,
    /// RFC 2863 state; many virtual devices never report one ([`OperState::Unknown`]).
    pub state: Option<OperState>,
    /// Hardware address, where it is an Ethernet one.
    pub mac: Option<Mac>,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// Index of the device at the other end (veth) or below (vlan, macvlan), in `peer_netns`.
    pub peer_index: Option<u32>,
    /// Namespace of `peer_index`; `None` with a peer index means that it is not among the known ones.
    pub peer_netns: Option<NetnsId>,
    /// What its bridge does with it, for ports of a bridge.
    pub bridge_port: Option<BridgePort>,
    /// The tunnel, for VXLAN devices.
    pub vxlan: Option<Vxlan>,
    /// Number of the XDP program on it.
    pub xdp: Option<u32>,
    /// The stack runs that program, not the device's driver.
    #[serde(default)]
    pub xdp_generic: bool,
}

impl Link {
    /// A device of which no more than its name is known, as in other programs' captures.
    pub fn named(index: u32, name: Option<String>) -> Self {
        Self {
            index,
            name: name.unwrap_or_else(|| format!("if{index}")),
            kind: None,
            mtu: None,
            up: false,
            carrier: None,
            state: None,
            mac: None,
            master: None,
            peer_index: None,
            peer_netns: None,
            bridge_port: None,
            vxlan: None,
            xdp: None,
            xdp_generic: false,
        }
    }
}

/// What a VXLAN device wraps packets into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vxlan {
    /// Network identifier.
    pub id: Option<u32>,
    /// UDP port of the other ends, and of this one.
    pub port: Option<u16>,
    /// Address that it sends from.
    pub local: Option<IpAddr>,
    /// Device that it sends by.
    pub link: Option<u32>,
}

/// Every namespace has this device.
pub(super) const LOOPBACK: &str = "lo";

/// A device's part in a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BridgePort {
    /// Spanning tree state: only `forwarding` lets packets pass.
    pub state: Option<BridgePortState>,
    /// Frames may leave by the port they came from.
    pub hairpin: Option<bool>,
}

numbered! {
    /// Operational state of a device (`IF_OPER_*`).
    OperState: u8 {
        /// The driver does not say.
        Unknown = 0, "unknown";
        /// A part is missing.
        NotPresent = 1, "notpresent";
        /// No carrier, or set down.
        Down = 2, "down";
        /// The device below is down.
        LowerLayerDown = 3, "lowerlayerdown";
        /// Testing.
        Testing = 4, "testing";
        /// Waits, for example for authentication.
        Dormant = 5, "dormant";
        /// Carries packets.
        Up = 6, "up";
    }
}

numbered! {
    /// Spanning tree state of a bridge port (`BR_STATE_*`).
    BridgePortState: u8 {
        /// Off.
        Disabled = 0, "disabled";
        /// Hears the topology, learns nothing.
        Listening = 1, "listening";
        /// Learns addresses, passes nothing.
        Learning = 2, "learning";
        /// Passes packets.
        Forwarding = 3, "forwarding";
        /// Blocked to break a loop.
        Blocking = 4, "blocking";
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `None` for addresses of other lengths, as InfiniBand and tunnels have.
    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Where the kernel says that a link's peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerPlace {
    /// In the link's own namespace.
    Same,
    /// In the namespace that the link's own one knows by this number.
    Numbered(i32),
}

/// A link, and where its peer is as long as that is not resolved.
#[derive(Debug)]
pub(super) struct LinkRow {
    pub(super) link: Link,
    pub(super) peer: Option<PeerPlace>,
}

pub(super) fn read(route: &mut Conversation) -> Result<Table<LinkRow>, ReadError> {
    let mut request = LinkMessage::default();
    // Statistics are most of an answer's bytes and are not facts that last.
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    route.dump(
        RouteNetlinkMessage::GetLink(request),
        usize::MAX,
        |payload| parse(payload).map(Some),
    )
}

fn parse(payload: &[u8]) -> Result<LinkRow, DecodeError> {
    let header = LinkHeader::parse(payload)?;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        kind: None,
        mtu: None,
        up: header.flags.contains(LinkFlags::Up),
        carrier: None,
        state: None,
        mac: None,
        master: None,
        peer_index: None,
        peer_netns: None,
        bridge_port: None,
        vxlan: None,
        xdp: None,
        xdp_generic: false,
    };
    let mut peer_number = None;
    for attribute in attributes(payload, header.buffer_len()) {
        // The crate reads this attribute whole, and a newer kernel's addition would cost the kind.
        if attribute.kind() == libc::IFLA_LINKINFO {
            parse_link_info(&attribute, &mut link);
            continue;
        }
        if attribute.kind() == IFLA_XDP {
            for field in attributes(attribute.value(), 0) {
                match field.kind() {
                    IFLA_XDP_ATTACHED => {
                        link.xdp_generic = field.value() == [XDP_ATTACHED_SKB];
                    }
                    IFLA_XDP_PROG_ID => {
                        link.xdp = parse_u32(field.value()).ok().filter(|&id| id != 0);
                    }
                    _ => {}
                }
            }
            continue;
        }
        match LinkAttribute::parse_with_param(&attribute, header.interface_family) {
            Ok(LinkAttribute::IfName(name)) => link.name = name,
            Ok(LinkAttribute::Mtu(mtu)) => link.mtu = Some(mtu),
            Ok(LinkAttribute::Carrier(carrier)) => link.carrier = Some(carrier != 0),
            Ok(LinkAttribute::OperState(state)) => {
                link.state = Some(OperState::from_kernel(state.into()))
            }
            Ok(LinkAttribute::Address(bytes)) => link.mac = Mac::from_slice(&bytes),
            Ok(LinkAttribute::Controller(index)) => link.master = Some(index),
            Ok(LinkAttribute::Link(index)) => {
                link.peer_index = Some(index).filter(|index| *index != 0)
            }
            Ok(LinkAttribute::LinkNetNsId(number)) => peer_number = Some(number),
            Ok(_) | Err(_) => {}
        }
    }
    if link.name.is_empty() {
        return Err("link without a name".into());
    }
    let peer = link
        .peer_index
        .map(|_| peer_number.map_or(PeerPlace::Same, PeerPlace::Numbered));
    Ok(LinkRow { link, peer })
}

const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const XDP_ATTACHED_SKB: u8 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const VXLAN_ID: u16 = 1;
const VXLAN_LINK: u16 = 3;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const BRIDGE_PORT_STATE: u16 = 1;
const BRIDGE_PORT_HAIRPIN: u16 = 4;

fn parse_link_info(info: &NlaBuffer<&[u8]>, link: &mut Link) {
    let (mut port_kind, mut data) = (None, None);
    let mut port = BridgePort {
        state: None,
        hairpin: None,
    };
    for attribute in attributes(info.value(), 0) {
        match attribute.kind() {
            libc::IFLA_INFO_KIND => link.kind = parse_string(attribute.value()).ok(),
            libc::IFLA_INFO_DATA => data = Some(attribute),
            libc::IFLA_INFO_SLAVE_KIND => port_kind = parse_string(attribute.value()).ok(),
            libc::IFLA_INFO_SLAVE_DATA => {
                for field in attributes(attribute.value(), 0) {
                    let value = parse_u8(field.value()).ok();
                    match field.kind() {
                        BRIDGE_PORT_STATE => port.state = value.map(BridgePortState::from_kernel),
                        BRIDGE_PORT_HAIRPIN => port.hairpin = value.map(|flag| flag != 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.bridge_port = (port_kind.as_deref() == Some("bridge")).then_some(port);
    link.vxlan = data
        .filter(|_| link.kind.as_deref() == Some("vxlan"))
        .map(|data| parse_vxlan(&data));
}

fn parse_vxlan(data: &NlaBuffer<&[u8]>) -> Vxlan {
    let mut vxlan = Vxlan {
        id: None,
        port: None,
        local: None,
        link: None,
    };
    for field in attributes(data.value(), 0) {
        let value = field.value();
        match field.kind() {
            VXLAN_ID => vxlan.id = parse_u32(value).ok(),
            VXLAN_LINK => vxlan.link = parse_u32(value).ok().filter(|&index| index != 0),
            VXLAN_LOCAL | VXLAN_LOCAL6 => vxlan.local = parse_ip(value).ok(),
            VXLAN_PORT => vxlan.port = parse_u16_be(value).ok(),
            _ => {}
        }
    }
    vxlan
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{
        BridgePortState as RawPortState, InfoBridgePort, InfoKind, InfoPortData, InfoPortKind,
        LinkInfo, State,
    };

    use super::*;

    fn bytes_of(message: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn veth_in_bridge() -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("veth0".into()),
            LinkAttribute::Mtu(1450),
            LinkAttribute::Carrier(1),
            LinkAttribute::OperState(State::Up),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
            LinkAttribute::Controller(3),
            LinkAttribute::Link(2),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![
                    InfoBridgePort::State(RawPortState::Forwarding),
                    InfoBridgePort::HairpinMode(true),
                ])),
            ]),
        ];
        message
    }

    #[test]
    fn reads_a_veth_that_is_a_bridge_port() {
        let row = parse(&bytes_of(&veth_in_bridge())).unwrap();
        let expected = Link {
            index: 7,
            name: "veth0".into(),
            kind: Some("veth".into()),
            mtu: Some(1450),
            up: true,
            carrier: Some(true),
            state: Some(OperState::Up),
            mac: Some(Mac([2, 0, 0, 0, 0, 9])),
            master: Some(3),
            peer_index: Some(2),
            peer_netns: None,
            bridge_port: Some(BridgePort {
                state: Some(BridgePortState::Forwarding),
                hairpin: Some(true),
            }),
            vxlan: None,
            xdp: None,
            xdp_generic: false,
        };
        assert_eq!(row.link, expected);
        assert_eq!(row.peer, Some(PeerPlace::Numbered(0)));
        assert_eq!(expected.mac.unwrap().to_string(), "02:00:00:00:00:09");
    }

    #[test]
    fn a_vxlan_device_tells_its_tunnel_and_its_program() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let data = [
            attribute(VXLAN_ID, &1_u32.to_ne_bytes()),
            attribute(VXLAN_LINK, &2_u32.to_ne_bytes()),
            attribute(VXLAN_LOCAL, &[192, 0, 2, 1]),
            attribute(VXLAN_PORT, &8472_u16.to_be_bytes()),
        ];
        let info = [
            attribute(libc::IFLA_INFO_KIND, b"vxlan\0"),
            attribute(libc::IFLA_INFO_DATA, &data.concat()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName("flannel.1".into())];
        let mut bytes = bytes_of(&message);
        bytes.extend(attribute(libc::IFLA_LINKINFO, &info.concat()));
        let xdp = [
            attribute(IFLA_XDP_ATTACHED, &[XDP_ATTACHED_SKB]),
            attribute(IFLA_XDP_PROG_ID, &7_u32.to_ne_bytes()),
        ];
        bytes.extend(attribute(IFLA_XDP, &xdp.concat()));
        let link = parse(&bytes).unwrap().link;
        let expected = Vxlan {
            id: Some(1),
            port: Some(8472),
            local: Some("192.0.2.1".parse().unwrap()),
            link: Some(2),
        };
        assert_eq!((link.vxlan, link.xdp), (Some(expected), Some(7)));
        assert!(link.xdp_generic);
    }

    #[test]
    fn absent_attributes_stay_unknown() {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName("lo".into()),
            LinkAttribute::Address(vec![0; 20]),
        ];
        let row = parse(&bytes_of(&message)).unwrap();
        assert_eq!(
            (row.link.mtu, row.link.mac, row.link.bridge_port),
            (None, None, None)
        );
        assert_eq!(row.peer, None);
    }

    #[test]
    fn no_cut_of_a_message_panics() {
        let bytes = bytes_of(&veth_in_bridge());
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
        assert!(parse(&[]).is_err());
    }
}
