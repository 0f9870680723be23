//! Matches and targets of x_tables (`-m conntrack`, `-j REJECT`): the kernel's own structures, the same
//! bytes in iptables-legacy and behind nftables' compatibility expressions.
//!
//! Layouts: include/uapi/linux/netfilter/xt_*.h and netfilter_ipv4/ipt_REJECT.h.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::legacy::ip;
use super::{Action, IpSetLookup, Subject, Test, state, text_of};

/// What a match comes to.
pub(super) enum Match {
    /// Conditions.
    Tests(Vec<Test>),
    /// A remark.
    Comment(String),
}

/// Inversion flags of `xt_tcp`.
const TCP_INVERT: [u8; 3] = [1, 2, 4];

fn word(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?))
}

fn long(info: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?))
}

fn range(info: &[u8], at: usize) -> Option<RangeInclusive<u16>> {
    Some(word(info, at)?..=word(info, at + 2)?)
}

/// Reads a match; one that is not known stays as [`Subject::Other`].
pub(super) fn read_match(name: &str, revision: u8, info: &[u8]) -> Match {
    if name == "comment" {
        return Match::Comment(text_of(info));
    }
    Match::Tests(tests(name, revision, info).unwrap_or_else(|| {
        vec![Test {
            negated: false,
            on: Subject::Other(format!("-m {name} (…)")),
        }]
    }))
}

fn tests(name: &str, revision: u8, info: &[u8]) -> Option<Vec<Test>> {
    let test = |on, negated| Test { negated, on };
    match name {
        "tcp" => {
            let invert = *info.get(11)?;
            let mut tests = ports(info, invert)?;
            let (mask, set) = (*info.get(9)?, *info.get(10)?);
            if mask != 0 {
                tests.push(test(
                    Subject::TcpFlags { mask, set },
                    invert & TCP_INVERT[2] != 0,
                ));
            }
            if *info.get(8)? != 0 {
                tests.push(test(Subject::Other("--tcp-option (…)".into()), false));
            }
            Some(tests)
        }
        "udp" | "udplite" => ports(info, *info.get(8)?),
        "multiport" if revision == 1 => {
            let (flags, count) = (*info.first()?, usize::from(*info.get(1)?));
            let mut ranges = Vec::new();
            let mut index = 0;
            while index < count.min(15) {
                let port = word(info, 2 + 2 * index)?;
                let last = if *info.get(32 + index)? != 0 {
                    index += 1;
                    word(info, 2 + 2 * index)?
                } else {
                    port
                };
                ranges.push(port..=last);
                index += 1;
            }
            let on = match flags {
                0 => Subject::SourcePort(ranges),
                1 => Subject::DestinationPort(ranges),
                _ => Subject::EitherPort(ranges),
            };
            Some(vec![test(on, *info.get(47)? != 0)])
        }
        "state" => Some(vec![test(Subject::State(states(long(info, 0)?, 6)), false)]),
        "conntrack" if (1..=3).contains(&revision) => {
            const STATE: u16 = 1;
            let (flags, invert) = (word(info, 146)?, word(info, 148)?);
            let mask = if revision == 1 {
                u32::from(*info.get(150)?)
            } else {
                u32::from(word(info, 150)?)
            };
            let mut tests = Vec::new();
            if flags & STATE != 0 {
                tests.push(test(Subject::State(states(mask, 8)), invert & STATE != 0));
            }
            if flags & !STATE != 0 {
                tests.push(test(Subject::Other("-m conntrack (…)".into()), false));
            }
            Some(tests)
        }
        "mark" if revision == 1 => Some(vec![test(
            Subject::Mark {
                value: long(info, 0)?,
                mask: long(info, 4)?,
            },
            *info.get(8)? != 0,
        )]),
        "icmp" | "icmp6" => {
            let (kind, low, high) = (*info.first()?, *info.get(1)?, *info.get(2)?);
            let negated = *info.get(3)? & 1 != 0;
            if kind == u8::MAX && name == "icmp" {
                return Some(Vec::new());
            }
            match (low, high) {
                (0, u8::MAX) => Some(vec![test(Subject::Icmp { kind, code: None }, negated)]),
                (low, high) if low == high => Some(vec![test(
                    Subject::Icmp {
                        kind,
                        code: Some(low),
                    },
                    negated,
                )]),
                _ => None,
            }
        }
        // `xt_set_info`: number, how many parts of a key, and for each a bit; from 3 on with counters that may
        // have to be of some size (`ip_set_counter_match`, another order of its two fields before 4).
        "set" if (1..=4).contains(&revision) => {
            const INVERTED: u8 = 1;
            const MOST_PARTS: u8 = 6;
            let (parts, bits) = (*info.get(2)?, *info.get(3)?);
            let compared: &[usize] = match revision {
                3 => &[8, 24],
                4 => &[16, 32],
                _ => &[],
            };
            for &at in compared {
                (*info.get(at)? == 0).then_some(())?;
            }
            (parts <= MOST_PARTS).then_some(())?;
            let lookup = IpSetLookup {
                number: word(info, 0)?,
                name: None,
                of_source: (1..=parts).map(|part| bits & 1 << part != 0).collect(),
                members: None,
            };
            Some(vec![test(Subject::IpSet(lookup), bits & INVERTED != 0)])
        }
        // `xt_recent_mtinfo`: seconds, hits, what to do, inverted.
        "recent" => {
            const CHECK: u8 = 1;
            let (how, inverted) = (*info.get(8)?, *info.get(9)? != 0);
            (how & CHECK != 0).then_some(())?;
            Some(vec![test(Subject::Recent(long(info, 0)?), inverted)])
        }
        "addrtype" => {
            const LOCAL: u16 = 1 << 2;
            let (source, destination, flags) = (word(info, 0)?, word(info, 2)?, long(info, 4)?);
            let (not_source, not_destination) = match revision {
                0 => (flags != 0, long(info, 8)? != 0),
                // Limits to a device are beyond us.
                1 if flags & !3 == 0 => (flags & 1 != 0, flags & 2 != 0),
                _ => return None,
            };
            let mut tests = Vec::new();
            for (types, on, negated) in [
                (source, Subject::LocalSource, not_source),
                (destination, Subject::LocalDestination, not_destination),
            ] {
                match types {
                    0 => {}
                    LOCAL => tests.push(test(on, negated)),
                    _ => return None,
                }
            }
            Some(tests)
        }
        _ => None,
    }
}

