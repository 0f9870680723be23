//! Queueing disciplines of the devices (`tc qdisc`), and how many packets each dropped.
//!
//! Attributes are those of the kernel's `linux/rtnetlink.h` and `linux/gen_stats.h`.

use netlink_packet_core::{DecodeError, parse_string};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use serde::{Deserialize, Serialize};

use super::Missing;
use super::netlink::{Conversation, attributes};
use super::table::rows_or_missing;

/// A device with many queues has a discipline for each.
const EACH_DEVICE: usize = 64;
const LIMIT: usize = 4_096;

const HEADER_BYTES: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
/// `drops` in `struct gnet_stats_queue`, behind `qlen` and `backlog`.
const QUEUE_DROPS: usize = 8;

/// A queueing discipline of a device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct QueueDiscipline {
    /// Index of the device.
    pub link: u32,
    /// What it is, as `tc` names it: `fq_codel`, `tbf`, `netem`.
    pub kind: String,
    /// It is the device's own, not one inside another.
    pub root: bool,
    /// Packets that it dropped since it was set up; `None` where the kernel does not say.
    pub dropped: Option<u32>,
}

impl QueueDiscipline {
    /// It keeps no packets: it only holds filters.
    pub(super) fn is_for_filters(&self) -> bool {
        matches!(self.kind.as_str(), "clsact" | "ingress")
    }
}

/// The disciplines of these devices, without those of devices that send at once.
pub(super) fn read(
    route: &mut Conversation,
    devices: usize,
    missing: &mut Vec<Missing>,
) -> Vec<QueueDiscipline> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let result = route.dump(request, LIMIT.max(devices * EACH_DEVICE), parse);
    rows_or_missing("queueing disciplines", result, missing)
}

fn parse(payload: &[u8]) -> Result<Option<QueueDiscipline>, DecodeError> {
    let header = TcHeader::parse(payload)?;
    let mut queue = QueueDiscipline {
        link: header.index.cast_unsigned(),
        kind: String::new(),
        root: header.parent == TcHandle::ROOT,
        dropped: None,
    };
    for attribute in attributes(payload, HEADER_BYTES) {
        match attribute.kind() {
            TCA_KIND => queue.kind = parse_string(attribute.value())?,
            TCA_STATS2 => {
                queue.dropped = attributes(attribute.value(), 0)
                    .filter(|counts| counts.kind() == TCA_STATS_QUEUE)
                    .find_map(|counts| {
                        let drops = counts.value().get(QUEUE_DROPS..)?.first_chunk()?;
                        Some(u32::from_ne_bytes(*drops))
                    });
            }
            _ => {}
        }
    }
    Ok((queue.kind != "noqueue").then_some(queue))
}

#[cfg(test)]
mod tests {
    use super::super::device_filter::tests::attribute;
    use super::*;

    fn message(parent: u32, kind: &[u8]) -> Vec<u8> {
        let counts: Vec<u8> = [3_u32, 180, 7, 0, 0]
            .iter()
            .flat_map(|count| count.to_ne_bytes())
            .collect();
        let mut bytes = vec![0; 4];
        bytes.extend(5_i32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(parent.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(attribute(TCA_KIND, kind));
        bytes.extend(attribute(TCA_STATS2, &attribute(TCA_STATS_QUEUE, &counts)));
        bytes
    }

    #[test]
    fn what_a_queue_dropped_is_known() {
        let bytes = message(u32::MAX, b"tbf\0");
        let wanted = QueueDiscipline {
            link: 5,
            kind: "tbf".into(),
            root: true,
            dropped: Some(7),
        };
        assert_eq!(parse(&bytes).unwrap(), Some(wanted));
        assert!(!parse(&message(0x8001_0000, b"fq\0")).unwrap().unwrap().root);
        assert_eq!(parse(&message(u32::MAX, b"noqueue\0")).unwrap(), None);
        for length in 0..bytes.len() {
            let _ = parse(&bytes[..length]);
        }
    }

    #[test]
    fn only_disciplines_that_hold_filters_are_for_them() {
        for (kind, expected) in [(&b"clsact\0"[..], true), (b"fq_codel\0", false)] {
            let queue = parse(&message(0xffff_fff1, kind)).unwrap().unwrap();
            assert_eq!(queue.is_for_filters(), expected);
        }
    }
}
