//! One look at every value before work starts: NaN, infinity, magnitude.

use super::{Real, View};

/// Features read at a time.
const BLOCK: usize = 1024;

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
        if view.dtype().fits_f32() {
            Self::as_type::<f32>(view, first, end)
        } else {
            Self::as_type::<f64>(view, first, end)
        }
    }

    fn as_type<F: Real>(view: &View<'_>, first: usize, end: usize) -> Self {
        let mut this = Self::default();
        let [_, r, g, t, k] = view.shape();
        let mut values = [F::ZERO; BLOCK];
        for n in first..end {
            let mut bad = None;
            for unit in 0..r * g * t {
                let at = [n, unit / (g * t), unit / t % g, unit % t];
                for k0 in (0..k).step_by(BLOCK) {
                    let values = &mut values[..(k - k0).min(BLOCK)];
                    view.row(at, k0, values);
                    let (wrong, largest) = summary(values);
                    this.largest = this.largest.max(largest);
                    if wrong && bad.is_none() {
                        let place = values.iter().position(|x| !x.magnitude().below_infinity());
                        bad = place.map(|i| [at[0], at[1], at[2], at[3], k0 + i]);
                    }
                }
            }
            if bad.is_some() {
                this.examples.push(n);
            }
            this.first = this.first.or(bad);
        }
        this
    }
}

/// Whether some value is not finite, and the largest finite magnitude.
fn summary<F: Real>(values: &[F]) -> (bool, f64) {
    const LANES: usize = 16;
    let (mut lanes, mut wrong) = ([F::ZERO; LANES], [F::ZERO; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut look = |lane: usize, value: F| {
        // Zero times infinity, and anything with NaN, is NaN; finite values leave a zero.
        wrong[lane] = wrong[lane].plus(value.times(F::ZERO));
        lanes[lane] = lanes[lane].larger(value.magnitude());
    };
    for chunk in chunks {
        for lane in 0..LANES {
            look(lane, chunk[lane]);
        }
    }
    rest.iter().enumerate().for_each(|(lane, &value)| look(lane, value));
    let bad = wrong != [F::ZERO; LANES];
    let finite = lanes.into_iter().filter(|x| x.below_infinity());
    (bad, finite.map(Real::to_f64).fold(0.0, f64::max))
}
