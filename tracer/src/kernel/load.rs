//! Loads the programs and keeps them at work.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use tracer_ebpf::hook::HookId;
use tracer_ebpf::layout::{ABSENT, FIELDS, WINDOW_BYTES, filter as bits, in_window};
use tracer_ebpf::program::Program;

use super::attach::{self, Attached, Attacher, Gap, HookState, Programs, attach_late};
use super::btf::Btf;
use super::links::Links;
use super::modules::Modules;
use super::ring::Ring;
use super::share::Share;
use crate::filter::Filter;
use crate::hook::Hook;

/// The programs that report every packet.
static ALL: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/all"));
/// Those that filter: the kernel takes much longer to verify them.
static FILTERED: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/filtered"));

/// What to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the ring buffer, a power of two and at least a page.
    pub ring_bytes: u32,
    /// Inode numbers of the only namespaces to trace; `None` for all.
    pub namespaces: Option<Vec<u32>>,
    /// Packets to trace.
    pub filter: Filter,
    /// Trace what belongs to a matching packet as well: both directions, through NAT and tunnels.
    pub follow: bool,
    /// Print what the programs themselves say about trouble, and why the verifier refuses one.
    pub program_log: bool,
    /// Attach only what lost or refused packets meet.
    pub low_cost: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ring_bytes: 8 << 20,
            namespaces: None,
            filter: Filter::default(),
            follow: true,
            program_log: false,
            low_cost: false,
        }
    }
}

