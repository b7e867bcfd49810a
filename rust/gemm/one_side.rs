//! Contraction D: the gradients of a column example expanded, those of the row examples not.
//!
//! For a column example `m`, with all row examples `n` of a block at once:
//!
//! ```text
//! table[(s, o), i]     = sum_t  cots_m[s, t, o] acts_m[t, i]
//! seen[(n, t), (s, o)] = sum_i  acts_n[t, i] table[(s, o), i]
//! acc[(n, r), (m, s)] += weight sum_(t, o)  cots_n[r, t, o] seen[(n, t), (s, o)]
//! ```

use core::ops::Range;

use super::terms::{add, parts};
use super::{Block, Engine, Worker};
use crate::blas::Rows;
use crate::contraction::{Factored, OneSide};
use crate::error::Error;
use crate::kernel::Real;

/// Elements of the tables that are multiplied at a time: they stay in a second-level cache.
const TABLES: usize = 1 << 18;

/// Elements that a worker keeps for a leaf, in blocks of `side` examples.
pub(super) fn elements(leaf: &OneSide<'_, '_>, side: usize) -> u128 {
    let wide = |x: usize| x as u128;
    let (t, r, side) = (wide(leaf.positions), wide(leaf.outputs), wide(side));
    let (d_in, d_out) = (wide(leaf.d_in), wide(leaf.d_out));
    let tables = wide(outputs_at_once(leaf)) * d_out;
    let example = t * (d_in + r * d_out);
    let rows = side * (example + t * r * d_out);
    let column = 2 * example + tables * (d_in + side * t) + r * r;
    // The vectors of a check, in float64.
    let check = 2 * (d_in.max(t * d_out) + tables.max(r) + 2 * (side * t).max(tables));
    rows + column + check
}

/// Output rows whose tables are multiplied at a time.
fn outputs_at_once(leaf: &OneSide<'_, '_>) -> usize {
    (TABLES / (leaf.d_in * leaf.d_out)).clamp(1, leaf.outputs)
}

/// The factors of some examples in one block `g` of the leaf.
struct Packed<F> {
    /// `[n][t][i]`
    acts: Vec<F>,
    /// `[n][r][t][o]`
    cots: Vec<F>,
}

impl<F: Real> Packed<F> {
    fn new(
        leaf: &OneSide<'_, '_>,
        side: &Factored<'_, '_>,
        examples: &Range<usize>,
        g: usize,
    ) -> Self {
        let (t, r) = (leaf.positions, leaf.outputs);
        let mut acts = vec![F::ZERO; examples.len() * t * leaf.d_in];
        let mut cots = vec![F::ZERO; examples.len() * r * t * leaf.d_out];
        for (at, row) in acts.chunks_exact_mut(leaf.d_in).enumerate() {
            side.acts.row([examples.start + at / t, 0, g, at % t], 0, row);
        }
        for (at, row) in cots.chunks_exact_mut(leaf.d_out).enumerate() {
            side.cots.row([examples.start + at / (r * t), at / t % r, g, at % t], 0, row);
        }
        Self { acts, cots }
    }
}

impl<F: Real> Engine<'_, F> {
    /// Add a leaf to a block.
    pub(super) fn one_side(
        &self,
        worker: &mut Worker<F>,
        block: &Block,
        leaf: &OneSide<'_, '_>,
    ) -> Result<(), Error> {
        let (r, k) = (leaf.outputs, leaf.positions * leaf.d_out);
        let (width, row) = (block.cols.len() * r, leaf.positions * leaf.d_in);
        for g in 0..leaf.groups {
            let rows = Packed::new(leaf, &leaf.rows, &block.rows, g);
            for (col, m) in block.cols.clone().enumerate() {
                let column = Packed::new(leaf, &leaf.cols, &(m..m + 1), g);
                let first = if block.diagonal { col } else { 0 };
                let mut facing = core::mem::take(&mut worker.right);
                self.facing(worker, leaf, (&rows.acts[first * row..], &column), &mut facing)?;
                let pairs = rows.cots[first * r * k..].chunks_exact(r * k);
                for (n, (cots, facing)) in (first..).zip(pairs.zip(facing.chunks_exact(r * k))) {
                    let sides = (Rows::new(cots, r, k, k), Rows::new(facing, r, k, k));
                    self.checked(&mut worker.random, sides, &mut worker.gram)?;
                    for (s, line) in worker.gram.chunks_exact(r).enumerate() {
                        let to = &mut worker.acc[(n * r + s) * width + col * r..][..r];
                        add(to, leaf.weight, line);
                    }
                }
                worker.right = facing;
            }
        }
        Ok(())
    }

    /// What the row examples see of a column example: `[n][s][t][o]`.
    fn facing(
        &self,
        worker: &mut Worker<F>,
        leaf: &OneSide<'_, '_>,
        (rows, column): (&[F], &Packed<F>),
        facing: &mut Vec<F>,
    ) -> Result<(), Error> {
        let (t, d_in, d_out) = (leaf.positions, leaf.d_in, leaf.d_out);
        let lines = rows.len() / d_in;
        facing.resize(lines * leaf.outputs * d_out, F::ZERO);
        let acts = turned(&column.acts, t, d_in);
        for outputs in parts(&(0..leaf.outputs), outputs_at_once(leaf)) {
            let count = outputs.len() * d_out;
            let cots = &column.cots[outputs.start * t * d_out..outputs.end * t * d_out];
            let cots = cots.chunks_exact(t * d_out);
            let cots: Vec<F> = cots.flat_map(|cots| turned(cots, t, d_out)).collect();
            let Worker { other: table, left: seen, random, .. } = worker;
            let sides = (Rows::new(&cots, count, t, t), Rows::new(&acts, d_in, t, t));
            self.checked(random, sides, table)?;
            let sides = (Rows::new(rows, lines, d_in, d_in), Rows::new(table, count, d_in, d_in));
            self.checked(random, sides, seen)?;
            for (at, seen) in seen.chunks_exact(d_out).enumerate() {
                let (nt, s) = (at / outputs.len(), outputs.start + at % outputs.len());
                let to = ((nt / t * leaf.outputs + s) * t + nt % t) * d_out;
                facing[to..to + d_out].copy_from_slice(seen);
            }
        }
        Ok(())
    }
}

/// A matrix of `rows` rows of `k`, column by column.
fn turned<F: Real>(rows: &[F], count: usize, k: usize) -> Vec<F> {
    (0..k).flat_map(|i| (0..count).map(move |t| rows[t * k + i])).collect()
}
