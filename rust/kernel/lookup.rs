//! Leaves whose left factor is one-hot: look-ups, and their cross terms with a matrix use of the same table.
//!
//! Rows of one example that meet the same table row are added first (position ascending); a pair of examples then meets only at the ids
//! that both have, ascending: `sum_id <e_n[id], e_m[id]>`. The table is never expanded, and ids that do not meet cost nothing.

use super::body::{LANES, dot};
use super::{NR, Real, Source, Sweep, Tile, View};

/// Examples of one chunk of merged look-ups.
pub const CHUNK: usize = 64;

/// The look-ups of one side, by example: ascending ids with their summed rows.
#[derive(Debug)]
pub struct Merged<F> {
    chunks: Vec<MergedChunk<F>>,
    outputs: usize,
    vectors: usize,
}

/// The look-ups of [`CHUNK`] examples.
#[derive(Debug)]
pub struct MergedChunk<F> {
    starts: Vec<usize>,
    ids: Vec<usize>,
    rows: Vec<[F; LANES]>,
}

impl<F: Real> Merged<F> {
    /// Put chunks together, in order.
    pub fn new(chunks: Vec<MergedChunk<F>>, outputs: usize, k: usize) -> Self {
        Self { chunks, outputs, vectors: k.div_ceil(LANES) }
    }

    fn ids(&self, n: usize) -> (&[usize], usize) {
        let chunk = &self.chunks[n / CHUNK];
        let (start, end) = (chunk.starts[n % CHUNK], chunk.starts[n % CHUNK + 1]);
        (&chunk.ids[start..end], start)
    }

    fn row(&self, n: usize, entry: usize, r: usize) -> &[[F; LANES]] {
        let at = (entry * self.outputs + r) * self.vectors;
        &self.chunks[n / CHUNK].rows[at..][..self.vectors]
    }
}

impl<F: Real> MergedChunk<F> {
    /// Merge the look-ups of the examples `first .. end`.
    pub fn build(
        ids: &[View<'_>],
        cots: &Source<'_>,
        (outputs, k): (usize, usize),
        (first, end): (usize, usize),
    ) -> Self {
        let vectors = k.div_ceil(LANES);
        let mut this = Self { starts: vec![0], ids: Vec::new(), rows: Vec::new() };
        let mut row = vec![F::ZERO; k];
        for n in first..end {
            let mut places = places(ids, n);
            places.sort_unstable();
            for run in places.chunk_by(|a, b| a.0 == b.0) {
                this.ids.push(run[0].0);
                for r in 0..outputs {
                    let start = this.rows.len();
                    this.rows.resize(start + vectors, [F::ZERO; LANES]);
                    let sum = this.rows[start..].as_flattened_mut();
                    for &(_, t) in run {
                        cots.row([n, r, 0, t], 0, &mut row);
                        for (sum, value) in sum.iter_mut().zip(&row) {
                            *sum = sum.plus(*value);
                        }
                    }
                }
            }
            this.starts.push(this.ids.len());
        }
        this
    }
}

/// `(id, position)` of every look-up of example `n` that is not "none".
fn places(ids: &[View<'_>], n: usize) -> Vec<(usize, usize)> {
    let positions = ids.iter().flat_map(|view| (0..view.shape()[3]).map(move |t| (view, t)));
    positions
        .enumerate()
        .filter_map(|(at, (view, t))| {
            usize::try_from(view.integer([n, 0, 0, t], 0)).ok().map(|id| (id, at))
        })
        .collect()
}

/// Rows of a matrix use of a tied table, example by example: `[n][r][t][k]`, padded to whole lanes.
#[derive(Debug)]
pub struct PlainRows<F> {
    rows: Vec<[F; LANES]>,
    outputs: usize,
    positions: usize,
    vectors: usize,
}

impl<F: Real> PlainRows<F> {
    /// Read the examples `first .. end`.
    pub fn build(
        source: &Source<'_>,
        (outputs, positions, k): (usize, usize, usize),
        (first, end): (usize, usize),
    ) -> Self {
        let vectors = k.div_ceil(LANES);
        let count = (end - first) * outputs * positions;
        let mut rows = vec![[F::ZERO; LANES]; count * vectors];
        for (unit, row) in rows.chunks_mut(vectors.max(1)).enumerate() {
            let (nr, t) = (unit / positions, unit % positions);
            let at = [first + nr / outputs, nr % outputs, 0, t];
            source.row(at, 0, &mut row.as_flattened_mut()[..k]);
        }
        Self { rows, outputs, positions, vectors }
    }

    fn row(&self, n: usize, r: usize, t: usize) -> &[[F; LANES]] {
        let r = if self.outputs == 1 { 0 } else { r };
        let unit = (n * self.outputs + r) * self.positions + t;
        &self.rows[unit * self.vectors..][..self.vectors]
    }
}

/// A look-up leaf.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Index into the merged look-ups.
    pub merged: usize,
    /// Sum over this many outputs instead of the kernel's output pairs.
    pub trace: Option<usize>,
    /// Factor on the leaf's kernel.
    pub weight: f64,
}

/// The cross terms of a table that is looked up and multiplied: `sum_{id, t} table_m[t][id] <e_n[id], rows_m[t]>` and its mirror image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cross {
    /// Index into the merged look-ups.
    pub merged: usize,
    /// Plain rows of the factor that the ids index.
    pub table: usize,
    /// Plain rows of the other factor.
    pub rows: usize,
    /// Sum over this many outputs instead of the kernel's output pairs.
    pub trace: Option<usize>,
    /// Factor on the leaf's kernel.
    pub weight: f64,
}

