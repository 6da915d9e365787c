//! How a program ends: four exit codes, and one line on standard error that says why.

use std::{fmt, process::ExitCode};

use crate::config::ConfigError;

/// The exit codes that scripts rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Done,
    /// Something failed while running.
    Failed,
    /// The command line is wrong (clap's own code too).
    Usage,
    /// The configuration is wrong (`EX_CONFIG` of sysexits.h).
    Config,
}

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Config => 78,
        }
    }
}

/// Why a program stops short, and the code it stops with. Any `anyhow` error becomes one with code 1.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failure {
    /// The command line asks for what can't be.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The configuration asks for what can't be.
    pub fn config(message: impl fmt::Display) -> Self {
        Self::new(Exit::Config, message)
    }

    /// It was tried and did not work.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            error: anyhow::anyhow!("{message}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            exit: Exit::Failed,
            error,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            exit: Exit::Config,
            error: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    /// The whole chain of causes on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// What `main` returns: says what went wrong, if anything, and gives the code.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(Exit::Done.code()),
        Err(failure) => {
            crate::output::error(&format!("error: {failure}"));
            ExitCode::from(failure.exit.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_are_the_public_ones() {
        assert_eq!(
            [Exit::Done, Exit::Failed, Exit::Usage, Exit::Config].map(Exit::code),
            [0, 1, 2, 78]
        );
    }

    #[test]
    fn a_failure_shows_its_causes_and_keeps_its_code() {
        let cause = std::io::Error::other("disk on fire");
        let failure = Failure::from(
            Err::<(), _>(cause)
                .context("failed to open the store")
                .unwrap_err(),
        );
        assert_eq!(failure.exit, Exit::Failed);
        assert_eq!(
            failure.to_string(),
            "failed to open the store: disk on fire"
        );
        assert_eq!(Failure::usage("no").exit, Exit::Usage);
        assert_eq!(Failure::config("no").exit, Exit::Config);
    }
}
