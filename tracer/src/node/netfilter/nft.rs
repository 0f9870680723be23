//! nftables by netlink: tables, chains and rules of the calling thread's network namespace.
//!
//! Attributes are those of the kernel's `linux/netfilter/nf_tables.h`. Asking would load the module, and
//! the tracer changes nothing; so it asks only where the kernel has it.

#[cfg(test)]
pub(super) mod tests;

use std::fs;
use std::path::Path;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NetlinkPayload, NetlinkSerializable, NlaBuffer,
    parse_string, parse_u32_be, parse_u64_be,
};

use super::lookup::{self, Lookup};
use super::set::{self, OnDemand, Set};
use super::{
    Base, Chain, Family, LIMIT, MOST_ELEMENTS, Missing, Rule, RuleTable, Tool, expression,
    only_translates,
};
use crate::event::NetfilterHook;
use crate::node::netlink::{Conversation, attributes};
use crate::node::table::rows_or_missing;

/// `NFNL_SUBSYS_NFTABLES << 8`.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
/// `nfgenmsg`: family, version, resource id.
pub(super) const HEADER_BYTES: usize = 4;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_COUNTERS: u16 = 8;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const DEVICE_PREFIX: u16 = 2;
const COUNTER_PACKETS: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const WHAT: &str = "nftables rules";

/// A question to a part of netfilter.
pub(super) struct Request {
    /// The part's number in the upper byte.
    pub message: u16,
    pub family: u8,
    pub attributes: Vec<DefaultNla>,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.message
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER_BYTES].copy_from_slice(&[self.family, 0, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[HEADER_BYTES..]);
    }
}

impl From<Request> for NetlinkPayload<Request> {
    fn from(request: Request) -> Self {
        Self::InnerMessage(request)
    }
}

struct ChainRow {
    family: u8,
    table: String,
    chain: Chain,
}

/// A rule with the chain that it is in.
pub(super) struct RuleRow {
    pub chain: String,
    pub rule: Rule,
    pub lookups: Vec<Lookup>,
}

/// True when the kernel has nftables already: as a loaded module, or built in.
fn present() -> bool {
    Path::new("/sys/module/nf_tables").exists()
        || fs::read_to_string("/proc/kallsyms")
            .is_ok_and(|symbols| symbols.lines().any(|line| line.ends_with(" nft_do_chain")))
}

/// A table of kube-proxy's with its sets.
pub(in crate::node) struct TableWithSets {
    /// The table.
    pub table: RuleTable,
    /// Its sets and maps; those of iptables-nft are not read.
    pub sets: Vec<Set>,
}

/// Reads every table; of those that only translate addresses no rules.
pub(super) fn read(missing: &mut Vec<Missing>) -> Vec<RuleTable> {
    let (mut room, mut room_for_elements) = (LIMIT, MOST_ELEMENTS);
    let read = |conversation: &mut Conversation, row: TableRow, missing: &mut Vec<Missing>| {
        let mut table = row.table;
        if !only_translates(&table.chains) {
            let mut rules = read_rules(conversation, row.family, &table.name, room, missing);
            room -= rules.len();
            let mut sets = OnDemand::new(conversation, row.family, &table.name, missing);
            let read = |name: &str, room: usize| sets.get(name, room);
            lookup::resolve(&table.chains, &mut rules, &mut room_for_elements, read);
            put(&mut table, rules);
        }
        Some(table)
    };
    read_tables(missing, read)
}

/// Reads the tables that kube-proxy writes its rules for services into, whole.
pub(super) fn read_services(missing: &mut Vec<Missing>) -> Vec<TableWithSets> {
    read_tables(missing, |conversation, row, missing| {
        let mut table = row.table;
        if !super::holds_services(&table) {
            return None;
        }
        read_chains(conversation, row.family, &mut table, missing);
        let sets = if table.tool == Tool::Nft {
            set::read(conversation, row.family, &table.name, missing)
        } else {
            Vec::new()
        };
        Some(TableWithSets { table, sets })
    })
}

/// A table without its rules.
struct TableRow {
    family: u8,
    table: RuleTable,
}

