//! Plays a case in a session: builds it, sends, says what was found, fixes it and sends again.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::Failure;
use super::super::run::kernel_release;
use crate::cause::{Certainty, Diagnosis};
use crate::printer::{Printer, Show};
use crate::scenario::namespace::Announce;
use crate::scenario::traffic::Attempt;
use crate::scenario::{Case, Options, Scenario, Variant};
use crate::session::Session;

/// Longest wait for the packets under way: a neighbour that does not answer takes three seconds.
const SETTLE: Duration = Duration::from_secs(6);
/// What building and fixing send is not part of the case.
const QUIET: Duration = Duration::from_millis(200);

const BEFORE: &str = "before the fix";
const AFTER: &str = "after the fix";

/// What a command printed that shows the fault to a person.
#[derive(Serialize)]
struct ShownView<'a> {
    phase: &'a str,
    command: &'a str,
    output: &'a str,
}

#[derive(Serialize)]
struct AttemptView<'a> {
    phase: &'a str,
    target: &'a str,
    address: String,
    outcome: String,
    answered: bool,
    elapsed_ms: f64,
}

/// A cause that was named.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub(super) struct FoundView {
    cause: &'static str,
    subject: String,
    certainty: &'static str,
    consequences: Vec<&'static str>,
    missing: Vec<String>,
    /// The lines of each way to fix it.
    #[serde(skip)]
    printed: Vec<Vec<String>>,
}

/// What a case came to.
#[derive(Serialize)]
pub(super) struct VerdictView {
    case: &'static str,
    variant: &'static str,
    expected: &'static [&'static str],
    /// What was named before the fix, in order.
    pub(super) found: Vec<FoundView>,
    /// Exactly the expected causes were named, the root first, and something failed; of a healthy
    /// variant: nothing was named and everything answered.
    explained: bool,
    /// Every expected cause was named with certainty.
    certain: bool,
    /// After the fix everything answered and nothing was named.
    fixed: bool,
    pub(super) as_expected: bool,
    /// What was named after the fix.
    after: Vec<FoundView>,
    /// Why it could not be built, sent to or fixed.
    error: Option<String>,
    seconds: f64,
}

impl VerdictView {
    /// The verdict in a few words, for the list of those that went wrong.
    pub(super) fn complaint(&self) -> String {
        format!("{} ({}): {}", self.case, self.variant, self.words())
    }

    fn words(&self) -> &str {
        if let Some(error) = &self.error {
            return error;
        }
        match (self.expected.is_empty(), self.explained, self.fixed) {
            (true, true, _) => "healthy: everything answered, and no cause was named",
            (true, false, _) if !self.found.is_empty() => "healthy traffic was blamed",
            (true, false, _) => "a healthy target did not answer",
            (false, true, true) => {
                "explained, fixed and proven: everything answers, and no cause is named any more"
            }
            (false, false, _) if self.found.is_empty() => "no cause was named",
            (false, false, _) => "other causes were named than the one that was built",
            (false, true, false) => "the fix did not help",
        }
    }
}

/// Plays cases in one session.
pub(super) struct Player<'a> {
    session: &'a mut Session,
    options: Options,
}

impl<'a> Player<'a> {
    pub(super) const fn new(session: &'a mut Session, options: Options) -> Self {
        Self { session, options }
    }

    /// Plays one; `None` when this kernel cannot show it, which is said.
    pub(super) async fn play(
        &mut self,
        scenario: &'static Scenario,
        variant: &'static Variant,
    ) -> Result<Option<VerdictView>, Failure> {
        let begun = Instant::now();
        let title = format!("{} ({})", scenario.name, variant.name);
        if let Some(why) = scenario.impossible_on(&kernel_release()) {
            let view =
                serde_json::json!({"case": scenario.name, "variant": variant.name, "why": why});
            let line = format!("{title} is left out on this kernel: {why}");
            self.session.printer().object("skipped", &view, &line)?;
            return Ok(None);
        }
        self.session
            .printer()
            .remark(&announcement(scenario, variant))?;
        let mut view = VerdictView {
            case: scenario.name,
            variant: variant.name,
            expected: scenario.expected(variant),
            found: Vec::new(),
            explained: false,
            certain: false,
            fixed: !variant.fault,
            as_expected: false,
            after: Vec::new(),
            error: None,
            seconds: 0.0,
        };
        // One that cannot be built must not hide the others.
        if let Err(Failure { error, .. }) = self.perform(scenario, variant, &mut view).await {
            view.error = Some(format!("{error:#}"));
        }
        view.as_expected = view.error.is_none() && view.explained && view.fixed;
        view.seconds = begun.elapsed().as_secs_f64();
        let words = format!("\n{}", view.words());
        self.session.printer().object("verdict", &view, &words)?;
        Ok(Some(view))
    }

