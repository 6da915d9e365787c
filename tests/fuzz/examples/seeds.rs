//! Writes the first inputs of all targets to `FOLDER/TARGET/`; the name is the input's BLAKE3.
//!
//! cargo run -p fuzz-targets --example seeds -- FOLDER

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1) else {
        eprintln!("usage: seeds FOLDER");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to write seeds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> std::io::Result<()> {
    for target in fuzz_targets::TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder)?;
        for seed in fuzz_targets::seeds(target.name) {
            fs::write(folder.join(&*blake3::hash(&seed).to_hex()), seed)?;
        }
        // One line each, for scripts: the name and the longest input.
        println!("{} {}", target.name, target.max_len);
    }
    Ok(())
}
