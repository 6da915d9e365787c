//! Lines for people and scripts. A reader that has gone (`… | head`) is no reason to panic.

use std::io::{self, Write};

/// Writes text to standard output as it is. A reader that has gone is fine, a full disk is not.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    ignore_gone(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes one line to standard output.
pub fn line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes one line to standard error; there is nobody left to tell if that fails.
pub fn error(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn ignore_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_gone_reader_is_forgiven() {
        assert!(ignore_gone(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(ignore_gone(Err(io::ErrorKind::StorageFull.into())).is_err());
        assert!(ignore_gone(Ok(())).is_ok());
    }
}
