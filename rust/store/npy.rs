//! A kernel as one `.npy` file, readable by `np.load(mmap_mode="r")`.
//!
//! ```text
//! K.npy.partial               the matrix, reserved on the disk at the start, filled by pwrite
//! K.npy.partial.entk/         manifest.json and tiles.log
//! K.npy, K.npy.entk/          the same when finished
//! ```
//! Order of a commit: the tiles, `fdatasync`, their log records, `fdatasync`. So a recorded tile is
//! always on the disk, and anything else is computed again. The rename of the matrix is the step
//! that finishes the store; if the machine stops between it and the rename of the directory
//! beside it, [`tidy`] does the second one later.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::fault::{Fault, Result};
use super::grid::{Grid, Unit};
use super::kill;
use super::log::{Listing, Log};
use super::npy_files::{STEP, make_side, move_over, open_data, place, unit_sum};
use super::sink::{Batch, Paths, Sink, expect_length, mirrored, nans, sidecar, stored_rows};
use super::vfs::{How, Vfs, parent, replace, sweep, sync, write_all};

pub use super::npy_files::{LOG, MANIFEST, tidy};

/// An unfinished `.npy`.
#[derive(Debug)]
pub struct NpySink<V: Vfs> {
    store: Arc<Store<V>>,
    pending: Vec<(usize, u32)>,
    reserved: bool,
}

/// What a sink shares with its batches.
#[derive(Debug)]
struct Store<V: Vfs> {
    vfs: V,
    paths: Paths,
    grid: Grid,
    data: V::File,
    start: u64,
    log: Log<V>,
    safe: AtomicUsize,
    /// A sync failed. Linux drops the pages of failed writes, and which tiles were in them is not
    /// known: a later sync would succeed without them.
    lost: AtomicBool,
}

impl<V: Vfs> NpySink<V> {
    /// Joins the unfinished store of `paths`, or makes one. The manifest of an existing one is not
    /// touched: compare it before and after.
    ///
    /// # Errors
    /// [`Fault::Space`] if the matrix does not fit; then nothing is left behind.
    pub fn begin(vfs: V, paths: Paths, grid: Grid, manifest: &[u8]) -> Result<Self> {
        let side = sidecar(&paths.partial);
        let dir = parent(&paths.target);
        let fresh = make_side(&vfs, &side, manifest).map_err(|fault| {
            fault.with_progress(dir, (0, grid.units()), grid.bytes(), vfs.free(dir).ok())
        })?;
        let log = Log::open(&vfs, &side.join(LOG), How::Edit)?;
        let found = log.locked(&vfs, || {
            let found = log.read(&vfs, grid.units())?;
            log.cut(&vfs, &found)?;
            Ok(found)
        })?;
        match open_data(&vfs, &paths.partial, &grid, found.records == 0) {
            Ok((data, start, reserved)) => {
                let (safe, lost) = (count(&found).into(), false.into());
                let store = Store { vfs, paths, grid, data, start, log, safe, lost };
                store.settle(&found)?;
                Ok(Self { store: Arc::new(store), pending: vec![], reserved })
            }
            Err(fault) => {
                if fresh {
                    let _ = vfs.remove(&paths.partial);
                    let _ = vfs.remove_tree(&side);
                }
                let so_far = (count(&found), grid.units());
                Err(fault.with_progress(dir, so_far, grid.bytes(), vfs.free(dir).ok()))
            }
        }
    }

    /// Whether the file system reserved the whole file, so that it cannot run full later.
    pub fn reserved(&self) -> bool {
        self.reserved
    }
}

impl<V: Vfs> Store<V> {
    /// A tile recorded with two checksums counts only if its bytes match the last one.
    fn settle(&self, found: &Listing) -> Result<()> {
        for (index, sums) in &found.disputed {
            let got = unit_sum(
                &self.vfs,
                &self.data,
                &self.paths.partial,
                self.start,
                &self.grid,
                *index,
            )?;
            if sums.last() != Some(&got) {
                return Err(disputed(&self.paths.partial, &self.grid.unit(*index), sums, got));
            }
        }
        Ok(())
    }

    /// Writes a unit and its other half; returns the checksum of the unit's bytes.
    fn write_unit(&self, unit: &Unit, bytes: &[u8]) -> Result<u32> {
        let (rows, cols, item) = (unit.rows.len(), unit.cols.len(), self.grid.item());
        let mut sum = 0;
        for (plane, tile) in bytes.chunks_exact(rows * cols * item).enumerate() {
            stored_rows(&self.grid, unit, tile, |first, rows| {
                let mut at = unit.rows.start + first;
                for few in rows.chunks(STEP.max(cols * item) / (cols * item) * (cols * item)) {
                    // In pieces that stay in a cache between the checksum and the write.
                    sum = crc32c::crc32c_append(sum, few);
                    self.write_rows(plane, at, &unit.cols, few)?;
                    at += few.len() / (cols * item);
                }
                Ok(())
            })?;
            if !self.grid.symmetric() || unit.i == unit.j {
                continue;
            }
            let other = |first, strip: &[u8]| {
                self.write_rows(plane, unit.cols.start + first, &unit.rows, strip)
            };
            if self.grid.mirrors() {
                mirrored(tile, cols, item, other)?;
            } else {
                let row = nans(rows, item);
                (0..cols).try_for_each(|line| other(line, &row))?;
            }
        }
        Ok(sum)
    }

