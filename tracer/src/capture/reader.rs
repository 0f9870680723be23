//! Reads a capture record by record. Every byte may be wrong.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::block::{self, ETHERNET_HEADER, OptionList, Order, option, padded};
use super::bytes::Bytes;
use super::foreign::{self, Classic};
use super::record::{Headers, Packet, Record, Sighting, Unknown};
use super::wire::{WireEvent, seen};
use super::{ENTERPRISE, MOST_BLOCK};
use crate::event;
use crate::view::names::Clock;

/// Shortest block: its kind and its length twice.
const LEAST_BLOCK: usize = 12;
/// Most interfaces of a section that are kept.
const MOST_INTERFACES: usize = 65_536;
/// What the tracer's name in a section begins with.
const PROGRAM: &[u8] = b"tracer ";

/// Why reading ends early.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened, or is none.
    #[error("cannot be read: {error}")]
    Unopened {
        /// Why.
        error: io::Error,
    },
    /// The file cannot be read on.
    #[error("cannot be read at byte {position}{}: {error}", of_what(*.packed))]
    Input {
        /// Where, in the unpacked file.
        position: u64,
        /// The file is packed.
        packed: bool,
        /// Why.
        error: io::Error,
    },
    /// It is not what it should be.
    #[error("damaged at byte {position}{}: {reason}", of_what(*.packed))]
    Damage {
        /// Where the damaged part begins, in the unpacked file.
        position: u64,
        /// The file is packed.
        packed: bool,
        /// What is wrong.
        reason: String,
    },
}

/// Nothing of the file was read.
const fn unopened(error: io::Error) -> ReadError {
    ReadError::Unopened { error }
}

const fn of_what(packed: bool) -> &'static str {
    if packed { " of what it unpacks to" } else { "" }
}

/// An interface of a section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// `LINKTYPE_*`.
    pub link_type: u16,
    /// Its name: `namespace/device` in captures of the tracer.
    pub name: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Inode number of its network namespace, in captures of the tracer.
    pub netns: Option<u32>,
    /// Its index there.
    pub ifindex: Option<u32>,
    resolution: Resolution,
    /// Seconds to add to its times.
    offset: i64,
}

/// Unit of an interface's times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Resolution {
    /// So many nanoseconds.
    Nanoseconds(u64),
    /// So many units make a second.
    PerSecond(u128),
}

impl Resolution {
    /// From `if_tsresol`.
    fn from_option(value: u8) -> Self {
        let exponent = u32::from(value & 0x7f);
        if value & 0x80 != 0 {
            return Self::PerSecond(1 << exponent);
        }
        match exponent {
            0..=9 => Self::Nanoseconds(10u64.pow(9 - exponent)),
            // All times in still smaller units are within the first nanosecond.
            _ => Self::PerSecond(10u128.saturating_pow(exponent)),
        }
    }

    fn nanoseconds(self, time: u64) -> u64 {
        match self {
            Self::Nanoseconds(unit) => time.saturating_mul(unit),
            Self::PerSecond(units) => {
                let time = u128::from(time) * 1_000_000_000 / units;
                u64::try_from(time).unwrap_or(u64::MAX)
            }
        }
    }
}

impl Interface {
    /// An interface of which only the link type is known; times in microseconds.
    pub(super) const fn unnamed(link_type: u16) -> Self {
        Self {
            link_type,
            name: None,
            description: None,
            netns: None,
            ifindex: None,
            resolution: Resolution::Nanoseconds(1000),
            offset: 0,
        }
    }

    /// Nanoseconds since 1970.
    pub(super) fn time_ns(&self, high: u32, low: u32) -> u64 {
        let time = u64::from(high) << 32 | u64::from(low);
        self.resolution
            .nanoseconds(time)
            .saturating_add_signed(self.offset.saturating_mul(1_000_000_000))
    }
}

/// What was passed over, why, and how often: things of later versions, or too long to be kept.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Skipped(BTreeMap<String, u64>);

/// Kinds of skipped things that are told apart.
const MOST_SKIPPED: usize = 64;

