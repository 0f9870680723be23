//! What may drop packets on a device beside the stack: XDP programs, traffic control filters (`tc filter`)
//! and TCX programs.
//!
//! Attributes are those of the kernel's `linux/rtnetlink.h`, `linux/pkt_cls.h` and `linux/if_link.h`. TCX
//! programs (6.6 and later) are no filters of a queueing discipline and are asked for by bpf(2).

use std::collections::BTreeMap;

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use netlink_packet_core::{DecodeError, NlaBuffer, parse_string, parse_u32};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use serde::{Deserialize, Serialize};

use super::link::Link;
use super::netlink::{Conversation, attributes};
use super::queue::QueueDiscipline;
use super::table::rows_or_missing;
use super::{Missing, link};

/// Filters of one place of a device.
const LIMIT: usize = 4_096;
/// Devices that are asked for their filters; a node has one for each pod.
const MOST_DEVICES: usize = 4_096;
/// Programs whose names are looked up.
const MOST_PROGRAMS: usize = 16_384;

const HEADER_BYTES: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_GACT_PARMS: u16 = 2;
/// `action` in `struct tc_gact`.
const GACT_ACTION: usize = 8;
/// Drops the packet.
const TC_ACT_SHOT: i32 = 2;

/// The kind of an XDP program that the stack runs, as `ip link` names it.
pub const GENERIC_XDP: &str = "xdpgeneric";

/// A filter or program on a device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceFilter {
    /// Index of the device.
    pub link: u32,
    /// Where it sees packets.
    pub place: FilterPlace,
    /// What it is, as `tc` names it: `bpf`, `flower`, `u32`, `matchall`; `xdp`, [`GENERIC_XDP`] and `tcx` for those.
    pub kind: String,
    /// Its preference, as `tc filter del` wants it; `None` for what is no tc filter.
    pub preference: Option<u16>,
    /// Its action is to drop; `None` where only its program knows.
    pub drops: Option<bool>,
    /// Its BPF program.
    pub program: Option<BpfProgram>,
}

/// A BPF program.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BpfProgram {
    /// Number, as `bpftool prog show id` takes it.
    pub id: u32,
    /// Name that it was loaded with; at most 15 bytes.
    pub name: Option<String>,
}

/// Where a filter sees packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum FilterPlace {
    /// Received ones, before the stack has them.
    Xdp,
    /// Received ones.
    Ingress,
    /// Those about to be sent.
    Egress,
}

