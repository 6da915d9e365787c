//! Devices, their keys and enrolment tokens (hub). Methods on [`Store`].

use std::collections::BTreeMap;

use model::{DeviceName, StreamName, WallTime};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    Store,
    catalog::{Fault, streams},
    error::{AtPath, Result},
    files,
};

/// An edge-node that enrolled, or is expected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: DeviceName,
    /// X25519 public key; None until it has enrolled.
    pub key: Option<[u8; 32]>,
    pub enabled: bool,
    pub enrolled: Option<WallTime>,
    pub last_seen: Option<WallTime>,
    pub last_address: Option<String>,
}

/// Why a token doesn't enrol. The operator's to solve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this enrolment token is not known here: make one with `hub enroll NAME`")]
    Unknown,
    #[error("this enrolment token was used already: make a new one with `hub enroll NAME`")]
    Used,
    #[error("this enrolment token has expired: make a new one with `hub enroll NAME`")]
    Expired,
}

impl Store {
    /// A token (kept as its hash) with which NAME may enrol once; makes the device known and reserves
    /// streams for it. The error: a stream belongs to another device.
    pub fn create_token(
        &self,
        name: &DeviceName,
        token: &[u8],
        expires: WallTime,
        reserve: &[StreamName],
        now: WallTime,
    ) -> Result<()> {
        self.inner().catalog.write(|c| {
            c.prepare_cached("DELETE FROM token WHERE expires_ms < ?1")?
                .execute([now.0.saturating_sub(TOKEN_MEMORY_MS)])?;
            c.prepare_cached("INSERT INTO device (name) VALUES (?1) ON CONFLICT DO NOTHING")?
                .execute([name.as_str()])?;
            c.prepare_cached("INSERT INTO token (hash, device, expires_ms) VALUES (?1, ?2, ?3)")?
                .execute(params![hash(token).as_slice(), name.as_str(), expires.0])?;
            for stream in reserve {
                streams::register(c, stream, Some(name), now)?;
            }
            Ok(())
        })?;
        self.tick();
        Ok(())
    }

    /// Checks a token without using it up: whose it is. The key that enrolled with it may repeat it.
    pub fn check_token(
        &self,
        token: &[u8],
        key: &[u8; 32],
        now: WallTime,
    ) -> Result<std::result::Result<DeviceName, TokenError>> {
        self.inner()
            .catalog
            .read(|c| Ok(find_token(c, token, key, now)?.map(|grant| grant.name)))
    }

    /// The edge has confirmed: the token is used, the device's key replaced, the device enabled.
    pub fn use_token(
        &self,
        token: &[u8],
        key: &[u8; 32],
        now: WallTime,
    ) -> Result<std::result::Result<DeviceName, TokenError>> {
        let used = self.inner().catalog.write(|c| {
            let name = match find_token(c, token, key, now)? {
                Ok(Grant { name, used: false }) => name,
                // Its answer was lost: what it granted is granted, and nothing else is given back.
                Ok(Grant { name, used: true }) => return Ok(Ok(name)),
                Err(error) => return Ok(Err(error)),
            };
            c.prepare_cached("UPDATE token SET used_by = ?2 WHERE hash = ?1")?
                .execute(params![hash(token).as_slice(), key.as_slice()])?;
            // One key is one device: a box that enrols under a new name leaves the old one without a key.
            c.prepare_cached("UPDATE device SET key = NULL WHERE key = ?1")?
                .execute([key.as_slice()])?;
            c.prepare_cached(
                "INSERT INTO device (name, key, enrolled_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET key = ?2, enrolled_ms = ?3, enabled = 1",
            )?
            .execute(params![name.as_str(), key.as_slice(), now.0])?;
            Ok(Ok(name))
        })?;
        self.tick();
        Ok(used)
    }

