//! A disk as the programs see it: files and folders in memory, and the operations that change them.
//!
//! Running the operations of a log from an empty disk gives the disk; which of them a loss of power takes
//! back is decided in `cut`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The root folder's inode.
pub const ROOT: u64 = 1;

/// One change, as it came through the kernel. Names are of this workspace's programs: UTF-8.
#[derive(Debug, Clone)]
pub enum Op {
    Create {
        parent: u64,
        name: String,
        ino: u64,
        mode: u32,
        folder: bool,
    },
    Write {
        ino: u64,
        offset: u64,
        data: Arc<[u8]>,
    },
    Truncate {
        ino: u64,
        size: u64,
    },
    SetMode {
        ino: u64,
        mode: u32,
    },
    /// fsync or fdatasync of a file, fsync of a folder.
    Sync {
        ino: u64,
    },
    Link {
        parent: u64,
        name: String,
        ino: u64,
    },
    /// Of a file or an empty folder.
    Unlink {
        parent: u64,
        name: String,
        ino: u64,
    },
    Rename {
        parent: u64,
        name: String,
        new_parent: u64,
        new_name: String,
        ino: u64,
    },
}

#[derive(Debug, Clone)]
pub enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<String, u64>),
}

#[derive(Debug, Clone)]
pub struct Inode {
    pub mode: u32,
    pub content: Content,
}

/// Files and folders.
#[derive(Debug, Clone)]
pub struct Disk {
    pub inodes: HashMap<u64, Inode>,
    pub next_ino: u64,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Inode {
            mode: 0o755,
            content: Content::Folder(BTreeMap::new()),
        };
        Self {
            inodes: HashMap::from([(ROOT, root)]),
            next_ino: ROOT + 1,
        }
    }
}

impl Disk {
    pub fn folder(&self, ino: u64) -> Option<&BTreeMap<String, u64>> {
        match &self.inodes.get(&ino)?.content {
            Content::Folder(entries) => Some(entries),
            Content::File(_) => None,
        }
    }

    pub fn file(&self, ino: u64) -> Option<&Vec<u8>> {
        match &self.inodes.get(&ino)?.content {
            Content::File(bytes) => Some(bytes),
            Content::Folder(_) => None,
        }
    }

    pub fn find(&self, parent: u64, name: &str) -> Option<u64> {
        self.folder(parent)?.get(name).copied()
    }

    /// The inode's file, with its path below `from`; folders are walked in order of name.
    pub fn files(&self) -> BTreeMap<String, &[u8]> {
        let mut found = BTreeMap::new();
        let mut to_do = vec![(ROOT, String::new())];
        while let Some((ino, path)) = to_do.pop() {
            for (name, &child) in self.folder(ino).into_iter().flatten() {
                let path = format!("{path}/{name}");
                match self.file(child) {
                    Some(bytes) => {
                        found.insert(path, bytes.as_slice());
                    }
                    None => to_do.push((child, path)),
                }
            }
        }
        found
    }

    /// An inode that no folder has yet.
    pub fn add(&mut self, ino: u64, mode: u32, folder: bool) {
        let content = match folder {
            true => Content::Folder(BTreeMap::new()),
            false => Content::File(Vec::new()),
        };
        self.next_ino = self.next_ino.max(ino + 1);
        self.inodes.insert(ino, Inode { mode, content });
    }

    pub fn set_entry(&mut self, parent: u64, name: &str, ino: u64) {
        if let Some(Inode {
            content: Content::Folder(entries),
            ..
        }) = self.inodes.get_mut(&parent)
        {
            entries.insert(name.to_owned(), ino);
        }
    }

    /// Takes a name away if it is this inode's.
    pub fn clear_entry(&mut self, parent: u64, name: &str, ino: u64) {
        if let Some(Inode {
            content: Content::Folder(entries),
            ..
        }) = self.inodes.get_mut(&parent)
            && entries.get(name) == Some(&ino)
        {
            entries.remove(name);
        }
    }

    pub fn write(&mut self, ino: u64, offset: u64, data: &[u8]) {
        if let Some(Inode {
            content: Content::File(bytes),
            ..
        }) = self.inodes.get_mut(&ino)
        {
            write_at(bytes, offset, data);
        }
    }

    pub fn truncate(&mut self, ino: u64, size: u64) {
        if let Some(Inode {
            content: Content::File(bytes),
            ..
        }) = self.inodes.get_mut(&ino)
        {
            bytes.resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
        }
    }

    pub fn set_mode(&mut self, ino: u64, mode: u32) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.mode = mode;
        }
    }

    /// Carries one operation out.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create {
                parent,
                name,
                ino,
                mode,
                folder,
            } => {
                self.add(*ino, *mode, *folder);
                self.set_entry(*parent, name, *ino);
            }
            Op::Write { ino, offset, data } => self.write(*ino, *offset, data),
            Op::Truncate { ino, size } => self.truncate(*ino, *size),
            Op::SetMode { ino, mode } => self.set_mode(*ino, *mode),
            Op::Sync { .. } => {}
            Op::Link { parent, name, ino } => self.set_entry(*parent, name, *ino),
            Op::Unlink { parent, name, ino } => self.clear_entry(*parent, name, *ino),
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ino,
            } => {
                self.clear_entry(*parent, name, *ino);
                self.set_entry(*new_parent, new_name, *ino);
            }
        }
    }
}

/// Writes into a file's bytes; what lies between its end and `offset` reads as zeros.
pub(super) fn write_at(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let to = from + data.len();
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(data);
}
