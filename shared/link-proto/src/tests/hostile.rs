//! What comes from strangers changes nothing but counters; what comes from a wrong-doing peer ends its own
//! session at worst (invariants 6 and 7).

use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;

use super::traffic::{Flow, Traffic};
use crate::{
    Bye, Channel, Cipher, CloseReason, EdgeConfig, EdgeEndpoint, Endpoint, Event, SendError,
    datagram::transport_header,
    sim::{Attacker, HUB_ADDRESS, Line, Who, World, forged_initiation},
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
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0], // a packet without a header
        &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 6, 3, 0, 0, 0, 0, 0], // a channel that isn't
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
            (0u32..4, proptest::collection::vec((0u8..9, proptest::collection::vec(any::<u8>(), 0..60)), 0..6)),
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

/// A device's first message, and its first datagram once the hub has answered.
struct Caller {
    endpoint: EdgeEndpoint,
    address: SocketAddr,
}

impl Caller {
    fn new(world: &World, number: u32) -> Self {
        let mut secret_key = [0x77; 32];
        secret_key[..4].copy_from_slice(&number.to_be_bytes());
        let config = EdgeConfig {
            hub_address: HUB_ADDRESS,
            hub_key: crate::public_key(&[0x48; 32]),
            secret_key,
            cipher: Cipher::AesGcm,
        };
        let [a, b, c, d] = number.to_be_bytes();
        Self {
            endpoint: EdgeEndpoint::new(config, world.now, secret_key),
            address: SocketAddr::from(([10 + a, b, c, d], 5_000)),
        }
    }

    /// Hands all datagrams back and forth, without a delay.
    fn talk(&mut self, world: &mut World) {
        let mut buffer = Vec::new();
        for _ in 0..4 {
            while let Some(transmit) = self.endpoint.poll_transmit(world.now, 16, &mut buffer) {
                for bytes in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                    world.hub.handle_datagram(world.now, self.address, bytes);
                }
                buffer.clear();
            }
            while let Some(transmit) = world.hub.poll_transmit(world.now, 16, &mut buffer) {
                for bytes in buffer.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                    if transmit.to == self.address {
                        self.endpoint.handle_datagram(world.now, HUB_ADDRESS, bytes);
                    }
                }
                buffer.clear();
            }
        }
    }
}

#[test]
fn forged_first_messages_keep_no_honest_device_out() {
    let mut world = World::new(1);
    let hub_key = crate::public_key(&[0x48; 32]);
    // Ten thousand a second from everywhere, for two seconds before and while a device knocks.
    let mut number = 0u64;
    let mut flood = |world: &mut World, count: u64| {
        for _ in 0..count {
            number += 1;
            let [a, b, c, ..] = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            let from = SocketAddr::from(([11 + a % 80, b, c, 1], 7));
            let bytes = forged_initiation(&hub_key, number);
            world.hub.handle_datagram(world.now, from, &bytes);
        }
        let mut buffer = Vec::new();
        while world
            .hub
            .poll_transmit(world.now, 16, &mut buffer)
            .is_some()
        {
            buffer.clear();
        }
        world.now += Duration::from_millis(10);
    };
    for _ in 0..200 {
        flood(&mut world, 100);
    }
    let knocked = world.now;
    let mut caller = Caller::new(&world, 1);
    while world.hub.counters().handshakes == 0 {
        caller.endpoint.handle_timeout(world.now);
        caller.talk(&mut world);
        flood(&mut world, 100);
        assert!(world.now - knocked < 20 * SECOND, "shut out");
    }
    let counters = world.hub.counters();
    let seconds = (world.now - world.start).as_secs_f64();
    assert!(
        (counters.datagrams_forged as f64) < 200.0 * (seconds + 1.0),
        "arithmetic for some only: {counters:?} in {seconds} s"
    );
    assert!(counters.handshakes_over_budget > 0 && counters.cookies_sent > 0);
}

