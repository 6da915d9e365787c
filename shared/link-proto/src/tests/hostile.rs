//! What comes from strangers changes nothing but counters; what comes from a wrong-doing peer ends its own
//! session at worst (invariants 6 and 7).

use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;

use super::traffic::{Flow, Traffic};
use crate::{
    Bye, Channel, Cipher, CloseReason, Endpoint, Event, SendError,
    datagram::transport_header,
    sim::{HUB_ADDRESS, Line, Who, World},
};

const SECOND: Duration = Duration::from_secs(1);

fn connected() -> (World, Traffic) {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut traffic = Traffic::new(vec![
        Flow::up(Channel::Control, 1),
        Flow::down(Channel::Control, 1),
    ]);
    assert!(traffic.run(&mut world, SECOND));
    (world, traffic)
}

#[test]
fn a_flood_of_garbage_changes_counters_only() {
    let (mut world, mut traffic) = connected();
    let (_, session) = traffic.sessions();
    let stats = world.hub.stats(session).unwrap();
    let before = world.hub.counters();
    let stranger: SocketAddr = "192.0.2.66:6".parse().unwrap();
    for round in 0..20_000 {
        let size = (world.network.chance() * 1400.0) as usize;
        let mut bytes: Vec<u8> = (0..size)
            .map(|_| (world.network.chance() * 256.0) as u8)
            .collect();
        match round % 5 {
            0 => {}
            1 if size > 0 => bytes[0] = 4,
            2 if size > 4 => bytes[..4].copy_from_slice(&[4, 0, 0, 0]),
            3 => {
                bytes.resize(1200, 7);
                bytes[..4].copy_from_slice(&[1, 1, 0, 0]);
            }
            _ => bytes.truncate(3),
        }
        world.hub.handle_datagram(world.now, stranger, &bytes);
        let edge = &mut world.edges[0].endpoint;
        edge.handle_datagram(world.now, HUB_ADDRESS, &bytes);
    }
    let after = world.hub.counters();
    assert_eq!(after.datagrams_received - before.datagrams_received, 20_000);
    assert_eq!(
        after.datagrams_malformed + after.datagrams_unknown + after.datagrams_forged
            - before.datagrams_malformed
            - before.datagrams_unknown
            - before.datagrams_forged,
        20_000
    );
    assert_eq!(after.datagrams_sent, before.datagrams_sent);
    assert_eq!(after.cookies_sent, 0);
    assert_eq!(world.hub.stats(session).unwrap(), stats);
    assert!(world.hub.poll_event().is_none());
    for flow in &mut traffic.flows {
        flow.total = 50;
    }
    assert!(
        traffic.run(&mut world, 10 * SECOND),
        "and the session goes on"
    );
}

#[test]
fn a_datagram_counts_once_and_a_changed_one_never() {
    let (mut world, traffic) = connected();
    let (edge, hub) = traffic.sessions();
    let now = world.now;
    let _ = world.edges[0]
        .endpoint
        .send(now, edge, Channel::Control, vec![1; 100].into());
    let mut bytes = Vec::new();
    let transmit = world.edges[0]
        .endpoint
        .poll_transmit(now, 1, &mut bytes)
        .unwrap();
    assert_eq!(transmit.size, bytes.len());

    let stranger: SocketAddr = "192.0.2.66:6".parse().unwrap();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        world.hub.handle_datagram(now, stranger, &changed);
        world.hub.handle_datagram(now, stranger, &changed[..at]);
    }
    assert!(world.hub.poll_event().is_none());
    assert_eq!(world.hub.peer_address(hub), Some(world.edges[0].address));

    let from = world.edges[0].address;
    world.hub.handle_datagram(now, from, &bytes);
    assert!(
        matches!(world.hub.poll_event(), Some(Event::Message { message, .. }) if message.len() == 100)
    );
    let before = world.hub.counters().datagrams_replayed;
    world.hub.handle_datagram(now, stranger, &bytes);
    assert!(
        world.hub.poll_event().is_none(),
        "no message, and the peer hasn't moved"
    );
    assert_eq!(world.hub.counters().datagrams_replayed, before + 1);
}

#[test]
fn a_stranger_has_little_credit_until_admitted() {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let (mut edge, mut hub, mut received) = (None, None, 0);
    for admit in [false, true] {
        if admit {
            world.hub.admit(hub.unwrap());
        }
        let until = world.now + 3 * SECOND;
        while world.now < until {
            for (who, event) in world.take_events() {
                match event {
                    Event::Connected { session, .. } => {
                        *(if who == Who::Hub { &mut hub } else { &mut edge }) = Some(session);
                    }
                    // Never said to be consumed.
                    Event::Message { message, .. } => received += message.len(),
                    _ => {}
                }
            }
            if let Some(session) = edge {
                let now = world.now;
                while world.edges[0]
                    .endpoint
                    .send(now, session, Channel::Bulk, vec![0; 10_000].into())
                    .is_ok()
                {}
            }
            world.step();
        }
        let limit = if admit { 8 << 20 } else { 64 << 10 };
        assert!(
            received <= limit && received > limit - 20_000 - limit / 100,
            "{received}"
        );
    }
    let stats = world.edges[0].endpoint.stats(edge.unwrap()).unwrap();
    assert!(
        stats.outstanding_bytes < 5 << 20,
        "what isn't taken stays outside: {stats:?}"
    );
}

