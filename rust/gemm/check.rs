//! Whether a product is right, by a random vector.

use super::SLACK;
use crate::blas::Rows;
use crate::kernel::{Body, Isa, KC, Real, on};

/// Chains of a sum: it is the same check in any order, and one chain would wait for itself.
const CHAINS: usize = 16;

/// `G t` against `A (B^T t)` for signs `t`, and the rounding that they may differ by.
pub(super) struct Check {
    isa: Isa,
    signs: Vec<f64>,
    want: Vec<f64>,
    size: Vec<f64>,
    features: usize,
}

impl Check {
    pub(super) fn new(isa: Isa, random: &mut u64, rows: usize, cols: usize) -> Self {
        let mut sign = || {
            // Marsaglia's xorshift.
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            if *random >> 63 == 0 { 1.0 } else { -1.0 }
        };
        let signs = (0..cols).map(|_| sign()).collect();
        Self { isa, signs, want: vec![0.0; rows], size: vec![0.0; rows], features: 0 }
    }

    pub(super) fn add<F: Real>(&mut self, a: Rows<'_, F>, b: Rows<'_, F>) {
        on(self.isa, Add { check: self, a, b });
    }

    /// Whether every row is within rounding; what is not finite is for others to judge.
    pub(super) fn passes<F: Real>(&self, gram: &[F]) -> bool {
        let mut good = true;
        on(self.isa, Compare { check: self, gram, good: &mut good });
        good
    }
}

struct Add<'c, 'a, F> {
    check: &'c mut Check,
    a: Rows<'a, F>,
    b: Rows<'a, F>,
}

impl<F: Real> Body for Add<'_, '_, F> {
    #[inline(always)]
    fn run(self) {
        let Self { check, a, b } = self;
        let mut summed = vec![0.0_f64; b.features()];
        let mut length = 0.0_f64;
        for (j, sign) in check.signs.iter().enumerate() {
            let row = b.row(j);
            summed.iter_mut().zip(row).for_each(|(sum, x)| *sum += sign * x.to_f64());
            length += square(row).sqrt();
        }
        for (i, (want, size)) in check.want.iter_mut().zip(&mut check.size).enumerate() {
            *want += dot(a.row(i), &summed);
            *size += square(a.row(i)).sqrt() * length;
        }
        check.features += b.features();
    }
}

struct Compare<'c, F> {
    check: &'c Check,
    gram: &'c [F],
    good: &'c mut bool,
}

impl<F: Real> Body for Compare<'_, F> {
    #[inline(always)]
    fn run(self) {
        let Check { signs, want, size, features, .. } = self.check;
        let single = size_of::<F>() == 4;
        let unit = if single { f64::from(f32::EPSILON) } else { f64::EPSILON };
        let tiny = if single { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE };
        let roundings = SLACK * ((*features).min(KC) + features.div_ceil(KC) + 1) as f64;
        let floor = (features + 1) as f64 * signs.len() as f64 * tiny;
        let lines = self.gram.chunks_exact(signs.len().max(1));
        for (row, (want, &size)) in lines.zip(want.iter().zip(size)) {
            let right = (dot(row, signs) - want).abs() <= roundings * unit * size + floor;
            let overflows = !size.is_finite() || (single && size >= f64::from(f32::MAX));
            *self.good &= right || overflows;
        }
    }
}

#[inline(always)]
fn dot<F: Real>(row: &[F], by: &[f64]) -> f64 {
    let mut sums = [0.0; CHAINS];
    let ((row, row_rest), (by, by_rest)) = (row.as_chunks::<CHAINS>(), by.as_chunks::<CHAINS>());
    for (row, by) in row.iter().zip(by) {
        for lane in 0..CHAINS {
            sums[lane] += row[lane].to_f64() * by[lane];
        }
    }
    let rest: f64 = row_rest.iter().zip(by_rest).map(|(x, y)| x.to_f64() * y).sum();
    sums.iter().sum::<f64>() + rest
}

#[inline(always)]
fn square<F: Real>(row: &[F]) -> f64 {
    let mut sums = [0.0; CHAINS];
    let (row, rest) = row.as_chunks::<CHAINS>();
    for row in row {
        for lane in 0..CHAINS {
            sums[lane] += row[lane].to_f64() * row[lane].to_f64();
        }
    }
    let rest: f64 = rest.iter().map(|x| x.to_f64() * x.to_f64()).sum();
    sums.iter().sum::<f64>() + rest
}
