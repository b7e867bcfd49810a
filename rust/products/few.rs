//! Few vectors and Jacobians that are there: each row is read once and used where it is, without tiles.
//!
//! The table of each vector lies in one piece, `[k][row]`. Its elements are sums over blocks of [`KC`] units, as everywhere; a unit's sum
//! runs along fixed lanes.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::factor::Factor;
use super::push::sum_of;
use super::{Pass, Room};
use crate::kernel::{Body, KC, Real, on};

/// More vectors than this share tiles.
pub(super) const FEW: usize = 4;
/// Features at a time.
const LINE: usize = 1024;

/// Elements of a worker's own room.
pub(super) fn scratch(vectors: usize, rows: usize) -> usize {
    (1 + vectors) * rows.min(LINE)
}

impl<F: Real> Pass<'_, F> {
    /// Add what a Jacobian pulls back.
    pub(super) fn pull_few<const MR: usize>(
        &self,
        jac: &Factor<'_>,
        table: &mut [F],
        room: &mut Room<'_, '_, F>,
    ) {
        let (rows, workers) = (self.piece.rows.clone(), room.workers.len());
        let step = rows.len().div_ceil(4 * workers).next_multiple_of(MR).clamp(MR, LINE);
        let mut tasks: Vec<(Range<usize>, Vec<&mut [F]>)> = (rows.start..rows.end)
            .step_by(step)
            .map(|from| (from..(from + step).min(rows.end), Vec::new()))
            .collect();
        for vector in table.chunks_mut(rows.len()) {
            let parts = vector.chunks_mut(step);
            tasks.iter_mut().zip(parts).for_each(|((_, own), part)| own.push(part));
        }
        room.team.run(room.workers, tasks, self.cancel, |scratch, (features, table)| {
            on(self.isa, Add { pass: self, jac, features, table, scratch });
        });
    }

    /// Add what a Jacobian pushes forward.
    pub(super) fn push_few<const MR: usize>(
        &self,
        jac: &Factor<'_>,
        table: &[F],
        room: &mut Room<'_, '_, F>,
        y: &mut [F],
    ) {
        let units = jac.examples() * self.kept;
        let step = units.div_ceil(4 * room.workers.len()).clamp(1, KC);
        let tasks: Vec<_> = y.chunks_mut(step * self.vectors).enumerate().collect();
        room.team.run(room.workers, tasks, self.cancel, |line, (index, y)| {
            let units = index * step..(index * step + step).min(units);
            on(self.isa, Meet::<F, MR> { pass: self, jac, units, table, line, y });
        });
    }
}

struct Add<'p, 't, F> {
    pass: &'p Pass<'p, F>,
    jac: &'p Factor<'p>,
    features: Range<usize>,
    table: Vec<&'t mut [F]>,
    scratch: &'t mut [F],
}

impl<F: Real> Body for Add<'_, '_, F> {
    #[inline(always)]
    fn run(self) {
        let Self { pass, jac, features, mut table, scratch } = self;
        let (line, sums) = scratch.split_at_mut(features.len());
        let sums = &mut sums[..table.len() * features.len()];
        let units = jac.examples() * pass.kept;
        for first in (0..units).step_by(KC) {
            if pass.cancel.load(Ordering::Relaxed) {
                return;
            }
            sums.fill(F::ZERO);
            for unit in first..(first + KC).min(units) {
                jac.row([unit / pass.kept, unit % pass.kept, 0], features.start, line);
                let v = &pass.v[unit * pass.vectors..][pass.piece.vectors.clone()];
                for (sums, &v) in sums.chunks_mut(features.len()).zip(v) {
                    for (sum, &value) in sums.iter_mut().zip(line.iter()) {
                        *sum = v.mul_add(value, *sum);
                    }
                }
            }
            for (table, sums) in table.iter_mut().zip(sums.chunks(features.len())) {
                for (to, &sum) in table.iter_mut().zip(sums) {
                    *to = to.plus(sum);
                }
            }
        }
    }
}

struct Meet<'p, F, const MR: usize> {
    pass: &'p Pass<'p, F>,
    jac: &'p Factor<'p>,
    units: Range<usize>,
    table: &'p [F],
    line: &'p mut [F],
    y: &'p mut [F],
}

impl<F: Real, const MR: usize> Body for Meet<'_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let Self { pass, jac, units, table, line, y } = self;
        let rows = pass.piece.rows.clone();
        for (unit, y) in units.zip(y.chunks_mut(pass.vectors)) {
            if pass.cancel.load(Ordering::Relaxed) {
                return;
            }
            let mut sums = [[F::ZERO; MR]; FEW];
            for from in (0..rows.len()).step_by(LINE) {
                let line = &mut line[..LINE.min(rows.len() - from)];
                jac.row([unit / pass.kept, unit % pass.kept, 0], rows.start + from, line);
                for (sum, table) in sums.iter_mut().zip(table.chunks(rows.len())) {
                    meet(line, &table[from..][..line.len()], sum);
                }
            }
            for (y, sum) in y[pass.piece.vectors.clone()].iter_mut().zip(sums) {
                *y = pass.factor.mul_add(sum_of(sum), *y);
            }
        }
    }
}

/// `sum += a b`, lane by lane.
#[inline(always)]
fn meet<F: Real, const MR: usize>(a: &[F], b: &[F], sum: &mut [F; MR]) {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<MR>(), b.as_chunks::<MR>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            sum[i] = a[i].mul_add(b[i], sum[i]);
        }
    }
    for ((sum, &a), &b) in sum.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = a.mul_add(b, *sum);
    }
}
