//! Uses by row numbers: rows of the table are added to and read one at a time.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::Pass;
use super::pull::{Chunk, place};
use super::push::sum_of;
use crate::kernel::{Body, Real, View};

/// Which units of a chunk meet the piece, ascending, and at which of its rows.
pub(super) type Found = Vec<(u32, usize)>;

/// Look up the ids of some units.
pub(super) fn find(
    ids: &View<'_>,
    known: Option<&[i64]>,
    units: Range<usize>,
    rows: &Range<usize>,
) -> Found {
    let positions = ids.shape()[3];
    let row = |unit: usize| {
        let [n, t] = place(unit, positions);
        let id = ids.integer([n, 0, 0, t], 0);
        let row = match known {
            None => usize::try_from(id).ok()?,
            Some(known) => known.binary_search(&i64::try_from(id).ok()?).ok()?,
        };
        rows.contains(&row).then(|| row - rows.start)
    };
    let first = units.start;
    units.filter_map(|unit| Some(((unit - first) as u32, row(unit)?))).collect()
}

/// Add the rows of a chunk to some panels of the table.
pub(super) struct Add<'p, 't, F, const MR: usize> {
    pub(super) pass: &'p Pass<'p, F>,
    pub(super) chunks: &'p [Chunk<'p, F>],
    pub(super) found: &'p [Found],
    pub(super) first: usize,
    pub(super) positions: usize,
    pub(super) table: &'t mut [F],
}

impl<F: Real, const MR: usize> Body for Add<'_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let Pass { v, vectors, kept, shape, piece, cancel, .. } = self.pass;
        let stride = shape.stride::<MR>();
        let (table, _) = self.table.as_chunks_mut::<MR>();
        for (up, table) in table.chunks_mut(shape.rows).enumerate() {
            let lane = (self.first + up) * MR;
            let (k, at) = (piece.vectors.start + lane / stride, lane % stride);
            for (chunk, found) in self.chunks.iter().zip(self.found) {
                if cancel.load(Ordering::Relaxed) {
                    return;
                }
                for &(m, row) in found {
                    let m = m as usize;
                    let n = place(chunk.first + m, self.positions)[0];
                    for r in 0..*kept {
                        let by = v[(n * kept + r) * vectors + k];
                        let right = &chunk.right[(m * kept + r) * stride + at..][..MR];
                        for i in 0..MR {
                            table[row][i] = by.mul_add(right[i], table[row][i]);
                        }
                    }
                }
            }
        }
    }
}

/// Meet rows of the table.
pub(super) struct Read<'p, F, const MR: usize> {
    pub(super) pass: &'p Pass<'p, F>,
    pub(super) found: Found,
    /// The first unit, from the first example of `y` on.
    pub(super) first: usize,
    pub(super) positions: usize,
    pub(super) right: &'p [F],
    pub(super) table: &'p [F],
    pub(super) y: &'p mut [F],
}

impl<F: Real, const MR: usize> Body for Read<'_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let Pass { vectors, kept, shape, piece, factor, .. } = self.pass;
        let panels = shape.stride::<MR>() / MR;
        let (table, _) = self.table.as_chunks::<MR>();
        let (right, _) = self.right.as_chunks::<MR>();
        for &(m, row) in &self.found {
            let n = place(self.first + m as usize, self.positions)[0];
            for r in 0..*kept {
                let unit = m as usize * kept + r;
                let y = &mut self.y[(n * kept + r) * vectors..][piece.vectors.clone()];
                for (k, y) in y.iter_mut().enumerate() {
                    let mut sum = [F::ZERO; MR];
                    for p in 0..panels {
                        let (a, b) = (
                            &table[(k * panels + p) * shape.rows + row],
                            &right[unit * panels + p],
                        );
                        for i in 0..MR {
                            sum[i] = a[i].mul_add(b[i], sum[i]);
                        }
                    }
                    *y = factor.mul_add(sum_of(sum), *y);
                }
            }
        }
    }
}
