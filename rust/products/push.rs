//! `Y += J S`, one piece of a table: each worker owns whole examples.

use core::array::from_fn;
use core::ops::Range;
use core::sync::atomic::Ordering;

use super::factor::{Factor, Reader, Rows};
use super::fit::{Fit, apart, pushed};
use super::job::Use;
use super::lookup;
use super::pull::place;
use super::{Pass, Room};
use crate::kernel::{Body, KC, NR, Real, chain_apart, on};

impl<F: Real> Pass<'_, F> {
    /// Add what one use pushes forward.
    pub(super) fn push<const MR: usize>(
        &self,
        one: &Use<'_>,
        fit: &Fit,
        table: &[F],
        room: &mut Room<'_, '_, F>,
        y: &mut [F],
    ) {
        if let (true, Use::Plain(Rows::There(jac))) = (self.shape.few, one) {
            return self.push_few::<MR>(jac, table, room, y);
        }
        let Room { team, workers, .. } = room;
        let (examples, each) = (one.examples(), one.units(self.kept).max(1));
        // Whole examples, so that each has the same blocks whoever gets it.
        let share = examples.div_ceil(workers.len()).max(1);
        let step = (fit.block / each).clamp(1, share);
        let tasks: Vec<_> = y.chunks_mut(step * self.kept * self.vectors).enumerate().collect();
        team.run(workers, tasks, self.cancel, |scratch, (index, y)| {
            let from = index * step;
            let examples = from..(from + step).min(examples);
            let units = examples.start * each..examples.end * each;
            let mut rest = units.clone();
            while !rest.is_empty() {
                let block = rest.start..(rest.start + fit.block.max(NR)).min(rest.end);
                rest.start = block.end;
                self.block::<MR>(one, examples.start, block, table, scratch, y);
            }
        });
    }

    fn block<const MR: usize>(
        &self,
        one: &Use<'_>,
        example: usize,
        units: Range<usize>,
        table: &[F],
        scratch: &mut [F],
        y: &mut [F],
    ) {
        let padded = units.len().next_multiple_of(NR);
        let [left, right, sums] =
            pushed::<MR>(one, self.kept, &self.shape).map(|each| each * padded);
        let (left, rest) = scratch.split_at_mut(left);
        let (right, rest) = rest.split_at_mut(right);
        let (sums, rest) = rest.split_at_mut(sums);
        let block = Block { pass: self, example, units, table, left, right, sums, y };
        match one {
            Use::Plain(rows) => on(self.isa, PushPlain::<F, MR> { block, rows, scratch: rest }),
            Use::Scaled { left, right } if self.shape.padded => {
                on(self.isa, PushScaled::<F, MR> { block, left, right });
            }
            Use::Scaled { left, right } => {
                on(self.isa, PushNarrow::<F, MR> { block, left, right });
            }
            Use::Lookup { ids, right, known } => {
                let Block { units, right: room, y, .. } = block;
                let found = lookup::find(ids, *known, units.clone(), &self.piece.rows);
                self.rights(right, units.clone(), self.shape.stride::<MR>(), room);
                let first = units.start - example * right.positions();
                let positions = right.positions();
                let body = lookup::Read::<F, MR> {
                    pass: self,
                    found,
                    first,
                    positions,
                    right: room,
                    table,
                    y,
                };
                on(self.isa, body);
            }
        }
    }
}

/// Some units, and room for them.
struct Block<'p, F> {
    pass: &'p Pass<'p, F>,
    /// The first example of `y`.
    example: usize,
    units: Range<usize>,
    table: &'p [F],
    left: &'p mut [F],
    right: &'p mut [F],
    sums: &'p mut [F],
    y: &'p mut [F],
}