#[test]
fn those_who_never_say_who_they_are_make_room_for_others() {
    let mut world = World::new(1);
    let mut events = Vec::new();
    for number in 0..400 {
        let mut caller = Caller::new(&world, number);
        caller.talk(&mut world);
        world.now += Duration::from_millis(20);
        while let Some(event) = world.hub.poll_event() {
            events.push(event);
        }
    }
    let connected = events
        .iter()
        .filter(|e| matches!(e, Event::Connected { .. }));
    assert_eq!(connected.count(), 400);
    let closed = events.iter().filter(|e| matches!(e, Event::Closed { .. }));
    assert_eq!(closed.count(), 400 - 256);
    assert_eq!(world.hub.counters().strangers_dropped, 400 - 256);
    let [_, _, strangers, indices, _] = world.hub.tables();
    assert_eq!((strangers, indices), (256, 256));
    // Whoever is admitted is no stranger and stays.
    let Some(Event::Connected { session, .. }) = events
        .iter()
        .rfind(|e| matches!(e, Event::Connected { .. }))
    else {
        panic!("nobody came");
    };
    world.hub.admit(*session);
    for number in 400..800 {
        Caller::new(&world, number).talk(&mut world);
        world.now += Duration::from_millis(20);
        while world.hub.poll_event().is_some() {}
    }
    assert!(world.hub.stats(*session).is_some());
    assert_eq!(world.hub.tables()[2], 256);
}

/// A datagram's inside with one frame, in the first generation.
fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut plain = vec![0; 8];
    plain.push(kind);
    plain.extend_from_slice(&(body.len() as u16).to_be_bytes());
    plain.extend_from_slice(&body);
    plain
}

const DATA: u8 = 1;
const PARITY: u8 = 5;
const SACK: u8 = 6;

/// Two devices; the first one lies with `lie(n)` two thousand times while the second one works, to whom
/// nothing may happen.
fn lies_beside_an_honest_device(lie: impl Fn(u32) -> Vec<u8>) -> (World, Traffic) {
    let mut world = World::new(1);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    world.add_edge(Line::default(), Line::default(), Cipher::AesGcm);
    let mut honest = Traffic::new(vec![
        Flow::up(Channel::Bulk, 400),
        Flow::down(Channel::Control, 100),
    ]);
    honest.edge = 1;
    while honest.others.is_empty() {
        honest.run(&mut world, Duration::from_millis(10));
    }
    // What the hub answers would seem absurd to the code that the liar is made of.
    world.cut_down(0, 3600 * SECOND);
    for round in 0..100 {
        for n in 0..20 {
            let bytes = world.edges[0].endpoint.seal_anything(&lie(round * 20 + n));
            let from = world.edges[0].address;
            world.inject(from, HUB_ADDRESS, bytes);
        }
        honest.run(&mut world, Duration::from_millis(5));
    }
    assert!(
        honest.run(&mut world, 60 * SECOND),
        "the honest one goes on"
    );
    assert!(honest.closes.is_empty(), "{:?}", honest.closes);
    assert_eq!(honest.resets, 0);
    (world, honest)
}

#[test]
fn packets_that_fit_no_window_are_dropped_and_harm_nobody() {
    let data = [7; 1_000];
    // Beyond the window, just inside but never the first, and of the far past.
    let (world, honest) = lies_beside_an_honest_device(|n| {
        let sn = match n % 3 {
            0 => 1_000_000 + n,
            1 => 1 + n,
            _ => u32::MAX - n,
        };
        frame(DATA, &[&[(n % 3) as u8, 0], &sn.to_be_bytes(), &data])
    });
    assert_eq!(honest.others_closed, []);
    let [half_open, answers, _, _, events] = world.hub.tables();
    assert!(half_open <= 256 && answers <= 256 && events < 10_000);
}

#[test]
fn acknowledgements_of_what_never_was_end_the_liars_session_only() {
    for lie in [
        // Conversation, window, first packet that hasn't come, packet of the first bit, bits.
        frame(SACK, &[&[0, 0, 0, 1, 1, 0], &[0; 4], &[0, 0, 19, 0], &[1]]),
        frame(SACK, &[&[0, 0, 0, 1, 1, 0], &[0, 0, 0, 77], &[0; 4]]),
        frame(SACK, &[&[0, 0, 0, 6, 1, 0], &[0; 8]]),
    ] {
        let (_, honest) = lies_beside_an_honest_device(|_| lie.clone());
        assert_eq!(honest.others_closed[..1], [CloseReason::Violation]);
    }
}

