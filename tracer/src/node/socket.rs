//! Sockets that wait for packets (`ss -lntu`): TCP in LISTEN, UDP without a peer.
//!
//! The kernel loads its diagnosis modules when they are asked for. The tracer changes nothing, so
//! it asks only where they are loaded, and else reads /proc, which knows less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use netlink_packet_core::{DecodeError, Parseable as _, parse_u8};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::netlink::{Conversation, ReadError, attributes};
use super::table::{Table, rows_or_missing};

const LIMIT: usize = 50_000;
const DIAG_ATTR_V6ONLY: u16 = 11;
const RESPONSE_BYTES: usize = 72;
const STATE_SYN_RECEIVED: u8 = 3;
const STATE_CLOSE: u8 = 7;
const STATE_LISTEN: u8 = 10;

/// A socket that waits for packets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListeningSocket {
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Local address; unspecified means all of its family.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// An IPv6 socket that does not take IPv4 packets.
    pub only_ipv6: Option<bool>,
    /// Index of the device that it is bound to.
    pub link: Option<u32>,
    /// TCP: connections that wait for `accept`. UDP: bytes that wait to be read.
    pub receive_queue: u32,
    /// TCP: connections that may wait.
    pub backlog: Option<u32>,
    /// Inode of the socket, by which its owner is found.
    pub inode: Option<u32>,
    /// Process that holds it, once [`find_owners`] has looked.
    pub owner: Option<Process>,
}

impl ListeningSocket {
    /// Whether packets of this protocol to this address and port reach the socket, as far as its
    /// address tells; devices and `SO_REUSEPORT` are not considered.
    pub fn takes(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        let any_of_family =
            self.address.is_unspecified() && self.address.is_ipv4() == address.is_ipv4();
        let both_families =
            self.address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && self.only_ipv6 != Some(true);
        self.protocol == protocol
            && self.port == port
            && (self.address.to_canonical() == address || any_of_family || both_families)
    }
}

/// Half-open connections (SYN received, no ACK yet) to one local address and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HalfOpen {
    /// Where the SYNs came to.
    pub local: SocketAddr,
    /// How many wait.
    pub count: u32,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Process id, as seen by the tracer.
    pub pid: u32,
    /// Command name, at most 15 bytes.
    pub command: String,
}

struct Kind {
    protocol: u8,
    state: u8,
    module: &'static str,
    families: [Family; 2],
}

struct Family {
    number: u8,
    what: &'static str,
    /// File below /proc/thread-self/net.
    file: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        protocol: libc::IPPROTO_TCP as u8,
        state: STATE_LISTEN,
        module: "tcp_diag",
        families: [
            Family {
                number: libc::AF_INET as u8,
                what: "TCP listeners (IPv4)",
                file: "tcp",
            },
            Family {
                number: libc::AF_INET6 as u8,
                what: "TCP listeners (IPv6)",
                file: "tcp6",
            },
        ],
    },
    Kind {
        protocol: libc::IPPROTO_UDP as u8,
        state: STATE_CLOSE,
        module: "udp_diag",
        families: [
            Family {
                number: libc::AF_INET as u8,
                what: "UDP sockets (IPv4)",
                file: "udp",
            },
            Family {
                number: libc::AF_INET6 as u8,
                what: "UDP sockets (IPv6)",
                file: "udp6",
            },
        ],
    },
];

/// Whether a TCP socket waits at an address and port of this namespace; one may where that cannot be read.
pub(super) fn listens(place: SocketAddr) -> bool {
    let listeners = KINDS.iter().filter(|kind| kind.state == STATE_LISTEN);
    let mut missing = Vec::new();
    let found = of_kinds(listeners, &mut missing)
        .iter()
        .any(|socket| socket.takes(socket.protocol, place.ip(), place.port()));
    found || !missing.is_empty()
}

pub(super) fn read(missing: &mut Vec<Missing>) -> Vec<ListeningSocket> {
    of_kinds(KINDS.iter(), missing)
}

