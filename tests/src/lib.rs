//! Whole programs under test: a hub and edge-nodes as processes, a line between them that can be cut,
//! real players, HTTP as a viewer speaks it.
//!
//! Nothing of the product's crates is linked here: what a test sees is what a user sees.

// A test's panic is its verdict.
#![allow(clippy::indexing_slicing)]

mod disk;
mod http;
mod line;
mod player;
mod programs;

pub use disk::{Faults, Mount, may_mount, wait_for_log};
pub use http::{Response, get, get_with, playlist};
pub use line::Line;
pub use player::{Frame, audio_packets, decode_errors, fixture, frames, gstreamer_pictures, tool};
pub use programs::{Edge, Hub, Push, program, wait_for};
