//! Bodies of the hooks, one file per area. Each body takes arguments through [`Arguments`], so the
//! same code serves kprobe, fentry and tracepoint; the wrappers in `main.rs` are stamped by macro.
//!
//! Absent on purpose: no body decides anything. It says what happened and goes.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext};
use aya_log_ebpf::debug;
use network_types::eth::{EthHdr, EtherType};
use tracer_ebpf::event::{Detail, Event, Lost, PACKET_BYTES, valid};
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::Field;

use crate::filter::{self, Known};
use crate::read::{self, Skb, zero};
use crate::sampling;

pub mod bridge;
pub mod conntrack;
pub mod device;
pub mod drop;
pub mod ip;
pub mod ipvs;
pub mod neighbour;
pub mod netfilter;
pub mod socket;

/// Events on their way to userspace; the loader sets the real size.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Events lost, by [`Lost`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Lost::ALL.len() as u32, 0);

/// Namespaces to trace, when only some are wanted.
#[map]
static NAMESPACES: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

/// The skb that IPVS works on, per CPU, for its functions that are not given the skb.
#[map]
static CURRENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Arguments of the function or tracepoint that a program sits on.
pub trait Arguments {
    /// Argument number `index`, from 0.
    fn argument(&self, index: usize) -> Option<u64>;
}

impl Arguments for ProbeContext {
    #[inline(always)]
    fn argument(&self, index: usize) -> Option<u64> {
        self.arg(index)
    }
}

impl Arguments for FEntryContext {
    #[inline(always)]
    fn argument(&self, index: usize) -> Option<u64> {
        Some(self.arg(index))
    }
}

impl Arguments for BtfTracePointContext {
    #[inline(always)]
    fn argument(&self, index: usize) -> Option<u64> {
        Some(self.arg(index))
    }
}

#[inline(always)]
fn lost(how: Lost) {
    if let Some(count) = LOST.get_ptr_mut(how as u32) {
        // SAFETY: this CPU's own slot.
        unsafe { *count += 1 };
    }
}

/// Remembers the skb for the functions below it that are not given one.
#[inline(always)]
fn set_current(skb: u64) {
    if let Some(slot) = CURRENT.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot.
        unsafe { *slot = skb };
    }
}

/// The skb last remembered on this CPU.
#[inline(always)]
fn current() -> Option<u64> {
    CURRENT.get(0).copied().filter(|&skb| skb != 0)
}

/// True at the tracepoints, where every packet passes. Writing a message takes as much code as all else, and the verifier
/// looks at it also where it never runs.
#[inline(always)]
const fn says_so(hook: HookId) -> bool {
    matches!(
        hook,
        HookId::DeviceReceive | HookId::DeviceTransmit | HookId::Drop
    )
}

/// What leads to a packet's namespace.
#[derive(Clone, Copy)]
enum Namespace {
    /// The skb's device, else its socket.
    OfSkb,
    /// An argument: its address.
    At(u64),
    /// A field of an argument, read only when an event is written.
    In(u64, Field),
}

/// Where a packet was seen.
#[derive(Clone, Copy)]
struct Sight {
    hook: HookId,
    skb: u64,
    namespace: Namespace,
}

impl Sight {
    #[inline(always)]
    const fn new(hook: HookId, skb: u64) -> Self {
        Self {
            hook,
            skb,
            namespace: Namespace::OfSkb,
        }
    }

    #[inline(always)]
    const fn in_namespace(hook: HookId, skb: u64, net: u64) -> Self {
        Self {
            hook,
            skb,
            namespace: Namespace::At(net),
        }
    }

    /// The namespace is a field of the structure at `base`.
    #[inline(always)]
    const fn in_namespace_of(hook: HookId, skb: u64, base: u64, field: Field) -> Self {
        Self {
            hook,
            skb,
            namespace: Namespace::In(base, field),
        }
    }

    /// Emits an event without detail.
    #[inline(always)]
    fn emit(self) -> Option<()> {
        self.emit_with(|_, _| false)
    }

