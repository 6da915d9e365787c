//! Disks that fail on purpose: small file systems that are mounted, filled and taken away, and a library
//! between a program and its C library that fails or delays what the program asks of its disk.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::wait_for;

/// Whether file systems can be mounted here. False, said on standard output, where they can't; in CI that is
/// an error.
pub fn may_mount() -> Result<bool> {
    let dir = tempfile::tempdir()?;
    let tried = Mount::tmpfs(dir.path(), "size=64k");
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    match tried {
        Ok(_) => Ok(true),
        Err(error) if in_ci => Err(error.context("mounting is not permitted: run as root")),
        Err(error) => {
            println!("skipped: mounting is not permitted here ({error:#})");
            Ok(false)
        }
    }
}

fn run(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// A mounted file system; dropping it takes it away.
pub struct Mount {
    at: PathBuf,
    /// What is mounted: a folder, or a loop device.
    what: Option<PathBuf>,
    device: Option<PathBuf>,
}

impl Mount {
    /// A file system in memory, with options such as `size=24m,nr_inodes=64`.
    pub fn tmpfs(at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "penstock-test"])
            .arg(at))?;
        Ok(Self {
            at: at.to_owned(),
            what: None,
            device: None,
        })
    }

    /// A folder seen at another place, so that it can be away and come back.
    pub fn bound(what: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(what)?;
        fs::create_dir_all(at)?;
        let mount = Self {
            at: at.to_owned(),
            what: Some(what.to_owned()),
            device: None,
        };
        mount.bring_back()?;
        Ok(mount)
    }

    /// An ext4 of so many MiB in a file, which turns read-only when it finds itself damaged.
    pub fn ext4(image: &Path, at: &Path, size_mib: u64) -> Result<Self> {
        fs::create_dir_all(at)?;
        File::create(image)?.set_len(size_mib << 20)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(image))?;
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(image))?;
        let device = PathBuf::from(device);
        let mount = Self {
            at: at.to_owned(),
            what: None,
            device: Some(device.clone()),
        };
        run(Command::new("mount")
            .args(["-o", "errors=remount-ro"])
            .arg(&device)
            .arg(at))?;
        Ok(mount)
    }

    /// What an SD card does that goes bad: the kernel finds damage and takes no write any more.
    pub fn turn_read_only(&self) -> Result<()> {
        let device = self.device.as_ref().context("not a device")?;
        let name = device.file_name().context("name")?.to_string_lossy();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1")?;
        ensure!(
            File::create(self.at.join("probe")).is_err(),
            "it still takes writes"
        );
        Ok(())
    }

    /// The mount point is empty from now on; who has files open keeps them.
    pub fn take_away(&self) -> Result<()> {
        run(Command::new("umount").arg("-l").arg(&self.at)).map(|_| ())
    }

    /// The same disk again.
    pub fn bring_back(&self) -> Result<()> {
        let what = self.what.as_ref().context("nothing to bring back")?;
        run(Command::new("mount").arg("--bind").arg(what).arg(&self.at)).map(|_| ())
    }

    /// Fills it to the last byte; gives the file that does.
    pub fn fill(&self) -> Result<PathBuf> {
        let path = self.at.join("filler");
        let mut file = File::create(&path)?;
        for size in [1 << 20, 4_096, 1] {
            let bytes = vec![0; size];
            while file.write_all(&bytes).is_ok() {}
        }
        Ok(path)
    }

    /// Uses up all inodes; gives the folder that does.
    pub fn fill_inodes(&self) -> Result<PathBuf> {
        let folder = self.at.join("fillers");
        fs::create_dir(&folder)?;
        let mut made = 0;
        while File::create(folder.join(made.to_string())).is_ok() {
            made += 1;
        }
        ensure!(made > 0, "no inode was left to use up");
        Ok(folder)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.at));
        if let Some(device) = &self.device {
            let _ = run(Command::new("losetup").arg("-d").arg(device));
        }
    }
}

/// A library for `LD_PRELOAD` whose faults can be changed while a program runs.
pub struct Faults {
    library: PathBuf,
    control: PathBuf,
}

impl Faults {
    /// Builds it in a folder.
    pub fn build(dir: &Path) -> Result<Self> {
        let source = dir.join("faults.c");
        fs::write(&source, include_str!("faults.c"))?;
        let library = dir.join("faults.so");
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl"))?;
        let control = dir.join("faults");
        fs::write(&control, "0 0 0 0\n")?;
        Ok(Self { library, control })
    }

    /// The variables of a program whose writes below `prefix` fail.
    pub fn env(&self, prefix: &Path) -> [(&'static str, String); 3] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAULTS_CONTROL", self.control.display().to_string()),
            ("FAULTS_BELOW", prefix.display().to_string()),
        ]
    }

    /// All is well.
    pub fn none(&self) -> Result<()> {
        self.set(0, 0, 0, 0)
    }

    /// Each fsync takes so long.
    pub fn slow(&self, delay_ms: u64) -> Result<()> {
        self.set(delay_ms, 0, 0, 0)
    }

    /// From the n-th write of a program on, so many writes fail with this error number.
    pub fn fail(&self, errno: i32, nth: u64, count: u64) -> Result<()> {
        self.set(0, errno, nth, count)
    }

    fn set(&self, delay_ms: u64, errno: i32, nth: u64, count: u64) -> Result<()> {
        let next = self.control.with_extension("new");
        fs::write(&next, format!("{delay_ms} {errno} {nth} {count}\n"))?;
        Ok(fs::rename(next, &self.control)?)
    }
}

/// Waits until a log says something.
pub fn wait_for_log(log: impl Fn() -> String, says: &str) -> Result<()> {
    wait_for(
        &format!("the log to say {says:?}"),
        std::time::Duration::from_secs(60),
        || log().contains(says).then_some(()),
    )
    .with_context(log)
}