    /// Tokens that have expired stay so, whatever the clock shows later. Called by the daemon now and then.
    pub fn expire_tokens(&self, now: WallTime) -> Result<()> {
        let due = self.inner().catalog.read(|c| {
            Ok(c.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM token WHERE used_by IS NULL AND expires_ms BETWEEN ?1 AND ?2)",
            )?
            .query_row(params![EXPIRED_MS + 1, now.0], |row| row.get::<_, bool>(0))?)
        })?;
        if due {
            self.inner().catalog.write(|c| {
                c.prepare_cached(
                    "UPDATE token SET expires_ms = ?1 WHERE used_by IS NULL AND expires_ms BETWEEN ?1 + 1 AND ?2",
                )?
                .execute(params![EXPIRED_MS, now.0])?;
                Ok(())
            })?;
        }
        Ok(())
    }

    pub fn device_by_key(&self, key: &[u8; 32]) -> Result<Option<Device>> {
        self.inner().catalog.read(|c| {
            Ok(c.prepare_cached(&format!("{DEVICE} WHERE key = ?1"))?
                .query_row([key.as_slice()], device_from_row)
                .optional()?)
        })
    }

    pub fn devices(&self) -> Result<Vec<Device>> {
        self.inner().catalog.read(|c| {
            Ok(c.prepare_cached(&format!("{DEVICE} ORDER BY name"))?
                .query_map([], device_from_row)?
                .collect::<rusqlite::Result<_>>()?)
        })
    }

    /// false: no such device.
    pub fn set_device_enabled(&self, name: &DeviceName, enabled: bool) -> Result<bool> {
        self.change(
            "UPDATE device SET enabled = ?2 WHERE name = ?1",
            params![name.as_str(), enabled],
        )
    }

    /// Forgets a device and its tokens; its streams stay, without an owner. false: no such device.
    pub fn remove_device(&self, name: &DeviceName) -> Result<bool> {
        self.inner().catalog.write(|c| {
            c.prepare_cached("DELETE FROM token WHERE device = ?1")?
                .execute([name.as_str()])?;
            c.prepare_cached("UPDATE stream SET owner = NULL WHERE owner = ?1")?
                .execute([name.as_str()])?;
            Ok(())
        })?;
        self.change("DELETE FROM device WHERE name = ?1", params![name.as_str()])
    }

    /// Devices were heard from, each at its address: written in one go.
    pub fn seen(&self, devices: &[(DeviceName, String)], now: WallTime) -> Result<()> {
        self.inner().catalog.write(|c| {
            let mut update = c.prepare_cached(
                "UPDATE device SET last_seen_ms = ?2, last_address = ?3 WHERE name = ?1",
            )?;
            for (name, address) in devices {
                update.execute(params![name.as_str(), now.0, address])?;
            }
            Ok(())
        })
    }

    /// Gives a stream to a device. false: no such stream or device.
    pub fn move_stream(&self, stream: &StreamName, to: &DeviceName) -> Result<bool> {
        self.change(
            "UPDATE stream SET owner = ?2 WHERE name = ?1 AND EXISTS (SELECT 1 FROM device WHERE name = ?2)",
            params![stream.as_str(), to.as_str()],
        )
    }

    /// Removes a stream with all its segments. false: no such stream.
    pub fn remove_stream(&self, stream: &StreamName) -> Result<bool> {
        let layout = &self.inner().layout;
        let (folder, removal) = (layout.stream(stream), layout.removal(stream));
        let exists = self
            .inner()
            .catalog
            .read(|c| Ok(streams::find(c, stream)?))?;
        if exists.is_some() {
            // Out of its name before its row goes: a kill in between must not bring it back.
            remove_folder(&removal)?;
            match std::fs::rename(&folder, &removal) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).at(&folder);
                }
                _ => files::sync_folder(&self.inner().data_dir)?,
            }
        }
        let known = self.inner().catalog.write(|c| {
            let row = streams::find(c, stream)?;
            if let Some(row) = &row {
                streams::remove(c, row.id)?;
            }
            Ok(row.is_some())
        })?;
        if known {
            remove_folder(&removal)?;
            // What a daemon wrote meanwhile.
            remove_folder(&folder)?;
            self.forget_playlist(stream);
            self.tick();
        }
        Ok(known)
    }

    pub fn streams_of(&self, device: &DeviceName) -> Result<Vec<StreamName>> {
        self.inner()
            .catalog
            .read(|c| Ok(streams::names_of(c, device)?))
    }

    /// Whose each stream is that has an owner.
    pub fn owners(&self) -> Result<BTreeMap<StreamName, DeviceName>> {
        self.inner().catalog.read(|c| Ok(streams::owners(c)?))
    }

    /// A free-text title for a stream. false: no such stream.
    pub fn set_stream_title(&self, stream: &StreamName, title: Option<&str>) -> Result<bool> {
        self.change(
            "UPDATE stream SET title = ?2 WHERE name = ?1",
            params![stream.as_str(), title],
        )
    }

    fn change(&self, sql: &str, values: impl rusqlite::Params) -> Result<bool> {
        let changed = self
            .inner()
            .catalog
            .write(|c| Ok(c.prepare_cached(sql)?.execute(values)?))?;
        self.tick();
        Ok(changed > 0)
    }
}