fn of_kinds<'a>(
    kinds: impl Iterator<Item = &'a Kind>,
    missing: &mut Vec<Missing>,
) -> Vec<ListeningSocket> {
    let mut sockets = Vec::new();
    for kind in kinds {
        let by_netlink = Path::new("/sys/module").join(kind.module).exists();
        for family in &kind.families {
            let result = if by_netlink {
                ask(kind, family)
            } else {
                read_file(kind, family)
            };
            sockets.extend(rows_or_missing(family.what, result, missing));
        }
    }
    sockets
}

fn ask(kind: &Kind, family: &Family) -> Result<Table<ListeningSocket>, ReadError> {
    let mut conversation = Conversation::open(libc::NETLINK_SOCK_DIAG as isize)?;
    conversation.dump(request(kind, family, kind.state), LIMIT, |payload| {
        parse(payload, kind.protocol)
    })
}

fn request(kind: &Kind, family: &Family, state: u8) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: family.number,
        protocol: kind.protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(1 << state),
        socket_id: SocketId::new_v4(),
    })
}

/// Half-open connections by where they came to; `None` where there are too many connections to find out.
/// The kernel goes over its whole table of connections for this, so it is asked only when a listener had to
/// turn connections away.
pub(super) fn read_half_open(missing: &mut Vec<Missing>) -> Option<Vec<HalfOpen>> {
    let kind = KINDS.iter().find(|kind| kind.state == STATE_LISTEN)?;
    let by_netlink = Path::new("/sys/module").join(kind.module).exists();
    let mut counts: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for family in &kind.families {
        let result = if by_netlink {
            ask_half_open(kind, family).map(Some)
        } else {
            half_open_of(&Path::new("/proc/thread-self/net").join(family.file))
        };
        // One that is too long is not known at all.
        let result = result.transpose()?;
        for local in rows_or_missing("half-open connections", result, missing) {
            *counts.entry(local).or_default() += 1;
        }
    }
    let found = counts.into_iter();
    Some(
        found
            .map(|(local, count)| HalfOpen { local, count })
            .collect(),
    )
}

fn ask_half_open(kind: &Kind, family: &Family) -> Result<Table<SocketAddr>, ReadError> {
    let mut conversation = Conversation::open(libc::NETLINK_SOCK_DIAG as isize)?;
    let request = request(kind, family, STATE_SYN_RECEIVED);
    conversation.dump(request, LIMIT, |payload| {
        let id = InetResponseHeader::parse(payload)?.socket_id;
        let local = id.source_address.to_canonical();
        Ok(Some(SocketAddr::new(local, id.source_port)))
    })
}

/// The same out of a table of /proc; `None` for one that is too long to read.
fn half_open_of(path: &Path) -> Result<Option<Table<SocketAddr>>, ReadError> {
    let mut table = Table::default();
    let Some(file) = open_if_there(path)? else {
        return Ok(Some(table));
    };
    for (number, line) in BufReader::new(file).lines().skip(1).enumerate() {
        if number == LIMIT {
            return Ok(None);
        }
        match parse_line(&line?, libc::IPPROTO_TCP as u8) {
            Some((STATE_SYN_RECEIVED, socket)) => {
                let local = socket.address.to_canonical();
                table.keep(SocketAddr::new(local, socket.port), LIMIT);
            }
            Some(_) => {}
            None => table.skip_unreadable(),
        }
    }
    Ok(Some(table))
}

