//! `S += J^T V`, one piece of a table: units are packed in chunks of a chain, then the panels of the table are shared among workers.

use core::array::from_fn;
use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::factor::{Factor, Reader, Rows};
use super::fit::{Fit, loaded};
use super::job::Use;
use super::lookup::{self, Found};
use super::{Pass, Room};
use crate::kernel::{Body, KC, NR, Real, chain, on};
use crate::team::Team;

/// Column panels of a pass over lanes: with them the packed features of a chunk stay in the second-level cache.
const COLS: usize = 43;

/// Packed units of one chunk.
pub(super) struct Chunk<'l, F> {
    /// The first.
    pub(super) first: usize,
    /// How many.
    pub(super) len: usize,
    /// What is shared by all vectors.
    pub(super) left: &'l [F],
    /// The other side.
    pub(super) right: &'l [F],
}

impl<F: Real> Pass<'_, F> {
    /// Add what one use pulls back.
    pub(super) fn pull<const MR: usize>(
        &self,
        one: &Use<'_>,
        fit: &Fit,
        table: &mut [F],
        room: &mut Room<'_, '_, F>,
    ) {
        if let (true, Use::Plain(Rows::There(jac))) = (self.shape.few, one) {
            return self.pull_few::<MR>(jac, table, room);
        }
        let Room { team, load, workers } = room;
        let units = one.examples() * one.units(self.kept);
        let widths = loaded::<MR>(one, self.kept, &self.shape);
        let chunk = units.min(KC);
        let size = (chunk * (widths[0] + widths[1])).max(1);
        let chunks = (load.len() / size).max(1);
        for first in (0..units).step_by(chunks * KC) {
            let count = (units - first).div_ceil(KC).min(chunks);
            let range = |index: usize| {
                let from = first + index * KC;
                from..(from + KC).min(units)
            };
            let mut found = vec![Found::default(); count];
            let tasks: Vec<_> =
                load.chunks_mut(size).take(count).zip(&mut found).enumerate().collect();
            team.run(workers, tasks, self.cancel, |scratch, (index, (packed, found))| {
                let (left, right) = packed.split_at_mut(chunk * widths[0]);
                self.load::<MR>(one, range(index), left, right, scratch, found);
            });
            let packed: Vec<Chunk<'_, F>> = (0..count)
                .map(|index| {
                    let (left, right) = load[index * size..][..size].split_at(chunk * widths[0]);
                    Chunk { first: range(index).start, len: range(index).len(), left, right }
                })
                .collect();
            self.sum::<MR>(one, fit, (&packed, &found), table, (team, workers));
        }
    }

    fn load<const MR: usize>(
        &self,
        one: &Use<'_>,
        units: Range<usize>,
        left: &mut [F],
        right: &mut [F],
        scratch: &mut [F],
        found: &mut Found,
    ) {
        match one {
            Use::Plain(rows) => {
                on(self.isa, LoadPlain::<F, MR> { pass: self, rows, units, left, right, scratch });
            }
            Use::Scaled { left: a, right: b } if self.shape.padded => {
                self.columns(a, units.clone(), left, scratch);
                self.scalings::<MR>(b, units, right, scratch);
            }
            Use::Scaled { left: a, right: b } => {
                on(self.isa, LoadNarrow::<F, MR> { pass: self, a, b, units, left, right, scratch });
            }
            Use::Lookup { ids, right: b, known } => {
                *found = lookup::find(ids, *known, units.clone(), &self.piece.rows);
                self.rights(b, units, self.shape.stride::<MR>(), right);
            }
        }
    }

    /// Pack features of units as columns: `[panel][unit][NR]`.
    fn columns(&self, a: &Factor<'_>, units: Range<usize>, to: &mut [F], line: &mut [F]) {
        let (rows, len) = (self.piece.rows.len(), units.len());
        let line = &mut line[..rows.next_multiple_of(NR)];
        line[rows..].fill(F::ZERO);
        let (to, _) = to.as_chunks_mut::<NR>();
        for (m, unit) in units.enumerate() {
            let [n, t] = place(unit, a.positions());
            a.row([n, 0, t], self.piece.rows.start, &mut line[..rows]);
            for (q, six) in line.as_chunks::<NR>().0.iter().enumerate() {
                to[q * len + m] = *six;
            }
        }
    }

    /// Pack what scaled lanes are made of: the factor, `[r][panel][unit][MR]`, and the vectors, `[r][k][unit]`.
    fn scalings<const MR: usize>(
        &self,
        b: &Factor<'_>,
        units: Range<usize>,
        to: &mut [F],
        line: &mut [F],
    ) {
        let (len, stride, cols) = (units.len(), self.shape.stride::<MR>(), self.shape.cols);
        let (lanes, vectors) = to.split_at_mut(self.kept * stride * len);
        let (lanes, line) = (lanes.as_chunks_mut::<MR>().0, &mut line[..stride]);
        line[cols..].fill(F::ZERO);
        for (m, unit) in units.enumerate() {
            let [n, t] = place(unit, b.positions());
            for r in 0..self.kept {
                b.row([n, r, t], 0, &mut line[..cols]);
                for (p, lane) in line.as_chunks::<MR>().0.iter().enumerate() {
                    lanes[(r * (stride / MR) + p) * len + m] = *lane;
                }
                let v = &self.v[(n * self.kept + r) * self.vectors..][self.piece.vectors.clone()];
                for (k, v) in v.iter().enumerate() {
                    vectors[(r * self.shape.vectors + k) * len + m] = *v;
                }
            }
        }
    }

    /// Read the factor with the output rows: `[unit][r][stride]`, padded with zeros.
    pub(super) fn rights(&self, b: &Factor<'_>, units: Range<usize>, stride: usize, to: &mut [F]) {
        let mut rows = to.chunks_mut(stride.max(1));
        for unit in units {
            let [n, t] = place(unit, b.positions());
            for (r, row) in rows.by_ref().take(self.kept).enumerate() {
                let (values, rest) = row.split_at_mut(self.shape.cols);
                b.row([n, r, t], 0, values);
                rest.fill(F::ZERO);
            }
        }
    }

    fn sum<const MR: usize>(
        &self,
        one: &Use<'_>,
        fit: &Fit,
        (chunks, found): (&[Chunk<'_, F>], &[Found]),
        table: &mut [F],
        (team, workers): (&Team<'_>, &mut [&mut [F]]),
    ) {
        let (rows, panels) = (self.shape.rows, self.shape.panels::<MR>());
        let fair = |count: usize| count.div_ceil(4 * workers.len());
        if let Use::Plain(_) | Use::Scaled { .. } = one
            && !self.shape.padded
        {
            let width = rows.div_ceil(MR);
            let step = fair(width).clamp(1, 64);
            let mut tasks: Vec<(usize, Vec<&mut [F]>)> =
                (0..width).step_by(step).map(|panel| (panel, Vec::new())).collect();
            for panel in table.chunks_mut(rows * MR) {
                let parts = panel.chunks_mut(step * MR * MR);
                tasks.iter_mut().zip(parts).for_each(|((_, own), part)| own.push(part));
            }
            return team.run(workers, tasks, self.cancel, |_, (panel, table)| {
                on(self.isa, SumNarrow::<F, MR> { pass: self, chunks, panel, table });
            });
        }
        let step = fair(panels).clamp(1, fit.panels);
        let tasks: Vec<_> = table.chunks_mut(step * rows * MR).enumerate().collect();
        team.run(workers, tasks, self.cancel, |scratch, (index, table)| {
            let first = index * step;
            match one {
                Use::Lookup { right, .. } => {
                    let positions = right.positions();
                    let body =
                        lookup::Add::<F, MR> { pass: self, chunks, found, first, positions, table };
                    on(self.isa, body);
                }
                _ => {
                    let body =
                        SumScaled::<F, MR> { pass: self, chunks, first, table, lanes: scratch };
                    on(self.isa, body);
                }
            }
        });
    }
}

/// Example and position of a unit.
#[inline(always)]
pub(super) fn place(unit: usize, positions: usize) -> [usize; 2] {
    if positions == 1 { [unit, 0] } else { [unit / positions, unit % positions] }
}

/// Pack rows of the Jacobian as lanes, and vectors as columns.
struct LoadPlain<'p, 'a, 'r, F, const MR: usize> {
    pass: &'p Pass<'p, F>,
    rows: &'r Rows<'a>,
    units: Range<usize>,
    left: &'p mut [F],
    right: &'p mut [F],
    scratch: &'p mut [F],
}

impl<F: Real, const MR: usize> Body for LoadPlain<'_, '_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let Self { pass, rows, units, left, right, scratch } = self;
        let (features, len) = (pass.piece.rows.clone(), units.len());
        let (line, scratch) = scratch.split_at_mut(features.len().next_multiple_of(MR));
        line[features.len()..].fill(F::ZERO);
        let (left, right) = (left.as_chunks_mut::<MR>().0, right.as_chunks_mut::<NR>().0);
        for (m, unit) in units.enumerate() {
            let at = [unit / pass.kept, unit % pass.kept];
            let out = &mut line[..features.len()];
            Reader::<F, MR> { rows, at, features: features.clone(), scratch, out }.run();
            for (p, lane) in line.as_chunks::<MR>().0.iter().enumerate() {
                left[p * len + m] = *lane;
            }
            let v = &pass.v[unit * pass.vectors..][pass.piece.vectors.clone()];
            for (q, six) in v.chunks(NR).enumerate() {
                let to = &mut right[q * len + m];
                to.fill(F::ZERO);
                to[..six.len()].copy_from_slice(six);
            }
        }
    }
}

