//! Names code addresses from /proc/kallsyms.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek as _};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::privilege;

const LIST: &str = "/proc/kallsyms";

/// Addresses of the kernel's and its modules' functions, sorted.
#[derive(Clone, Default)]
pub struct Symbols {
    functions: Vec<(u64, Box<str>)>,
}

impl Symbols {
    fn parse(mut lines: impl BufRead) -> Self {
        let (mut functions, mut line) = (Vec::new(), String::new());
        while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            functions.extend(function(&line).map(|(address, name)| (address, name.into())));
            line.clear();
        }
        // The kernel's own come in order; a stable sort makes use of that.
        functions.sort_by_key(|&(address, _)| address);
        Self { functions }
    }

    /// True when no address is known.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// Function that holds an address.
    pub fn name(&self, address: u64) -> Option<&str> {
        let after = self
            .functions
            .partition_point(|&(start, _)| start <= address);
        self.functions
            .get(after.checked_sub(1)?)
            .map(|(_, name)| &**name)
            .filter(|name| !name.is_empty())
    }

    /// The same without the compiler's suffixes (`.isra.0`).
    pub fn function(&self, address: u64) -> Option<&str> {
        let name = self.name(address)?;
        Some(name.split_once('.').map_or(name, |(name, _)| name))
    }

    /// Adds one address, out of a capture; an empty name says that nothing is known of it.
    pub fn insert(&mut self, address: u64, name: &str) {
        let at = self
            .functions
            .partition_point(|&(start, _)| start < address);
        self.functions.insert(at, (address, name.into()));
    }
}

/// Addresses of functions by name.
pub(super) type Addresses = HashMap<&'static str, u64>;

/// Where functions are, of the names that only one function has.
pub(super) fn addresses(names: &HashSet<&'static str>) -> Addresses {
    let lines = File::open(LIST).map(BufReader::new);
    lines.map_or_else(|_| Addresses::new(), |lines| find(lines, names))
}

fn find(mut lines: impl BufRead, names: &HashSet<&'static str>) -> Addresses {
    let (mut found, mut several) = (Addresses::new(), HashSet::new());
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        if let Some((address, name)) = function(&line)
            && let Some(&name) = names.get(name)
            && found.insert(name, address).is_some()
        {
            several.insert(name);
        }
        line.clear();
    }
    found.retain(|name, _| !several.contains(name));
    found
}

/// The kernel's list of symbols. It shows addresses to whoever had the right to see them when it was
/// opened, so it stays open: the right is given up, and modules come later.
#[derive(Clone)]
pub struct Source(Option<Arc<Mutex<File>>>);

impl Source {
    /// Opens the list.
    pub fn open() -> Self {
        Self(File::open(LIST).ok().map(Mutex::new).map(Arc::new))
    }

    /// Begins to read the symbols of now.
    pub fn begin(&self) -> Table {
        let source = self.clone();
        Table::Reading(std::thread::spawn(move || {
            // The open file is all that it needs; what could not be given up does no harm here.
            let _ = privilege::keep(&[]);
            source.read()
        }))
    }

    /// Reads the symbols of now; none when they are hidden (kptr_restrict, no root).
    pub fn read(&self) -> Symbols {
        let symbols = || {
            let file = self.0.as_ref()?.lock().ok()?;
            (&*file).rewind().ok()?;
            Some(Symbols::parse(BufReader::new(&*file)))
        };
        symbols().unwrap_or_default()
    }
}

/// Symbols that a thread may still be reading: they are many, and needed late.
pub enum Table {
    /// Being read.
    Reading(JoinHandle<Symbols>),
    /// Known.
    Read(Arc<Symbols>),
}

/// What is known before the thread is done.
static NOTHING: Symbols = Symbols {
    functions: Vec::new(),
};

impl Table {
    /// Waits until they are read.
    pub fn wait(&mut self) {
        if let Self::Reading(_) = self {
            let before = std::mem::replace(self, Self::Read(Arc::default()));
            if let Self::Reading(thread) = before {
                *self = Self::Read(Arc::new(thread.join().unwrap_or_default()));
            }
        }
    }

    /// What is known now.
    pub fn get(&self) -> &Symbols {
        match self {
            Self::Reading(_) => &NOTHING,
            Self::Read(symbols) => symbols,
        }
    }

    /// The symbols, once they are read.
    pub const fn read(&self) -> Option<&Arc<Symbols>> {
        match self {
            Self::Reading(_) => None,
            Self::Read(symbols) => Some(symbols),
        }
    }

    /// Names an address, out of a capture.
    pub fn insert(&mut self, address: u64, name: &str) {
        if let Self::Read(symbols) = self {
            Arc::make_mut(symbols).insert(address, name);
        }
    }
}

/// A line `address type name [module]`, when it is code.
fn function(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let code = matches!(words.next()?, "t" | "T" | "w" | "W");
    (code && address != 0).then_some((address, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let text = "0000000000001000 T first\n0000000000002000 t second [module]\n0000000000001800 d data\nbroken\n";
        let symbols = Symbols::parse(text.as_bytes());
        assert_eq!(symbols.name(0x1fff), Some("first"));
        assert_eq!(symbols.name(0x2000), Some("second"));
        assert_eq!(symbols.name(0xfff), None);
    }

    #[test]
    fn a_function_is_known_without_the_compilers_suffixes() {
        let symbols = Symbols::parse("0000000000001000 t third.isra.0\n".as_bytes());
        assert_eq!(symbols.name(0x1000), Some("third.isra.0"));
        assert_eq!(symbols.function(0x1000), Some("third"));
    }

    #[test]
    fn a_name_that_two_functions_have_leads_to_neither() {
        let text = "1000 T one\n2000 t two\n3000 t other\n4000 t two [module]\n5000 t two [third]\n6000 d one\n0 T three\n";
        let names = HashSet::from(["one", "two", "three", "absent"]);
        let found = find(text.as_bytes(), &names);
        assert_eq!(found, Addresses::from([("one", 0x1000)]));
    }

    #[test]
    fn a_list_can_be_read_again() {
        let mut file = tempfile::tempfile().expect("a file");
        let write = |file: &mut File, line: &str| {
            std::io::Write::write_all(file, line.as_bytes()).expect("it is written");
        };
        write(&mut file, "0000000000001000 T first\n");
        let source = Source(Some(Arc::new(Mutex::new(
            file.try_clone().expect("another handle"),
        ))));
        assert_eq!(source.read().name(0x3000), Some("first"));
        write(&mut file, "0000000000002000 t second\n");
        assert_eq!(source.read().name(0x3000), Some("second"));
    }
}
