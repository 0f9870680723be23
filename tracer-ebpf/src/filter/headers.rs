//! From an skb to the headers that the filter looks at.

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use network_types::eth::EtherType;
use tracer_ebpf::header::{NETWORK_BYTES, Network, TRANSPORT_BYTES, ethertype};
use tracer_ebpf::layout::Field;

use crate::read::{self, Skb};

/// No headers yet.
///
/// Zeroed by a read that fails at once: the verifier then knows nothing of what is in it. Paths that
/// differ only in which words are known to be zero would each be verified by themselves.
///
/// In place, since a move would not fit the stack twice.
#[inline(always)]
pub fn empty(room: &mut MaybeUninit<Network>) -> &mut Network {
    // SAFETY: the helper zeroes all of it, since nothing is mapped at 0, and every field may be zero.
    unsafe {
        bpf_probe_read_kernel(
            room.as_mut_ptr().cast(),
            size_of::<Network>() as u32,
            core::ptr::null(),
        );
        room.assume_init_mut()
    }
}

/// Where the network header begins, from the start of the buffer.
#[inline(always)]
pub fn network_offset(copy: &Skb, at_link: u32) -> u32 {
    // The tracepoint of device receive fires before the network header is set.
    if at_link != 0 {
        let head: u64 = copy.field(Field::SkbHead);
        copy.field::<u64>(Field::SkbData).wrapping_sub(head) as u32
    } else {
        u32::from(copy.field::<u16>(Field::SkbNetworkHeader))
    }
}

/// Reads the headers of an skb.
#[inline(always)]
pub fn read_packet(copy: &Skb, at_link: u32, found: &mut Network) {
    let protocol = copy.field::<u16>(Field::SkbProtocol);
    black_box(read_headers(
        copy,
        network_offset(copy, at_link),
        u32::from(protocol),
        found,
    ));
}

/// True for the EtherTypes of IP, in network order, and for none: local output has no EtherType yet.
#[inline(always)]
pub const fn may_be_ip(protocol: u16) -> bool {
    protocol == 0 || protocol == EtherType::Ipv4 as u16 || protocol == EtherType::Ipv6 as u16
}

/// Reads headers at an offset of the buffer; 0 when there are none, or no more than the network's. The protocol is an
/// EtherType in network order; IP goes by its version.
#[inline(never)]
pub fn read_headers(copy: &Skb, offset: u32, protocol: u32, found: &mut Network) -> u32 {
    let head: u64 = copy.field(Field::SkbHead);
    let tail: u32 = copy.field(Field::SkbTail);
    let available = tail.wrapping_sub(offset);
    if head == 0 || available > 1 << 20 {
        return 0;
    }
    let start = head + u64::from(offset);
    let mut room = MaybeUninit::<Headers>::uninit();
    if !read::into(&mut room, start) {
        return 0;
    }
    // SAFETY: read just now.
    let headers = unsafe { room.assume_init_ref() };
    let bytes = headers.network();
    let protocol = protocol as u16;
    let kind = if protocol == EtherType::Arp as u16 {
        ethertype::ARP
    } else if may_be_ip(protocol) {
        match bytes[0] >> 4 {
            4 => ethertype::IPV4,
            6 => ethertype::IPV6,
            _ => return 0,
        }
    } else {
        return 0;
    };
    found.read(bytes, kind);
    let transport = u32::from(found.transport);
    if transport == 0 || available < transport + TRANSPORT_BYTES as u32 {
        return 0;
    }
    // Looked at once, wherever it is: the verifier goes through that for each place.
    let behind = match transport {
        20 => headers.behind4(),
        40 => headers.behind6(),
        other => match read::memory(start + u64::from(other)) {
            Some(behind) => behind,
            None => return 0,
        },
    };
    found.read_transport(&bytes_of(behind));
    1
}

/// What lies where headers usually do: read at once.
#[repr(C)]
#[derive(Clone, Copy)]
struct Headers {
    /// A network header, and what is behind IPv6's.
    words: [u32; (NETWORK_BYTES + TRANSPORT_BYTES) / 4],
}

impl Headers {
    #[inline(always)]
    fn network(&self) -> &[u8; NETWORK_BYTES] {
        // SAFETY: the first bytes of a longer array.
        unsafe { &*self.words.as_ptr().cast() }
    }

    /// What is behind IPv4's header without options.
    #[inline(always)]
    const fn behind4(&self) -> [u32; 2] {
        [self.words[5], self.words[6]]
    }

    /// What is behind IPv6's fixed header.
    #[inline(always)]
    const fn behind6(&self) -> [u32; 2] {
        [self.words[10], self.words[11]]
    }
}

#[inline(always)]
const fn bytes_of(words: [u32; 2]) -> [u8; TRANSPORT_BYTES] {
    let (one, two) = (words[0].to_ne_bytes(), words[1].to_ne_bytes());
    [
        one[0], one[1], one[2], one[3], two[0], two[1], two[2], two[3],
    ]
}
