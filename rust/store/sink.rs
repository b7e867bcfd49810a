//! What the two formats have in common, and the arithmetic of mirrored tiles.

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Result};
use super::grid::{Grid, Unit};

/// Mirrored rows that are held at a time while the other half is written.
pub(super) const STRIP: usize = 64;
/// Side of the blocks in which entries change places: a line of a block of float32 is a cache line.
const BLOCK: usize = 16;

/// Where tiles go. One sink belongs to one process; several sinks may fill one store.
pub trait Sink: Send {
    /// How the kernel is cut.
    fn grid(&self) -> &Grid;

    /// Which units are safe, whoever wrote them: looks at the disk.
    ///
    /// # Errors
    /// The system's, and [`Fault::Corrupt`].
    fn done(&mut self) -> Result<Vec<bool>>;

    /// Writes a unit's entries (planes, rows, columns in C order, little-endian). They are safe
    /// only after the next [`Sink::commit`].
    ///
    /// # Errors
    /// The system's.
    fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()>;

    /// Takes the units written so far out of the sink, which may write on while they are made safe.
    fn take(&mut self) -> Box<dyn Batch>;

    /// Makes the units written so far safe, and records them.
    ///
    /// # Errors
    /// Those of [`Batch::commit`].
    fn commit(&mut self) -> Result<()> {
        self.take().commit()
    }

    /// Gives the finished store its name, in one step. `manifest` replaces the unfinished one.
    ///
    /// # Errors
    /// [`Fault::Incomplete`] if a unit is missing, [`Fault::Exists`] if the name is taken and not
    /// to be replaced.
    fn finish(&mut self, manifest: &[u8], replace: bool) -> Result<()>;
}

/// Units that were written and are not safe yet.
pub trait Batch: Send {
    /// Makes them safe, and records them.
    ///
    /// # Errors
    /// The system's; then none of them is recorded, and no later batch of the sink either: which
    /// writes a failed sync lost is not known.
    fn commit(self: Box<Self>) -> Result<()>;
}

/// Where tiles come from.
pub trait Reader: Send + Sync {
    /// How the kernel is cut.
    fn grid(&self) -> &Grid;

    /// Which units are there, without checking their bytes.
    ///
    /// # Errors
    /// The system's.
    fn done(&self) -> Result<Vec<bool>>;

    /// Copies entries of one plane from the stored half, without checking them. The block must lie
    /// inside one unit.
    ///
    /// # Errors
    /// The system's, and [`Fault::Incomplete`] if the chunk is not there.
    fn block(
        &self,
        plane: usize,
        index: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        bytes: &mut [u8],
    ) -> Result<()>;

    /// Compares a unit with its checksum, and with `mirror` its mirror image too.
    ///
    /// # Errors
    /// [`Fault::Corrupt`], [`Fault::Incomplete`].
    fn check(&self, index: usize, mirror: bool) -> Result<()>;
}

/// The names a store goes by.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The finished store.
    pub target: PathBuf,
    /// The unfinished one.
    pub partial: PathBuf,
    /// The lock file of a running job.
    pub lock: PathBuf,
}

impl Paths {
    /// The names of the store `target`.
    pub fn new(target: &Path) -> Self {
        Self {
            target: target.to_owned(),
            partial: with_suffix(target, ".partial"),
            lock: with_suffix(target, ".partial.lock"),
        }
    }
}

/// The directory with manifest and log of a `.npy`, finished or not.
pub fn sidecar(path: &Path) -> PathBuf {
    with_suffix(path, ".entk")
}

/// `K.npy` + `.partial`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Refuses bytes of the wrong length: the caller's arithmetic is wrong, not the disk.
pub(super) fn expect_length(grid: &Grid, index: usize, bytes: &[u8]) -> Result<()> {
    let want = if index < grid.units() { grid.unit_bytes(&grid.unit(index)) } else { 0 };
    if want == 0 || bytes.len() != want {
        let text = format!("tile {index} holds {} bytes; it needs {want}", bytes.len());
        return Err(Fault::Format(text));
    }
    Ok(())
}

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends `length` bytes, which this thread keeps for the next time: to clear as many fresh ones for
/// each tile takes as long as to read it.
pub(super) fn with_room<T>(length: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut room = ROOM.take();
    if room.len() < length {
        room = vec![0; length];
    }
    let result = work(&mut room[..length]);
    ROOM.set(room);
    result
}

