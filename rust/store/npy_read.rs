//! Reading the `.npy` kernels that [`super::npy`] writes, every tile against the log.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Result};
use super::grid::{Grid, Unit};
use super::log::Log;
use super::npy_files::{LOG, STEP, check_header, place, unit_sum};
use super::sink::{Reader, mirrored, with_room};
use super::vfs::{How, Vfs, read_exact};

/// How often bytes are read again that do not match their checksum.
const RETRIES: usize = 3;

/// A `.npy` store, finished or not, for reading.
#[derive(Debug)]
pub struct NpyReader<V: Vfs> {
    vfs: V,
    path: PathBuf,
    grid: Grid,
    data: V::File,
    start: u64,
    sums: Vec<Option<u32>>,
}

impl<V: Vfs> NpyReader<V> {
    /// Opens the matrix `path` with the log in the directory `side`.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if the file is shorter or longer than its shape; [`Fault::Incomplete`] if
    /// that is so because an assembly was stopped before its first tile.
    pub fn open(vfs: V, path: &Path, side: &Path, grid: Grid) -> Result<Self> {
        let data = vfs.open(path, How::Read).map_err(|error| Fault::io("open", path, error))?;
        let log = Log::open(&vfs, &side.join(LOG), How::Read)?;
        let found = log.read(&vfs, grid.units())?;
        let begun = found.records == 0 && path.extension().is_some_and(|end| end == "partial");
        let start = check_header(&vfs, &data, path, &grid).map_err(|fault| {
            let name = path.display();
            let text = format!("{name} was begun and holds no tiles; resume=True goes on with it");
            if begun { Fault::Incomplete(text) } else { fault }
        })?;
        Ok(Self { vfs, path: path.to_owned(), grid, data, start, sums: found.sums })
    }

    fn check_once(&self, index: usize, mirror: bool) -> Result<()> {
        let unit = self.grid.unit(index);
        let Some(want) = self.sums[index] else {
            let text = format!("tile ({}, {}) is missing", unit.i, unit.j);
            return Err(Fault::Incomplete(text));
        };
        if mirror && self.grid.mirrors() && unit.i != unit.j {
            let length = unit.rows.len() * unit.cols.len() * self.grid.item();
            let (got, image) = with_room(length, |tile| self.examine(index, &unit, tile))?;
            return sums_agree(&unit, got, want).and(image);
        }
        let got = unit_sum(&self.vfs, &self.data, &self.path, self.start, &self.grid, index)?;
        sums_agree(&unit, got, want)
    }

    /// Reads a unit once: its checksum, and what is wrong with its mirror image.
    fn examine(&self, index: usize, unit: &Unit, tile: &mut [u8]) -> Result<(u32, Result<()>)> {
        let (cols, item) = (unit.cols.len(), self.grid.item());
        let (mut sum, mut image) = (0, Ok(()));
        for plane in 0..self.grid.planes() {
            let few = (STEP / (cols * item)).max(1);
            for (bytes, top) in
                tile.chunks_mut(few * cols * item).zip(unit.rows.clone().step_by(few))
            {
                let lines = top..unit.rows.end.min(top + few);
                self.block(plane, index, lines, unit.cols.clone(), bytes)?;
                sum = crc32c::crc32c_append(sum, bytes);
            }
            if image.is_ok() {
                image = self.check_mirror(plane, unit, tile);
            }
        }
        Ok((sum, image))
    }

    /// Entries of the upper half must be those of the lower half, bit for bit.
    fn check_mirror(&self, plane: usize, unit: &Unit, tile: &[u8]) -> Result<()> {
        let (rows, cols, item) = (unit.rows.len(), unit.cols.len(), self.grid.item());
        let mut stored = Vec::new();
        mirrored(tile, cols, item, |first, strip| {
            stored.resize(strip.len(), 0);
            let top = unit.cols.start + first;
            let lines = top..top + strip.len() / (rows * item);
            self.load(plane, lines, unit.rows.clone(), &mut stored)?;
            if stored == strip { Ok(()) } else { Err(halves_differ(unit)) }
        })
    }

    fn load(
        &self,
        plane: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let length = (cols.len() * self.grid.item()).max(1);
        for (row, bytes) in rows.zip(out.chunks_exact_mut(length)) {
            let at = place(&self.grid, self.start, plane, row, cols.start);
            read_exact(&self.vfs, &self.data, &self.path, bytes, at)?;
        }
        Ok(())
    }
}

impl<V: Vfs> Reader for NpyReader<V> {
    fn grid(&self) -> &Grid {
        &self.grid
    }

    fn done(&self) -> Result<Vec<bool>> {
        Ok(self.sums.iter().map(Option::is_some).collect())
    }

    fn block(
        &self,
        plane: usize,
        _index: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        bytes: &mut [u8],
    ) -> Result<()> {
        self.load(plane, rows, cols, bytes)
    }

    fn check(&self, index: usize, mirror: bool) -> Result<()> {
        patiently(|| {
            let checked = self.check_once(index, mirror);
            if checked.is_err() {
                self.vfs.forget(&self.data);
            }
            checked
        })
    }
}

/// The fault of a tile whose mirror image is another one.
pub(super) fn halves_differ(unit: &Unit) -> Fault {
    Fault::Corrupt(format!(
        "tile ({}, {}): the upper half differs from the lower one; run entk.repair(path) to \
         recompute it",
        unit.j, unit.i
    ))
}

/// Repeats a check whose bytes do not match: a network file system may serve bad ones once.
pub(super) fn patiently(check: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 0..RETRIES {
        match check() {
            Err(Fault::Corrupt(_)) => {}
            other => return other,
        }
    }
    check()
}

/// Compares a tile's checksum with the one that was kept.
pub(super) fn sums_agree(unit: &Unit, got: u32, want: u32) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Fault::Corrupt(format!(
        "tile ({}, {}): crc32c {got:#010x} != {want:#010x}; run entk.repair(path) to recompute it",
        unit.i, unit.j
    )))
}
