//! A rule as its tool writes it.

use std::ops::RangeInclusive;

use super::{Action, Chain, IpSetLookup, Rule, RuleTable, Subject, Test, Tool, state};
use crate::event::protocol;

impl RuleTable {
    /// The rule as `iptables-save` or `nft list` would show it; what cannot be shown is `(…)`.
    pub fn text(&self, rule: &Rule) -> String {
        let mut words = match self.tool {
            Tool::Nft => nft(rule),
            _ => iptables(rule),
        };
        if let Some(comment) = &rule.comment {
            // Where iptables-save writes it: behind the addresses; at the end it reads as well.
            words.push(format!("\"{comment}\""));
        }
        words.join(" ")
    }

    /// Table, chain and rule: `filter/FORWARD rule 3`, `inet fw/forward handle 7`.
    pub fn place(&self, chain: &Chain, rule: &Rule) -> String {
        match (self.tool, rule.handle) {
            (Tool::Nft, Some(handle)) => format!("{}/{} handle {handle}", self.named(), chain.name),
            _ => format!("{}/{} rule {}", self.named(), chain.name, rule.number),
        }
    }

    /// Its name, with its family where the tool says it.
    pub fn named(&self) -> String {
        match self.tool {
            Tool::Nft => format!("{} {}", self.family.name(), self.name),
            _ => self.name.clone(),
        }
    }
}

fn ranges(ranges: &[RangeInclusive<u16>], dash: char) -> String {
    let words: Vec<_> = ranges
        .iter()
        .map(|range| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}{dash}{last}"),
        })
        .collect();
    words.join(",")
}

fn states(bits: u8, upper: bool) -> String {
    let words: Vec<_> = state::WORDS
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, word)| {
            if upper {
                word.to_uppercase()
            } else {
                (*word).to_owned()
            }
        })
        .collect();
    words.join(",")
}

fn flags(bits: u8) -> String {
    let words: Vec<_> = [
        (1, "FIN"),
        (2, "SYN"),
        (4, "RST"),
        (8, "PSH"),
        (16, "ACK"),
        (32, "URG"),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, word)| word)
    .collect();
    if words.is_empty() {
        "NONE".into()
    } else {
        words.join(",")
    }
}

fn iptables(rule: &Rule) -> Vec<String> {
    let mut words: Vec<String> = rule.tests.iter().map(iptables_test).collect();
    let mut target = |text: String| words.push(text);
    match &rule.action {
        Action::Continue => {
            if let Some(note) = rule.notes.first() {
                target(format!("-j {note}"));
            }
        }
        Action::Accept => target("-j ACCEPT".into()),
        Action::Drop => target("-j DROP".into()),
        Action::Reject(how) => target(format!("-j REJECT --reject-with {how}")),
        Action::Return => target("-j RETURN".into()),
        Action::Jump(chain) => target(format!("-j {chain}")),
        Action::Goto(chain) => target(format!("-g {chain}")),
        Action::Translate(how) | Action::Other(how) => target(format!("-j {how}")),
        Action::Dnat(to) => target(format!("-j DNAT --to-destination {to}")),
        Action::Map { words, .. } => target(words.clone()),
    }
    words
}

fn iptables_test(test: &Test) -> String {
    let text = match &test.on {
        Subject::Source(address, length) => format!("-s {address}/{length}"),
        Subject::Destination(address, length) => format!("-d {address}/{length}"),
        Subject::Protocol(number) => format!("-p {}", protocol::name(*number)),
        Subject::Ipv6(ipv6) => if *ipv6 { "-6" } else { "-4" }.into(),
        Subject::In(name, prefix) => format!("-i {name}{}", if *prefix { "+" } else { "" }),
        Subject::Out(name, prefix) => format!("-o {name}{}", if *prefix { "+" } else { "" }),
        Subject::InIndex(index) => format!("-i (index {index})"),
        Subject::OutIndex(index) => format!("-o (index {index})"),
        Subject::SourcePort(ports) => port_option("--sport", ports),
        Subject::DestinationPort(ports) => port_option("--dport", ports),
        Subject::EitherPort(ports) => format!("-m multiport --ports {}", ranges(ports, ':')),
        Subject::TcpFlags { mask, set } => format!("--tcp-flags {} {}", flags(*mask), flags(*set)),
        Subject::Icmp { kind, code } => {
            let code = code.map_or_else(String::new, |code| format!("/{code}"));
            format!("--icmp-type {kind}{code}")
        }
        Subject::State(bits) => format!("-m conntrack --ctstate {}", states(*bits, true)),
        Subject::Mark { value, mask } => format!("-m mark --mark {value:#x}/{mask:#x}"),
        Subject::LocalSource => "-m addrtype --src-type LOCAL".into(),
        Subject::LocalDestination => "-m addrtype --dst-type LOCAL".into(),
        Subject::Set { what, set, .. } => format!("{what} {}", set_name(set)),
        Subject::IpSet(lookup) => ipset(lookup),
        Subject::Recent(seconds) => format!("-m recent --rcheck --seconds {seconds}"),
        // Only elements of sets are such, and a set is shown by its name.
        Subject::All(_) => "(…)".into(),
        Subject::Other(text) => text.clone(),
    };
    if test.negated { negated(&text) } else { text }
}

