//! `tracer top`: the live view of a terminal.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::MissedTickBehavior;

use super::cluster::Connection;
use super::limits::LimitArguments;
use super::run::{host_name, interrupted, kernel_release};
use super::traced::Traced;
use super::{Exit, Failure, Output, OutputFormat, need_root, runtime};
use crate::kernel::privilege;
use crate::printer::{Format, Printer, Show};
use crate::session::Session;
use crate::view::top::{self, Choice, TopView};

/// How often what is shown is made anew.
const PERIOD: Duration = Duration::from_secs(1);
/// Rows of a page.
const PAGE: isize = 10;

/// What was typed.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    traced: Traced,
    #[command(flatten)]
    limits: LimitArguments,
    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<Exit, Failure> {
    let expression = arguments.traced.expression()?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !terminal || output.format == OutputFormat::Json {
        return Err(Failure::usage(
            "top draws on a terminal; `tracer run` writes lines and JSON".into(),
        ));
    }
    need_root("tracing")?;
    let (options, mut cluster) = arguments
        .traced
        .resolve(expression, &arguments.connection)?;
    runtime()?.block_on(async {
        let printer = Printer::new(Format::Silent, Show::Nothing);
        let mut session = Session::start(&options, Vec::new(), printer)?;
        privilege::drop_unneeded()?;
        arguments.limits.apply(&mut session);
        if cluster.is_none() {
            cluster = arguments.connection.start()?;
        }
        if let Some(cluster) = cluster {
            session.watch(cluster);
        }
        let hooks = session.tracing().hooks.iter();
        let mut head = format!(
            "tracer top · {} · kernel {} · {} probes",
            host_name(),
            kernel_release(),
            hooks.filter(|state| state.outcome.is_ok()).count()
        );
        if !options.filter.is_everything() {
            head += &format!(" · filter: {}", options.filter);
        }
        watch(&mut session, head).await?;
        // What was found stays on the terminal.
        let printer = Printer::new(output.printer_format(), Show::Nothing);
        let (_, causes, _) = session.look();
        for cause in causes {
            printer.diagnosis(cause)?;
        }
        let named = !causes.is_empty();
        *session.printer() = printer;
        let ended = session.finish()?;
        let named = named || !ended.diagnoses.is_empty();
        Ok(Exit::of_trace(named, ended.capture_failed))
    })
}

/// Shows what happens until somebody ends it.
async fn watch(session: &mut Session, head: String) -> anyhow::Result<()> {
    let mut terminal = Terminal::enter()?;
    let mut keys = keys()?;
    let mut choice = Choice::default();
    let mut view = TopView::new(head);
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counted = Instant::now();
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    loop {
        let next = async {
            tokio::select! {
                key = keys.recv() => key.map_or(Next::End, |key| pressed(key, &mut choice, &view)),
                _ = tick.tick() => Next::Tick,
                () = &mut interrupted => Next::End,
            }
        };
        let (next, _) = session.collect(next).await?;
        if next == Next::Tick && choice.paused {
            continue;
        }
        if next == Next::Tick {
            let packets = view.summary.packets;
            // It asks the kernel for the cost of each program, which is too much for every key.
            view.summary = session.summary();
            let seconds = counted.elapsed().as_secs_f64();
            view.rate = (view.summary.packets - packets) as f64 / seconds;
            counted = Instant::now();
        }
        let (flows, causes, names) = session.look();
        match next {
            Next::Tick | Next::List => view.list(flows, &names, &choice),
            Next::Choose => {}
            Next::End => return Ok(()),
        }
        view.choose(flows, causes, &names, &choice);
        terminal.0.draw(|frame| top::draw(frame, &view, &choice))?;
    }
}

/// What comes after a key or a while.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Everything anew.
    Tick,
    /// Other flows are wanted.
    List,
    /// Another flow is chosen.
    Choose,
    End,
}

fn pressed(key: KeyEvent, choice: &mut Choice, view: &TopView) -> Next {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Next::End,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::End,
        KeyCode::Char('f') => {
            choice.failing_only = !choice.failing_only;
            return Next::List;
        }
        KeyCode::Enter => choice.whole = !choice.whole,
        KeyCode::Char(' ') => choice.paused = !choice.paused,
        KeyCode::Down | KeyCode::Char('j') => choice.go(1, view),
        KeyCode::Up | KeyCode::Char('k') => choice.go(-1, view),
        KeyCode::PageDown => choice.go(PAGE, view),
        KeyCode::PageUp => choice.go(-PAGE, view),
        KeyCode::Home => choice.go(isize::MIN, view),
        KeyCode::End => choice.go(isize::MAX, view),
        _ => {}
    }
    Next::Choose
}

/// Keys as they are pressed; a changed size counts as a key that does nothing.
fn keys() -> anyhow::Result<UnboundedReceiver<KeyEvent>> {
    let (sender, receiver) = unbounded_channel();
    // It ends with the process: reading has no end of its own.
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            while let Ok(event) = event::read() {
                let key = match event {
                    Event::Key(key) if key.kind != KeyEventKind::Release => key,
                    Event::Resize(..) => KeyEvent::from(KeyCode::Null),
                    _ => continue,
                };
                if sender.send(key).is_err() {
                    return;
                }
            }
        })
        .context("no thread can be had to read keys")?;
    Ok(receiver)
}

/// The terminal as long as it is drawn on; dropping it gives it back as it was.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn enter() -> anyhow::Result<Self> {
        ratatui::try_init()
            .map(Self)
            .context("the terminal cannot be drawn on")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
