//! Products `K V = J_rows (J_cols^T V)`, leaf by leaf; nothing of size `N x N` or `N x P` is formed.
//!
//! The *table* of a leaf is its gradient's shape, `l x c`, for each of `k` vectors at once. A *unit* `m` is an example and a position (or an
//! example and an output row); its row of the Jacobian is an outer product, or lies there, or is one row of the table:
//!
//! ```text
//! pull   S_k += sum_m left_m (sum_r v_mrk right_mr)^T        y = J^T V
//! push   y_mrk += left_m^T S_k right_mr                      y = J S
//! ```
//!
//! Both are products of matrices in register tiles of the fused kernel (`MR x NR`), with the rest folded into the ends of it: `pull` scales
//! the vectors into the packed lanes, `push` meets `right` before a tile leaves its registers.
//!
//! | use | lanes of `pull` | columns of `pull` | lanes of `push` | columns of `push` |
//! |---|---|---|---|---|
//! | scaled, `c` wide | `v_k right`, one vector a panel | `left` | columns of `S_k` | units |
//! | scaled, `c` narrow | `left` | `v_k right`, all vectors | all columns of all `S_k` | units |
//! | plain (dense, or formed unit by unit) | the Jacobian's row | `v` | vectors | units |
//! | dense, few vectors | none: one row at a time | | | |
//! | look-up | one row of `S_k` at a time | | | |
//!
//! | file | holds |
//! |---|---|
//! | `job.rs` | leaves to tables and uses |
//! | `factor.rs` | rows of factors; rows of the Jacobian formed from them |
//! | `fit.rs` | pieces of a table, rows at a time and workers, from a memory limit |
//! | `table.rs` | where a table's elements are |
//! | `pull.rs`, `push.rs`, `few.rs`, `lookup.rs` | the loops |
//!
//! **Bits.** An element of a table is a sum over blocks of [`KC`](crate::kernel::KC) units, ascending, each a fused chain; an entry of the
//! result is a sum over blocks of features, ascending, leaf by leaf. Pieces depend on the limit and never on the threads, and each element has
//! one writer, so threads and instruction sets change no bits.
//!
//! **Memory.** One piece of a table, the packed rows of some blocks of units, and a block of units for each worker.

mod factor;
mod few;
mod fit;
mod job;
mod lookup;
mod pull;
mod push;
mod table;

use core::sync::atomic::{AtomicBool, Ordering};

use self::fit::Fit;
use self::job::Job;
use self::table::{Piece, Shape};
use crate::error::Error;
use crate::kernel::{Buffer, Isa, Real};
use crate::program::{Entry, Mode};
use crate::team::{self, Team};

/// A product to be computed.
pub struct Product<'a, F> {
    /// Leaves of both sides.
    pub entries: &'a [Entry<'a>],
    /// Per leaf, for look-ups: the ids that are rows of the table, ascending; `None`: the table has all of them.
    pub known: &'a [Option<&'a [i64]>],
    /// What becomes of the factors' output rows.
    pub mode: &'a Mode,
    /// Output rows of the factors.
    pub outputs: usize,
    /// Factor on every entry.
    pub scale: f64,
    /// `(m, r, vectors)`.
    pub v: &'a [F],
    /// Vectors.
    pub vectors: usize,
    /// Instruction set.
    pub isa: Isa,
    /// Workers.
    pub threads: usize,
    /// Bytes that may be added.
    pub limit: u128,
    /// Set when the caller wants to stop.
    pub cancel: &'a AtomicBool,
}

/// What every phase of a product needs.
struct Pass<'a, F> {
    v: &'a [F],
    vectors: usize,
    kept: usize,
    isa: Isa,
    cancel: &'a AtomicBool,
    shape: Shape,
    piece: Piece,
    factor: F,
}

/// Who works, and where.
struct Room<'a, 'w, F> {
    team: &'a Team<'a>,
    load: &'a mut [F],
    workers: &'a mut [&'w mut [F]],
}

