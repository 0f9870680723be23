//! IPVS virtual servers and real servers (`ipvsadm -Ln`), by the kernel's generic netlink family.
//!
//! Commands and attributes are those of the kernel's `linux/ip_vs.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NlaBuffer, Parseable as _, parse_string,
    parse_u16, parse_u16_be, parse_u32,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::netlink::{Conversation, ReadError, attributes};
use super::numbered::numbered;
use super::table::rows_or_missing;

const GET_SERVICE: u8 = 4;
const GET_DEST: u8 = 8;

const CMD_ATTR_SERVICE: u16 = 1;
const CMD_ATTR_DEST: u16 = 2;

const SVC_ATTR_AF: u16 = 1;
const SVC_ATTR_PROTOCOL: u16 = 2;
const SVC_ATTR_ADDR: u16 = 3;
const SVC_ATTR_PORT: u16 = 4;
const SVC_ATTR_FWMARK: u16 = 5;
const SVC_ATTR_SCHED_NAME: u16 = 6;
const SVC_ATTR_FLAGS: u16 = 7;
const SVC_ATTR_TIMEOUT: u16 = 8;
const SVC_ATTR_NETMASK: u16 = 9;

const DEST_ATTR_ADDR: u16 = 1;
const DEST_ATTR_PORT: u16 = 2;
const DEST_ATTR_FWD_METHOD: u16 = 3;
const DEST_ATTR_WEIGHT: u16 = 4;
const DEST_ATTR_U_THRESH: u16 = 5;
const DEST_ATTR_L_THRESH: u16 = 6;
const DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const DEST_ATTR_INACT_CONNS: u16 = 8;
const DEST_ATTR_PERSIST_CONNS: u16 = 9;
const DEST_ATTR_ADDR_FAMILY: u16 = 11;

const SVC_F_PERSISTENT: u32 = 1;
const CONN_F_FWD_MASK: u32 = 7;
const LIMIT: usize = 100_000;

/// A virtual server: what clients connect to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VirtualServer {
    /// Which packets it takes.
    pub key: VirtualServerKey,
    /// Scheduler: `rr`, `wrr`, `lc`, `sh` …
    pub scheduler: String,
    /// All flags as the kernel gives them (`IP_VS_SVC_F_*`).
    pub flags: u32,
    /// Set when a client keeps its real server (session affinity).
    pub persistence: Option<Persistence>,
    /// Where connections go.
    pub destinations: Vec<RealServer>,
}

/// Which packets a virtual server takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum VirtualServerKey {
    /// Packets to an address and port.
    Endpoint {
        /// IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
        protocol: u8,
        /// Virtual address.
        address: IpAddr,
        /// Virtual port; 0 takes every port of the address that has no virtual server of its own.
        port: u16,
    },
    /// Packets with a firewall mark.
    Mark {
        /// The mark.
        mark: u32,
        /// IPv6 packets; else IPv4.
        ipv6: bool,
    },
}

/// How long, and which clients together, keep their real server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Persistence {
    /// Time after the last connection.
    pub timeout: Duration,
    /// Leading bits of the client's address that count.
    pub prefix_length: u8,
}

/// A real server of a virtual server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RealServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// How packets get there.
    pub forwarding: ForwardingMethod,
    /// Share of new connections; 0 takes none.
    pub weight: u32,
    /// Established connections.
    pub active_connections: Option<u32>,
    /// Connections in any other state.
    pub inactive_connections: Option<u32>,
    /// Persistence templates.
    pub persistent_connections: Option<u32>,
    /// Connections above which it gets no new ones; `None` when there is no limit.
    pub upper_threshold: Option<u32>,
    /// Connections below which it gets new ones again; `None` when there is no limit.
    pub lower_threshold: Option<u32>,
}

numbered! {
    /// How packets reach a real server (`IP_VS_CONN_F_FWD_MASK`).
    ForwardingMethod: u32 {
        /// Destination rewritten (NAT); kube-proxy's only method.
        Masquerade = 0, "masq";
        /// To this node itself.
        Local = 1, "local";
        /// Encapsulated.
        Tunnel = 2, "tunnel";
        /// To its hardware address, packet unchanged.
        DirectRoute = 3, "route";
        /// Past the virtual server (cache clusters).
        Bypass = 4, "bypass";
    }
}

