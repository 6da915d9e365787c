//! The thread that asks the catalog who may be here: devices, tokens, and whether that has changed.

use std::{io, thread};

use bytes::Bytes;
use link_proto::{SessionId, messages::MAX_FLOORS};
use model::{DeviceName, SegmentNumber, StreamName};
use store::{Store, StoreError, devices::Device};
use tokio::sync::mpsc;

use crate::wall_now;

/// Questions that wait; a device whose question finds no room tries again.
const QUEUE: usize = 256;

/// What to ask the catalog.
#[derive(Debug)]
pub(super) enum Question {
    Hello {
        session: SessionId,
        key: [u8; 32],
    },
    Enrol {
        session: SessionId,
        key: [u8; 32],
        token: Bytes,
    },
    /// The device has stored its identity.
    Confirm {
        session: SessionId,
        key: [u8; 32],
        token: Bytes,
    },
    /// All devices, as they are now.
    Devices,
    /// A device was heard from.
    Seen {
        device: DeviceName,
        address: String,
    },
}

/// What the catalog says.
#[derive(Debug)]
pub(super) enum Verdict {
    /// A known device, and per stream the lowest number not seen used.
    Known {
        session: SessionId,
        device: DeviceName,
        floors: Vec<(StreamName, SegmentNumber)>,
    },
    /// A token that is good for this device.
    MayEnrol {
        session: SessionId,
        device: DeviceName,
        floors: Vec<(StreamName, SegmentNumber)>,
        token: Bytes,
    },
    Enrolled {
        session: SessionId,
        device: DeviceName,
    },
    Refused {
        session: SessionId,
        reason: String,
    },
    Devices(Vec<Device>),
}

/// Starts the thread; it ends when the sender of questions is dropped.
pub(super) fn start<T: From<Verdict> + Send + 'static>(
    store: Store,
    verdicts: mpsc::Sender<T>,
) -> io::Result<(mpsc::Sender<Question>, thread::JoinHandle<()>)> {
    let (questions, mut asked) = mpsc::channel(QUEUE);
    let thread = thread::Builder::new()
        .name("downlink-admission".to_owned())
        .spawn(move || {
            while let Some(question) = asked.blocking_recv() {
                if let Some(verdict) = judge(&store, question)
                    && verdicts.blocking_send(verdict.into()).is_err()
                {
                    return;
                }
            }
        })?;
    Ok((questions, thread))
}

fn judge(store: &Store, question: Question) -> Option<Verdict> {
    let session = match &question {
        Question::Hello { session, .. }
        | Question::Enrol { session, .. }
        | Question::Confirm { session, .. } => Some(*session),
        Question::Devices | Question::Seen { .. } => None,
    };
    match ask(store, question) {
        Ok(verdict) => verdict,
        Err(error) => {
            tracing::error!(%error, "failed to ask the catalog about a device");
            let reason = "the hub's catalog has failed: try again later".to_owned();
            session.map(|session| Verdict::Refused { session, reason })
        }
    }
}

fn ask(store: &Store, question: Question) -> Result<Option<Verdict>, StoreError> {
    Ok(Some(match question {
        Question::Hello { session, key } => match store.device_by_key(&key)? {
            None => Verdict::Refused {
                session,
                reason:
                    "this device is not known here: enrol it with a line from `hub enroll NAME`"
                        .to_owned(),
            },
            Some(device) if !device.enabled => Verdict::Refused {
                session,
                reason: disabled(&device.name),
            },
            Some(device) => Verdict::Known {
                session,
                floors: floors(store, &device.name)?,
                device: device.name,
            },
        },
        Question::Enrol {
            session,
            key,
            token,
        } => match store.check_token(&token, &key, wall_now())? {
            Ok(device) => Verdict::MayEnrol {
                session,
                floors: floors(store, &device)?,
                device,
                token,
            },
            Err(error) => Verdict::Refused {
                session,
                reason: error.to_string(),
            },
        },
        Question::Confirm {
            session,
            key,
            token,
        } => match store.use_token(&token, &key, wall_now())? {
            Ok(device) => Verdict::Enrolled { session, device },
            Err(error) => Verdict::Refused {
                session,
                reason: error.to_string(),
            },
        },
        Question::Devices => Verdict::Devices(store.devices()?),
        Question::Seen { device, address } => {
            store.seen(&device, &address, wall_now())?;
            return Ok(None);
        }
    }))
}

/// Why a device that an operator has switched off is refused.
pub(super) fn disabled(device: &DeviceName) -> String {
    format!("device {device} is disabled: `hub device enable {device}` lets it in")
}

fn floors(
    store: &Store,
    device: &DeviceName,
) -> Result<Vec<(StreamName, SegmentNumber)>, StoreError> {
    let streams = store.streams_of(device)?.into_iter().take(MAX_FLOORS);
    streams
        .map(|stream| {
            let floor = store.floor(&stream)?;
            Ok((stream, floor))
        })
        .collect()
}
