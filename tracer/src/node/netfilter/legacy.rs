//! iptables-legacy tables, by `getsockopt`, of the calling thread's network namespace.
//!
//! Asking for a table would load its module; so only tables are asked for that `/proc/net` names.
//! Layouts: include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::xt::{self, Match};
use super::{
    Action, Base, Chain, Family, Missing, Rule, RuleTable, Subject, Test, Tool, only_translates,
    text_of,
};
use crate::event::NetfilterHook;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; IPv6 has the same numbers.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const NAME_BYTES: usize = 32;
const HOOKS: usize = 5;
/// `ipt_getinfo`: name, hooks in use, entry and policy per hook, number of entries, bytes of entries.
const INFO_BYTES: usize = NAME_BYTES + 4 + 2 * 4 * HOOKS + 4 + 4;
/// `ipt_get_entries`: name, bytes, and padding before the entries.
const ENTRIES_AT: usize = 40;
/// Most bytes of one table: far above 100,000 rules.
const MOST_BYTES: usize = 256 << 20;
/// A table may grow between asking for its size and for its entries.
const ATTEMPTS: u32 = 3;
/// `xt_entry_match`: size, name, revision.
const PART_HEADER: usize = 32;

/// Where things are in an entry.
struct Layout {
    ipv6: bool,
    level: libc::c_int,
    names: &'static str,
    /// Bytes of an address.
    address: usize,
    protocol: usize,
    flags: usize,
    invert: usize,
    /// Flag of a rule that goes and does not come back.
    goto: u8,
    target_offset: usize,
    counters: usize,
    matches: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        ipv6: false,
        level: libc::IPPROTO_IP,
        names: "/proc/thread-self/net/ip_tables_names",
        address: 4,
        protocol: 80,
        flags: 82,
        invert: 83,
        goto: 2,
        target_offset: 88,
        counters: 96,
        matches: 112,
    },
    Layout {
        ipv6: true,
        level: libc::IPPROTO_IPV6,
        names: "/proc/thread-self/net/ip6_tables_names",
        address: 16,
        protocol: 128,
        flags: 131,
        invert: 132,
        goto: 4,
        target_offset: 140,
        counters: 152,
        matches: 168,
    },
];

/// Reads every table of both families; of those that only translate addresses no rules.
pub(super) fn read(missing: &mut Vec<Missing>) -> Vec<RuleTable> {
    let mut tables = read_tables(missing);
    for table in &mut tables {
        if only_translates(&table.chains) {
            table
                .chains
                .iter_mut()
                .for_each(|chain| chain.rules.clear());
        }
    }
    tables
}

/// Reads the tables that kube-proxy writes its rules for services into, whole.
pub(super) fn read_services(missing: &mut Vec<Missing>) -> Vec<RuleTable> {
    let mut tables = read_tables(missing);
    tables.retain(super::holds_services);
    tables
}

fn read_tables(missing: &mut Vec<Missing>) -> Vec<RuleTable> {
    let mut tables = Vec::new();
    for layout in &LAYOUTS {
        let names = match fs::read_to_string(layout.names) {
            Ok(names) => names,
            Err(error) => {
                // Without the file there is no iptables-legacy in this kernel.
                if error.kind() != io::ErrorKind::NotFound {
                    note(missing, layout, "tables", &error);
                }
                continue;
            }
        };
        for name in names.lines() {
            match read_table(layout, name) {
                Ok(table) => tables.push(table),
                Err(error) => note(missing, layout, name, &error),
            }
        }
    }
    tables
}

fn note(missing: &mut Vec<Missing>, layout: &Layout, name: &str, error: &io::Error) {
    let tool = if layout.ipv6 { "ip6tables" } else { "iptables" };
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    missing.push(Missing {
        what: format!("{tool}-legacy {name}"),
        why: error.to_string(),
        remedy: denied.then(|| "run as root, or with CAP_NET_ADMIN".to_owned()),
    });
}

