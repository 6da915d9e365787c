//! Two boxes with one identity: noticed where one comes back after the other took its place. No session here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use model::DeviceName;

/// Devices remembered, as many as there may be sessions; more are not looked at.
const MAX_DEVICES: usize = 16_384;

/// Places remembered of a device: its last one and the one before.
const PLACES: usize = 2;

/// What is known of devices whose sessions were replaced.
#[derive(Debug, Default)]
pub(super) struct Doubles {
    /// Where the boxes were whose sessions were replaced last: a program that was restarted is elsewhere, since
    /// its port is another one.
    replaced: BTreeMap<DeviceName, VecDeque<SocketAddr>>,
    told: BTreeSet<DeviceName>,
    /// How often a box came back that had been replaced.
    pub(super) count: u64,
}

impl Doubles {
    /// A session was replaced by a newer one of the same key.
    pub(super) fn replaced(&mut self, device: &DeviceName, peer: SocketAddr) {
        if self.replaced.len() < MAX_DEVICES || self.replaced.contains_key(device) {
            let places = self.replaced.entry(device.clone()).or_default();
            places.push_back(peer);
            if places.len() > PLACES {
                places.pop_front();
            }
        }
    }

    /// A device has a new session.
    pub(super) fn connected(&mut self, device: &DeviceName, peer: SocketAddr) {
        let Some(places) = self.replaced.get_mut(device) else {
            return;
        };
        let Some(at) = places.iter().position(|place| *place == peer) else {
            return;
        };
        places.remove(at);
        self.count += 1;
        if self.told.insert(device.clone()) {
            tracing::warn!(%device, %peer, "two boxes use this device's identity and drive each other out: enrol one of them under its own name (`hub enroll NAME`)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_that_comes_back_to_its_place_is_a_second_one() {
        let device: DeviceName = "pole-7".parse().unwrap();
        let [a, b, c]: [SocketAddr; 3] =
            ["10.0.0.1:7", "10.0.0.2:7", "10.0.0.1:8"].map(|a| a.parse().unwrap());
        let mut doubles = Doubles::default();
        doubles.connected(&device, a);
        // Restarted: another port.
        doubles.replaced(&device, a);
        doubles.connected(&device, c);
        assert_eq!(doubles.count, 0);
        doubles.replaced(&device, c);
        doubles.connected(&device, a);
        assert_eq!(doubles.count, 1);
        doubles.replaced(&device, a);
        doubles.connected(&device, b);
        doubles.replaced(&device, b);
        doubles.connected(&device, a);
        assert_eq!(doubles.count, 2);
    }
}
