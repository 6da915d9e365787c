//! Names that operators give: streams and devices. One rule for both.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest name in bytes; keeps paths, URLs and table rows short.
pub const MAX_NAME_BYTES: usize = 64;

/// A name that breaks the rule. The operator (or a peer) is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not a valid name: use 1 to 64 characters of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct NameError {
    given: String,
}

fn check(text: &str) -> Result<Arc<str>, NameError> {
    let rest_ok =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let first_ok = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ok = bytes.len() <= MAX_NAME_BYTES
        && bytes.first().is_some_and(first_ok)
        && bytes.iter().copied().all(rest_ok)
        // `..` is within the letters allowed but must never reach a path.
        && !text.contains("..");
    if ok {
        Ok(Arc::from(text))
    } else {
        Err(NameError {
            given: text.chars().take(MAX_NAME_BYTES + 1).collect(),
        })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text: safe as a path component, in a URL and in a log.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// One camera's one encoding, named by the operator; outlives reconnects.
    StreamName
);
name!(
    /// One installed edge-node, by name.
    DeviceName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        for good in ["a", "gate", "cam-1.main_low", "0", &"x".repeat(64)] {
            assert!(good.parse::<StreamName>().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "-a",
            "_a",
            "Gate",
            "a/b",
            "a b",
            "caméra",
            "🎥",
            "a\0",
            &"x".repeat(65),
        ] {
            let error = bad.parse::<StreamName>().unwrap_err().to_string();
            assert!(error.contains("use 1 to 64 characters"), "{error}");
        }
    }
}
