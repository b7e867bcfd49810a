//! Rows of examples into panels: `[panel][unit][k][W]`, lanes along examples, padded with +0.0.
//!
//! A *unit* is one `(output row, group, position)`. The same layout serves the side whose examples are lanes (`W = MR`) and the other
//! (`W = NR`).

use core::ops::Range;

use super::{Real, View};

/// One packed node.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a, F, const W: usize> {
    data: &'a [[F; W]],
    units: usize,
    k: usize,
}

impl<'a, F, const W: usize> Packed<'a, F, W> {
    /// Panels laid out by [`pack_panels`].
    ///
    /// # Panics
    /// If `data` is not a whole number of panels.
    pub fn new(data: &'a [F], units: usize, k: usize) -> Self {
        let (data, rest) = data.as_chunks::<W>();
        assert!(rest.is_empty() && data.len().is_multiple_of((units * k).max(1)), "broken panels");
        Self { data, units, k }
    }

    /// Features of a unit.
    pub fn k(&self) -> usize {
        self.k
    }

    /// All panels.
    #[inline(always)]
    pub(super) fn all(&self) -> &'a [[F; W]] {
        self.data
    }

    /// The features of one unit of one panel.
    #[inline(always)]
    pub(super) fn panel(&self, panel: usize, unit: usize) -> &'a [[F; W]] {
        &self.data[(panel * self.units + unit) * self.k..][..self.k]
    }
}

/// How the output rows of an array become those of the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Reduce<'a> {
    /// Keep them (an array without them serves every output).
    Keep,
    /// Take one.
    Select(usize),
    /// Chain them into the features: the trace of a leaf whose left factor is the same for all outputs.
    Fold,
    /// Let them be groups: the trace of a leaf whose left factor differs.
    Groups,
    /// Weighted sum over outputs, weights `(n, R)` of the examples of this side, added in float64 and rounded once.
    Contract(&'a [f64]),
}

/// An array and what becomes of its output rows.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The array.
    pub view: View<'a>,
    /// Its output rows.
    pub reduce: Reduce<'a>,
}

impl Part<'_> {
    fn outputs(&self) -> usize {
        self.view.shape()[1]
    }

    /// Features after the reduction.
    pub fn k(&self) -> usize {
        let fold = if matches!(self.reduce, Reduce::Fold) { self.outputs() } else { 1 };
        fold * self.view.shape()[4]
    }

    /// Read features `k0 ..` of one unit.
    pub fn row<F: Real>(&self, [n, r, g, t]: [usize; 4], k0: usize, out: &mut [F]) {
        let own = |r: usize| if self.outputs() == 1 { 0 } else { r };
        match self.reduce {
            Reduce::Keep => self.view.row([n, own(r), g, t], k0, out),
            Reduce::Select(output) => self.view.row([n, own(output), g, t], k0, out),
            Reduce::Groups => self.view.row([n, own(g), 0, t], k0, out),
            Reduce::Fold => self.folded([n, g, t], k0, out),
            Reduce::Contract(weights) => self.contracted([n, g, t], k0, weights, out),
        }
    }

    fn folded<F: Real>(&self, [n, g, t]: [usize; 3], mut k0: usize, mut out: &mut [F]) {
        let width = self.view.shape()[4];
        while !out.is_empty() {
            let (r, k) = (k0 / width, k0 % width);
            let (now, later) = out.split_at_mut((width - k).min(out.len()));
            self.view.row([n, r, g, t], k, now);
            k0 += now.len();
            out = later;
        }
    }

    fn contracted<F: Real>(
        &self,
        [n, g, t]: [usize; 3],
        k0: usize,
        weights: &[f64],
        out: &mut [F],
    ) {
        const BLOCK: usize = 64;
        let outputs = self.outputs();
        let mut value = [0.0_f64; BLOCK];
        for (b, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut sum = [0.0_f64; BLOCK];
            for r in 0..outputs {
                let weight = weights[n * outputs + r];
                self.view.row([n, r, g, t], k0 + b * BLOCK, &mut value[..out.len()]);
                for (sum, value) in sum.iter_mut().zip(value) {
                    *sum += weight * value;
                }
            }
            for (to, sum) in out.iter_mut().zip(sum) {
                *to = F::from_f64(sum);
            }
        }
    }
}

