//! The target that `PENSTOCK_FUZZ_TARGET` names. One program for all of them, since each would link the whole
//! product again.
#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz_targets::choose(), |data: &[u8]| fuzz_targets::run_chosen(data));
