//! A macro tile: every leaf of a pass added to its accumulators, in order.
//!
//! Loops are numbered from the outside: 1 groups of leaves, 2 blocks of columns, 3 chain blocks, 4 row panels `p`, 5 column panels `q`,
//! 6 output pairs, 7 leaves of the group; the register tile is `body.rs`. Loops 2 to 5 may change order without a change of bits.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use super::body::{add, add_product, add_weighted, chain};
use super::groups::{Group, Operand, Step};
use super::lookup::{self, Merged, PlainRows};
use super::positions;
use super::{KC, NR, Packed, Real, Tile, prefetch};

/// Column panels that a wide group keeps in cache while the row panels pass.
pub const WIDE_COLS: usize = 16;

/// What a macro tile reads.
pub struct Sweep<'a, F, const MR: usize> {
    /// The pass.
    pub groups: &'a [Group],
    /// Row panels by node.
    pub rows: &'a [Packed<'a, F, MR>],
    /// Column panels by node.
    pub cols: &'a [Packed<'a, F, NR>],
    /// Merged look-ups (rows, columns).
    pub merged: &'a [(&'a Merged<F>, &'a Merged<F>)],
    /// Plain rows (rows, columns).
    pub plain: &'a [(&'a PlainRows<F>, &'a PlainRows<F>)],
    /// Row panels of this macro tile.
    pub p: Range<usize>,
    /// Column panels of this macro tile.
    pub q: Range<usize>,
    /// Rows and columns are the same examples: register tiles wholly above the diagonal are left out.
    pub triangle: bool,
    /// Only register tiles that meet the diagonal are wanted.
    pub diagonal_only: bool,
    /// Examples of the block (rows, columns); lanes beyond are padding.
    pub examples: (usize, usize),
    /// Output pairs `(r, s)`, in the order of the accumulators.
    pub pairs: &'a [(usize, usize)],
    /// Set when the caller wants to stop.
    pub cancel: &'a AtomicBool,
}

