//! Blocks of a kernel: pack the examples of a block, sweep its macro tiles, write them out.
//!
//! A block runs in two phases for each pass: all workers pack, then all workers sweep macro tiles. Macro tiles are shared out
//! dynamically; which worker gets one changes no bits, since each entry is a chain of its own.

use core::ops::Range;
use core::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::cut::{Block, Cut, Macro, blocks_of, macro_tiles};
use crate::error::Error;
use crate::kernel::{Buffer, Isa, Layout, NR, Out, Packed, Real, Region, Sweep, Tile, sweep};
use crate::plan::{Blocks, STEP};
use crate::program::Program;
use crate::schedule::{PAIRS, Pass};
use crate::side::Side;
use crate::team::{self, Team};

/// One run of the core.
pub struct Call<'a> {
    /// What to compute.
    pub program: &'a Program<'a>,
    /// How it is cut.
    pub blocks: &'a Blocks,
    /// Instruction set.
    pub isa: Isa,
    /// Workers.
    pub threads: usize,
    /// Where entries go; the first row and column of the cut are its origin (of a diagonal: example 0).
    pub out: Out,
    /// Factor on every entry.
    pub scale: f64,
    /// Set when the caller wants to stop.
    pub cancel: &'a AtomicBool,
    /// Entries done so far, counted once a pass.
    pub done: &'a AtomicU64,
}

/// What one worker keeps from task to task.
struct Worker<F> {
    acc: Buffer<F>,
    scratch: Buffer<F>,
    line: Vec<F>,
}

/// Output pairs of one sweep and where they go.
struct Pairs {
    list: Vec<(usize, usize)>,
    layout: Layout,
}

impl<'a> Call<'a> {
    /// Compute a cut. Returns whether all entries are finite.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or [`Error::Allocation`].
    pub fn run<F: Real, const MR: usize>(&self, cut: &Cut) -> Result<bool, Error> {
        let tiles = |block| macro_tiles::<MR>(block, self.blocks.macro_side, cut).len();
        let tiles = blocks_of(cut, self.blocks.side).iter().map(tiles).max().unwrap_or(0)
            * self.pairs().len();
        // A thread without a tile would cost its start for nothing.
        team::with(self.threads.min(tiles), |team| self.run_on::<F, MR>(team, cut))
    }

    fn run_on<F: Real, const MR: usize>(&self, team: &Team<'_>, cut: &Cut) -> Result<bool, Error> {
        let mut workers = self.workers::<F, MR>()?;
        let finite = AtomicBool::new(true);
        let single = !self.blocks.schedule.keeps_block();
        let passes = &self.blocks.schedule.passes;
        let mut packed: Option<(Range<usize>, Side<F>)> = None;
        let mut packed_cols: Option<(Range<usize>, Side<F>)> = None;
        for block in blocks_of(cut, self.blocks.side) {
            if single {
                let empty = Pass::default();
                let pass = passes.first().unwrap_or(&empty);
                let rows = match packed.take() {
                    Some((range, side)) if range == block.rows => side,
                    spare => {
                        let spare = spare.map(|(_, side)| side);
                        self.side::<F, MR, MR>(team, pass, (block.rows.clone(), false), spare)?
                    }
                };
                let cols = match packed_cols.take() {
                    Some((range, side)) if range == block.cols => side,
                    spare => {
                        let spare = spare.map(|(_, side)| side);
                        self.side::<F, MR, NR>(team, pass, (block.cols.clone(), true), spare)?
                    }
                };
                let pairs = &self.pairs();
                let job = Job { call: self, team, cut, block: &block, pass, pairs, write: true };
                job.sweep::<F, MR>((&rows, &cols), Kept::none(), &mut workers, &finite);
                packed = Some((block.rows.clone(), rows));
                packed_cols = Some((block.cols.clone(), cols));
            } else {
                let mut kept = self.kept::<F, MR>(&block)?;
                for pairs in self.pairs() {
                    kept.clear();
                    for (index, pass) in passes.iter().enumerate() {
                        let spare = packed.take().map(|(_, side)| side);
                        let rows =
                            self.side::<F, MR, MR>(team, pass, (block.rows.clone(), false), spare)?;
                        let spare = packed_cols.take().map(|(_, side)| side);
                        let cols =
                            self.side::<F, MR, NR>(team, pass, (block.cols.clone(), true), spare)?;
                        let write = index + 1 == passes.len();
                        let pairs = slice::from_ref(&pairs);
                        let job = Job { call: self, team, cut, block: &block, pass, pairs, write };
                        let sides = (&rows, &cols);
                        job.sweep::<F, MR>(sides, kept.borrow(), &mut workers, &finite);
                        packed = Some((block.rows.clone(), rows));
                        packed_cols = Some((block.cols.clone(), cols));
                    }
                }
            }
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
        }
        Ok(finite.into_inner())
    }

