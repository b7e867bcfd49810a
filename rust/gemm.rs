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
//! Look-ups, which are no products of matrices, come from the fused kernel, block by block.
//!
//! **Precision.** Features are multiplied in chunks of [`KC`], so the chains are no longer than the fused kernel's, but their order is BLAS's
//! and no bits are promised. The lower half is computed and mirrored.
//!
//! **Trust.** Every product is compared with a product by a random vector of signs, `G t` against `A (B^T t)`, at a cost of `2/side` of it; a
//! library that gets one entry wrong by more than rounding is found out.
//!
//! **Memory.** Blocks, panels of a chunk, and all positions of a block for leaves that have them; `side` is chosen to fit.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayViewMutD, Axis, IxDyn, Slice};

use crate::blas::{Multiply, Rows};
use crate::block::{Call, Cut};
use crate::error::Error;
use crate::kernel::{Isa, KC, Out, Positions, Real, Table};
use crate::plan::{Blocks, Sizes};
use crate::pool;
use crate::program::{Content, Node, Program, Term};

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

/// How a problem is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Examples along a block.
    pub side: usize,
    /// Workers.
    pub threads: usize,
    /// Most bytes that the call adds besides the result; BLAS's own buffers are BLAS's.
    pub bytes: u128,
}

/// Examples along a block and workers that fit the limit.
///
/// # Errors
/// [`Error::Memory`] with the smallest limit that would do.
pub fn fit(program: &Program<'_>, sizes: Sizes) -> Result<Fit, Error> {
    let kept = rows_of_example(program);
    let share = sizes.rows.max(sizes.cols).div_ceil(2 * sizes.threads).next_power_of_two();
    let mut side = (SIDE / kept).min(share.max(64)).max(1);
    loop {
        let bytes = worker_bytes(program, sizes, side);
        for threads in [sizes.threads, 1] {
            let bytes = bytes * threads as u128;
            if bytes <= sizes.limit && (side >= 16 || threads == 1) {
                return Ok(Fit { side, threads, bytes });
            }
        }
        if side == 1 {
            let what = "one block of one example of engine=\"blas\"".to_owned();
            return Err(Error::Memory { limit: sizes.limit, needs: bytes, what });
        }
        side /= 2;
    }
}

/// Rows of the kernel that belong to an example.
fn rows_of_example(program: &Program<'_>) -> usize {
    if program.all_pairs { program.outputs.max(1) } else { 1 }
}

fn worker_bytes(program: &Program<'_>, sizes: Sizes, side: usize) -> u128 {
    let wide = |x: usize| x as u128;
    let kept = rows_of_example(program);
    let square = wide(side * kept).pow(2);
    let planes = if program.all_pairs { 1 } else { wide(program.outputs.max(1)) };
    let looked_up = lookup_terms(program).is_some();
    let squares = (planes * if looked_up { 2 } else { 1 } + 2) * square;
    let panels = program.terms.iter().map(|term| match term {
        Term::Positions(Positions { acts: Some(acts), cots, .. }) => {
            let elements = |&node: &usize| program.nodes[node].elements();
            2 * wide(side) * wide([*acts, *cots].iter().map(elements).sum())
        }
        _ => 2 * wide(side * kept) * wide(TABLE_CHUNK.max(widest_row(program))),
    });
    let scratch = program.nodes.iter().map(|node| match &node.rows {
        Content::Table(table) => wide((TABLE_CHUNK + 2 * table.d_out + 4 * KC) * KC),
        Content::Rows(_) => 0,
    });
    let own = squares + panels.max().unwrap_or(0) + scratch.max().unwrap_or(0);
    let lookups = lookup_terms(program).map_or(0, |terms| {
        let whole = Sizes { rows: side, cols: side, threads: 1, limit: u128::MAX, ..sizes };
        Blocks::new(&terms, whole).map_or(u128::MAX >> 8, |blocks| blocks.bytes)
    });
    OVERHEAD + own * wide(sizes.item) + lookups
}

/// Widest row of a table: the least that is expanded at a time.
fn widest_row(program: &Program<'_>) -> usize {
    let rows = program.nodes.iter().map(|node| match &node.rows {
        Content::Table(table) => table.d_out,
        Content::Rows(_) => 0,
    });
    rows.max().unwrap_or(0)
}

/// A block of examples.
struct Block {
    rows: Range<usize>,
    cols: Range<usize>,
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
                blocks.push(Block { rows: i.clone(), cols: j });
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

