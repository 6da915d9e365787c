//! What the words after `push`, or `source = ` in the config, mean.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

use model::StreamName;

/// A source that this version reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceName {
    /// `-`: MPEG-TS on standard input.
    Stdin,
    File(PathBuf),
}

/// A kind of source that this version does not read, without what may be secret in its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    /// `rtsp://`, `udp://`, `watch:` and the like.
    kind: String,
}

/// Longest scheme that is repeated in a message.
const MAX_SCHEME_BYTES: usize = 16;

impl SourceName {
    pub(crate) fn parse(text: &OsStr) -> Result<Self, Unread> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        // Only text can have a scheme; a path need not be text.
        match text.to_str().and_then(scheme) {
            Some(kind) => Err(Unread {
                kind: kind.to_ascii_lowercase(),
            }),
            None => Ok(Self::File(PathBuf::from(text))),
        }
    }

    /// The name in messages: the path's, not a number.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Stdin => Path::new("standard input"),
            Self::File(path) => path,
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

impl Unread {
    /// A sentence: what is not read, and what to type instead.
    pub(crate) fn hint(&self, stream: &StreamName) -> String {
        let kind = &self.kind;
        let instead = match kind.as_str() {
            "watch:" => {
                format!("push the files by name: `edge-node push --stream {stream} FILE...`")
            }
            "file://" => {
                format!("give the path alone: `edge-node push --stream {stream} /the/path.ts`")
            }
            _ => format!(
                "let ffmpeg read it: `ffmpeg -i {kind}… -c copy -f mpegts - | edge-node push --stream {stream} -`"
            ),
        };
        format!("this version does not read {kind} sources yet; {instead}")
    }
}

/// `rtsp://` of `rtsp://user:password@camera/main`; also `watch:`, which needs no slashes.
fn scheme(text: &str) -> Option<&str> {
    if text
        .get(..6)
        .is_some_and(|t| t.eq_ignore_ascii_case("watch:"))
    {
        return text.get(..6);
    }
    let end = text.find("://")?;
    let name = text.get(..end)?;
    let is_scheme = name.len() <= MAX_SCHEME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-'));
    if is_scheme { text.get(..end + 3) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_standard_input() {
        assert_eq!(SourceName::parse(OsStr::new("-")), Ok(SourceName::Stdin));
        for path in [
            "clip.mp4",
            "/a b/c.ts",
            "-x",
            "",
            "a:b.ts",
            "./x://y",
            "é://x",
        ] {
            assert_eq!(
                SourceName::parse(OsStr::new(path)),
                Ok(SourceName::File(path.into())),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_not_read_is_said_without_secrets() {
        let gate = "gate".parse().unwrap();
        for (text, kind) in [
            ("rtsp://user:secret@10.0.0.9/main", "rtsp://"),
            ("RTSPS://user:secret@10.0.0.9/main", "rtsps://"),
            ("udp://secret:5000", "udp://"),
            ("watch:/secret", "watch:"),
            ("file:///secret", "file://"),
            ("https://secret/x.m3u8", "https://"),
        ] {
            let hint = SourceName::parse(OsStr::new(text)).unwrap_err().hint(&gate);
            assert!(hint.contains(&format!("does not read {kind}")), "{hint}");
            assert!(hint.contains("edge-node push --stream gate"), "{hint}");
            assert!(!hint.contains("secret"), "{hint}");
        }
    }
}
