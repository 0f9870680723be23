//! Flows that are followed though the program itself does not match their addresses.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracer_ebpf::header::Network;
use tracer_ebpf::program::Key;

use super::{FLOWS_USED, set_used, used};

/// Addresses of followed flows that the program itself does not match, and datagrams in fragments.
#[map]
static FLOWS: LruHashMap<FlowKey, u8> = LruHashMap::with_max_entries(16_384, 0);

/// Both ends of a flow, the same for both directions.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlowKey {
    lower: [u64; 2],
    higher: [u64; 2],
    lower_port: u16,
    higher_port: u16,
    protocol: u8,
    /// 1 when the ports are the identification of a datagram in fragments.
    fragment: u8,
    reserved: u16,
}

/// Follows a flow from now on.
#[inline(always)]
pub fn remember_flow(key: &FlowKey) {
    if FLOWS.insert(key, &1, 0).is_ok() {
        set_used(FLOWS_USED);
    }
}

/// Follows the fragments of a datagram.
#[inline(never)]
pub fn remember_datagram(found: &Network) -> u32 {
    remember_flow(&FlowKey::fragment(found));
    0
}

/// 1 when the addresses are those of a followed flow.
#[inline(never)]
pub fn flow_known(key: &Key) -> u32 {
    let known =
        used(FLOWS_USED) && key.source_port != 0 && FLOWS.get_ptr(FlowKey::of(key)).is_some();
    u32::from(known)
}

/// 1 when a fragment's datagram is followed.
#[inline(never)]
pub fn datagram_known(found: &Network) -> u32 {
    u32::from(used(FLOWS_USED) && FLOWS.get_ptr(FlowKey::fragment(found)).is_some())
}

impl FlowKey {
    /// A flow by its addresses and ports.
    #[inline(always)]
    pub fn of(key: &Key) -> Self {
        let [one, two] = [
            (key.source, key.source_port),
            (key.destination, key.destination_port),
        ];
        let in_order = one.0[0] < two.0[0]
            || one.0[0] == two.0[0]
                && (one.0[1] < two.0[1] || one.0[1] == two.0[1] && one.1 <= two.1);
        let (lower, higher) = if in_order { (one, two) } else { (two, one) };
        Self {
            lower: lower.0,
            higher: higher.0,
            lower_port: lower.1,
            higher_port: higher.1,
            protocol: key.protocol,
            fragment: 0,
            reserved: 0,
        }
    }

    /// A datagram in fragments.
    #[inline(always)]
    fn fragment(found: &Network) -> Self {
        Self {
            lower: found.key.source,
            higher: found.key.destination,
            lower_port: found.datagram as u16,
            higher_port: (found.datagram >> 16) as u16,
            protocol: found.key.protocol,
            fragment: 1,
            reserved: 0,
        }
    }
}
