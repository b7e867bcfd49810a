//! Plan B: the table `sum_t acts_t (x) cots_t` of each example, straight into panels.
//!
//! Feature `k = (g d_in + i) d_out + o`. Each element is one fused chain over positions, ascending, in blocks of [`KC`]. Examples
//! are lanes here too, so the two sides of the kernel get the same bits.

use core::ops::Range;

use super::pack::{PanelShape, pack_panels};
use super::{KC, MR_F32, NR, Real, Source};

/// Examples of one task: whole panels of either width.
pub const EXPAND_BLOCK: usize = 48;
/// Columns of the table that are summed at a time: with the lanes of a row panel the shape of the register tile.
const OUT: usize = NR;

/// Features of a table that are summed before they are copied into panels: 32 KiB of them.
pub const EXPAND_FEATURES: usize = 512;

/// The two factors of a leaf and their sizes.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    /// Left factor, `k = d_in`.
    pub acts: Source<'a>,
    /// Right factor, `k = d_out`.
    pub cots: Source<'a>,
    /// Output rows of the expanded leaf.
    pub outputs: usize,
    /// Blocks.
    pub groups: usize,
    /// Positions of the longer side.
    pub positions: usize,
    /// Features of the left factor.
    pub d_in: usize,
    /// Features of the right factor.
    pub d_out: usize,
}

impl Table<'_> {
    /// Features of the expanded leaf.
    pub fn k(&self) -> usize {
        self.groups * self.d_in * self.d_out
    }
}

/// Fill whole panels of width `W` with features `ks` of the examples `first .. min(first + EXPAND_BLOCK, end)`.
#[inline(always)]
pub(super) fn expand<F: Real, const LANES: usize, const W: usize>(
    table: &Table<'_>,
    (first, end): (usize, usize),
    ks: Range<usize>,
    panels: &mut [F],
) {
    let mut work = Work::<F, LANES>::new(table);
    let mut wide = vec![[F::ZERO; LANES]; EXPAND_FEATURES.max(table.d_out)];
    let (panels, _) = panels.as_chunks_mut::<W>();
    let unit = ks.len().max(1);
    for r in 0..table.outputs {
        for block in (0..EXPAND_BLOCK).step_by(LANES) {
            work.fill(table, r, (first + block, end));
            for part in rows_of_table(&ks, table.d_out) {
                let wide = &mut wide[..part.len()];
                work.contract(table, &part, wide);
                for panel in block / W..(block + LANES).div_ceil(W) {
                    let at = (panel * table.outputs + r) * unit + part.start - ks.start;
                    if let Some(to) = panels.get_mut(at..at + part.len()) {
                        copy_lanes(to, panel * W, wide, block);
                    }
                }
            }
        }
    }
}

/// Features `ks` cut where rows of the table begin.
fn rows_of_table(ks: &Range<usize>, d_out: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let step = (EXPAND_FEATURES / d_out.max(1)).max(1) * d_out.max(1);
    let Range { start, end } = *ks;
    let parts = start / step..end.div_ceil(step);
    parts.map(move |part| (part * step).max(start)..((part + 1) * step).min(end))
}

/// Copy the examples that a panel (whose first is `to_first`) and the lanes (whose first is `from_first`) share.
#[inline(always)]
fn copy_lanes<F: Real, const LANES: usize, const W: usize>(
    to: &mut [[F; W]],
    to_first: usize,
    from: &[[F; LANES]],
    from_first: usize,
) {
    let start = to_first.max(from_first);
    let length = (to_first + W).min(from_first + LANES) - start;
    let at = (start - to_first, start - from_first);
    match length {
        2 => copy_run::<F, LANES, W, 2>(to, from, at),
        4 => copy_run::<F, LANES, W, 4>(to, from, at),
        6 => copy_run::<F, LANES, W, 6>(to, from, at),
        8 => copy_run::<F, LANES, W, 8>(to, from, at),
        16 => copy_run::<F, LANES, W, 16>(to, from, at),
        _ => (0..length).for_each(|x| copy_run::<F, LANES, W, 1>(to, from, (at.0 + x, at.1 + x))),
    }
}

/// `RUN` lanes of every feature: their number is known, so that they move together.
#[inline(always)]
fn copy_run<F: Real, const LANES: usize, const W: usize, const RUN: usize>(
    to: &mut [[F; W]],
    from: &[[F; LANES]],
    (to_lane, from_lane): (usize, usize),
) {
    for (to, from) in to.iter_mut().zip(from) {
        to[to_lane..to_lane + RUN].copy_from_slice(&from[from_lane..from_lane + RUN]);
    }
}

