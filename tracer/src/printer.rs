//! Where views go: standard output, as text or as JSON lines.

use std::io::{self, Write};

use serde::Serialize;

use crate::cause::{Diagnosis, Finding};
use crate::journey::Journey;
use crate::view::json;
use crate::view::model::{DiagnosisView, JourneyView, SummaryView};
use crate::view::text::{self, Style};

/// How views are written.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// For a person.
    Text {
        /// Colours.
        style: Style,
        /// Every event of a journey.
        verbose: bool,
    },
    /// One object a line.
    Json {
        /// Every event of a journey.
        verbose: bool,
    },
    /// Nothing is written: whoever runs the analysis is told.
    Silent,
}

/// Which journeys are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Show {
    /// Every one.
    All,
    /// Those that did not arrive.
    Failed,
    /// Those that open a TCP connection, and every one of other protocols.
    Openings,
    /// None.
    Nothing,
}

impl Show {
    /// Every journey, or those that did not arrive.
    pub const fn all_or_failed(all: bool) -> Self {
        if all { Self::All } else { Self::Failed }
    }
}

/// True unless the packet belongs to a TCP connection that another one opened.
fn opens(journey: &Journey) -> bool {
    let Some(packet) = journey
        .events
        .iter()
        .find_map(|event| event.packet.as_ref())
    else {
        return false;
    };
    packet.opens()
}

/// Words that are no object of their own.
#[derive(Serialize)]
struct RemarkView<'a> {
    text: &'a str,
}

/// Writes views to standard output.
pub struct Printer {
    format: Format,
    show: Show,
    /// Journeys that may still be shown.
    left: Option<u64>,
}

impl Printer {
    /// A printer.
    pub const fn new(format: Format, show: Show) -> Self {
        Self {
            format,
            show,
            left: None,
        }
    }

    /// The same printer, that shows no more than so many journeys.
    #[must_use]
    pub const fn at_most(self, journeys: Option<u64>) -> Self {
        Self {
            left: journeys,
            ..self
        }
    }

    /// True once as many journeys were shown as are wanted.
    pub const fn is_full(&self) -> bool {
        matches!(self.left, Some(0))
    }

    /// Its format.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Which journeys it shows.
    pub const fn show(&self) -> Show {
        self.show
    }

    /// True when nothing is written.
    pub const fn is_silent(&self) -> bool {
        matches!(self.format, Format::Silent)
    }

    /// True when every event of a journey is written.
    pub const fn is_verbose(&self) -> bool {
        matches!(
            self.format,
            Format::Text { verbose: true, .. } | Format::Json { verbose: true }
        )
    }

    /// Changes which journeys are shown.
    pub const fn set_show(&mut self, show: Show) {
        self.show = show;
    }

    /// True when a journey is to be shown.
    pub fn wants(&self, journey: &Journey) -> bool {
        if self.is_full() {
            return false;
        }
        match self.show {
            Show::All => true,
            Show::Failed => journey.failed(),
            Show::Openings => opens(journey),
            Show::Nothing => false,
        }
    }

    /// A remark for a person; nothing in JSON.
    ///
    /// # Errors
    /// When writing fails.
    pub fn remark(&self, line: &str) -> io::Result<()> {
        match self.format {
            Format::Text { .. } => writeln!(io::stdout(), "{line}"),
            Format::Json { .. } | Format::Silent => Ok(()),
        }
    }

    /// What goes wrong beside the answer: on standard error, in JSON as a remark too.
    ///
    /// # Errors
    /// When writing fails.
    pub fn warning(&self, line: &str) -> io::Result<()> {
        eprintln!("tracer: {line}");
        match self.format {
            Format::Json { .. } => {
                json::line(&mut io::stdout(), "remark", &RemarkView { text: line })
            }
            Format::Text { .. } | Format::Silent => Ok(()),
        }
    }

    /// One journey.
    ///
    /// # Errors
    /// When writing fails.
    pub fn journey(&mut self, view: &JourneyView) -> io::Result<()> {
        self.left = self.left.map(|left| left.saturating_sub(1));
        match self.format {
            Format::Text { style, verbose } => {
                text::journey(&mut io::stdout(), view, style, verbose)
            }
            Format::Json { .. } => json::line(&mut io::stdout(), "journey", view),
            Format::Silent => Ok(()),
        }
    }

    /// One diagnosis.
    ///
    /// # Errors
    /// When writing fails.
    pub fn diagnosis(&self, diagnosis: &Diagnosis) -> io::Result<()> {
        let view = DiagnosisView::from(diagnosis);
        match self.format {
            Format::Text { style, .. } => text::diagnosis(&mut io::stdout(), &view, style),
            Format::Json { .. } => json::line(&mut io::stdout(), "diagnosis", &view),
            Format::Silent => Ok(()),
        }
    }

    /// One finding of the audit.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finding(&self, finding: &Finding) -> io::Result<()> {
        let view = DiagnosisView::from(finding);
        match self.format {
            Format::Text { style, .. } => text::diagnosis(&mut io::stdout(), &view, style),
            Format::Json { .. } => json::line(&mut io::stdout(), "finding", &view),
            Format::Silent => Ok(()),
        }
    }

    /// The summary.
    ///
    /// # Errors
    /// When writing fails.
    pub fn summary(&self, view: &SummaryView) -> io::Result<()> {
        match self.format {
            Format::Text { style, .. } => text::summary(&mut io::stdout(), view, style),
            Format::Json { .. } => json::line(&mut io::stdout(), "summary", view),
            Format::Silent => Ok(()),
        }
    }

    /// Any other object in JSON, `line` for a person.
    ///
    /// # Errors
    /// When writing fails.
    pub fn object(
        &self,
        kind: &'static str,
        value: &impl serde::Serialize,
        line: &str,
    ) -> io::Result<()> {
        match self.format {
            Format::Text { .. } => writeln!(io::stdout(), "{line}"),
            Format::Json { .. } => json::line(&mut io::stdout(), kind, value),
            Format::Silent => Ok(()),
        }
    }
}