impl Options {
    /// More is followed than the filter's `not` lets be told: the kernel sees one side of NAT at a time.
    pub fn leaves_out(&self) -> bool {
        self.follow && self.filter.negates()
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

/// Keeps the link of an attached hook.
fn keep(links: &mut Links, hook: &'static Hook, attached: Attached) -> HookState {
    let outcome = attached.map(|(tier, link)| {
        links.add(hook.id, link);
        tier
    });
    HookState { hook, outcome }
}

/// What became of the hooks of one module while tracing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleChange {
    /// The module.
    pub module: &'static str,
    /// It is loaded now.
    pub loaded: bool,
    /// Its hooks that are attached now.
    pub attached: Vec<&'static str>,
    /// Its hooks that are not, with the reason, where it is loaded.
    pub refused: Vec<(&'static str, String)>,
}

/// Programs at work; dropping it detaches them.
pub struct Tracing {
    links: Links,
    /// The modules that hooks are attached to.
    modules: Modules,
    verbose: bool,
    ebpf: Ebpf,
    /// Every hook of the catalogue, in order.
    pub hooks: Vec<HookState>,
    /// Kernel fields that this kernel's BTF does not describe, as `structure.member`; without those of
    /// modules that are not loaded.
    pub missing_fields: Vec<String>,
    program_log: Option<EbpfLogger<StandardError>>,
    ring_bytes: u32,
    share: Share,
    /// Keeps the kernel's run-time statistics on while we trace.
    statistics: Option<std::os::fd::OwnedFd>,
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

    /// Loads and attaches everything that this kernel allows; gives the kernel's type information as well.
    ///
    /// # Errors
    /// When the kernel has no type information, the programs cannot be loaded at all, or not a single hook attaches.
    pub fn start(options: &Options) -> anyhow::Result<(Self, Btf)> {
        // The loader reads type information of its own, though it will not need it.
        let loader = std::thread::spawn(EbpfLoader::new);
        let btf = Btf::running().context(
            "this kernel has no BTF; a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed (every current distribution's is)",
        )?;
        // Before addresses are read: a module that is loaded anew meanwhile is noticed then.
        let modules = Modules::read();
        let functions = attach::functions(&btf);
        let (layout, missing_fields) = resolve(&btf, &modules);
        let mut settings = vec![
            // The enum and the tracepoint's argument came together in 5.17.
            u32::from(btf.enumeration("skb_drop_reason").is_some()),
            u32::from(options.namespaces.is_some()),
            filter_bits(options),
        ];
        settings.extend(window(&layout)?);
        let filters = !options.filter.is_everything();
        let program = MatchProgram(*options.filter.program());
        let mut ebpf = joined(loader)?
            // The programs have no relocations by type.
            .btf(None)
            .override_global("LAYOUT", layout.as_slice(), true)
            .override_global("SETTINGS", settings.as_slice(), true)
            .override_global("PROGRAM", &program, filters)
            .override_global(aya_log::LEVEL, log_level(options), true)
            .map_max_entries("EVENTS", options.ring_bytes)
            .load(if filters { FILTERED } else { ALL })
            .context("the kernel refuses the programs' maps; is this root, with CAP_BPF?")?;
        if let Some(namespaces) = &options.namespaces {
            keep_namespaces(&mut ebpf, namespaces)?;
        }
        let leave = ebpf.take_map("LEAVE").context("map LEAVE is missing")?;
        let share = Share::new(Array::try_from(leave)?)?;
        let attacher = Attacher::new(&btf, modules, joined(functions)?, options)?;
        let mut links = Links::default();
        let hooks: Vec<_> = attacher
            .attach_all(&mut ebpf)
            .into_iter()
            .map(|(hook, attached)| keep(&mut links, hook, attached))
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
        share.set(1.0)?;
        let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).ok();
        let modules = attacher.into_modules();
        let tracing = Self {
            links,
            modules,
            verbose: options.program_log,
            ebpf,
            hooks,
            missing_fields,
            program_log,
            ring_bytes: options.ring_bytes,
            share,
            statistics,
        };
        Ok((tracing, btf))
    }

    /// False when the kernel does not say what our programs cost.
    pub const fn knows_cost(&self) -> bool {
        self.statistics.is_some()
    }

    /// The share of the flows that is traced.
    pub const fn share(&self) -> &Share {
        &self.share
    }

    /// Events of flows that were left out so far.
    pub fn left_out(&self) -> u64 {
        let counts = self.ebpf.map("LEFT_OUT").and_then(|map| {
            let map = PerCpuArray::<_, [u64; 2]>::try_from(map).ok()?;
            Some(map.get(&0, 0).ok()?.iter().map(|[events, _]| events).sum())
        });
        counts.unwrap_or_default()
    }

    /// Attaches to modules that were loaded since the last call, lets go of those that went, and says
    /// which. Cheap while nothing changes.
    pub fn follow_modules(&mut self) -> Vec<ModuleChange> {
        let now = Modules::read();
        let changes = now.since(&self.modules);
        let gone = self.hooks_of(&changes.gone);
        if !gone.is_empty() {
            let ids: Vec<_> = gone.iter().map(|&row| self.hooks[row].hook.id).collect();
            self.links.release(&ids);
        }
        for row in gone {
            if self.hooks[row].outcome == Err(Gap::LeftOut) {
                continue;
            }
            let module = self.hooks[row].hook.place.module().unwrap_or_default();
            self.hooks[row].outcome = Err(Gap::ModuleNotLoaded(module));
        }
        if FIELDS
            .iter()
            .any(|field| changes.come.contains(&field.module))
        {
            self.learn_fields(&now);
        }
        let come = self.hooks_of(&changes.come);
        if !come.is_empty() {
            let mut programs = Programs::of_all(&mut self.ebpf);
            for row in come {
                let hook = self.hooks[row].hook;
                // A kernel that has the function built in was attached to at the start.
                let outcome = &self.hooks[row].outcome;
                if outcome.is_ok() || *outcome == Err(Gap::LeftOut) {
                    continue;
                }
                let programs = programs.remove(hook.id.name()).unwrap_or_default();
                let attached = attach_late(hook, programs, self.verbose);
                self.hooks[row] = keep(&mut self.links, hook, attached);
            }
        }
        self.modules = now;
        let went = changes
            .gone
            .iter()
            .filter(|module| !changes.come.contains(module));
        let changed = went.map(|&module| (module, false));
        changed
            .chain(changes.come.iter().map(|&module| (module, true)))
            .map(|(module, loaded)| self.module_change(module, loaded))
            .collect()
    }

    /// Tells the programs where the fields of modules are that were loaded after them.
    fn learn_fields(&mut self, modules: &Modules) {
        // What cannot be learned now stays unknown, as it was.
        let Ok(btf) = Btf::running() else { return };
        let (layout, missing) = resolve(&btf, modules);
        self.missing_fields = missing;
        let Ok(layout) = <[u64; 2 * FIELDS.len()]>::try_from(layout) else {
            return;
        };
        let later = self.ebpf.map_mut("LATER");
        if let Some(Ok(mut later)) = later.map(Array::<_, [u64; 2 * FIELDS.len()]>::try_from) {
            let _ = later.set(0, layout, 0);
        }
    }

    /// Rows of the hooks in some modules, without those that are not wanted.
    fn hooks_of(&self, modules: &[&str]) -> Vec<usize> {
        let inside = |state: &HookState| {
            let module = state.hook.place.module();
            module.is_some_and(|module| modules.contains(&module))
                && state.outcome != Err(Gap::LeftOut)
        };
        (0..self.hooks.len())
            .filter(|&row| inside(&self.hooks[row]))
            .collect()
    }

    fn module_change(&self, module: &'static str, loaded: bool) -> ModuleChange {
        let (mut attached, mut refused) = (Vec::new(), Vec::new());
        for row in self.hooks_of(&[module]) {
            let state = &self.hooks[row];
            match &state.outcome {
                Ok(_) => attached.push(state.hook.id.name()),
                Err(gap) if loaded => refused.push((state.hook.id.name(), gap.to_string())),
                Err(_) => {}
            }
        }
        ModuleChange {
            module,
            loaded,
            attached,
            refused,
        }
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
            self.ring_bytes,
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

/// What a thread found in the kernel's type information.
fn joined<T>(thread: JoinHandle<T>) -> anyhow::Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread that reads the kernel's type information panicked"))
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

/// A match program as a global's bytes.
#[derive(Clone, Copy)]
struct MatchProgram(#[expect(dead_code, reason = "aya takes the value's bytes")] Program);

// SAFETY: integers only, no padding (the sizes are asserted beside the type).
unsafe impl aya::Pod for MatchProgram {}

/// The bits of `Settings::filter`.
fn filter_bits(options: &Options) -> u32 {
    let filter = &options.filter;
    [
        (bits::FOLLOW, options.follow),
        (bits::DIRECTED, filter.is_directed()),
        (bits::INTERFACE, filter.reads_names()),
        (bits::NAMESPACE, filter.reads_namespaces()),
    ]
    .iter()
    .filter_map(|&(bit, set)| set.then_some(bit))
    .sum()
}

/// The last words of the `SETTINGS` global: where the fields of `sk_buff` begin that are copied at once, how many bytes
/// they span, and where each lies in the copy.
fn window(layout: &[u64]) -> anyhow::Result<Vec<u32>> {
    let copied = |index: usize| in_window(FIELDS[index].field) && layout[index] != ABSENT;
    let ends = |index: usize| layout[index] + layout[FIELDS.len() + index];
    let rows = (0..FIELDS.len()).filter(|&index| copied(index));
    let start = rows.clone().map(|index| layout[index]).min().unwrap_or(0) & !7;
    let length = rows.map(ends).max().unwrap_or(0).saturating_sub(start);
    if length == 0 || length > WINDOW_BYTES as u64 {
        bail!(
            "this kernel's sk_buff is laid out in an unknown way: the fields needed span {length} bytes \
             from {start}; please report it with the output of `uname -r`"
        );
    }
    let offsets = (0..FIELDS.len()).map(|index| match copied(index) {
        true => layout[index] - start,
        false => WINDOW_BYTES as u64,
    });
    let words = [start, length].into_iter().chain(offsets);
    words
        .map(|word| u32::try_from(word).context("sk_buff has an unbelievable size"))
        .collect()
}

/// The `LAYOUT` global: offsets, then sizes; and what is missing.
fn resolve(btf: &Btf, modules: &Modules) -> (Vec<u64>, Vec<String>) {
    let mut missing = Vec::new();
    let members: Vec<_> = FIELDS
        .iter()
        .map(|field| {
            let member = btf.member(field.structure, field.path);
            if member.is_none() && (field.module.is_empty() || modules.has(field.module)) {
                missing.push(format!("{}.{}", field.structure, field.path));
            }
            member
        })
        .collect();
    let offsets = members
        .iter()
        .map(|member| member.map_or(ABSENT, |member| u64::from(member.offset)));
    let sizes = members
        .iter()
        .map(|member| member.map_or(0, |member| u64::from(member.size)));
    (offsets.chain(sizes).collect(), missing)
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::layout::Field;

    use super::*;

    /// Offsets and sizes with these fields of eight bytes each.
    fn layout(fields: &[(Field, u64)]) -> Vec<u64> {
        let mut layout = vec![ABSENT; FIELDS.len()];
        layout.resize(2 * FIELDS.len(), 0);
        for &(field, offset) in fields {
            layout[field as usize] = offset;
            layout[FIELDS.len() + field as usize] = 8;
        }
        layout
    }

    #[test]
    fn a_field_that_this_kernel_lacks_lies_behind_the_copy() {
        let layout = layout(&[
            (Field::SkbRefdst, 92),
            (Field::SkbHead, 200),
            // Not of those that are copied.
            (Field::SkbDev, 16),
        ]);
        let words = window(&layout).unwrap();
        assert_eq!(words[..2], [88, 208 - 88]);
        let at = |field: Field| words[2 + field as usize];
        assert_eq!((at(Field::SkbRefdst), at(Field::SkbHead)), (4, 112));
        let behind = WINDOW_BYTES as u32;
        assert_eq!((at(Field::SkbNfct), at(Field::SkbDev)), (behind, behind));
        assert_eq!(words.len(), 2 + FIELDS.len());
    }

    #[test]
    fn an_unknown_layout_is_refused() {
        let wide = layout(&[(Field::SkbRefdst, 0), (Field::SkbHead, 400)]);
        let error = window(&wide).unwrap_err().to_string();
        assert!(error.contains("span 408 bytes from 0"), "{error}");
        assert!(window(&layout(&[])).is_err());
    }
}
