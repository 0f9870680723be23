//! Makes blocks of events and records, for one file after another: each file says all that it needs.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::ENTERPRISE;
use super::block::{self, Builder, ETHERNET_HEADER, link, option};
use super::record::{BareEvent, Counters, FRAME_BYTES, Header, Headers, Record};
use super::wire::{WireEvent, to_cbor};
use crate::event::Event;
use crate::hook::Role;
use crate::journey::SocketReasons;
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols::Symbols;
use crate::kube::ClusterFacts;
use crate::node::{Link, NetnsId, Reading, Snapshot};
use crate::view::names::{Clock, Names};

/// Most names in one name resolution block.
const MOST_NAMES: usize = 4096;

/// An event with what the writer knows of it.
pub(super) struct Told<'a> {
    pub(super) event: &'a Event,
    /// Number of the packet's journey.
    pub(super) journey: Option<u64>,
    /// The packet's bytes; those of an event before it where it has none.
    pub(super) headers: Option<Headers>,
    /// They are of an event before it.
    pub(super) borrowed: bool,
    /// Namespace and device of the event, or of one before it.
    pub(super) site: (Option<u32>, Option<u32>),
    pub(super) words: &'a str,
}

/// An interface of the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    netns: Option<u32>,
    ifindex: Option<u32>,
}

/// An address that a file holds.
#[derive(Default)]
struct NamedAddress {
    /// When its name was last looked up.
    generation: Option<u64>,
    /// The last name that the file gives it.
    written: Option<Box<str>>,
}

/// Makes blocks.
pub(super) struct Encoder {
    header: Header,
    reasons: Arc<DropReasons>,
    clock: Clock,
    snaplen: Option<usize>,
    /// What names come from: the newest, which may be newer than what the file holds so far.
    facts: Arc<Snapshot>,
    cluster: Option<Arc<ClusterFacts>>,
    /// How often what names come from has changed.
    generation: u64,
    pub(super) symbols: Arc<Symbols>,
    /// What a new file begins with.
    last_facts: Option<Reading>,
    last_cluster: Option<Arc<ClusterFacts>>,
    named: BTreeMap<u64, String>,
    /// Interfaces of the file: number and events.
    interfaces: HashMap<Key, (u32, u64)>,
    /// Addresses that the file holds.
    addresses: HashMap<IpAddr, NamedAddress>,
    new_names: Vec<(IpAddr, String)>,
    lost: u64,
    typed: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(header: Header, reasons: Arc<DropReasons>, snaplen: Option<usize>) -> Self {
        Self {
            clock: header.clock(),
            header,
            reasons,
            snaplen,
            facts: Arc::new(Snapshot::empty()),
            cluster: None,
            generation: 0,
            symbols: Arc::default(),
            last_facts: None,
            last_cluster: None,
            named: BTreeMap::new(),
            interfaces: HashMap::new(),
            addresses: HashMap::new(),
            new_names: Vec::new(),
            lost: 0,
            typed: Vec::new(),
        }
    }

    /// The file that is being made is of this trace.
    pub(super) fn is_of(&self, header: &Header) -> bool {
        self.header == *header
    }

    /// What comes next is of another trace, of which nothing is known yet.
    pub(super) fn go_on_with(&mut self, header: Header, reasons: Arc<DropReasons>) {
        *self = Self::new(header, reasons, self.snaplen);
    }

    /// Names come from these facts of the node from now on.
    pub(super) fn know_facts(&mut self, facts: &Arc<Snapshot>) {
        self.facts = Arc::clone(facts);
        self.generation += 1;
    }

    /// Names come from these facts of the cluster from now on.
    pub(super) fn know_cluster(&mut self, facts: Option<&Arc<ClusterFacts>>) {
        self.cluster = facts.cloned();
        self.generation += 1;
    }

