//! A disk that counts its operations and fails the n-th, once or from then on.
//!
//! Used by the tests, and by builds with the feature `fault` from Python: it proves that every
//! error of every operation surfaces, and that the store can be resumed after it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::vfs::{How, Stat, Vfs};

/// What the n-th operation does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Fails with this number.
    Errno(i32),
    /// Transfers half of the bytes; operations without bytes fail with `EINTR`, which is retried.
    Short,
    /// Reads bytes of which one is changed, as a network file system may. Others are unharmed.
    Garbled,
}

/// A disk around another one.
#[derive(Clone, Debug)]
pub struct Faulty<V> {
    inner: V,
    count: Arc<AtomicU64>,
    first: u64,
    lasting: bool,
    failure: Failure,
}

impl<V: Vfs> Faulty<V> {
    /// Only counts.
    pub fn counting(inner: V) -> Self {
        Self::failing(inner, u64::MAX, false, Failure::Errno(0))
    }

    /// Fails operation number `first` (from 0), and all later ones if `lasting`.
    pub fn failing(inner: V, first: u64, lasting: bool, failure: Failure) -> Self {
        Self { inner, count: Arc::new(AtomicU64::new(0)), first, lasting, failure }
    }

    /// Operations so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn hit(&self) -> bool {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        number == self.first || (self.lasting && number > self.first)
    }

    fn step(&self) -> io::Result<()> {
        match (self.hit(), self.failure) {
            (true, Failure::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    /// How many bytes of a transfer may pass.
    fn pass(&self, length: usize) -> io::Result<usize> {
        match (self.hit(), self.failure) {
            (false, _) => Ok(length),
            (true, Failure::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            (true, Failure::Short) if length > 1 => Ok(length / 2),
            (true, Failure::Short) => Err(Errno::INTR.into()),
            (true, Failure::Garbled) => Ok(length),
        }
    }
}

impl<V: Vfs> Vfs for Faulty<V> {
    type File = V::File;

    fn open(&self, path: &Path, how: How) -> io::Result<V::File> {
        self.step()?;
        self.inner.open(path, how)
    }
    fn pread(&self, file: &V::File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let before = self.count();
        let length = self.pass(bytes.len())?;
        let count = self.inner.pread(file, &mut bytes[..length], at)?;
        let garbled = self.failure == Failure::Garbled
            && (before == self.first || (self.lasting && before > self.first));
        if garbled && count > 0 {
            bytes[count / 2] ^= 0x10;
        }
        Ok(count)
    }
    fn pwrite(&self, file: &V::File, bytes: &[u8], at: u64) -> io::Result<usize> {
        let length = self.pass(bytes.len())?;
        self.inner.pwrite(file, &bytes[..length], at)
    }
    fn allocate(&self, file: &V::File, len: u64) -> io::Result<bool> {
        self.step()?;
        self.inner.allocate(file, len)
    }
    fn truncate(&self, file: &V::File, len: u64) -> io::Result<()> {
        self.step()?;
        self.inner.truncate(file, len)
    }
    fn sync(&self, file: &V::File) -> io::Result<()> {
        self.step()?;
        self.inner.sync(file)
    }
    fn status(&self, file: &V::File) -> io::Result<(Stat, u64)> {
        self.step()?;
        self.inner.status(file)
    }
    fn forget(&self, file: &V::File) {
        self.inner.forget(file);
    }
    fn try_lock(&self, file: &V::File, shared: bool) -> io::Result<Option<bool>> {
        self.step()?;
        self.inner.try_lock(file, shared)
    }
    fn lock(&self, file: &V::File) -> io::Result<()> {
        self.step()?;
        self.inner.lock(file)
    }
    fn unlock(&self, file: &V::File) -> io::Result<()> {
        self.step()?;
        self.inner.unlock(file)
    }
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.inner.make_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.inner.sync_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        self.inner.rename(from, to)
    }
    fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.step()?;
        self.inner.exchange(a, b)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.inner.remove(path)
    }
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.inner.remove_tree(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.step()?;
        self.inner.list(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        self.step()?;
        self.inner.stat(path)
    }
    fn free(&self, path: &Path) -> io::Result<u64> {
        self.step()?;
        self.inner.free(path)
    }
}
