//! The few file operations a store needs, as a trait, and the real disk behind it.
//!
//! All writing passes through [`Vfs`], so that the tests can count operations, fail the n-th and
//! cut the power between any two of them. Loops over short transfers and `EINTR` are here once
//! ([`write_all`], [`read_exact`]).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{CWD, FallocateFlags, RenameFlags};
use rustix::io::Errno;

use super::fault::{Fault, Result};

/// How a file is opened. Links are never followed at the last component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Edit,
    /// For reading and writing; made if it is not there.
    Make,
    /// For writing; it must not exist.
    New,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A directory.
    Dir,
    /// A link, device, pipe or socket.
    Other,
}

/// What is known of a name without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// File, directory or something else.
    pub kind: Kind,
    /// Bytes, for a file.
    pub len: u64,
    /// Tells two files of the same name apart.
    pub inode: u64,
}

/// The operations of a file system that stores use. Each fails as its system call does.
#[allow(clippy::missing_errors_doc, reason = "one sentence for all")]
pub trait Vfs: Send + Sync {
    /// An open file.
    type File: Send + Sync + std::fmt::Debug;

    /// Opens a plain file.
    fn open(&self, path: &Path, how: How) -> io::Result<Self::File>;
    /// Reads some bytes; 0 at the end of the file.
    fn pread(&self, file: &Self::File, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes some bytes.
    fn pwrite(&self, file: &Self::File, bytes: &[u8], at: u64) -> io::Result<usize>;
    /// Reserves `len` bytes on the disk. `false`: this file system cannot, the length is set only.
    fn allocate(&self, file: &Self::File, len: u64) -> io::Result<bool>;
    /// Sets the length.
    fn truncate(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// Makes what was written survive a power cut.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Length and identity of an open file, and how many names it has.
    fn status(&self, file: &Self::File) -> io::Result<(Stat, u64)>;
    /// Tells the system that the file's synced pages need not stay in memory.
    fn forget(&self, file: &Self::File);
    /// Takes the lock if nobody else holds it. `None`: this file system has no locks.
    fn try_lock(&self, file: &Self::File, shared: bool) -> io::Result<Option<bool>>;
    /// Waits for the exclusive lock.
    fn lock(&self, file: &Self::File) -> io::Result<()>;
    /// Gives a lock back.
    fn unlock(&self, file: &Self::File) -> io::Result<()>;
    /// Makes a directory; an error if there is something of that name.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory survive a power cut.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames, in one step, over a plain file if there is one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Swaps two names in one step.
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all that is in it, without following links.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// What a name stands for; `None` if there is nothing. Links are not followed.
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>>;
    /// Bytes this process may still write next to `path`.
    fn free(&self, path: &Path) -> io::Result<u64>;
}

/// Writes all of `bytes`.
///
/// # Errors
/// The system's, with path and offset; a full disk as [`Fault::Space`].
pub fn write_all<V: Vfs>(
    vfs: &V,
    file: &V::File,
    path: &Path,
    mut bytes: &[u8],
    mut at: u64,
) -> Result<()> {
    while !bytes.is_empty() {
        match vfs.pwrite(file, bytes, at) {
            Ok(0) => return Err(Fault::at("pwrite", path, Some(at), Errno::NOSPC.into())),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::at("pwrite", path, Some(at), error)),
        }
    }
    Ok(())
}

/// Fills `bytes`.
///
/// # Errors
/// The system's, and [`Fault::Corrupt`] if the file ends early.
pub fn read_exact<V: Vfs>(
    vfs: &V,
    file: &V::File,
    path: &Path,
    bytes: &mut [u8],
    at: u64,
) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let place = at + filled as u64;
        match vfs.pread(file, &mut bytes[filled..], place) {
            Ok(0) => {
                let text = format!("{} ends at byte {place}, inside its data", path.display());
                return Err(Fault::Corrupt(text));
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::at("pread", path, Some(place), error)),
        }
    }
    Ok(())
}

/// Syncs a file.
///
/// # Errors
/// [`Fault::Sync`].
pub fn sync<V: Vfs>(vfs: &V, file: &V::File, path: &Path) -> Result<()> {
    vfs.sync(file).map_err(|error| Fault::io("fsync", path, error))
}