impl FilterPlace {
    /// As `tc` and `ip link` name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

pub(super) fn read(
    route: &mut Conversation,
    links: &[Link],
    queues: &[QueueDiscipline],
    missing: &mut Vec<Missing>,
) -> Vec<DeviceFilter> {
    let mut filters: Vec<DeviceFilter> = links.iter().filter_map(of_xdp).collect();
    let holders = queues.iter().filter(|queue| queue.is_for_filters());
    let mut devices: Vec<u32> = holders.map(|queue| queue.link).collect();
    devices.sort_unstable();
    devices.dedup();
    for &link in devices.iter().take(MOST_DEVICES) {
        for place in [FilterPlace::Ingress, FilterPlace::Egress] {
            let request = RouteNetlinkMessage::GetTrafficFilter(filters_of(link, place));
            let result = route.dump(request, LIMIT, |payload| parse_filter(payload, link, place));
            filters.extend(rows_or_missing("traffic control filters", result, missing));
        }
    }
    filters.extend(of_tcx(links));
    name(&mut filters);
    filters
}

fn of_xdp(link: &Link) -> Option<DeviceFilter> {
    Some(DeviceFilter {
        link: link.index,
        place: FilterPlace::Xdp,
        kind: if link.xdp_generic {
            GENERIC_XDP.to_owned()
        } else {
            "xdp".to_owned()
        },
        preference: None,
        drops: None,
        program: Some(BpfProgram {
            id: link.xdp?,
            name: None,
        }),
    })
}

fn filters_of(link: u32, place: FilterPlace) -> TcMessage {
    let minor = match place {
        FilterPlace::Egress => TcHandle::MIN_EGRESS,
        FilterPlace::Xdp | FilterPlace::Ingress => TcHandle::MIN_INGRESS,
    };
    let mut message = TcMessage::default();
    message.header.index = link.cast_signed();
    message.header.parent = TcHandle {
        major: u16::MAX,
        minor,
    };
    message
}

fn parse_filter(
    payload: &[u8],
    link: u32,
    place: FilterPlace,
) -> Result<Option<DeviceFilter>, DecodeError> {
    let header = TcHeader::parse(payload)?;
    let mut filter = DeviceFilter {
        link,
        place,
        kind: String::new(),
        // Preference in the upper half, protocol in the lower.
        preference: Some((header.info >> 16) as u16),
        drops: None,
        program: None,
    };
    let mut options = None;
    for attribute in attributes(payload, HEADER_BYTES) {
        match attribute.kind() {
            TCA_KIND => filter.kind = parse_string(attribute.value())?,
            TCA_OPTIONS => options = Some(attribute.into_inner()),
            _ => {}
        }
    }
    // The first answer of each kind only announces it.
    let Some(options) = options else {
        return Ok(None);
    };
    let options = NlaBuffer::new_checked(options)?;
    let actions = match filter.kind.as_str() {
        "bpf" => 1,
        "matchall" | "flow" => 2,
        "flower" => 3,
        "u32" => 7,
        _ => u16::MAX,
    };
    let (mut id, mut name) = (None, None);
    for option in attributes(options.value(), 0) {
        match (filter.kind.as_str(), option.kind()) {
            (_, kind) if kind == actions => filter.drops = Some(drops(&option)),
            ("bpf", TCA_BPF_ID) => id = parse_u32(option.value()).ok(),
            ("bpf", TCA_BPF_NAME) => name = parse_string(option.value()).ok(),
            _ => {}
        }
    }
    // A direct action program decides by itself.
    filter.program = id.map(|id| BpfProgram { id, name });
    // u32 answers for its hash tables too, which do nothing.
    let acts = filter.program.is_some() || filter.drops.is_some();
    Ok(acts.then_some(filter))
}

/// Whether one of a filter's actions is to drop.
fn drops(actions: &NlaBuffer<&[u8]>) -> bool {
    attributes(actions.value(), 0).any(|action| {
        let fields = || attributes(action.value(), 0);
        let generic = fields()
            .filter(|field| field.kind() == TCA_ACT_KIND)
            .any(|field| parse_string(field.value()).is_ok_and(|kind| kind == "gact"));
        generic
            && fields()
                .filter(|field| field.kind() == TCA_ACT_OPTIONS)
                .any(|options| {
                    attributes(options.value(), 0)
                        .filter(|option| option.kind() == TCA_GACT_PARMS)
                        .filter_map(|option| {
                            let action = option.value().get(GACT_ACTION..)?.first_chunk()?;
                            Some(i32::from_ne_bytes(*action))
                        })
                        .any(|action| action == TC_ACT_SHOT)
                })
    })
}

/// TCX programs of the devices; none where the kernel has no TCX.
fn of_tcx(links: &[Link]) -> Vec<DeviceFilter> {
    let mut filters = Vec::new();
    for link in links.iter().take(MOST_DEVICES) {
        for (place, kind) in [
            (FilterPlace::Ingress, TcAttachType::Ingress),
            (FilterPlace::Egress, TcAttachType::Egress),
        ] {
            let Ok((_, programs)) = SchedClassifier::query_tcx(&link.name, kind) else {
                // Every other device would say the same; one that is gone costs no more than itself.
                if link.name == link::LOOPBACK {
                    return filters;
                }
                continue;
            };
            filters.extend(programs.iter().map(|program| DeviceFilter {
                link: link.index,
                place,
                kind: "tcx".to_owned(),
                preference: None,
                drops: None,
                program: Some(BpfProgram {
                    id: program.id(),
                    name: text(program.name()),
                }),
            }));
        }
    }
    filters
}

/// Names programs that are known by number alone.
fn name(filters: &mut [DeviceFilter]) {
    let mut unnamed: BTreeMap<u32, Vec<&mut BpfProgram>> = BTreeMap::new();
    for program in filters
        .iter_mut()
        .filter_map(|filter| filter.program.as_mut())
    {
        if program.name.is_none() {
            unnamed.entry(program.id).or_default().push(program);
        }
    }
    if unnamed.is_empty() {
        return;
    }
    // Without the right to look programs up their numbers have to do.
    for info in loaded_programs().take(MOST_PROGRAMS).map_while(Result::ok) {
        for program in unnamed.remove(&info.id()).into_iter().flatten() {
            program.name = text(info.name());
        }
    }
}

fn text(name: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(name).into_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An attribute: length, kind, value, padding.
    pub(in crate::node) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(info: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(info.to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    fn flower(action: i32) -> Vec<u8> {
        let mut parameters = vec![0; 20];
        parameters[GACT_ACTION..GACT_ACTION + 4].copy_from_slice(&action.to_ne_bytes());
        let options = attribute(TCA_ACT_OPTIONS, &attribute(TCA_GACT_PARMS, &parameters));
        let first = attribute(1, &[attribute(TCA_ACT_KIND, b"gact\0"), options].concat());
        message(
            49_152 << 16 | 8,
            &[
                attribute(TCA_KIND, b"flower\0"),
                attribute(TCA_OPTIONS, &attribute(3, &first)),
            ],
        )
    }

    #[test]
    fn an_action_that_drops_is_known() {
        for (action, drops) in [(TC_ACT_SHOT, true), (0, false)] {
            let found = parse_filter(&flower(action), 7, FilterPlace::Egress)
                .unwrap()
                .unwrap();
            assert_eq!(
                (found.kind.as_str(), found.drops, found.preference),
                ("flower", Some(drops), Some(49_152))
            );
        }
        for length in 0..flower(2).len() {
            let _ = parse_filter(&flower(2)[..length], 7, FilterPlace::Egress);
        }
    }

    #[test]
    fn a_program_is_named() {
        let options = [
            attribute(TCA_BPF_NAME, b"deny.o:[tc]\0"),
            attribute(TCA_BPF_ID, &17_u32.to_ne_bytes()),
        ];
        let bytes = message(
            1 << 16,
            &[
                attribute(TCA_KIND, b"bpf\0"),
                attribute(TCA_OPTIONS, &options.concat()),
            ],
        );
        let found = parse_filter(&bytes, 7, FilterPlace::Ingress)
            .unwrap()
            .unwrap();
        let program = found.program.unwrap();
        assert_eq!(
            (program.id, program.name.as_deref()),
            (17, Some("deny.o:[tc]"))
        );
    }
}
