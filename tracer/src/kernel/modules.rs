//! The kernel modules that hooks sit in, and their coming and going.
//!
//! Polled, since sysfs sends no notifications: a handful of `stat` calls a second. A module that was
//! unloaded and loaded again between two looks is known by its directory's inode number, which the
//! kernel gives anew.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::hook;

/// Modules of the catalogue that are loaded, with the inode number of their directory in sysfs.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Modules(BTreeMap<&'static str, u64>);

impl Modules {
    /// Looks at this kernel.
    pub(super) fn read() -> Self {
        let modules = hook::CATALOGUE
            .iter()
            .filter_map(|hook| hook.place.module());
        let mut loaded = BTreeMap::new();
        for module in modules {
            if !loaded.contains_key(module)
                && let Some(inode) = inode(module)
            {
                loaded.insert(module, inode);
            }
        }
        Self(loaded)
    }

    /// True when a module is loaded.
    pub(super) fn has(&self, module: &str) -> bool {
        self.0.contains_key(module)
    }

    /// What went and what came between `before` and now; a module loaded anew did both.
    pub(super) fn since(&self, before: &Self) -> Changes {
        let only = |here: &Self, there: &Self| {
            here.0
                .iter()
                .filter(|(module, inode)| there.0.get(*module) != Some(inode))
                .map(|(&module, _)| module)
                .collect()
        };
        Changes {
            gone: only(before, self),
            come: only(self, before),
        }
    }
}

/// All modules that are loaded, to see whether others are later.
#[derive(PartialEq, Eq, Debug)]
pub struct Loaded(String);

impl Loaded {
    /// Looks at this kernel; nothing where it has no modules.
    pub fn read() -> Self {
        Self::of(&fs::read_to_string("/proc/modules").unwrap_or_default())
    }

    /// Only names count: numbers of users change all the time.
    fn of(modules: &str) -> Self {
        let names = modules
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        Self(names.collect::<Vec<_>>().join(" "))
    }
}

/// Modules that went and came.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Changes {
    /// Unloaded, or loaded anew.
    pub(super) gone: Vec<&'static str>,
    /// Loaded.
    pub(super) come: Vec<&'static str>,
}

/// Inode number of a module's directory, when it is ready for use. A built-in one has no state.
fn inode(module: &str) -> Option<u64> {
    let directory = format!("/sys/module/{module}");
    let inode = fs::metadata(&directory).ok()?.ino();
    match fs::read_to_string(format!("{directory}/initstate")) {
        Ok(state) if state.trim() != "live" => None,
        _ => Some(inode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_module_make_no_difference() {
        let before = "veth 40960 0 - Live 0x0\nbridge 409600 1 br_netfilter, Live 0x0\n";
        let used = before.replace("40960 0 -", "40960 2 x,");
        assert_eq!(Loaded::of(before), Loaded::of(&used));
        let later = format!("vxlan 159744 0 - Live 0x0\n{before}");
        assert_ne!(Loaded::of(before), Loaded::of(&later));
    }

    #[test]
    fn a_module_loaded_anew_went_and_came() {
        let before = Modules(BTreeMap::from([("bridge", 1), ("ip_vs", 2), ("veth", 3)]));
        let after = Modules(BTreeMap::from([("bridge", 1), ("ip_vs", 9), ("vxlan", 4)]));
        assert_eq!(
            after.since(&before),
            Changes {
                gone: vec!["ip_vs", "veth"],
                come: vec!["ip_vs", "vxlan"],
            }
        );
        assert_eq!(after.since(&after), Changes::default());
    }
}