fn read_tables<T>(
    missing: &mut Vec<Missing>,
    mut read: impl FnMut(&mut Conversation, TableRow, &mut Vec<Missing>) -> Option<T>,
) -> Vec<T> {
    if !present() {
        return Vec::new();
    }
    let mut conversation = match Conversation::open(libc::NETLINK_NETFILTER as isize) {
        Ok(conversation) => conversation,
        Err(error) => {
            missing.push(error.missing(WHAT));
            return Vec::new();
        }
    };
    let all = |message| Request {
        message,
        family: 0,
        attributes: Vec::new(),
    };
    let tables = conversation.dump(all(GET_TABLE), LIMIT, parse_table);
    let names = rows_or_missing("nftables tables", tables, missing);
    let chains = conversation.dump(all(GET_CHAIN), LIMIT, parse_chain);
    let mut chains = rows_or_missing("nftables chains", chains, missing);
    let mut tables = Vec::new();
    for (family, name) in names {
        let of_table: Vec<Chain> = chains
            .extract_if(.., |row| row.family == family && row.table == name)
            .map(|row| row.chain)
            .collect();
        let table = RuleTable {
            tool: tool(family, &name, &of_table),
            family: Family::from_kernel(family),
            name,
            chains: of_table,
        };
        let row = TableRow { family, table };
        tables.extend(read(&mut conversation, row, missing));
    }
    tables
}

/// Reads every rule, chain by chain: with tens of thousands of chains the kernel takes ten times as long
/// for the table at once, because it begins from its start for each buffer. Ends early when one is not
/// whole.
fn read_chains(
    conversation: &mut Conversation,
    family: u8,
    table: &mut RuleTable,
    missing: &mut Vec<Missing>,
) {
    let doubts = missing.len();
    for chain in &mut table.chains {
        let request = Request {
            message: GET_RULE,
            family,
            attributes: vec![
                DefaultNla::new(RULE_TABLE, zero_ended(&table.name)),
                DefaultNla::new(RULE_CHAIN, zero_ended(&chain.name)),
            ],
        };
        let rows = conversation.dump(request, LIMIT, |payload| parse_rule(payload, family));
        for RuleRow { mut rule, .. } in rows_or_missing(WHAT, rows, missing) {
            rule.number = chain.rules.len() as u32 + 1;
            chain.rules.push(rule);
        }
        if missing.len() > doubts {
            return;
        }
    }
}

/// Reads at most `room` rules of a table.
fn read_rules(
    conversation: &mut Conversation,
    family: u8,
    table: &str,
    room: usize,
    missing: &mut Vec<Missing>,
) -> Vec<RuleRow> {
    let request = Request {
        message: GET_RULE,
        family,
        attributes: vec![DefaultNla::new(RULE_TABLE, zero_ended(table))],
    };
    let rules = conversation.dump(request, room, |payload| parse_rule(payload, family));
    rows_or_missing(WHAT, rules, missing)
}

pub(super) fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// iptables-nft's tables are known by the names that only it gives.
fn tool(family: u8, name: &str, chains: &[Chain]) -> Tool {
    let builtin = |chain: &Chain| {
        chain.base.is_some()
            && matches!(
                chain.name.as_str(),
                "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING"
            )
    };
    let known = matches!(name, "filter" | "nat" | "mangle" | "raw" | "security");
    if matches!(family, 2 | 10) && known && chains.iter().any(builtin) {
        Tool::IptablesNft
    } else {
        Tool::Nft
    }
}

/// Puts rules into their chains, in the order in which the kernel gives them.
fn put(table: &mut RuleTable, rules: Vec<RuleRow>) {
    let places: std::collections::HashMap<String, usize> = table
        .chains
        .iter()
        .enumerate()
        .map(|(place, chain)| (chain.name.clone(), place))
        .collect();
    for RuleRow {
        chain, mut rule, ..
    } in rules
    {
        // A chain that came after the chains were read.
        let Some(&place) = places.get(&chain) else {
            continue;
        };
        let rules = &mut table.chains[place].rules;
        rule.number = rules.len() as u32 + 1;
        rules.push(rule);
    }
}

fn family_of(payload: &[u8]) -> Result<u8, DecodeError> {
    payload
        .first()
        .copied()
        .ok_or_else(|| "nftables answer without a header".into())
}

