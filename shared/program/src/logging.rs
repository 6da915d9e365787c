//! Logs: `tracing` to standard error, as text or JSON; `PENSTOCK_LOG` filters.

use std::io;

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// The variable that filters logs: `debug`, or by module, `info,link=debug`.
pub const FILTER_VARIABLE: &str = "PENSTOCK_LOG";
const DEFAULT_FILTER: &str = "info";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// The flags both programs have for logs; flatten it into the top command.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How log lines look (on standard error); PENSTOCK_LOG filters them, e.g. `info,link=debug`
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "PENSTOCK_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: Format,
}

/// Logs to standard error from here on. The first call counts.
pub fn init(format: Format) {
    init_to(format, io::stderr);
}

/// Logs to a writer of the caller's, such as one that steps around a progress bar.
pub fn init_to<W>(format: Format, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let given = std::env::var(FILTER_VARIABLE).unwrap_or_default();
    let filter = if given.is_empty() {
        DEFAULT_FILTER
    } else {
        &given
    };
    let (filter, wrong) = match EnvFilter::try_new(filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT_FILTER), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    let colours = io::IsTerminal::is_terminal(&io::stderr());
    let done = match format {
        Format::Text => builder.with_ansi(colours).with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if let (Ok(()), Some(error)) = (done, wrong) {
        tracing::warn!(variable = FILTER_VARIABLE, %error, "log filter is not understood; using info");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_have_flat_fields() {
        let sink = Sink::default();
        let writer = sink.clone();
        init_to(Format::Json, move || writer.clone());
        init(Format::Text); // The first call counts.
        tracing::info!(stream = "gate", "hello");
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains(r#""stream":"gate""#) && text.contains(r#""message":"hello""#),
            "{text}"
        );
        assert!(text.starts_with('{') && text.ends_with("}\n"), "{text}");
    }
}
