//! How each input stands: its state in a word and a reason, and what was counted of it.
//!
//! Written by the threads that take inputs in, read by status and metrics. Nothing is decided here.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use model::StreamName;
use serde_json::{Map, Value, json};

/// All inputs of a program; fixed when it starts, at most [`crate::config::MAX_STREAMS`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs(Arc<Vec<Arc<Input>>>);

impl Inputs {
    pub(crate) fn new(inputs: Vec<Arc<Input>>) -> Self {
        Self(Arc::new(inputs))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Input>> {
        self.0.iter()
    }

    /// For `GET /api/v1/status`.
    pub(crate) fn json(&self) -> Value {
        self.iter().map(|input| input.json()).collect()
    }
}

/// What an input does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InputState {
    Starting,
    Recording,
    /// Nothing is wrong here, and nothing comes.
    Waiting {
        why: String,
    },
    /// It failed and is tried again after a while.
    Retrying {
        why: String,
    },
    Stopped,
}

impl InputState {
    pub(crate) const WORDS: [&str; 5] = ["starting", "recording", "waiting", "retrying", "stopped"];

    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Recording => "recording",
            Self::Waiting { .. } => "waiting",
            Self::Retrying { .. } => "retrying",
            Self::Stopped => "stopped",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Waiting { why } | Self::Retrying { why } => Some(why),
            Self::Starting | Self::Recording | Self::Stopped => None,
        }
    }
}

/// What is counted of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Count {
    Bytes,
    Warnings,
    Failures,
    Datagrams,
    Garbage,
    Foreign,
    KernelDropped,
    RtpLost,
    RtpReordered,
    RtpRepeated,
    Silences,
    FilesTaken,
    FilesRefused,
}

impl Count {
    /// Each with its name in status and metrics, and its help there.
    pub(crate) const ALL: [(Self, &str, &str); 13] = [
        (Self::Bytes, "bytes", "Bytes of MPEG-TS or MP4 read"),
        (Self::Warnings, "warnings", "Damage found in what was read"),
        (
            Self::Failures,
            "failures",
            "Times that the input failed and was tried again",
        ),
        (Self::Datagrams, "datagrams", "UDP datagrams read"),
        (
            Self::Garbage,
            "datagrams_garbage",
            "UDP datagrams that are no MPEG-TS",
        ),
        (
            Self::Foreign,
            "datagrams_foreign",
            "UDP datagrams of a second sender, left out",
        ),
        (
            Self::KernelDropped,
            "datagrams_dropped",
            "UDP datagrams dropped before they were read: too many, too fast",
        ),
        (Self::RtpLost, "rtp_lost", "RTP packets that never came"),
        (
            Self::RtpReordered,
            "rtp_reordered",
            "RTP packets put back in order",
        ),
        (
            Self::RtpRepeated,
            "rtp_repeated",
            "RTP packets that came twice or too late",
        ),
        (
            Self::Silences,
            "silences",
            "Times that nothing came for so long that the open segment was closed",
        ),
        (
            Self::FilesTaken,
            "files_taken",
            "Files of a watched folder read to their end",
        ),
        (
            Self::FilesRefused,
            "files_refused",
            "Files of a watched folder that could not be read",
        ),
    ];
}

/// One input.
pub(crate) struct Input {
    pub(crate) stream: StreamName,
    /// As it may be shown: no password.
    source: String,
    state: Mutex<InputState>,
    counts: [AtomicU64; Count::ALL.len()],
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} {})", self.stream, self.source)
    }
}

impl Input {
    pub(crate) fn new(stream: StreamName, source: String) -> Arc<Self> {
        Arc::new(Self {
            stream,
            source,
            state: Mutex::new(InputState::Starting),
            counts: Default::default(),
        })
    }

    pub(crate) fn add(&self, count: Count, more: u64) {
        if let Some(counter) = self.counts.get(count as usize) {
            counter.fetch_add(more, Relaxed);
        }
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        self.counts
            .get(count as usize)
            .map_or(0, |counter| counter.load(Relaxed))
    }

    pub(crate) fn set(&self, state: InputState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub(crate) fn state(&self) -> InputState {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn json(&self) -> Value {
        let state = self.state();
        let counts: Map<String, Value> = Count::ALL
            .iter()
            .map(|(count, name, _)| ((*name).to_owned(), json!(self.count(*count))))
            .collect();
        json!({
            "stream": self.stream,
            "source": self.source,
            "state": state.word(),
            "reason": state.reason(),
            "counts": counts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_counts_are_shown() {
        let input = Input::new("gate".parse().unwrap(), "udp://0.0.0.0:5000".to_owned());
        for (at, (count, ..)) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, at, "the table is in the order of the enum");
            input.add(*count, at as u64);
        }
        input.set(InputState::Retrying {
            why: "address in use".to_owned(),
        });
        assert!(InputState::WORDS.contains(&input.state().word()));
        let shown = Inputs::new(vec![input]).json();
        let one = &shown[0];
        assert_eq!(one["stream"], "gate");
        assert_eq!(
            (&one["state"], &one["reason"]),
            (&json!("retrying"), &json!("address in use"))
        );
        assert_eq!(one["counts"]["files_refused"], 12);
    }
}
