//! Reading the Zarr kernels that [`super::zarr`] writes, every chunk against its checksum.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Result, grouped};
use super::grid::{Grid, Unit};
use super::npy_read::{halves_differ, patiently, sums_agree};
use super::sink::{Reader, STRIP, transposed, with_room};
use super::vfs::{How, Vfs, parent, read_exact};
use super::zarr_layout::{
    ARRAY, METADATA, SUM, array_json, chunk_key, chunk_path, plain_dir, scan,
};

/// Bytes of a chunk that are read at a time.
const BLOCK: usize = 1 << 18;

/// A Zarr kernel of ours, finished or not, for reading.
#[derive(Debug)]
pub struct ZarrReader<V: Vfs> {
    vfs: V,
    root: PathBuf,
    grid: Grid,
}

impl<V: Vfs> ZarrReader<V> {
    /// Opens the group in directory `root`.
    ///
    /// # Errors
    /// [`Fault::Format`] if the array's metadata are not those of the grid.
    pub fn open(vfs: V, root: &Path, grid: Grid) -> Result<Self> {
        let path = root.join(ARRAY).join(METADATA);
        plain_dir(&vfs, parent(&path))?;
        let want = array_json(&grid);
        let file = vfs.open(&path, How::Read).map_err(|error| Fault::io("open", &path, error))?;
        let mut got = vec![0; want.len() + 1];
        let count =
            vfs.pread(&file, &mut got, 0).map_err(|error| Fault::io("pread", &path, error))?;
        if got[..count] != *want.as_bytes() {
            let text = format!("{}: the metadata are not those of its manifest", path.display());
            return Err(Fault::Format(text));
        }
        Ok(Self { vfs, root: root.to_owned(), grid })
    }

    fn open_chunk(&self, plane: usize, place: (usize, usize)) -> Result<(V::File, PathBuf)> {
        let path = chunk_path(&self.root, &self.grid, plane, place);
        plain_dir(&self.vfs, parent(&path))?;
        let file = self.vfs.open(&path, How::Read).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Fault::Incomplete(format!(
                "chunk {} is missing",
                chunk_key(&self.grid, plane, place)
            )),
            _ => Fault::io("open", &path, error),
        })?;
        let length =
            self.vfs.status(&file).map_err(|error| Fault::io("fstat", &path, error))?.0.len;
        let want = (self.grid.chunk_bytes() + SUM) as u64;
        if length != want {
            let key = chunk_key(&self.grid, plane, place);
            let (length, want) = (grouped(length), grouped(want));
            return Err(Fault::Corrupt(format!("chunk {key} is {length} bytes; it needs {want}")));
        }
        Ok((file, path))
    }

    /// Passes a chunk's bytes on in pieces of `step`; its checksum and the one behind it.
    fn sums(
        &self,
        plane: usize,
        place: (usize, usize),
        step: usize,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(u32, u32)> {
        let (file, path) = self.open_chunk(plane, place)?;
        let size = self.grid.chunk_bytes();
        let mut bytes = vec![0; step.min(size)];
        let mut sum = 0;
        for start in (0..size).step_by(step) {
            let count = step.min(size - start);
            read_exact(&self.vfs, &file, &path, &mut bytes[..count], start as u64)?;
            sum = crc32c::crc32c_append(sum, &bytes[..count]);
            take(start, &bytes[..count]);
        }
        let mut stored = [0; SUM];
        read_exact(&self.vfs, &file, &path, &mut stored, size as u64)?;
        Ok((sum, u32::from_le_bytes(stored)))
    }

    fn check_once(&self, unit: &Unit, both: bool) -> Result<()> {
        (0..self.grid.planes()).try_for_each(|plane| {
            if both {
                let length = unit.rows.len() * unit.cols.len() * self.grid.item();
                with_room(length, |tile| self.check_halves(plane, unit, tile))
            } else {
                self.check_chunk(plane, unit, BLOCK, |_, _| {})
            }
        })
    }

    fn check_chunk(
        &self,
        plane: usize,
        unit: &Unit,
        step: usize,
        take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        let (got, want) = self.sums(plane, (unit.i, unit.j), step, take)?;
        sums_agree(unit, got, want)
    }

    /// Has a unit's chunks read from the disk the next time, and not from the memory.
    fn forget(&self, unit: &Unit) {
        for plane in 0..self.grid.planes() {
            for place in [(unit.i, unit.j), (unit.j, unit.i)] {
                if let Ok((file, _)) = self.open_chunk(plane, place) {
                    self.vfs.forget(&file);
                }
            }
        }
    }

    /// Both chunks of a unit, each read once: their checksums, and that they mirror each other.
    fn check_halves(&self, plane: usize, unit: &Unit, tile: &mut [u8]) -> Result<()> {
        let (rows, cols, item) = (unit.rows.len(), unit.cols.len(), self.grid.item());
        let width = self.grid.row_bytes();
        self.check_chunk(plane, unit, BLOCK.next_multiple_of(width), |start, bytes| {
            let lines = tile.chunks_exact_mut(cols * item).skip(start / width);
            for (line, row) in lines.zip(bytes.chunks_exact(width)) {
                line.copy_from_slice(&row[..cols * item]);
            }
        })?;
        let image = Unit { i: unit.j, j: unit.i, rows: unit.cols.clone(), cols: unit.rows.clone() };
        let (mut strip, mut same) = (Vec::new(), true);
        self.check_chunk(plane, &image, STRIP * width, |start, bytes| {
            let first = start / width;
            let count = (bytes.len() / width).min(cols.saturating_sub(first));
            strip.resize(count * rows * item, 0);
            transposed(tile, cols, item, first..first + count, &mut strip);
            let mut pairs = strip.chunks_exact(rows * item).zip(bytes.chunks_exact(width));
            same &= pairs.all(|(want, row)| row[..rows * item] == *want);
        })?;
        if same { Ok(()) } else { Err(halves_differ(unit)) }
    }
}

impl<V: Vfs> Reader for ZarrReader<V> {
    fn grid(&self) -> &Grid {
        &self.grid
    }

    fn done(&self) -> Result<Vec<bool>> {
        Ok(scan(&self.vfs, &self.root, &self.grid)?.0)
    }

    fn block(
        &self,
        plane: usize,
        index: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        bytes: &mut [u8],
    ) -> Result<()> {
        let unit = self.grid.unit(index);
        let (file, path) = self.open_chunk(plane, (unit.i, unit.j))?;
        let item = self.grid.item();
        let width = self.grid.row_bytes();
        let left = (cols.start - unit.cols.start) * item;
        for (row, line) in rows.zip(bytes.chunks_exact_mut((cols.len() * item).max(1))) {
            let at = (row - unit.rows.start) * width + left;
            read_exact(&self.vfs, &file, &path, line, at as u64)?;
        }
        Ok(())
    }

    fn check(&self, index: usize, mirror: bool) -> Result<()> {
        let unit = self.grid.unit(index);
        let both = mirror && self.grid.mirrors() && unit.i != unit.j;
        patiently(|| {
            let checked = self.check_once(&unit, both);
            if checked.is_err() {
                self.forget(&unit);
            }
            checked
        })
    }
}
