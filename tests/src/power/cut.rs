//! What a disk may hold after a loss of power at one point of the log.
//!
//! Of a file, all that a finished fsync covered is there. Each later sector holds any of its versions since
//! (the cache may have been written out at any time, in any order), the length is any since, and what was
//! never written reads as zeros. Of a folder, what was done before its last fsync is there; what was done
//! since is there as the [`Mode`] says. A file's own fsync does not make its name durable, except in
//! [`Mode::Journal`].

use std::collections::HashMap;

use super::{
    disk::{Content, Disk, Inode, Op, write_at},
    log::{Entry, Side},
    random::Random,
};

/// How much of what was not synced is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All of it.
    Vanish,
    /// Nothing: as if the process alone had died.
    Keep,
    /// Each folder keeps any of its changes, in or out of order; sectors as they come.
    Torn,
    /// As a journal has it: changes of folders survive up to one point, and every fsync moves that point on.
    /// Sectors as they come.
    Journal,
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::Vanish, Self::Keep, Self::Torn, Self::Journal];
}

/// Sizes in which disks write: a sector is written whole or not at all.
const SECTOR_BYTES: [usize; 2] = [512, 4_096];

/// A change to one folder.
struct Change<'a> {
    at: usize,
    parent: u64,
    op: &'a Op,
}

/// The disk of one side after a cut just before entry `point` of the log that began on `base`.
pub fn cut(
    base: &Disk,
    entries: &[Entry],
    side: Side,
    point: usize,
    mode: Mode,
    random: &mut Random,
) -> Disk {
    let ops: Vec<(usize, &Op)> = entries
        .iter()
        .take(point)
        .enumerate()
        .filter_map(|(at, entry)| match entry {
            Entry::Op(of, op) if *of == side => Some((at, op)),
            _ => None,
        })
        .collect();
    let mut synced: HashMap<u64, usize> = HashMap::new();
    let mut any_sync = None;
    for &(at, op) in &ops {
        if let Op::Sync { ino } = op {
            synced.insert(*ino, at);
            any_sync = Some(at);
        }
    }
    let is_synced = |ino: u64, at: usize| synced.get(&ino).is_some_and(|&last| at < last);
    let mut disk = base.clone();
    let mut data: HashMap<u64, Vec<&Op>> = HashMap::new();
    let mut changes: Vec<Change<'_>> = Vec::new();
    for (at, op) in ops {
        match op {
            Op::Write { ino, .. } | Op::Truncate { ino, .. } => match is_synced(*ino, at) {
                true => disk.apply(op),
                false => data.entry(*ino).or_default().push(op),
            },
            Op::SetMode { .. } | Op::Sync { .. } => disk.apply(op),
            Op::Create {
                ino, mode, folder, ..
            } => {
                disk.add(*ino, *mode, *folder);
                changes.push(change(at, op));
            }
            Op::Link { .. } | Op::Unlink { .. } | Op::Rename { .. } => changes.push(change(at, op)),
        }
    }
    let durable = |change: &Change<'_>| match mode {
        Mode::Journal => any_sync.is_some_and(|last| change.at < last),
        _ => is_synced(change.parent, change.at),
    };
    let survives = survivors(&changes, durable, mode, random);
    for (change, survives) in changes.iter().zip(survives) {
        if survives {
            apply_names(&mut disk, change.op);
        }
    }
    let mut inos: Vec<u64> = data.keys().copied().collect();
    inos.sort_unstable();
    for ino in inos {
        if let Some(Inode {
            content: Content::File(bytes),
            ..
        }) = disk.inodes.get_mut(&ino)
        {
            tear(bytes, &data[&ino], mode, random);
        }
    }
    disk
}