impl<F: Real> Product<'_, F> {
    /// Add `K V` to `y`, `(n, r, vectors)`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the smallest pieces do not fit, [`Error::Allocation`], [`Error::Cancelled`].
    pub fn add_to<const MR: usize>(&self, y: &mut [F]) -> Result<(), Error> {
        let kept = self.kept();
        let jobs = job::jobs(self.entries, self.known, self.mode, self.outputs, self.vectors)?;
        let jobs: Vec<&Job<'_>> = jobs.iter().filter(|job| !job.is_empty()).collect();
        let fit = |job| Fit::new::<F, MR>(job, kept, self.vectors, (self.limit, self.threads));
        let fits: Vec<Fit> = jobs.iter().copied().map(fit).collect::<Result<_, _>>()?;
        let most = |of: fn(&Fit) -> usize| fits.iter().map(of).max().unwrap_or(0);
        let mut arena = Buffer::zeroed(most(Fit::elements))?;
        let each = |team: &Team<'_>| -> Result<(), Error> {
            for (job, fit) in jobs.into_iter().zip(&fits) {
                let (table, rest) = arena.split_at_mut(fit.table);
                let (load, rest) = rest.split_at_mut(fit.load);
                let scratch = rest.chunks_mut(fit.scratch.max(1)).take(fit.threads);
                // A job without need of room still needs its workers.
                let mut workers: Vec<&mut [F]> = scratch.collect();
                workers.resize_with(fit.threads, Default::default);
                for piece in fit.pieces(job, self.vectors) {
                    let shape = job.shape(&piece);
                    let factor = F::from_f64(job.factor * self.scale);
                    let pass = Pass {
                        v: self.v,
                        vectors: self.vectors,
                        kept,
                        isa: self.isa,
                        cancel: self.cancel,
                        shape,
                        piece,
                        factor,
                    };
                    let table = &mut table[..fit.table_of::<MR>(job, &shape)];
                    let mut room = Room { team, load, workers: &mut workers };
                    pass.piece::<MR>(job, fit, table, &mut room, y)?;
                }
            }
            Ok(())
        };
        team::with(most(|fit| fit.threads), each)
    }

    fn kept(&self) -> usize {
        if matches!(self.mode, Mode::Full) { self.outputs } else { 1 }
    }

    /// Multiply-adds of each leaf's product, roughly.
    ///
    /// # Errors
    /// [`Error::Internal`] if the two sides of a leaf are of different kinds.
    pub fn work(&self) -> Result<Vec<u128>, Error> {
        let one = |(entry, known)| {
            let (entry, known) = (core::slice::from_ref(entry), core::slice::from_ref(known));
            let jobs = job::jobs(entry, known, self.mode, self.outputs, self.vectors)?;
            Ok(jobs.iter().map(|job| job.work(self.kept(), self.vectors)).sum())
        };
        self.entries.iter().zip(self.known).map(one).collect()
    }
}

impl<F: Real> Pass<'_, F> {
    fn piece<const MR: usize>(
        &self,
        job: &Job<'_>,
        fit: &Fit,
        table: &mut [F],
        room: &mut Room<'_, '_, F>,
        y: &mut [F],
    ) -> Result<(), Error> {
        let (table, native) = table.split_at_mut(self.shape.elements::<MR>());
        let size = self.shape.native().elements::<MR>();
        let native = if native.len() < size { native } else { &mut native[..size] };
        table.fill(F::ZERO);
        for one in &job.pull {
            if one.is_plain() && job.padded {
                // A formed use of a tied table has a table of its own, in its own order.
                native.fill(F::ZERO);
                self.natively().pull::<MR>(one, fit, native, room);
                self.shape.add_native::<F, MR>(native, table);
            } else {
                self.pull::<MR>(one, fit, table, room);
            }
        }
        for one in &job.push {
            if one.is_plain() && job.padded {
                self.shape.copy_to_native::<F, MR>(table, native);
                self.natively().push::<MR>(one, fit, native, room, y);
            } else {
                self.push::<MR>(one, fit, table, room, y);
            }
        }
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The same pass over a table whose rows are all elements of one vector's table.
    fn natively(&self) -> Self {
        Pass { piece: self.piece.native(self.shape.cols), shape: self.shape.native(), ..*self }
    }
}