impl Skipped {
    fn add(&mut self, what: String) {
        if self.0.len() < MOST_SKIPPED || self.0.contains_key(&what) {
            *self.0.entry(what).or_default() += 1;
        }
    }

    /// Each thing and how often.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(what, &count)| (what.as_str(), count))
    }
}

/// What a file is.
enum Form {
    /// pcapng; the byte order is that of the section.
    Blocks(Order),
    /// pcap.
    Classic(Classic),
}

/// Reads a capture.
pub struct Reader {
    bytes: Bytes,
    form: Form,
    interfaces: Vec<Interface>,
    clock: Option<Clock>,
    /// The section is the tracer's: others may use the same number for blocks and options.
    own: bool,
    skipped: Skipped,
    /// Nothing comes after damage.
    over: bool,
}

impl Reader {
    /// Opens a capture.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Self::new(Bytes::open(path).map_err(unopened)?)
    }

    /// Reads from a stream.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn from_stream(input: impl io::Read + Send + 'static) -> Result<Self, ReadError> {
        Self::new(Bytes::unwrap(input).map_err(unopened)?)
    }

    fn new(mut bytes: Bytes) -> Result<Self, ReadError> {
        let packed = bytes.is_packed();
        let failed = |error| ReadError::Input {
            position: 0,
            packed,
            error,
        };
        let head = bytes.peek(foreign::HEADER).map_err(failed)?;
        if head.is_empty() {
            return Err(ReadError::Damage {
                position: 0,
                packed,
                reason: "the file is empty: nothing was ever written to it".into(),
            });
        }
        let mut interfaces = Vec::new();
        let form = if head.starts_with(&block::SECTION.to_le_bytes()) {
            Form::Blocks(Order::Little)
        } else if let Some(classic) = Classic::begin(head) {
            interfaces.push(Interface::unnamed(classic.link_type));
            bytes.advance(foreign::HEADER);
            Form::Classic(classic)
        } else {
            return Err(ReadError::Damage {
                position: 0,
                packed,
                reason: "neither pcapng nor pcap; the file does not begin like one".into(),
            });
        };
        Ok(Self {
            bytes,
            form,
            interfaces,
            clock: None,
            own: false,
            skipped: Skipped::default(),
            over: false,
        })
    }

    /// Bytes read so far, of the unpacked file.
    pub const fn position(&self) -> u64 {
        self.bytes.position()
    }

    /// The file is packed: positions are not those of its bytes on disk.
    pub const fn is_packed(&self) -> bool {
        self.bytes.is_packed()
    }

    /// Interfaces of the section.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// What was passed over so far.
    pub const fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The next record; `None` at the end. After an error there is nothing more.
    ///
    /// # Errors
    /// When the file is damaged from here on.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator of results would hide that an error is the end"
    )]
    pub fn next(&mut self) -> Result<Option<Record>, ReadError> {
        while !self.over {
            let (position, packed) = (self.position(), self.is_packed());
            let read = match self.form {
                Form::Blocks(order) => self.next_block(order),
                Form::Classic(classic) => self.next_classic(classic),
            };
            match read {
                Ok(Some(Some(record))) => return Ok(Some(record)),
                Ok(Some(None)) => {}
                Ok(None) => self.over = true,
                Err(Stop::Input(error)) => {
                    self.over = true;
                    return Err(ReadError::Input {
                        position,
                        packed,
                        error,
                    });
                }
                Err(Stop::Damage(reason)) => {
                    self.over = true;
                    return Err(ReadError::Damage {
                        position,
                        packed,
                        reason,
                    });
                }
            }
        }
        Ok(None)
    }

    /// One block: outer `None` at the end, inner `None` for one without a record.
    fn next_block(&mut self, order: Order) -> Result<Option<Option<Record>>, Stop> {
        let head = self.bytes.peek(LEAST_BLOCK)?;
        if head.is_empty() {
            return Ok(None);
        }
        if head.len() < LEAST_BLOCK {
            return Err(Stop::new("the file ends within a block's head"));
        }
        let section = head.starts_with(&block::SECTION.to_le_bytes());
        let order = if section {
            [Order::Little, Order::Big]
                .into_iter()
                .find(|order| order.u32(head, 8) == Some(block::ORDER_MAGIC))
                .ok_or_else(|| Stop::new("a section of unknown byte order"))?
        } else {
            order
        };
        let kind = order.u32(head, 0).unwrap_or_default();
        let length = order.u32(head, 4).unwrap_or_default() as usize;
        if length < LEAST_BLOCK || !length.is_multiple_of(4) {
            return Err(Stop::Damage(format!(
                "a block of {length} bytes, which no block can have"
            )));
        }
        if length > MOST_BLOCK {
            return Err(Stop::Damage(format!(
                "a block that claims {length} bytes; the longest is {MOST_BLOCK}"
            )));
        }
        let there = self.bytes.peek(length)?;
        if there.len() < length {
            return Err(Stop::Damage(format!(
                "the file ends within a block: {} of {length} bytes are there",
                there.len()
            )));
        }
        if order.u32(there, length - 4) != Some(length as u32) {
            return Err(Stop::new("a block whose two lengths differ"));
        }
        let record = self.take_block(kind, order, length)?;
        self.form = Form::Blocks(order);
        self.bytes.advance(length);
        Ok(Some(record))
    }

    fn take_block(
        &mut self,
        kind: u32,
        order: Order,
        length: usize,
    ) -> Result<Option<Record>, Stop> {
        let body = self
            .bytes
            .peeked(length)
            .get(8..length - 4)
            .unwrap_or_default();
        match kind {
            block::SECTION => {
                if order.u16(body, 4) != Some(1) {
                    return Err(Stop::Damage(format!(
                        "a section of format version {:?}; only 1 is known",
                        order.u16(body, 4)
                    )));
                }
                self.interfaces.clear();
                self.clock = None;
                self.own = is_own(order, body);
                Ok(None)
            }
            block::INTERFACE => {
                let interface = interface(order, body, self.own)
                    .ok_or_else(|| Stop::new("an interface without its fields"))?;
                if self.interfaces.len() >= MOST_INTERFACES {
                    return Err(Stop::Damage(format!(
                        "more than {MOST_INTERFACES} interfaces"
                    )));
                }
                self.interfaces.push(interface);
                Ok(None)
            }
            block::PACKET => packet(order, body, &self.interfaces, self.clock, &mut self.skipped),
            block::OLD_PACKET => foreign::old_packet(order, body, &self.interfaces)
                .map(|packet| packet.map(Record::Packet)),
            block::SIMPLE_PACKET => foreign::simple_packet(order, body, &self.interfaces)
                .map(|packet| packet.map(Record::Packet)),
            block::CUSTOM if order.u32(body, 0) == Some(ENTERPRISE) => {
                match Record::from_bytes(&body[4..]) {
                    Ok(Record::Header(header)) => {
                        self.clock = Some(header.clock());
                        self.own = true;
                        Ok(Some(Record::Header(header)))
                    }
                    _ if !self.own => Ok(None),
                    Ok(record) => Ok(Some(record)),
                    Err(Unknown::Skipped(what)) => {
                        self.skipped.add(what);
                        Ok(None)
                    }
                    Err(Unknown::Damaged(why)) => Err(Stop::Damage(why)),
                }
            }
            // Names and statistics are for other programs, and others' blocks are theirs.
            _ => Ok(None),
        }
    }

    fn next_classic(&mut self, classic: Classic) -> Result<Option<Option<Record>>, Stop> {
        let Some((packet, length)) = classic.packet(&mut self.bytes)? else {
            return Ok(None);
        };
        self.bytes.advance(length);
        Ok(Some(Some(Record::Packet(packet))))
    }
}

