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
    let mut wide = vec![[F::ZERO; LANES]; ks.len()];
    let (panels, _) = panels.as_chunks_mut::<W>();
    let unit = ks.len().max(1);
    for r in 0..table.outputs {
        for block in (0..EXPAND_BLOCK).step_by(LANES) {
            work.fill(table, r, (first + block, end));
            work.contract(table, &ks, &mut wide);
            for lane in 0..LANES {
                let example = block + lane;
                let at = ((example / W) * table.outputs + r) * unit;
                if at >= panels.len() {
                    break;
                }
                for (to, from) in panels[at..][..ks.len()].iter_mut().zip(&wide) {
                    to[example % W] = from[lane];
                }
            }
        }
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
