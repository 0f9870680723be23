//! Reads the kernel's BTF type information: member offsets, enum names, function arguments.
//!
//! Format: Documentation/bpf/btf.rst. Read are the kernel's own and that of one module on top of it:
//! ip_vs, whose connections no other BTF describes.

use std::ffi::CStr;
use std::fs;
use std::hash::BuildHasher as _;
use std::ops::Range;

use hashbrown::{DefaultHashBuilder, HashTable};
use thiserror::Error;

const MAGIC: u16 = 0xeb9f;
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
/// Nested anonymous members and typedef chains deeper than this are taken for damage.
const MAX_DEPTH: usize = 32;
/// Bytes of types for each that is found by its name, about; only the table's first size hangs on it.
const BYTES_A_NAME: usize = 40;
/// Bytes kept free for a module's type information, so that adding it moves nothing.
const ROOM_FOR_MODULE: usize = 1 << 20;

/// Why type information cannot be used.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file is not there or not readable.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not BTF.
    #[error("type information is damaged at byte {position}: {what}")]
    Damaged {
        /// Position in the file.
        position: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// Kinds of types that are looked at (`BTF_KIND_*`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const POINTER: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FORWARD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNCTION: u32 = 12;
    pub(super) const PROTOTYPE: u32 = 13;
    pub(super) const VARIABLE: u32 = 14;
    pub(super) const SECTION: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECLARATION_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Where a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Bytes from the start of the structure.
    pub offset: u32,
    /// Bytes of the member's type.
    pub size: u32,
}

/// Type information of the running kernel.
pub struct Btf {
    data: Vec<u8>,
    /// Where names are in `data`; a module's are counted on from the kernel's.
    strings: Vec<Range<usize>>,
    /// Position of each type in `data`; the first has id 1, a module's follow the kernel's.
    types: Vec<u32>,
    /// Structures, unions and enums, and the kernel's own functions and typedefs: the hash of the name
    /// and the id.
    names: HashTable<(u64, u32)>,
    hasher: DefaultHashBuilder,
}

impl Btf {
    /// What the running kernel describes.
    ///
    /// # Errors
    /// When the kernel has none (CONFIG_DEBUG_INFO_BTF) or it is damaged.
    pub fn running() -> Result<Self, BtfError> {
        let path = "/sys/kernel/btf/vmlinux";
        let data = fs::read(path).map_err(|source| BtfError::Read {
            path: path.into(),
            source,
        })?;
        let mut btf = Self::parse(&data)?;
        // Not there: not loaded, or a kernel without type information of modules (5.10). Its fields stay
        // unknown then, as they do where it is damaged.
        if let Ok(module) = fs::read("/sys/kernel/btf/ip_vs") {
            let _ = btf.add(&module);
        }
        Ok(btf)
    }

