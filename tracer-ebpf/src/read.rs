//! The only place that reads kernel memory.
//!
//! Offsets come from the globals that userspace filled from BTF. A field that this kernel lacks reads as zero.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use tracer_ebpf::layout::{ABSENT, FIELD_COUNT, Field, Layout, Settings, WINDOW_BYTES};

#[unsafe(no_mangle)]
static LAYOUT: Layout = Layout::UNKNOWN;

/// The same for fields of modules that were loaded after the programs; zeroes until then.
#[map]
static LATER: Array<Layout> = Array::with_max_entries(1, 0);

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    drop_reason: 0,
    only_namespaces: 0,
    filter: 0,
    window_start: 0,
    window_length: 0,
    window: [WINDOW_BYTES as u32; FIELD_COUNT],
};

/// True when the drop tracepoint has a reason argument.
#[inline(always)]
pub fn drop_reason() -> bool {
    // SAFETY: a valid static; volatile because the loader changes it before the program runs.
    unsafe { read_volatile(addr_of!(SETTINGS.drop_reason)) != 0 }
}

/// True when only the namespaces of the `NAMESPACES` map are wanted.
#[inline(always)]
pub fn only_namespaces() -> bool {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!(SETTINGS.only_namespaces)) != 0 }
}

/// True when one of these bits (`layout::filter`) is set; the verifier removes what is not.
#[inline(always)]
pub fn filter(bits: u32) -> bool {
    // SAFETY: as above.
    unsafe { read_volatile(addr_of!(SETTINGS.filter)) & bits != 0 }
}

/// Offset of a field in its structure; [`ABSENT`] where it is unknown.
#[inline(always)]
pub fn offset(field: Field) -> u64 {
    // SAFETY: as above; every `Field` is an index of the array.
    unsafe { read_volatile(addr_of!(LAYOUT.offset[field as usize])) }
}

/// Offset of a module's field, also where the module was loaded after the programs.
#[inline(always)]
pub fn module_offset(field: Field) -> Option<u64> {
    let offset = offset(field);
    if offset != ABSENT {
        return Some(offset);
    }
    let later = LATER.get(0)?;
    let known = later.size[field as usize] != 0;
    known.then_some(later.offset[field as usize])
}

/// Where both tuples of a conntrack entry are.
#[inline(always)]
pub fn tuples(entry: u64) -> [u64; 2] {
    let first = entry
        .wrapping_add(offset(Field::ConnTuplehash))
        .wrapping_add(offset(Field::TupleHashTuple));
    // SAFETY: as above.
    let both = unsafe { read_volatile(addr_of!(LAYOUT.size[Field::ConnTuplehash as usize])) };
    [first, first.wrapping_add(both / 2)]
}

/// Reads a value from any kernel address; `None` when the address does not map.
#[inline(always)]
pub fn memory<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes or fails; `T` is plain data at every call.
    unsafe {
        let failed = bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        (failed == 0).then(|| value.assume_init())
    }
}

/// Reads a value into its place; false when the address does not map.
#[inline(always)]
pub fn into<T: Copy>(to: &mut T, address: u64) -> bool {
    // SAFETY: as in `memory`.
    unsafe {
        bpf_probe_read_kernel(
            (to as *mut T).cast(),
            size_of::<T>() as u32,
            address as *const _,
        ) == 0
    }
}

/// Reads a field of the structure at `base`; zero where it cannot be read, as at the base 0.
///
/// Not an `Option`: what the compiler makes of one's absent payload is refused by 5.10's verifier.
/// Callers use it for what is never zero. Without a branch: a value known to be zero beside one that is not would
/// have the verifier go through all that follows twice.
#[inline(always)]
pub fn field<T: Copy>(base: u64, field: Field) -> T {
    number(base.wrapping_add(offset(field)))
}

/// The same for a field of a module.
#[inline(always)]
pub fn module_field<T: Copy + Default>(base: u64, field: Field) -> T {
    match module_offset(field) {
        Some(offset) => number(base.wrapping_add(offset)),
        None => T::default(),
    }
}

/// Reads an integer; zero where it cannot be read.
#[inline(always)]
fn number<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of it, zeroes where it fails (`bpf_probe_read_kernel_common`); `T` is an integer at
    // every call.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}

/// Reads `count` bytes (at most `N`) into `to`.
#[inline(always)]
pub fn bytes<const N: usize>(to: &mut [u8; N], count: usize, address: u64) -> bool {
    let count = if count > N { N } else { count };
    // SAFETY: `count` is within `to`.
    unsafe { bpf_probe_read_kernel(to.as_mut_ptr().cast(), count as u32, address as *const _) == 0 }
}

/// Zeroes words one by one: an assignment becomes a loop over their bytes.
#[inline(always)]
pub fn zero(words: &mut [u64]) {
    for word in words {
        // SAFETY: a reference; volatile, so that the compiler does not join the words again.
        unsafe { write_volatile(word, 0) };
    }
}

/// A copy of the part of an `sk_buff` that holds the fields of `layout::in_window`: one read instead
/// of one per field.
#[repr(C, align(8))]
pub struct Skb {
    bytes: MaybeUninit<[u8; WINDOW_BYTES]>,
    /// Zero: where fields lie that this kernel does not have.
    absent: MaybeUninit<u64>,
}

impl Skb {
    /// Room for a copy. It is filled in place, since a move would not fit the stack twice.
    #[inline(always)]
    pub const fn room() -> Self {
        Self {
            bytes: MaybeUninit::uninit(),
            absent: MaybeUninit::uninit(),
        }
    }

    /// Copies from the `sk_buff` at `address`; false when it cannot be read.
    #[inline(always)]
    pub fn fill(&mut self, address: u64) -> bool {
        // SAFETY: a valid static, as above.
        let (start, length) = unsafe {
            (
                read_volatile(addr_of!(SETTINGS.window_start)),
                read_volatile(addr_of!(SETTINGS.window_length)),
            )
        };
        if length > WINDOW_BYTES as u32 {
            return false;
        }
        self.absent.write(0);
        // SAFETY: the helper writes at most the room's bytes, zeroes on failure.
        unsafe {
            bpf_probe_read_kernel(
                self.bytes.as_mut_ptr().cast(),
                length,
                (address + u64::from(start)) as *const _,
            ) == 0
        }
    }

    /// A field of the copy; zero where this kernel has none.
    #[inline(always)]
    pub fn field<T: Copy>(&self, field: Field) -> T {
        // SAFETY: as above; every `Field` is an index of the array.
        let offset = unsafe { read_volatile(addr_of!(SETTINGS.window[field as usize])) } as usize;
        // SAFETY: the loader's offsets lie in the copy, which the verifier checks, as they are constants to it. `fill`
        // wrote all of it, and fields are aligned in it as the kernel aligns them, since the window begins at a
        // multiple of eight bytes.
        unsafe {
            (self as *const Self)
                .cast::<u8>()
                .add(offset)
                .cast::<T>()
                .read()
        }
    }
}