impl<F: Real, const MR: usize> Sweep<'_, F, MR> {
    /// Whether register tile `(p, q)` is wanted.
    #[inline(always)]
    pub fn wanted(&self, p: usize, q: usize) -> bool {
        let below = MR * p + MR > NR * q;
        let above = NR * q + NR > MR * p;
        (!self.triangle || below) && (!self.diagonal_only || (below && above))
    }

    #[inline(always)]
    pub(super) fn at(&self, p: usize, q: usize) -> usize {
        ((p - self.p.start) * self.q.len() + q - self.q.start) * self.pairs.len()
    }

    pub(super) fn stopped(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Run the pass over one macro tile. `REGISTERS`: two Gram tiles fit the registers at a time (they do not with AVX2, which falls to
/// half its rate if they are asked for). `acc` holds `p x q x pairs` register tiles, `partial` none or as many for each slot.
#[inline(always)]
pub(super) fn run<F: Real, const MR: usize, const REGISTERS: bool>(
    job: &Sweep<'_, F, MR>,
    acc: &mut [Tile<F, MR>],
    partial: &mut [Tile<F, MR>],
    scratch: &mut [Tile<F, MR>],
) {
    for group in job.groups {
        match group {
            Group::Narrow(steps) => narrow::<F, MR, REGISTERS>(job, steps, acc),
            Group::Wide { nodes, steps } => wide(job, nodes, steps, acc, scratch),
            Group::Slice { node, slot, first } => {
                slice(job, *node, *first, &mut partial[slot * acc.len()..][..acc.len()]);
            }
            Group::Finish { factors, weight } => {
                finish(F::from_f64(*weight), acc, partial, *factors);
            }
            Group::Positions(terms) => positions::add_positions(job, terms, acc, scratch),
            Group::Match(term) => lookup::add_match(job, term, acc),
            Group::Cross(term) => lookup::add_cross(job, term, acc),
        }
        if job.stopped() {
            return;
        }
    }
}

/// An operand of a narrow leaf for one row panel.
enum Ready<'a, F, const MR: usize> {
    /// This row panel, the next one, and all column panels of a node.
    Gram { row: &'a [[F; MR]], next: &'a [[F; MR]], cols: &'a [[F; NR]], slot: usize, again: bool },
    /// Slot.
    Kept(usize),
}

impl<'a, F: Real, const MR: usize> Ready<'a, F, MR> {
    #[inline(always)]
    fn new(job: &Sweep<'a, F, MR>, operand: Operand, p: usize) -> Self {
        match operand {
            Operand::Gram { node, slot, again } => {
                let (row, cols) = (job.rows[node].panel(p, 0), job.cols[node].all());
                let next = job.rows[node].panel((p + 1).min(job.p.end - 1), 0);
                Self::Gram { row, next, cols, slot, again }
            }
            Operand::Kept(slot) => Self::Kept(slot),
        }
    }

    /// Ask for a share of the next row panel.
    #[inline(always)]
    fn ask(&self, index: usize, parts: usize) {
        if let Self::Gram { next, .. } = self {
            prefetch::part(next, index, parts);
        }
    }

    /// A Gram tile that stays in registers where there are enough for two.
    #[inline(always)]
    fn in_registers(&self, q: usize, kept: &mut [Tile<F, MR>; Group::SLOTS]) -> Tile<F, MR> {
        match *self {
            Self::Gram { row, cols, slot, again, .. } => {
                let tile = chain(row, &cols[q * row.len()..][..row.len()]);
                if again {
                    kept[slot] = tile;
                }
                tile
            }
            Self::Kept(slot) => kept[slot],
        }
    }

    /// A Gram tile in its slot, which is memory.
    #[inline(always)]
    fn in_slot(&self, q: usize, kept: &mut [Tile<F, MR>; Group::SLOTS]) -> usize {
        match *self {
            Self::Gram { row, cols, slot, .. } => {
                kept[slot] = chain(row, &cols[q * row.len()..][..row.len()]);
                slot
            }
            Self::Kept(slot) => slot,
        }
    }
}

#[inline(always)]
fn narrow<F: Real, const MR: usize, const REGISTERS: bool>(
    job: &Sweep<'_, F, MR>,
    steps: &[Step],
    acc: &mut [Tile<F, MR>],
) {
    let mut kept = [[[F::ZERO; MR]; NR]; Group::SLOTS];
    let mut ready = Vec::with_capacity(steps.len());
    for p in job.p.clone() {
        ready.clear();
        for step in steps {
            let (a, b) = (Ready::new(job, step.a, p), step.b.map(|b| Ready::new(job, b, p)));
            ready.push((a, b, F::from_f64(step.weight)));
        }
        for q in job.q.clone() {
            if !job.wanted(p, q) {
                continue;
            }
            let acc = &mut acc[job.at(p, q)];
            if REGISTERS {
                let mut sum = *acc;
                for (a, b, weight) in &ready {
                    a.ask(q - job.q.start, job.q.len());
                    let a = a.in_registers(q, &mut kept);
                    match b {
                        None => add_weighted(&mut sum, *weight, &a),
                        Some(b) => {
                            b.ask(q - job.q.start, job.q.len());
                            let b = b.in_registers(q, &mut kept);
                            add_product(&mut sum, *weight, &a, &b);
                        }
                    }
                }
                *acc = sum;
            } else {
                for (a, b, weight) in &ready {
                    let a = a.in_slot(q, &mut kept);
                    match b {
                        None => add_weighted(acc, *weight, &kept[a]),
                        Some(b) => {
                            let b = b.in_slot(q, &mut kept);
                            add_product(acc, *weight, &kept[a], &kept[b]);
                        }
                    }
                }
            }
        }
        if job.stopped() {
            return;
        }
    }
}

#[inline(always)]
fn wide<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    nodes: &[usize],
    steps: &[Step],
    acc: &mut [Tile<F, MR>],
    scratch: &mut [Tile<F, MR>],
) {
    let tiles = job.p.len() * WIDE_COLS;
    let mut first = job.q.start;
    while first < job.q.end {
        let block = first..(first + WIDE_COLS).min(job.q.end);
        for (slot, &node) in nodes.iter().enumerate() {
            let grams = &mut scratch[slot * tiles..][..tiles];
            let at = |p: usize, q: usize| (p - job.p.start) * WIDE_COLS + q - block.start;
            grams_by_blocks(job, node, (0, 0), &block, grams, at, true);
            if job.stopped() {
                return;
            }
        }
        for p in job.p.clone() {
            for q in block.clone() {
                if !job.wanted(p, q) {
                    continue;
                }
                let acc = &mut acc[job.at(p, q)];
                let cell = (p - job.p.start) * WIDE_COLS + q - block.start;
                let tile = |operand| match operand {
                    Operand::Kept(slot) | Operand::Gram { slot, .. } => {
                        &scratch[slot * tiles + cell]
                    }
                };
                for step in steps {
                    let weight = F::from_f64(step.weight);
                    match step.b {
                        None => add_weighted(acc, weight, tile(step.a)),
                        Some(b) => add_product(acc, weight, tile(step.a), tile(b)),
                    }
                }
            }
        }
        first = block.end;
    }
}

/// Add the chains of a node's features to `grams`, chain block by chain block; `fresh` starts from nothing.
#[inline(always)]
fn grams_by_blocks<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    node: usize,
    units: (usize, usize),
    block: &Range<usize>,
    grams: &mut [Tile<F, MR>],
    at: impl Fn(usize, usize) -> usize,
    fresh: bool,
) {
    for ks in chain_blocks(job.rows[node].k()) {
        let fresh = fresh && ks.start == 0;
        grams_of_block(job, (node, &ks), units, block, grams, &at, fresh);
    }
}