    /// Offset and size of a member by its dotted path, through anonymous members and arrays of one
    /// dimension only at the end of the path.
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        let mut type_id = self.composite(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member_type) = self.find_member(type_id, name, 0)?;
            offset += bits / 8;
            type_id = member_type;
        }
        Some(Member {
            offset,
            size: self.size(type_id, 0)?,
        })
    }

    /// Values of an enum with their names, in order.
    pub fn enumeration(&self, name: &str) -> Option<Vec<(String, i64)>> {
        let id = self.named(name, |found| matches!(found, kind::ENUM | kind::ENUM64))?;
        let position = self.locate(id)?;
        let info = self.word(position + 4)?;
        let wide = kind_of(info) == kind::ENUM64;
        let step = if wide { 12 } else { 8 };
        (0..length_of(info))
            .map(|index| {
                let entry = position + 12 + index * step;
                let low = self.word(entry + 4)?;
                let value = if wide {
                    (i64::from(self.word(entry + 8)?) << 32) | i64::from(low)
                } else {
                    i64::from(low.cast_signed())
                };
                Some((self.string(self.word(entry)?)?.to_owned(), value))
            })
            .collect()
    }

    /// Number of arguments of a function of the kernel itself; `None` when it is not described or takes a
    /// variable number.
    pub fn arguments(&self, function: &str) -> Option<usize> {
        let id = self.named(function, |found| found == kind::FUNCTION)?;
        let position = self.locate(id)?;
        let position = self.locate(self.word(position + 8)?)?;
        let info = self.word(position + 4)?;
        if kind_of(info) != kind::PROTOTYPE {
            return None;
        }
        let count = length_of(info);
        if count > 0 && self.word(position + 12 + (count - 1) * 8 + 4)? == 0 {
            return None;
        }
        Some(count)
    }

    /// BTF in which only the kernel's own functions and typedefs of these names are, with their ids: for
    /// who looks a name up by going through all types.
    pub fn outline(&self, names: &[impl AsRef<str>]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut found = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            for kind in [kind::FUNCTION, kind::TYPEDEF] {
                if let Some(id) = self.named(name, |found| found == kind) {
                    found.push((id, [strings.len() as u32, kind << 24, 0]));
                }
            }
            strings.extend(name.bytes().chain([0]));
        }
        let count = found.iter().map(|&(id, _)| id).max().unwrap_or_default();
        let mut types = vec![[0, kind::FORWARD << 24, 0]; count as usize];
        for (id, record) in found {
            types[id as usize - 1] = record;
        }
        let types = types.as_flattened();
        let length = 4 * types.len() as u32;
        let magic = u32::from(MAGIC) | VERSION << 16;
        let header = [
            magic,
            HEADER_BYTES as u32,
            0,
            length,
            length,
            strings.len() as u32,
        ];
        let words = header.iter().chain(types);
        words
            .flat_map(|word| word.to_le_bytes())
            .chain(strings)
            .collect()
    }

    fn composite(&self, name: &str) -> Option<u32> {
        self.named(name, |found| matches!(found, kind::STRUCT | kind::UNION))
    }

    fn named(&self, name: &str, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let is_it = |id| {
            let position = self.locate(id)?;
            let info = self.word(position + 4)?;
            Some(wanted(kind_of(info)) && self.name(self.word(position)?)? == name.as_bytes())
        };
        let hash = self.hasher.hash_one(name.as_bytes());
        let ids = self.names.iter_hash(hash).map(|&(_, id)| id);
        ids.filter(|&id| is_it(id) == Some(true)).min()
    }

    /// Where a type's record is.
    fn locate(&self, id: u32) -> Option<usize> {
        self.types
            .get(id.checked_sub(1)? as usize)
            .map(|&position| position as usize)
    }

    /// Bit offset and type of a member, looking through anonymous structures and unions.
    fn find_member(&self, type_id: u32, name: &str, depth: usize) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        let position = self.locate(self.resolve(type_id)?)?;
        let info = self.word(position + 4)?;
        if !matches!(kind_of(info), kind::STRUCT | kind::UNION) {
            return None;
        }
        let bitfields = info >> 31 == 1;
        for index in 0..length_of(info) {
            let entry = position + 12 + index * 12;
            let member_name = self.string(self.word(entry)?)?;
            let member_type = self.word(entry + 4)?;
            let raw = self.word(entry + 8)?;
            let bits = if bitfields { raw & 0x00ff_ffff } else { raw };
            if member_name == name {
                return Some((bits, member_type));
            }
            if member_name.is_empty()
                && let Some((inner, found)) = self.find_member(member_type, name, depth + 1)
            {
                return Some((bits + inner, found));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            let position = self.locate(id)?;
            let info = self.word(position + 4)?;
            match kind_of(info) {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = self.word(position + 8)?;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn size(&self, id: u32, depth: usize) -> Option<u32> {
        if depth > MAX_DEPTH {
            return None;
        }
        let position = self.locate(self.resolve(id)?)?;
        let info = self.word(position + 4)?;
        match kind_of(info) {
            kind::POINTER => Some(8),
            kind::ARRAY => {
                let element = self.size(self.word(position + 12)?, depth + 1)?;
                element.checked_mul(self.word(position + 20)?)
            }
            _ => self.word(position + 8),
        }
    }

    /// Parses a blob.
    ///
    /// # Errors
    /// When the bytes are not BTF.
    pub fn parse(data: &[u8]) -> Result<Self, BtfError> {
        let mut btf = Self {
            data: Vec::with_capacity(data.len() + ROOM_FOR_MODULE),
            strings: Vec::new(),
            types: Vec::new(),
            names: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        };
        btf.add(data)?;
        Ok(btf)
    }

    /// Adds a blob: the kernel's first, then that of one module.
    fn add(&mut self, blob: &[u8]) -> Result<(), BtfError> {
        let base = self.data.len();
        let of_kernel = self.types.is_empty();
        self.data.extend_from_slice(blob);
        let damaged = |position: usize, what| BtfError::Damaged {
            position: position - base,
            what,
        };
        if blob.get(..2) != Some(&MAGIC.to_le_bytes()[..]) {
            return Err(damaged(base, "not BTF of this byte order"));
        }
        let header = |position| {
            self.word(base + position)
                .map(|word| word as usize)
                .ok_or(damaged(base + position, "the header is cut"))
        };
        let length = header(4)?;
        if length < HEADER_BYTES {
            return Err(damaged(base + 4, "the header is too short"));
        }
        // 32-bit values cannot overflow the sum of a few.
        let start = base + length;
        let types = start + header(8)?;
        let types_end = types + header(12)?;
        let strings = start + header(16)?;
        let strings_end = strings + header(20)?;
        if types_end.max(strings_end) > self.data.len() {
            return Err(damaged(base + 8, "a section lies past the end"));
        }
        self.strings.push(strings..strings_end);
        let names = (types_end - types) / BYTES_A_NAME;
        self.names.reserve(names, |&(hash, _)| hash);
        let mut position = types;
        while position < types_end {
            let info = self
                .word(position + 4)
                .ok_or(damaged(position, "a type is cut"))?;
            let step = type_bytes(info).ok_or(damaged(position, "unknown kind of type"))?;
            self.types.push(position as u32);
            let id = self.types.len() as u32;
            let found_by_name = match kind_of(info) {
                kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => true,
                kind::FUNCTION | kind::TYPEDEF => of_kernel,
                _ => false,
            };
            if found_by_name
                && let Some(name) = self.word(position).and_then(|name| self.name(name))
            {
                let hash = self.hasher.hash_one(name);
                self.names
                    .insert_unique(hash, (hash, id), |&(hash, _)| hash);
            }
            position += step;
        }
        Ok(())
    }

    fn word(&self, position: usize) -> Option<u32> {
        let bytes = self.data.get(position..position.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn string(&self, offset: u32) -> Option<&str> {
        std::str::from_utf8(self.name(offset)?).ok()
    }

    fn name(&self, offset: u32) -> Option<&[u8]> {
        let mut offset = offset as usize;
        let section = self.strings.iter().find(|section| {
            let inside = offset < section.len();
            if !inside {
                offset -= section.len();
            }
            inside
        })?;
        let bytes = self.data.get(section.clone())?.get(offset..)?;
        CStr::from_bytes_until_nul(bytes).ok().map(CStr::to_bytes)
    }
}

const fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

const fn length_of(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Bytes of a type's record.
const fn type_bytes(info: u32) -> Option<usize> {
    let count = length_of(info);
    let extra = match kind_of(info) {
        kind::INT | kind::VARIABLE | kind::DECLARATION_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::SECTION | kind::ENUM64 => count * 12,
        kind::ENUM | kind::PROTOTYPE => count * 8,
        kind::POINTER
        | kind::FORWARD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNCTION
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        _ => return None,
    };
    Some(12 + extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_describes_an_skb() {
        let Ok(btf) = Btf::running() else { return };
        let head = btf.member("sk_buff", "head").expect("sk_buff has a head");
        assert_eq!(head.size, 8);
        assert_eq!(
            btf.member("iphdr", "daddr"),
            Some(Member {
                offset: 16,
                size: 4
            })
        );
        assert_eq!(btf.arguments("ip_rcv"), Some(4));
        assert_eq!(btf.member("sk_buff", "no_such_member"), None);
        let hash = btf.member("nf_conn", "tuplehash").map(|member| member.size);
        assert_eq!(hash, Some(112));
    }

    /// A blob of types, each in words, and names.
    fn blob(types: &[u32], names: &str) -> Vec<u8> {
        let length = types.len() as u32 * 4;
        let header = [24, 0, length, length, names.len() as u32];
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        for word in header.iter().chain(types) {
            blob.extend(word.to_le_bytes());
        }
        blob.extend(names.as_bytes());
        blob
    }

    #[test]
    fn an_outline_has_the_ids_of_the_whole() {
        let structure = [1, kind::STRUCT << 24, 0];
        let prototype = [0, kind::PROTOTYPE << 24, 0];
        let function = [1, kind::FUNCTION << 24, 2];
        let typedef = [5, kind::TYPEDEF << 24, 1];
        let types = [structure, prototype, function, typedef, structure];
        let whole = Btf::parse(&blob(types.as_flattened(), "\0one\0two\0")).unwrap();
        let outline = whole.outline(&["two", "absent", "one"]);
        assert!(aya::Btf::parse(&outline, aya::Endianness::default()).is_ok());
        let outline = Btf::parse(&outline).unwrap();
        let id = |name, kind| outline.named(name, |found| found == kind);
        assert_eq!(id("one", kind::FUNCTION), Some(3));
        assert_eq!(id("two", kind::TYPEDEF), Some(4));
        assert_eq!(id("one", kind::STRUCT), None);
        assert_eq!(outline.types.len(), 4);
    }

    #[test]
    fn a_modules_types_and_names_follow_the_kernels() {
        let mut btf = Btf::parse(&blob(&[1, kind::INT << 24, 2, 16], "\0u16\0")).unwrap();
        let structure = [5, kind::STRUCT << 24 | 1, 8, 10, 3, 32];
        let volatile = [0, kind::VOLATILE << 24, 1];
        let module = blob(&[&structure[..], &volatile].concat(), "conn\0state\0");
        assert_eq!(btf.member("conn", "state"), None);
        btf.add(&module).unwrap();
        let state = Member { offset: 4, size: 2 };
        assert_eq!(btf.member("conn", "state"), Some(state));
        for length in 0..module.len() {
            let mut btf = Btf::parse(&blob(&[1, kind::INT << 24, 2, 16], "\0u16\0")).unwrap();
            assert!(btf.add(&module[..length]).is_err());
            let _ = btf.member("conn", "state");
        }
    }

    #[test]
    fn damage_is_an_error() {
        assert!(Btf::parse(&[]).is_err());
        assert!(Btf::parse(&[0x9f, 0xeb, 1, 0]).is_err());
        let mut long = vec![0x9f, 0xeb, 1, 0];
        long.extend(
            [24u32, u32::MAX, u32::MAX, u32::MAX, u32::MAX]
                .iter()
                .flat_map(|word| word.to_le_bytes()),
        );
        assert!(Btf::parse(&long).is_err());
    }
}
