//! What the end-to-end tests share: running the tracer and reading its JSON, and the list of tests
//! with its report.

pub mod api_server;
pub mod attach;
pub mod backlog;
pub mod browser;
pub mod capture;
pub mod check;
pub mod cluster;
pub mod ends;
mod export;
pub mod field_notes;
pub mod filter;
pub mod fleet;
pub mod guard;
pub mod matrix;
pub mod merge;
pub mod neighbours;
pub mod paths;
pub mod proxy_rules;
pub mod rules;
pub mod schema;
pub mod serve;
pub mod tcp;
pub mod top;
pub mod tour;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Longest run of a command.
const LIMIT: Duration = Duration::from_secs(120);

/// One test: a name and what it does.
pub struct Test {
    /// Name in reports and for the filter.
    pub name: String,
    /// Fails with what was wrong.
    pub run: Run,
}

/// What a test does.
pub type Run = Box<dyn Fn(&Tracer) -> anyhow::Result<()>>;

impl Test {
    /// A test.
    pub fn new(
        name: impl Into<String>,
        run: impl Fn(&Tracer) -> anyhow::Result<()> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// A test cannot be done here, and why: it neither passed nor failed.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for Skip {}

/// What became of a test, as the results say it.
fn outcome(result: &anyhow::Result<()>) -> &'static str {
    match result {
        Ok(()) => "passed",
        Err(error) if error.is::<Skip>() => "skipped",
        Err(_) => "failed",
    }
}

/// What several tests rest on; the first that asks for it makes it.
pub struct Shared<T>(Rc<OnceCell<Result<T, String>>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Shared<T> {
    /// What `make` makes, or made for another test.
    ///
    /// # Errors
    /// Each time, when it could not be made.
    pub fn get(&self, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<&T> {
        self.0
            .get_or_init(|| make().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }
}

/// Runs the tests whose name holds one of `filters` (all when there is none), reports each, writes the
/// results, and says whether all passed.
///
/// # Errors
/// When the results cannot be written.
pub fn run(
    tests: &[Test],
    tracer: &Tracer,
    filters: &[String],
    results: &Path,
) -> anyhow::Result<bool> {
    let mut rows = Vec::new();
    let chosen = |test: &&Test| {
        filters.is_empty() || filters.iter().any(|filter| test.name.contains(filter))
    };
    for test in tests.iter().filter(chosen) {
        let begun = Instant::now();
        let result = (test.run)(tracer);
        let seconds = begun.elapsed().as_secs_f64();
        let detail = result
            .as_ref()
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        let word = outcome(&result);
        println!("{word} {:<48} {seconds:>6.1} s  {detail}", test.name);
        rows.push(json!({"test": test.name, "outcome": word, "detail": detail}));
    }
    std::fs::write(results, Value::from(rows.clone()).to_string())
        .context("the results cannot be written")?;
    let count = |word: &str| rows.iter().filter(|row| row["outcome"] == word).count();
    let (passed, failed, skipped) = (count("passed"), count("failed"), count("skipped"));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && !rows.is_empty())
}

/// The tracer under test.
pub struct Tracer {
    path: PathBuf,
}

/// What a run of the tracer came to.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Tracer {
    /// The program at this path.
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs it to its end, at most for two minutes.
    ///
    /// # Errors
    /// When it cannot be started or does not end, or prints an object that the schema does not allow.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        self.run_within(arguments, LIMIT)
    }

    /// Runs it to its end, at most for so long.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub fn run_within(&self, arguments: &[&str], limit: Duration) -> anyhow::Result<Answer> {
        let answer = finish_within(Command::new(&self.path).args(arguments), limit)?;
        schema::validate(&answer.stdout)?;
        Ok(answer)
    }
}

/// A tracer at work.
pub struct Running {
    child: Child,
    stdout: JoinHandle<String>,
}