/// A kernel without IPv6 has no such file.
fn open_if_there(path: &Path) -> std::io::Result<Option<fs::File>> {
    match fs::File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(payload: &[u8], protocol: u8) -> Result<Option<ListeningSocket>, DecodeError> {
    let header = InetResponseHeader::parse(payload)?;
    let only_ipv6 = attributes(payload, RESPONSE_BYTES)
        .find(|attribute| attribute.kind() == DIAG_ATTR_V6ONLY)
        .and_then(|attribute| parse_u8(attribute.value()).ok())
        .map(|flag| flag != 0);
    Ok(Some(ListeningSocket {
        protocol,
        address: header.socket_id.source_address,
        port: header.socket_id.source_port,
        only_ipv6,
        link: Some(header.socket_id.interface_id).filter(|index| *index != 0),
        receive_queue: header.recv_queue,
        backlog: (header.state == STATE_LISTEN).then_some(header.send_queue),
        inode: Some(header.inode).filter(|inode| *inode != 0),
        owner: None,
    }))
}

fn read_file(kind: &Kind, family: &Family) -> Result<Table<ListeningSocket>, ReadError> {
    let path = Path::new("/proc/thread-self/net").join(family.file);
    let mut table = Table::default();
    let Some(file) = open_if_there(&path)? else {
        return Ok(table);
    };
    for line in BufReader::new(file).lines().skip(1) {
        match parse_line(&line?, kind.protocol) {
            Some((state, socket)) if state == kind.state => table.keep(socket, LIMIT),
            // The kernel lists listeners first, and a node may have a million connections.
            Some(_) if kind.state == STATE_LISTEN => break,
            Some(_) => {}
            None => table.skip_unreadable(),
        }
    }
    Ok(table)
}

/// `sl local remote state tx:rx tr:when retransmits uid timeout inode …`, numbers in hexadecimal.
fn parse_line(line: &str, protocol: u8) -> Option<(u8, ListeningSocket)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let (_, receive_queue) = fields.next()?.split_once(':')?;
    let inode: u32 = fields.nth(4)?.parse().ok()?;
    let socket = ListeningSocket {
        protocol,
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        only_ipv6: None,
        link: None,
        receive_queue: u32::from_str_radix(receive_queue, 16).ok()?,
        backlog: None,
        inode: Some(inode).filter(|inode| *inode != 0),
        owner: None,
    };
    Some((state, socket))
}

/// Words of 32 bits, each printed in the machine's own byte order.
fn parse_address(hexadecimal: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let digits = hexadecimal.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hexadecimal.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// Fills in the owners, by going through the open files of every process: costly on a busy node,
/// so only for the sockets that matter. A socket that several processes hold gets the lowest pid.
pub fn find_owners<'a>(sockets: impl IntoIterator<Item = &'a mut ListeningSocket>) {
    let sockets: Vec<_> = sockets.into_iter().collect();
    let wanted = sockets.iter().filter_map(|socket| socket.inode).collect();
    let owners = owners_of(Path::new("/proc"), &wanted);
    for socket in sockets {
        socket.owner = socket.inode.and_then(|inode| owners.get(&inode).cloned());
    }
}

fn owners_of(proc: &Path, wanted: &BTreeSet<u32>) -> BTreeMap<u32, Process> {
    let mut owners = BTreeMap::new();
    for pid in super::namespace::process_ids(proc) {
        if owners.len() == wanted.len() {
            break;
        }
        let directory = proc.join(pid.to_string());
        // Processes end and files close meanwhile; that is no error.
        let Ok(files) = fs::read_dir(directory.join("fd")) else {
            continue;
        };
        let held = files
            .filter_map(|file| socket_inode(&fs::read_link(file.ok()?.path()).ok()?))
            .filter(|inode| wanted.contains(inode));
        for inode in held {
            owners.entry(inode).or_insert_with(|| Process {
                pid,
                command: fs::read_to_string(directory.join("comm"))
                    .unwrap_or_default()
                    .trim_end()
                    .to_owned(),
            });
        }
    }
    owners
}

