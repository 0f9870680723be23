//! Loads the programs and attaches each hook in the best way that this kernel allows.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FEntry, KProbe};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::{ABSENT, FIELDS};

use super::btf::Btf;
use super::ring::Ring;
use crate::hook::{self, Hook, Place};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer-ebpf"));

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

/// What to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the ring buffer, a power of two and at least a page.
    pub ring_bytes: u32,
    /// Inode numbers of the only namespaces to trace; `None` for all.
    pub namespaces: Option<Vec<u32>>,
    /// Print what the programs themselves say about trouble, and why the verifier refuses one.
    pub program_log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_bytes: 8 << 20,
            namespaces: None,
            program_log: false,
        }
    }
}

/// Has the programs keep the events of these namespaces and no others.
fn keep_namespaces(ebpf: &mut Ebpf, namespaces: &[u32]) -> anyhow::Result<()> {
    let map = ebpf
        .map_mut("NAMESPACES")
        .context("map NAMESPACES is missing")?;
    let mut map = HashMap::<_, u32, u8>::try_from(map)?;
    let before = map.keys().collect::<Result<Vec<u32>, _>>()?;
    for inum in before.iter().filter(|inum| !namespaces.contains(inum)) {
        map.remove(inum)?;
    }
    for inum in namespaces {
        map.insert(inum, 1, 0)?;
    }
    Ok(())
}

/// Programs at work; dropping it detaches them.
pub struct Tracing {
    ebpf: Ebpf,
    /// Every hook of the catalogue, in order.
    pub hooks: Vec<HookState>,
    /// Kernel fields that this kernel's BTF does not describe, as `structure.member`.
    pub missing_fields: Vec<String>,
    program_log: Option<EbpfLogger<StandardError>>,
    /// Keeps the kernel's run-time statistics on while we trace.
    _statistics: Option<std::os::fd::OwnedFd>,
}

/// What our programs cost the kernel so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct KernelCost {
    /// Program runs.
    pub runs: u64,
    /// Time in programs; zero where the kernel keeps no statistics.
    pub time: Duration,
}

/// Names that `enum skb_drop_reason` has on this kernel.
#[derive(Clone, Default, Debug)]
pub struct DropReasons(std::collections::HashMap<u32, String>);

impl DropReasons {
    /// From the kernel's BTF; empty before 5.17.
    pub fn read(btf: &Btf) -> Self {
        let values = btf.enumeration("skb_drop_reason").unwrap_or_default();
        Self(
            values
                .into_iter()
                .filter_map(|(name, value)| {
                    let name = name
                        .strip_prefix("SKB_DROP_REASON_")
                        .or(name.strip_prefix("SKB_"))?;
                    Some((u32::try_from(value).ok()?, name.to_owned()))
                })
                .collect(),
        )
    }

    /// True when this kernel has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of a reason by its name without prefix.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.0
            .iter()
            .find(|(_, found)| *found == name)
            .map(|(&number, _)| number)
    }

    /// Every number with its name.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(&number, name)| (number, name.as_str()))
    }

    /// Name of a reason, without its prefix.
    pub fn name(&self, reason: u32) -> Option<&str> {
        self.0.get(&reason).map(String::as_str)
    }
}

impl FromIterator<(u32, String)> for DropReasons {
    fn from_iter<I: IntoIterator<Item = (u32, String)>>(reasons: I) -> Self {
        Self(reasons.into_iter().collect())
    }
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

impl Tracing {
    /// Traces these namespaces from now on, when it was started for some only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn trace_only(&mut self, namespaces: &[u32]) -> anyhow::Result<()> {
        keep_namespaces(&mut self.ebpf, namespaces)
    }

