//! Where the elements of a table are: `[panel][row][MR]`, the lanes of a panel along `(vector, column)`.

use core::ops::Range;

use crate::kernel::Real;

/// The part of a leaf's table that is there at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Vectors.
    pub(super) vectors: Range<usize>,
    /// Rows of the table.
    pub(super) rows: Range<usize>,
}

impl Piece {
    /// The same piece of a table with one column.
    pub(super) fn native(&self, cols: usize) -> Self {
        let rows = self.rows.start * cols..self.rows.end * cols;
        Self { vectors: self.vectors.clone(), rows }
    }
}

/// Sizes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Vectors.
    pub(super) vectors: usize,
    /// Rows.
    pub(super) rows: usize,
    /// Columns.
    pub(super) cols: usize,
    /// Whether the columns of a vector fill whole panels (padded with zeros), or those of all vectors follow each other.
    pub(super) padded: bool,
    /// Whether each vector's table lies in one piece instead.
    pub(super) few: bool,
}

impl Shape {
    /// Lanes from one vector to the next.
    pub(super) fn stride<const MR: usize>(&self) -> usize {
        if self.padded { self.cols.next_multiple_of(MR) } else { self.cols }
    }

    /// Lanes in use.
    pub(super) fn lanes<const MR: usize>(&self) -> usize {
        self.vectors * self.stride::<MR>()
    }

    /// Panels.
    pub(super) fn panels<const MR: usize>(&self) -> usize {
        self.lanes::<MR>().div_ceil(MR)
    }

    /// Elements, padding included.
    pub(super) fn elements<const MR: usize>(&self) -> usize {
        if self.few {
            return self.vectors * self.rows;
        }
        self.panels::<MR>() * self.rows * MR
    }

    /// The same elements as a table with one column.
    pub(super) fn native(&self) -> Self {
        let rows = self.rows * self.cols;
        Self { vectors: self.vectors, rows, cols: 1, padded: false, few: false }
    }

    /// Add a table of the native shape.
    pub(super) fn add_native<F: Real, const MR: usize>(&self, from: &[F], to: &mut [F]) {
        self.each::<MR>(|own, native| to[own] = to[own].plus(from[native]));
    }

    /// Copy to a table of the native shape.
    pub(super) fn copy_to_native<F: Real, const MR: usize>(&self, from: &[F], to: &mut [F]) {
        self.each::<MR>(|own, native| to[native] = from[own]);
    }

    fn each<const MR: usize>(&self, mut pair: impl FnMut(usize, usize)) {
        let flat = self.rows * self.cols;
        for k in 0..self.vectors {
            for row in 0..self.rows {
                for col in 0..self.cols {
                    let lane = k * self.stride::<MR>() + col;
                    let own = (lane / MR * self.rows + row) * MR + lane % MR;
                    let native = (k / MR * flat + row * self.cols + col) * MR + k % MR;
                    pair(own, native);
                }
            }
        }
    }
}
