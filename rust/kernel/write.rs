//! Accumulators into the result: the direct half, its mirror image, the scale, the one rounding, the look-out for overflow.

use core::ops::Range;

use ndarray::ArrayViewMutD;

use super::{NR, Real, Sweep, Tile};
use crate::error::Error;

/// Where entries go: a writeable array `[plane, row, column]` of float32 or float64, of any strides.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    base: *mut u8,
    shape: [usize; 3],
    strides: [isize; 3],
    double: bool,
}

// SAFETY: macro tiles write disjoint entries, and nobody reads before they are done.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Write through `bytes`: the array's three axes and a last one over the bytes of an element.
    ///
    /// # Errors
    /// [`Error::Internal`] if the axes are not as promised.
    pub fn new(bytes: &mut ArrayViewMutD<'_, u8>, double: bool) -> Result<Self, Error> {
        let item = if double { 8 } else { 4 };
        let (shape, steps) = (bytes.shape().to_vec(), bytes.strides().to_vec());
        if shape.len() != 4 || shape[3] != item || steps[3] != 1 {
            return Err(Error::Internal { what: format!("a result of byte shape {shape:?}") });
        }
        Ok(Self {
            base: bytes.as_mut_ptr(),
            shape: [shape[0], shape[1], shape[2]],
            strides: [steps[0], steps[1], steps[2]],
            double,
        })
    }

    fn item(self) -> isize {
        if self.double { 8 } else { 4 }
    }

    fn at(self, plane: usize, row: usize, col: usize) -> *mut u8 {
        let inside = plane < self.shape[0] && row < self.shape[1] && col < self.shape[2];
        assert!(inside, "entry ({plane}, {row}, {col}) is outside a result of {:?}", self.shape);
        let offset = plane as isize * self.strides[0]
            + row as isize * self.strides[1]
            + col as isize * self.strides[2];
        self.base.wrapping_offset(offset)
    }

    /// Store `values` along row `row` from column `col` on. Returns whether all are finite.
    fn run<F: Real>(self, plane: usize, row: usize, col: usize, values: &[F]) -> bool {
        let Some(last) = values.len().checked_sub(1) else { return true };
        let (to, step) = (self.at(plane, row, col), self.strides[2]);
        let _inside = self.at(plane, row, col + last);
        if self.double {
            store(to, step, self.item(), values.iter().map(|v| v.to_f64()))
        } else {
            store(to, step, self.item(), values.iter().map(|v| v.to_f64() as f32))
        }
    }
}

trait Finite: Copy {
    fn finite(self) -> bool;
}
impl Finite for f32 {
    fn finite(self) -> bool {
        self.is_finite()
    }
}
impl Finite for f64 {
    fn finite(self) -> bool {
        self.is_finite()
    }
}

fn store<T: Finite>(
    to: *mut u8,
    step: isize,
    item: isize,
    values: impl Iterator<Item = T>,
) -> bool {
    let mut finite = true;
    if step == item {
        for (i, value) in values.enumerate() {
            finite &= value.finite();
            // SAFETY: `Out::run` checked the first and the last entry of the run.
            unsafe { to.cast::<T>().wrapping_add(i).write_unaligned(value) };
        }
    } else {
        for (i, value) in values.enumerate() {
            finite &= value.finite();
            let to = to.wrapping_offset(step * i as isize).cast::<T>();
            // SAFETY: as above.
            unsafe { to.write_unaligned(value) };
        }
    }
    finite
}

/// Where the output pairs of an entry go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each pair is a plane, from this one on.
    Planes(usize),
    /// Sample-major blocks: row `n * outputs + r`, column `m * outputs + s`, for the pairs `r x s`.
    Blocks {
        /// Output rows of a block.
        outputs: usize,
        /// Output rows of this sweep.
        r: Range<usize>,
        /// Output columns of this sweep.
        s: Range<usize>,
    },
}

impl Layout {
    fn outputs(&self) -> usize {
        match self {
            Self::Planes(_) => 1,
            Self::Blocks { outputs, .. } => *outputs,
        }
    }

    fn ranges(&self) -> (Range<usize>, Range<usize>) {
        match self {
            Self::Planes(_) => (0..1, 0..1),
            Self::Blocks { r, s, .. } => (r.clone(), s.clone()),
        }
    }
}

/// Which entries of the kernel a block holds, and where they go.
#[derive(Clone, Debug)]
pub struct Region {
    /// The result.
    pub out: Out,
    /// Examples of the rows of the block.
    pub rows: Range<usize>,
    /// Examples of the columns of the block.
    pub cols: Range<usize>,
    /// Example that is row 0 of `out`.
    pub row_origin: usize,
    /// Example that is column 0 of `out`.
    pub col_origin: usize,
    /// Write each entry below the diagonal to its mirror place too.
    pub mirror: bool,
    /// Places of the output pairs.
    pub layout: Layout,
    /// Factor on every entry, applied before the rounding to the result's type.
    pub scale: f64,
}