    /// Entries that [`Call::run`] counts in `done`.
    pub fn total<const MR: usize>(&self, cut: &Cut) -> u64 {
        let passes = self.blocks.schedule.passes.len().max(1) * self.pairs().len();
        let area = |block: &Block| -> u64 {
            macro_tiles::<MR>(block, self.blocks.macro_side, cut).iter().map(Macro::area).sum()
        };
        blocks_of(cut, self.blocks.side).iter().map(area).sum::<u64>() * passes as u64
    }

    fn workers<F: Real, const MR: usize>(&self) -> Result<Vec<Worker<F>>, Error> {
        let schedule = &self.blocks.schedule;
        let side = self.blocks.macro_side;
        let pairs = self.pairs().iter().map(|pairs| pairs.list.len()).max().unwrap_or(1);
        let own = if schedule.keeps_block() { 0 } else { side * side * pairs };
        let tiles = schedule.scratch.0 * (side / MR) + schedule.scratch.1;
        (0..self.threads)
            .map(|_| {
                Ok(Worker {
                    acc: Buffer::zeroed(own)?,
                    scratch: Buffer::zeroed(tiles * MR * NR)?,
                    line: Vec::new(),
                })
            })
            .collect()
    }

    fn pairs(&self) -> Vec<Pairs> {
        let outputs = self.program.outputs;
        if !self.program.all_pairs {
            let firsts = (0..outputs).step_by(PAIRS);
            return firsts
                .map(|first| Pairs {
                    list: (first..(first + PAIRS).min(outputs)).map(|r| (r, r)).collect(),
                    layout: Layout::Planes(first),
                })
                .collect();
        }
        let side = outputs.min(PAIRS.isqrt());
        let ranges = || (0..outputs).step_by(side).map(move |r| r..(r + side).min(outputs));
        let pair = |r: Range<usize>, s: Range<usize>| Pairs {
            list: r.clone().flat_map(|r| s.clone().map(move |s| (r, s))).collect(),
            layout: Layout::Blocks { outputs, r, s },
        };
        ranges()
            .flat_map(|r| ranges().map(move |s| (r.clone(), s)))
            .map(|(r, s)| pair(r, s))
            .collect()
    }

    fn kept<F: Real, const MR: usize>(&self, block: &Block) -> Result<KeptBuffers<F>, Error> {
        let pairs = self.pairs().iter().map(|pairs| pairs.list.len()).max().unwrap_or(1);
        let whole = |range: &Range<usize>| range.len().next_multiple_of(STEP);
        let elements = whole(&block.rows) * whole(&block.cols) * pairs;
        let partial = elements * self.blocks.schedule.partials();
        Ok(KeptBuffers { acc: Buffer::zeroed(elements)?, partial: Buffer::zeroed(partial)? })
    }
}

struct KeptBuffers<F> {
    acc: Buffer<F>,
    partial: Buffer<F>,
}

impl<F: Real> KeptBuffers<F> {
    fn clear(&mut self) {
        self.acc.fill(F::ZERO);
        self.partial.fill(F::ZERO);
    }

    fn borrow(&mut self) -> Kept<'_, F> {
        Kept { acc: &mut self.acc, partial: &mut self.partial }
    }
}

/// Accumulators of a whole block, kept between passes; empty for a single pass.
struct Kept<'k, F> {
    acc: &'k mut [F],
    partial: &'k mut [F],
}

impl<F> Kept<'_, F> {
    fn none() -> Self {
        Self { acc: &mut [], partial: &mut [] }
    }
}

struct Job<'j, 'a> {
    call: &'j Call<'a>,
    team: &'j Team<'j>,
    cut: &'j Cut,
    block: &'j Block,
    pass: &'j Pass,
    pairs: &'j [Pairs],
    write: bool,
}

