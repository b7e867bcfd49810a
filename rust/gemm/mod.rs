//! The kernel by BLAS: for each leaf two products of matrices in memory, multiplied there and added.
//!
//! A worker owns square blocks of `side` examples and walks the terms of the program. `e` is the number of kernel rows of an example (R for
//! `"full"`, else 1):
//!
//! ```text
//! gram  = acts_i acts_j^T            (side x side)
//! other = cots_i cots_j^T            (side e x side e), for every pair of positions
//! acc  += weight * gram * other
//! ```
//!
//! Leaves with positions and many outputs for which that is cheaper have the gradients of one side expanded (`one_side.rs`).
//! Look-ups, which are no products of matrices, come from the fused kernel, block by block.
//!
//! **Precision.** Features are multiplied in chunks of [`KC`], so the chains are no longer than the fused kernel's, but their order is BLAS's
//! and no bits are promised. The lower half is computed and mirrored.
//!
//! **Trust.** Every product is compared with a product by a random vector of signs, `G t` against `A (B^T t)`, at a cost of `2/side` of it; a
//! library that gets one entry wrong by more than rounding is found out.
//!
//! **Memory.** Blocks, panels of a chunk, and all positions of a block for leaves that have them; `side` is chosen to fit.

mod check;
mod fit;
mod one_side;
mod sink;
mod terms;

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayViewMutD;

pub use self::fit::{Fit, fit};
use self::sink::Sink;
use self::terms::{add, add_product, parts};
use crate::blas::Multiply;
use crate::contraction::OneSide;
use crate::cut::Cut;
use crate::error::Error;
use crate::kernel::{Isa, Positions, Real};
use crate::plan::Blocks;
use crate::pool;
use crate::program::{Program, Term};

/// Rows of the kernel along a block at most: packing is a hundredth of the work there.
const SIDE: usize = 1024;
/// Elements of a chunk of an expanded leaf.
const TABLE_CHUNK: usize = 1024;
/// Fixed bytes of a worker: its stack, small tables.
const OVERHEAD: u128 = 1 << 20;
/// Roundings that a correct product and its check may differ by, in units of the bound of one.
const SLACK: f64 = 4.0;

/// One run of the engine.
pub struct Engine<'a, F> {
    /// What to compute.
    pub program: &'a Program<'a>,
    /// The look-up terms of it.
    pub lookups: Option<(Program<'a>, Blocks)>,
    /// Who multiplies.
    pub blas: &'a dyn Multiply<F>,
    /// Examples along a block.
    pub side: usize,
    /// Workers.
    pub threads: usize,
    /// Instruction set of the look-ups.
    pub isa: Isa,
    /// Factor on every entry.
    pub scale: f64,
    /// Set when the caller wants to stop.
    pub cancel: &'a AtomicBool,
    /// Set when a product was wrong.
    pub wrong: &'a AtomicBool,
    /// Entries done so far.
    pub done: &'a AtomicU64,
}

/// The part of a program that is no product of matrices.
pub fn lookup_terms<'a>(program: &Program<'a>) -> Option<Program<'a>> {
    let looked_up = |term: &&Term| matches!(term, Term::Match { .. } | Term::Cross { .. });
    let terms: Vec<Term> = program.terms.iter().filter(looked_up).copied().collect();
    (!terms.is_empty()).then(|| Program { terms, ..program.clone() })
}

/// A block of examples.
struct Block {
    rows: Range<usize>,
    cols: Range<usize>,
    /// Whether only the lower half is wanted.
    diagonal: bool,
}

/// What one worker keeps.
struct Worker<F> {
    acc: Vec<F>,
    gram: Vec<F>,
    other: Vec<F>,
    left: Vec<F>,
    right: Vec<F>,
    bytes: Vec<u8>,
    random: u64,
}

impl<F> Worker<F> {
    fn new(index: usize) -> Self {
        let [acc, gram, other, left, right] = [(); 5].map(|()| Vec::new());
        let random = 0x9E37_79B9_7F4A_7C15 ^ index as u64;
        Self { acc, gram, other, left, right, bytes: Vec::new(), random }
    }
}

/// Everything of one output plane, or all pairs of outputs.
#[derive(Clone, Copy)]
struct Outputs {
    first: usize,
    count: usize,
}