impl Region {
    /// Write the accumulators of a macro tile. Returns whether all entries are finite.
    pub fn write<F: Real, const MR: usize>(
        &self,
        job: &Sweep<'_, F, MR>,
        acc: &[Tile<F, MR>],
        line: &mut Vec<F>,
    ) -> bool {
        let mut finite = true;
        for n in (job.p.start * MR)..(job.p.end * MR).min(self.rows.len()) {
            finite &= self.direct(job, acc, n, line);
        }
        if self.mirror {
            for m in (job.q.start * NR)..(job.q.end * NR).min(self.cols.len()) {
                self.mirrored(job, acc, m, line);
            }
        }
        finite
    }

    /// Write only the diagonal: `out[plane][0][n]`.
    pub fn write_diagonal<F: Real, const MR: usize>(
        &self,
        job: &Sweep<'_, F, MR>,
        acc: &[Tile<F, MR>],
    ) -> bool {
        let Layout::Planes(first) = self.layout else { return true };
        let mut finite = true;
        for n in (job.p.start * MR)..(job.p.end * MR).min(self.rows.len()) {
            let at = job.at(n / MR, n / NR);
            for plane in 0..job.pairs.len() {
                let value = self.scaled(acc[at + plane][n % NR][n % MR]);
                finite &= self.out.run(first + plane, 0, self.rows.start + n, &[value]);
            }
        }
        finite
    }

    /// Rows of example `n`: columns up to the diagonal if the block meets it, else all.
    fn direct<F: Real, const MR: usize>(
        &self,
        job: &Sweep<'_, F, MR>,
        acc: &[Tile<F, MR>],
        n: usize,
        line: &mut Vec<F>,
    ) -> bool {
        let end = (job.q.end * NR).min(self.cols.len());
        let ms = job.q.start * NR..if job.triangle { end.min(n + 1) } else { end };
        let row = self.rows.start + n - self.row_origin;
        let col = self.cols.start + ms.start - self.col_origin;
        let (rs, ss) = self.layout.ranges();
        let (outputs, width) = (self.layout.outputs(), ss.len());
        let mut finite = true;
        if let Layout::Planes(first) = self.layout {
            for pair in 0..job.pairs.len() {
                line.clear();
                line.extend(
                    ms.clone()
                        .map(|m| self.scaled(acc[job.at(n / MR, m / NR) + pair][m % NR][n % MR])),
                );
                finite &= self.out.run(first + pair, row, col, line);
            }
            return finite;
        }
        for (index, r) in rs.enumerate() {
            for m in ms.clone() {
                let at = job.at(n / MR, m / NR) + index * width;
                line.clear();
                line.extend(acc[at..at + width].iter().map(|a| self.scaled(a[m % NR][n % MR])));
                let col = (col + m - ms.start) * outputs + ss.start;
                finite &= self.out.run(0, row * outputs + r, col, line);
            }
        }
        finite
    }

    /// Columns of example `m`, written as rows: examples strictly below the diagonal.
    fn mirrored<F: Real, const MR: usize>(
        &self,
        job: &Sweep<'_, F, MR>,
        acc: &[Tile<F, MR>],
        m: usize,
        line: &mut Vec<F>,
    ) {
        let end = (job.p.end * MR).min(self.rows.len());
        let first = if job.triangle { m + 1 } else { 0 };
        let ns = (job.p.start * MR).max(first)..end;
        if ns.is_empty() {
            return;
        }
        let row = self.cols.start + m - self.row_origin;
        let col = self.rows.start + ns.start - self.col_origin;
        let (rs, ss) = self.layout.ranges();
        let (outputs, width) = (self.layout.outputs(), ss.len());
        if let Layout::Planes(first) = self.layout {
            for pair in 0..job.pairs.len() {
                line.clear();
                line.extend(
                    ns.clone()
                        .map(|n| self.scaled(acc[job.at(n / MR, m / NR) + pair][m % NR][n % MR])),
                );
                self.out.run(first + pair, row, col, line);
            }
            return;
        }
        for (index, s) in ss.enumerate() {
            for n in ns.clone() {
                let at = job.at(n / MR, m / NR) + index;
                line.clear();
                line.extend(
                    (0..rs.len()).map(|r| self.scaled(acc[at + r * width][m % NR][n % MR])),
                );
                let col = (col + n - ns.start) * outputs + rs.start;
                self.out.run(0, row * outputs + s, col, line);
            }
        }
    }

    fn scaled<F: Real>(&self, value: F) -> F {
        if self.scale == 1.0 { value } else { value.times(F::from_f64(self.scale)) }
    }
}