fn socket_inode(link: &Path) -> Option<u32> {
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    const TCP: u8 = 6;

    #[test]
    fn reads_lines_of_proc() {
        let v4 = "   0: 0100007F:7530 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 1595 1";
        let (state, socket) = parse_line(v4, TCP).unwrap();
        assert_eq!(state, STATE_LISTEN);
        assert_eq!(
            (socket.address, socket.port),
            ([127, 0, 0, 1].into(), 30000)
        );
        assert_eq!((socket.receive_queue, socket.inode), (3, Some(1595)));

        let v6 = "  1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 0 2";
        let (state, socket) = parse_line(v6, TCP).unwrap();
        assert_eq!((state, socket.port, socket.inode), (STATE_CLOSE, 53, None));
        assert_eq!(socket.address, "::1".parse::<IpAddr>().unwrap());
        for length in 0..v6.len() {
            let _ = parse_line(&v6[..length], TCP);
        }
    }

    #[test]
    fn counts_half_open_connections_of_proc() {
        let line = |state: &str| {
            format!(
                "   1: 0100007F:7530 0200007F:9C40 {state} 00000000:00000000 01:00000000 00000000 0 0 0 1\n"
            )
        };
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut text = String::from("  sl  local_address …\n");
        text += &(line("0A") + &line("03") + &line("01") + &line("03"));
        fs::write(file.path(), &text).expect("it is written");
        let found = half_open_of(file.path()).ok().flatten().expect("a table");
        assert_eq!(found.into_rows(), ["127.0.0.1:30000".parse().unwrap(); 2]);
        fs::write(file.path(), text + &line("01").repeat(LIMIT)).expect("it is written");
        assert!(half_open_of(file.path()).is_ok_and(|found| found.is_none()));
        let nowhere = half_open_of(Path::new("/nowhere"));
        assert!(nowhere.is_ok_and(|found| found.is_some_and(|table| table.into_rows().is_empty())));
    }

    #[test]
    fn reads_an_answer_of_the_kernel() {
        let mut bytes = vec![libc::AF_INET6 as u8, STATE_LISTEN, 0, 0];
        bytes.extend(30000_u16.to_be_bytes());
        bytes.extend([0; 2 + 32]);
        bytes.extend(4_u32.to_ne_bytes());
        bytes.extend([0; 8]);
        for field in [0_u32, 2, 128, 0, 77] {
            bytes.extend(field.to_ne_bytes());
        }
        assert_eq!(bytes.len(), RESPONSE_BYTES);
        bytes.extend([5, 0, 11, 0, 1, 0, 0, 0]);
        let expected = ListeningSocket {
            protocol: TCP,
            address: Ipv6Addr::UNSPECIFIED.into(),
            port: 30000,
            only_ipv6: Some(true),
            link: Some(4),
            receive_queue: 2,
            backlog: Some(128),
            inode: Some(77),
            owner: None,
        };
        assert_eq!(parse(&bytes, TCP).unwrap(), Some(expected));
        for length in 0..RESPONSE_BYTES {
            assert!(parse(&bytes[..length], TCP).is_err());
        }
    }

    #[test]
    fn sockets_take_what_their_address_says() {
        let socket = |address: &str, only_ipv6| ListeningSocket {
            protocol: TCP,
            address: address.parse().unwrap(),
            port: 80,
            only_ipv6,
            link: None,
            receive_queue: 0,
            backlog: None,
            inode: None,
            owner: None,
        };
        let v4: IpAddr = [10, 0, 0, 1].into();
        for (address, only_ipv6, takes) in [
            ("0.0.0.0", None, true),
            ("10.0.0.1", None, true),
            ("127.0.0.1", None, false),
            ("::", Some(false), true),
            ("::", Some(true), false),
            ("::ffff:10.0.0.1", None, true),
            ("::1", None, false),
        ] {
            assert_eq!(
                socket(address, only_ipv6).takes(TCP, v4, 80),
                takes,
                "{address}"
            );
        }
        assert!(!socket("0.0.0.0", None).takes(TCP, v4, 81));
        assert!(!socket("0.0.0.0", None).takes(17, v4, 80));
    }

    #[test]
    fn finds_this_tests_own_sockets_and_their_owner() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut missing = Vec::new();
        let mut sockets = read(&mut missing);
        assert_eq!(missing, []);
        let ports = [
            (TCP, tcp.local_addr().unwrap().port()),
            (17, udp.local_addr().unwrap().port()),
        ];
        sockets.retain(|socket| ports.contains(&(socket.protocol, socket.port)));
        assert_eq!(sockets.len(), 2);
        find_owners(&mut sockets);
        for socket in sockets {
            assert_eq!(socket.owner.unwrap().pid, std::process::id());
        }
    }
}