/// Pack the wide factor as lanes, and the narrow one, times each vector, as columns.
struct LoadNarrow<'p, 'a, F, const MR: usize> {
    pass: &'p Pass<'p, F>,
    a: &'p Factor<'a>,
    b: &'p Factor<'a>,
    units: Range<usize>,
    left: &'p mut [F],
    right: &'p mut [F],
    scratch: &'p mut [F],
}

impl<F: Real, const MR: usize> Body for LoadNarrow<'_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let Self { pass, a, b, units, left, right, scratch } = self;
        let (rows, cols, len) = (pass.piece.rows.clone(), pass.shape.cols, units.len());
        let (line, rest) = scratch.split_at_mut(rows.len().next_multiple_of(MR));
        let (narrow, rest) = rest.split_at_mut(pass.kept * cols);
        let scaled = &mut rest[..(pass.shape.vectors * cols).next_multiple_of(NR)];
        line[rows.len()..].fill(F::ZERO);
        let (left, right) = (left.as_chunks_mut::<MR>().0, right.as_chunks_mut::<NR>().0);
        for (m, unit) in units.enumerate() {
            let [n, t] = place(unit, a.positions());
            a.row([n, 0, t], rows.start, &mut line[..rows.len()]);
            for (p, lane) in line.as_chunks::<MR>().0.iter().enumerate() {
                left[p * len + m] = *lane;
            }
            pass.rights(b, unit..unit + 1, cols, narrow);
            scaled.fill(F::ZERO);
            for (r, narrow) in narrow.chunks(cols).enumerate() {
                let v = &pass.v[(n * pass.kept + r) * pass.vectors..][pass.piece.vectors.clone()];
                for (&v, scaled) in v.iter().zip(scaled.chunks_mut(cols)) {
                    for (to, &value) in scaled.iter_mut().zip(narrow) {
                        *to = v.mul_add(value, *to);
                    }
                }
            }
            for (q, six) in scaled.as_chunks::<NR>().0.iter().enumerate() {
                right[q * len + m] = *six;
            }
        }
    }
}

