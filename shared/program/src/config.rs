//! Reads a TOML file into a type, and says line and key where it can't.
//!
//! Types refuse unknown keys themselves (`#[serde(deny_unknown_fields)]`).

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Longest config file; a thousand streams fit many times.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A config file that can't be used. The operator is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read config {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("config {path} is longer than {MAX_CONFIG_BYTES} bytes", path = path.display())]
    TooLong { path: PathBuf },
    /// `place` is empty or `, line 3, key stream.name`.
    #[error("config {path}{place}: {what}", path = path.display())]
    Wrong {
        path: PathBuf,
        place: String,
        what: String,
    },
}

impl ConfigError {
    /// For what only a check over several keys finds; `key` as in the file: `stream.source`.
    pub fn key(path: &Path, key: &str, what: impl Into<String>) -> Self {
        Self::Wrong {
            path: path.to_owned(),
            place: format!(", key {key}"),
            what: what.into(),
        }
    }
}

/// Reads and parses a config file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let mut file = File::open(path).map_err(read)?.take(MAX_CONFIG_BYTES + 1);
    file.read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLong {
            path: path.to_owned(),
        });
    }
    parse(path, &text)
}

/// Parses the text of a config file; `path` is for messages.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Wrong {
        path: path.to_owned(),
        place: error.span().map_or_else(String::new, |s| place(text, s)),
        what: error.message().trim().replace('\n', "; "),
    })
}

/// `, line 3, key stream.name` for a span of the text.
fn place(text: &str, span: Range<usize>) -> String {
    let before = text.get(..span.start).unwrap_or(text);
    let line_number = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = text
        .get(line_start..)
        .and_then(|rest| rest.lines().next())
        .unwrap_or_default();
    let table = text
        .get(..line_start)
        .unwrap_or_default()
        .lines()
        .rev()
        .find_map(header);
    let key = match (header(line), line.split_once('=')) {
        (Some(name), _) => Some(name.to_owned()),
        (None, Some((key, _))) => Some(match table {
            Some(table) => format!("{table}.{}", key.trim()),
            None => key.trim().to_owned(),
        }),
        (None, None) => None,
    };
    match key {
        Some(key) => format!(", line {line_number}, key {key}"),
        None => format!(", line {line_number}"),
    }
}

/// The name in `[name]` or `[[name]]`.
fn header(line: &str) -> Option<&str> {
    let line = line.split('#').next()?.trim();
    let inner = line.strip_prefix('[')?.strip_suffix(']')?;
    let inner = inner
        .strip_prefix('[')
        .and_then(|i| i.strip_suffix(']'))
        .unwrap_or(inner);
    Some(inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Example {
        data_dir: Option<PathBuf>,
        #[serde(default)]
        stream: Vec<Stream>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Stream {
        name: String,
        kbps: u32,
    }

    fn wrong(text: &str) -> String {
        parse::<Example>(Path::new("e.toml"), text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn line_and_key_are_named() {
        for (text, begins) in [
            (
                "data_dri = \"/x\"\n",
                "config e.toml, line 1, key data_dri: unknown field `data_dri`",
            ),
            (
                "# c\n[[stream]] # first\nname = \"a\"\nkbps = \"many\"\n",
                "config e.toml, line 4, key stream.kbps: invalid type: string",
            ),
            (
                "[[stream]]\nname = \"a\"\nkbps = -1\n",
                "config e.toml, line 3, key stream.kbps: ",
            ),
            (
                "[[stream]]\nname = \"a\"\n",
                "config e.toml, line 1, key stream: missing field `kbps`",
            ),
            ("data_dir = \n", "config e.toml, line 1"),
            ("what is this", "config e.toml, line 1"),
            (
                "[disk]\nmax = 1\n",
                "config e.toml, line 1, key disk: unknown field",
            ),
        ] {
            let error = wrong(text);
            assert!(error.starts_with(begins), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn files_that_are_missing_or_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big.toml");
        let missing = load::<Example>(&path).unwrap_err().to_string();
        assert!(missing.contains("big.toml: No such file"), "{missing}");
        std::fs::write(&path, "#".repeat(MAX_CONFIG_BYTES as usize + 1)).unwrap();
        assert!(matches!(
            load::<Example>(&path),
            Err(ConfigError::TooLong { .. })
        ));
    }
}
