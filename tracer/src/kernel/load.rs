//! Loads the programs and keeps them at work.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::{ABSENT, FIELDS};

use super::attach::{Attacher, HookState};
use super::btf::Btf;
use super::links::Links;
use super::ring::Ring;
use crate::hook;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer-ebpf"));

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
    _links: Links,
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
        let mut attacher = Attacher::new(&mut ebpf, btf, &kernel_btf, options.program_log);
        let mut links = Links::default();
        let hooks: Vec<_> = hook::CATALOGUE
            .iter()
            .map(|hook| HookState {
                hook,
                outcome: attacher.attach(hook).map(|(tier, link)| {
                    links.push(link);
                    tier
                }),
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
            _links: links,
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
