//! `tracer doctor`: what this kernel allows, hook by hook.

use serde::Serialize;

use super::{Exit, Failure, Output, need_root};
use crate::kernel::load::{Options, Tracing};
use crate::kernel::reasons::DropReasons;
use crate::kernel::symbols;
use crate::printer::{Printer, Show};

#[derive(Serialize)]
struct HookView {
    hook: &'static str,
    area: &'static str,
    symbol: &'static str,
    attached: Option<&'static str>,
    missing: Option<String>,
}

#[derive(Serialize)]
struct KernelView {
    release: String,
    hooks_attached: usize,
    hooks: usize,
    drop_reasons: bool,
    symbols: bool,
    missing_fields: Vec<String>,
}

pub(super) fn run(output: &Output) -> Result<Exit, Failure> {
    need_root("looking at what this kernel allows")?;
    let printer = Printer::new(output.printer_format(), Show::Nothing);
    let (tracing, btf) = Tracing::start(&Options::default())?;
    for state in &tracing.hooks {
        let view = HookView {
            hook: state.hook.id.name(),
            area: state.hook.role.area().name(),
            symbol: state.hook.place.symbol(),
            attached: state.outcome.as_ref().ok().map(|tier| tier.name()),
            missing: state.outcome.as_ref().err().map(ToString::to_string),
        };
        let mark = if view.attached.is_some() {
            "✓"
        } else {
            "✗"
        };
        let said = view
            .attached
            .map_or_else(|| view.missing.clone().unwrap_or_default(), str::to_owned);
        printer.object(
            "hook",
            &view,
            &format!(
                "{mark} {:<10} {:<24} {:<26} {said}",
                view.area, view.hook, view.symbol
            ),
        )?;
    }
    let view = KernelView {
        release: super::run::kernel_release(),
        hooks_attached: tracing
            .hooks
            .iter()
            .filter(|state| state.outcome.is_ok())
            .count(),
        hooks: tracing.hooks.len(),
        drop_reasons: !DropReasons::read(&btf).is_empty(),
        symbols: !symbols::Source::open().read().is_empty(),
        missing_fields: tracing.missing_fields.clone(),
    };
    let yes = |there: bool| if there { "yes" } else { "no" };
    let missing = if view.missing_fields.is_empty() {
        "none".to_owned()
    } else {
        view.missing_fields.join(", ")
    };
    printer.object(
        "kernel",
        &view,
        &format!(
            "\nkernel {}: {} of {} hooks attach; named drop reasons: {}; symbols of code addresses: {}; unknown kernel fields: {missing}",
            view.release,
            view.hooks_attached,
            view.hooks,
            yes(view.drop_reasons),
            yes(view.symbols)
        ),
    )?;
    Ok(Exit::Healthy)
}