fn change(at: usize, op: &Op) -> Change<'_> {
    let parent = match op {
        Op::Create { parent, .. } | Op::Link { parent, .. } | Op::Unlink { parent, .. } => *parent,
        Op::Rename { new_parent, .. } => *new_parent,
        Op::Write { ino, .. }
        | Op::Truncate { ino, .. }
        | Op::SetMode { ino, .. }
        | Op::Sync { ino } => *ino,
    };
    Change { at, parent, op }
}

fn survivors(
    changes: &[Change<'_>],
    durable: impl Fn(&Change<'_>) -> bool,
    mode: Mode,
    random: &mut Random,
) -> Vec<bool> {
    let pending: Vec<bool> = changes.iter().map(|change| !durable(change)).collect();
    let count = pending.iter().filter(|p| **p).count() as u64;
    let prefix = random.below(count + 1);
    // For each folder: in order up to some point, or each change by itself.
    let mut folders: HashMap<u64, Option<usize>> = HashMap::new();
    let mut seen = 0;
    let mut survives = Vec::with_capacity(changes.len());
    for (index, change) in changes.iter().enumerate() {
        if !pending[index] {
            survives.push(true);
            continue;
        }
        seen += 1;
        survives.push(match mode {
            Mode::Vanish => false,
            Mode::Keep => true,
            Mode::Journal => seen <= prefix,
            Mode::Torn => {
                let upto = *folders.entry(change.parent).or_insert_with(|| {
                    random
                        .chance(2)
                        .then(|| random.below(changes.len() as u64 + 1) as usize)
                });
                match upto {
                    Some(upto) => index < upto,
                    None => random.chance(2),
                }
            }
        });
    }
    survives
}

/// Names only: the inode of a `Create` is there already.
fn apply_names(disk: &mut Disk, op: &Op) {
    match op {
        Op::Create {
            parent, name, ino, ..
        } => disk.set_entry(*parent, name, *ino),
        other => disk.apply(other),
    }
}

/// Lets each sector of a file take any of its versions: the one after `k` of the pending operations.
fn tear(bytes: &mut Vec<u8>, pending: &[&Op], mode: Mode, random: &mut Random) {
    let all = pending.len();
    let sector_bytes = SECTOR_BYTES[random.below(2) as usize];
    // Written out in order, as one thread would, or as it comes.
    let in_order = random.chance(3).then(|| random.upto(all));
    let mut versions: HashMap<usize, usize> = HashMap::new();
    let mut version = |sector: usize, random: &mut Random| match mode {
        Mode::Vanish => 0,
        Mode::Keep => all,
        Mode::Torn | Mode::Journal => *versions
            .entry(sector)
            .or_insert_with(|| in_order.unwrap_or_else(|| random.upto(all))),
    };
    let mut sizes = vec![bytes.len()];
    for (at, op) in pending.iter().enumerate() {
        let size = sizes[at];
        sizes.push(match op {
            Op::Write { offset, data, .. } => {
                let mut from = *offset as usize;
                let end = from + data.len();
                while from < end {
                    let sector = from / sector_bytes;
                    let to = end.min((sector + 1) * sector_bytes);
                    if at < version(sector, random) {
                        let piece = &data[from - *offset as usize..to - *offset as usize];
                        write_at(bytes, from as u64, piece);
                    }
                    from = to;
                }
                size.max(end)
            }
            Op::Truncate { size: to, .. } => {
                let to = *to as usize;
                let mut from = to;
                while from < bytes.len() {
                    let sector = from / sector_bytes;
                    let end = bytes.len().min((sector + 1) * sector_bytes);
                    if at < version(sector, random) {
                        bytes[from..end].fill(0);
                    }
                    from = end;
                }
                to
            }
            _ => size,
        });
    }
    let size = match mode {
        Mode::Vanish => sizes[0],
        Mode::Keep => sizes[all],
        Mode::Torn | Mode::Journal => sizes[in_order.unwrap_or_else(|| random.upto(all))],
    };
    bytes.resize(size, 0);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::power::disk::ROOT;

    fn ops(ops: &[Op]) -> Vec<Entry> {
        ops.iter()
            .map(|op| Entry::Op(Side::Edge, op.clone()))
            .collect()
    }

    fn create(name: &str, ino: u64) -> Op {
        Op::Create {
            parent: ROOT,
            name: name.to_owned(),
            ino,
            mode: 0o644,
            folder: false,
        }
    }

    fn write(ino: u64, offset: u64, byte: u8, length: usize) -> Op {
        Op::Write {
            ino,
            offset,
            data: vec![byte; length].into(),
        }
    }

    fn rename(name: &str, new_name: &str, ino: u64) -> Op {
        Op::Rename {
            parent: ROOT,
            name: name.to_owned(),
            new_parent: ROOT,
            new_name: new_name.to_owned(),
            ino,
        }
    }

    fn outcomes(log: &[Entry], mode: Mode, rounds: u64) -> HashSet<Vec<(String, Vec<u8>)>> {
        (0..rounds)
            .map(|seed| {
                let mut random = Random::new(seed);
                let disk = cut(
                    &Disk::default(),
                    log,
                    Side::Edge,
                    log.len(),
                    mode,
                    &mut random,
                );
                let files = disk.files();
                files.into_iter().map(|(k, v)| (k, v.to_vec())).collect()
            })
            .collect()
    }

    #[test]
    fn what_was_synced_is_there_in_every_outcome() {
        let log = ops(&[
            create("a", 2),
            write(2, 0, 1, 1_000),
            Op::Sync { ino: 2 },
            Op::Sync { ino: ROOT },
            write(2, 1_000, 2, 1_000),
        ]);
        for mode in Mode::ALL {
            for files in outcomes(&log, mode, 200) {
                let (name, bytes) = &files[0];
                assert_eq!(name, "/a");
                assert!(bytes.len() >= 1_000 && bytes[..1_000].iter().all(|b| *b == 1));
            }
        }
        assert_eq!(outcomes(&log, Mode::Vanish, 50).len(), 1);
        let kept = outcomes(&log, Mode::Keep, 50);
        assert!(kept.iter().all(|files| files[0].1.len() == 2_000));
        // Old and new length, with the new sectors there or not.
        assert!(outcomes(&log, Mode::Torn, 400).len() >= 4);
    }

    #[test]
    fn a_rename_without_a_folder_sync_may_or_may_not_be_there() {
        let log = ops(&[
            create("a.tmp", 2),
            write(2, 0, 7, 10),
            Op::Sync { ino: 2 },
            rename("a.tmp", "a", 2),
        ]);
        assert_eq!(outcomes(&log, Mode::Vanish, 50), HashSet::from([vec![]]));
        let names: HashSet<Vec<String>> = outcomes(&log, Mode::Torn, 200)
            .into_iter()
            .map(|files| files.into_iter().map(|(name, _)| name).collect())
            .collect();
        let of = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            names,
            HashSet::from([of(&[]), of(&["/a.tmp"]), of(&["/a"])])
        );
        // A journal has the file's creation committed by its fsync.
        assert!(
            outcomes(&log, Mode::Journal, 50)
                .iter()
                .all(|files| files.len() == 1)
        );
    }

    #[test]
    fn unsynced_data_behind_a_durable_rename_may_be_zeros() {
        let log = ops(&[
            create("a.tmp", 2),
            write(2, 0, 7, 600),
            rename("a.tmp", "a", 2),
            Op::Sync { ino: ROOT },
        ]);
        let all = outcomes(&log, Mode::Torn, 300);
        assert!(all.iter().all(|files| files[0].0 == "/a"));
        let found: HashSet<Vec<u8>> = all.into_iter().map(|files| files[0].1.clone()).collect();
        assert!(found.contains(&vec![]) && found.contains(&vec![7; 600]));
        assert!(found.contains(&vec![0; 600]));
        assert!(found.contains(&[vec![7; 512], vec![0; 88]].concat()));
    }
}