/// The rows of one node on one side of the kernel: arrays chained along their positions.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// The arrays, in order.
    pub parts: Vec<Part<'a>>,
}

impl<'a> Source<'a> {
    /// A node of one array.
    pub fn one(view: View<'a>, reduce: Reduce<'a>) -> Self {
        Self { parts: vec![Part { view, reduce }] }
    }

    /// Number of examples.
    pub fn examples(&self) -> usize {
        self.parts[0].view.shape()[0]
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.parts.iter().map(|part| part.view.shape()[3]).sum()
    }

    /// Read features `k0 ..` of one unit; positions and examples that the arrays lack are zero.
    pub fn row<F: Real>(&self, [n, r, g, mut t]: [usize; 4], k0: usize, out: &mut [F]) {
        if n < self.examples() {
            for part in &self.parts {
                let positions = part.view.shape()[3];
                if t < positions {
                    return part.row([n, r, g, t], k0, out);
                }
                t -= positions;
            }
        }
        out.fill(F::ZERO);
    }
}

/// Fill `panels` (whole panels of `units x ks.len() x W`) with features `ks` of the examples from `first` on and the output rows from
/// `r0` on; examples from `end` on are padding.
pub fn pack_panels<F: Real, const W: usize>(
    source: &Source<'_>,
    (first, end): (usize, usize),
    shape: PanelShape,
    (r0, ks): (usize, Range<usize>),
    panels: &mut [F],
) {
    // Long reads follow one another in memory; a short one need not clear room for a long one.
    match ks.len() {
        0..=32 => pack_by::<F, W, 32>(source, (first, end), shape, (r0, ks), panels),
        33..=64 => pack_by::<F, W, 64>(source, (first, end), shape, (r0, ks), panels),
        _ => pack_by::<F, W, 256>(source, (first, end), shape, (r0, ks), panels),
    }
}

fn pack_by<F: Real, const W: usize, const BLOCK: usize>(
    source: &Source<'_>,
    (first, end): (usize, usize),
    shape: PanelShape,
    (r0, ks): (usize, Range<usize>),
    panels: &mut [F],
) {
    let mut rows = [[F::ZERO; BLOCK]; W];
    let units = shape.units();
    let (panels, _) = panels.as_chunks_mut::<W>();
    for (index, unit) in panels.chunks_mut(ks.len().max(1)).enumerate() {
        let (panel, at) = (index / units, shape.unit(index % units));
        for (b, block) in unit.chunks_mut(BLOCK).enumerate() {
            for (lane, row) in rows.iter_mut().enumerate() {
                let n = first + panel * W + lane;
                let row = &mut row[..block.len()];
                if n < end {
                    source.row([n, r0 + at[0], at[1], at[2]], ks.start + b * BLOCK, row);
                } else {
                    row.fill(F::ZERO);
                }
            }
            for (k, to) in block.iter_mut().enumerate() {
                for lane in 0..W {
                    to[lane] = rows[lane][k];
                }
            }
        }
    }
}

/// The units and features of a packed node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelShape {
    /// Output rows.
    pub outputs: usize,
    /// Groups.
    pub groups: usize,
    /// Positions.
    pub positions: usize,
    /// Features.
    pub k: usize,
}

impl PanelShape {
    /// Units of one panel.
    pub fn units(&self) -> usize {
        self.outputs * self.groups * self.positions
    }

    /// Elements of one panel of `width` lanes.
    pub fn elements(&self, width: usize) -> usize {
        self.units() * self.k * width
    }

    fn unit(&self, unit: usize) -> [usize; 3] {
        let (rg, t) = (unit / self.positions, unit % self.positions);
        [rg / self.groups, rg % self.groups, t]
    }
}
