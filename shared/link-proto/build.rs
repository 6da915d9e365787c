//! Compiles `proto/link.proto` to Rust without an external compiler.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/link.proto");
    let descriptors = protox::compile(["link.proto"], ["proto"])?;
    prost_build::Config::new()
        // Media is sliced out of the received message, never copied.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
