//! Attaches each hook in the best way that this kernel allows.
//!
//! Invariant: what cannot be attached is a [`Gap`] with its reason, never an error.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use aya::programs::{BtfTracePoint, FEntry, KProbe, Program, ProgramError};
use aya::{BtfError, Ebpf, Endianness};

use super::btf::Btf;
use super::links::Link;
use super::load::Options;
use super::modules::Modules;
use super::symbols::{self, Addresses};
use crate::hook::{self, Hook, Place};

/// More threads would only wait for the kernel's own lock on its code.
const MOST_THREADS: usize = 8;

/// The function by which kernels look for a name where they have sorted them (since 6.2, and in 6.1's later releases).
/// Others go through all names, three times for each kprobe.
const SORTED_NAMES: &str = "kallsyms_lookup_names";

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
    /// It sits on the way of packets that are well, which low cost leaves out.
    LeftOut,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ModuleNotLoaded(module) => write!(f, "module {module} is not loaded"),
            Self::Refused(why) => f.write_str(why),
            Self::LeftOut => f.write_str("left out for low cost"),
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

/// True where kprobes exist.
pub fn has_kprobes() -> bool {
    Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

/// The programs of one hook, each for another way to attach.
#[derive(Default)]
pub(super) struct Programs<'a> {
    tracepoint: Option<&'a mut BtfTracePoint>,
    fentry: Option<&'a mut FEntry>,
    kprobe: Option<&'a mut KProbe>,
}

impl<'a> Programs<'a> {
    /// The programs of every hook by its name.
    pub(super) fn of_all(ebpf: &'a mut Ebpf) -> HashMap<String, Self> {
        let mut all = HashMap::<String, Self>::new();
        for (name, program) in ebpf.programs_mut() {
            let Some((_, hook)) = name.split_once('_') else {
                continue;
            };
            let programs = all.entry(hook.to_owned()).or_default();
            match program {
                Program::BtfTracePoint(program) => programs.tracepoint = Some(program),
                Program::FEntry(program) => programs.fentry = Some(program),
                Program::KProbe(program) => programs.kprobe = Some(program),
                _ => {}
            }
        }
        all
    }
}

/// What an attached hook is.
pub(super) type Attached = Result<(Tier, Link), Gap>;

/// Attaches hooks; remembers what this kernel refused.
pub(super) struct Attacher<'a> {
    btf: &'a Btf,
    /// Of the places that programs with BTF attach to.
    outline: aya::Btf,
    kprobe: bool,
    modules: Modules,
    /// Where kernel functions are that may get a kprobe; the kernel looks for others by name.
    addresses: Addresses,
    /// Set by the first refusal that will hold for every other function too.
    fentry_refused: AtomicBool,
    /// Attach only what lost or refused packets meet.
    low_cost: bool,
    /// Print the verifier's log of a refusal.
    verbose: bool,
}

impl<'a> Attacher<'a> {
    pub(super) fn new(
        btf: &'a Btf,
        modules: Modules,
        addresses: Addresses,
        options: &Options,
    ) -> Result<Self, BtfError> {
        let places = hook::CATALOGUE.iter().map(|hook| match hook.place {
            Place::Tracepoint(name) => format!("btf_trace_{name}").into(),
            place => Cow::Borrowed(place.symbol()),
        });
        let outline = btf.outline(&places.collect::<Vec<_>>());
        Ok(Self {
            btf,
            outline: aya::Btf::parse(&outline, Endianness::default())?,
            kprobe: has_kprobes(),
            modules,
            addresses,
            fentry_refused: AtomicBool::new(false),
            low_cost: options.low_cost,
            verbose: options.program_log,
        })
    }

    /// Attaches every hook of the catalogue, in its order; the verifier works on every processor.
    pub(super) fn attach_all(&self, ebpf: &mut Ebpf) -> Vec<(&'static Hook, Attached)> {
        let mut programs = Programs::of_all(ebpf);
        let tasks = Mutex::new(
            hook::CATALOGUE
                .iter()
                .map(|hook| (hook, programs.remove(hook.id.name()).unwrap_or_default()))
                .collect::<Vec<_>>()
                .into_iter(),
        );
        let next = || tasks.lock().ok()?.next();
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut attached: Vec<_> = std::thread::scope(|scope| {
            let work = || {
                let mut done = Vec::new();
                while let Some((hook, programs)) = next() {
                    done.push((hook, self.attach(hook, programs)));
                }
                done
            };
            let workers: Vec<_> = (0..threads.min(MOST_THREADS))
                .map(|_| scope.spawn(work))
                .collect();
            workers
                .into_iter()
                .filter_map(|worker| worker.join().ok())
                .flatten()
                .collect()
        });
        attached.sort_by_key(|(hook, _)| hook::row(hook.id));
        attached
    }

