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
            store(to.cast::<f64>(), step, values, F::to_f64, self.large())
        } else {
            store(to.cast::<f32>(), step, values, F::to_f32, self.large())
        }
    }

    /// Whether the result is far larger than a cache, so that its lines should not pass through one.
    fn large(self) -> bool {
        self.shape.iter().product::<usize>() > LARGE
    }
}

/// Entries from which on a result is written past the caches.
const LARGE: usize = 4 << 20;
/// Entries of a run that are converted at a time.
const BLOCK: usize = 64;

trait Entry: Copy + Default {
    fn finite(self) -> bool;
}
impl Entry for f32 {
    fn finite(self) -> bool {
        self.is_finite()
    }
}
impl Entry for f64 {
    fn finite(self) -> bool {
        self.is_finite()
    }
}

/// Store a run that `Out::run` checked. Returns whether all are finite.
fn store<F: Real, T: Entry>(
    to: *mut T,
    step: isize,
    values: &[F],
    convert: fn(F) -> T,
    large: bool,
) -> bool {
    let mut finite = true;
    let mut block = [T::default(); BLOCK];
    for (index, values) in values.chunks(BLOCK).enumerate() {
        for (to, &value) in block.iter_mut().zip(values) {
            *to = convert(value);
            finite &= to.finite();
        }
        let block = &block[..values.len()];
        let first = to.wrapping_byte_offset(step * (index * BLOCK) as isize);
        if step == size_of::<T>() as isize {
            put(first, block, large);
        } else {
            for (i, &value) in block.iter().enumerate() {
                let to = first.wrapping_byte_offset(step * i as isize);
                // SAFETY: `Out::run` checked the first and the last entry of the run.
                unsafe { to.write_unaligned(value) };
            }
        }
    }
    finite
}

/// Store consecutive entries, whole cache lines past the caches if `large`.
fn put<T: Entry>(to: *mut T, values: &[T], large: bool) {
    #[cfg(target_arch = "x86_64")]
    if large && stream(to, values) {
        return;
    }
    let _ = large;
    // SAFETY: `Out::run` checked the run; the source is a local block, so the two cannot overlap.
    unsafe {
        core::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), to.cast(), size_of_val(values))
    };
}

/// Store by 16-byte non-temporal writes; false if the place is not aligned to them.
#[cfg(target_arch = "x86_64")]
fn stream<T: Entry>(to: *mut T, values: &[T]) -> bool {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let bytes = size_of_val(values);
    if !to.cast::<__m128i>().is_aligned() || !bytes.is_multiple_of(16) {
        return false;
    }
    for i in 0..bytes / 16 {
        // SAFETY: within `values`, at any alignment.
        let value = unsafe { _mm_loadu_si128(values.as_ptr().cast::<__m128i>().wrapping_add(i)) };
        // SAFETY: `Out::run` checked the run, and the place is aligned.
        unsafe { _mm_stream_si128(to.cast::<__m128i>().wrapping_add(i), value) };
    }
    true
}