impl Job<'_, '_> {
    fn region(&self, pairs: &Pairs) -> Region {
        let origins = match self.cut {
            Cut::Square(range) => (range.start, range.start),
            Cut::Rectangle(rows, cols) => (rows.start, cols.start),
            Cut::Diagonal(_) => (0, 0),
        };
        Region {
            out: self.call.out,
            rows: self.block.rows.clone(),
            cols: self.block.cols.clone(),
            row_origin: origins.0,
            col_origin: origins.1,
            mirror: matches!(self.cut, Cut::Square(_)),
            layout: pairs.layout.clone(),
            scale: self.call.scale,
        }
    }

    fn packed<'s, F: Real, const W: usize>(&self, side: &'s Side<F>) -> Vec<Packed<'s, F, W>> {
        let nodes = self.pass.nodes.iter().zip(&side.spans);
        nodes
            .map(|(&node, span)| {
                let shape = self.call.program.nodes[node].shape;
                let k = self.pass.slice.as_ref().map_or(shape.k, ExactSizeIterator::len);
                Packed::new(&side.panels[span.clone()], shape.units(), k)
            })
            .collect()
    }

    /// Sweep all macro tiles of the block. Kept accumulators come in and go out; without them each tile starts from zero.
    fn sweep<F: Real, const MR: usize>(
        &self,
        (rows, cols): (&Side<F>, &Side<F>),
        kept: Kept<'_, F>,
        workers: &mut [Worker<F>],
        finite: &AtomicBool,
    ) {
        let (row_panels, col_panels) = (self.packed(rows), self.packed(cols));
        let merged: Vec<_> = rows.merged.iter().zip(&cols.merged).collect();
        let plain: Vec<_> = rows.plain.iter().zip(&cols.plain).collect();
        let diagonal_only = matches!(self.cut, Cut::Diagonal(_));
        let tasks = self.tasks::<F, MR>(kept);
        self.team.run(workers, tasks, self.call.cancel, |worker, task| {
            let region = self.region(task.pairs);
            let job = Sweep {
                groups: &self.pass.groups,
                rows: &row_panels,
                cols: &col_panels,
                merged: &merged,
                plain: &plain,
                p: task.place.p.clone(),
                q: task.place.q.clone(),
                triangle: self.block.triangle,
                diagonal_only,
                examples: (self.block.rows.len(), self.block.cols.len()),
                pairs: &task.pairs.list,
                cancel: self.call.cancel,
            };
            let count = job.p.len() * job.q.len() * job.pairs.len();
            let own = task.acc.is_empty();
            let acc = if own { tiles(&mut worker.acc) } else { tiles(task.acc) };
            let acc = &mut acc[..count];
            if own {
                acc.fill([[F::ZERO; MR]; NR]);
            }
            let partial = tiles::<F, MR>(task.partial);
            sweep(self.call.isa, &job, acc, partial, tiles(&mut worker.scratch));
            if self.write && !self.call.cancel.load(Ordering::Relaxed) {
                let fine = if diagonal_only {
                    region.write_diagonal(&job, acc)
                } else {
                    region.write(&job, acc, &mut worker.line)
                };
                if !fine {
                    finite.store(false, Ordering::Relaxed);
                }
            }
            self.call.done.fetch_add(task.place.entries, Ordering::Relaxed);
        });
    }

    /// Every macro tile with every list of output pairs: where there are few of the one, there may be many of the other.
    fn tasks<'k, F: Real, const MR: usize>(&'k self, kept: Kept<'k, F>) -> Vec<Task<'k, F>> {
        let Kept { mut acc, mut partial } = kept;
        let mut tasks = Vec::new();
        let places = macro_tiles::<MR>(self.block, self.call.blocks.macro_side, self.cut);
        let every = self.pairs.iter().flat_map(|pairs| places.iter().map(move |at| (pairs, at)));
        for (pairs, place) in every {
            let elements = place.p.len() * place.q.len() * pairs.list.len() * MR * NR;
            let mine = acc.split_off_mut(..elements.min(acc.len())).unwrap_or_default();
            let slots = elements * self.call.blocks.schedule.partials();
            let sums = partial.split_off_mut(..slots.min(partial.len())).unwrap_or_default();
            tasks.push(Task { place: place.clone(), pairs, acc: mine, partial: sums });
        }
        tasks
    }
}

/// A macro tile, its output pairs and its kept accumulators, if any.
struct Task<'k, F> {
    place: Macro,
    pairs: &'k Pairs,
    acc: &'k mut [F],
    partial: &'k mut [F],
}

fn tiles<F: Real, const MR: usize>(elements: &mut [F]) -> &mut [Tile<F, MR>] {
    elements.as_chunks_mut::<MR>().0.as_chunks_mut::<NR>().0
}