    /// The modules that the hooks were attached to.
    pub(super) fn into_modules(self) -> Modules {
        self.modules
    }

    fn attach(&self, hook: &'static Hook, programs: Programs<'_>) -> Attached {
        if self.low_cost && !hook.role.on_failure_path() {
            return Err(Gap::LeftOut);
        }
        if let Some(module) = hook.place.module()
            && !self.modules.has(module)
            && self.btf.arguments(hook.place.symbol()).is_none()
        {
            return Err(Gap::ModuleNotLoaded(module));
        }
        let attached = match hook.place {
            Place::Tracepoint(name) => self.tracepoint(name, programs),
            Place::Function(name) => self.function(name, None, programs),
            Place::ModuleFunction { name, older, .. } => self.function(name, older, programs),
        };
        attached.map_err(|error| refusal(hook, &error, self.verbose))
    }

    fn function(
        &self,
        name: &'static str,
        older: Option<&'static str>,
        programs: Programs<'_>,
    ) -> anyhow::Result<(Tier, Link)> {
        let fits = self
            .btf
            .arguments(name)
            .is_some_and(|count| count <= FENTRY_ARGUMENTS);
        if fits && !self.fentry_refused.load(Relaxed) {
            match self.fentry(name, programs.fentry) {
                Ok(link) => return Ok((Tier::Fentry, link)),
                Err(error) if is_not_permitted(&error) => self.fentry_refused.store(true, Relaxed),
                // The kprobe hides a refusal that may be the program's own fault.
                Err(error) if self.verbose => eprintln!("fentry {name}: {error:#}"),
                Err(_) => {}
            }
        }
        if !self.kprobe {
            return Err(if self.fentry_refused.load(Relaxed) {
                anyhow!("no kprobes in this kernel, and fentry is not permitted: lockdown?")
            } else {
                anyhow!("no kprobes in this kernel, and fentry does not reach this function")
            });
        }
        kprobe(name, older, &self.addresses, programs.kprobe).map(|link| (Tier::Kprobe, link))
    }

    fn tracepoint(&self, name: &str, programs: Programs<'_>) -> anyhow::Result<(Tier, Link)> {
        let program = programs.tracepoint.context(NO_PROGRAM)?;
        program.load(name, &self.outline)?;
        let id = program.attach()?;
        Ok((Tier::Tracepoint, Link::Tracepoint(program.take_link(id)?)))
    }

    fn fentry(&self, name: &str, program: Option<&mut FEntry>) -> anyhow::Result<Link> {
        let program = program.context(NO_PROGRAM)?;
        program.load(name, &self.outline)?;
        let id = program.attach()?;
        Ok(Link::Fentry(program.take_link(id)?))
    }
}

/// Attaches a hook to a module that came while tracing; the program may be loaded already.
pub(super) fn attach_late(hook: &Hook, programs: Programs<'_>, verbose: bool) -> Attached {
    kprobe(
        hook.place.symbol(),
        hook.place.older_symbol(),
        &Addresses::new(),
        programs.kprobe,
    )
    .map(|link| (Tier::Kprobe, link))
    .map_err(|error| refusal(hook, &error, verbose))
}

fn kprobe(
    name: &str,
    older: Option<&str>,
    addresses: &Addresses,
    program: Option<&mut KProbe>,
) -> anyhow::Result<Link> {
    let program = program.context(NO_PROGRAM)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(error.into()),
    }
    let mut attach = |name| match addresses.get(name) {
        // Without a name the offset is the address (`perf_kprobe_init` in kernel/trace).
        Some(&address) => program.attach("", address),
        None => program.attach(name, 0),
    };
    let id = match (attach(name), older) {
        (Err(_), Some(older)) => attach(older)?,
        (attached, _) => attached?,
    };
    Ok(Link::Kprobe(program.take_link(id)?))
}

/// Begins to read where the functions of the catalogue are, on kernels that take long to find them.
pub(super) fn functions(btf: &Btf) -> JoinHandle<Addresses> {
    let sorted = btf.arguments(SORTED_NAMES).is_some();
    std::thread::spawn(move || {
        if sorted {
            return Addresses::new();
        }
        let places = hook::CATALOGUE.iter().map(|hook| hook.place);
        let names = places.flat_map(|place| [Some(place.symbol()), place.older_symbol()]);
        symbols::addresses(&names.flatten().collect())
    })
}

const NO_PROGRAM: &str = "the object has no program for this";

fn refusal(hook: &Hook, error: &anyhow::Error, verbose: bool) -> Gap {
    if verbose {
        eprintln!("{}: {error:#}", hook.id.name());
    }
    Gap::Refused(in_one_line(error))
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