/// `! ` goes before the option itself, behind a match's name.
fn negated(text: &str) -> String {
    match text
        .strip_prefix("-m ")
        .and_then(|rest| rest.split_once(' '))
    {
        Some((name, rest)) => format!("-m {name} ! {rest}"),
        None => format!("! {text}"),
    }
}

fn ipset(lookup: &IpSetLookup) -> String {
    let side = |of_source: &bool| if *of_source { "src" } else { "dst" };
    let sides: Vec<_> = lookup.of_source.iter().map(side).collect();
    let name = lookup.name.as_deref().unwrap_or("(…)");
    format!("-m set --match-set {name} {}", sides.join(","))
}

/// Sets without a name of their own are shown by their place.
pub(super) fn set_name(set: &str) -> String {
    if set.starts_with("__") {
        "(…)".into()
    } else {
        format!("@{set}")
    }
}

fn port_option(option: &str, ports: &[RangeInclusive<u16>]) -> String {
    let list = ranges(ports, ':');
    if ports.len() > 1 {
        format!("-m multiport {option}s {list}")
    } else {
        format!("{option} {list}")
    }
}

fn nft(rule: &Rule) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut before: Option<&Subject> = None;
    let mut transport = "th".to_owned();
    let mut ipv6 = false;
    for test in &rule.tests {
        let not = if test.negated { "!= " } else { "" };
        match &test.on {
            Subject::Protocol(number) => transport = protocol::name(*number),
            Subject::Source(address, _) | Subject::Destination(address, _) => {
                ipv6 = address.is_ipv6();
            }
            _ => {}
        }
        let family = if ipv6 { "ip6" } else { "ip" };
        let text = match &test.on {
            Subject::Source(address, length) => {
                format!("{family} saddr {not}{}", prefix(*address, *length))
            }
            Subject::Destination(address, length) => {
                format!("{family} daddr {not}{}", prefix(*address, *length))
            }
            Subject::Protocol(number) => format!("meta l4proto {not}{}", protocol::name(*number)),
            Subject::Ipv6(ipv6) => {
                format!("meta nfproto {not}{}", if *ipv6 { "ipv6" } else { "ipv4" })
            }
            Subject::In(name, prefix) => format!("iifname {not}\"{name}{}\"", star(*prefix)),
            Subject::Out(name, prefix) => format!("oifname {not}\"{name}{}\"", star(*prefix)),
            Subject::InIndex(index) => format!("iif {not}{index}"),
            Subject::OutIndex(index) => format!("oif {not}{index}"),
            Subject::SourcePort(ports) => format!("{transport} sport {not}{}", ranges(ports, '-')),
            Subject::DestinationPort(ports) => {
                format!("{transport} dport {not}{}", ranges(ports, '-'))
            }
            Subject::EitherPort(ports) => format!("{transport} port {not}{}", ranges(ports, '-')),
            Subject::TcpFlags { mask, set } => format!(
                "tcp flags {not}{} / {}",
                flags(*set).to_lowercase(),
                flags(*mask).to_lowercase()
            ),
            Subject::Icmp { kind, .. } => format!("icmp type {not}{kind}"),
            Subject::State(bits) => format!("ct state {not}{}", states(*bits, false)),
            Subject::Mark {
                value,
                mask: u32::MAX,
            } => format!("meta mark {not}{value:#x}"),
            Subject::Mark { value, mask } => {
                let sign = if test.negated { "!=" } else { "==" };
                format!("meta mark & {mask:#x} {sign} {value:#x}")
            }
            Subject::LocalSource => format!("fib saddr type {not}local"),
            Subject::LocalDestination => format!("fib daddr type {not}local"),
            Subject::Set { what, set, .. } => format!("{what} {not}{}", set_name(set)),
            Subject::IpSet(_) | Subject::Recent(_) => iptables_test(test),
            Subject::All(_) => "(…)".into(),
            Subject::Other(text) => match text.split_once(' ') {
                Some((field, set)) if test.negated => format!("{field} != {set}"),
                _ => text.clone(),
            },
        };
        // `tcp dport 80` says the protocol by itself.
        let says_protocol = matches!(
            test.on,
            Subject::SourcePort(_)
                | Subject::DestinationPort(_)
                | Subject::EitherPort(_)
                | Subject::TcpFlags { .. }
                | Subject::Icmp { .. }
        );
        if says_protocol && matches!(before, Some(Subject::Protocol(_))) && transport != "th" {
            words.pop();
        }
        words.push(text);
        before = Some(&test.on);
    }
    if rule.packets.is_some() {
        words.push("counter".into());
    }
    words.extend(rule.notes.iter().cloned());
    match &rule.action {
        Action::Continue => {}
        Action::Accept => words.push("accept".into()),
        Action::Drop => words.push("drop".into()),
        Action::Reject(how) => words.push(format!("reject with {how}")),
        Action::Return => words.push("return".into()),
        Action::Jump(chain) => words.push(format!("jump {chain}")),
        Action::Goto(chain) => words.push(format!("goto {chain}")),
        Action::Dnat(to) => words.push(format!("dnat to {to}")),
        Action::Translate(text) | Action::Map { words: text, .. } | Action::Other(text) => {
            words.push(text.clone());
        }
    }
    words
}

