//! Rows of factors, and rows of the Jacobian formed from them.

use core::ops::Range;

use crate::kernel::{Body, NR, Part, Real, gram};

/// One group of an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor<'a> {
    pub(super) part: Part<'a>,
    pub(super) group: usize,
}

impl Factor<'_> {
    /// Examples.
    pub(super) fn examples(&self) -> usize {
        self.part.view.shape()[0]
    }

    /// Positions.
    pub(super) fn positions(&self) -> usize {
        self.part.view.shape()[3]
    }

    /// Features.
    pub(super) fn features(&self) -> usize {
        self.part.view.shape()[4]
    }

    /// Read features from `from` on.
    pub(super) fn row<F: Real>(&self, [n, r, t]: [usize; 3], from: usize, out: &mut [F]) {
        self.part.row([n, r, self.group, t], from, out);
    }
}

/// Rows of the Jacobian of a leaf, flat.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    /// They are there.
    There(Factor<'a>),
    /// `sum_t left (x) right`, formed when asked for.
    Formed {
        /// Rows of the table.
        left: Factor<'a>,
        /// Its columns.
        right: Factor<'a>,
    },
}

impl Rows<'_> {
    /// Examples.
    pub(super) fn examples(&self) -> usize {
        match self {
            Self::There(jac) => jac.examples(),
            Self::Formed { left, .. } => left.examples(),
        }
    }

    /// Elements that [`Reader`] needs for `rows` features.
    pub(super) fn scratch<const MR: usize>(&self, features: usize) -> usize {
        match self {
            Self::There(_) => 0,
            Self::Formed { left, right } => {
                let (rows, wide) = tall(features, right.features());
                left.positions() * (rows.next_multiple_of(NR) + wide.next_multiple_of(MR))
                    + rows.max(wide).next_multiple_of(MR * NR)
            }
        }
    }
}

/// Rows of a table that `features` of its elements may touch, and its columns.
fn tall(features: usize, cols: usize) -> (usize, usize) {
    (features.div_ceil(cols.max(1)) + 1, cols)
}

/// Forms one row of a Jacobian: a body, for the instruction set of its caller.
pub(super) struct Reader<'r, 'a, F, const MR: usize> {
    /// The rows.
    pub(super) rows: &'r Rows<'a>,
    /// Example and output row.
    pub(super) at: [usize; 2],
    /// Elements asked for.
    pub(super) features: Range<usize>,
    /// Room for the factors of one example.
    pub(super) scratch: &'r mut [F],
    /// The row.
    pub(super) out: &'r mut [F],
}

impl<F: Real, const MR: usize> Body for Reader<'_, '_, F, MR> {
    #[inline(always)]
    fn run(self) {
        let [n, r] = self.at;
        match self.rows {
            Rows::There(jac) => jac.row([n, r, 0], self.features.start, self.out),
            Rows::Formed { left, right } => self.form(left, right),
        }
    }
}

impl<F: Real, const MR: usize> Reader<'_, '_, F, MR> {
    #[inline(always)]
    fn form(self, left: &Factor<'_>, right: &Factor<'_>) {
        let Self { at: [n, r], features, scratch, out, .. } = self;
        let (positions, width) = (left.positions(), right.features());
        let rows = features.start / width..features.end.div_ceil(width);
        let (tall, wide) = (rows.len().next_multiple_of(NR), width.next_multiple_of(MR));
        let (cols, rest) = scratch.split_at_mut(positions * tall);
        let (lanes, line) = rest.split_at_mut(positions * wide);
        let (cols, lanes) = (cols.as_chunks_mut::<NR>().0, lanes.as_chunks_mut::<MR>().0);
        for t in 0..positions {
            let line = &mut line[..tall.max(wide)];
            line.fill(F::ZERO);
            left.row([n, r, t], rows.start, &mut line[..rows.len()]);
            for (q, six) in line[..tall].as_chunks::<NR>().0.iter().enumerate() {
                cols[q * positions + t] = *six;
            }
            line.fill(F::ZERO);
            right.row([n, r, t], 0, &mut line[..width]);
            for (p, lane) in line[..wide].as_chunks::<MR>().0.iter().enumerate() {
                lanes[p * positions + t] = *lane;
            }
        }
        for (q, cols) in cols.chunks(positions).enumerate() {
            for (p, lanes) in lanes.chunks(positions).enumerate() {
                let tile = gram(lanes, cols);
                let last = rows.len().min(q * NR + NR);
                for (row, values) in (rows.start + q * NR..rows.start + last).zip(&tile) {
                    let from = row * width + p * MR;
                    let end = from + MR.min(width - p * MR);
                    let (a, b) = (from.max(features.start), end.min(features.end));
                    if a < b {
                        out[a - features.start..b - features.start]
                            .copy_from_slice(&values[a - from..b - from]);
                    }
                }
            }
        }
    }
}
