//! What the words after `push`, or `source = ` in the config, mean.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

use model::StreamName;

use super::udp_address::UdpAddress;

/// A source that this version reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceName {
    /// `-`: MPEG-TS on standard input.
    Stdin,
    File(PathBuf),
    /// `udp://HOST:PORT`: MPEG-TS in datagrams, in RTP or not.
    Udp(UdpAddress),
    /// `watch:/dir`: files that are put into a folder.
    Folder(PathBuf),
}

/// A source that is not read, without what may be secret in its address. The operator is at fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Of a kind that this version does not read: `rtsp://`, `https://` and the like.
    Kind(String),
    /// Of a kind that is read, with what is wrong in it.
    Wrong {
        kind: &'static str,
        what: &'static str,
    },
}

/// Longest scheme that is repeated in a message.
const MAX_SCHEME_BYTES: usize = 16;

impl SourceName {
    pub(crate) fn parse(text: &OsStr) -> Result<Self, Unread> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        // Only text can have a scheme; a path need not be text.
        let Some((kind, rest)) = text.to_str().and_then(scheme) else {
            return Ok(Self::File(PathBuf::from(text)));
        };
        match kind.to_ascii_lowercase().as_str() {
            "udp://" => UdpAddress::parse(rest)
                .map(Self::Udp)
                .map_err(|what| Unread::Wrong {
                    kind: "udp://",
                    what,
                }),
            "watch:" if rest.is_empty() => Err(Unread::Wrong {
                kind: "watch:",
                what: "give the folder behind it: watch:/srv/in",
            }),
            "watch:" => Ok(Self::Folder(PathBuf::from(rest))),
            other => Err(Unread::Kind(other.to_owned())),
        }
    }

    /// Comes when it comes: nothing can be held back, and there is no end to know.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Stdin | Self::Udp(_))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => Path::new("standard input").display().fmt(f),
            Self::File(path) => path.display().fmt(f),
            Self::Udp(address) => address.fmt(f),
            Self::Folder(path) => write!(f, "watch:{}", path.display()),
        }
    }
}

impl Unread {
    /// A sentence: what is not read, and what to type instead.
    pub(crate) fn hint(&self, stream: &StreamName) -> String {
        let kind = match self {
            Self::Wrong { kind, what } => return format!("{kind} source: {what}"),
            Self::Kind(kind) => kind,
        };
        let instead = match kind.as_str() {
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

/// `rtsp://` and the rest of `rtsp://user:password@camera/main`; also `watch:`, which needs no slashes.
fn scheme(text: &str) -> Option<(&str, &str)> {
    if text
        .get(..6)
        .is_some_and(|t| t.eq_ignore_ascii_case("watch:"))
    {
        return text.split_at_checked(6);
    }
    let end = text.find("://")?;
    let name = text.get(..end)?;
    let is_scheme = name.len() <= MAX_SCHEME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-'));
    if is_scheme {
        text.split_at_checked(end + 3)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SourceName, Unread> {
        SourceName::parse(OsStr::new(text))
    }

    #[test]
    fn files_folders_and_standard_input() {
        assert_eq!(parse("-"), Ok(SourceName::Stdin));
        for path in [
            "clip.mp4",
            "/a b/c.ts",
            "-x",
            "",
            "a:b.ts",
            "./x://y",
            "é://x",
        ] {
            assert_eq!(parse(path), Ok(SourceName::File(path.into())), "{path}");
        }
        for (text, path) in [("watch:/srv/in", "/srv/in"), ("WATCH:in", "in")] {
            let folder = SourceName::Folder(path.into());
            assert_eq!(folder.to_string(), format!("watch:{path}"));
            assert_eq!(parse(text), Ok(folder));
        }
    }

    #[test]
    fn udp_is_live_and_shows_as_it_was_given() {
        let source = parse("udp://0.0.0.0:5000").unwrap();
        assert!(source.is_live());
        assert_eq!(source.to_string(), "udp://0.0.0.0:5000");
    }

    #[test]
    fn what_is_not_read_is_said_without_secrets() {
        let gate = "gate".parse().unwrap();
        for (text, says) in [
            ("rtsp://user:secret@10.0.0.9/main", "does not read rtsp://"),
            (
                "RTSPS://user:secret@10.0.0.9/main",
                "does not read rtsps://",
            ),
            ("file:///secret", "does not read file://"),
            ("https://secret/x.m3u8", "does not read https://"),
            ("udp://secret:5000", "udp:// source: give an IP address"),
            ("watch:", "give the folder"),
        ] {
            let hint = parse(text).unwrap_err().hint(&gate);
            assert!(hint.contains(says), "{hint}");
            assert!(!hint.contains("secret"), "{hint}");
            let names_push = hint.contains("edge-node push --stream gate");
            assert_eq!(names_push, says.starts_with("does not"), "{hint}");
        }
    }
}
