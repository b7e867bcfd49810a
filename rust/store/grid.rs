//! Shapes, tiles and triangles of a stored kernel: pure arithmetic in checked 64 bits.
//!
//! A *unit* is one tile position `(i, j)` of the matrix and the smallest thing that is recorded as
//! done. It holds `planes` tiles: one, or O for kernels of shape (O, N, M). The units of a
//! symmetric kernel are those with `i >= j`, row by row, so unit `i (i + 1) / 2 + j` is `(i, j)`.

use std::ops::Range;

use super::fault::{Fault, Result};

/// Which half of a symmetric kernel is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triangle {
    /// Both, equal to the last bit.
    Full,
    /// Only `i >= j`; the other half reads as NaN.
    Lower,
}

/// Most units of a store: what is remembered of each must not fill the memory, whatever a manifest
/// from outside says.
const MOST_UNITS: usize = 1 << 27;

/// How a kernel is cut into units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    planes: Option<usize>,
    rows: usize,
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
    symmetric: bool,
    triangle: Triangle,
    item: usize,
}

/// One tile position and the entries it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Tile row.
    pub i: usize,
    /// Tile column.
    pub j: usize,
    /// Rows of the kernel.
    pub rows: Range<usize>,
    /// Columns of the kernel.
    pub cols: Range<usize>,
}

impl Grid {
    /// The grid of a kernel of `shape` (two axes, or three with the outputs first), with tiles of
    /// side `tile` and entries of `item` bytes.
    ///
    /// # Errors
    /// [`Fault::Format`] for shapes whose size overflows, and for tiles or items of size 0.
    pub fn new(
        shape: &[usize],
        tile: usize,
        item: usize,
        symmetric: bool,
        triangle: Triangle,
    ) -> Result<Self> {
        let (planes, rows, cols) = match *shape {
            [rows, cols] => (None, rows, cols),
            [planes, rows, cols] => (Some(planes), rows, cols),
            _ => {
                return Err(Fault::Format(format!(
                    "a kernel has 2 or 3 axes, not {}",
                    shape.len()
                )));
            }
        };
        let bytes = [rows, cols, item]
            .iter()
            .try_fold(planes.unwrap_or(1), |product, &axis| product.checked_mul(axis))
            .filter(|&bytes| bytes < usize::MAX / 4);
        if bytes.is_none() {
            return Err(Fault::Format(format!("shape {shape:?} overflows")));
        }
        if tile == 0 || !matches!(item, 4 | 8) || (symmetric && rows != cols) {
            let text = format!("no grid of tile {tile} and item {item} over shape {shape:?}");
            return Err(Fault::Format(text));
        }
        let (tile_rows, tile_cols) = (tile.min(rows.max(1)), tile.min(cols.max(1)));
        let (down, across) = (rows.div_ceil(tile_rows), cols.div_ceil(tile_cols));
        let units = if symmetric { down.checked_mul(down + 1) } else { down.checked_mul(across) };
        if units.is_none_or(|units| units > MOST_UNITS) {
            let text =
                format!("tile {tile} cuts shape {shape:?} into too many tiles; take a larger one");
            return Err(Fault::Format(text));
        }
        Ok(Self { planes, rows, cols, tile_rows, tile_cols, symmetric, triangle, item })
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> Vec<usize> {
        self.planes.into_iter().chain([self.rows, self.cols]).collect()
    }

    /// Lengths of the axes of a chunk.
    pub fn chunk(&self) -> Vec<usize> {
        self.planes.map(|_| 1).into_iter().chain([self.tile_rows, self.tile_cols]).collect()
    }

    /// Tiles of one unit.
    pub fn planes(&self) -> usize {
        self.planes.unwrap_or(1)
    }

    /// Whether the outputs are the first axis.
    pub fn has_planes(&self) -> bool {
        self.planes.is_some()
    }

    /// Rows of the kernel.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the kernel.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one entry.
    pub fn item(&self) -> usize {
        self.item
    }

    /// Whether tile `(j, i)` is the transpose of `(i, j)`.
    pub fn symmetric(&self) -> bool {
        self.symmetric
    }

    /// Whether a unit off the diagonal is written to its mirrored place too.
    pub fn mirrors(&self) -> bool {
        self.symmetric && self.triangle == Triangle::Full
    }

    /// Bytes of all entries, both halves.
    pub fn bytes(&self) -> u64 {
        (self.planes() * self.rows * self.cols * self.item) as u64
    }

    /// Bytes of one full chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.tile_rows * self.tile_cols * self.item
    }

