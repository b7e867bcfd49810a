//! One job per store: a lock file beside it, held with `flock`, so that it dies with its owner.
//!
//! The file's text (`pid 4711 on host`) is for the message to the second comer only. A job of one
//! process holds the lock alone; the shares of one job hold it together. The last holder removes
//! the file, and whoever locks it looks whether it is still the one with that name.

use std::path::{Path, PathBuf};

use super::fault::{Fault, Result};
use super::vfs::{How, Vfs, write_all};

/// A held lock. Dropping it lets go but leaves the file, as a kill does.
#[derive(Debug)]
pub struct Lock<V: Vfs> {
    file: V::File,
    path: PathBuf,
    real: bool,
}

/// Who this process is, for the text in the lock file.
pub fn owner() -> String {
    let uname = rustix::system::uname();
    format!("pid {} on {}", std::process::id(), uname.nodename().to_string_lossy())
}

impl<V: Vfs> Lock<V> {
    /// Takes the lock of `store`, alone or together with other shares.
    ///
    /// # Errors
    /// [`Fault::Locked`] if somebody holds it otherwise.
    pub fn take(vfs: &V, path: &Path, store: &Path, shared: bool) -> Result<Self> {
        loop {
            let failed = |error| Fault::io("flock", path, error);
            let file = vfs.open(path, How::Make).map_err(|error| Fault::io("open", path, error))?;
            let real = match vfs.try_lock(&file, shared).map_err(failed)? {
                Some(false) => return Err(held(vfs, &file, store)),
                Some(true) => true,
                None => false,
            };
            let inode = vfs.status(&file).map_err(failed)?.0.inode;
            // The former holder may have removed the file between our open and our lock.
            if vfs.stat(path).map_err(failed)?.is_some_and(|stat| stat.inode == inode) {
                let lock = Self { file, path: path.to_owned(), real };
                lock.sign(vfs)?;
                return Ok(lock);
            }
        }
    }

    /// Whether the file system has locks at all.
    pub fn is_real(&self) -> bool {
        self.real
    }

    fn sign(&self, vfs: &V) -> Result<()> {
        let text = owner();
        vfs.truncate(&self.file, text.len() as u64)
            .map_err(|error| Fault::io("ftruncate", &self.path, error))?;
        write_all(vfs, &self.file, &self.path, text.as_bytes(), 0)
    }

    /// Lets go, and removes the file unless other shares still hold it.
    pub fn release(self, vfs: &V) {
        // Failing to tidy up must not hide why the job ended; a left-over file locks nobody out.
        if let Ok(Some(true) | None) = vfs.try_lock(&self.file, false) {
            let _ = vfs.remove(&self.path);
        }
    }
}

fn held<V: Vfs>(vfs: &V, file: &V::File, store: &Path) -> Fault {
    let mut text = [0; 256];
    let count = vfs.pread(file, &mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..count]);
    let owner: String = text.chars().filter(|letter| !letter.is_control()).collect();
    let owner = if owner.is_empty() { "owner unknown".to_owned() } else { owner };
    Fault::Locked { path: store.to_owned(), owner }
}
