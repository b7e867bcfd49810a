//! A kernel as a Zarr version 3 group that holds one array, `kernel`, one chunk a tile.
//!
//! ```text
//! K.zarr.partial/zarr.json           the group; its attribute `entk` is the manifest
//! K.zarr.partial/kernel/zarr.json    the array
//! K.zarr.partial/kernel/c/3/1        one tile: raw little-endian entries, crc32c behind them
//! K.zarr/                            the same when finished
//! ```
//! A chunk is written under another name, synced, renamed, and its directory synced: so a chunk
//! that is there is whole, any number of processes may write, and what is done is what is there.
//! Chunks at the edge are of full size, padded with NaN, the fill value.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fault::{Fault, Result};
use super::grid::{Grid, Unit};
use super::kill;
use super::sink::{Batch, Paths, Sink, expect_length, mirrored, nans, stored_rows};
use super::vfs::{How, Vfs, parent, replace, sweep, sync, sync_dir, temporary, write_all};
use super::zarr_layout::{ARRAY, METADATA, chunk_path, make_store, move_over, plain_dir, scan};

/// What a file costs besides its bytes, for the estimate of the space needed.
const OVERHEAD: u64 = 4096;

/// An unfinished Zarr kernel.
#[derive(Debug)]
pub struct ZarrSink<V: Vfs> {
    store: Arc<Store<V>>,
    made: BTreeSet<PathBuf>,
    unsynced: BTreeSet<PathBuf>,
    pending: Vec<usize>,
}

/// What a sink shares with its batches.
#[derive(Debug)]
struct Store<V: Vfs> {
    vfs: V,
    paths: Paths,
    grid: Grid,
    root: u64,
    /// Units on the disk.
    safe: AtomicUsize,
    /// Chunks that are still to be written.
    missing: AtomicUsize,
}

impl<V: Vfs> Store<V> {
    /// Whether another share gave the store its name meanwhile; it synced all chunks before.
    fn finished(&self) -> Result<bool> {
        let target = &self.paths.target;
        let stat = self.vfs.stat(target).map_err(|error| Fault::io("stat", target, error))?;
        Ok(stat.is_some_and(|stat| stat.inode == self.root))
    }

    /// Makes the names of all chunks survive a power cut, whoever wrote them.
    fn sync_chunks(&self) -> Result<()> {
        let mut dirs = BTreeSet::from([self.paths.partial.join(ARRAY).join("c")]);
        let rows = self.grid.units().checked_sub(1).map_or(0, |last| self.grid.unit(last).i + 1);
        for (plane, row) in (0..self.grid.planes()).flat_map(|p| (0..rows).map(move |row| (p, row)))
        {
            let chunk = chunk_path(&self.paths.partial, &self.grid, plane, (row, 0));
            let dir = parent(&chunk);
            let _ = dirs.insert(parent(dir).to_owned());
            let _ = dirs.insert(dir.to_owned());
        }
        dirs.iter().rev().try_for_each(|dir| sync_dir(&self.vfs, dir))
    }

    /// Bytes that are still to be written.
    fn left(&self) -> u64 {
        let missing = self.missing.load(Ordering::Acquire) as u64;
        missing * (self.grid.chunk_bytes() as u64 + OVERHEAD)
    }

    fn explained(&self, fault: Fault) -> Fault {
        let dir = parent(&self.paths.target);
        let so_far = (self.safe.load(Ordering::Acquire), self.grid.units());
        fault.with_progress(dir, so_far, self.left(), self.vfs.free(dir).ok())
    }
}