fn parse_table(payload: &[u8]) -> Result<Option<(u8, String)>, DecodeError> {
    let name = attributes(payload, HEADER_BYTES)
        .find(|attribute| attribute.kind() == TABLE_NAME)
        .ok_or("nftables table without a name")?;
    Ok(Some((family_of(payload)?, parse_string(name.value())?)))
}

fn parse_chain(payload: &[u8]) -> Result<Option<ChainRow>, DecodeError> {
    let (mut table, mut name, mut hook, mut kind) = (None, None, None, String::new());
    let (mut drops, mut policy_packets) = (false, None);
    for attribute in attributes(payload, HEADER_BYTES) {
        let value = attribute.value();
        match attribute.kind() {
            CHAIN_TABLE => table = Some(parse_string(value)?),
            CHAIN_NAME => name = Some(parse_string(value)?),
            CHAIN_HOOK => hook = Some(parse_hook(value)?),
            // NF_DROP is 0.
            CHAIN_POLICY => drops = parse_u32_be(value)? == 0,
            CHAIN_TYPE => kind = parse_string(value)?,
            CHAIN_COUNTERS => policy_packets = counter(value),
            _ => {}
        }
    }
    let family = family_of(payload)?;
    Ok(Some(ChainRow {
        family,
        table: table.ok_or("nftables chain without a table")?,
        chain: Chain {
            name: name.ok_or("nftables chain without a name")?,
            base: hook.map(|hook| Base {
                hook: u8::try_from(hook.number).map_or(NetfilterHook::Other, |number| {
                    NetfilterHook::of_family(family, number)
                }),
                priority: hook.priority,
                drops,
                kind,
                policy_packets,
                devices: hook.devices,
            }),
            rules: Vec::new(),
        },
    }))
}

/// Where a base chain is.
struct HookRow {
    number: u32,
    priority: i32,
    devices: Vec<String>,
}

fn parse_hook(value: &[u8]) -> Result<HookRow, DecodeError> {
    let mut hook = HookRow {
        number: u32::MAX,
        priority: 0,
        devices: Vec::new(),
    };
    for attribute in attributes(value, 0) {
        let value = attribute.value();
        match attribute.kind() {
            HOOK_NUMBER => hook.number = parse_u32_be(value)?,
            HOOK_PRIORITY => hook.priority = parse_u32_be(value)?.cast_signed(),
            HOOK_DEVICE => hook.devices.push(parse_string(value)?),
            HOOK_DEVICES => {
                // With one device both attributes are there.
                let device = |name: NlaBuffer<&[u8]>| {
                    let star = if name.kind() == DEVICE_PREFIX {
                        "*"
                    } else {
                        ""
                    };
                    parse_string(name.value()).map(|name| name + star)
                };
                hook.devices = attributes(value, 0).map(device).collect::<Result<_, _>>()?;
            }
            _ => {}
        }
    }
    Ok(hook)
}

/// Packets of a counter.
fn counter(value: &[u8]) -> Option<u64> {
    attributes(value, 0)
        .find(|attribute| attribute.kind() == COUNTER_PACKETS)
        .and_then(|attribute| parse_u64_be(attribute.value()).ok())
}

fn parse_rule(payload: &[u8], family: u8) -> Result<Option<RuleRow>, DecodeError> {
    let (mut chain, mut handle, mut parsed, mut comment) = (None, None, None, None);
    for attribute in attributes(payload, HEADER_BYTES) {
        let value = attribute.value();
        match attribute.kind() {
            RULE_CHAIN => chain = Some(parse_string(value)?),
            RULE_HANDLE => handle = parse_u64_be(value).ok(),
            RULE_EXPRESSIONS => parsed = Some(expression::read(value, Family::from_kernel(family))),
            RULE_USERDATA => comment = userdata_comment(value),
            _ => {}
        }
    }
    let (mut rule, lookups) =
        parsed.unwrap_or_else(|| expression::read(&[], Family::from_kernel(family)));
    rule.handle = handle;
    rule.comment = rule.comment.or(comment);
    Ok(Some(RuleRow {
        chain: chain.ok_or("nftables rule without a chain")?,
        rule,
        lookups,
    }))
}

/// The comment among what userspace stores with a rule: records of type, length and data; type 0.
fn userdata_comment(mut bytes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = bytes {
        let (data, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            return Some(super::text_of(data));
        }
        bytes = rest;
    }
    None
}