#[test]
fn parity_over_what_never_comes_is_kept_within_bounds() {
    let bytes = [7; 900];
    let (world, honest) = lies_beside_an_honest_device(|n| {
        let first = n.to_be_bytes();
        frame(
            PARITY,
            &[&[0, 0, 0, (n % 3) as u8], &first, &[1, 64, 3], &bytes],
        )
    });
    assert_eq!(honest.others_closed, []);
    let [half_open, answers, _, _, events] = world.hub.tables();
    assert!(half_open <= 256 && answers <= 256 && events < 10_000);
    for insane in [
        frame(PARITY, &[&[0, 0, 0, 1], &[0; 4], &[0, 1, 0], &bytes]),
        frame(PARITY, &[&[0, 0, 0, 3], &[0; 4], &[1, 1, 0], &bytes]),
        // "Gives back" a packet of more fragments than any message has.
        frame(
            PARITY,
            &[&[0, 0, 0, 1], &[0; 4], &[1, 1, 0], &[0, 4, 200], &[9; 8]],
        ),
    ] {
        let (_, honest) = lies_beside_an_honest_device(|_| insane.clone());
        assert_eq!(honest.others_closed[..1], [CloseReason::Violation]);
    }
}

#[test]
fn channels_renewed_without_end_are_a_violation() {
    let (_, honest) = lies_beside_an_honest_device(|n| {
        let mut plain = (n + 1).to_be_bytes().to_vec();
        plain.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0]);
        plain
    });
    assert_eq!(honest.others_closed[..1], [CloseReason::Violation]);
}

#[test]
fn the_last_generation_of_all_harms_only_who_names_it() {
    let (_, honest) = lies_beside_an_honest_device(|_| {
        let mut plain = u32::MAX.to_be_bytes().to_vec();
        plain.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0]);
        plain
    });
    assert_eq!(
        honest.others.len(),
        1,
        "its session stays, in that generation"
    );
}

#[test]
fn a_thousand_pings_a_datagram_are_answered_once() {
    let mut plain = vec![0; 8];
    plain.extend_from_slice(&[0; 3 * 350]);
    let (world, _) = lies_beside_an_honest_device(|_| plain.clone());
    let counters = world.hub.counters();
    assert!(
        counters.bytes_sent < counters.bytes_received,
        "{counters:?}"
    );
}

/// Somebody on the line who sees, drops, changes, repeats and invents datagrams at random can slow two honest
/// ends down, and nothing else: all arrives, and nobody's session ends.
#[test]
fn a_random_attacker_on_the_line_only_costs_time() {
    for seed in 0..24 {
        let mut world = World::new(seed);
        let line = Line {
            jitter: Duration::from_millis(seed % 4 * 5),
            ..Line::default()
        };
        world.add_edge(line.clone(), line, Cipher::AesGcm);
        world.attack(Attacker {
            drop: 0.02 * (seed % 5) as f64,
            change: 0.02 * (seed % 3) as f64,
            replay: 0.3,
            invent: 0.3,
        });
        let mut traffic = Traffic::new(vec![
            Flow::up(Channel::Bulk, 300),
            Flow::up(Channel::Live, 100),
            Flow::up(Channel::Control, 30),
            Flow::down(Channel::Control, 100),
        ]);
        let limit = world.now + 600 * SECOND;
        while !traffic.is_done() {
            assert!(world.now < limit, "seed {seed}: it does not all arrive");
            traffic.run(&mut world, SECOND / 10);
            let [half_open, answers, strangers, indices, _] = world.hub.tables();
            assert!(
                half_open <= 256 && answers <= 256 && strangers <= 256,
                "seed {seed}"
            );
            assert!(indices <= 512, "seed {seed}");
        }
        assert!(
            traffic.closes.is_empty(),
            "seed {seed}: {:?}",
            traffic.closes
        );
        assert!(world.wrongs() > 100, "seed {seed}: {}", world.wrongs());
        let counters = world.hub.counters();
        assert!(counters.dropped() > 0, "seed {seed}: {counters:?}");
    }
}