/// Ports of `xt_tcp` and `xt_udp`; all ports are no condition.
fn ports(info: &[u8], invert: u8) -> Option<Vec<Test>> {
    let mut tests = Vec::new();
    for (at, bit) in [(0, TCP_INVERT[0]), (4, TCP_INVERT[1])] {
        let range = range(info, at)?;
        let negated = invert & bit != 0;
        if range != (0..=u16::MAX) || negated {
            let on = if at == 0 {
                Subject::SourcePort(vec![range])
            } else {
                Subject::DestinationPort(vec![range])
            };
            tests.push(Test { negated, on });
        }
    }
    Some(tests)
}

/// From the kernel's state mask. The first four bits are the same everywhere; `untracked` is the number
/// of that bit, and where there are bits for NAT they are the two below it.
pub(super) fn states(mask: u32, untracked: u32) -> u8 {
    let mut bits = (mask & 0xf) as u8;
    if mask & 1 << untracked != 0 {
        bits |= state::UNTRACKED;
    }
    if untracked == 8 {
        bits |= if mask & 1 << 6 != 0 { state::SNAT } else { 0 };
        bits |= if mask & 1 << 7 != 0 { state::DNAT } else { 0 };
    }
    bits
}

/// The one address and port that a DNAT target gives: of `nf_nat_ipv4_multi_range_compat` with one
/// range, or of the longer `nf_nat_range` and `nf_nat_range2`.
fn dnat_target(info: &[u8], ipv6: bool) -> Option<SocketAddr> {
    const COMPAT_BYTES: usize = 24;
    const ADDRESS_AND_PORT: u32 = 1 | 2;
    let size = if ipv6 { 16 } else { 4 };
    let (flags_at, first, last, port) = if info.len() <= COMPAT_BYTES {
        (4, 8, 12, 16)
    } else {
        (0, 4, 20, 36)
    };
    let address = info.get(first..first + size)?;
    let one = address == info.get(last..last + size)?;
    if !one || long(info, flags_at)? & ADDRESS_AND_PORT != ADDRESS_AND_PORT {
        return None;
    }
    let port = u16::from_be_bytes(*info.get(port..)?.first_chunk()?);
    Some(SocketAddr::new(ip(address)?, port))
}