impl Tracer {
    /// Starts `tracer run` with more arguments and waits until it traces.
    ///
    /// # Errors
    /// When it cannot be started or ends before it traces.
    pub fn start(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        let mut words = [&["run"], arguments].concat();
        if !arguments.contains(&"--max-cpu") {
            // An emulated processor takes long over everything.
            words.extend(["--max-cpu", "0"]);
        }
        let (running, first) = self.begin(&words)?;
        check(first.contains("\"ready\""), || {
            format!("the tracer does not trace: {first:?}")
        })?;
        Ok(running)
    }

    /// Starts a command of the tracer with JSON as its output; gives its first line too.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, words: &[&str]) -> anyhow::Result<(Running, String)> {
        let mut child = Command::new(&self.path)
            .args(words)
            .args(["--format", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .context("the tracer cannot be started")?;
        let mut stdout = BufReader::new(child.stdout.take().context("the tracer has no output")?);
        let mut first = String::new();
        stdout.read_line(&mut first)?;
        let stdout = gather(std::io::Cursor::new(first.clone()).chain(stdout));
        Ok((Running { child, stdout }, first))
    }
}

impl Running {
    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True once it has ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Asks it to end as Ctrl-C does.
    ///
    /// # Errors
    /// When it is gone.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.id())?);
        Ok(nix::sys::signal::kill(
            id,
            nix::sys::signal::Signal::SIGINT,
        )?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for, or prints an object that the schema does not allow.
    pub fn finish(mut self) -> anyhow::Result<Answer> {
        let status = self.child.wait()?;
        let stdout = self.stdout.join().unwrap_or_default();
        schema::validate(&stdout)?;
        Ok(Answer {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr: String::new(),
        })
    }
}

/// Runs a command to its end, at most for two minutes.
///
/// # Errors
/// When it cannot be started or does not end.
pub fn finish(command: &mut Command) -> anyhow::Result<Answer> {
    finish_within(command, LIMIT)
}

fn finish_within(command: &mut Command, limit: Duration) -> anyhow::Result<Answer> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?} cannot be started"))?;
    let stdout = child.stdout.take().map(gather);
    let stderr = child.stderr.take().map(gather);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = |reader: Option<JoinHandle<String>>| {
        reader
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default()
    };
    Ok(Answer {
        code: status.code().unwrap_or(-1),
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

/// Reads a stream to its end, so that a full pipe does not stop the program.
fn gather(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Answer {
    /// The JSON objects of one type, in order.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        self.stdout
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|value| value["type"] == kind)
            .collect()
    }

    /// The first JSON object of one type.
    ///
    /// # Errors
    /// When there is none.
    pub fn object(&self, kind: &str) -> anyhow::Result<Value> {
        self.objects(kind).into_iter().next().with_context(|| {
            format!(
                "no {kind} was printed; exit {}, stderr: {}",
                self.code,
                self.stderr.trim()
            )
        })
    }

    /// Events by hook, as the summary counts them.
    ///
    /// # Errors
    /// When there is no summary.
    pub fn hooks(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let summary = self.object("summary")?;
        let hooks = summary["hooks"]
            .as_array()
            .context("the summary has no hooks")?;
        let count = |row: &Value| Some((row[0].as_str()?.to_owned(), row[1].as_u64()?));
        Ok(hooks.iter().filter_map(count).collect())
    }

    /// Fails unless the exit code is this one.
    ///
    /// # Errors
    /// With what was printed.
    pub fn expect_code(&self, code: i32) -> anyhow::Result<()> {
        if self.code == code {
            return Ok(());
        }
        let tail: Vec<_> = self.stdout.lines().rev().take(3).collect();
        bail!(
            "exit {} instead of {code}; stderr: {}; last lines: {tail:?}",
            self.code,
            self.stderr.trim()
        )
    }
}

/// Fails with a message unless a condition holds.
///
/// # Errors
/// When it does not hold.
pub fn check(condition: bool, message: impl FnOnce() -> String) -> anyhow::Result<()> {
    if condition { Ok(()) } else { bail!(message()) }
}
