//! A disk mounted with FUSE: programs use it like any other, and each change goes into the log.
//!
//! All that the kernel does to a file comes through here, also from `mmap` and `copy_file_range`, so the log
//! is whole by construction. The kernel's cache writes through: a `write` is logged before it returns.
//! An operation that isn't logged isn't offered (ENOSYS), so that none can go by unseen.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::{
    disk::{Content, Disk, Op},
    log::{Entry, Log, Side},
};

/// The kernel may trust what it was told this long: nobody else changes it.
const TTL: Duration = Duration::from_secs(3_600);
const BLOCK_BYTES: u32 = 4_096;
/// A disk of 1 TiB that never fills.
const BLOCKS: u64 = 1 << 28;

/// A mounted disk; dropping it unmounts.
pub struct Mount {
    path: PathBuf,
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
}

impl Mount {
    /// Mounts `disk` at `path`, which is made.
    pub fn new(path: &Path, side: Side, disk: Disk, log: Log) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let disk = Arc::new(Mutex::new(disk));
        let logged = Logged {
            disk: disk.clone(),
            side,
            log,
        };
        let session = fuser::spawn_mount(logged, path, &Config::default())
            .with_context(|| format!("mount at {} (needs root and /dev/fuse)", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            disk,
            session: Some(session),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk as it is now.
    pub fn disk(&self) -> Disk {
        lock(&self.disk).clone()
    }

    /// Unmounts; what the kernel still held is in the log then.
    pub fn end(mut self) -> Result<Disk> {
        if let Some(session) = self.session.take() {
            session.umount_and_join().context("unmount")?;
        }
        Ok(self.disk())
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Logged {
    disk: Arc<Mutex<Disk>>,
    side: Side,
    log: Log,
}

impl Logged {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }

    /// Done and logged under the disk's lock: the log's order is the disk's.
    fn change(&self, disk: &mut Disk, op: Op) {
        disk.apply(&op);
        self.log.push(Entry::Op(self.side, op));
    }

    fn create_at(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        folder: bool,
    ) -> Result<FileAttr, Errno> {
        let name = text(name)?;
        let mut disk = self.disk();
        disk.folder(parent.0).ok_or(Errno::ENOENT)?;
        if disk.find(parent.0, &name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = disk.next_ino;
        let op = Op::Create {
            parent: parent.0,
            name,
            ino,
            mode: mode & 0o7777,
            folder,
        };
        self.change(&mut disk, op);
        attr(&disk, ino)
    }

    fn remove_at(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let name = text(name)?;
        let mut disk = self.disk();
        let ino = disk.find(parent.0, &name).ok_or(Errno::ENOENT)?;
        if disk.folder(ino).is_some_and(|entries| !entries.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        let op = Op::Unlink {
            parent: parent.0,
            name,
            ino,
        };
        self.change(&mut disk, op);
        Ok(())
    }

    fn rename_at(
        &self,
        (parent, name): (INodeNo, &OsStr),
        (new_parent, new_name): (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let (name, new_name) = (text(name)?, text(new_name)?);
        let mut disk = self.disk();
        let ino = disk.find(parent.0, &name).ok_or(Errno::ENOENT)?;
        let there = disk.find(new_parent.0, &new_name).is_some();
        if flags.contains(RenameFlags::RENAME_NOREPLACE) && there {
            return Err(Errno::EEXIST);
        }
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        let op = Op::Rename {
            parent: parent.0,
            name,
            new_parent: new_parent.0,
            new_name,
            ino,
        };
        self.change(&mut disk, op);
        Ok(())
    }

    fn link_at(&self, ino: INodeNo, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let name = text(name)?;
        let mut disk = self.disk();
        if disk.find(parent.0, &name).is_some() {
            return Err(Errno::EEXIST);
        }
        let op = Op::Link {
            parent: parent.0,
            name,
            ino: ino.0,
        };
        self.change(&mut disk, op);
        attr(&disk, ino.0)
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        let mut disk = self.disk();
        self.change(&mut disk, Op::Sync { ino: ino.0 });
        reply.ok();
    }
}

fn text(name: &OsStr) -> Result<String, Errno> {
    name.to_str().map(str::to_owned).ok_or(Errno::EINVAL)
}

fn attr(disk: &Disk, ino: u64) -> Result<FileAttr, Errno> {
    let inode = disk.inodes.get(&ino).ok_or(Errno::ENOENT)?;
    let (kind, size) = match &inode.content {
        Content::File(bytes) => (FileType::RegularFile, bytes.len() as u64),
        Content::Folder(_) => (FileType::Directory, 0),
    };
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: u16::try_from(inode.mode & 0o7777).unwrap_or(0o600),
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    })
}

impl Filesystem for Logged {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        let found = text(name).and_then(|name| disk.find(parent.0, &name).ok_or(Errno::ENOENT));
        match found.and_then(|ino| attr(&disk, ino)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attr(&self.disk(), ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        if let Some(size) = size {
            self.change(&mut disk, Op::Truncate { ino: ino.0, size });
        }
        if let Some(mode) = mode {
            self.change(&mut disk, Op::SetMode { ino: ino.0, mode });
        }
        match attr(&disk, ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        match self.create_at(parent, name, mode & !umask, true) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.remove_at(parent, name) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.remove_at(parent, name) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        match self.rename_at((parent, name), (new_parent, new_name), flags) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.link_at(ino, parent, name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = self.disk();
        let Some(bytes) = disk.file(ino.0) else {
            return reply.error(Errno::EISDIR);
        };
        let from = usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
        let to = bytes.len().min(from + size as usize);
        reply.data(&bytes[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let op = Op::Write {
            ino: ino.0,
            offset,
            data: data.into(),
        };
        self.change(&mut self.disk(), op);
        reply.written(u32::try_from(data.len()).unwrap_or(0));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let disk = self.disk();
        let Some(entries) = disk.folder(ino.0) else {
            return reply.error(Errno::ENOTDIR);
        };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, &child)) in entries.iter().enumerate().skip(skip) {
            let kind = match disk.folder(child) {
                Some(_) => FileType::Directory,
                None => FileType::RegularFile,
            };
            if reply.add(INodeNo(child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let files = 1 << 20;
        reply.statfs(
            BLOCKS,
            BLOCKS,
            BLOCKS,
            files,
            files,
            BLOCK_BYTES,
            255,
            BLOCK_BYTES,
        );
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.create_at(parent, name, mode & !umask, false) {
            Ok(attr) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(error),
        }
    }
}
