//! Leaves whole flows out while userspace asks for it.
//!
//! That a packet was left out is kept per CPU for the hooks that it passes next, so that they do not even read it.
//! Invariants: hooks where a packet may begin always ask anew, and nothing is kept behind a hook that may be a packet's
//! last, so that what begins in its skb is asked about.

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;
use tracer_ebpf::sample::{self, NETWORK_WORDS, NOT_BEGUN};

use crate::filter::{self, network_offset};
use crate::read::{self, Skb};

/// Flows with a number below this are left out, or [`NOT_BEGUN`]; userspace sets it.
#[map]
static LEAVE: Array<u32> = Array::with_max_entries(1, 0);

/// What was left out.
#[map]
static LEFT_OUT: PerCpuArray<LeftOut> = PerCpuArray::with_max_entries(1, 0);

/// True when events are wanted.
#[inline(always)]
pub fn begun() -> bool {
    !matches!(LEAVE.get(0), Some(&NOT_BEGUN))
}

/// True, and counted, when the packet in this skb was left out at the hook before.
#[inline(always)]
pub fn left_out_before(hook: HookId, skb: u64) -> bool {
    // A filter has to see where a packet gets other addresses, and where it ends.
    let filter_needs = filter::active() && (!goes_on(hook) || rewrites(hook));
    if may_begin(hook) || filter_needs || read::only_namespaces() {
        return false;
    }
    if !LEAVE.get(0).is_some_and(|&limit| limit != 0) {
        return false;
    }
    let Some(left_out) = left_out() else {
        return false;
    };
    if left_out.skb != skb {
        return false;
    }
    left_out.add(hook, skb);
    true
}

/// True when nothing is wanted yet; true, and counted, when the packet's flow is left out.
#[inline(always)]
pub fn leaves_out(hook: HookId, skb: u64, copy: &Skb, at_link: u32) -> bool {
    let limit = match LEAVE.get(0) {
        Some(&NOT_BEGUN) => return true,
        Some(&limit) if limit != 0 => limit,
        _ => return false,
    };
    let leaves = black_box(flow(copy, at_link)) < limit;
    if let Some(left_out) = left_out() {
        if leaves {
            left_out.add(hook, skb);
        } else if left_out.skb == skb {
            left_out.skb = 0;
        }
    }
    leaves
}

/// What was left out on one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
struct LeftOut {
    /// Events.
    events: u64,
    /// The skb last left out, until its packet may have ended; 0 for none.
    skb: u64,
}

impl LeftOut {
    #[inline(always)]
    const fn add(&mut self, hook: HookId, skb: u64) {
        self.events += 1;
        self.skb = if goes_on(hook) { skb } else { 0 };
    }
}

#[inline(always)]
fn left_out() -> Option<&'static mut LeftOut> {
    // SAFETY: this CPU's own slot; an interrupt in between may cost it a count, or leave another packet's skb.
    LEFT_OUT.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

/// True where a packet may come from nowhere.
#[inline(always)]
const fn may_begin(hook: HookId) -> bool {
    matches!(
        hook,
        HookId::DeviceReceive | HookId::DeviceTransmit | HookId::LocalOut | HookId::Local6Out
    )
}

/// True where NAT gives packets other addresses.
#[inline(always)]
const fn rewrites(hook: HookId) -> bool {
    matches!(
        hook,
        HookId::Nat | HookId::IpvsNatTransmit | HookId::IpvsNat6Transmit | HookId::IpvsReply
    )
}

/// True where every packet comes to one more hook, be it that of its drop.
#[inline(always)]
const fn goes_on(hook: HookId) -> bool {
    matches!(
        hook,
        HookId::DeviceReceive
            | HookId::BridgeReceive
            | HookId::BridgeForward
            | HookId::BridgeTransmit
            | HookId::BridgeLocal
            | HookId::Ip4Receive
            | HookId::Ip6Receive
            | HookId::RouteInput
            | HookId::LocalDeliver
            | HookId::Forward
            | HookId::Forward6
            | HookId::LocalOut
            | HookId::Local6Out
            | HookId::Output
            | HookId::Output6
            | HookId::OutputFinish
            | HookId::Output6Finish
            | HookId::NetfilterHook
            | HookId::ConntrackTcp
            | HookId::ConntrackUdp
            | HookId::ConntrackIcmp
            | HookId::ConntrackIcmp6
            | HookId::ConntrackConfirm
            | HookId::Nat
            | HookId::IpvsLookup
            | HookId::IpvsSchedule
            | HookId::IpvsNatTransmit
            | HookId::IpvsNat6Transmit
            | HookId::IpvsReply
            | HookId::TcpReceive
            | HookId::Tcp6Receive
            | HookId::UdpReceive
            | HookId::Udp6Receive
    )
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
