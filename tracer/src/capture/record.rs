//! What the typed records of a capture mean, and how each is kept in a custom block.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use tracer_ebpf::event::PACKET_BYTES;

use super::block::ETHERNET_HEADER;
use super::wire::{Unread, WireEvent, from_cbor, to_cbor};
use super::{MOST_BLOCK, MOST_UNPACKED};
use crate::event::Event;
use crate::kube::{ClusterFacts, StoredCluster};
use crate::node::Reading;
use crate::view::names::Clock;

/// One thing that a capture holds.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every record is an event, and a box for each would cost more than it saves"
)]
pub enum Record {
    /// Who traced what; at the begin of each section.
    Header(Box<Header>),
    /// Something happened to a packet.
    Event(Sighting),
    /// A packet that another program captured.
    Packet(Packet),
    /// A moment at which the trace drew conclusions.
    Control(Control),
    /// Facts of the node.
    Facts(Reading),
    /// Names of code addresses; empty where the kernel has none.
    Symbols(Vec<(u64, String)>),
    /// Facts of the cluster; `None` from where there are none any more.
    Cluster(Option<Arc<ClusterFacts>>),
    /// Losses and cost so far.
    Counters(Counters),
    /// A diagnosis that was reached live, as it was shown: a JSON object.
    Diagnosis(String),
}

/// Who traced what, and how to read the numbers.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Name of the machine.
    pub node: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Version of the tracer.
    pub tool: String,
    /// Filter of the trace; empty for all packets.
    #[serde(default)]
    pub filter: String,
    /// Hooks that were attached, and how.
    #[serde(default)]
    pub attached: Vec<(String, String)>,
    /// What could not be seen, and why.
    #[serde(default)]
    pub not_seen: Vec<String>,
    /// The kernel's drop reasons: number and name.
    #[serde(default)]
    pub reasons: Vec<(u32, String)>,
    /// CLOCK_REALTIME at the beginning, nanoseconds.
    pub wall_ns: u64,
    /// CLOCK_MONOTONIC at the same moment, nanoseconds.
    pub monotonic_ns: u64,
}

impl Header {
    /// The clock of the machine.
    pub fn clock(&self) -> Clock {
        let wall = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_nanos(self.wall_ns))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        Clock::recorded(wall, self.monotonic_ns)
    }
}

/// An event, as a capture holds it.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The event.
    pub event: Event,
    /// Number of its packet's journey.
    pub journey: Option<u64>,
    /// The interface that it is shown at: its own, or that of the event before it.
    pub interface: Option<u32>,
    /// The packet's own bytes; those that were shown for want of them are not here.
    pub headers: Option<Headers>,
}

/// Longest frame of a capture of the tracer, bytes: what the programs read, and a link header before it
/// where the packet had none.
pub(super) const FRAME_BYTES: usize = ETHERNET_HEADER + PACKET_BYTES;

/// Packet bytes of an event.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    pub(super) bytes: [u8; FRAME_BYTES],
    pub(super) length: usize,
    /// Where the network header begins.
    pub(super) network: usize,
    /// EtherType, network order.
    pub(super) protocol: u16,
}

/// A packet that another program captured.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where.
    pub interface: u32,
    /// When, nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes that were sent; those kept may be fewer.
    pub length: u32,
    /// Which way it went, where the file says.
    pub outbound: Option<bool>,
    /// Headers of an IP packet.
    pub headers: Option<crate::event::Packet>,
    /// What ARP says, where it is that.
    pub arp: Option<crate::event::Arp>,
}

/// A moment at which the trace drew conclusions; a replay draws them at the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Control {
    /// The events so far were looked at.
    Step {
        /// CLOCK_MONOTONIC, nanoseconds.
        now_ns: u64,
        /// Without waiting for what may follow.
        hurry: bool,
    },
    /// Events were lost before now: what is under way may have gaps.
    Loss {
        /// CLOCK_MONOTONIC, nanoseconds.
        now_ns: u64,
    },
    /// What came before was forgotten: a reproduction goes on to its next phase.
    Forget,
    /// Every journey was ended.
    Finish {
        /// CLOCK_MONOTONIC, nanoseconds.
        now_ns: u64,
    },
}

/// Losses and cost so far.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Events lost, by cause.
    pub lost: Vec<(String, u64)>,
    /// Events of flows that were left out to keep tracing cheap.
    #[serde(default)]
    pub left_out: u64,
    /// Runs of the programs in the kernel.
    pub kernel_runs: u64,
    /// Their time, nanoseconds.
    pub kernel_ns: u64,
    /// Processor time of the tracer, microseconds.
    pub process_us: u64,
}