/// Why a block is not given.
pub(super) enum Stop {
    Input(io::Error),
    Damage(String),
}

impl Stop {
    pub(super) fn new(reason: &str) -> Self {
        Self::Damage(reason.to_owned())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Input(error)
    }
}

/// The section says that the tracer made it. One that another program copied says so by its header record.
fn is_own(order: Order, body: &[u8]) -> bool {
    let bytes = body.get(16..).unwrap_or_default();
    OptionList { order, bytes }
        .any(|(code, value)| code == option::SECTION_PROGRAM && value.starts_with(PROGRAM))
}

/// With `own` an option of our number that cannot be read is damage.
fn interface(order: Order, body: &[u8], own: bool) -> Option<Interface> {
    let mut interface = Interface::unnamed(order.u16(body, 0)?);
    let options = OptionList {
        order,
        bytes: body.get(8..)?,
    };
    let text = |value| Some(String::from_utf8_lossy(value).into_owned());
    for (code, value) in options {
        match code {
            option::INTERFACE_NAME => interface.name = text(value),
            option::INTERFACE_DESCRIPTION => interface.description = text(value),
            option::INTERFACE_RESOLUTION => {
                interface.resolution = Resolution::from_option(*value.first()?);
            }
            option::INTERFACE_OFFSET => {
                interface.offset = order.u64(value, 0)?.cast_signed();
            }
            option::CUSTOM if order.u32(value, 0) == Some(ENTERPRISE) => {
                match super::wire::from_cbor(value.get(4..)?) {
                    Ok(place) => (interface.netns, interface.ifindex) = place,
                    Err(_) if own => return None,
                    Err(_) => {}
                }
            }
            _ => {}
        }
    }
    Some(interface)
}