    /// `gram = rows cols^T` of a node with one position, chunk by chunk of features.
    fn chunked(
        &self,
        worker: &mut Worker<F>,
        block: &Block,
        node: &Node<'_>,
        outputs: Outputs,
        gram: &mut Vec<F>,
    ) -> Result<(), Error> {
        let (m, n) = (block.rows.len() * outputs.count, block.cols.len() * outputs.count);
        gram.clear();
        gram.resize(m * n, F::ZERO);
        let mut check = Check::new(&mut worker.random, m, n);
        for (index, ks) in chunks(node).into_iter().enumerate() {
            let Worker { left, right, random, .. } = worker;
            self.pack(&node.rows, (&block.rows, outputs), ks.clone(), left, random)?;
            self.pack(node.cols(), (&block.cols, outputs), ks.clone(), right, random)?;
            let left = Rows::new(left, m, ks.len(), ks.len());
            let right = Rows::new(right, n, ks.len(), ks.len());
            self.blas.product(left, right, index > 0, gram);
            check.add(left, right);
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
        }
        self.judge(&check, gram)
    }

    fn judge(&self, check: &Check, gram: &[F]) -> Result<(), Error> {
        if check.passes(gram) {
            return Ok(());
        }
        self.wrong.store(true, Ordering::Relaxed);
        Err(Error::Cancelled)
    }

    /// Rows `(example, output)` of features `ks`.
    fn pack(
        &self,
        content: &Content<'_>,
        (examples, outputs): (&Range<usize>, Outputs),
        ks: Range<usize>,
        to: &mut Vec<F>,
        random: &mut u64,
    ) -> Result<(), Error> {
        to.clear();
        to.resize(examples.len() * outputs.count * ks.len(), F::ZERO);
        for (index, row) in to.chunks_mut(ks.len().max(1)).enumerate() {
            // Expanding the tables of a block takes longer than people wait for Ctrl-C.
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let n = examples.start + index / outputs.count;
            let r = outputs.first + index % outputs.count;
            match content {
                Content::Rows(source) => source.row([n, r, 0, 0], ks.start, row),
                Content::Table(table) => self.expand(table, (n, r), ks.start, row, random)?,
            }
        }
        Ok(())
    }

    /// Whole rows of the table `sum_t acts_t (x) cots_t` of one example, from feature `k0` on.
    fn expand(
        &self,
        table: &Table<'_>,
        (n, r): (usize, usize),
        k0: usize,
        to: &mut [F],
        random: &mut u64,
    ) -> Result<(), Error> {
        let (row0, count) = (k0 / table.d_out, to.len() / table.d_out);
        let (g, i0) = (row0 / table.d_in, row0 % table.d_in);
        let positions = table.acts.positions();
        let (mut acts, mut cots) = (vec![F::ZERO; count * KC], vec![F::ZERO; table.d_out * KC]);
        let mut line = vec![F::ZERO; count.max(table.d_out)];
        let mut check = Check::new(random, count, table.d_out);
        for t0 in (0..positions).step_by(KC) {
            let width = KC.min(positions - t0);
            for t in 0..width {
                let at = [n, r, g, t0 + t];
                table.acts.row(at, i0, &mut line[..count]);
                line[..count].iter().enumerate().for_each(|(i, &x)| acts[i * KC + t] = x);
                table.cots.row(at, 0, &mut line[..table.d_out]);
                line[..table.d_out].iter().enumerate().for_each(|(o, &x)| cots[o * KC + t] = x);
            }
            let left = Rows::new(&acts, count, width, KC);
            let right = Rows::new(&cots, table.d_out, width, KC);
            self.blas.product(left, right, t0 > 0, to);
            check.add(left, right);
        }
        self.judge(&check, to)
    }

    /// Every pair of positions of a leaf.
    fn positions(
        &self,
        worker: &mut Worker<F>,
        block: &Block,
        term: &Positions,
        outputs: Outputs,
        at: Range<usize>,
    ) -> Result<(), Error> {
        let Some(acts) = term.acts else { return Ok(()) };
        let one = Outputs { first: 0, count: 1 };
        let acts_outputs = if term.acts_by_output { outputs } else { one };
        let (acts, cots) = (&self.program.nodes[acts], &self.program.nodes[term.cots]);
        let (m, n) = (block.rows.len(), block.cols.len());
        let mut panels = [(); 4].map(|()| Vec::new());
        for (node, outputs, pair) in [(acts, acts_outputs, 0), (cots, outputs, 2)] {
            pack_units(&node.rows, node, &block.rows, outputs, &mut panels[pair]);
            pack_units(node.cols(), node, &block.cols, outputs, &mut panels[pair + 1]);
        }
        let units = term.groups * term.positions;
        let Worker { acc, gram, other, random, .. } = worker;
        for g in 0..term.groups {
            for tu in 0..term.positions * term.positions {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let unit = |t: usize| g * term.positions + t;
                let (t, u) = (unit(tu / term.positions), unit(tu % term.positions));
                let view = |panel: usize, rows: usize, k: usize, unit: usize| {
                    let start = (unit * k).min(panels[panel].len());
                    Rows::new(&panels[panel][start..], rows, k, units * k)
                };
                let sides = |pair: usize, outputs: Outputs, k: usize| {
                    let (rows, cols) = (m * outputs.count, n * outputs.count);
                    (view(pair, rows, k, t), view(pair + 1, cols, k, u))
                };
                let ka = acts.shape.k;
                self.checked(random, sides(0, acts_outputs, ka), gram)?;
                self.checked(random, sides(2, outputs, cots.shape.k), other)?;
                if acts_outputs.count == outputs.count {
                    add_product(&mut acc[at.clone()], term.weight, gram, other);
                } else {
                    add_spread(&mut acc[at.clone()], term.weight, gram, other, (n, outputs.count));
                }
            }
        }
        Ok(())
    }

