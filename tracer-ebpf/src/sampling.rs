//! Leaves whole flows out while userspace asks for it.

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use tracer_ebpf::layout::Field;
use tracer_ebpf::sample::{self, NETWORK_WORDS, NOT_BEGUN};

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
    let mut packet = Headers {
        network: MaybeUninit::uninit(),
        behind: MaybeUninit::uninit(),
    };
    // Not unrolled: the code would be thrice as long. The verifier follows whole words through memory only.
    let mut layers = black_box(u64::from(sample::LAYERS));
    loop {
        let Some((protocol, length)) = packet.read(start) else {
            return u32::MAX;
        };
        let carried = sample::carried(protocol, length, packet.behind());
        layers -= 1;
        if carried == 0 || layers == 0 {
            break;
        }
        start += u64::from(carried);
    }
    // Looked at anew: what the verifier learned of it on each way here would have it go on once for each.
    let packet = black_box(&packet);
    sample::flow(packet.network(), packet.behind())
}

/// A network header and what is behind it.
struct Headers {
    network: MaybeUninit<[u32; NETWORK_WORDS]>,
    behind: MaybeUninit<[u32; 2]>,
}

impl Headers {
    /// Reads them; see [`sample::transport`].
    #[inline(always)]
    fn read(&mut self, start: u64) -> Option<(u8, u32)> {
        if !read::into(&mut self.network, start) {
            return None;
        }
        let (protocol, length) = sample::transport(self.network())?;
        read::into(&mut self.behind, start + u64::from(length));
        Some((protocol, length))
    }

    #[inline(always)]
    fn network(&self) -> &[u32; NETWORK_WORDS] {
        // SAFETY: called behind a read, which writes all of it, zeroes where it fails.
        unsafe { self.network.assume_init_ref() }
    }

    #[inline(always)]
    fn behind(&self) -> [u32; 2] {
        // SAFETY: as above.
        unsafe { self.behind.assume_init() }
    }
}