impl<F: Real> Block<'_, F> {
    /// Read the features of all units, `apart`; what is beyond the units is zero.
    fn read_left(&mut self, a: &Factor<'_>) {
        let rows = &self.pass.piece.rows;
        let mut lines = self.left.chunks_mut(apart(rows.len()));
        for unit in self.units.clone() {
            let [n, t] = place(unit, a.positions());
            if let Some(line) = lines.next() {
                a.row([n, 0, t], rows.start, &mut line[..rows.len()]);
            }
        }
        lines.for_each(|line| line.fill(F::ZERO));
    }

    fn read_right(&mut self, b: &Factor<'_>, stride: usize) {
        let used = self.units.len() * self.pass.kept * stride;
        self.pass.rights(b, self.units.clone(), stride, &mut self.right[..used]);
        self.right[used..].fill(F::ZERO);
    }
}

/// The features `from ..` of `NR` units.
#[inline(always)]
fn six<F>(left: &[F], step: usize, unit: usize, from: usize, len: usize) -> [&[F]; NR] {
    from_fn(|j| &left[(unit + j) * step + from..][..len])
}

/// A sum of lanes by a fixed tree.
#[inline(always)]
pub(super) fn sum_of<F: Real, const MR: usize>(mut lanes: [F; MR]) -> F {
    let mut width = MR / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = lanes[i].plus(lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

struct PushScaled<'p, 'f, F, const MR: usize> {
    block: Block<'p, F>,
    left: &'f Factor<'f>,
    right: &'f Factor<'f>,
}

impl<F: Real, const MR: usize> Body for PushScaled<'_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let mut block = self.block;
        let pass = block.pass;
        let (rows, kept, stride) = (pass.shape.rows, pass.kept, pass.shape.stride::<MR>());
        block.read_left(self.left);
        block.read_right(self.right, stride);
        let (table, _) = block.table.as_chunks::<MR>();
        let (right, _) = block.right.as_chunks::<MR>();
        let (sums, _) = block.sums.as_chunks_mut::<MR>();
        let (panels, step) = (stride / MR, apart(rows));
        for from in (0..rows).step_by(KC) {
            let len = (rows - from).min(KC);
            for k in 0..pass.shape.vectors {
                if pass.cancel.load(Ordering::Relaxed) {
                    return;
                }
                sums.fill([F::ZERO; MR]);
                for p in 0..panels {
                    let lanes = &table[(k * panels + p) * rows + from..][..len];
                    for (s, sums) in sums.chunks_mut(NR * kept).enumerate() {
                        let tile = chain_apart(lanes, six(block.left, step, s * NR, from, len));
                        let right = &right[s * NR * kept * panels..][..NR * kept * panels];
                        meet(&tile, kept, panels, p, right, sums);
                    }
                }
                let first = block.units.start;
                for (m, sums) in sums.chunks(kept).take(block.units.len()).enumerate() {
                    let n = place(first + m, self.left.positions())[0] - block.example;
                    for (r, sum) in sums.iter().enumerate() {
                        let at = (n * kept + r) * pass.vectors + pass.piece.vectors.start + k;
                        block.y[at] = pass.factor.mul_add(sum_of(*sum), block.y[at]);
                    }
                }
            }
        }
    }
}

/// `sums += tile * right`, lane by lane.
#[inline(always)]
fn meet<F: Real, const MR: usize>(
    tile: &[[F; MR]; NR],
    kept: usize,
    panels: usize,
    p: usize,
    right: &[[F; MR]],
    sums: &mut [[F; MR]],
) {
    for j in 0..NR {
        for r in 0..kept {
            let (right, sum) = (&right[(j * kept + r) * panels + p], &mut sums[j * kept + r]);
            for i in 0..MR {
                sum[i] = tile[j][i].mul_add(right[i], sum[i]);
            }
        }
    }
}

struct PushPlain<'p, 'a, 'f, F, const MR: usize> {
    block: Block<'p, F>,
    rows: &'f Rows<'a>,
    scratch: &'p mut [F],
}

