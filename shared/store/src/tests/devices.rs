//! Tokens, devices and whose a stream is.

use super::*;
use crate::{StoreError, devices::TokenError};

const KEY: [u8; 32] = [1; 32];
const OTHER: [u8; 32] = [2; 32];

fn later(ms: i64) -> WallTime {
    WallTime(T0.0 + ms)
}

#[test]
fn a_token_enrols_one_key_once() {
    let site = Site::hub();
    let store = site.store();
    let name = "pole-7".parse().unwrap();
    store
        .create_token(
            &name,
            b"secret",
            later(1_000),
            &["yard".parse().unwrap()],
            T0,
        )
        .unwrap();
    let check = |token: &[u8], key, ms| store.check_token(token, key, later(ms)).unwrap();
    assert_eq!(check(b"guess", &KEY, 0), Err(TokenError::Unknown));
    assert_eq!(check(b"secret", &KEY, 1_000), Err(TokenError::Expired));
    assert_eq!(check(b"secret", &KEY, 999), Ok(name.clone()));
    assert!(
        store.device_by_key(&KEY).unwrap().is_none(),
        "checking enrols nobody"
    );
    assert_eq!(
        store.use_token(b"secret", &KEY, later(999)).unwrap(),
        Ok(name.clone())
    );
    assert_eq!(store.device_by_key(&KEY).unwrap().unwrap().name, name);
    // The same key may say it again, another may not.
    assert_eq!(
        store.use_token(b"secret", &KEY, later(2_000)).unwrap(),
        Ok(name.clone())
    );
    assert_eq!(check(b"secret", &OTHER, 999), Err(TokenError::Used));
    assert_eq!(store.streams_of(&name).unwrap(), ["yard".parse().unwrap()]);
}

#[test]
fn enrolling_again_replaces_the_key_and_keeps_the_streams() {
    let site = Site::hub();
    let store = site.store();
    let name = "pole-7".parse().unwrap();
    for (token, key) in [(b"first!", KEY), (b"second", OTHER)] {
        store
            .create_token(&name, token, later(1_000), &[], T0)
            .unwrap();
        store.use_token(token, &key, T0).unwrap().unwrap();
        store
            .register_stream(&"yard".parse().unwrap(), Some(&name))
            .unwrap();
    }
    assert!(store.device_by_key(&KEY).unwrap().is_none());
    assert_eq!(store.device_by_key(&OTHER).unwrap().unwrap().name, name);
    assert!(
        !store
            .set_device_enabled(&"nobody".parse().unwrap(), false)
            .unwrap()
    );
    assert!(store.set_device_enabled(&name, false).unwrap());
    assert!(!store.devices().unwrap()[0].enabled);
    store
        .seen(&[(name.clone(), "192.0.2.1:9".to_owned())], later(5))
        .unwrap();
    let device = &store.devices().unwrap()[0];
    assert_eq!(device.last_seen, Some(later(5)));
    assert!(store.remove_device(&name).unwrap());
    assert!(store.devices().unwrap().is_empty());
    assert_eq!(store.streams_of(&name).unwrap(), []);
}

#[test]
fn a_stream_belongs_to_who_came_first_until_it_is_moved() {
    let site = Site::hub();
    let store = site.store();
    let (yard, a, b) = (
        "yard".parse::<StreamName>().unwrap(),
        "a".parse().unwrap(),
        "b".parse().unwrap(),
    );
    for device in [&a, &b] {
        store
            .create_token(device, device.as_str().as_bytes(), later(1), &[], T0)
            .unwrap();
    }
    store.register_stream(&yard, Some(&a)).unwrap();
    store.register_stream(&yard, Some(&a)).unwrap();
    let error = store.register_stream(&yard, Some(&b)).unwrap_err();
    assert!(matches!(&error, StoreError::OwnedByOther { owner, .. } if *owner == a));
    assert!(
        error.to_string().contains("hub stream move yard"),
        "{error}"
    );
    assert!(
        !store
            .move_stream(&yard, &"nobody".parse().unwrap())
            .unwrap()
    );
    assert!(store.move_stream(&yard, &b).unwrap());
    store.register_stream(&yard, Some(&b)).unwrap();
}

#[test]
fn a_daemon_notices_what_a_subcommand_did() {
    let site = Site::hub();
    put(site.store(), 1, 1);
    assert!(
        !site.store().notice_foreign_changes().unwrap(),
        "own commits don't count"
    );
    let beside = Store::open_beside(site.path()).unwrap();
    let mut changes = site.store().changes();
    changes.mark_unchanged();
    beside.end_stream(&gate(), Some(n(1))).unwrap();
    assert!(site.store().notice_foreign_changes().unwrap());
    assert!(changes.has_changed().unwrap());
    assert!(site.live().contains("ENDLIST"));
    assert!(beside.remove_stream(&gate()).unwrap());
    site.store().notice_foreign_changes().unwrap();
    assert!(site.store().streams().unwrap().is_empty());
    assert!(!site.path().join("segments/gate").exists());
}

#[test]
fn a_clock_that_steps_gives_no_token_a_longer_life() {
    let site = Site::hub();
    let store = site.store();
    let (name, key) = ("pole-7".parse().unwrap(), [7; 32]);
    let day = 24 * 3_600_000;
    let at = |days: i64| WallTime(T0.0 + days * day);
    store.create_token(&name, b"short", at(1), &[], T0).unwrap();
    let ask = |now| store.check_token(b"short", &key, now).unwrap();
    assert_eq!(ask(T0), Ok(name.clone()));
    // Years back: it has more life left than any token is given.
    assert_eq!(ask(at(-365)), Err(TokenError::Expired));
    assert_eq!(ask(T0), Ok(name.clone()));
    // Seen to expire, it stays so, also when the clock goes back.
    store.expire_tokens(at(0)).unwrap();
    assert_eq!(ask(T0), Ok(name.clone()));
    store.expire_tokens(at(2)).unwrap();
    store.expire_tokens(at(2)).unwrap();
    for days in [2, 0, -1, -30] {
        assert_eq!(ask(at(days)), Err(TokenError::Expired), "{days}");
    }
    // One that was used is the device's for ever.
    store.create_token(&name, b"used", at(1), &[], T0).unwrap();
    store.use_token(b"used", &key, T0).unwrap().unwrap();
    store.expire_tokens(at(400)).unwrap();
    assert_eq!(
        store.check_token(b"used", &key, at(-365)).unwrap(),
        Ok(name)
    );
}
