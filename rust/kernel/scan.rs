//! One look at every value before work starts: NaN, infinity, magnitude.

use super::{Real, View};

/// What a scan of some examples found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// First place that is not finite: `[n, r, g, t, k]`.
    pub first: Option<[usize; 5]>,
    /// Examples that hold a value that is not finite, ascending.
    pub examples: Vec<usize>,
    /// Largest magnitude of the finite values.
    pub largest: f64,
}

impl Scan {
    /// Put the scans of consecutive examples together.
    pub fn join(&mut self, later: Self) {
        self.first = self.first.or(later.first);
        self.examples.extend(later.examples);
        self.largest = self.largest.max(later.largest);
    }

    /// Scan the examples `first .. end`.
    pub fn of(view: &View<'_>, first: usize, end: usize) -> Self {
        let mut this = Self::default();
        let [_, r, g, t, k] = view.shape();
        for n in first..end {
            let before = this.first.take();
            for unit in 0..r * g * t {
                let at = [n, unit / (g * t), unit / t % g, unit % t];
                this.unit(view, at, k);
            }
            if this.first.is_some() {
                this.examples.push(n);
            }
            this.first = before.or(this.first);
        }
        this
    }

    fn unit(&mut self, view: &View<'_>, at: [usize; 4], k: usize) {
        const BLOCK: usize = 1024;
        let mut values = [0.0_f32; BLOCK];
        let mut exact = [0.0_f64; BLOCK];
        let single = view.dtype().fits_f32();
        for k0 in (0..k).step_by(BLOCK) {
            let len = (k - k0).min(BLOCK);
            let (bad, largest) = if single {
                view.row(at, k0, &mut values[..len]);
                summary(&values[..len])
            } else {
                view.row(at, k0, &mut exact[..len]);
                summary(&exact[..len])
            };
            self.largest = self.largest.max(largest);
            if bad && self.first.is_none() {
                let place = (0..len).find(|&i| {
                    let value = if single { f64::from(values[i]) } else { exact[i] };
                    !value.is_finite()
                });
                self.first = place.map(|i| [at[0], at[1], at[2], at[3], k0 + i]);
            }
        }
    }
}

/// Whether some value is not finite, and the largest finite magnitude.
fn summary<F: Real>(values: &[F]) -> (bool, f64) {
    let mut largest = [F::ZERO; 16];
    let mut bad = [false; 16];
    for chunk in values.chunks(16) {
        for (lane, &value) in chunk.iter().enumerate() {
            let size = value.magnitude();
            bad[lane] |= !size.below_infinity();
            largest[lane] =
                if size.below_infinity() { largest[lane].larger(size) } else { largest[lane] };
        }
    }
    let largest = largest.into_iter().map(Real::to_f64).fold(0.0, f64::max);
    (bad.into_iter().any(|bad| bad), largest)
}
