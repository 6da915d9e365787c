//! Media without I/O: access units, codec inspection, demuxing, muxing, cutting, playlists.
//!
//! Pure: no tokio, socket, file, clock, random source or process. Bytes come in as arguments, decisions
//! go out as values.

pub mod aac;
pub mod access_unit;
pub mod annexb;
mod bits;
pub mod h264;
pub mod h265;
pub mod live_list;
pub mod mp4;
mod parameters;
pub mod playlist;
pub mod segmenter;
pub mod sniff;
pub mod timeline;
pub mod ts;
pub mod ts_mux;
mod warnings;
