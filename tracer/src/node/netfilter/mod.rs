//! Packet filter rules of one namespace: nftables, iptables-nft (which is nftables underneath) and
//! iptables-legacy, as plain values of one shape.
//!
//! Map: `nft` asks for nftables by netlink and `expression` turns a rule's expressions into tests and an
//! action, with `field` for what its registers hold; `set` reads nftables' sets and maps, and `lookup` turns
//! those that rules look fields up in into conditions; `legacy` asks for iptables-legacy by socket option;
//! `xt` reads the matches and targets that both kinds share, and `ipset` the sets in which they look packets
//! up; `text` writes a rule as its tool would.
//!
//! A node of kube-proxy may have 50,000 rules, so this is read only when a packet asks for it, and tables
//! that only translate addresses keep no rules. What kube-proxy's rules do with packets for services is
//! read on its own, and kept as what it comes to: see `service_rules` beside this room.

mod expression;
mod field;
mod ipset;
mod legacy;
mod lookup;
mod nft;
mod set;
mod text;
mod xt;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::Missing;
use crate::event::NetfilterHook;
use serde::{Deserialize, Serialize};

/// Most rules kept of one namespace.
const LIMIT: usize = 200_000;
/// Most elements of sets and maps kept with the rules of one namespace: what is looked up in more cannot
/// be decided.
const MOST_ELEMENTS: usize = 50_000;

/// kube-proxy's table in its nftables mode.
pub const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// The chain in which its iptables mode begins.
pub(super) const KUBE_SERVICES: &str = "KUBE-SERVICES";

pub(super) use legacy::ip as address_of;
pub(super) use nft::TableWithSets;
#[cfg(test)]
pub(super) use set::Element;
pub(super) use set::Set;

/// Every table of a namespace.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ruleset {
    /// Tables in the kernel's order.
    pub tables: Vec<RuleTable>,
}

/// The tool that a table belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Tool {
    /// `nft`.
    Nft,
    /// `iptables-nft`, most systems' `iptables`.
    IptablesNft,
    /// `iptables-legacy`.
    IptablesLegacy,
}

/// Address family of a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// ARP, bridge, netdev or one unknown.
    Other(u8),
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RuleTable {
    /// Whose.
    pub tool: Tool,
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Chains.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Where packets enter it by themselves; `None` for one that rules jump to.
    pub base: Option<Base>,
    /// Rules in order. Empty also where the table only translates addresses.
    pub rules: Vec<Rule>,
}

/// How packets enter a chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Base {
    /// Where in the stack.
    #[serde(flatten)]
    pub hook: NetfilterHook,
    /// Lower ones come first.
    pub priority: i32,
    /// The packet is dropped at the chain's end; else accepted.
    pub drops: bool,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Packets that met the policy, where it is counted.
    pub policy_packets: Option<u64>,
    /// Names of the only devices whose packets enter it, as `nft` writes them (`eth*`); none for those of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// Place in its chain, from 1, as `iptables -D CHAIN NUMBER` counts.
    pub number: u32,
    /// nftables' number of it.
    pub handle: Option<u64>,
    /// What a packet must be; all of them.
    pub tests: Vec<Test>,
    /// Statements without a verdict.
    pub notes: Vec<String>,
    /// What becomes of the packet.
    pub action: Action,
    /// What its author says.
    pub comment: Option<String>,
    /// Packets that matched so far; `None` where it does not count.
    pub packets: Option<u64>,
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Action {
    /// Nothing: the next rule.
    Continue,
    /// Accepted by this table.
    Accept,
    /// Dropped.
    Drop,
    /// Dropped, and the sender is told, in this way (`icmp-port-unreachable`).
    Reject(String),
    /// Back to the chain that jumped here; in a base chain, the policy.
    Return,
    /// To another chain and back.
    Jump(String),
    /// To another chain.
    Goto(String),
    /// Its address is translated.
    Translate(String),
    /// Its destination becomes this address and port.
    Dnat(SocketAddr),
    /// What a map says.
    Map {
        /// In its tool's words.
        words: String,
        /// Name of the map in the kernel.
        set: String,
        /// What it says; `None` where it was not read whole.
        #[serde(default)]
        choices: Option<Vec<Choice>>,
    },
    /// Something that this program does not know.
    Other(String),
}