    fn checked(
        &self,
        random: &mut u64,
        (left, right): (Rows<'_, F>, Rows<'_, F>),
        gram: &mut Vec<F>,
    ) -> Result<(), Error> {
        gram.clear();
        gram.resize(left.rows() * right.rows(), F::ZERO);
        self.blas.product(left, right, false, gram);
        let mut check = Check::new(random, left.rows(), right.rows());
        check.add(left, right);
        self.judge(&check, gram)
    }

    /// Add what the fused kernel makes of the look-ups.
    fn looked_up<const MR: usize>(
        &self,
        worker: &mut Worker<F>,
        block: &Block,
    ) -> Result<(), Error> {
        let Some((program, blocks)) = &self.lookups else { return Ok(()) };
        let kept = rows_of_example(program);
        let item = size_of::<F>();
        let (m, n) = (block.rows.len() * kept, block.cols.len() * kept);
        let planes = worker.acc.len() / (m * n).max(1);
        worker.bytes.clear();
        worker.bytes.resize(worker.acc.len() * item, 0);
        let shape = IxDyn(&[planes, m, n, item]);
        let internal = |what: String| Error::Internal { what };
        let mut view = ArrayViewMutD::from_shape(shape, &mut worker.bytes)
            .map_err(|error| internal(error.to_string()))?;
        let call = Call {
            program,
            blocks,
            isa: self.isa,
            threads: 1,
            out: Out::new(&mut view, item == 8)?,
            scale: 1.0,
            cancel: self.cancel,
            done: &AtomicU64::new(0),
        };
        call.run::<F, MR>(&Cut::Rectangle(block.rows.clone(), block.cols.clone()))?;
        for (to, bytes) in worker.acc.iter_mut().zip(worker.bytes.chunks_exact(item)) {
            *to = to.plus(number(bytes));
        }
        Ok(())
    }
}

/// A number from its bytes.
fn number<F: Real>(bytes: &[u8]) -> F {
    match (bytes.first_chunk::<8>(), bytes.first_chunk::<4>()) {
        (Some(&eight), _) => F::from_f64(f64::from_ne_bytes(eight)),
        (None, Some(&four)) => F::from_f32(f32::from_ne_bytes(four)),
        _ => F::ZERO,
    }
}

fn parts(range: &Range<usize>, side: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(side).map(move |start| start..(start + side).min(end))
}

/// Features in the order of the chain; of a table whole rows of one group.
fn chunks(node: &Node<'_>) -> Vec<Range<usize>> {
    let step = match &node.rows {
        Content::Rows(_) => return parts(&(0..node.shape.k), KC).collect(),
        Content::Table(table) if table.d_in * table.d_out == 0 => return Vec::new(),
        Content::Table(table) => (TABLE_CHUNK / table.d_out).max(1) * table.d_out,
    };
    let Content::Table(table) = &node.rows else { return Vec::new() };
    let group = table.d_in * table.d_out;
    (0..table.groups).flat_map(|g| parts(&(g * group..(g + 1) * group), step)).collect()
}

/// All units of a node: rows `(example, output)`, each `[group][position][feature]`.
fn pack_units<F: Real>(
    content: &Content<'_>,
    node: &Node<'_>,
    examples: &Range<usize>,
    outputs: Outputs,
    to: &mut Vec<F>,
) {
    let Content::Rows(source) = content else { return };
    let shape = &node.shape;
    let units = shape.groups * shape.positions;
    to.resize(examples.len() * outputs.count * units * shape.k, F::ZERO);
    for (index, unit) in to.chunks_mut(shape.k.max(1)).enumerate() {
        let (row, gt) = (index / units, index % units);
        let n = examples.start + row / outputs.count;
        let r = outputs.first + row % outputs.count;
        source.row([n, r, gt / shape.positions, gt % shape.positions], 0, unit);
    }
}

