//! Whole programs under test: a hub and edge-nodes as processes, a line between them that can be cut,
//! real players, HTTP as a viewer speaks it.
//!
//! Nothing of the product's crates is linked here: what a test sees is what a user sees.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

mod clock;
mod common;
mod disk;
mod flood;
mod http;
mod line;
mod list_rules;
pub mod netem;
mod player;
pub mod power;
mod programs;
mod random_video;

pub use clock::FakeClock;
pub use common::{assert_all_at_hub, camera, numbers};
pub use disk::{Faults, Mount, may_mount, wait_for_log};
pub use flood::{Flood, Sent, hub_key};
pub use http::{Response, get, get_with, playlist};
pub use line::Line;
pub use list_rules::{ListRules, Watcher};
pub use player::{Frame, audio_packets, decode_errors, fixture, frames, gstreamer_pictures, tool};
pub use programs::{Edge, Hub, Push, command_in, program, segments, wait_for};
pub use random_video::{random_clip, seeded, setting};