    /// Filters, reserves, fills and submits. `fill` writes the detail and says whether it did; it is
    /// given the skb's copy.
    #[inline(always)]
    fn emit_with(self, fill: impl FnOnce(&mut Detail, &Skb) -> bool) -> Option<()> {
        if sampling::left_out_before(self.hook, self.skb) {
            return None;
        }
        let mut copy = Skb::room();
        if filter::active() {
            self.follow(&mut copy)?;
        } else {
            self.read(&mut copy)?;
        }
        // Once only: it is most of a program.
        self.place().report(&copy, fill)
    }

    /// Copies the skb when the packet is followed; `None` when it is not.
    #[inline(always)]
    fn follow(self, copy: &mut Skb) -> Option<()> {
        let (hook, skb) = (self.hook, self.skb);
        let remembered = filter::remembered()?;
        let known = filter::known(hook, skb, remembered);
        if known == Known::NotFollowed || known == Known::NotByItself && filter::by_entry(skb) == 0
        {
            filter::passed(hook, skb, false, remembered);
            return None;
        }
        self.read(copy)?;
        if known != Known::Followed || filter::begins(hook, copy) {
            // Each costs a read of kernel memory, and few filters ask for them.
            let (mut device, mut net) = (0, 0);
            if filter::reads_place() {
                let place = self.place();
                (device, net) = (place.device, place.namespace());
            }
            if !filter::decides(hook, skb, copy, device, net, remembered) {
                filter::passed(hook, skb, false, remembered);
                return None;
            }
        }
        filter::keep(hook, skb, copy, remembered);
        filter::passed(hook, skb, true, remembered);
        Some(())
    }

    /// Copies the skb; `None` and a count when it cannot be read.
    #[inline(always)]
    fn read(self, copy: &mut Skb) -> Option<()> {
        if !copy.fill(self.skb) {
            if says_so(self.hook) {
                // Without the address: BTF programs may not take a kernel pointer apart.
                debug!(
                    (),
                    "hook {}: the packet buffer cannot be read", self.hook as u16
                );
            }
            lost(Lost::UnreadableSkb);
            return None;
        }
        Some(())
    }

    #[inline(always)]
    fn place(self) -> Place {
        Place {
            device: read::field(self.skb, Field::SkbDev),
            sight: self,
        }
    }
}

/// Where a packet is, as far as its skb says.
struct Place {
    sight: Sight,
    /// The skb's device; 0 when it has none.
    device: u64,
}

impl Place {
    /// The network namespace's address; 0 when nothing leads to it.
    #[inline(always)]
    fn namespace(&self) -> u64 {
        let mut net = match self.sight.namespace {
            Namespace::OfSkb => 0,
            Namespace::At(net) => net,
            Namespace::In(base, field) => read::field(base, field),
        };
        if net == 0 {
            net = read::field(self.device, Field::NetDeviceNet);
        }
        if net == 0 {
            let sock: u64 = read::field(self.sight.skb, Field::SkbSk);
            net = read::field(sock, Field::SockNet);
        }
        net
    }

    /// Reserves, fills and submits.
    #[inline(always)]
    fn report(self, skb: &Skb, fill: impl FnOnce(&mut Detail, &Skb) -> bool) -> Option<()> {
        let netns: u32 = read::field(self.namespace(), Field::NetInum);
        let ifindex: u32 = read::field(self.device, Field::NetDeviceIfindex);
        let Sight {
            hook, skb: address, ..
        } = self.sight;
        if !wanted(netns) || sampling::leaves_out(hook, address, skb, at_link(hook)) {
            return None;
        }
        let Some(mut slot) = EVENTS.reserve::<Event>(0) else {
            lost(Lost::RingFull);
            return None;
        };
        // SAFETY: the reservation is ours until submitted; every field is written below.
        let event = unsafe { &mut *slot.as_mut_ptr() };
        event.time_ns = unsafe { bpf_ktime_get_ns() };
        event.skb = self.sight.skb;
        event.hook = self.sight.hook as u16;
        event.length = skb.field(Field::SkbLen);
        event.mark = skb.field(Field::SkbMark);
        event.protocol = skb.field(Field::SkbProtocol);
        event.netns = netns;
        event.ifindex = ifindex;
        let mut bits = valid::SKB;
        if netns != 0 {
            bits |= valid::NETNS;
        }
        if ifindex != 0 {
            bits |= valid::IFINDEX;
        }
        // SAFETY: integers, which any value fits.
        zero(unsafe { &mut event.detail.words });
        if fill(&mut event.detail, skb) {
            bits |= valid::DETAIL;
        }
        event.packet_len = 0;
        event.network_offset = 0;
        if headers(event, skb, self.sight.hook) {
            bits |= valid::PACKET;
        }
        event.valid = bits;
        slot.submit(BPF_RB_NO_WAKEUP as u64);
        Some(())
    }
}