fn add<F: Real>(acc: &mut [F], weight: f64, gram: &[F]) {
    let weight = F::from_f64(weight);
    for (to, &x) in acc.iter_mut().zip(gram) {
        *to = to.plus(weight.times(x));
    }
}

fn add_product<F: Real>(acc: &mut [F], weight: f64, gram: &[F], other: &[F]) {
    let weight = F::from_f64(weight);
    for ((to, &x), &y) in acc.iter_mut().zip(gram).zip(other) {
        *to = to.plus(weight.times(x.times(y)));
    }
}

/// As [`add_product`] where `gram` has one entry for the outputs of a pair of `n` column examples.
fn add_spread<F: Real>(
    acc: &mut [F],
    weight: f64,
    gram: &[F],
    other: &[F],
    (n, outputs): (usize, usize),
) {
    let weight = F::from_f64(weight);
    let width = n * outputs;
    let lines = acc.chunks_exact_mut(width.max(1)).zip(other.chunks_exact(width.max(1)));
    for (row, (acc, other)) in lines.enumerate() {
        let gram = &gram[row / outputs * n..][..n];
        for (col, (to, &y)) in acc.iter_mut().zip(other).enumerate() {
            *to = to.plus(weight.times(gram[col / outputs].times(y)));
        }
    }
}

/// `G t` against `A (B^T t)` for signs `t`, and the rounding that they may differ by.
struct Check {
    signs: Vec<f64>,
    want: Vec<f64>,
    size: Vec<f64>,
    features: usize,
}

impl Check {
    fn new(random: &mut u64, rows: usize, cols: usize) -> Self {
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

    fn add<F: Real>(&mut self, a: Rows<'_, F>, b: Rows<'_, F>) {
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
    fn passes<F: Real>(&self, gram: &[F]) -> bool {
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

/// The result, which workers fill one at a time.
struct Sink<'a> {
    out: Mutex<ArrayViewMutD<'a, u8>>,
    double: bool,
    origin: (usize, usize),
    mirror: bool,
}

impl Sink<'_> {
    /// Write a finished block, and its mirror image. Returns whether all entries are finite.
    fn write<F: Real>(
        &self,
        engine: &Engine<'_, F>,
        worker: &mut Worker<F>,
        block: &Block,
    ) -> bool {
        let kept = rows_of_example(engine.program);
        let (m, n) = (block.rows.len() * kept, block.cols.len() * kept);
        let (row, col) =
            ((block.rows.start - self.origin.0) * kept, (block.cols.start - self.origin.1) * kept);
        let diagonal = self.mirror && block.rows == block.cols;
        let mut finite = true;
        let mut line = Vec::new();
        for (plane, acc) in worker.acc.chunks_exact_mut((m * n).max(1)).enumerate() {
            for x in acc.iter_mut() {
                *x = if engine.scale == 1.0 { *x } else { x.times(F::from_f64(engine.scale)) };
                let stored = if self.double { x.to_f64() } else { f64::from(x.to_f32()) };
                finite &= stored.is_finite();
            }
            if diagonal {
                (0..m).for_each(|i| (0..i).for_each(|j| acc[j * n + i] = acc[i * n + j]));
            }
            for i in 0..m {
                self.store([plane, row + i, col], &acc[i * n..][..n]);
            }
            for j in 0..if self.mirror && !diagonal { n } else { 0 } {
                line.clear();
                line.extend((0..m).map(|i| acc[i * n + j]));
                self.store([plane, col + j, row], &line);
            }
        }
        finite
    }

    /// Write entries along a row.
    fn store<F: Real>(&self, [plane, row, col]: [usize; 3], values: &[F]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = out.index_axis_mut(Axis(0), plane);
        let mut out = out.index_axis_mut(Axis(0), row);
        let end = col + values.len();
        let mut cells = out.slice_axis_mut(Axis(0), Slice::from(col..end));
        let item = if self.double { 8 } else { 4 };
        if let Some(bytes) = cells.as_slice_mut() {
            let cells = bytes.chunks_exact_mut(item).zip(values);
            return match self.double {
                true => cells.for_each(|(to, x)| to.copy_from_slice(&x.to_f64().to_ne_bytes())),
                false => cells.for_each(|(to, x)| to.copy_from_slice(&x.to_f32().to_ne_bytes())),
            };
        }
        for (mut cell, x) in cells.outer_iter_mut().zip(values) {
            let (eight, four) = (x.to_f64().to_ne_bytes(), x.to_f32().to_ne_bytes());
            let bytes = if self.double { eight.as_slice() } else { four.as_slice() };
            cell.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        }
    }
}