/// `None` without an entry in `missing`: the kernel has no ip_vs loaded.
pub(super) fn read(missing: &mut Vec<Missing>) -> Option<Vec<VirtualServer>> {
    const WHAT: &str = "IPVS virtual servers";
    let mut conversation = match Conversation::open(libc::NETLINK_GENERIC as isize) {
        Ok(conversation) => conversation,
        Err(error) => {
            missing.push(error.missing(WHAT));
            return None;
        }
    };
    let family = match family(&mut conversation) {
        Ok(family) => family?,
        Err(error) => {
            missing.push(error.missing(WHAT));
            return None;
        }
    };
    let services = conversation.dump(
        request(family, GET_SERVICE, Vec::new()),
        LIMIT,
        parse_service,
    );
    if let Err(error) = services {
        missing.push(error.missing(WHAT));
        return None;
    }
    let mut servers = Vec::new();
    for mut row in rows_or_missing(WHAT, services, missing) {
        let service = DefaultNla::new(CMD_ATTR_SERVICE | NLA_F_NESTED, emitted(&row.identity));
        let ipv6 = row.ipv6;
        let destinations =
            conversation.dump(request(family, GET_DEST, vec![service]), LIMIT, |payload| {
                parse_destination(payload, ipv6)
            });
        row.server.destinations = rows_or_missing("IPVS real servers", destinations, missing);
        servers.push(row.server);
    }
    Some(servers)
}

/// Number of the IPVS family. Asking for it by name would make the kernel load ip_vs, and the
/// tracer changes nothing: so all families are listed.
fn family(conversation: &mut Conversation) -> Result<Option<u16>, ReadError> {
    let request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: Vec::new(),
    });
    let families = conversation.dump(request, usize::MAX, |payload| Ok(parse_family(payload)))?;
    Ok(families.into_rows().first().copied())
}

fn parse_family(payload: &[u8]) -> Option<u16> {
    let (mut name, mut number) = (None, None);
    for attribute in generic_attributes(payload) {
        match GenlCtrlAttrs::parse(&attribute) {
            Ok(GenlCtrlAttrs::FamilyName(text)) => name = Some(text),
            Ok(GenlCtrlAttrs::FamilyId(value)) => number = Some(value),
            Ok(_) | Err(_) => {}
        }
    }
    number.filter(|_| name.as_deref() == Some(IpvsRequest::family_name()))
}