/// What a target comes to.
pub(super) fn read_target(name: &str, info: &[u8], ipv6: bool) -> Action {
    match name {
        "REJECT" => {
            let number = long(info, 0).unwrap_or(u32::MAX) as usize;
            let words: &[&str] = if ipv6 {
                &[
                    "icmp6-no-route",
                    "icmp6-adm-prohibited",
                    "icmp6-not-neighbour",
                    "icmp6-addr-unreachable",
                    "icmp6-port-unreachable",
                    "echo-reply",
                    "tcp-reset",
                    "icmp6-policy-fail",
                    "icmp6-reject-route",
                ]
            } else {
                &[
                    "icmp-net-unreachable",
                    "icmp-host-unreachable",
                    "icmp-proto-unreachable",
                    "icmp-port-unreachable",
                    "echo-reply",
                    "icmp-net-prohibited",
                    "icmp-host-prohibited",
                    "tcp-reset",
                    "icmp-admin-prohibited",
                ]
            };
            Action::Reject(words.get(number).copied().unwrap_or("(…)").into())
        }
        "DNAT" => {
            dnat_target(info, ipv6).map_or_else(|| Action::Translate(name.into()), Action::Dnat)
        }
        "MASQUERADE" | "SNAT" | "REDIRECT" | "NETMAP" => Action::Translate(name.into()),
        "LOG" | "NFLOG" | "ULOG" | "TRACE" | "MARK" | "CONNMARK" | "CT" | "NOTRACK" | "TCPMSS"
        | "CHECKSUM" | "SET" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL" | "AUDIT" | "SECMARK"
        | "CONNSECMARK" | "TEE" | "HMARK" | "IDLETIMER" | "LED" | "RATEEST" => Action::Continue,
        _ => Action::Other(name.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, revision: u8, info: &[u8]) -> Vec<Test> {
        match read_match(name, revision, info) {
            Match::Tests(tests) => tests,
            Match::Comment(text) => panic!("a comment: {text}"),
        }
    }

    #[test]
    fn ports_and_flags() {
        let mut info = [0u8; 12];
        info[2..4].copy_from_slice(&u16::MAX.to_ne_bytes());
        info[4..6].copy_from_slice(&80u16.to_ne_bytes());
        info[6..8].copy_from_slice(&90u16.to_ne_bytes());
        info[9] = 2;
        info[10] = 2;
        info[11] = 2;
        assert_eq!(
            of("tcp", 0, &info),
            [
                Test {
                    negated: true,
                    on: Subject::DestinationPort(vec![80..=90])
                },
                Test {
                    negated: false,
                    on: Subject::TcpFlags { mask: 2, set: 2 }
                },
            ]
        );
    }

    #[test]
    fn states_of_both_matches() {
        assert_eq!(states(0b1000 | 1 << 8, 8), state::NEW | state::UNTRACKED);
        assert_eq!(states(1 << 6, 6), state::UNTRACKED);
        assert_eq!(states(1 << 7 | 2, 8), state::DNAT | state::ESTABLISHED);
    }

    #[test]
    fn damage_and_the_unknown_cannot_be_decided() {
        for name in [
            "tcp",
            "udp",
            "multiport",
            "conntrack",
            "mark",
            "icmp",
            "addrtype",
            "set",
        ] {
            for length in 0..160 {
                let tests = of(name, 1, &vec![0; length]);
                assert!(length >= 8 || !tests.is_empty(), "{name} {length}");
            }
        }
        assert_eq!(
            of("set", 0, &[0; 40])[0].on,
            Subject::Other("-m set (…)".into())
        );
    }

    #[test]
    fn sets_are_looked_up_by_number() {
        let mut info = [0; 48];
        info[0] = 7;
        info[2] = 2;
        // Inverted, and the second part is the source's.
        info[3] = 1 | 1 << 2;
        let expected = Test {
            negated: true,
            on: Subject::IpSet(IpSetLookup {
                number: 7,
                name: None,
                of_source: vec![false, true],
                members: None,
            }),
        };
        for revision in 1..=4 {
            assert_eq!(of("set", revision, &info), std::slice::from_ref(&expected));
        }
        // Counters that have to be of some size.
        info[16] = 1;
        assert!(matches!(of("set", 4, &info)[0].on, Subject::Other(_)));
    }
}