#[inline(always)]
fn wanted(netns: u32) -> bool {
    // SAFETY: the value is only tested for presence.
    !read::only_namespaces() || unsafe { NAMESPACES.get(&netns) }.is_some()
}

/// Emits an event of a function that works on the remembered skb; it carries no packet bytes.
#[inline(always)]
fn emit_current(hook: HookId, fill: impl FnOnce(&mut Detail) -> Option<()>) -> Option<()> {
    emit_bare(hook, current()?, 0, |detail| fill(detail).is_some())
}

/// Emits an event without packet bytes.
#[inline(always)]
fn emit_bare(
    hook: HookId,
    skb: u64,
    netns: u32,
    fill: impl FnOnce(&mut Detail) -> bool,
) -> Option<()> {
    if !sampling::begun() {
        return None;
    }
    let Some(mut slot) = EVENTS.reserve::<Event>(0) else {
        lost(Lost::RingFull);
        return None;
    };
    // SAFETY: as in `emit_with`.
    let event = unsafe { &mut *slot.as_mut_ptr() };
    event.time_ns = unsafe { bpf_ktime_get_ns() };
    event.skb = skb;
    event.netns = netns;
    event.ifindex = 0;
    event.length = 0;
    event.mark = 0;
    event.hook = hook as u16;
    event.protocol = 0;
    event.packet_len = 0;
    event.network_offset = 0;
    // SAFETY: integers, which any value fits.
    zero(unsafe { &mut event.detail.words });
    event.valid = if fill(&mut event.detail) {
        valid::DETAIL
    } else {
        0
    };
    if netns != 0 {
        event.valid |= valid::NETNS;
    }
    slot.submit(BPF_RB_NO_WAKEUP as u64);
    Some(())
}

/// Emits an event of a namespace that is about no packet.
#[inline(always)]
fn emit_without_packet(
    hook: HookId,
    netns: u32,
    fill: impl FnOnce(&mut Detail) -> bool,
) -> Option<()> {
    if !wanted(netns) {
        return None;
    }
    emit_bare(hook, 0, netns, fill)
}

/// 1 where the network header is not set yet and the data begins with it.
#[inline(always)]
fn at_link(hook: HookId) -> u32 {
    u32::from(matches!(hook, HookId::DeviceReceive))
}

/// Copies the packet's headers, from the link header where there is one; false when they cannot be
/// read.
#[inline(always)]
fn headers(event: &mut Event, skb: &Skb, hook: HookId) -> bool {
    let head: u64 = skb.field(Field::SkbHead);
    let tail: u32 = skb.field(Field::SkbTail);
    let network = filter::network_offset(skb, at_link(hook));
    let mac = u32::from(skb.field::<u16>(Field::SkbMacHeader));
    let link = network.wrapping_sub(mac);
    // Link and IPv6 headers together would push TCP's out of the event.
    let with_link = link == EthHdr::LEN as u32 && event.protocol != EtherType::Ipv6 as u16;
    let (start, link) = if with_link { (mac, link) } else { (network, 0) };
    let available = tail.wrapping_sub(start);
    if head == 0 || available > 1 << 20 {
        return false;
    }
    let count = if available > PACKET_BYTES as u32 {
        PACKET_BYTES as u32
    } else {
        available
    };
    let from = head.wrapping_add(u64::from(start));
    if !read::bytes(&mut event.packet, count as usize, from) {
        return false;
    }
    event.packet_len = count as u8;
    event.network_offset = link as u8;
    true
}