impl<V: Vfs + 'static> ZarrSink<V> {
    /// Joins the unfinished store of `paths`, or makes one. The manifest of an existing one is not
    /// touched: compare it before and after.
    ///
    /// # Errors
    /// [`Fault::Space`] if the missing chunks do not fit; a store made by this call is removed.
    pub fn begin(vfs: V, paths: Paths, grid: Grid, manifest: &[u8]) -> Result<Self> {
        let dir = parent(&paths.target);
        let fresh = make_store(&vfs, &paths.partial, &grid, manifest).map_err(|fault| {
            fault.with_progress(dir, (0, grid.units()), grid.bytes(), vfs.free(dir).ok())
        })?;
        let stat = vfs.stat(&paths.partial);
        let stat = stat.map_err(|error| Fault::io("stat", &paths.partial, error))?;
        let root = stat.map_or(0, |stat| stat.inode);
        let (made, unsynced) = (BTreeSet::new(), BTreeSet::new());
        let (safe, missing) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let store = Arc::new(Store { vfs, paths, grid, root, safe, missing });
        let mut sink = Self { store, made, unsynced, pending: Vec::new() };
        if let Err(fault) = sink.fits() {
            if fresh {
                let _ = sink.store.vfs.remove_tree(&sink.store.paths.partial);
            }
            return Err(fault);
        }
        Ok(sink)
    }

    fn fits(&mut self) -> Result<()> {
        let done = self.done()?.iter().filter(|&&done| done).count();
        let (store, left) = (&self.store, self.store.left());
        match store.vfs.free(&store.paths.partial) {
            Ok(free) if free < left => Err(Fault::Space {
                path: parent(&store.paths.target).to_owned(),
                need: Some(left),
                free: Some(free),
                done,
                total: store.grid.units(),
            }),
            _ => Ok(()),
        }
    }

    fn write_unit(&mut self, unit: &Unit, bytes: &[u8]) -> Result<()> {
        let (rows, cols, item) = (unit.rows.len(), unit.cols.len(), self.store.grid.item());
        let grid = self.store.grid;
        for (plane, tile) in bytes.chunks_exact(rows * cols * item).enumerate() {
            self.write_chunk(plane, (unit.i, unit.j), cols, |take| {
                stored_rows(&grid, unit, tile, |_, rows| take(rows))
            })?;
            if grid.mirrors() && unit.i != unit.j {
                self.write_chunk(plane, (unit.j, unit.i), rows, |take| {
                    mirrored(tile, cols, item, |_, strip| take(strip))
                })?;
            }
        }
        Ok(())
    }

    /// Writes one chunk from the rows of `cols` entries that `feed` passes on.
    fn write_chunk(
        &mut self,
        plane: usize,
        place: (usize, usize),
        cols: usize,
        feed: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let path = chunk_path(&self.store.paths.partial, &self.store.grid, plane, place);
        self.make_dirs(parent(&path))?;
        let temporary = temporary(&path);
        let file = self
            .store
            .vfs
            .open(&temporary, How::New)
            .map_err(|error| Fault::io("open", &temporary, error))?;
        let mut chunk = Chunk { sink: self, file: &file, path: &temporary, at: 0, sum: 0 };
        let result = feed(&mut |rows| chunk.rows(rows, cols)).and_then(|()| chunk.close());
        let result = result.and_then(|()| {
            kill::point("after_fdatasync");
            let renamed = self.store.vfs.rename(&temporary, &path);
            renamed.map_err(|error| Fault::io("rename", &path, error))
        });
        if result.is_err() {
            let _ = self.store.vfs.remove(&temporary);
        }
        self.unsynced.insert(parent(&path).to_owned());
        result
    }

    /// Makes the directories down to `dir`, and remembers which names are not on the disk yet.
    fn make_dirs(&mut self, dir: &Path) -> Result<()> {
        if self.made.contains(dir) {
            return Ok(());
        }
        if dir != self.store.paths.partial.join(ARRAY).join("c") {
            self.make_dirs(parent(dir))?;
            match self.store.vfs.make_dir(dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Fault::io("mkdir", dir, error)),
                Ok(()) => {}
            }
            self.unsynced.insert(parent(dir).to_owned());
        }
        plain_dir(&self.store.vfs, dir)?;
        self.made.insert(dir.to_owned());
        Ok(())
    }

    fn rename(&self, manifest: &[u8], over: bool) -> Result<()> {
        let inode = |path: &Path| {
            let stat = self.store.vfs.stat(path).map_err(|error| Fault::io("stat", path, error))?;
            Ok(stat.map(|stat| stat.inode))
        };
        if inode(&self.store.paths.target)? == Some(self.store.root) {
            return Ok(()); // another share was faster
        }
        let (done, strays) = scan(&self.store.vfs, &self.store.paths.partial, &self.store.grid)?;
        let missing = done.iter().filter(|&&done| !done).count();
        if missing > 0 || inode(&self.store.paths.partial)? != Some(self.store.root) {
            let name = self.store.paths.partial.display();
            return Err(Fault::Incomplete(format!("{name}: {missing} tiles are missing")));
        }
        let taken = inode(&self.store.paths.target)?.is_some();
        if taken && !over {
            return Err(Fault::Exists { path: self.store.paths.target.clone() });
        }
        for stray in strays {
            // Left by a killed writer; a live one is not here any more when all chunks are.
            let _ = self.store.vfs.remove(&stray);
        }
        sweep(&self.store.vfs, &self.store.paths.partial)?;
        self.store.sync_chunks()?;
        replace(&self.store.vfs, &self.store.paths.partial.join(METADATA), manifest)?;
        kill::point("before_rename");
        move_over(&self.store.vfs, &self.store.paths, taken)?;
        kill::point("after_rename");
        Ok(())
    }
}

