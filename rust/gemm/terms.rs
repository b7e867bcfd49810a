//! What each term adds to a block.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use ndarray::{ArrayViewMutD, IxDyn};

use super::check::Check;
use super::fit::rows_of_example;
use super::{Block, Engine, Outputs, TABLE_CHUNK, Worker};
use crate::blas::Rows;
use crate::block::Call;
use crate::cut::Cut;
use crate::error::Error;
use crate::kernel::{KC, Out, Positions, Real, Table};
use crate::program::{Content, Node};

impl<F: Real> Engine<'_, F> {
    /// `gram = rows cols^T` of a node with one position, chunk by chunk of features.
    pub(super) fn chunked(
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
        let mut check = Check::new(self.isa, &mut worker.random, m, n);
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
        let mut check = Check::new(self.isa, random, count, table.d_out);
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
    pub(super) fn positions(
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

    /// `gram = left right^T`, chunk by chunk of features.
    pub(super) fn checked(
        &self,
        random: &mut u64,
        (left, right): (Rows<'_, F>, Rows<'_, F>),
        gram: &mut Vec<F>,
    ) -> Result<(), Error> {
        gram.resize(left.rows() * right.rows(), F::ZERO);
        if left.features() == 0 {
            gram.fill(F::ZERO);
        }
        let mut check = Check::new(self.isa, random, left.rows(), right.rows());
        for ks in parts(&(0..left.features()), KC) {
            let (left, right) = (left.columns(ks.clone()), right.columns(ks.clone()));
            self.blas.product(left, right, ks.start > 0, gram);
            check.add(left, right);
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
        }
        self.judge(&check, gram)
    }

    /// Add what the fused kernel makes of the look-ups.
    pub(super) fn looked_up<const MR: usize>(
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

pub(super) fn parts(
    range: &Range<usize>,
    side: usize,
) -> impl Iterator<Item = Range<usize>> + use<> {
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

pub(super) fn add<F: Real>(acc: &mut [F], weight: f64, gram: &[F]) {
    let weight = F::from_f64(weight);
    for (to, &x) in acc.iter_mut().zip(gram) {
        *to = to.plus(weight.times(x));
    }
}

pub(super) fn add_product<F: Real>(acc: &mut [F], weight: f64, gram: &[F], other: &[F]) {
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
