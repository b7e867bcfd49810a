//! Pieces of a table, units at a time and workers, from a memory limit. Arithmetic only.
//!
//! The pieces and the units of a block of `push` depend on the limit alone: they may change bits. Workers take what room is left.

use super::few;
use super::job::{Job, Use};
use super::table::{Piece, Shape};
use crate::error::Error;
use crate::kernel::{KC, MR_F32, NR, Real};

/// Bytes of a table beyond which more of it at a time gains nothing.
const TABLE: usize = 64 << 20;
/// Bytes of packed units: in the last-level cache, or read from memory in long runs.
const LOAD: usize = 16 << 20;
/// Bytes of a worker's block of units, in its second-level cache, and how many units there should be.
const BLOCK: usize = 1 << 20;
const UNITS: (usize, usize) = (8 * NR, 384);
/// Panels that share a pass over packed columns.
pub(super) const PANELS: usize = 8;
/// Features between rows of a block: no power of two, so that rows do not meet in the cache.
const APART: usize = 16;
/// Elements that buffers are whole numbers of, so that lanes start on cache lines.
const LINE: usize = 16;

/// Sizes of one table's work, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    /// Vectors of a piece.
    pub(super) vectors: usize,
    /// Rows of the table of a piece.
    pub(super) rows: usize,
    /// A piece, with the native copy that formed uses of tied tables need.
    pub(super) table: usize,
    /// Packed units.
    pub(super) load: usize,
    /// Each worker's own room.
    pub(super) scratch: usize,
    /// Units in a block of `push`.
    pub(super) block: usize,
    /// Panels at a time in `pull`.
    pub(super) panels: usize,
    /// Workers.
    pub(super) threads: usize,
}

/// Sizes of a use for one piece.
struct Needs<'j, 'a, const MR: usize> {
    job: &'j Job<'a>,
    kept: usize,
    shape: Shape,
}

impl Fit {
    /// Fit the work of `job` into `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] with the smallest limit that would do.
    pub(super) fn new<F: Real, const MR: usize>(
        job: &Job<'_>,
        kept: usize,
        all: usize,
        (limit, threads): (u128, usize),
    ) -> Result<Self, Error> {
        let room = usize::try_from(limit).unwrap_or(usize::MAX) / size_of::<F>();
        let needs = |vectors, rows| Needs::<MR> { job, kept, shape: job.shaped(vectors, rows) };
        let bytes = |elements: usize| elements * size_of::<F>();
        // Half of the room, if that holds long chains; else all of it.
        let plain = !job.few && job.pull.iter().chain(&job.push).any(Use::is_plain);
        let fits = |vectors, rows, room: usize| {
            let needs = needs(vectors, rows);
            let wide = !plain || bytes(KC * rows * job.cols) <= LOAD;
            needs.least() <= room && (rows <= KC || bytes(needs.table()) <= TABLE && wide)
        };
        let mut vectors = all;
        let mut rows = most(job.rows, |rows| fits(vectors, rows, room / 2));
        while rows < job.rows.min(KC) && vectors > 1 {
            vectors = vectors.div_ceil(2);
            rows = most(job.rows, |rows| fits(vectors, rows, room / 2));
        }
        if rows < job.rows.min(KC) {
            rows = most(job.rows, |rows| fits(vectors, rows, room));
        }
        if rows == 0 {
            let needs = bytes(needs(1, 1).least()) as u128;
            return Err(Error::Memory { limit, needs, what: "one row of a table".into() });
        }
        if rows < job.rows {
            let grain = if rows >= KC && job.grain == 1 { KC } else { job.grain };
            rows -= if rows >= grain { rows % grain } else { 0 };
        }
        let needs = needs(vectors, rows);
        let left = room - needs.least();
        let most_block = UNITS.1 * MR / MR_F32;
        let wanted = (BLOCK / bytes(needs.push_unit()).max(1)).clamp(UNITS.0, most_block);
        let block = NR.max(wanted.min(left / 4 / needs.push_unit().max(1)) / NR * NR);
        let panels = (left / 4 / needs.panel().max(1)).clamp(1, PANELS);
        let scratch = needs.scratch(block, panels);
        let spare = room - needs.table() - needs.load(1);
        let threads = threads.min(spare / scratch.max(1)).max(1);
        let spare = spare.saturating_sub(threads * scratch) / needs.load_unit().max(1);
        let wanted = LOAD / bytes(needs.load_unit()).max(1);
        let chunks = 1 + wanted.min(spare) / KC;
        Ok(Self {
            vectors,
            rows,
            table: needs.table(),
            load: needs.load(chunks),
            scratch,
            block,
            panels,
            threads,
        })
    }

    /// Elements of all of it.
    pub(super) fn elements(&self) -> usize {
        self.table + self.load + self.threads * self.scratch
    }

    /// The pieces of a table.
    pub(super) fn pieces(&self, job: &Job<'_>, vectors: usize) -> Vec<Piece> {
        let cut = |length: usize, step: usize| {
            (0..length).step_by(step.max(1)).map(move |from| from..(from + step).min(length))
        };
        cut(vectors, self.vectors)
            .flat_map(|k| {
                cut(job.rows, self.rows).map(move |rows| Piece { vectors: k.clone(), rows })
            })
            .collect()
    }