/// The features of each chain; one empty chain if there are none.
fn chain_blocks(k: usize) -> impl Iterator<Item = Range<usize>> {
    (0..k.max(1)).step_by(KC).map(move |k0| k0..(k0 + KC).min(k))
}

/// Add one chain block to `grams`. The next row panel is asked for while the columns pass this one.
#[inline(always)]
fn grams_of_block<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    (node, ks): (usize, &Range<usize>),
    (row_unit, col_unit): (usize, usize),
    block: &Range<usize>,
    grams: &mut [Tile<F, MR>],
    at: &impl Fn(usize, usize) -> usize,
    fresh: bool,
) {
    for p in job.p.clone() {
        let row = &job.rows[node].panel(p, row_unit)[ks.clone()];
        let next = &job.rows[node].panel((p + 1).min(job.p.end - 1), row_unit)[ks.clone()];
        for (index, q) in block.clone().enumerate() {
            if !job.wanted(p, q) {
                continue;
            }
            prefetch::part(next, index, block.len());
            let sum = chain(row, &job.cols[node].panel(q, col_unit)[ks.clone()]);
            let gram = &mut grams[at(p, q)];
            if fresh {
                *gram = sum;
            } else {
                add(gram, &sum);
            }
        }
    }
}

/// Chain blocks are outermost: the panels of a slice are read once, the sums pass through the second-level cache.
#[inline(always)]
fn slice<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    node: usize,
    fresh: bool,
    partial: &mut [Tile<F, MR>],
) {
    for ks in chain_blocks(job.rows[node].k()) {
        for first in job.q.clone().step_by(WIDE_COLS) {
            let block = first..(first + WIDE_COLS).min(job.q.end);
            for (pair, &units) in job.pairs.iter().enumerate() {
                let at = |p: usize, q: usize| job.at(p, q) + pair;
                let fresh = fresh && ks.start == 0;
                grams_of_block(job, (node, &ks), units, &block, partial, &at, fresh);
                if job.stopped() {
                    return;
                }
            }
        }
    }
}

#[inline(always)]
fn finish<F: Real, const MR: usize>(
    weight: F,
    acc: &mut [Tile<F, MR>],
    partial: &[Tile<F, MR>],
    factors: usize,
) {
    let (a, b) = partial.split_at(acc.len());
    if factors == 1 {
        for (acc, a) in acc.iter_mut().zip(a) {
            add_weighted(acc, weight, a);
        }
    } else {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            add_product(acc, weight, a, b);
        }
    }
}