/// Panels of the table of one vector each: the scaled lanes are made here, and shared by all column panels.
struct SumScaled<'p, 't, F, const MR: usize> {
    pass: &'p Pass<'p, F>,
    chunks: &'p [Chunk<'p, F>],
    first: usize,
    table: &'t mut [F],
    lanes: &'t mut [F],
}

impl<F: Real, const MR: usize> Body for SumScaled<'_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let rows = self.pass.shape.rows;
        let (lanes, _) = self.lanes.as_chunks_mut::<MR>();
        let (table, _) = self.table.as_chunks_mut::<MR>();
        for chunk in self.chunks {
            if self.pass.cancel.load(Ordering::Relaxed) {
                return;
            }
            for (up, lanes) in (0..table.len() / rows).zip(lanes.chunks_mut(chunk.len)) {
                scale(self.pass, chunk, self.first + up, lanes);
            }
            let (cols, _) = chunk.left.as_chunks::<NR>();
            let panels = rows.div_ceil(NR);
            for pass in (0..panels).step_by(COLS) {
                for (table, lanes) in table.chunks_mut(rows).zip(lanes.chunks(chunk.len)) {
                    for q in pass..(pass + COLS).min(panels) {
                        let tile = chain(lanes, &cols[q * chunk.len..][..chunk.len]);
                        for (to, sum) in table[q * NR..].iter_mut().zip(&tile) {
                            for i in 0..MR {
                                to[i] = to[i].plus(sum[i]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `sum_r v right` for one panel of one vector.
#[inline(always)]
fn scale<F: Real, const MR: usize>(
    pass: &Pass<'_, F>,
    chunk: &Chunk<'_, F>,
    panel: usize,
    lanes: &mut [[F; MR]],
) {
    let (panels, len) = (pass.shape.stride::<MR>() / MR, chunk.len);
    let (right, vectors) = chunk.right.split_at(pass.kept * panels * MR * len);
    let (k, p) = (panel / panels, panel % panels);
    for r in 0..pass.kept {
        let right = &right.as_chunks::<MR>().0[(r * panels + p) * len..][..len];
        let v = &vectors[(r * pass.shape.vectors + k) * len..][..len];
        for ((lane, right), &by) in lanes.iter_mut().zip(right).zip(v) {
            // Opaque: else the compiler takes units for lanes, and gathers and scatters.
            let by = black_box(by);
            if r == 0 {
                *lane = from_fn(|i| by.times(right[i]));
            } else {
                *lane = from_fn(|i| by.mul_add(right[i], lane[i]));
            }
        }
    }
}

/// Some row panels of the tables of all vectors, whose columns share panels.
struct SumNarrow<'p, 't, F, const MR: usize> {
    pass: &'p Pass<'p, F>,
    chunks: &'p [Chunk<'p, F>],
    panel: usize,
    table: Vec<&'t mut [F]>,
}

impl<F: Real, const MR: usize> Body for SumNarrow<'_, '_, F, MR> {
    #[inline(always)]
    fn run(mut self) {
        let rows = self.table.first().map_or(0, |part| part.len() / MR);
        let used = self.pass.shape.lanes::<MR>();
        for chunk in self.chunks {
            if self.pass.cancel.load(Ordering::Relaxed) {
                return;
            }
            let (lanes, cols) = (chunk.left.as_chunks::<MR>().0, chunk.right.as_chunks::<NR>().0);
            for p in 0..rows.div_ceil(MR) {
                let lanes = &lanes[(self.panel + p) * chunk.len..][..chunk.len];
                let height = MR.min(rows - p * MR);
                for (q, cols) in cols.chunks(chunk.len).take(used.div_ceil(NR)).enumerate() {
                    let tile = chain(lanes, cols);
                    for (u, sum) in (q * NR..used).zip(&tile) {
                        let part = &mut self.table[u / MR][p * MR * MR..][..height * MR];
                        for (to, sum) in part.as_chunks_mut::<MR>().0.iter_mut().zip(sum) {
                            to[u % MR] = to[u % MR].plus(*sum);
                        }
                    }
                }
            }
        }
    }
}