/// Make non-temporal stores visible to whoever reads the result next.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of SSE, which every x86-64 has.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
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
        lines: &mut Vec<F>,
    ) -> bool {
        let planes = match self.layout {
            Layout::Planes(_) => job.pairs.len(),
            Layout::Blocks { .. } => 1,
        };
        let mut finite = true;
        for plane in 0..planes {
            for p in job.p.clone() {
                finite &= self.direct(job, acc, (plane, p), lines);
            }
            if self.mirror {
                for q in job.q.clone() {
                    self.mirrored(job, acc, (plane, q), lines);
                }
            }
        }
        fence();
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

    /// Rows of the examples of panel `p`: columns up to the diagonal if the block meets it, else all.
    fn direct<F: Real, const MR: usize>(
        &self,
        job: &Sweep<'_, F, MR>,
        acc: &[Tile<F, MR>],
        (plane, p): (usize, usize),
        lines: &mut Vec<F>,
    ) -> bool {
        let (rs, ss) = self.layout.ranges();
        let width = job.q.len() * NR * ss.len();
        lines.resize(MR * rs.len() * width, F::ZERO);
        for (index, q) in job.q.clone().enumerate() {
            for pair in 0..rs.len() * ss.len() {
                let tile = &acc[job.at(p, q) + plane + pair];
                let (r, s) = (pair / ss.len(), pair % ss.len());
                for i in 0..MR {
                    let line = &mut lines[(i * rs.len() + r) * width..][..width];
                    for j in 0..NR {
                        line[(index * NR + j) * ss.len() + s] = self.scaled(tile[j][i]);
                    }
                }
            }
        }
        let start = job.q.start * NR;
        let mut finite = true;
        for i in 0..MR.min(self.rows.len().saturating_sub(p * MR)) {
            let n = p * MR + i;
            let end = (job.q.end * NR).min(self.cols.len());
            let end = if job.triangle { end.min(n + 1) } else { end };
            for (index, r) in rs.clone().enumerate() {
                let line = &lines[(i * rs.len() + index) * width..][..width];
                let line = &line[..end.saturating_sub(start) * ss.len()];
                let row = (self.rows.start + n - self.row_origin, r);
                let col = self.cols.start + start - self.col_origin;
                finite &= self.line(plane, row, (col, &ss), line);
            }
        }
        finite
    }

    /// Columns of the examples of panel `q`, written as rows: examples strictly below the diagonal.
    fn mirrored<F: Real, const MR: usize>(
        &self,
        job: &Sweep<'_, F, MR>,
        acc: &[Tile<F, MR>],
        (plane, q): (usize, usize),
        lines: &mut Vec<F>,
    ) {
        let (rs, ss) = self.layout.ranges();
        let width = job.p.len() * MR * rs.len();
        lines.resize(NR * ss.len() * width, F::ZERO);
        for (index, p) in job.p.clone().enumerate() {
            for pair in 0..rs.len() * ss.len() {
                let tile = &acc[job.at(p, q) + plane + pair];
                let (r, s) = (pair / ss.len(), pair % ss.len());
                for (j, tile) in tile.iter().enumerate() {
                    let line = &mut lines[(j * ss.len() + s) * width..][..width];
                    let line = &mut line[index * MR * rs.len()..][..MR * rs.len()];
                    for i in 0..MR {
                        line[i * rs.len() + r] = self.scaled(tile[i]);
                    }
                }
            }
        }
        let start = job.p.start * MR;
        let end = (job.p.end * MR).min(self.rows.len());
        for j in 0..NR.min(self.cols.len().saturating_sub(q * NR)) {
            let m = q * NR + j;
            let first = if job.triangle { start.max(m + 1) } else { start };
            if first >= end {
                continue;
            }
            for (index, s) in ss.clone().enumerate() {
                let line = &lines[(j * ss.len() + index) * width..][..width];
                let line = &line[(first - start) * rs.len()..(end - start) * rs.len()];
                let row = (self.cols.start + m - self.row_origin, s);
                let col = self.rows.start + first - self.col_origin;
                self.line(plane, row, (col, &rs), line);
            }
        }
    }

    /// Write entries of one row, whose columns are the outputs `part` of the examples from `col` on.
    fn line<F: Real>(
        &self,
        plane: usize,
        (row, output): (usize, usize),
        (col, part): (usize, &Range<usize>),
        line: &[F],
    ) -> bool {
        let outputs = self.layout.outputs();
        let (plane, row) = match self.layout {
            Layout::Planes(first) => (first + plane, row),
            Layout::Blocks { .. } => (0, row * outputs + output),
        };
        if part.len() == outputs {
            return self.out.run(plane, row, col * outputs, line);
        }
        let mut finite = true;
        for (index, piece) in line.chunks(part.len()).enumerate() {
            let col = (col + index) * outputs + part.start;
            finite &= self.out.run(plane, row, col, piece);
        }
        finite
    }

    #[inline(always)]
    fn scaled<F: Real>(&self, value: F) -> F {
        if self.scale == 1.0 { value } else { value.times(F::from_f64(self.scale)) }
    }
}
