//! `hub device …`: the devices in the catalog, beside a running `hub serve`.

use anyhow::Result;
use data_encoding::BASE64URL_NOPAD;
use model::{DeviceName, StreamName, WallTime};
use program::output;
use serde::Serialize;
use store::{Store, StoreError, devices::Device};

use crate::{
    beside::{SOON, time_cell},
    cli::DeviceCommand,
    table::{self, UnknownName},
};

/// A device as tables, `--json` and the API show it.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceView {
    pub(crate) name: DeviceName,
    /// `enrolled`, `invited` (its token waits to be used) or `disabled`.
    pub(crate) state: &'static str,
    pub(crate) streams: Vec<StreamName>,
    /// Unix milliseconds.
    pub(crate) enrolled_ms: Option<WallTime>,
    pub(crate) last_seen_ms: Option<WallTime>,
    pub(crate) last_address: Option<String>,
    /// Public key, base64url; tells two devices apart, opens nothing.
    pub(crate) key: Option<String>,
}

/// All devices with their streams.
pub(crate) fn views(store: &Store) -> Result<Vec<DeviceView>, StoreError> {
    store
        .devices()?
        .into_iter()
        .map(|device| view(store, device))
        .collect()
}

fn view(store: &Store, device: Device) -> Result<DeviceView, StoreError> {
    let state = match (device.enabled, device.key) {
        (false, _) => "disabled",
        (true, Some(_)) => "enrolled",
        (true, None) => "invited",
    };
    Ok(DeviceView {
        streams: store.streams_of(&device.name)?,
        name: device.name,
        state,
        enrolled_ms: device.enrolled,
        last_seen_ms: device.last_seen,
        last_address: device.last_address,
        key: device.key.map(|key| BASE64URL_NOPAD.encode(&key)),
    })
}

/// Runs the subcommand.
pub(crate) fn run(command: DeviceCommand, store: &Store) -> Result<()> {
    match command {
        DeviceCommand::List { json } => {
            let devices = views(store)?;
            list(&devices, json)?;
            if devices.is_empty() && !store.set_aside_catalogs()?.is_empty() {
                output::error(crate::serve::DEVICES_LOST);
            }
        }
        DeviceCommand::Enable { name } => {
            known(store, &name, store.set_device_enabled(&name, true)?)?;
            output::line(&format!("{name} is enabled ({SOON})"))?;
        }
        DeviceCommand::Disable { name } => {
            known(store, &name, store.set_device_enabled(&name, false)?)?;
            output::line(&format!(
                "{name} is disabled; what it shipped stays here ({SOON})"
            ))?;
        }
        DeviceCommand::Remove { name } => {
            known(store, &name, store.remove_device(&name)?)?;
            output::line(&format!(
                "{name} is removed; its streams stay here ({SOON})"
            ))?;
        }
    }
    Ok(())
}

/// Fails with the names that are known if `found` is false.
pub(crate) fn known(store: &Store, name: &DeviceName, found: bool) -> Result<()> {
    if !found {
        return Err(
            UnknownName::new("device", name, store.devices()?.into_iter().map(|d| d.name)).into(),
        );
    }
    Ok(())
}

fn list(devices: &[DeviceView], json: bool) -> Result<()> {
    if json {
        return Ok(output::line(&serde_json::to_string_pretty(devices)?)?);
    }
    let rows: Vec<[String; 5]> = devices.iter().map(row).collect();
    output::print(&table::table(
        ["DEVICE", "STATE", "STREAMS", "LAST SEEN", "FROM"],
        &rows,
    ))?;
    if rows.is_empty() {
        output::error("no device yet: `hub enroll NAME` invites one");
    }
    Ok(())
}

fn row(device: &DeviceView) -> [String; 5] {
    [
        device.name.to_string(),
        device.state.to_owned(),
        if device.streams.is_empty() {
            "-".to_owned()
        } else {
            table::names(&device.streams)
        },
        time_cell(device.last_seen_ms),
        device
            .last_address
            .clone()
            .unwrap_or_else(|| "-".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_missing() {
        let mut device = DeviceView {
            name: "pole-7".parse().unwrap(),
            state: "invited",
            streams: Vec::new(),
            enrolled_ms: None,
            last_seen_ms: None,
            last_address: None,
            key: None,
        };
        assert_eq!(
            row(&device),
            ["pole-7", "invited", "-", "-", "-"].map(str::to_owned)
        );
        device.streams = vec!["gate".parse().unwrap(), "yard".parse().unwrap()];
        device.last_seen_ms = Some(WallTime(1_777_622_400_999));
        device.last_address = Some("10.0.0.9:4000".to_owned());
        assert_eq!(
            row(&device)[2..],
            ["gate, yard", "2026-05-01T08:00:00Z", "10.0.0.9:4000"].map(str::to_owned)
        );
    }
}