#[test]
fn too_large_messages_and_gone_sessions_are_told() {
    let (mut world, traffic) = connected();
    let (edge, _) = traffic.sessions();
    let now = world.now;
    let endpoint = &mut world.edges[0].endpoint;
    let size = crate::MAX_MESSAGE_BYTES + 1;
    assert_eq!(
        endpoint.send(now, edge, Channel::Live, vec![0; size].into()),
        Err(SendError::TooLarge(size))
    );
    let largest = vec![0; crate::MAX_MESSAGE_BYTES];
    assert_eq!(
        endpoint.send(now, edge, Channel::Live, largest.into()),
        Ok(())
    );
    assert_eq!(
        endpoint.send(now, edge, Channel::Live, Vec::new().into()),
        Ok(())
    );
    assert_eq!(
        endpoint.send(now, crate::SessionId(77), Channel::Live, Vec::new().into()),
        Err(SendError::Closed)
    );
    let mut sizes = Vec::new();
    world.run(
        SECOND,
        |_, _, event| {
            if let Event::Message { message, .. } = event {
                sizes.push(message.len());
            }
        },
        |_| false,
    );
    assert_eq!(sizes, [crate::MAX_MESSAGE_BYTES, 0]);
}

#[test]
fn a_peer_that_breaks_the_protocol_loses_its_session_only() {
    for plain in [
        &b"short"[..],
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9, 0], // a frame that is cut off
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0], // KCP without a header
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 3, 0, 0, 0], // a channel that isn't
        &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0], // half a feedback
    ] {
        let (mut world, mut traffic) = connected();
        let bytes = world.edges[0].endpoint.seal_anything(plain);
        let from = world.edges[0].address;
        world.inject(from, HUB_ADDRESS, bytes);
        traffic.run(&mut world, SECOND);
        traffic.flows[0].total += 1;
        traffic.run(&mut world, SECOND);
        assert!(
            traffic.closes.contains(&(Who::Hub, CloseReason::Violation)),
            "{plain:?}"
        );
        assert!(
            traffic
                .closes
                .contains(&(Who::Edge(0), CloseReason::Peer(Bye::Violation))),
            "{plain:?}: it hears why"
        );
        assert!(traffic.run(&mut world, 60 * SECOND), "and may come again");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_authentic_liar_makes_no_panic(
        datagrams in proptest::collection::vec(
            (0u32..4, proptest::collection::vec((0u8..6, proptest::collection::vec(any::<u8>(), 0..60)), 0..6)),
            1..6,
        )
    ) {
        let (mut world, _) = connected();
        for (generation, frames) in datagrams {
            let mut plain = generation.to_be_bytes().to_vec();
            plain.extend_from_slice(&[0; 4]);
            for (kind, body) in frames {
                plain.extend_from_slice(&[kind, 0, body.len() as u8]);
                plain.extend_from_slice(&body);
            }
            let bytes = world.edges[0].endpoint.seal_anything(&plain);
            let from = world.edges[0].address;
            world.inject(from, HUB_ADDRESS, bytes);
            world.step();
        }
        let before = world.steps;
        world.run(SECOND, |_, _, _| {}, |_| false);
        prop_assert!(world.steps - before < 1000, "it settles");
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind in 0u8..6,
        bytes in proptest::collection::vec(any::<u8>(), 0..1300),
        whole in any::<bool>(),
    ) {
        thread_local! {
            static WORLD: std::cell::RefCell<World> = std::cell::RefCell::new(connected().0);
        }
        WORLD.with_borrow_mut(|world| {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if whole {
                bytes.resize(match kind { 1 => 1200, 2 => 76, 3 => 40, _ => 100 }, 0);
            }
            let now = world.now;
            world.hub.handle_datagram(now, HUB_ADDRESS, &bytes);
            world.edges[0].endpoint.handle_datagram(now, HUB_ADDRESS, &bytes);
            let mut out = Vec::new();
            prop_assert!(world.hub.poll_transmit(now, 4, &mut out).is_none());
            prop_assert!(world.hub.poll_event().is_none());
            Ok(())
        })?;
    }
}

#[test]
fn an_index_that_is_in_use_but_forged_is_counted() {
    let (mut world, _) = connected();
    let now = world.now;
    let before = world.hub.counters();
    let mut datagram = transport_header(12345, 0).to_vec();
    datagram.resize(64, 0);
    world.hub.handle_datagram(now, HUB_ADDRESS, &datagram);
    assert_eq!(
        world.hub.counters().datagrams_unknown,
        before.datagrams_unknown + 1
    );
}
