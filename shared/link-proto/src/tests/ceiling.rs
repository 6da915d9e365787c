//! What is sent before any loss is known stays under its ceiling: parity, and what tail probes repeat.

use std::time::Duration;

use super::latency::Camera;
use crate::{
    Cipher, Endpoint, SessionStats,
    sim::{Line, World},
};

fn lossy(loss: f64) -> Line {
    Line {
        delay: Duration::from_millis(50),
        loss,
        rate_bps: Some(20_000_000),
        ..Line::default()
    }
}

/// Tail probes, which go in any case, and what has not come when it is looked.
const SLACK_BYTES: u64 = 64 * 1024;

fn stats(world: &World) -> SessionStats {
    let edge = &world.edges[0].endpoint;
    edge.stats(edge.session().unwrap()).unwrap()
}

#[test]
fn no_more_goes_beforehand_than_the_ceiling_and_all_arrives() {
    let mut wires = Vec::new();
    for ceiling in [0.0, 0.2, 0.5] {
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
        assert!(beforehand <= most + SLACK_BYTES, "{beforehand} of {most}");
        if ceiling == 0.0 {
            assert_eq!(stats.parities_sent, 0);
        } else {
            assert!(stats.parities_sent > 100, "{stats:?}");
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
    assert!(wires[0] < wires[1].min(wires[2]), "{wires:?}");
}