/// Syncs the names in a directory.
///
/// # Errors
/// [`Fault::Sync`].
pub fn sync_dir<V: Vfs>(vfs: &V, path: &Path) -> Result<()> {
    vfs.sync_dir(path).map_err(|error| Fault::io("fsync", path, error))
}

/// Writes a small file so that either the old one or the whole new one is there, whatever happens.
///
/// # Errors
/// The system's.
pub fn replace<V: Vfs>(vfs: &V, path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let file =
        vfs.open(&temporary, How::New).map_err(|error| Fault::io("open", &temporary, error))?;
    let half = bytes.len() / 2;
    write_all(vfs, &file, &temporary, &bytes[..half], 0)?;
    super::kill::point("mid_manifest");
    write_all(vfs, &file, &temporary, &bytes[half..], half as u64)?;
    sync(vfs, &file, &temporary)?;
    vfs.rename(&temporary, path).map_err(|error| Fault::io("rename", path, error))?;
    sync_dir(vfs, parent(path))
}

/// Removes what killed writers left of files that were to be replaced.
///
/// # Errors
/// The system's.
pub fn sweep<V: Vfs>(vfs: &V, dir: &Path) -> Result<()> {
    let names = vfs.list(dir).map_err(|error| Fault::io("readdir", dir, error))?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        // Litter is no reason to fail.
        let _ = vfs.remove(&dir.join(name));
    }
    Ok(())
}

/// A name beside `path` that nobody else uses, in any thread, process or host.
pub fn temporary(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = clock.map_or(0, |since| since.subsec_nanos());
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{next}.{now}.tmp", std::process::id()));
    PathBuf::from(name)
}

/// The directory a name is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

fn stat_of(meta: &std::fs::Metadata) -> Stat {
    let kind = match meta.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Dir,
        _ => Kind::Other,
    };
    Stat { kind, len: meta.len(), inode: meta.ino() }
}

impl Vfs for Disk {
    type File = File;

    fn open(&self, path: &Path, how: How) -> io::Result<File> {
        let mut options = OpenOptions::new();
        // NONBLOCK: opening a pipe that someone planted must not hang. It has no effect on files.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.read(true).custom_flags(flags.bits().cast_signed()).mode(0o666);
        match how {
            How::Read => &mut options,
            How::Edit => options.write(true),
            How::Make => options.write(true).create(true).truncate(false),
            How::New => options.write(true).create_new(true),
        };
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(Errno::INVAL.into());
        }
        Ok(file)
    }

    fn pread(&self, file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        file.read_at(bytes, at)
    }

    fn pwrite(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
        file.write_at(bytes, at)
    }

    fn allocate(&self, file: &File, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        // A file system in memory would fill the memory before it says no.
        if file.metadata()?.len() == 0
            && rustix::fs::fstatvfs(file)
                .is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < len)
        {
            return Err(Errno::NOSPC.into());
        }
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        if file.metadata()?.len() < len {
            file.set_len(len)?;
        }
        Ok(false)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn status(&self, file: &File) -> io::Result<(Stat, u64)> {
        let meta = file.metadata()?;
        Ok((stat_of(&meta), meta.nlink()))
    }

    fn forget(&self, file: &File) {
        // Advice only: a system that does not take it loses nothing but memory.
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        #[cfg(not(target_os = "linux"))]
        let _ = file;
    }

    fn try_lock(&self, file: &File, shared: bool) -> io::Result<Option<bool>> {
        let tried = if shared { file.try_lock_shared() } else { file.try_lock() };
        match tried {
            Ok(()) => Ok(Some(true)),
            Err(TryLockError::WouldBlock) => Ok(Some(false)),
            Err(TryLockError::Error(error)) => match Errno::from_io_error(&error) {
                Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn lock(&self, file: &File) -> io::Result<()> {
        match file.lock() {
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        file.unlock()
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o777).create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match File::open(path)?.sync_all() {
            // Some network file systems cannot sync a directory and do not need to.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(io::Error::from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) => Ok(Some(stat_of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn free(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