fn remove_folder(folder: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(folder),
        _ => Ok(()),
    }
}

/// Longest life of a token: 31 days. `hub enroll` gives less.
pub const MAX_TOKEN_LIFE_MS: i64 = 31 * 24 * 3_600_000;

/// Tokens are remembered this long after they expired, so that a late user hears why: 30 days.
const TOKEN_MEMORY_MS: i64 = 30 * 24 * 3_600_000;

/// What a token that was seen to expire expires at.
const EXPIRED_MS: i64 = 0;

const DEVICE: &str =
    "SELECT name, key, enabled, enrolled_ms, last_seen_ms, last_address FROM device";

fn hash(token: &[u8]) -> [u8; 32] {
    *blake3::hash(token).as_bytes()
}

fn name_from(text: String, column: usize) -> rusqlite::Result<DeviceName> {
    text.parse().map_err(|error: model::NameError| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}

fn device_from_row(row: &Row<'_>) -> rusqlite::Result<Device> {
    let key: Option<Vec<u8>> = row.get(1)?;
    Ok(Device {
        name: name_from(row.get(0)?, 0)?,
        key: key.and_then(|key| key.try_into().ok()),
        enabled: row.get(2)?,
        enrolled: row.get::<_, Option<i64>>(3)?.map(WallTime),
        last_seen: row.get::<_, Option<i64>>(4)?.map(WallTime),
        last_address: row.get(5)?,
    })
}

/// What a good token grants.
struct Grant {
    name: DeviceName,
    /// To the key that used it, which is still the device's.
    used: bool,
}

fn find_token(
    c: &Connection,
    token: &[u8],
    key: &[u8; 32],
    now: WallTime,
) -> std::result::Result<std::result::Result<Grant, TokenError>, Fault> {
    let found = c
        .prepare_cached(
            "SELECT token.device, token.expires_ms, token.used_by, device.key
             FROM token LEFT JOIN device ON device.name = token.device WHERE token.hash = ?1",
        )?
        .query_row([hash(token).as_slice()], |row| {
            Ok((
                name_from(row.get(0)?, 0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, Option<Vec<u8>>>(2)?,
                row.get::<_, Option<Vec<u8>>>(3)?,
            ))
        })
        .optional()?;
    Ok(match found {
        None => Err(TokenError::Unknown),
        // A key that has been replaced since is not let back in by the token it once used.
        Some((name, _, Some(by), Some(current))) if by == key && current == key => {
            Ok(Grant { name, used: true })
        }
        Some((_, _, Some(_), _)) => Err(TokenError::Used),
        // Nor is one that has more life left than it was given: the clock has gone back since.
        Some((_, expires, None, _))
            if expires <= now.0 || expires.saturating_sub(now.0) > MAX_TOKEN_LIFE_MS =>
        {
            Err(TokenError::Expired)
        }
        Some((name, _, None, _)) => Ok(Grant { name, used: false }),
    })
}
