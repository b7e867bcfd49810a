//! Whether a product is right, by a random vector.

use super::SLACK;
use crate::blas::Rows;
use crate::kernel::{KC, Real};

/// `G t` against `A (B^T t)` for signs `t`, and the rounding that they may differ by.
pub(super) struct Check {
    signs: Vec<f64>,
    want: Vec<f64>,
    size: Vec<f64>,
    features: usize,
}

impl Check {
    pub(super) fn new(random: &mut u64, rows: usize, cols: usize) -> Self {
        let mut sign = || {
            // Marsaglia's xorshift.
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            if *random >> 63 == 0 { 1.0 } else { -1.0 }
        };
        let signs = (0..cols).map(|_| sign()).collect();
        Self { signs, want: vec![0.0; rows], size: vec![0.0; rows], features: 0 }
    }

    pub(super) fn add<F: Real>(&mut self, a: Rows<'_, F>, b: Rows<'_, F>) {
        let Some(k) = (b.rows() > 0).then(|| b.row(0).len()) else { return };
        let mut summed = vec![0.0_f64; k];
        let mut length = 0.0_f64;
        for (j, sign) in self.signs.iter().enumerate() {
            let mut square = 0.0;
            for (sum, x) in summed.iter_mut().zip(b.row(j)) {
                let x = x.to_f64();
                *sum += sign * x;
                square += x * x;
            }
            length += square.sqrt();
        }
        for (i, (want, size)) in self.want.iter_mut().zip(&mut self.size).enumerate() {
            let (mut sum, mut square) = (0.0, 0.0);
            for (x, y) in a.row(i).iter().zip(&summed) {
                let x = x.to_f64();
                sum += x * y;
                square += x * x;
            }
            *want += sum;
            *size += square.sqrt() * length;
        }
        self.features += k;
    }

    /// Whether every row is within rounding; what is not finite is for others to judge.
    pub(super) fn passes<F: Real>(&self, gram: &[F]) -> bool {
        let single = size_of::<F>() == 4;
        let unit = if single { f64::from(f32::EPSILON) } else { f64::EPSILON };
        let tiny = if single { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE };
        let roundings = SLACK * (self.features.min(KC) + self.features.div_ceil(KC) + 1) as f64;
        let floor = (self.features + 1) as f64 * self.signs.len() as f64 * tiny;
        let lines = gram.chunks_exact(self.signs.len().max(1));
        lines.zip(self.want.iter().zip(&self.size)).all(|(row, (&want, &size))| {
            let got: f64 = row.iter().zip(&self.signs).map(|(x, t)| x.to_f64() * t).sum();
            let right = (got - want).abs() <= roundings * unit * size + floor;
            let overflows = !size.is_finite() || (single && size >= f64::from(f32::MAX));
            right || overflows
        })
    }
}
