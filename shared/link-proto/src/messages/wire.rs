//! What `build.rs` made of `proto/link.proto`: plain, unchecked. Only `messages` touches it.
#![allow(clippy::all, unreachable_pub, missing_docs)]

include!(concat!(env!("OUT_DIR"), "/penstock.link.v1.rs"));
