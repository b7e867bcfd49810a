//! Finished blocks into the result.

use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayViewMutD, Axis, Slice};

use super::fit::rows_of_example;
use super::{Block, Engine, Worker};
use crate::kernel::Real;

/// The result, which workers fill one at a time.
pub(super) struct Sink<'a> {
    pub(super) out: Mutex<ArrayViewMutD<'a, u8>>,
    pub(super) double: bool,
    pub(super) origin: (usize, usize),
    pub(super) mirror: bool,
}

impl Sink<'_> {
    /// Write a finished block, and its mirror image. Returns whether all entries are finite.
    pub(super) fn write<F: Real>(
        &self,
        engine: &Engine<'_, F>,
        worker: &mut Worker<F>,
        block: &Block,
    ) -> bool {
        let kept = rows_of_example(engine.program);
        let (m, n) = (block.rows.len() * kept, block.cols.len() * kept);
        let (row, col) =
            ((block.rows.start - self.origin.0) * kept, (block.cols.start - self.origin.1) * kept);
        let diagonal = block.diagonal;
        let mut finite = true;
        let mut line = Vec::new();
        for (plane, acc) in worker.acc.chunks_exact_mut((m * n).max(1)).enumerate() {
            for x in acc.iter_mut() {
                *x = if engine.scale == 1.0 { *x } else { x.times(F::from_f64(engine.scale)) };
                let stored = if self.double { x.to_f64() } else { f64::from(x.to_f32()) };
                finite &= stored.is_finite();
            }
            if diagonal {
                (0..m).for_each(|i| (0..i).for_each(|j| acc[j * n + i] = acc[i * n + j]));
            }
            for i in 0..m {
                self.store([plane, row + i, col], &acc[i * n..][..n]);
            }
            for j in 0..if self.mirror && !diagonal { n } else { 0 } {
                line.clear();
                line.extend((0..m).map(|i| acc[i * n + j]));
                self.store([plane, col + j, row], &line);
            }
        }
        finite
    }

    /// Write entries along a row.
    fn store<F: Real>(&self, [plane, row, col]: [usize; 3], values: &[F]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = out.index_axis_mut(Axis(0), plane);
        let mut out = out.index_axis_mut(Axis(0), row);
        let end = col + values.len();
        let mut cells = out.slice_axis_mut(Axis(0), Slice::from(col..end));
        let item = if self.double { 8 } else { 4 };
        if let Some(bytes) = cells.as_slice_mut() {
            let cells = bytes.chunks_exact_mut(item).zip(values);
            return match self.double {
                true => cells.for_each(|(to, x)| to.copy_from_slice(&x.to_f64().to_ne_bytes())),
                false => cells.for_each(|(to, x)| to.copy_from_slice(&x.to_f32().to_ne_bytes())),
            };
        }
        for (mut cell, x) in cells.outer_iter_mut().zip(values) {
            let (eight, four) = (x.to_f64().to_ne_bytes(), x.to_f32().to_ne_bytes());
            let bytes = if self.double { eight.as_slice() } else { four.as_slice() };
            cell.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        }
    }
}
