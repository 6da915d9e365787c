//! What both programs do alike: exit codes, config files, logs, signals, durable small files, output.
//!
//! Nothing of video, stores or links belongs here.

pub mod clock;
pub mod config;
pub mod durable;
pub mod exit;
pub mod logging;
pub mod output;
pub mod scrub;
pub mod shutdown;