/// A chunk that is being written.
struct Chunk<'a, V: Vfs> {
    sink: &'a ZarrSink<V>,
    file: &'a V::File,
    path: &'a Path,
    at: u64,
    sum: u32,
}

impl<V: Vfs> Chunk<'_, V> {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        write_all(&self.sink.store.vfs, self.file, self.path, bytes, self.at)?;
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Adds rows of `cols` entries, padded to the width of a chunk.
    fn rows(&mut self, rows: &[u8], cols: usize) -> Result<()> {
        let grid = &self.sink.store.grid;
        let width = *grid.chunk().last().expect("a chunk has axes");
        if cols == width {
            return self.push(rows);
        }
        let padding = nans(width - cols, grid.item());
        rows.chunks_exact(cols * grid.item())
            .try_for_each(|row| self.push(&[row, &padding].concat()))
    }

    /// Pads to the height of a chunk, adds the checksum and syncs.
    fn close(mut self) -> Result<()> {
        let (size, item) = (self.sink.store.grid.chunk_bytes() as u64, self.sink.store.grid.item());
        if self.at < size {
            let blank = nans(self.sink.store.grid.row_bytes() / item, item);
            while self.at < size {
                self.push(&blank)?;
            }
        }
        let sum = self.sum.to_le_bytes();
        write_all(&self.sink.store.vfs, self.file, self.path, &sum, self.at)?;
        kill::point("after_pwrite");
        sync(&self.sink.store.vfs, self.file, self.path)?;
        self.sink.store.vfs.forget(self.file);
        Ok(())
    }
}

impl<V: Vfs + 'static> Sink for ZarrSink<V> {
    fn grid(&self) -> &Grid {
        &self.store.grid
    }

    fn done(&mut self) -> Result<Vec<bool>> {
        let finished = self.store.finished()?;
        let root = if finished { &self.store.paths.target } else { &self.store.paths.partial };
        let (done, _) = scan(&self.store.vfs, root, &self.store.grid)?;
        let (mut safe, mut missing) = (0, 0);
        for (index, &done) in done.iter().enumerate() {
            let chunks = self.store.grid.chunks_of(&self.store.grid.unit(index));
            (safe, missing) = if done { (safe + 1, missing) } else { (safe, missing + chunks) };
        }
        self.store.safe.store(safe, Ordering::Release);
        self.store.missing.store(missing, Ordering::Release);
        Ok(done)
    }

    fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        expect_length(&self.store.grid, index, bytes)?;
        let unit = self.store.grid.unit(index);
        self.write_unit(&unit, bytes).map_err(|fault| self.store.explained(fault))?;
        self.pending.push(index);
        Ok(())
    }

    fn take(&mut self) -> Box<dyn Batch> {
        let names = std::mem::take(&mut self.unsynced);
        let units = std::mem::take(&mut self.pending);
        Box::new(Renamed { store: self.store.clone(), names, units })
    }

    fn finish(&mut self, manifest: &[u8], replace: bool) -> Result<()> {
        self.commit()?;
        // The array's metadata are never replaced, so all shares lock the same file.
        let path = self.store.paths.partial.join(ARRAY).join(METADATA);
        let file = match self.store.vfs.open(&path, How::Edit) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|error| Fault::io("open", &path, error))?),
        };
        if let Some(file) = &file {
            self.store.vfs.lock(file).map_err(|error| Fault::io("flock", &path, error))?;
        }
        let result = self.rename(manifest, replace);
        if let Some(file) = &file {
            self.store.vfs.unlock(file).map_err(|error| Fault::io("flock", &path, error))?;
        }
        result.map_err(|fault| self.store.explained(fault))
    }
}

/// Chunks with their final names, in directories that are not synced yet.
struct Renamed<V: Vfs> {
    store: Arc<Store<V>>,
    names: BTreeSet<PathBuf>,
    units: Vec<usize>,
}

impl<V: Vfs> Batch for Renamed<V> {
    fn commit(self: Box<Self>) -> Result<()> {
        let store = &self.store;
        // Deepest first: a name must not outlive what it leads to.
        let mut synced = self.names.iter().rev().map(|dir| sync_dir(&store.vfs, dir));
        if let Err(fault) = synced.try_for_each(|synced| synced)
            && !store.finished().unwrap_or(false)
        {
            return Err(store.explained(fault));
        }
        for &index in &self.units {
            let chunks = store.grid.chunks_of(&store.grid.unit(index));
            let less = |missing: usize| Some(missing.saturating_sub(chunks));
            let _ = store.safe.fetch_add(1, Ordering::AcqRel);
            let _ = store.missing.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        }
        Ok(())
    }
}
