//! Errors that decide the exit code; every other error exits with 1.

use std::process::ExitCode;

/// An error whose exit code callers may rely on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A program, package, file or connection that is needed is not there: exit code 3.
    #[error("{0}")]
    Missing(String),
    /// The command line asks for something that does not exist: exit code 2.
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Missing(_) => 3,
        }
    }
}

/// Shorthand for a `Failure::Missing` inside anyhow.
pub(crate) fn missing(message: impl Into<String>) -> anyhow::Error {
    Failure::Missing(message.into()).into()
}

/// Prints the error with its causes and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("xtask: {error:#}");
    let code = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or(1, Failure::exit_code);
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn exit_code_survives_context() {
        let error = Err::<(), _>(missing("no qemu"))
            .context("starting the lab")
            .unwrap_err();
        assert_eq!(report(&error), ExitCode::from(3));
        assert_eq!(report(&anyhow::anyhow!("other")), ExitCode::from(1));
    }
}