    async fn perform(
        &mut self,
        scenario: &'static Scenario,
        variant: &'static Variant,
        view: &mut VerdictView,
    ) -> Result<(), Failure> {
        let (options, announce) = (self.options.clone(), self.announce());
        let mut case =
            tokio::task::spawn_blocking(move || scenario.build(variant, options, announce))
                .await??;
        self.session.trace_only(case.namespaces())?;
        self.session.set_cluster(case.cluster());
        self.quieten().await?;

        self.show(&case, BEFORE)?;
        let (found, answered) = self.phase(&case, BEFORE).await?;
        view.explained = explains(&found, view.expected) && answered != variant.fault;
        view.certain = found
            .iter()
            .all(|found| found.certainty == Certainty::Certain.name());
        view.found = found;
        if variant.fault {
            self.session.printer().remark("applying the fix")?;
            let root = view.found.first();
            let printed = root.map_or_else(Vec::new, |found| found.printed.clone());
            case = tokio::task::spawn_blocking(move || case.apply_fix(&printed).map(|()| case))
                .await??;
            self.session.set_cluster(case.cluster());
            // What the fix itself sent is not the proof.
            self.quieten().await?;
            self.show(&case, AFTER)?;
            let (after, answered) = self.phase(&case, AFTER).await?;
            view.fixed = after.is_empty() && answered;
            view.after = after;
        }
        // What its end sends belongs to nothing.
        self.session.trace_only(Vec::new())?;
        Ok(tokio::task::spawn_blocking(move || drop(case)).await?)
    }

    fn announce(&mut self) -> Announce {
        let format = self.session.printer().format();
        Box::new(move |line: &str| {
            // Losing a remark must not lose the reproduction.
            let _ = Printer::new(format, Show::Nothing).remark(&format!("  {line}"));
        })
    }

    fn show(&mut self, case: &Case, phase: &'static str) -> Result<(), Failure> {
        for (command, output) in case.show()? {
            let view = ShownView {
                phase,
                command: &command,
                output: &output,
            };
            self.session
                .printer()
                .object("shown", &view, output.trim_end())?;
        }
        Ok(())
    }

    /// Lets what is under way end, unseen and unjudged.
    async fn quieten(&mut self) -> Result<(), Failure> {
        let show = self.session.printer().show();
        self.session.printer().set_show(Show::Nothing);
        self.session.collect(tokio::time::sleep(QUIET)).await?;
        self.session.printer().set_show(show);
        self.session.forget();
        Ok(())
    }

    /// Sends to every target while tracing, and waits for what comes of it; true when all answered.
    async fn phase(
        &mut self,
        case: &Case,
        name: &'static str,
    ) -> Result<(Vec<FoundView>, bool), Failure> {
        let mut found: Vec<FoundView> = Vec::new();
        let mut answered = true;
        for target in case.targets() {
            let heading = format!("\n{name}: {} {}", target.label, target.address);
            self.session.printer().remark(&heading)?;
            let (label, address) = (target.label, target.address.to_string());
            let requests = self.options.requests;
            let sending = tokio::task::spawn_blocking(move || target.send(requests));
            let (sent, diagnoses) = self.session.collect(sending).await?;
            take(&mut found, &diagnoses);
            for attempt in sent?? {
                answered &= attempt.answered();
                self.show_attempt(name, label, &address, &attempt)?;
            }
            take(&mut found, &self.session.settle(SETTLE).await?);
        }
        Ok((found, answered))
    }

    fn show_attempt(
        &mut self,
        phase: &str,
        target: &'static str,
        address: &str,
        attempt: &Attempt,
    ) -> Result<(), Failure> {
        let view = AttemptView {
            phase,
            target,
            address: address.to_owned(),
            outcome: attempt.outcome.to_string(),
            answered: attempt.answered(),
            elapsed_ms: attempt.elapsed.as_secs_f64() * 1e3,
        };
        let line = format!(
            "{target} {address}: {} in {:.1} ms",
            view.outcome, view.elapsed_ms
        );
        self.session.printer().object("attempt", &view, &line)?;
        Ok(())
    }
}

/// What is going to be built, and what is expected of it.
fn announcement(scenario: &Scenario, variant: &Variant) -> String {
    let expected = match scenario.expected(variant) {
        [] => "no cause".to_owned(),
        causes => causes.join(", then "),
    };
    format!(
        "\nbuilding {} ({}): {}\nexpected: {expected}",
        scenario.name, variant.name, variant.title
    )
}

/// Adds what was named; what is named again, surer, takes its old place.
fn take(found: &mut Vec<FoundView>, diagnoses: &[Diagnosis]) {
    for diagnosis in diagnoses {
        let view = FoundView {
            cause: diagnosis.code,
            subject: diagnosis.subject.clone(),
            certainty: diagnosis.certainty.name(),
            consequences: diagnosis
                .consequences
                .iter()
                .map(|other| other.code)
                .collect(),
            missing: diagnosis.missing.clone(),
            printed: diagnosis
                .fixes
                .iter()
                .map(|fix| fix.lines.clone())
                .collect(),
        };
        let known = found
            .iter_mut()
            .find(|known| known.cause == view.cause && known.subject == view.subject);
        match known {
            Some(known) => *known = view,
            None => found.push(view),
        }
    }
}

/// Exactly the expected causes, the root first.
fn explains(found: &[FoundView], expected: &[&str]) -> bool {
    let first = found.first().map(|found| found.cause) == expected.first().copied();
    let all = expected
        .iter()
        .all(|code| found.iter().any(|found| found.cause == *code));
    let only = found.iter().all(|found| expected.contains(&found.cause));
    first && all && only
}

#[cfg(test)]
mod tests {
    use super::announcement;
    use crate::scenario;

    #[test]
    fn what_is_expected_is_said_before() {
        for (variant, expected) in [
            ("rule-deaf", "expected: filter-rule-drop, then no-listener"),
            ("healthy", "expected: no cause"),
        ] {
            let scenario = scenario::find("mixed").expect("it is there");
            let mut variants = scenario.variants.iter();
            let found = variants.find(|found| found.name == variant);
            let text = announcement(scenario, found.expect("it is there"));
            assert!(text.ends_with(expected), "{text}");
        }
    }
}