/// Kinds of record in custom blocks. Numbers are never used again for something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
enum Kind {
    Header = 1,
    Event = 2,
    Control = 3,
    Facts = 4,
    Symbols = 5,
    Cluster = 6,
    Counters = 7,
    Diagnosis = 8,
    /// The facts of the cluster hold no longer. Its body is empty.
    ClusterEnd = 9,
    /// Stands for a record that no reader would take. Its body is what that was, in words.
    LeftOut = 10,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Header,
        Self::Event,
        Self::Control,
        Self::Facts,
        Self::Symbols,
        Self::Cluster,
        Self::Counters,
        Self::Diagnosis,
        Self::ClusterEnd,
        Self::LeftOut,
    ];
}

/// Version of every kind; one that changes in a way older readers misread gets its own.
const VERSION: u8 = 1;
/// The body is a zstd frame.
const COMPRESSED: u8 = 1;
/// Bodies longer than this are compressed.
const WORTH_COMPRESSING: usize = 256;
const LEVEL: i32 = 3;
/// Kind, version, flags and length of the body, little-endian in every section.
const HEAD: usize = 8;
/// Longest head and body: a block has room for its own fields as well.
const MOST_FRAME: usize = MOST_BLOCK - 32;

/// A record as it is in a custom block.
pub(super) struct Framed {
    pub(super) bytes: Vec<u8>,
    /// False where the record is longer than a reader takes: the bytes say that it was left out.
    pub(super) whole: bool,
}

/// Why a record is not given.
pub(super) enum Unknown {
    /// It cannot be had, and why.
    Skipped(String),
    /// Its bytes are damaged.
    Damaged(String),
}

impl Unknown {
    /// A kind or version of a later tracer.
    fn later(what: &str) -> Self {
        Self::Skipped(format!("{what}, which a later tracer wrote"))
    }
}

impl From<Unread> for Unknown {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Version(version) => Self::later(&format!("events of version {version}")),
            Unread::Hook(hook) => Self::later(&format!("events of hook {hook}")),
            Unread::Damaged => Self::Damaged("a typed event is broken".into()),
        }
    }
}

/// An event without packet bytes: its time, its interface where one is known, and its typed part.
#[derive(Serialize, Deserialize)]
pub(super) struct BareEvent {
    pub(super) time_ns: u64,
    pub(super) netns: Option<u32>,
    pub(super) ifindex: Option<u32>,
    pub(super) journey: Option<u64>,
    pub(super) event: Vec<u8>,
}

impl Record {
    /// What came before is forgotten with it: whoever wants its flows takes them now.
    pub const fn ends_phase(&self) -> bool {
        matches!(self, Self::Control(Control::Forget))
    }

    /// The record's bytes in a custom block. Events and packets have blocks of their own.
    ///
    /// # Errors
    /// When the record cannot be encoded.
    pub(super) fn to_bytes(&self) -> anyhow::Result<Framed> {
        let (kind, body) = match self {
            Self::Header(header) => (Kind::Header, to_cbor(header)?),
            Self::Control(control) => (Kind::Control, to_cbor(control)?),
            Self::Facts(reading) => (Kind::Facts, to_cbor(reading)?),
            Self::Symbols(symbols) => (Kind::Symbols, to_cbor(symbols)?),
            Self::Cluster(Some(facts)) => (Kind::Cluster, to_cbor(&facts.stored())?),
            Self::Cluster(None) => (Kind::ClusterEnd, Vec::new()),
            Self::Counters(counters) => (Kind::Counters, to_cbor(counters)?),
            Self::Diagnosis(text) => (Kind::Diagnosis, to_cbor(text)?),
            Self::Event(_) | Self::Packet(_) => anyhow::bail!("an event is no record of its own"),
        };
        frame(kind, &body, MOST_UNPACKED, MOST_FRAME)
    }