    /// What puts words to numbers now.
    pub(super) fn names(&self) -> Names<'_> {
        Names {
            facts: &self.facts,
            reasons: &self.reasons,
            symbols: &self.symbols,
            clock: self.clock,
            cluster: self.cluster.as_deref(),
        }
    }

    /// What this kernel's reasons say of packets at sockets.
    pub(super) fn socket_reasons(&self) -> SocketReasons {
        self.reasons.iter().collect()
    }

    /// Begins a file: who traced what, and what was known before.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) -> anyhow::Result<()> {
        self.interfaces.clear();
        self.addresses.clear();
        let mut section = Builder::new(out, block::SECTION);
        section.u32(block::ORDER_MAGIC);
        section.u16(1);
        section.u16(0);
        // Length not known.
        section.u64(u64::MAX);
        section.text(option::SECTION_HARDWARE, std::env::consts::ARCH);
        section.text(
            option::SECTION_SYSTEM,
            &format!("Linux {} ({})", self.header.kernel, self.header.node),
        );
        section.text(
            option::SECTION_PROGRAM,
            &format!("tracer {}", self.header.tool),
        );
        let filter = if self.header.filter.is_empty() {
            "all packets"
        } else {
            &self.header.filter
        };
        section.text(
            option::COMMENT,
            &format!(
                "{} hooks attached; filter: {filter}",
                self.header.attached.len()
            ),
        );
        section.end();
        // Wireshark's programs take a file's link type from the interfaces before its first other block;
        // without one mergecap and editcap refuse it.
        let nowhere = Key {
            netns: None,
            ifindex: None,
        };
        self.interface((nowhere.netns, nowhere.ifindex), out);
        self.interfaces.insert(nowhere, (0, 0));
        custom(out, &Record::Header(Box::new(self.header.clone())))?;
        if !self.named.is_empty() {
            let named = self.named.clone().into_iter().collect();
            custom(out, &Record::Symbols(named))?;
        }
        if let Some(cluster) = &self.last_cluster {
            custom(out, &Record::Cluster(Some(Arc::clone(cluster))))?;
        }
        if let Some(reading) = &self.last_facts {
            custom(out, &Record::Facts(reading.clone()))?;
        }
        Ok(())
    }

    /// A record that is no event.
    pub(super) fn record(&mut self, record: Record, out: &mut Vec<u8>) -> anyhow::Result<()> {
        if !custom(out, &record)? {
            return Ok(());
        }
        match record {
            Record::Facts(reading) => self.last_facts = Some(reading),
            Record::Cluster(facts) => self.last_cluster = facts,
            Record::Counters(Counters { lost, .. }) => {
                self.lost = lost.iter().map(|(_, count)| count).sum();
            }
            _ => {}
        }
        Ok(())
    }

    /// Names that the file is about to hold.
    pub(super) fn remember(&mut self, symbols: &[(u64, String)]) {
        self.named.extend(symbols.iter().cloned());
    }

    /// True when the address of a drop has no name in the file yet.
    pub(super) fn is_unnamed(&self, location: u64) -> bool {
        !self.named.contains_key(&location)
    }

    /// An event.
    pub(super) fn event(&mut self, told: &Told<'_>, out: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut typed = std::mem::take(&mut self.typed);
        typed.clear();
        WireEvent::put(told.event, told.borrowed, &mut typed);
        match told.headers {
            Some(headers) => self.packet(told, &headers, &typed, out),
            None => {
                let bare = BareEvent {
                    time_ns: told.event.time_ns,
                    netns: told.event.netns,
                    ifindex: told.event.ifindex,
                    journey: told.journey,
                    event: typed.clone(),
                };
                custom_bytes(out, &bare.to_bytes()?);
            }
        }
        self.typed = typed;
        Ok(())
    }

    fn packet(&mut self, told: &Told<'_>, headers: &Headers, typed: &[u8], out: &mut Vec<u8>) {
        let interface = self.interface(told.site, out);
        self.name(told.event, out);
        let mut room = [0; ETHERNET_HEADER + FRAME_BYTES];
        let kept = headers.framed(told.event, headers.kept(self.snaplen), &mut room);
        let length = headers.whole_length(told.event).max(kept.len());
        let time = self.clock.wall_ns(told.event.time_ns);
        let mut packet = Builder::new(out, block::PACKET);
        packet.u32(interface);
        packet.u32((time >> 32) as u32);
        packet.u32(time as u32);
        packet.u32(kept.len() as u32);
        packet.u32(length as u32);
        packet.bytes(kept);
        packet.text(option::COMMENT, told.words);
        let direction: u32 = match told.event.role() {
            Role::Receive => 1,
            Role::Transmit => 2,
            _ => 0,
        };
        if direction != 0 {
            packet.option(option::PACKET_FLAGS, &direction.to_le_bytes());
        }
        if let Some(journey) = told.journey {
            packet.option(option::PACKET_ID, &journey.to_le_bytes());
        }
        packet.custom(typed);
        packet.end();
    }

    /// The number of an interface; one that is new to the file is described first.
    fn interface(
        &mut self,
        (netns, ifindex): (Option<u32>, Option<u32>),
        out: &mut Vec<u8>,
    ) -> u32 {
        let key = Key { netns, ifindex };
        if let Some((number, events)) = self.interfaces.get_mut(&key) {
            *events += 1;
            return *number;
        }
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(key, (number, 1));
        let names = self.names();
        let namespace = netns.map_or_else(|| "-".into(), |netns| names.namespace(netns));
        let device = ifindex.map_or_else(|| "-".into(), |index| names.device(netns, index));
        let found = netns
            .and_then(|netns| self.facts.namespace(NetnsId(netns)))
            .and_then(|facts| facts.link(ifindex?));
        let description = found.map(|link| self.describe(link, netns));
        let mut interface = Builder::new(out, block::INTERFACE);
        interface.u16(link::ETHERNET);
        interface.u16(0);
        // No limit on bytes.
        interface.u32(0);
        interface.text(option::INTERFACE_NAME, &format!("{namespace}/{device}"));
        if let Some(description) = description {
            interface.text(option::INTERFACE_DESCRIPTION, &description);
        }
        interface.option(option::INTERFACE_RESOLUTION, &[9]);
        if let Ok(place) = to_cbor(&(netns, ifindex)) {
            interface.custom(&place);
        }
        interface.end();
        number
    }

    /// What a device is: its kind, its bridge, its peer and whose that is.
    fn describe(&self, link: &Link, netns: Option<u32>) -> String {
        let names = self.names();
        let mut words = vec![link.kind.clone().unwrap_or_else(|| "device".into())];
        if let Some(master) = link.master {
            words.push(format!("port of {}", names.device(netns, master)));
        }
        if let (Some(peer), Some(at)) = (link.peer_index, link.peer_netns) {
            words.push(format!(
                "peer {} in {}",
                names.device(Some(at.0), peer),
                names.namespace(at.0)
            ));
        }
        if let Some(mtu) = link.mtu {
            words.push(format!("mtu {mtu}"));
        }
        words.join(", ")
    }

    /// Writes the names of a packet's addresses that the file does not name, or no longer names so.
    fn name(&mut self, event: &Event, out: &mut Vec<u8>) {
        let Some(packet) = &event.packet else {
            return;
        };
        for address in [packet.tuple.source.ip(), packet.tuple.destination.ip()] {
            let generation = Some(self.generation);
            let known = self.addresses.entry(address).or_default();
            if std::mem::replace(&mut known.generation, generation) == generation {
                continue;
            }
            let Some(name) = self.name_of(address) else {
                continue;
            };
            let known = self.addresses.entry(address).or_default();
            if known.written.as_deref() != Some(&name) {
                known.written = Some(name.as_str().into());
                self.new_names.push((address, name));
            }
        }
        if self.new_names.is_empty() {
            return;
        }
        let mut names = Builder::new(out, block::NAMES);
        for (address, name) in self.new_names.drain(..).take(MOST_NAMES) {
            let mut value = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let kind = if address.is_ipv4() { 1 } else { 2 };
            value.extend_from_slice(name.as_bytes());
            value.push(0);
            names.u16(kind);
            names.u16(value.len() as u16);
            names.bytes(&value);
        }
        names.u32(0);
        names.end();
    }

    /// Who has an address: in the cluster, else the namespace that carries it.
    fn name_of(&self, address: IpAddr) -> Option<String> {
        let in_cluster = self.cluster.as_ref();
        if let Some(name) = in_cluster.and_then(|cluster| cluster.name_of(address)) {
            return Some(name);
        }
        if address.is_loopback() {
            return None;
        }
        let carrier = self
            .facts
            .namespaces
            .iter()
            .find(|facts| facts.address(address).is_some())?;
        carrier.name.clone()
    }

    /// Ends a file: events and losses of each interface.
    pub(super) fn end(&self, out: &mut Vec<u8>) {
        let mut interfaces: Vec<_> = self.interfaces.values().collect();
        interfaces.sort_unstable();
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        for &&(number, events) in &interfaces {
            let mut statistics = Builder::new(out, block::STATISTICS);
            statistics.u32(number);
            statistics.u32((now >> 32) as u32);
            statistics.u32(now as u32);
            statistics.option(option::STATISTICS_RECEIVED, &events.to_le_bytes());
            // What was lost has no interface; it is said once.
            if number == 0 {
                statistics.option(option::STATISTICS_DROPPED, &self.lost.to_le_bytes());
            }
            statistics.end();
        }
    }
}

/// A record in a custom block. One that is too long is left out, and the file says so; then it gives false.
fn custom(out: &mut Vec<u8>, record: &Record) -> anyhow::Result<bool> {
    let framed = record.to_bytes()?;
    custom_bytes(out, &framed.bytes);
    Ok(framed.whole)
}

fn custom_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut block = Builder::new(out, block::CUSTOM);
    block.u32(ENTERPRISE);
    block.bytes(bytes);
    block.end();
}
