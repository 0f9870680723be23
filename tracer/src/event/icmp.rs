//! What ICMP errors say.

use super::protocol;

/// In words; the numbers of those that say something else. The protocol is ICMP's or ICMPv6's.
pub fn words(number: u8, kind: u8, code: u8) -> String {
    if number == protocol::ICMP6 {
        words6(kind, code)
    } else {
        words4(kind, code)
    }
}

/// True when the error says that the packet's destination cannot be had; that a packet is too big or too long
/// under way says something of the packet.
pub const fn refuses(number: u8, kind: u8, code: u8) -> bool {
    if number == protocol::ICMP6 {
        kind == 1
    } else {
        kind == 3 && code != 4
    }
}

fn words4(kind: u8, code: u8) -> String {
    match (kind, code) {
        (3, 0) => "network unreachable".into(),
        (3, 1) => "host unreachable".into(),
        (3, 3) => "port unreachable".into(),
        (3, 4) => "fragmentation needed".into(),
        (3, 9 | 10 | 13) => "administratively prohibited".into(),
        (11, _) => "time exceeded".into(),
        _ => format!("{kind}/{code}"),
    }
}

/// ICMPv6 numbers its errors in its own way (RFC 4443).
fn words6(kind: u8, code: u8) -> String {
    match (kind, code) {
        (1, 0) => "network unreachable".into(),
        (1, 1 | 5 | 6) => "administratively prohibited".into(),
        (1, 3) => "host unreachable".into(),
        (1, 4) => "port unreachable".into(),
        (2, _) => "packet too big".into(),
        (3, _) => "time exceeded".into(),
        _ => format!("{kind}/{code}"),
    }
}
