//! `tracer top` on a terminal: a failure and its cause come to the screen, keys work, and what was found
//! is left behind.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::pty::{Winsize, openpty};

use crate::{Tracer, check};

/// A port that nothing listens on.
const CLOSED: &str = "127.0.0.1:81";
/// Long enough for a slow machine; what is waited for comes much sooner.
const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: u16 = 40;
const COLUMNS: u16 = 130;

/// A terminal with the tracer on it; dropping it ends the tracer.
struct Terminal {
    keys: File,
    screen: Arc<Mutex<vt100::Parser>>,
    child: Child,
}

impl Terminal {
    fn start(tracer: &Tracer, words: &[&str]) -> anyhow::Result<Self> {
        let size = Winsize {
            ws_row: ROWS,
            ws_col: COLUMNS,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).context("no terminal can be had")?;
        let end = || -> std::io::Result<OwnedFd> { pair.slave.try_clone() };
        let child = Command::new(tracer.path())
            .args(words)
            .env("TERM", "xterm-256color")
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()
            .context("the tracer cannot be started")?;
        let keys = File::from(pair.master);
        let mut output = keys.try_clone()?;
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let painted = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails once nobody has the other end any more.
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                locked(&painted).process(&bytes[..count]);
            }
        });
        Ok(Self {
            keys,
            screen,
            child,
        })
    }

    fn text(&self) -> String {
        locked(&self.screen).screen().contents()
    }

    fn draws(&self) -> bool {
        locked(&self.screen).screen().alternate_screen()
    }

    fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    fn wait(&self, what: &str, so: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !so(&self.text()) {
            check(begun.elapsed() < PATIENCE, || {
                format!("not on the screen: {what}\n{}", self.text())
            })?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<Option<i32>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            check(begun.elapsed() < PATIENCE, || "it does not end".into())?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended already where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn locked(screen: &Mutex<vt100::Parser>) -> MutexGuard<'_, vt100::Parser> {
    screen
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Connections to a closed port.
///
/// # Errors
/// With what was other than expected.
pub fn shows_a_failure(tracer: &Tracer) -> anyhow::Result<()> {
    let words = ["top", "--no-kube", "--max-cpu", "0", "tcp", "port", "81"];
    let mut terminal = Terminal::start(tracer, &words)?;
    terminal.wait("the head", |text| {
        text.contains("tracer top") && text.contains("0 of 0 flows fail")
    })?;
    check(terminal.draws(), || "it draws among other lines".into())?;
    // It is refused.
    let _ = TcpStream::connect(CLOSED);
    terminal.wait("the flow, its way and its cause", |text| {
        [
            "1 of 1 flows fail",
            "✗ tcp 127.0.0.1:",
            "→ 127.0.0.1:81",
            "✗ tcp: no socket",
            "✗ no-listener · certain · 1 of 1",
            "Evidence",
        ]
        .iter()
        .all(|words| text.contains(words))
    })?;
    let _ = TcpStream::connect(CLOSED);
    terminal.wait("the second flow", |text| text.contains("2 of 2 flows fail"))?;
    terminal.wait("the later flow chosen, with the cause of both", |text| {
        text.contains(" flow 2: ") && text.matches("certain · 2 of 2").count() == 2
    })?;
    terminal.press("\x1b[B")?;
    terminal.wait("the earlier flow chosen", |text| text.contains(" flow 1: "))?;
    terminal.press("\r")?;
    terminal.wait("it alone, to the end of its cause", |text| {
        text.contains("tracer why no-listener") && !text.contains("flows fail")
    })?;
    terminal.press(" ")?;
    terminal.wait("a pause", |text| text.contains("paused"))?;
    terminal.press("q")?;
    let code = terminal.end()?;
    terminal.wait("what was found, after the end", |text| {
        text.contains("tracer why no-listener") && text.contains("summary")
    })?;
    check(code == Some(1) && !terminal.draws(), || {
        format!("exit code {code:?}: {}", terminal.text())
    })
}
