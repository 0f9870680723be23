//! Attaches each hook in the best way that this kernel allows.
//!
//! Invariant: what cannot be attached is a [`Gap`] with its reason, never an error.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use aya::Ebpf;
use aya::programs::{BtfTracePoint, FEntry, KProbe};

use super::btf::Btf;
use super::links::Link;
use crate::hook::{Hook, Place};

/// What fentry cannot take: functions with more arguments are refused by kernels before 6.12.
const FENTRY_ARGUMENTS: usize = 6;

/// How a hook is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// BTF tracepoint.
    Tracepoint,
    /// Function entry by BPF trampoline.
    Fentry,
    /// Function entry by kprobe.
    Kprobe,
}

impl Tier {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

/// Why a hook is not attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Gap {
    /// Its module is not loaded; what it does cannot happen on this node now.
    ModuleNotLoaded(&'static str),
    /// The kernel offers no way.
    Refused(String),
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ModuleNotLoaded(module) => write!(f, "module {module} is not loaded"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

/// One hook and what became of it.
#[derive(Clone, Debug)]
pub struct HookState {
    /// Row of the catalogue.
    pub hook: &'static Hook,
    /// How it is attached, or why not.
    pub outcome: Result<Tier, Gap>,
}

/// Facts about this kernel that decide the tiers.
#[derive(Clone, Debug)]
pub struct Abilities {
    /// Kprobes exist.
    pub kprobe: bool,
    /// Loaded or built-in modules, as /sys/module lists them.
    modules: HashSet<String>,
}

impl Abilities {
    /// Looks at this kernel.
    pub fn read() -> Self {
        let modules = fs::read_dir("/sys/module")
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .collect()
            })
            .unwrap_or_default();
        Self {
            kprobe: Path::new("/sys/bus/event_source/devices/kprobe").exists(),
            modules,
        }
    }

    /// True when a module is loaded.
    pub fn has_module(&self, name: &str) -> bool {
        self.modules.contains(name)
    }
}

/// Attaches hooks; remembers what this kernel refused.
pub(super) struct Attacher<'a> {
    ebpf: &'a mut Ebpf,
    btf: &'a Btf,
    kernel_btf: &'a aya::Btf,
    abilities: Abilities,
    /// Set by the first refusal that will hold for every other function too.
    fentry_refused: bool,
    /// Print the verifier's log of a refusal.
    verbose: bool,
}

impl<'a> Attacher<'a> {
    pub(super) fn new(
        ebpf: &'a mut Ebpf,
        btf: &'a Btf,
        kernel_btf: &'a aya::Btf,
        verbose: bool,
    ) -> Self {
        Self {
            ebpf,
            btf,
            kernel_btf,
            abilities: Abilities::read(),
            fentry_refused: false,
            verbose,
        }
    }

    pub(super) fn attach(&mut self, hook: &Hook) -> Result<(Tier, Link), Gap> {
        if let Some(module) = hook.place.module()
            && !self.abilities.has_module(module)
            && self.btf.arguments(hook.place.symbol()).is_none()
        {
            return Err(Gap::ModuleNotLoaded(module));
        }
        let attached = match hook.place {
            Place::Tracepoint(name) => self
                .tracepoint(hook, name)
                .map(|link| (Tier::Tracepoint, link)),
            Place::Function(name) | Place::ModuleFunction { name, .. } => self.function(hook, name),
        };
        attached.map_err(|error| {
            if self.verbose {
                eprintln!("{}: {error:#}", hook.id.name());
            }
            Gap::Refused(in_one_line(&error))
        })
    }

    fn function(&mut self, hook: &Hook, name: &str) -> anyhow::Result<(Tier, Link)> {
        let fits = self
            .btf
            .arguments(name)
            .is_some_and(|count| count <= FENTRY_ARGUMENTS);
        if fits && !self.fentry_refused {
            match self.fentry(hook, name) {
                Ok(link) => return Ok((Tier::Fentry, link)),
                Err(error) if is_not_permitted(&error) => self.fentry_refused = true,
                Err(_) => {}
            }
        }
        if !self.abilities.kprobe {
            return Err(if self.fentry_refused {
                anyhow!("no kprobes in this kernel, and fentry is not permitted: lockdown?")
            } else {
                anyhow!("no kprobes in this kernel, and fentry does not reach this function")
            });
        }
        self.kprobe(hook, name).map(|link| (Tier::Kprobe, link))
    }

    fn tracepoint(&mut self, hook: &Hook, name: &str) -> anyhow::Result<Link> {
        let kernel_btf = self.kernel_btf;
        let program: &mut BtfTracePoint = self.program("tp", hook)?.try_into()?;
        program.load(name, kernel_btf)?;
        let id = program.attach()?;
        Ok(Link::Tracepoint(program.take_link(id)?))
    }

    fn fentry(&mut self, hook: &Hook, name: &str) -> anyhow::Result<Link> {
        let kernel_btf = self.kernel_btf;
        let program: &mut FEntry = self.program("fentry", hook)?.try_into()?;
        program.load(name, kernel_btf)?;
        let id = program.attach()?;
        Ok(Link::Fentry(program.take_link(id)?))
    }

    fn kprobe(&mut self, hook: &Hook, name: &str) -> anyhow::Result<Link> {
        let program: &mut KProbe = self.program("kprobe", hook)?.try_into()?;
        program.load()?;
        let id = program.attach(name, 0)?;
        Ok(Link::Kprobe(program.take_link(id)?))
    }

    fn program(&mut self, kind: &str, hook: &Hook) -> anyhow::Result<&mut aya::programs::Program> {
        let name = format!("{kind}_{}", hook.id.name());
        self.ebpf
            .program_mut(&name)
            .with_context(|| format!("program {name} is not in the object"))
    }
}

/// An error without the verifier's log, which is for the developers of the programs.
fn in_one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let text = text.split("Verifier output").next().unwrap_or_default();
    text.lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches(['.', ' ', ':'])
        .to_owned()
}

/// True for a refusal that does not depend on the function (lockdown, missing capability).
fn is_not_permitted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.raw_os_error() == Some(libc::EPERM))
    })
}
