//! What is sent before any loss is known stays under its ceiling: parity, and what tail probes repeat.

use std::time::Duration;

use bytes::Bytes;

use super::latency::Camera;
use crate::{
    Channel, Cipher, DEFAULT_MAX_REDUNDANCY, Endpoint, Event, SessionStats,
    sim::{Line, Who, World},
};

fn lossy(loss: f64) -> Line {
    Line {
        delay: Duration::from_millis(50),
        loss,
        rate_bps: Some(20_000_000),
        ..Line::default()
    }
}

/// Unused share that may be borrowed, at the default of a half, and what has not come when it is looked.
const SLACK_BYTES: u64 = 64 * 1024;

fn stats(world: &World) -> SessionStats {
    let edge = &world.edges[0].endpoint;
    edge.stats(edge.session().unwrap()).unwrap()
}

#[test]
fn no_more_goes_beforehand_than_the_ceiling_and_all_arrives() {
    let mut wires = Vec::new();
    for ceiling in [0.0, 0.2, 0.5, 1.0] {
        let mut world = World::new(21);
        world.add_edge(lossy(0.2), lossy(0.2), Cipher::AesGcm);
        world.edges[0].endpoint.set_max_redundancy(ceiling);
        let mut camera = Camera::new(500);
        while !camera.is_done() {
            camera.turn(&mut world);
            world.step_until(camera.next());
            assert!(
                world.elapsed() < Duration::from_secs(60),
                "{ceiling}: pictures are missing"
            );
        }
        let stats = stats(&world);
        let media = camera.bytes_come as f64;
        let most = (ceiling * media) as u64;
        let beforehand = stats.bytes_beforehand;
        println!("{ceiling}: {:.3} of the media", beforehand as f64 / media);
        if ceiling == 0.0 {
            assert_eq!((beforehand, stats.parities_sent), (0, 0));
        } else {
            assert!(beforehand <= most + SLACK_BYTES, "{beforehand} of {most}");
            assert!(stats.parities_sent > 100, "{stats:?}");
        }
        if ceiling <= 0.2 {
            assert!(
                beforehand >= most * 9 / 10,
                "{beforehand} of {most}: it is of use"
            );
        }
        // What the line saw: packets, and beside them no more than was counted.
        let (datagrams, bytes) = world.edges[0].sent();
        let packets =
            stats.packets_sent as f64 / (stats.packets_sent - stats.packets_resent) as f64;
        let headers = (datagrams * 80) as f64;
        let explained = media * packets + beforehand as f64 + headers;
        assert!(bytes as f64 <= explained, "{bytes} of {explained}");
        wires.push(bytes);
    }
    assert!(wires[0] < wires[2], "{wires:?}");
}

/// Messages far apart: each is a tail, which only parity or a probe makes sure of.
fn tails(ceiling: f64) -> (SessionStats, usize) {
    let mut world = World::new(22);
    world.add_edge(lossy(0.3), lossy(0.3), Cipher::AesGcm);
    world.edges[0].endpoint.set_max_redundancy(ceiling);
    let (mut session, mut sent, mut come) = (None, 0, 0);
    let mut next = world.now;
    while come < 200 {
        for (who, event) in world.take_events() {
            match event {
                Event::Connected { session, .. } if who == Who::Hub => world.hub.admit(session),
                Event::Connected { session: id, .. } => session = Some(id),
                Event::Message {
                    session, message, ..
                } if who == Who::Hub => {
                    world.hub.consumed(session, Channel::Bulk, message.len());
                    come += 1;
                }
                _ => {}
            }
        }
        if let Some(session) = session
            && sent < 200
            && world.now >= next
        {
            let message = Bytes::from(vec![7; 1_000]);
            let edge = &mut world.edges[0].endpoint;
            edge.send(world.now, session, Channel::Bulk, message)
                .unwrap();
            sent += 1;
            next = world.now + Duration::from_millis(500);
        }
        world.step_until(Some(next).filter(|at| *at > world.now));
        assert!(world.elapsed() < Duration::from_secs(300), "{come} came");
    }
    (stats(&world), sent * 1_000)
}

#[test]
fn tail_probes_are_counted_and_without_a_budget_ask_only() {
    let (stats, media) = tails(DEFAULT_MAX_REDUNDANCY);
    let most = (media as f64 * DEFAULT_MAX_REDUNDANCY) as u64 + SLACK_BYTES;
    assert!(stats.bytes_beforehand > 0 && stats.bytes_beforehand <= most);
    let (stats, _) = tails(0.0);
    assert_eq!(stats.bytes_beforehand, 0);
    assert!(stats.packets_resent > 20, "what was lost came again");
}
