//! Reading the Zarr kernels that [`super::zarr`] writes, every chunk against its checksum.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Result, grouped};
use super::grid::{Grid, Unit};
use super::npy_read::{patiently, sums_agree};
use super::sink::{Reader, mirrored};
use super::vfs::{How, Vfs, parent, read_exact};
use super::zarr::{ARRAY, METADATA, SUM, array_json, chunk_key, chunk_path, plain_dir, scan};

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

    /// Checksum of a chunk and the one behind it.
    fn sums(&self, plane: usize, place: (usize, usize)) -> Result<(u32, u32)> {
        let (file, path) = self.open_chunk(plane, place)?;
        let size = self.grid.chunk_bytes();
        let mut bytes = vec![0; BLOCK.min(size)];
        let mut sum = 0;
        for start in (0..size).step_by(BLOCK) {
            let count = BLOCK.min(size - start);
            read_exact(&self.vfs, &file, &path, &mut bytes[..count], start as u64)?;
            sum = crc32c::crc32c_append(sum, &bytes[..count]);
        }
        let mut stored = [0; SUM];
        read_exact(&self.vfs, &file, &path, &mut stored, size as u64)?;
        self.vfs.forget(&file);
        Ok((sum, u32::from_le_bytes(stored)))
    }

    fn check_once(&self, index: usize, mirror: bool) -> Result<()> {
        let unit = self.grid.unit(index);
        for plane in 0..self.grid.planes() {
            self.check_chunk(plane, &unit)?;
            if mirror && self.grid.mirrors() && unit.i != unit.j {
                let (rows, cols) = (unit.cols.clone(), unit.rows.clone());
                let image = Unit { i: unit.j, j: unit.i, rows, cols };
                self.check_chunk(plane, &image)?;
                self.check_mirror(plane, index, &unit)?;
            }
        }
        Ok(())
    }

    fn check_chunk(&self, plane: usize, unit: &Unit) -> Result<()> {
        let (got, want) = self.sums(plane, (unit.i, unit.j))?;
        sums_agree(unit, got, want)
    }

    fn check_mirror(&self, plane: usize, index: usize, unit: &Unit) -> Result<()> {
        let (rows, cols, item) = (unit.rows.len(), unit.cols.len(), self.grid.item());
        let mut tile = vec![0; rows * cols * item];
        self.block(plane, index, unit.rows.clone(), unit.cols.clone(), &mut tile)?;
        let (file, path) = self.open_chunk(plane, (unit.j, unit.i))?;
        let width = self.grid.row_bytes();
        let mut stored = vec![0; rows * item];
        mirrored(&tile, cols, item, |first, strip| {
            for (line, want) in strip.chunks_exact(rows * item).enumerate() {
                let at = ((first + line) * width) as u64;
                read_exact(&self.vfs, &file, &path, &mut stored, at)?;
                if stored != want {
                    let text = format!(
                        "tile ({}, {}): the upper half differs from the lower one; \
                         run entk.repair(path) to recompute it",
                        unit.j, unit.i
                    );
                    return Err(Fault::Corrupt(text));
                }
            }
            Ok(())
        })
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
        patiently(|| self.check_once(index, mirror))
    }
}
