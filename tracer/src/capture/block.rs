//! pcapng's framing (draft-ietf-opsawg-pcapng): blocks, options, byte orders.

/// Section header block.
pub(super) const SECTION: u32 = 0x0a0d_0d0a;
/// Interface description block.
pub(super) const INTERFACE: u32 = 1;
/// The packet block that the enhanced one replaced.
pub(super) const OLD_PACKET: u32 = 2;
/// Simple packet block.
pub(super) const SIMPLE_PACKET: u32 = 3;
/// Name resolution block.
pub(super) const NAMES: u32 = 4;
/// Interface statistics block.
pub(super) const STATISTICS: u32 = 5;
/// Enhanced packet block.
pub(super) const PACKET: u32 = 6;
/// Custom block that may be copied into changed files.
pub(super) const CUSTOM: u32 = 0x0bad;

/// The byte-order magic of a section header.
pub(super) const ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// Codes of options.
pub(super) mod option {
    pub(in super::super) const END: u16 = 0;
    pub(in super::super) const COMMENT: u16 = 1;
    /// Binary custom option that may be copied.
    pub(in super::super) const CUSTOM: u16 = 2989;
    pub(in super::super) const SECTION_HARDWARE: u16 = 2;
    pub(in super::super) const SECTION_SYSTEM: u16 = 3;
    pub(in super::super) const SECTION_PROGRAM: u16 = 4;
    pub(in super::super) const INTERFACE_NAME: u16 = 2;
    pub(in super::super) const INTERFACE_DESCRIPTION: u16 = 3;
    pub(in super::super) const INTERFACE_RESOLUTION: u16 = 9;
    pub(in super::super) const INTERFACE_OFFSET: u16 = 14;
    pub(in super::super) const PACKET_FLAGS: u16 = 2;
    pub(in super::super) const PACKET_ID: u16 = 5;
    pub(in super::super) const STATISTICS_RECEIVED: u16 = 4;
    pub(in super::super) const STATISTICS_DROPPED: u16 = 5;
}

/// Length of an Ethernet header; every packet of ours has one.
pub(super) const ETHERNET_HEADER: usize = 14;

/// Link types (`LINKTYPE_*`).
pub(super) mod link {
    pub(in super::super) const ETHERNET: u16 = 1;
    /// IPv4 or IPv6 without a link header.
    pub(in super::super) const RAW: u16 = 101;
    /// The same by its OpenBSD and Linux numbers.
    pub(in super::super) const RAW_OLD: [u16; 2] = [12, 14];
    pub(in super::super) const NULL: u16 = 0;
    pub(in super::super) const LOOP: u16 = 108;
    pub(in super::super) const COOKED: u16 = 113;
    pub(in super::super) const COOKED2: u16 = 276;
    pub(in super::super) const IP4: u16 = 228;
    pub(in super::super) const IP6: u16 = 229;
}

/// Byte order of a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    /// The number at a place; `None` beyond the end.
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }

    /// The number at a place; `None` beyond the end.
    pub(super) fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }

    /// The number at a place; `None` beyond the end.
    pub(super) fn u64(self, bytes: &[u8], at: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
        Some(match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        })
    }
}

/// Options of a block: code and value, up to the end or to the first that does not fit.
pub(super) struct OptionList<'a> {
    pub(super) order: Order,
    pub(super) bytes: &'a [u8],
}

impl<'a> Iterator for OptionList<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let code = self.order.u16(self.bytes, 0)?;
        let length = usize::from(self.order.u16(self.bytes, 2)?);
        if code == option::END {
            return None;
        }
        let value = self.bytes.get(4..4 + length)?;
        self.bytes = self.bytes.get(4 + padded(length)..).unwrap_or_default();
        Some((code, value))
    }
}

/// A length with its padding to 32 bits.
pub(super) const fn padded(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// A block that is being written, little-endian, at the end of a buffer.
pub(super) struct Builder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    options: bool,
}

impl<'a> Builder<'a> {
    /// Begins a block.
    pub(super) fn new(out: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = out.len();
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        Self {
            out,
            start,
            options: false,
        }
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes with their padding.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.out
            .extend_from_slice(&[0; 3][..padded(bytes.len()) - bytes.len()]);
    }

    /// An option; a value longer than an option can be is cut.
    pub(super) fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.options = true;
        self.u16(code);
        self.u16(value.len() as u16);
        self.bytes(value);
    }

    /// A text option, cut between characters where it is too long.
    pub(super) fn text(&mut self, code: u16, text: &str) {
        let end = text.floor_char_boundary(usize::from(u16::MAX));
        self.option(code, &text.as_bytes()[..end]);
    }

    /// An option of ours.
    pub(super) fn custom(&mut self, value: &[u8]) {
        self.options = true;
        self.u16(option::CUSTOM);
        self.u16((4 + value.len()) as u16);
        self.u32(super::ENTERPRISE);
        self.bytes(value);
    }

    /// Ends the block.
    pub(super) fn end(mut self) {
        if self.options {
            self.u32(0);
        }
        let length = (self.out.len() - self.start + 4) as u32;
        self.u32(length);
        self.out[self.start + 4..self.start + 8].copy_from_slice(&length.to_le_bytes());
    }
}