/// Calls `take(first mirrored row, its bytes)` for strips of the transpose of a tile of `cols`
/// columns. Never holds more than [`STRIP`] rows of it.
pub(super) fn mirrored(
    tile: &[u8],
    cols: usize,
    item: usize,
    mut take: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let rows = tile.len() / (cols * item);
    let mut strip = vec![0; STRIP.min(cols) * rows * item];
    for first in (0..cols).step_by(STRIP) {
        let count = STRIP.min(cols - first);
        let out = &mut strip[..count * rows * item];
        transposed(tile, cols, item, first..first + count, out);
        take(first, out)?;
    }
    Ok(())
}

/// Fills `out` with the rows `lines` of the transpose of a tile of `cols` columns.
pub(super) fn transposed(
    tile: &[u8],
    cols: usize,
    item: usize,
    lines: Range<usize>,
    out: &mut [u8],
) {
    match item {
        4 => transpose::<4>(tile, cols, lines.start, lines.len(), out),
        _ => transpose::<8>(tile, cols, lines.start, lines.len(), out),
    }
}

/// `count` entries of NaN.
pub(super) fn nans(count: usize, item: usize) -> Vec<u8> {
    match item {
        4 => f32::NAN.to_le_bytes().repeat(count),
        _ => f64::NAN.to_le_bytes().repeat(count),
    }
}

/// Calls `take(first row, bytes)` with a tile as it is stored: as it is, except that a kernel of
/// which only the lower half is kept has NaN above the diagonal, inside its diagonal tiles too.
pub(super) fn stored_rows(
    grid: &Grid,
    unit: &Unit,
    tile: &[u8],
    mut take: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    if !grid.symmetric() || grid.mirrors() || unit.i != unit.j {
        return take(0, tile);
    }
    let (cols, item) = (unit.cols.len(), grid.item());
    let blank = nans(cols, item);
    for (row, bytes) in tile.chunks_exact(cols * item).enumerate() {
        let kept = (row + 1) * item;
        take(row, &[&bytes[..kept], &blank[kept..]].concat())?;
    }
    Ok(())
}

/// Copies the columns `first..first + count` of a tile into rows of `out`. Square blocks, because a
/// column's entries lie a power of two apart, where caches have few places for them.
fn transpose<const W: usize>(tile: &[u8], cols: usize, first: usize, count: usize, out: &mut [u8]) {
    let (tile, out) = (tile.as_chunks::<W>().0, out.as_chunks_mut::<W>().0);
    let rows = tile.len() / cols;
    for top in (0..rows).step_by(BLOCK) {
        let high = BLOCK.min(rows - top);
        for left in (0..count).step_by(BLOCK) {
            let wide = BLOCK.min(count - left);
            let from = &tile[top * cols + first + left..];
            let to = &mut out[left * rows + top..];
            if high == BLOCK && wide == BLOCK {
                // Its loops are unrolled: the sizes are known when it is compiled.
                exchange(from, cols, to, rows, BLOCK, BLOCK);
            } else {
                exchange(from, cols, to, rows, high, wide);
            }
        }
    }
}

/// Copies a block of `high` lines, each `cols` entries behind the last, into `wide` lines `rows` apart.
#[inline(always)]
fn exchange<const W: usize>(
    from: &[[u8; W]],
    cols: usize,
    to: &mut [[u8; W]],
    rows: usize,
    high: usize,
    wide: usize,
) {
    let mut block = [[[0; W]; BLOCK]; BLOCK];
    for (row, line) in block[..high].iter_mut().enumerate() {
        line[..wide].copy_from_slice(&from[row * cols..row * cols + wide]);
    }
    for line in 0..wide {
        for (entry, row) in to[line * rows..line * rows + high].iter_mut().zip(&block) {
            *entry = row[line];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_of_the_mirror_image_make_the_transpose() {
        let (rows, cols) = (3, 150);
        let tile: Vec<u8> = (0..rows * cols).flat_map(|k| (k as u32).to_le_bytes()).collect();
        let mut image = Vec::new();
        mirrored(&tile, cols, 4, |first, bytes| {
            assert_eq!(first * rows * 4, image.len());
            image.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        for col in 0..cols {
            for row in 0..rows {
                let at = (col * rows + row) * 4;
                let want = ((row * cols + col) as u32).to_le_bytes();
                assert_eq!(image[at..at + 4], want);
            }
        }
    }
}