impl<F: Real, const MR: usize> Body for PushPlain<'_, '_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let Self { block, rows, scratch } = self;
        let pass = block.pass;
        let (features, kept) = (pass.piece.rows.clone(), pass.kept);
        let step = apart(features.len());
        let mut lines = block.left.chunks_mut(step);
        for unit in block.units.clone() {
            if let Some(line) = lines.next() {
                let (at, out) = ([unit / kept, unit % kept], &mut line[..features.len()]);
                Reader::<F, MR> { rows, at, features: features.clone(), scratch, out }.run();
            }
        }
        lines.for_each(|line| line.fill(F::ZERO));
        let (table, _) = block.table.as_chunks::<MR>();
        let (sums, _) = block.sums.as_chunks_mut::<MR>();
        sums.fill([F::ZERO; MR]);
        let panels = pass.shape.panels::<MR>();
        for from in (0..features.len()).step_by(KC) {
            let len = (features.len() - from).min(KC);
            if pass.cancel.load(Ordering::Relaxed) {
                return;
            }
            for p in 0..panels {
                let lanes = &table[p * features.len() + from..][..len];
                for (s, sums) in sums.chunks_mut(NR * panels).enumerate() {
                    let tile = chain_apart(lanes, six(block.left, step, s * NR, from, len));
                    for j in 0..NR {
                        for i in 0..MR {
                            sums[j * panels + p][i] = sums[j * panels + p][i].plus(tile[j][i]);
                        }
                    }
                }
            }
        }
        let first = block.units.start - block.example * kept;
        for (m, sums) in sums.chunks(panels.max(1)).take(block.units.len()).enumerate() {
            let y = &mut block.y[(first + m) * pass.vectors..][pass.piece.vectors.clone()];
            for (y, sum) in y.iter_mut().zip(sums.as_flattened()) {
                *y = pass.factor.mul_add(*sum, *y);
            }
        }
    }
}

struct PushNarrow<'p, 'f, F, const MR: usize> {
    block: Block<'p, F>,
    left: &'f Factor<'f>,
    right: &'f Factor<'f>,
}

impl<F: Real, const MR: usize> Body for PushNarrow<'_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let mut block = self.block;
        let pass = block.pass;
        let (shape, kept) = (pass.shape, pass.kept);
        let (rows, cols, used) = (shape.rows, shape.cols, shape.lanes::<MR>());
        block.read_left(self.left);
        block.read_right(self.right, cols);
        let (table, _) = block.table.as_chunks::<MR>();
        let (step, wide) = (apart(rows), shape.vectors.next_multiple_of(MR));
        block.sums.fill(F::ZERO);
        for from in (0..rows).step_by(KC) {
            let len = (rows - from).min(KC);
            if pass.cancel.load(Ordering::Relaxed) {
                return;
            }
            for p in 0..shape.panels::<MR>() {
                let lanes = &table[p * rows + from..][..len];
                for s in 0..block.units.len().div_ceil(NR) {
                    let tile = chain_apart(lanes, six(block.left, step, s * NR, from, len));
                    for (j, r) in (0..NR).flat_map(|j| (0..kept).map(move |r| (j, r))) {
                        let unit = (s * NR + j) * kept + r;
                        let right = &block.right[unit * cols..][..cols];
                        let sums = &mut block.sums[unit * wide..][..wide];
                        let (mut k, mut c) = (p * MR / cols, p * MR % cols);
                        for i in 0..MR.min(used - p * MR) {
                            sums[k] = tile[j][i].mul_add(right[c], sums[k]);
                            c += 1;
                            if c == cols {
                                (k, c) = (k + 1, 0);
                            }
                        }
                    }
                }
            }
        }
        for (m, unit) in block.units.clone().enumerate() {
            let n = place(unit, self.left.positions())[0] - block.example;
            for r in 0..kept {
                let y = &mut block.y[(n * kept + r) * pass.vectors..][pass.piece.vectors.clone()];
                for (y, sum) in y.iter_mut().zip(&block.sums[(m * kept + r) * wide..]) {
                    *y = pass.factor.mul_add(*sum, *y);
                }
            }
        }
    }
}