/// Factors of the examples of one row panel: `acts[g][i][t]`, `cots[g][o / OUT][t][o % OUT]`.
struct Work<F, const LANES: usize> {
    acts: Vec<[F; LANES]>,
    cots: Vec<[F; LANES]>,
    packed: Vec<F>,
}

impl<F: Real, const LANES: usize> Work<F, LANES> {
    fn new(table: &Table<'_>) -> Self {
        let positions = table.groups * table.positions;
        let padded = table.d_out.next_multiple_of(OUT);
        let widest = table.d_in.max(table.d_out);
        Self {
            acts: vec![[F::ZERO; LANES]; positions * table.d_in],
            cots: vec![[F::ZERO; LANES]; positions * padded],
            packed: vec![F::ZERO; positions * widest * LANES],
        }
    }

    #[inline(always)]
    fn fill(&mut self, table: &Table<'_>, r: usize, examples: (usize, usize)) {
        let (positions, groups) = (table.positions, table.groups);
        let padded = table.d_out.next_multiple_of(OUT);
        self.pack(&table.acts, r, (groups, positions, table.d_in), examples);
        let (packed, _) = self.packed.as_chunks::<LANES>();
        for g in 0..groups {
            for i in 0..table.d_in {
                for t in 0..positions {
                    self.acts[(g * table.d_in + i) * positions + t] =
                        packed[(g * positions + t) * table.d_in + i];
                }
            }
        }
        self.pack(&table.cots, r, (groups, positions, table.d_out), examples);
        let (packed, _) = self.packed.as_chunks::<LANES>();
        for g in 0..groups {
            for t in 0..positions {
                for o in 0..table.d_out {
                    let chunk = g * padded * positions + (o / OUT * positions + t) * OUT;
                    self.cots[chunk + o % OUT] = packed[(g * positions + t) * table.d_out + o];
                }
            }
        }
    }

    fn pack(
        &mut self,
        source: &Source<'_>,
        r: usize,
        (groups, positions, k): (usize, usize, usize),
        examples: (usize, usize),
    ) {
        let shape = PanelShape { outputs: 1, groups, positions, k };
        let room = &mut self.packed[..shape.elements(LANES)];
        pack_panels::<F, LANES>(source, examples, shape, (r, 0..k), room);
    }

    #[inline(always)]
    fn contract(&self, table: &Table<'_>, ks: &Range<usize>, to: &mut [[F; LANES]]) {
        let (positions, padded) = (table.positions, table.d_out.next_multiple_of(OUT));
        let (first, last) = (ks.start / table.d_out, ks.end.div_ceil(table.d_out));
        for chunk in 0..padded / OUT {
            for gi in first..last {
                let g = gi / table.d_in;
                let acts = &self.acts[gi * positions..][..positions];
                let cots = &self.cots[g * padded * positions + chunk * positions * OUT..];
                let (cots, _) = cots[..positions * OUT].as_chunks::<OUT>();
                let sum = table_row(acts, cots);
                for (x, sum) in sum.into_iter().enumerate() {
                    let o = chunk * OUT + x;
                    let k = gi * table.d_out + o;
                    if o < table.d_out && ks.contains(&k) {
                        to[k - ks.start] = sum;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn table_row<F: Real, const LANES: usize>(
    acts: &[[F; LANES]],
    cots: &[[[F; LANES]; OUT]],
) -> [[F; LANES]; OUT] {
    let mut total = row_chain(&acts[..acts.len().min(KC)], &cots[..cots.len().min(KC)]);
    for t0 in (KC..acts.len()).step_by(KC) {
        let end = (t0 + KC).min(acts.len());
        let sum = row_chain(&acts[t0..end], &cots[t0..end]);
        for x in 0..OUT {
            for lane in 0..LANES {
                total[x][lane] = total[x][lane].plus(sum[x][lane]);
            }
        }
    }
    total
}

#[inline(always)]
fn row_chain<F: Real, const LANES: usize>(
    acts: &[[F; LANES]],
    cots: &[[[F; LANES]; OUT]],
) -> [[F; LANES]; OUT] {
    let mut sum = [[F::ZERO; LANES]; OUT];
    for (act, cot) in acts.iter().zip(cots) {
        for x in 0..OUT {
            for lane in 0..LANES {
                sum[x][lane] = act[lane].mul_add(cot[x][lane], sum[x][lane]);
            }
        }
    }
    sum
}

const _: () = assert!(EXPAND_BLOCK.is_multiple_of(NR) && EXPAND_BLOCK.is_multiple_of(MR_F32));