/// What a verdict map says of some of its keys.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// The keys, as conditions of which one holds.
    pub members: Vec<Subject>,
    /// What becomes of the packet then.
    pub action: Action,
}

/// One condition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Test {
    /// It must not hold.
    pub negated: bool,
    /// What is looked at.
    pub on: Subject,
}

/// What a condition looks at.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// Source address in a prefix.
    Source(IpAddr, u8),
    /// Destination address in a prefix.
    Destination(IpAddr, u8),
    /// IP protocol number.
    Protocol(u8),
    /// The packet is IPv6, else IPv4.
    Ipv6(bool),
    /// Device that it came in by; with `true` a prefix of the name.
    In(String, bool),
    /// Device that it goes out by.
    Out(String, bool),
    /// The same by index.
    InIndex(u32),
    /// The same by index.
    OutIndex(u32),
    /// Source port in one of these ranges.
    SourcePort(Vec<RangeInclusive<u16>>),
    /// Destination port in one of these ranges.
    DestinationPort(Vec<RangeInclusive<u16>>),
    /// Either port in one of these ranges.
    EitherPort(Vec<RangeInclusive<u16>>),
    /// TCP flags: of these bits, these are set.
    TcpFlags {
        /// Bits looked at.
        mask: u8,
        /// Bits that are to be set.
        set: u8,
    },
    /// ICMP type, and code where it matters.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: Option<u8>,
    },
    /// Conntrack state, of [`state`].
    State(u8),
    /// Firewall mark under a mask.
    Mark {
        /// Value after masking.
        value: u32,
        /// Mask.
        mask: u32,
    },
    /// Source is an address of this host.
    LocalSource,
    /// Destination is an address of this host.
    LocalDestination,
    /// Membership in a set.
    Set {
        /// What is looked up, in its tool's words.
        what: String,
        /// Name of the set in the kernel.
        set: String,
        /// Its elements, as conditions of which one holds; `None` where it was not read whole.
        #[serde(default)]
        members: Option<Vec<Subject>>,
    },
    /// Membership in a set of `ipset`.
    IpSet(IpSetLookup),
    /// All of these: a key of several fields.
    All(Vec<Subject>),
    /// The source was here within so many seconds (`-m recent --rcheck`).
    Recent(u32),
    /// Something that this program cannot decide, in its tool's words.
    Other(String),
}

/// A lookup in a set of `ipset`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct IpSetLookup {
    /// The set's number in its namespace.
    pub number: u16,
    /// Its name; `None` where the kernel did not tell it.
    pub name: Option<String>,
    /// For each part of a key, whether it is of the packet's source; else of its destination.
    pub of_source: Vec<bool>,
    /// Its elements, as conditions of which one holds; `None` where it was not read whole.
    pub members: Option<Vec<Subject>>,
}

/// Bits of a conntrack state.
pub mod state {
    /// Conntrack could make nothing of the packet.
    pub const INVALID: u8 = 1 << 0;
    /// Packets went both ways.
    pub const ESTABLISHED: u8 = 1 << 1;
    /// Belongs to another connection (an ICMP error, for one).
    pub const RELATED: u8 = 1 << 2;
    /// Begins a connection.
    pub const NEW: u8 = 1 << 3;
    /// Kept out of conntrack.
    pub const UNTRACKED: u8 = 1 << 4;
    /// Source translated.
    pub const SNAT: u8 = 1 << 5;
    /// Destination translated.
    pub const DNAT: u8 = 1 << 6;
    /// Words of the bits, as both tools write them.
    pub const WORDS: &[(u8, &str)] = &[
        (INVALID, "invalid"),
        (ESTABLISHED, "established"),
        (RELATED, "related"),
        (NEW, "new"),
        (UNTRACKED, "untracked"),
        (SNAT, "snat"),
        (DNAT, "dnat"),
    ];
}

impl Ruleset {
    /// Whether kube-proxy wrote rules for services here.
    pub fn holds_services(&self) -> bool {
        self.tables.iter().any(holds_services)
    }
}

impl Family {
    const NETDEV: Self = Self::Other(5);
    const BRIDGE: Self = Self::Other(7);

    const fn from_kernel(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }

    /// As `nft` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Other(3) => "arp",
            Self::NETDEV => "netdev",
            Self::BRIDGE => "bridge",
            Self::Other(_) => "(family)",
        }
    }

    /// Whether its chains see packets of this family.
    pub const fn sees(self, ipv6: bool) -> bool {
        match self {
            Self::Ip => !ipv6,
            Self::Ip6 => ipv6,
            Self::Inet | Self::BRIDGE | Self::NETDEV => true,
            Self::Other(_) => false,
        }
    }
}

impl RuleTable {
    /// The tool's command for this family.
    pub const fn command(&self) -> &'static str {
        match (self.tool, self.family) {
            (Tool::Nft, _) => "nft",
            (Tool::IptablesNft, Family::Ip6) => "ip6tables-nft",
            (Tool::IptablesNft, _) => "iptables-nft",
            (Tool::IptablesLegacy, Family::Ip6) => "ip6tables-legacy",
            (Tool::IptablesLegacy, _) => "iptables-legacy",
        }
    }

    /// A chain by its name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// `-t TABLE ` where iptables would not know it by itself.
    fn option(&self) -> String {
        if self.name == "filter" {
            String::new()
        } else {
            format!("-t {} ", self.name)
        }
    }

    /// The command that removes a rule; `None` where the kernel gave no handle for it.
    pub fn delete(&self, chain: &Chain, rule: &Rule) -> Option<String> {
        Some(match self.tool {
            Tool::Nft => format!(
                "nft delete rule {} {} {} handle {}",
                self.family.name(),
                self.name,
                chain.name,
                rule.handle?
            ),
            _ => format!(
                "{} {}-D {} {}",
                self.command(),
                self.option(),
                chain.name,
                rule.number
            ),
        })
    }

    /// The command that lets packets pass at the end of a base chain.
    pub fn accept_by_policy(&self, chain: &Chain) -> String {
        match self.tool {
            Tool::Nft => format!(
                "nft chain {} {} {} '{{ policy accept ; }}'",
                self.family.name(),
                self.name,
                chain.name
            ),
            _ => format!(
                "{} {}-P {} ACCEPT",
                self.command(),
                self.option(),
                chain.name
            ),
        }
    }

    /// The command that shows a chain with its rules' numbers.
    pub fn show(&self, chain: &str) -> String {
        match self.tool {
            Tool::Nft => format!(
                "nft -a list chain {} {} {chain}",
                self.family.name(),
                self.name
            ),
            _ => format!(
                "{} {}-vnL {chain} --line-numbers",
                self.command(),
                self.option()
            ),
        }
    }
}

/// Reads the rules of the calling thread's namespace. What cannot be read is in `missing`; a table of
/// tools that the kernel has not loaded is no table.
pub(super) fn read(missing: &mut Vec<Missing>) -> Ruleset {
    let mut tables = nft::read(missing);
    tables.extend(legacy::read(missing));
    ipset::resolve(&mut tables, missing);
    Ruleset { tables }
}

/// Reads the tables with kube-proxy's rules for services, whole.
pub(super) fn read_services(missing: &mut Vec<Missing>) -> Vec<TableWithSets> {
    let mut tables = nft::read_services(missing);
    let legacy = legacy::read_services(missing).into_iter();
    tables.extend(legacy.map(|table| TableWithSets {
        table,
        sets: Vec::new(),
    }));
    tables
}

/// Whether kube-proxy writes rules for services into this table.
fn holds_services(table: &RuleTable) -> bool {
    match table.tool {
        Tool::Nft => table.name == KUBE_PROXY_TABLE,
        Tool::IptablesNft | Tool::IptablesLegacy => {
            matches!(table.name.as_str(), "nat" | "filter") && table.chain(KUBE_SERVICES).is_some()
        }
    }
}

/// True for a table that holds nothing but address translation: it ends no packet, and is kube-proxy's
/// largest.
fn only_translates(chains: &[Chain]) -> bool {
    let mut bases = chains.iter().filter_map(|chain| chain.base.as_ref());
    let mut any = false;
    bases.all(|base| {
        any = true;
        base.kind == "nat"
    }) && any
}

/// The text of a fixed-length field that ends with a zero byte.
fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