impl<F: Real> Engine<'_, F> {
    /// Compute a cut into `out`, bytes `[plane, row, column, byte]`. Returns whether all entries are finite.
    ///
    /// # Errors
    /// [`Error::Cancelled`], which is also the end after a wrong product; [`Error::Internal`].
    pub fn run<const MR: usize>(
        &self,
        cut: &Cut,
        out: ArrayViewMutD<'_, u8>,
        double: bool,
    ) -> Result<bool, Error> {
        let (rows, cols, square) = match cut {
            Cut::Square(range) => (range, range, true),
            Cut::Rectangle(rows, cols) => (rows, cols, false),
            Cut::Diagonal(_) => return Err(Error::Internal { what: "a diagonal by BLAS".into() }),
        };
        let mut blocks = Vec::new();
        for i in parts(rows, self.side) {
            for j in parts(cols, self.side).filter(|j| !square || j.start <= i.start) {
                let diagonal = square && i == j;
                blocks.push(Block { rows: i.clone(), cols: j, diagonal });
            }
        }
        let sink =
            Sink { out: Mutex::new(out), double, origin: (rows.start, cols.start), mirror: square };
        let finite = AtomicBool::new(true);
        let failed = Mutex::new(None);
        let mut workers: Vec<Worker<F>> = (0..self.threads).map(Worker::new).collect();
        let stop = AtomicBool::new(false);
        pool::run(&mut workers, blocks, &stop, |worker, block| {
            let result = self.block::<MR>(worker, &block);
            match result {
                Ok(()) => {
                    let good = sink.write(self, worker, &block);
                    finite.fetch_and(good, Ordering::Relaxed);
                    let area = (block.rows.len() * block.cols.len()) as u64;
                    self.done.fetch_add(area, Ordering::Relaxed);
                }
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(finite.into_inner()),
        }
    }

    /// Entries that [`Engine::run`] counts in `done`.
    pub fn total(&self, cut: &Cut) -> u64 {
        let area = |rows: &Range<usize>, cols: &Range<usize>| (rows.len() * cols.len()) as u64;
        match cut {
            Cut::Square(range) => {
                let halves = parts(range, self.side).map(|i| area(&i, &(range.start..i.end)));
                halves.sum()
            }
            Cut::Rectangle(rows, cols) => area(rows, cols),
            Cut::Diagonal(_) => 0,
        }
    }

    fn planes(&self) -> Vec<Outputs> {
        let count = self.program.outputs.max(1);
        if self.program.all_pairs {
            return vec![Outputs { first: 0, count }];
        }
        (0..count).map(|first| Outputs { first, count: 1 }).collect()
    }

    fn block<const MR: usize>(&self, worker: &mut Worker<F>, block: &Block) -> Result<(), Error> {
        let planes = self.planes();
        let kept = planes[0].count;
        let area = block.rows.len() * block.cols.len() * kept * kept;
        worker.acc.clear();
        worker.acc.resize(planes.len() * area, F::ZERO);
        for term in &self.program.terms {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            for (index, &outputs) in planes.iter().enumerate() {
                let at = index * area..(index + 1) * area;
                if let Some(leaf) = OneSide::of(self.program, term) {
                    self.one_side(worker, block, &leaf)?;
                    continue;
                }
                match *term {
                    Term::Gram { node, weight }
                    | Term::Positions(Positions { acts: None, cots: node, weight, .. }) => {
                        let mut gram = core::mem::take(&mut worker.gram);
                        self.chunked(worker, block, &self.program.nodes[node], outputs, &mut gram)?;
                        add(&mut worker.acc[at], weight, &gram);
                        worker.gram = gram;
                    }
                    Term::Product { a, b, weight } => {
                        let mut gram = core::mem::take(&mut worker.gram);
                        let mut other = core::mem::take(&mut worker.other);
                        self.chunked(worker, block, &self.program.nodes[a], outputs, &mut gram)?;
                        self.chunked(worker, block, &self.program.nodes[b], outputs, &mut other)?;
                        add_product(&mut worker.acc[at], weight, &gram, &other);
                        (worker.gram, worker.other) = (gram, other);
                    }
                    Term::Positions(positions) => {
                        self.positions(worker, block, &positions, outputs, at)?;
                    }
                    Term::Match { .. } | Term::Cross { .. } => {}
                }
            }
        }
        self.looked_up::<MR>(worker, block)
    }
}
