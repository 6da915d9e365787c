//! The thread that asks the catalog who may be here: devices, tokens, and whether that has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, thread,
};

use bytes::Bytes;
use link_proto::{SessionId, messages::MAX_FLOORS};
use model::{DeviceName, SegmentNumber, StreamName};
use store::{Store, StoreError, devices::Device};
use tokio::sync::{mpsc, watch};

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
    /// Whether devices, or whose streams are, have changed since this was last asked.
    Changes,
    /// Devices were heard from, at these addresses.
    Seen(Vec<(DeviceName, String)>),
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
    /// Something has changed.
    Changed(Registry),
}

/// Who is known here.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) devices: BTreeMap<DeviceName, Device>,
    /// Devices that had a stream when this was last read, and have it no more.
    pub(super) robbed: BTreeSet<DeviceName>,
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
            let mut clerk = Clerk::new(store);
            while let Some(question) = asked.blocking_recv() {
                if let Some(verdict) = clerk.judge(question)
                    && verdicts.blocking_send(verdict.into()).is_err()
                {
                    return;
                }
            }
        })?;
    Ok((questions, thread))
}

struct Clerk {
    store: Store,
    changes: watch::Receiver<u64>,
    /// As last read.
    known: Option<Vec<Device>>,
    owners: BTreeMap<StreamName, DeviceName>,
}

impl Clerk {
    fn new(store: Store) -> Self {
        let mut changes = store.changes();
        changes.mark_changed();
        Self {
            store,
            changes,
            known: None,
            owners: BTreeMap::new(),
        }
    }

    fn judge(&mut self, question: Question) -> Option<Verdict> {
        let session = match &question {
            Question::Hello { session, .. }
            | Question::Enrol { session, .. }
            | Question::Confirm { session, .. } => Some(*session),
            Question::Changes | Question::Seen(_) => None,
        };
        match self.ask(question) {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::error!(%error, "failed to ask the catalog about a device");
                let reason = "the hub's catalog has failed: try again later".to_owned();
                session.map(|session| Verdict::Refused { session, reason })
            }
        }
    }

    fn ask(&mut self, question: Question) -> Result<Option<Verdict>, StoreError> {
        let store = &self.store;
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
            Question::Changes => return self.changes(),
            Question::Seen(devices) => {
                store.seen(&devices, wall_now())?;
                return Ok(None);
            }
        }))
    }

    /// Reads only where something was written by somebody: ten thousand idle devices cost nothing.
    fn changes(&mut self) -> Result<Option<Verdict>, StoreError> {
        // A subcommand's doing shows only so.
        self.store.notice_foreign_changes()?;
        if !self.changes.has_changed().unwrap_or(false) {
            return Ok(None);
        }
        self.changes.mark_unchanged();
        let read = self.read();
        if read.is_err() {
            self.changes.mark_changed();
        }
        read
    }

    fn read(&mut self) -> Result<Option<Verdict>, StoreError> {
        let mut devices = self.store.devices()?;
        for device in &mut devices {
            // Changes all the time, and means nothing here.
            (device.last_seen, device.last_address) = (None, None);
        }
        let owners = self.store.owners()?;
        let before = std::mem::replace(&mut self.owners, owners);
        let robbed: BTreeSet<_> = before
            .into_iter()
            .filter(|(stream, owner)| self.owners.get(stream) != Some(owner))
            .map(|(_, owner)| owner)
            .collect();
        if robbed.is_empty() && self.known.as_ref() == Some(&devices) {
            return Ok(None);
        }
        self.known = Some(devices.clone());
        let devices = devices.into_iter();
        Ok(Some(Verdict::Changed(Registry {
            devices: devices
                .map(|device| (device.name.clone(), device))
                .collect(),
            robbed,
        })))
    }
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
