//! Transports side by side on one emulated line; `main` is `scripts/bench link`'s program.
//!
//! Everything of a row runs in one process, so that one clock measures both ends: threads at either end of
//! the line (see [`line`]), each in its own network namespace; SRT's programs, and hub and edge-node for
//! [`outage`], are started there.

pub mod carry;
pub mod line;
pub mod outage;
pub mod share;
pub mod video;
