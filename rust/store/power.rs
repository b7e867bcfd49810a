//! A disk in memory that forgets what was not synced when its power is cut.
//!
//! The model is the worst a disk that keeps its promises may do. Of the writes to a file since its
//! last sync, any subset survives, and one of them may be torn at a multiple of 512 bytes. Of the
//! changes to the names of a directory since its last sync, any prefix survives (file systems
//! journal them in order), independently of other directories and of the files' bytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::vfs::{How, Kind, Stat, Vfs};

/// Unit in which a disk writes.
const SECTOR: usize = 512;
const ROOT: u64 = 0;

#[derive(Clone, Debug)]
enum Change {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

type Names = BTreeMap<OsString, u64>;

#[derive(Clone, Debug)]
enum Node {
    File {
        now: Vec<u8>,
        safe: Vec<u8>,
        unsynced: Vec<Change>,
    },
    /// Each unsynced state is what the directory looked like after one more change.
    Dir {
        now: Names,
        safe: Names,
        unsynced: Vec<Names>,
    },
}

#[derive(Clone, Debug)]
struct State {
    nodes: BTreeMap<u64, Node>,
    steps_left: u64,
    steps: u64,
}

/// The disk. Clones share it.
#[derive(Clone, Debug)]
pub struct Power(Arc<Mutex<State>>);

/// A source of reproducible choices (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Choices that depend on `seed` only.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit` (at least 1).
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % limit.max(1)
    }
}

impl Node {
    fn file() -> Self {
        Self::File { now: vec![], safe: vec![], unsynced: vec![] }
    }

    fn dir() -> Self {
        Self::Dir { now: Names::new(), safe: Names::new(), unsynced: vec![] }
    }

    fn change(&mut self, change: Change) {
        if let Self::File { now, unsynced, .. } = self {
            apply(now, &change);
            unsynced.push(change);
        }
    }

    /// What is left of it after the cut.
    fn survive(&mut self, dice: &mut Dice) {
        match self {
            Self::File { now, safe, unsynced } => {
                let torn = dice.below(unsynced.len() + 1);
                for (place, change) in unsynced.drain(..).enumerate() {
                    let change = if place == torn { tear(change, dice) } else { change };
                    if dice.below(2) == 0 {
                        apply(safe, &change);
                    }
                }
                now.clone_from(safe);
            }
            Self::Dir { now, safe, unsynced } => {
                let kept = dice.below(unsynced.len() + 1);
                if let Some(names) = unsynced.drain(..).take(kept).next_back() {
                    *safe = names;
                }
                now.clone_from(safe);
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length as usize, 0),
        Change::Bytes(at, new) => {
            let end = *at as usize + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at as usize..end].copy_from_slice(new);
        }
    }
}

fn tear(change: Change, dice: &mut Dice) -> Change {
    match change {
        Change::Bytes(at, mut bytes) => {
            let sectors = bytes.len().div_ceil(SECTOR);
            bytes.truncate(dice.below(sectors + 1) * SECTOR);
            Change::Bytes(at, bytes)
        }
        other @ Change::Length(_) => other,
    }
}

impl State {
    fn find(&self, path: &Path) -> Option<u64> {
        path.components().filter(|part| matches!(part, Component::Normal(_))).try_fold(
            ROOT,
            |dir, part| match self.nodes.get(&dir) {
                Some(Node::Dir { now, .. }) => now.get(part.as_os_str()).copied(),
                _ => None,
            },
        )
    }

    fn need(&self, path: &Path) -> io::Result<u64> {
        self.find(path).ok_or_else(|| Errno::NOENT.into())
    }

    fn add(&mut self, node: Node) -> u64 {
        let number = self.nodes.len() as u64;
        self.nodes.insert(number, node);
        number
    }

    /// Changes the names of the directory that holds `path`, as one journalled step.
    fn names(&mut self, path: &Path, change: impl FnOnce(&mut Names)) -> io::Result<()> {
        let parent = self.need(path.parent().unwrap_or(Path::new("")))?;
        match self.nodes.get_mut(&parent) {
            Some(Node::Dir { now, unsynced, .. }) => {
                change(now);
                unsynced.push(now.clone());
                Ok(())
            }
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    fn stat(&self, number: u64) -> Stat {
        match &self.nodes[&number] {
            Node::File { now, .. } => {
                Stat { kind: Kind::File, len: now.len() as u64, inode: number }
            }
            Node::Dir { .. } => Stat { kind: Kind::Dir, len: 0, inode: number },
        }
    }
}

fn name(path: &Path) -> OsString {
    path.file_name().unwrap_or_default().to_owned()
}

impl Power {
    /// An empty disk whose power is cut after `steps` operations.
    pub fn new(steps: u64) -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::dir())]);
        Self(Arc::new(Mutex::new(State { nodes, steps_left: steps, steps: 0 })))
    }

    /// Operations so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// The disk after the cut, with power for `steps` more operations.
    #[must_use]
    pub fn reboot(&self, dice: &mut Dice, steps: u64) -> Self {
        let mut state = self.state().clone();
        for node in state.nodes.values_mut() {
            node.survive(dice);
        }
        (state.steps_left, state.steps) = (steps, 0);
        Self(Arc::new(Mutex::new(state)))
    }

    /// The bytes of a file, if it is there.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        match &state.nodes[&state.find(path)?] {
            Node::File { now, .. } => Some(now.clone()),
            Node::Dir { .. } => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation; an error when the power is off.
    fn step(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.steps_left == 0 {
            return Err(Errno::IO.into());
        }
        state.steps_left -= 1;
        state.steps += 1;
        Ok(state)
    }
}