    fn write_rows(&self, plane: usize, row: usize, cols: &Range<usize>, tile: &[u8]) -> Result<()> {
        let whole = cols.len() == self.grid.cols();
        let length = if whole { tile.len() } else { cols.len() * self.grid.item() };
        for (line, bytes) in tile.chunks_exact(length).enumerate() {
            let at = place(&self.grid, self.start, plane, row + line, cols.start);
            write_all(&self.vfs, &self.data, &self.paths.partial, bytes, at)?;
        }
        Ok(())
    }

    fn record(&self, tiles: &[(usize, u32)]) -> Result<()> {
        let path = &self.paths.partial;
        kill::point("after_pwrite");
        if self.lost.load(Ordering::Acquire) {
            let source = std::io::Error::other("an earlier sync failed");
            return Err(Fault::Sync { path: path.clone(), source });
        }
        sync(&self.vfs, &self.data, path)
            .inspect_err(|_| self.lost.store(true, Ordering::Release))?;
        kill::point("after_fdatasync");
        let status = self.vfs.status(&self.data);
        let (_, links) = status.map_err(|error| Fault::io("fstat", path, error))?;
        if links == 0 {
            let text = format!("{} was deleted during the run", path.display());
            return Err(Fault::Incomplete(text));
        }
        self.log.append(&self.vfs, tiles)?;
        let _ = self.safe.fetch_add(tiles.len(), Ordering::AcqRel);
        Ok(())
    }

    fn explained(&self, fault: Fault) -> Fault {
        let (safe, total) = (self.safe.load(Ordering::Acquire), self.grid.units());
        let left = self.grid.bytes() / total.max(1) as u64 * (total - safe.min(total)) as u64;
        let dir = parent(&self.paths.target);
        fault.with_progress(dir, (safe, total), left, self.vfs.free(dir).ok())
    }

    fn rename(&self, manifest: &[u8], over: bool) -> Result<()> {
        let inode = |path: &Path| {
            let stat = self.vfs.stat(path).map_err(|error| Fault::io("stat", path, error))?;
            Ok(stat.map(|stat| stat.inode))
        };
        let status = self.vfs.status(&self.data);
        let ours = status.map_err(|error| Fault::io("fstat", &self.paths.partial, error))?.0.inode;
        if inode(&self.paths.target)? == Some(ours) {
            return Ok(()); // another share was faster
        }
        let found = self.log.read(&self.vfs, self.grid.units())?;
        let missing = found.sums.iter().filter(|sum| sum.is_none()).count();
        if missing > 0 || inode(&self.paths.partial)? != Some(ours) {
            let name = self.paths.partial.display();
            return Err(Fault::Incomplete(format!("{name}: {missing} tiles are missing")));
        }
        if !over && inode(&self.paths.target)?.is_some() {
            return Err(Fault::Exists { path: self.paths.target.clone() });
        }
        let side = sidecar(&self.paths.partial);
        sweep(&self.vfs, &side)?;
        replace(&self.vfs, &side.join(MANIFEST), manifest)?;
        kill::point("before_rename");
        move_over(&self.vfs, &self.paths)?;
        kill::point("after_rename");
        tidy(&self.vfs, &self.paths)
    }
}

impl<V: Vfs + 'static> Sink for NpySink<V> {
    fn grid(&self) -> &Grid {
        &self.store.grid
    }

    fn done(&mut self) -> Result<Vec<bool>> {
        let store = &self.store;
        let found = store.log.read(&store.vfs, store.grid.units())?;
        store.safe.store(count(&found), Ordering::Release);
        Ok(found.sums.iter().map(Option::is_some).collect())
    }

    fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let store = &self.store;
        expect_length(&store.grid, index, bytes)?;
        let written = store.write_unit(&store.grid.unit(index), bytes);
        let sum = written.map_err(|fault| store.explained(fault))?;
        self.pending.push((index, sum));
        Ok(())
    }

    fn take(&mut self) -> Box<dyn Batch> {
        let tiles = std::mem::take(&mut self.pending);
        Box::new(Written { store: self.store.clone(), tiles })
    }

    fn finish(&mut self, manifest: &[u8], replace: bool) -> Result<()> {
        self.commit()?;
        let store = &self.store;
        let renamed = store.log.locked(&store.vfs, || store.rename(manifest, replace));
        renamed.map_err(|fault| store.explained(fault))?;
        // Not before: the pages at both ends of a tile's rows belong to its neighbours too, and to
        // read them again costs more than the rest of the writing.
        store.vfs.forget(&store.data);
        Ok(())
    }
}

/// Tiles in the file that are not in the log.
struct Written<V: Vfs> {
    store: Arc<Store<V>>,
    tiles: Vec<(usize, u32)>,
}

impl<V: Vfs> Batch for Written<V> {
    fn commit(self: Box<Self>) -> Result<()> {
        if self.tiles.is_empty() {
            return Ok(());
        }
        self.store.record(&self.tiles).map_err(|fault| self.store.explained(fault))
    }
}

fn count(found: &Listing) -> usize {
    found.sums.iter().filter(|sum| sum.is_some()).count()
}

fn disputed(path: &Path, unit: &Unit, sums: &[u32], got: u32) -> Fault {
    Fault::Corrupt(format!(
        "{}: tile ({}, {}) was recorded with checksums {sums:#x?}, its bytes have {got:#010x}",
        path.display(),
        unit.i,
        unit.j
    ))
}