    /// Bytes of one row of a full chunk.
    pub fn row_bytes(&self) -> usize {
        self.tile_cols * self.item
    }

    /// Chunks on the disk that belong to a unit.
    pub fn chunks_of(&self, unit: &Unit) -> usize {
        let halves = if self.mirrors() && unit.i != unit.j { 2 } else { 1 };
        self.planes() * halves
    }

    fn tiles_down(&self) -> usize {
        self.rows.div_ceil(self.tile_rows)
    }

    fn tiles_across(&self) -> usize {
        self.cols.div_ceil(self.tile_cols)
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        match (self.planes(), self.symmetric) {
            (0, _) => 0,
            (_, true) => self.tiles_down() * (self.tiles_down() + 1) / 2,
            (_, false) => self.tiles_down() * self.tiles_across(),
        }
    }

    /// The unit of that number.
    pub fn unit(&self, index: usize) -> Unit {
        let (i, j) = if self.symmetric {
            // The largest i with i (i + 1) / 2 <= index; isqrt is exact.
            let i = ((8 * index + 1).isqrt() - 1) / 2;
            (i, index - i * (i + 1) / 2)
        } else {
            (index / self.tiles_across().max(1), index % self.tiles_across().max(1))
        };
        let (top, left) = (i * self.tile_rows, j * self.tile_cols);
        let rows = top..self.rows.min(top + self.tile_rows);
        Unit { i, j, rows, cols: left..self.cols.min(left + self.tile_cols) }
    }

    /// Bytes of a unit, without padding and without its mirror image.
    pub fn unit_bytes(&self, unit: &Unit) -> usize {
        self.planes() * unit.rows.len() * unit.cols.len() * self.item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_a_triangle_are_numbered_row_by_row() {
        let grid = Grid::new(&[10, 10], 3, 4, true, Triangle::Full).unwrap();
        assert_eq!(grid.units(), 10);
        let mut index = 0;
        for i in 0..4 {
            for j in 0..=i {
                let unit = grid.unit(index);
                assert_eq!((unit.i, unit.j), (i, j));
                index += 1;
            }
        }
        assert_eq!(grid.unit(9).rows, 9..10);
    }

    #[test]
    fn units_of_a_rectangle_cover_every_entry_once() {
        let grid = Grid::new(&[5, 7], 3, 8, false, Triangle::Full).unwrap();
        let mut seen = [0; 35];
        for index in 0..grid.units() {
            let unit = grid.unit(index);
            for row in unit.rows.clone() {
                for col in unit.cols.clone() {
                    seen[row * 7 + col] += 1;
                }
            }
        }
        assert_eq!(seen, [1; 35]);
    }

    #[test]
    fn empty_kernels_have_no_units() {
        for shape in [&[0, 0][..], &[0, 5], &[5, 0], &[0, 5, 5]] {
            assert_eq!(Grid::new(shape, 4, 4, false, Triangle::Full).unwrap().units(), 0);
        }
    }

    #[test]
    fn more_tiles_than_memory_holds_are_refused() {
        for symmetric in [false, true] {
            let many = Grid::new(&[1 << 28, 1 << 28], 1, 4, symmetric, Triangle::Full);
            assert!(many.unwrap_err().to_string().contains("too many tiles"));
        }
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let huge = Grid::new(&[1 << 33, 1 << 33], 4096, 4, true, Triangle::Full);
        assert!(huge.unwrap_err().to_string().contains("overflows"));
    }
}