/// An enhanced packet block: one of our events, or another program's packet.
fn packet(
    order: Order,
    body: &[u8],
    interfaces: &[Interface],
    clock: Option<Clock>,
    skipped: &mut Skipped,
) -> Result<Option<Record>, Stop> {
    let short = || Stop::new("a packet without its fields");
    let field = |at| order.u32(body, at).ok_or_else(short);
    let (number, captured, length) = (field(0)?, field(12)? as usize, field(16)?);
    let interface = interfaces.get(number as usize).ok_or_else(|| {
        Stop::Damage(format!(
            "a packet of interface {number}, which is not described"
        ))
    })?;
    let bytes = body
        .get(20..)
        .and_then(|rest| rest.get(..captured))
        .ok_or_else(|| Stop::new("a packet longer than its block"))?;
    let options = OptionList {
        order,
        bytes: body.get(20 + padded(captured)..).unwrap_or_default(),
    };
    let (mut typed, mut journey, mut flags) = (None, None, 0);
    for (code, value) in options {
        match code {
            option::PACKET_FLAGS => flags = order.u32(value, 0).unwrap_or_default(),
            option::PACKET_ID => journey = order.u64(value, 0),
            option::CUSTOM if order.u32(value, 0) == Some(ENTERPRISE) => typed = value.get(4..),
            _ => {}
        }
    }
    let time_ns = interface.time_ns(field(4)?, field(8)?);
    let (Some(typed), Some(clock)) = (typed, clock) else {
        return Ok(Some(Record::Packet(Packet {
            interface: number,
            time_ns,
            length,
            outbound: foreign::outbound(flags),
            headers: foreign::headers(interface.link_type, bytes),
            arp: foreign::arp(interface.link_type, bytes),
        })));
    };
    let mut headers = None;
    let event = WireEvent::take(typed).and_then(|wire| {
        let borrowed = wire.seen & seen::BORROWED != 0;
        headers = (!borrowed).then(|| Headers::of_frame(bytes));
        let packet = (!borrowed)
            .then(|| event::Packet::parse(bytes, ETHERNET_HEADER))
            .flatten();
        wire.event(
            clock.monotonic(time_ns),
            interface.netns,
            interface.ifindex,
            packet,
        )
    });
    let arp = headers.and_then(|_| foreign::arp(block::link::ETHERNET, bytes));
    let event = event.map(|event| event::Event {
        arp: arp.filter(|_| event.not_ip),
        ..event
    });
    match event.map_err(Unknown::from) {
        Ok(event) => Ok(Some(Record::Event(Sighting {
            event,
            journey,
            interface: Some(number),
            headers,
        }))),
        Err(Unknown::Skipped(what)) => {
            skipped.add(what);
            Ok(None)
        }
        Err(Unknown::Damaged(why)) => Err(Stop::Damage(why)),
    }
}
