//! Policy rules (`ip rule`): which routing table a packet asks.

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, parse_ip, parse_string, parse_u32};
use netlink_packet_route::rule::{RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::netlink::{Conversation, attributes};
use super::numbered::numbered;
use super::route::Prefix;
use super::table::rows_or_missing;

const LIMIT: usize = 10_000;
const HEADER_BYTES: usize = 12;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;

/// A policy rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyRule {
    /// IPv6; else IPv4.
    pub ipv6: bool,
    /// The lowest is asked first.
    pub priority: u32,
    /// What it does.
    pub action: RuleAction,
    /// Table that it asks.
    pub table: u32,
    /// Only packets from here.
    pub from: Option<Prefix>,
    /// Only packets to here.
    pub to: Option<Prefix>,
    /// Only packets that came in by this device.
    pub input: Option<String>,
    /// Only packets with this firewall mark.
    pub mark: Option<u32>,
}

numbered! {
    /// What a policy rule does (`FR_ACT_*`).
    RuleAction: u8 {
        /// Asks a table.
        Lookup = 1, "lookup";
        /// Jumps to another rule.
        Goto = 2, "goto";
        /// Nothing.
        Nop = 3, "nop";
        /// Drops silently.
        Blackhole = 6, "blackhole";
        /// Drops and answers network unreachable.
        Unreachable = 7, "unreachable";
        /// Drops and answers administratively prohibited.
        Prohibit = 8, "prohibit";
    }
}

impl PolicyRule {
    /// One of the three rules that every namespace begins with: local, main, default.
    pub fn is_default(&self) -> bool {
        matches!(
            (self.priority, self.table),
            (0, 255) | (32766, 254) | (32767, 253)
        ) && self.action == RuleAction::Lookup
            && (self.from, self.to, self.mark) == (None, None, None)
            && self.input.is_none()
    }
}

pub(super) fn read(route: &mut Conversation, missing: &mut Vec<Missing>) -> Vec<PolicyRule> {
    let mut rules = Vec::new();
    for (family, name) in [
        (AddressFamily::Inet, "IPv4 policy rules"),
        (AddressFamily::Inet6, "IPv6 policy rules"),
    ] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let result = route.dump(RouteNetlinkMessage::GetRule(request), LIMIT, parse);
        rules.extend(rows_or_missing(name, result, missing));
    }
    rules
}

fn parse(payload: &[u8]) -> Result<Option<PolicyRule>, DecodeError> {
    let header = RuleHeader::parse(payload)?;
    let mut rule = PolicyRule {
        ipv6: header.family == AddressFamily::Inet6,
        priority: 0,
        action: RuleAction::from_kernel(header.action.into()),
        table: header.table.into(),
        from: None,
        to: None,
        input: None,
        mark: None,
    };
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return Ok(None);
    }
    let prefix = |value: &[u8], length| {
        let address: Option<IpAddr> = parse_ip(value).ok();
        address.map(|address| Prefix { address, length })
    };
    for attribute in attributes(payload, HEADER_BYTES) {
        let value = attribute.value();
        match attribute.kind() {
            FRA_DST => rule.to = prefix(value, header.dst_len),
            FRA_SRC => rule.from = prefix(value, header.src_len),
            FRA_IIFNAME => rule.input = parse_string(value).ok(),
            FRA_PRIORITY => rule.priority = parse_u32(value)?,
            FRA_FWMARK => rule.mark = parse_u32(value).ok(),
            FRA_TABLE => rule.table = parse_u32(value)?,
            _ => {}
        }
    }
    Ok(Some(rule))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;
    use netlink_packet_route::rule::{RuleAction as RawAction, RuleAttribute};

    use super::*;

    #[test]
    fn reads_a_rule_and_knows_the_default_ones() {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RawAction::Blackhole;
        message.header.dst_len = 24;
        message.attributes = vec![
            RuleAttribute::Destination([198, 51, 100, 0].into()),
            RuleAttribute::Priority(100),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let rule = parse(&bytes).unwrap().unwrap();
        assert_eq!((rule.action, rule.priority), (RuleAction::Blackhole, 100));
        assert_eq!(
            rule.to.map(|to| to.to_string()).as_deref(),
            Some("198.51.100.0/24")
        );
        assert!(!rule.is_default());
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
    }

    #[test]
    fn every_namespace_begins_with_three_rules() {
        let mut route = Conversation::open(libc::NETLINK_ROUTE as isize).unwrap();
        let mut missing = Vec::new();
        let rules = read(&mut route, &mut missing);
        assert_eq!(missing, []);
        assert!(
            rules
                .iter()
                .filter(|rule| rule.is_default() && !rule.ipv6)
                .count()
                >= 3
        );
    }
}