    /// Loads and attaches everything that this kernel allows.
    ///
    /// # Errors
    /// When the programs cannot be loaded at all, or not a single hook attaches.
    pub fn start(btf: &Btf, options: &Options) -> anyhow::Result<Self> {
        let (layout, missing_fields) = resolve(btf);
        let settings = [
            // The enum and the tracepoint's argument came together in 5.17.
            u32::from(btf.enumeration("skb_drop_reason").is_some()),
            u32::from(options.namespaces.is_some()),
        ];
        let kernel_btf =
            aya::Btf::from_sys_fs().context("the kernel's type information cannot be read")?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&kernel_btf))
            .override_global("LAYOUT", layout.as_slice(), true)
            .override_global("SETTINGS", settings.as_slice(), true)
            .override_global(aya_log::LEVEL, log_level(options), true)
            .map_max_entries("EVENTS", options.ring_bytes)
            .load(OBJECT)
            .context("the kernel refuses the programs' maps; is this root, with CAP_BPF?")?;
        if let Some(namespaces) = &options.namespaces {
            keep_namespaces(&mut ebpf, namespaces)?;
        }
        let mut attacher = Attacher {
            ebpf: &mut ebpf,
            btf,
            kernel_btf: &kernel_btf,
            abilities: Abilities::read(),
            fentry_refused: false,
            verbose: options.program_log,
        };
        let hooks: Vec<_> = hook::CATALOGUE
            .iter()
            .map(|hook| HookState {
                hook,
                outcome: attacher.attach(hook),
            })
            .collect();
        if !hooks.iter().any(|state| state.outcome.is_ok()) {
            let why = hooks.iter().find_map(|state| state.outcome.as_ref().err());
            bail!(
                "not a single hook attaches: {}",
                why.map(ToString::to_string).unwrap_or_default()
            );
        }
        let program_log = options
            .program_log
            .then(|| EbpfLogger::init_with_logger(&mut ebpf, StandardError))
            .transpose()?;
        let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).ok();
        Ok(Self {
            ebpf,
            hooks,
            missing_fields,
            program_log,
            _statistics,
        })
    }

    /// Takes the ring buffer and the loss counters; once.
    ///
    /// # Errors
    /// When they were taken before.
    pub fn take_ring(&mut self) -> anyhow::Result<Ring> {
        let events = self
            .ebpf
            .take_map("EVENTS")
            .context("the ring buffer was taken before")?;
        let lost = self
            .ebpf
            .take_map("LOST")
            .context("the loss counters were taken before")?;
        Ok(Ring::new(
            RingBuf::<MapData>::try_from(events)?,
            PerCpuArray::<MapData, u64>::try_from(lost)?,
        ))
    }

    /// Prints what the programs said since the last call.
    pub fn flush_program_log(&mut self) {
        if let Some(log) = &mut self.program_log {
            log.flush();
        }
    }

    /// Runs of our programs that the kernel skipped, because another was running on the same CPU;
    /// `None` where the kernel does not count them (before 5.12).
    pub fn missed(&self) -> Option<u64> {
        let counts = self.ebpf.programs().filter_map(|(_, program)| {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            let information = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let line = information
                .lines()
                .find_map(|line| line.strip_prefix("recursion_misses:"))?;
            line.trim().parse::<u64>().ok()
        });
        counts.fold(None, |sum, count| Some(sum.unwrap_or(0) + count))
    }

    /// What the programs cost the kernel since they were loaded.
    pub fn cost(&self) -> KernelCost {
        self.ebpf
            .programs()
            .filter_map(|(_, program)| program.info().ok())
            .fold(KernelCost::default(), |sum, info| KernelCost {
                runs: sum.runs + info.run_count(),
                time: sum.time + info.run_time(),
            })
    }

    /// True when a hook is attached.
    pub fn sees(&self, id: HookId) -> bool {
        self.hooks
            .iter()
            .any(|state| state.hook.id == id && state.outcome.is_ok())
    }
}

/// Where the programs' own messages go.
struct StandardError;

impl log::Log for StandardError {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("program: {}", record.args());
    }

    fn flush(&self) {}
}

/// Level of the programs' messages; with 0 the verifier removes them.
fn log_level(options: &Options) -> &'static u8 {
    if options.program_log {
        &(log::Level::Debug as u8)
    } else {
        &0
    }
}

/// The `LAYOUT` global: offsets, then sizes; and what is missing.
fn resolve(btf: &Btf) -> (Vec<u16>, Vec<String>) {
    let mut missing = Vec::new();
    let members: Vec<_> = FIELDS
        .iter()
        .map(|field| {
            let member = btf.member(field.structure, field.path);
            if member.is_none() {
                missing.push(format!("{}.{}", field.structure, field.path));
            }
            member
        })
        .collect();
    let offsets = members.iter().map(|member| {
        member
            .and_then(|member| u16::try_from(member.offset).ok())
            .unwrap_or(ABSENT)
    });
    let sizes = members.iter().map(|member| {
        member
            .and_then(|member| u16::try_from(member.size).ok())
            .unwrap_or(0)
    });
    (offsets.chain(sizes).collect(), missing)
}

struct Attacher<'a> {
    ebpf: &'a mut Ebpf,
    btf: &'a Btf,
    kernel_btf: &'a aya::Btf,
    abilities: Abilities,
    /// Set by the first refusal that will hold for every other function too.
    fentry_refused: bool,
    /// Print the verifier's log of a refusal.
    verbose: bool,
}

impl Attacher<'_> {
    fn attach(&mut self, hook: &Hook) -> Result<Tier, Gap> {
        if let Some(module) = hook.place.module()
            && !self.abilities.has_module(module)
            && self.btf.arguments(hook.place.symbol()).is_none()
        {
            return Err(Gap::ModuleNotLoaded(module));
        }
        let attached = match hook.place {
            Place::Tracepoint(name) => self.tracepoint(hook, name).map(|()| Tier::Tracepoint),
            Place::Function(name) | Place::ModuleFunction { name, .. } => self.function(hook, name),
        };
        attached.map_err(|error| {
            if self.verbose {
                eprintln!("{}: {error:#}", hook.id.name());
            }
            Gap::Refused(in_one_line(&error))
        })
    }

    fn function(&mut self, hook: &Hook, name: &str) -> anyhow::Result<Tier> {
        let fits = self
            .btf
            .arguments(name)
            .is_some_and(|count| count <= FENTRY_ARGUMENTS);
        if fits && !self.fentry_refused {
            match self.fentry(hook, name) {
                Ok(()) => return Ok(Tier::Fentry),
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
        self.kprobe(hook, name).map(|()| Tier::Kprobe)
    }

    fn tracepoint(&mut self, hook: &Hook, name: &str) -> anyhow::Result<()> {
        let kernel_btf = self.kernel_btf;
        let program: &mut BtfTracePoint = self.program("tp", hook)?.try_into()?;
        program.load(name, kernel_btf)?;
        program.attach()?;
        Ok(())
    }

    fn fentry(&mut self, hook: &Hook, name: &str) -> anyhow::Result<()> {
        let kernel_btf = self.kernel_btf;
        let program: &mut FEntry = self.program("fentry", hook)?.try_into()?;
        program.load(name, kernel_btf)?;
        program.attach()?;
        Ok(())
    }

    fn kprobe(&mut self, hook: &Hook, name: &str) -> anyhow::Result<()> {
        let program: &mut KProbe = self.program("kprobe", hook)?.try_into()?;
        program.load()?;
        program.attach(name, 0)?;
        Ok(())
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
