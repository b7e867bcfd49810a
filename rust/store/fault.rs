//! Every way a store can fail. The texts are written here, once; `py/store.rs` picks the class.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a store could not be read or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// An operation of the file system failed.
    Io {
        /// The operation, as in `pwrite`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Where in the file, if anywhere.
        offset: Option<u64>,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full, or too small for the result.
    Space {
        /// The file or directory.
        path: PathBuf,
        /// Bytes that are still to be written, if known.
        need: Option<u64>,
        /// Bytes free for this process, if known.
        free: Option<u64>,
        /// Tiles that are safe.
        done: usize,
        /// Tiles of the whole kernel.
        total: usize,
    },
    /// A sync failed: what was written since the last one may be gone.
    Sync {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds the store.
    Locked {
        /// The store.
        path: PathBuf,
        /// What the other process wrote about itself.
        owner: String,
    },
    /// Something of that name is there already.
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// Bytes do not match their checksum, or a file its promised length.
    Corrupt(String),
    /// Not in a format this version reads.
    Format(String),
    /// Tiles, chunks or files are missing.
    Incomplete(String),
    /// A name or link that leads out of the store.
    UnsafePath(String),
    /// Reading the file could run code.
    UnsafeFile(String),
}

/// What the operations of this module return.
pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    /// Sorts an error of the operation `what` on `path` into its variant.
    pub fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::at(what, path, None, source)
    }

    /// The same with the offset in the file.
    pub fn at(what: &'static str, path: &Path, offset: Option<u64>, source: io::Error) -> Self {
        let path = path.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC) => Self::Space { path, need: None, free: None, done: 0, total: 0 },
            Some(Errno::LOOP) => Self::UnsafePath(format!(
                "{} is a symbolic link; the entries of a store must be plain files",
                path.display()
            )),
            _ if what == "fsync" => Self::Sync { path, source },
            _ => Self::Io { what, path, offset, source },
        }
    }

    /// Adds to a full disk where it is, how far the job has come and what it still needs.
    #[must_use]
    pub fn with_progress(
        self,
        dir: &Path,
        (done, total): (usize, usize),
        left: u64,
        space: Option<u64>,
    ) -> Self {
        match self {
            Self::Space { need, free, .. } => {
                let need = need.or((left > 0).then_some(left));
                Self::Space { path: dir.to_owned(), need, free: free.or(space), done, total }
            }
            other => other,
        }
    }

    /// The system's number for the failure, if it has one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } | Self::Sync { source, .. } => source.raw_os_error(),
            Self::Space { .. } => Some(Errno::NOSPC.raw_os_error()),
            Self::Exists { .. } => Some(Errno::EXIST.raw_os_error()),
            Self::Locked { .. } => Some(Errno::AGAIN.raw_os_error()),
            Self::Corrupt(_)
            | Self::Format(_)
            | Self::Incomplete(_)
            | Self::UnsafePath(_)
            | Self::UnsafeFile(_) => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, path, offset, source } => {
                write!(f, "{what} of {} failed", path.display())?;
                if let Some(offset) = offset {
                    write!(f, " at byte {}", grouped(*offset))?;
                }
                write!(f, ": {}", described(source))
            }
            Self::Space { path, need, free, done, total } => {
                write!(f, "no space left on {}", path.display())?;
                if let (Some(need), Some(free)) = (need, free) {
                    write!(f, " (needs {}, free {})", size(*need), size(*free))?;
                }
                let (done, total) = (grouped(*done as u64), grouped(*total as u64));
                write!(f, "; {done} of {total} tiles are safe; free space and call resume")
            }
            Self::Sync { path, source } => write!(
                f,
                "fsync failed; data since the last commit are considered lost ({}: {}); \
                 resume=True recomputes those tiles",
                path.display(),
                described(source)
            ),
            Self::Locked { path, owner } => {
                write!(f, "{} is being written by another process ({owner})", path.display())
            }
            Self::Exists { path } => {
                write!(f, "{} exists; pass overwrite=True or resume=True", path.display())
            }
            Self::Corrupt(text)
            | Self::Format(text)
            | Self::Incomplete(text)
            | Self::UnsafePath(text)
            | Self::UnsafeFile(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Fault {}

/// `EDQUOT (Disk quota exceeded)`: the name is what people search for.
fn described(source: &io::Error) -> String {
    let Some(errno) = Errno::from_io_error(source) else {
        return source.to_string();
    };
    let name = match errno {
        Errno::DQUOT => "EDQUOT",
        Errno::FBIG => "EFBIG",
        Errno::ROFS => "EROFS",
        Errno::ACCESS => "EACCES",
        Errno::PERM => "EPERM",
        Errno::MFILE => "EMFILE",
        Errno::NFILE => "ENFILE",
        Errno::IO => "EIO",
        Errno::NOENT => "ENOENT",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::EXIST => "EEXIST",
        Errno::STALE => "ESTALE",
        Errno::NOTEMPTY => "ENOTEMPTY",
        Errno::INVAL => "EINVAL",
        _ => "errno",
    };
    format!("{name}: {source}")
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for people: `512 MiB`, `74.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let power = (bytes.ilog2() / 10).min(UNITS.len() as u32);
    let value = bytes as f64 / 1024f64.powi(power as i32);
    let unit = UNITS[power as usize - 1];
    if value.fract() == 0.0 { format!("{value} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_the_documentation() {
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(80_000_000_000), "74.5 GiB");
        assert_eq!(size(1000), "1000 bytes");
        assert_eq!(grouped(4_294_967_295), "4,294,967,295");
        assert_eq!(grouped(12), "12");
    }

    #[test]
    fn a_full_disk_says_what_is_needed_and_what_is_safe() {
        let full = io::Error::from(Errno::NOSPC);
        let fault = Fault::io("pwrite", Path::new("/data/K.npy.partial"), full);
        let fault =
            fault.with_progress(Path::new("/data"), (3021, 4096), 512 << 20, Some(12 << 20));
        let want = "no space left on /data (needs 512 MiB, free 12 MiB); \
                    3,021 of 4,096 tiles are safe; free space and call resume";
        assert_eq!(fault.to_string(), want);
    }

    #[test]
    fn other_errors_name_operation_path_offset_and_errno() {
        let quota = io::Error::from(Errno::DQUOT);
        let fault = Fault::at("pwrite", Path::new("K"), Some(4096), quota);
        let text = fault.to_string();
        assert!(text.starts_with("pwrite of K failed at byte 4,096: EDQUOT: "), "{text}");
        assert_eq!(fault.errno(), Some(Errno::DQUOT.raw_os_error()));
    }
}