    /// Elements of a piece, with the native copy.
    pub(super) fn table_of<const MR: usize>(&self, job: &Job<'_>, shape: &Shape) -> usize {
        table::<MR>(job, shape)
    }
}

fn table<const MR: usize>(job: &Job<'_>, shape: &Shape) -> usize {
    let twice = job.padded && job.pull.iter().chain(&job.push).any(Use::is_plain);
    let native = if twice { shape.native().elements::<MR>() } else { 0 };
    (shape.elements::<MR>() + native).next_multiple_of(LINE)
}

/// The largest `rows` up to `all` for which `fits` holds, which it does up to some number; 0 if for none.
fn most(all: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, all);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

/// Elements from one row of a block to the next.
pub(super) fn apart(features: usize) -> usize {
    if features > APART { features.next_multiple_of(APART) + APART } else { features }
}

impl<const MR: usize> Needs<'_, '_, MR> {
    fn table(&self) -> usize {
        table::<MR>(self.job, &self.shape)
    }

    /// What one worker needs for the smallest steps.
    fn least(&self) -> usize {
        self.table() + self.load(1) + self.scratch(NR, 1)
    }

    fn most(&self, of: impl Fn(&Use<'_>) -> usize, uses: &[Use<'_>]) -> usize {
        uses.iter().map(of).max().unwrap_or(0)
    }

    /// Packed elements of a unit.
    fn load_unit(&self) -> usize {
        self.most(|one| loaded::<MR>(one, self.kept, &self.shape).iter().sum(), &self.job.pull)
    }

    /// Packed elements of so many chunks.
    fn load(&self, chunks: usize) -> usize {
        let each = |one: &Use<'_>| {
            let units = one.examples() * one.units(self.kept);
            let chunk =
                units.min(KC) * loaded::<MR>(one, self.kept, &self.shape).iter().sum::<usize>();
            chunk * chunks.min(units.div_ceil(KC))
        };
        self.most(each, &self.job.pull).next_multiple_of(LINE)
    }

    /// Elements of a panel of scaled lanes.
    fn panel(&self) -> usize {
        let units = |one: &Use<'_>| match one {
            Use::Scaled { .. } if self.shape.padded => one.examples() * one.units(self.kept),
            _ => 0,
        };
        self.most(units, &self.job.pull).min(KC) * MR
    }

    fn push_unit(&self) -> usize {
        self.most(|one| pushed::<MR>(one, self.kept, &self.shape).iter().sum(), &self.job.push)
    }

    fn scratch(&self, block: usize, panels: usize) -> usize {
        if self.shape.few {
            return few::scratch(self.shape.vectors, self.shape.rows).next_multiple_of(LINE);
        }
        let reader = |one: &Use<'_>| match one {
            Use::Plain(rows) => rows.scratch::<MR>(self.shape.rows * self.shape.cols),
            _ => 0,
        };
        let line = |one: &Use<'_>| {
            let [left, right] = loaded::<MR>(one, self.kept, &self.shape);
            left + right + self.kept * self.shape.cols
        };
        let pull =
            self.most(|one| (line(one) + reader(one)).max(panels * self.panel()), &self.job.pull);
        let push = self.most(
            |one| {
                block * pushed::<MR>(one, self.kept, &self.shape).iter().sum::<usize>()
                    + reader(one)
            },
            &self.job.push,
        );
        pull.max(push).next_multiple_of(LINE)
    }
}

/// Packed elements of a unit in `pull`: what is shared by all vectors as it is, and the other side.
pub(super) fn loaded<const MR: usize>(one: &Use<'_>, kept: usize, shape: &Shape) -> [usize; 2] {
    let (rows, stride) = (shape.rows, shape.stride::<MR>());
    match one {
        Use::Plain(_) if shape.few => [0, 0],
        Use::Plain(_) => {
            let features = rows * shape.cols;
            [features.next_multiple_of(MR), shape.vectors.next_multiple_of(NR)]
        }
        Use::Scaled { .. } if shape.padded => {
            [rows.next_multiple_of(NR), kept * (stride + shape.vectors)]
        }
        Use::Scaled { .. } => {
            let lanes = shape.vectors * shape.cols;
            [rows.next_multiple_of(MR), lanes.next_multiple_of(NR)]
        }
        Use::Lookup { .. } => [2, kept * stride],
    }
}

/// Elements of a unit in `push`: its features, what they meet, and the sums.
pub(super) fn pushed<const MR: usize>(one: &Use<'_>, kept: usize, shape: &Shape) -> [usize; 3] {
    let stride = shape.stride::<MR>();
    let sums = shape.vectors.next_multiple_of(MR);
    match one {
        Use::Plain(_) if shape.few => [0, 0, 0],
        Use::Plain(_) => [apart(shape.rows * shape.cols), 0, sums],
        Use::Scaled { .. } if shape.padded => [apart(shape.rows), kept * stride, kept * MR],
        Use::Scaled { .. } => [apart(shape.rows), kept * shape.cols, kept * sums],
        Use::Lookup { .. } => [0, kept * stride, 0],
    }
}