fn prefix(address: std::net::IpAddr, length: u8) -> String {
    let whole = if address.is_ipv6() { 128 } else { 32 };
    if length == whole {
        address.to_string()
    } else {
        format!("{address}/{length}")
    }
}

const fn star(prefix: bool) -> &'static str {
    if prefix { "*" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::super::Family;
    use super::*;

    fn table(tool: Tool) -> RuleTable {
        RuleTable {
            tool,
            family: Family::Ip,
            name: "filter".into(),
            chains: Vec::new(),
        }
    }

    fn rule(action: Action) -> Rule {
        let test = |negated, on| Test { negated, on };
        Rule {
            number: 3,
            handle: Some(7),
            tests: vec![
                test(
                    false,
                    Subject::Source("10.0.0.0".parse().expect("an address"), 8),
                ),
                test(true, Subject::In("cali".into(), true)),
                test(false, Subject::Protocol(6)),
                test(false, Subject::DestinationPort(vec![80..=90])),
                test(true, Subject::State(state::NEW | state::INVALID)),
                test(
                    true,
                    Subject::IpSet(IpSetLookup {
                        number: 1,
                        name: Some("PODS".into()),
                        of_source: vec![true, false],
                        members: None,
                    }),
                ),
            ],
            notes: Vec::new(),
            action,
            comment: Some("why".into()),
            packets: None,
        }
    }

    #[test]
    fn as_iptables() {
        assert_eq!(
            table(Tool::IptablesNft).text(&rule(Action::Drop)),
            "-s 10.0.0.0/8 ! -i cali+ -p tcp --dport 80:90 -m conntrack ! --ctstate INVALID,NEW -m set ! --match-set PODS src,dst -j DROP \"why\""
        );
    }

    #[test]
    fn as_nft() {
        assert_eq!(
            table(Tool::Nft).text(&rule(Action::Jump("b".into()))),
            "ip saddr 10.0.0.0/8 iifname != \"cali*\" tcp dport 80-90 ct state != invalid,new -m set ! --match-set PODS src,dst jump b \"why\""
        );
    }

    #[test]
    fn the_commands_of_each_tool() {
        let chain = Chain {
            name: "FORWARD".into(),
            base: None,
            rules: Vec::new(),
        };
        let rule = rule(Action::Drop);
        let delete = |table: &RuleTable| table.delete(&chain, &rule).expect("a command");
        assert_eq!(
            delete(&table(Tool::Nft)),
            "nft delete rule ip filter FORWARD handle 7"
        );
        let mut legacy = table(Tool::IptablesLegacy);
        assert_eq!(delete(&legacy), "iptables-legacy -D FORWARD 3");
        legacy.name = "raw".into();
        legacy.family = Family::Ip6;
        assert_eq!(delete(&legacy), "ip6tables-legacy -t raw -D FORWARD 3");
    }
}