#[inline(always)]
pub(super) fn add_match<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    term: &Match,
    acc: &mut [Tile<F, MR>],
) {
    let (rows, cols) = job.merged[term.merged];
    let weight = F::from_f64(term.weight);
    let mut met = Vec::new();
    for_each_pair(job, acc, |n, m, pair, (r, s)| {
        if pair == 0 {
            meet(rows.ids(n), cols.ids(m), &mut met);
        }
        let mut sum = F::ZERO;
        for x in 0..term.trace.unwrap_or(1) {
            let (r, s) = if term.trace.is_some() { (x, x) } else { (r, s) };
            for &(a, b) in &met {
                sum = sum.plus(dot(rows.row(n, a, r), cols.row(m, b, s)));
            }
        }
        weight.times(sum)
    });
}

/// Entries `(a, b)` of the ids that both lists have, ascending.
fn meet((a, a0): (&[usize], usize), (b, b0): (&[usize], usize), met: &mut Vec<(usize, usize)>) {
    met.clear();
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            met.push((a0 + i, b0 + j));
        }
        let (left, right) = (a[i], b[j]);
        i += usize::from(left <= right);
        j += usize::from(right <= left);
    }
}

#[inline(always)]
pub(super) fn add_cross<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    term: &Cross,
    acc: &mut [Tile<F, MR>],
) {
    let (row_ids, col_ids) = job.merged[term.merged];
    let ((row_table, col_table), (row_rows, col_rows)) =
        (job.plain[term.table], job.plain[term.rows]);
    let weight = F::from_f64(term.weight);
    for_each_pair(job, acc, |n, m, _, (r, s)| {
        let mut sum = F::ZERO;
        for x in 0..term.trace.unwrap_or(1) {
            let (r, s) = if term.trace.is_some() { (x, x) } else { (r, s) };
            let there = half_cross((row_ids, n, r), (col_table, col_rows, m, s));
            let back = half_cross((col_ids, m, s), (row_table, row_rows, n, r));
            sum = sum.plus(there.plus(back));
        }
        weight.times(sum)
    });
}

#[inline(always)]
fn half_cross<F: Real>(
    (merged, n, r): (&Merged<F>, usize, usize),
    (table, rows, m, s): (&PlainRows<F>, &PlainRows<F>, usize, usize),
) -> F {
    let (ids, start) = merged.ids(n);
    let mut sum = F::ZERO;
    for (entry, &id) in ids.iter().enumerate() {
        let own = merged.row(n, start + entry, r);
        for t in 0..table.positions {
            let coefficient = table.row(m, s, t).as_flattened()[id];
            sum = coefficient.mul_add(dot(own, rows.row(m, s, t)), sum);
        }
    }
    sum
}

/// Add `value(n, m, pair, (r, s))` to every wanted entry; examples are numbered from the first of the block.
#[inline(always)]
fn for_each_pair<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    acc: &mut [Tile<F, MR>],
    mut value: impl FnMut(usize, usize, usize, (usize, usize)) -> F,
) {
    use core::sync::atomic::Ordering;
    for p in job.p.clone() {
        for q in job.q.clone() {
            if !job.wanted(p, q) {
                continue;
            }
            let at = job.at(p, q);
            for i in 0..MR.min(job.examples.0.saturating_sub(p * MR)) {
                for j in 0..NR.min(job.examples.1.saturating_sub(q * NR)) {
                    for (pair, &outputs) in job.pairs.iter().enumerate() {
                        let to = &mut acc[at + pair][j][i];
                        *to = to.plus(value(p * MR + i, q * NR + j, pair, outputs));
                    }
                }
            }
            if job.cancel.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}
