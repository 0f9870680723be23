//! Leaves whole flows out while userspace asks for it.

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use tracer_ebpf::layout::Field;
use tracer_ebpf::sample::{self, MOST_LAYERS, NETWORK_BYTES, NOT_BEGUN};

use crate::filter::network_offset;
use crate::read::{self, Skb};

/// Flows with a number below this are left out, or [`NOT_BEGUN`]; userspace sets it.
#[map]
static LEAVE: Array<u32> = Array::with_max_entries(1, 0);

/// Events that were left out.
#[map]
static LEFT_OUT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// True when events are wanted.
#[inline(always)]
pub fn begun() -> bool {
    !matches!(LEAVE.get(0), Some(&NOT_BEGUN))
}

/// True when nothing is wanted yet; true, and counted, when the packet's flow is left out.
#[inline(always)]
pub fn leaves_out(skb: &Skb, at_link: u32) -> bool {
    let limit = match LEAVE.get(0) {
        Some(&NOT_BEGUN) => return true,
        Some(&limit) if limit != 0 => limit,
        _ => return false,
    };
    if black_box(flow(skb, at_link)) >= limit {
        return false;
    }
    if let Some(count) = LEFT_OUT.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot.
        unsafe { *count += 1 };
    }
    true
}

/// The number of the packet's flow; the highest, which is never left out, for what is no IP.
///
/// Not inlined, so that its stack is shared with what else the program calls.
#[inline(never)]
fn flow(skb: &Skb, at_link: u32) -> u32 {
    let head: u64 = skb.field(Field::SkbHead);
    let mut start = head + u64::from(network_offset(skb, at_link));
    let mut bytes = MaybeUninit::<[u8; NETWORK_BYTES]>::uninit();
    let mut behind = MaybeUninit::<[u8; 8]>::uninit();
    let mut protocol = 0;
    // The innermost packet is looked for first: what tells its flow is verified once then, not for each layer.
    for _ in 0..MOST_LAYERS {
        if !read::into(&mut bytes, start) {
            return u32::MAX;
        }
        // SAFETY: read just now.
        let Some(transport) = sample::transport(unsafe { bytes.assume_init_ref() }) else {
            return u32::MAX;
        };
        let length;
        (protocol, length) = transport;
        read::into(&mut behind, start + u64::from(length));
        // SAFETY: the helper zeroes what it cannot read.
        let further = sample::inside(protocol, length, unsafe { behind.assume_init() });
        if further == 0 {
            break;
        }
        start += u64::from(further);
    }
    // SAFETY: read at least once.
    unsafe { sample::flow(bytes.assume_init_ref(), protocol, behind.assume_init()) }
}
