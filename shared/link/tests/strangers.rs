//! Who may not be here hears why, at both ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Edge, Hub, Recorder, assert_replicated, runtime, until};
use link::{
    KeyPair, LinkError, enrol,
    uplink::{LinkState, UplinkConfig},
};

fn refused(state: &LinkState) -> Option<&str> {
    match state {
        LinkState::Refused { reason } => Some(reason),
        _ => None,
    }
}

#[test]
fn an_unknown_device_hears_how_to_become_known() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let mut edge = Edge::start(&hub, KeyPair::generate());
        edge.until("refused", |state| {
            refused(state).is_some_and(|why| why.contains("`hub enroll NAME`"))
        })
        .await;
    });
}

#[test]
fn a_token_works_once_and_its_key_may_repeat_it() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let (key, url) = (KeyPair::generate(), hub.url("site-1", b"once"));
        let mut kept = Vec::new();
        for _ in 0..2 {
            let enrolled = enrol::enrol(&url, &key, |enrolled| {
                kept.push(enrolled.clone());
                Ok(())
            })
            .await
            .unwrap();
            assert_eq!(enrolled.hub_key, hub.key.public);
        }
        assert_eq!(kept.len(), 2);
        let other = KeyPair::generate();
        let error = enrol::enrol(&url, &other, |_| Ok(())).await.unwrap_err();
        assert!(error.to_string().contains("used already"), "{error}");
        let mut unknown = url.clone();
        unknown.token = b"never".to_vec();
        let error = enrol::enrol(&unknown, &other, |_| Ok(()))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("not known here"), "{error}");
    });
}

#[test]
fn an_identity_that_can_not_be_stored_leaves_the_token_good() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let url = hub.url("site-1", b"token");
        let full = || std::io::Error::other("the disk is full");
        let error = enrol::enrol(&url, &KeyPair::generate(), |_| Err(full()))
            .await
            .unwrap_err();
        assert!(matches!(error, LinkError::Io { .. }), "{error}");
        let key = KeyPair::generate();
        assert!(enrol::enrol(&url, &key, |_| Ok(())).await.is_ok());
    });
}

#[test]
fn a_wrong_hub_key_meets_silence() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let mut edge = Edge::start_with(UplinkConfig {
            hub_address: hub.address.to_string(),
            hub_key: KeyPair::generate().public,
            key: KeyPair::generate(),
            answer_timeout: Duration::from_millis(300),
            orders: link::uplink::default_orders(),
        });
        // Its host is there, and refuses a TCP connection to that port.
        let told = [
            format!("no answer from {}: unreachable, UDP blocked, or its key is not the one enrolled", hub.address),
            "its name resolves and its host refuses, so it is there, on TCP".to_owned(),
            "or no hub with this key listens on that port".to_owned(),
        ];
        edge.until("told", |state| {
            matches!(state, LinkState::Unreachable { why } if told.iter().all(|part| why.contains(part)))
        })
        .await;
        edge.stop().await;
    });
}

#[test]
fn a_disabled_device_is_dropped_and_comes_back() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let key = hub.enrol("site-1").await;
        let mut edge = Edge::start(&hub, key);
        edge.connected().await;
        let name = "site-1".parse().unwrap();
        let since = std::time::Instant::now();
        assert!(hub.store().set_device_enabled(&name, false).unwrap());
        edge.until("refused", |state| {
            refused(state).is_some_and(|why| why.contains("device site-1 is disabled"))
        })
        .await;
        println!("dropped after {:?}", since.elapsed());
        let status = &mut hub.running.as_ref().unwrap().status.clone();
        until(status, "not shown as connected", |s| s.sessions.is_empty()).await;
        // A restarted edge asks at once.
        assert!(hub.store().set_device_enabled(&name, true).unwrap());
        edge.stop().await;
        edge.start_again();
        edge.connected().await;
    });
}

#[test]
fn a_stream_of_another_device_is_refused_alone() {
    runtime().block_on(async {
        let hub = Hub::start().await;
        let (key_1, key_2) = (hub.enrol("site-1").await, hub.enrol("site-2").await);
        let mut first = Edge::start(&hub, key_1);
        let mut gate = Recorder::new(first.store(), "gate", 0);
        gate.segment(first.store());
        gate.end(first.store());
        assert_replicated(&first, &hub, &gate.stream).await;
        let mut second = Edge::start(&hub, key_2);
        let mut theirs = Recorder::new(second.store(), "gate", 0);
        let mut own = Recorder::new(second.store(), "yard", 0);
        for recorder in [&mut theirs, &mut own] {
            recorder.segment(second.store());
            recorder.end(second.store());
        }
        assert_replicated(&second, &hub, &own.stream).await;
        let status = &mut second.running.as_mut().unwrap().status;
        until(status, "the stream is refused", |status| {
            status.refused_streams.iter().any(|(stream, why)| {
                stream.as_str() == "gate" && why.contains("belongs to device site-1")
            })
        })
        .await;
        // Given away, the first device hears that it has lost it.
        let name = "site-2".parse().unwrap();
        assert!(hub.store().move_stream(&gate.stream, &name).unwrap());
        let status = &mut first.running.as_mut().unwrap().status;
        until(status, "the stream is taken away", |status| {
            status
                .refused_streams
                .iter()
                .any(|(_, why)| why.contains("taken from device site-1"))
        })
        .await;
    });
}
