//! Media without I/O: access units, codec inspection, demuxing, muxing, cutting, playlists.
//!
//! Pure: no tokio, socket, file, clock, random source or process. Bytes come in as arguments, decisions
//! go out as values.

pub mod access_unit;
pub mod mp4;
pub mod sniff;
pub mod ts;