fn read_table(layout: &Layout, name: &str) -> io::Result<RuleTable> {
    let family = if layout.ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut last = io::Error::from(io::ErrorKind::InvalidData);
    for _ in 0..ATTEMPTS {
        let mut info = [0; INFO_BYTES];
        named(&mut info, name)?;
        get(&socket, layout.level, GET_INFO, &mut info)?;
        let bytes = number(&info, INFO_BYTES - 4).unwrap_or(0) as usize;
        if bytes > MOST_BYTES {
            return Err(io::Error::other("the table is too large"));
        }
        let mut entries = vec![0; ENTRIES_AT + bytes];
        named(&mut entries, name)?;
        entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(bytes as u32).to_ne_bytes());
        match get(&socket, layout.level, GET_ENTRIES, &mut entries) {
            Ok(()) => {
                return parse(layout, name, &info, &entries[ENTRIES_AT..])
                    .ok_or_else(|| io::Error::other("its entries make no sense"));
            }
            // EAGAIN: another size by now.
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn named(buffer: &mut [u8], name: &str) -> io::Result<()> {
    if name.len() >= NAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    buffer[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

fn get(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes into the buffer, which has that many.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// One entry of the table.
struct Entry<'a> {
    /// Offset from the table's first entry: what jumps name.
    at: usize,
    bytes: &'a [u8],
    target_name: String,
    target: &'a [u8],
    target_at: usize,
}

fn parse(layout: &Layout, name: &str, info: &[u8], bytes: &[u8]) -> Option<RuleTable> {
    let entries = entries(layout, bytes)?;
    let valid = number(info, NAME_BYTES)?;
    let hook_at = |array: usize, hook: usize| {
        number(info, NAME_BYTES + 4 + array * 4 * HOOKS + hook * 4).map(|at| at as usize)
    };
    // Chains begin at a hook's entry, and behind an entry that holds a chain's name.
    let mut starts: HashMap<usize, (String, Option<usize>)> = HashMap::new();
    for hook in (0..HOOKS).filter(|hook| valid & 1 << hook != 0) {
        let chain = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"][hook];
        starts.insert(hook_at(0, hook)?, (chain.into(), Some(hook)));
    }
    for pair in entries.windows(2) {
        if pair[0].target_name == "ERROR" {
            let chain = text_of(pair[0].target.get(..30).unwrap_or(pair[0].target));
            starts.insert(pair[1].at, (chain, None));
        }
    }
    let chain_at: HashMap<usize, &str> = starts
        .iter()
        .map(|(&at, (chain, _))| (at, chain.as_str()))
        .collect();
    let mut chains: Vec<Chain> = Vec::new();
    let mut policy_at = None;
    for (index, entry) in entries.iter().enumerate() {
        if let Some((chain, hook)) = starts.get(&entry.at) {
            policy_at = hook.and_then(|hook| hook_at(1, hook));
            chains.push(Chain {
                name: chain.clone(),
                base: hook.map(|hook| base(name, hook)),
                rules: Vec::new(),
            });
        }
        let (Some(chain), false) = (chains.last_mut(), entry.target_name == "ERROR") else {
            continue;
        };
        let next = entries.get(index + 1).map(|entry| entry.at);
        let ends_user_chain = chain.base.is_none()
            && entries
                .get(index + 1)
                .is_none_or(|next| next.target_name == "ERROR");
        if policy_at == Some(entry.at) {
            if let Some(base) = &mut chain.base {
                base.drops = standard(entry) == Some(-1);
                base.policy_packets = packets(layout, entry);
            }
        } else if !ends_user_chain {
            let rule_number = chain.rules.len() as u32 + 1;
            chain
                .rules
                .push(rule(layout, entry, rule_number, next, &chain_at)?);
        }
    }
    Some(RuleTable {
        tool: Tool::IptablesLegacy,
        family: if layout.ipv6 { Family::Ip6 } else { Family::Ip },
        name: name.into(),
        chains,
    })
}

/// Priorities are fixed per table (`NF_IP_PRI_*`).
fn base(table: &str, hook: usize) -> Base {
    let priority = match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", 1 | 4) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    };
    Base {
        hook: NetfilterHook::from_number(hook as u8),
        priority,
        drops: false,
        kind: if table == "nat" { "nat" } else { "filter" }.into(),
        policy_packets: None,
        devices: Vec::new(),
    }
}

fn entries<'a>(layout: &Layout, bytes: &'a [u8]) -> Option<Vec<Entry<'a>>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let entry = &bytes[at..];
        let offset = |place: usize| {
            let bytes = entry.get(layout.target_offset + place..)?.first_chunk()?;
            Some(usize::from(u16::from_ne_bytes(*bytes)))
        };
        let (target_at, length) = (offset(0)?, offset(2)?);
        let entry = entry.get(..length)?;
        let (target_name, _, target) = part(entry.get(target_at..)?)?;
        entries.push(Entry {
            at,
            bytes: entry,
            target_name,
            target,
            target_at,
        });
        // A length of zero would go round for ever.
        if length < layout.matches {
            return None;
        }
        at += length;
    }
    Some(entries)
}

/// Name, revision and data of a match or target at the beginning of `bytes`.
fn part(bytes: &[u8]) -> Option<(String, u8, &[u8])> {
    let size = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let part = bytes.get(..size)?;
    let header = part.get(..PART_HEADER)?;
    Some((
        text_of(&header[2..PART_HEADER - 1]),
        header[PART_HEADER - 1],
        &part[PART_HEADER..],
    ))
}

/// The verdict of a standard target: negative for an end, else the offset of the next entry.
fn standard(entry: &Entry<'_>) -> Option<i32> {
    entry
        .target_name
        .is_empty()
        .then(|| number(entry.target, 0))?
        .map(u32::cast_signed)
}

fn packets(layout: &Layout, entry: &Entry<'_>) -> Option<u64> {
    let bytes = entry.bytes.get(layout.counters..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

fn rule(
    layout: &Layout,
    entry: &Entry<'_>,
    number: u32,
    next: Option<usize>,
    chain_at: &HashMap<usize, &str>,
) -> Option<Rule> {
    let mut tests = header_tests(layout, entry.bytes)?;
    let mut comment = None;
    let mut at = layout.matches;
    while at < entry.target_at {
        let bytes = entry.bytes.get(at..entry.target_at)?;
        let (name, revision, info) = part(bytes)?;
        match xt::read_match(&name, revision, info) {
            Match::Tests(found) => tests.extend(found),
            Match::Comment(text) => comment = Some(text),
        }
        at += PART_HEADER + info.len();
    }
    let mut notes = Vec::new();
    let action = match standard(entry) {
        Some(-1) => Action::Drop,
        Some(-2) => Action::Accept,
        Some(-5) => Action::Return,
        Some(place) if usize::try_from(place).ok() == next => Action::Continue,
        Some(place) => {
            let chain = usize::try_from(place).ok().and_then(|at| chain_at.get(&at));
            let chain = (*chain?).to_owned();
            if entry.bytes.get(layout.flags)? & layout.goto != 0 {
                Action::Goto(chain)
            } else {
                Action::Jump(chain)
            }
        }
        None => {
            let action = xt::read_target(&entry.target_name, entry.target, layout.ipv6);
            if action == Action::Continue {
                notes.push(entry.target_name.clone());
            }
            action
        }
    };
    Some(Rule {
        number,
        handle: None,
        tests,
        notes,
        action,
        comment,
        packets: packets(layout, entry),
    })
}

/// Addresses, devices and protocol of `ipt_ip` and `ip6t_ip6`.
fn header_tests(layout: &Layout, bytes: &[u8]) -> Option<Vec<Test>> {
    const INVERT_IN: u8 = 1;
    const INVERT_OUT: u8 = 2;
    const INVERT_SOURCE: u8 = 8;
    const INVERT_DESTINATION: u8 = 16;
    const INVERT_FRAGMENT: u8 = 32;
    const INVERT_PROTOCOL: u8 = 64;
    const FRAGMENT: u8 = 1;
    const DEVICE_BYTES: usize = 16;
    let size = layout.address;
    let (invert, flags) = (*bytes.get(layout.invert)?, *bytes.get(layout.flags)?);
    let mut tests = Vec::new();
    let mut add = |on, bit| {
        tests.push(Test {
            negated: invert & bit != 0,
            on,
        });
    };
    for (place, bit, make) in [
        (
            0,
            INVERT_SOURCE,
            Subject::Source as fn(IpAddr, u8) -> Subject,
        ),
        (1, INVERT_DESTINATION, Subject::Destination),
    ] {
        let address = bytes.get(place * size..(place + 1) * size)?;
        let mask = bytes.get((place + 2) * size..(place + 3) * size)?;
        match prefix_length(mask) {
            Some(0) if invert & bit == 0 => {}
            Some(length) => add(make(ip(address)?, length), bit),
            None => add(Subject::Other("(address with a mask)".into()), 0),
        }
    }
    let devices = 4 * size;
    for (place, bit, make) in [
        (0, INVERT_IN, Subject::In as fn(String, bool) -> Subject),
        (1, INVERT_OUT, Subject::Out),
    ] {
        let name = bytes
            .get(devices + place * DEVICE_BYTES..)?
            .get(..DEVICE_BYTES)?;
        let mask = bytes
            .get(devices + (place + 2) * DEVICE_BYTES..)?
            .get(..DEVICE_BYTES)?;
        let name = text_of(name);
        // The mask of a whole name covers its zero byte.
        let prefix = mask.get(name.len()).is_some_and(|&byte| byte == 0);
        if !name.is_empty() {
            add(make(name, prefix), bit);
        }
    }
    let protocol = u16::from_ne_bytes(*bytes.get(layout.protocol..)?.first_chunk()?);
    if let Some(protocol) = u8::try_from(protocol).ok().filter(|&number| number != 0) {
        add(Subject::Protocol(protocol), INVERT_PROTOCOL);
    }
    if flags & FRAGMENT != 0 && !layout.ipv6 {
        add(Subject::Other("-f".into()), INVERT_FRAGMENT);
    }
    Some(tests)
}

/// Leading ones of a mask; `None` for one that is no prefix.
pub(super) fn prefix_length(mask: &[u8]) -> Option<u8> {
    let bits: String = mask.iter().map(|byte| format!("{byte:08b}")).collect();
    let ones = bits.find('0').unwrap_or(bits.len());
    (!bits[ones..].contains('1')).then_some(ones as u8)
}

/// An address from its 4 or 16 bytes.
pub(in crate::node) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD_BYTES: usize = 40;

    /// An entry without matches; `target` is a standard verdict or the name of a chain.
    fn entry(layout: &Layout, from: u8, target: Result<i32, &str>) -> Vec<u8> {
        let mut bytes = vec![0; layout.matches];
        if from != 0 {
            bytes[0] = from;
            bytes[2 * layout.address] = 255;
        }
        let mut part = vec![0; PART_HEADER];
        match target {
            Ok(verdict) => {
                part.extend(verdict.to_ne_bytes());
                part.resize(STANDARD_BYTES, 0);
            }
            Err(name) => {
                part[2..7].copy_from_slice(b"ERROR");
                part.extend(name.as_bytes());
                part.resize(PART_HEADER + 32, 0);
            }
        }
        let size = (part.len() as u16).to_ne_bytes();
        part[..2].copy_from_slice(&size);
        let (at, length) = (bytes.len() as u16, (bytes.len() + part.len()) as u16);
        bytes[layout.target_offset..layout.target_offset + 2].copy_from_slice(&at.to_ne_bytes());
        bytes[layout.target_offset + 2..layout.target_offset + 4]
            .copy_from_slice(&length.to_ne_bytes());
        bytes[layout.counters] = from;
        bytes.extend(part);
        bytes
    }

    /// A filter table: FORWARD with a jump, a drop and policy DROP; chain PODS that drops.
    fn table(layout: &Layout) -> (Vec<u8>, Vec<u8>) {
        let size = layout.matches + STANDARD_BYTES;
        let named = layout.matches + PART_HEADER + 32;
        let parts = [
            entry(layout, 0, Ok((3 * size + named) as i32)),
            entry(layout, 10, Ok(-1)),
            entry(layout, 0, Ok(-1)),
            entry(layout, 0, Err("PODS")),
            entry(layout, 11, Ok(-1)),
            entry(layout, 0, Ok(-5)),
            entry(layout, 0, Err("ERROR")),
        ];
        let mut info = vec![0; INFO_BYTES];
        info[NAME_BYTES] = 1 << 2;
        let policy = NAME_BYTES + 4 + 4 * HOOKS + 2 * 4;
        info[policy..policy + 4].copy_from_slice(&(2 * size as u32).to_ne_bytes());
        (info, parts.concat())
    }

    #[test]
    fn chains_jumps_and_policies() {
        for layout in &LAYOUTS {
            let (info, bytes) = table(layout);
            let table = parse(layout, "filter", &info, &bytes).expect("a table");
            let names: Vec<_> = table.chains.iter().map(|chain| &chain.name).collect();
            assert_eq!(names, ["FORWARD", "PODS"]);
            let forward = &table.chains[0];
            let base = forward.base.as_ref().expect("a base chain");
            assert_eq!((base.hook, base.drops), (NetfilterHook::Forward, true));
            assert_eq!(forward.rules.len(), 2);
            assert_eq!(forward.rules[0].action, Action::Jump("PODS".into()));
            assert_eq!(forward.rules[1].action, Action::Drop);
            assert_eq!(forward.rules[1].packets, Some(10));
            assert!(matches!(
                forward.rules[1].tests[..],
                [Test {
                    negated: false,
                    on: Subject::Source(_, 8)
                }]
            ));
            assert_eq!(table.chains[1].rules.len(), 1);
        }
    }

    #[test]
    fn damage_is_survived() {
        for layout in &LAYOUTS {
            let (info, bytes) = table(layout);
            for length in 0..bytes.len() {
                let _ = parse(layout, "filter", &info, &bytes[..length]);
                let mut changed = bytes.clone();
                changed[length] ^= 0xff;
                let _ = parse(layout, "filter", &info, &changed);
            }
        }
    }

    #[test]
    fn masks() {
        assert_eq!(prefix_length(&[255, 240, 0, 0]), Some(12));
        assert_eq!(prefix_length(&[255, 0, 255, 0]), None);
    }
}