#[derive(Debug)]
struct IpvsRequest {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for IpvsRequest {
    fn family_name() -> &'static str {
        "IPVS"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for IpvsRequest {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

fn request(family: u16, command: u8, attributes: Vec<DefaultNla>) -> GenlMessage<IpvsRequest> {
    let mut message = GenlMessage::from_payload(IpvsRequest {
        command,
        attributes,
    });
    message.set_resolved_family_id(family);
    message
}

fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn generic_attributes(payload: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    attributes(payload, GenlHeader { cmd: 0, version: 0 }.buffer_len())
}

/// A virtual server, and the attributes by which the kernel finds it again.
#[derive(Debug)]
struct ServiceRow {
    server: VirtualServer,
    identity: Vec<DefaultNla>,
    ipv6: bool,
}

fn entry(payload: &[u8], kind: u16) -> Result<NlaBuffer<&[u8]>, DecodeError> {
    generic_attributes(payload)
        .find(|attribute| attribute.kind() == kind)
        .ok_or_else(|| "IPVS answer without its entry".into())
}

fn parse_service(payload: &[u8]) -> Result<Option<ServiceRow>, DecodeError> {
    let service = entry(payload, CMD_ATTR_SERVICE)?;
    let (mut family, mut protocol, mut address, mut port, mut mark) =
        (None, None, None, None, None);
    let (mut scheduler, mut flags, mut timeout, mut netmask) = (None, None, None, None);
    let mut identity = Vec::new();
    for attribute in attributes(service.value(), 0) {
        let bytes = attribute.value();
        match attribute.kind() {
            SVC_ATTR_AF => family = parse_u16(bytes).ok(),
            SVC_ATTR_PROTOCOL => {
                protocol = parse_u16(bytes)
                    .ok()
                    .and_then(|number| u8::try_from(number).ok())
            }
            SVC_ATTR_ADDR => address = Some(bytes.to_vec()),
            SVC_ATTR_PORT => port = parse_u16_be(bytes).ok(),
            SVC_ATTR_FWMARK => mark = parse_u32(bytes).ok(),
            SVC_ATTR_SCHED_NAME => scheduler = parse_string(bytes).ok(),
            SVC_ATTR_FLAGS => flags = bytes.get(..4).and_then(|bytes| parse_u32(bytes).ok()),
            SVC_ATTR_TIMEOUT => timeout = parse_u32(bytes).ok(),
            // A mask in IPv4, a length in the machine's byte order in IPv6.
            SVC_ATTR_NETMASK => netmask = bytes.try_into().ok(),
            _ => {}
        }
        if (SVC_ATTR_AF..=SVC_ATTR_FWMARK).contains(&attribute.kind()) {
            identity.push(DefaultNla::parse(&attribute)?);
        }
    }
    let ipv6 = is_ipv6(family.ok_or("virtual server without address family")?)?;
    let key = match (mark, protocol, address, port) {
        (Some(mark), ..) => VirtualServerKey::Mark { mark, ipv6 },
        (None, Some(protocol), Some(bytes), Some(port)) => VirtualServerKey::Endpoint {
            protocol,
            address: ip_address(&bytes, ipv6)?,
            port,
        },
        _ => return Err("virtual server without its address".into()),
    };
    let flags = flags.ok_or("virtual server without flags")?;
    let persistence = if flags & SVC_F_PERSISTENT != 0 {
        let netmask = netmask.ok_or("persistent virtual server without netmask")?;
        let prefix_length = if ipv6 {
            u8::try_from(u32::from_ne_bytes(netmask)).map_err(|_| "netmask too long")?
        } else {
            u32::from_be_bytes(netmask).leading_ones() as u8
        };
        let timeout = timeout.ok_or("persistent virtual server without timeout")?;
        Some(Persistence {
            timeout: Duration::from_secs(timeout.into()),
            prefix_length,
        })
    } else {
        None
    };
    let server = VirtualServer {
        key,
        scheduler: scheduler.ok_or("virtual server without scheduler")?,
        flags,
        persistence,
        destinations: Vec::new(),
    };
    Ok(Some(ServiceRow {
        server,
        identity,
        ipv6,
    }))
}

fn parse_destination(
    payload: &[u8],
    service_is_ipv6: bool,
) -> Result<Option<RealServer>, DecodeError> {
    let destination = entry(payload, CMD_ATTR_DEST)?;
    let (mut family, mut address, mut port, mut forwarding, mut weight) =
        (None, None, None, None, None);
    let (mut active, mut inactive, mut persistent, mut upper, mut lower) =
        (None, None, None, None, None);
    for attribute in attributes(destination.value(), 0) {
        let bytes = attribute.value();
        let number = || parse_u32(bytes).ok();
        match attribute.kind() {
            DEST_ATTR_ADDR => address = Some(bytes.to_vec()),
            DEST_ATTR_PORT => port = parse_u16_be(bytes).ok(),
            DEST_ATTR_FWD_METHOD => forwarding = number(),
            DEST_ATTR_WEIGHT => weight = number(),
            DEST_ATTR_U_THRESH => upper = number(),
            DEST_ATTR_L_THRESH => lower = number(),
            DEST_ATTR_ACTIVE_CONNS => active = number(),
            DEST_ATTR_INACT_CONNS => inactive = number(),
            DEST_ATTR_PERSIST_CONNS => persistent = number(),
            DEST_ATTR_ADDR_FAMILY => family = parse_u16(bytes).ok(),
            _ => {}
        }
    }
    // Only tunnels may cross families; kernels before 3.18 do not send the attribute.
    let ipv6 = family.map_or(Ok(service_is_ipv6), is_ipv6)?;
    let address = address.ok_or("real server without address")?;
    Ok(Some(RealServer {
        address: ip_address(&address, ipv6)?,
        port: port.ok_or("real server without port")?,
        forwarding: forwarding
            .map(|flags| ForwardingMethod::from_kernel(flags & CONN_F_FWD_MASK))
            .ok_or("real server without forwarding method")?,
        weight: weight.ok_or("real server without weight")?,
        active_connections: active,
        inactive_connections: inactive,
        persistent_connections: persistent,
        upper_threshold: upper.filter(|limit| *limit != 0),
        lower_threshold: lower.filter(|limit| *limit != 0),
    }))
}

fn is_ipv6(family: u16) -> Result<bool, DecodeError> {
    match i32::from(family) {
        libc::AF_INET => Ok(false),
        libc::AF_INET6 => Ok(true),
        other => Err(format!("IPVS entry of address family {other}").into()),
    }
}

/// From the kernel's 16-byte union of both families.
fn ip_address(bytes: &[u8], ipv6: bool) -> Result<IpAddr, DecodeError> {
    let short = "IPVS address too short";
    Ok(if ipv6 {
        Ipv6Addr::from(*bytes.first_chunk::<16>().ok_or(short)?).into()
    } else {
        Ipv4Addr::from(*bytes.first_chunk::<4>().ok_or(short)?).into()
    })
}

#[cfg(test)]
mod tests;