impl Vfs for Power {
    type File = u64;

    fn open(&self, path: &Path, how: How) -> io::Result<u64> {
        let mut state = self.step()?;
        match (state.find(path), how) {
            (Some(_), How::New) => Err(Errno::EXIST.into()),
            (Some(number), _) => Ok(number),
            (None, How::Read | How::Edit) => Err(Errno::NOENT.into()),
            (None, How::Make | How::New) => {
                let number = state.add(Node::file());
                state.names(path, |names| {
                    let _ = names.insert(name(path), number);
                })?;
                Ok(number)
            }
        }
    }

    fn pread(&self, file: &u64, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.step()?;
        let Node::File { now, .. } = &state.nodes[file] else { return Err(Errno::ISDIR.into()) };
        let rest = now.get(at as usize..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn pwrite(&self, file: &u64, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.step()?;
        let node = state.nodes.get_mut(file).ok_or(Errno::BADF)?;
        node.change(Change::Bytes(at, bytes.to_vec()));
        Ok(bytes.len())
    }

    fn allocate(&self, file: &u64, len: u64) -> io::Result<bool> {
        let mut state = self.step()?;
        if state.stat(*file).len < len {
            state.nodes.get_mut(file).ok_or(Errno::BADF)?.change(Change::Length(len));
        }
        Ok(true)
    }

    fn truncate(&self, file: &u64, len: u64) -> io::Result<()> {
        let mut state = self.step()?;
        state.nodes.get_mut(file).ok_or(Errno::BADF)?.change(Change::Length(len));
        Ok(())
    }

    fn sync(&self, file: &u64) -> io::Result<()> {
        let mut state = self.step()?;
        if let Some(Node::File { now, safe, unsynced }) = state.nodes.get_mut(file) {
            unsynced.clear();
            safe.clone_from(now);
        }
        Ok(())
    }

    fn status(&self, file: &u64) -> io::Result<(Stat, u64)> {
        let state = self.step()?;
        Ok((state.stat(*file), 1))
    }

    fn forget(&self, _file: &u64) {}

    fn try_lock(&self, _file: &u64, _shared: bool) -> io::Result<Option<bool>> {
        self.step().map(|_| Some(true))
    }

    fn lock(&self, _file: &u64) -> io::Result<()> {
        self.step().map(drop)
    }

    fn unlock(&self, _file: &u64) -> io::Result<()> {
        self.step().map(drop)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        if state.find(path).is_some() {
            return Err(Errno::EXIST.into());
        }
        let number = state.add(Node::dir());
        state.names(path, |names| {
            let _ = names.insert(name(path), number);
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let number = state.need(path)?;
        if let Some(Node::Dir { now, safe, unsynced }) = state.nodes.get_mut(&number) {
            unsynced.clear();
            safe.clone_from(now);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let number = state.need(from)?;
        if let Some(old) = state.find(to)
            && matches!(state.nodes[&old], Node::Dir { .. })
        {
            return Err(Errno::NOTEMPTY.into());
        }
        state.names(from, |names| {
            names.remove(&name(from));
            names.insert(name(to), number);
        })
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let (first, second) = (state.need(a)?, state.need(b)?);
        state.names(a, |names| {
            names.insert(name(a), second);
            names.insert(name(b), first);
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        state.need(path)?;
        state.names(path, |names| {
            let _ = names.remove(&name(path));
        })
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.step()?;
        match &state.nodes[&state.need(path)?] {
            Node::Dir { now, .. } => {
                Ok(now.keys().map(|name| name.to_string_lossy().into_owned()).collect())
            }
            Node::File { .. } => Err(Errno::NOTDIR.into()),
        }
    }

    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        let state = self.step()?;
        Ok(state.find(path).map(|number| state.stat(number)))
    }

    fn free(&self, _path: &Path) -> io::Result<u64> {
        self.step().map(|_| u64::MAX / 2)
    }
}