    /// Reads a record's bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Unknown> {
        let damaged = |why: &str| Unknown::Damaged(why.to_owned());
        let (head, rest) = bytes
            .split_first_chunk::<HEAD>()
            .ok_or_else(|| damaged("a record without its head"))?;
        let number = u16::from_le_bytes([head[0], head[1]]);
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let body = rest
            .get(..length as usize)
            .ok_or_else(|| damaged("a record longer than its block"))?;
        let Some(kind) = Kind::ALL.into_iter().find(|kind| *kind as u16 == number) else {
            return Err(Unknown::later(&format!("records of kind {number}")));
        };
        if head[2] > VERSION {
            return Err(Unknown::later(&format!(
                "records of kind {number} in version {}",
                head[2]
            )));
        }
        let unpacked;
        let body = if head[3] & COMPRESSED == 0 {
            body
        } else {
            unpacked = unpack(body).map_err(|why| Unknown::Damaged(why.to_string()))?;
            &unpacked
        };
        let broken =
            |why: String| Unknown::Damaged(format!("a record of kind {number} is broken: {why}"));
        Ok(match kind {
            Kind::Header => Self::Header(from_cbor(body).map_err(broken)?),
            Kind::Control => Self::Control(from_cbor(body).map_err(broken)?),
            Kind::Facts => Self::Facts(from_cbor(body).map_err(broken)?),
            Kind::Symbols => Self::Symbols(from_cbor(body).map_err(broken)?),
            Kind::Counters => Self::Counters(from_cbor(body).map_err(broken)?),
            Kind::Diagnosis => Self::Diagnosis(from_cbor(body).map_err(broken)?),
            Kind::Cluster => {
                let stored: StoredCluster = from_cbor(body).map_err(broken)?;
                Self::Cluster(Some(Arc::new(stored.into())))
            }
            Kind::ClusterEnd => Self::Cluster(None),
            Kind::LeftOut => {
                let what: String = from_cbor(body).map_err(broken)?;
                return Err(Unknown::Skipped(format!("{what}, too long for a capture")));
            }
            Kind::Event => Self::Event(from_cbor::<BareEvent>(body).map_err(broken)?.sighting()?),
        })
    }
}

impl BareEvent {
    /// The event's bytes in a custom block.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub(super) fn to_bytes(&self) -> anyhow::Result<Vec<u8>> {
        framed(Kind::Event, &to_cbor(self)?)
    }

    fn sighting(self) -> Result<Sighting, Unknown> {
        let event = WireEvent::take(&self.event)
            .and_then(|wire| wire.event(self.time_ns, self.netns, self.ifindex, None));
        Ok(Sighting {
            event: event?,
            journey: self.journey,
            interface: None,
            headers: None,
        })
    }
}

/// Frames what a reader takes, of at most so many bytes before and after compression; else what stands for it.
fn frame(kind: Kind, body: &[u8], unpacked: usize, packed: usize) -> anyhow::Result<Framed> {
    if body.len() <= unpacked {
        let bytes = framed(kind, body)?;
        if bytes.len() <= packed {
            return Ok(Framed { bytes, whole: true });
        }
    }
    let what = format!("{kind:?} records").to_lowercase();
    Ok(Framed {
        bytes: framed(Kind::LeftOut, &to_cbor(&what)?)?,
        whole: false,
    })
}

fn framed(kind: Kind, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let packed;
    let (flags, body) = if body.len() > WORTH_COMPRESSING {
        packed = pack(body)?;
        (COMPRESSED, packed.as_slice())
    } else {
        (0, body)
    };
    let number = (kind as u16).to_le_bytes();
    let length = u32::try_from(body.len())?.to_le_bytes();
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(&[number[0], number[1], VERSION, flags]);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// A zstd frame with a checksum, so that damage is seen.
fn pack(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut packer = zstd::bulk::Compressor::new(LEVEL)?;
    packer.include_checksum(true)?;
    packer.compress(body)
}

fn unpack(body: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut unpacked = Vec::new();
    zstd::stream::Decoder::with_buffer(body)?
        .take(MOST_UNPACKED as u64)
        .read_to_end(&mut unpacked)?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_reader_takes_is_left_out_and_the_file_says_so() {
        let small = vec![7; WORTH_COMPRESSING];
        let long = vec![7; 1000];
        for (body, unpacked, packed, whole) in [
            (&long, 1000, 1000, true),
            (&long, 999, 1000, false),
            (&small, 1000, WORTH_COMPRESSING + HEAD, true),
            (&small, 1000, WORTH_COMPRESSING, false),
        ] {
            let framed = frame(Kind::Facts, body, unpacked, packed).expect("bytes");
            assert_eq!(framed.whole, whole, "{unpacked} {packed}");
            let read = Record::from_bytes(&framed.bytes);
            let skipped = match read {
                Err(Unknown::Skipped(what)) => Some(what),
                Err(Unknown::Damaged(_)) | Ok(_) => None,
            };
            let said = "facts records, too long for a capture";
            assert_eq!(skipped.as_deref(), (!whole).then_some(said));
        }
    }
}
