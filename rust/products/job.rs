//! Leaves to tables: which uses add to a table and read from it, and how.

use super::factor::{Factor, Rows};
use super::few::FEW;
use super::table::{Piece, Shape};
use crate::error::Error;
use crate::kernel::{Part, Reduce, View};
use crate::program::{Entry, Leaf, Mode, Use as Given};

/// Below this width the columns of all vectors share panels.
const NARROW: usize = 16;
/// Lanes that panels of one vector each may waste: a quarter.
const WASTE: (usize, usize) = (5, 4);

/// How one use adds to a table and reads from it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use<'a> {
    /// Row by row of the Jacobian: the table has one column.
    Plain(Rows<'a>),
    /// Outer products; `right` carries the output rows.
    Scaled {
        /// Rows of the table.
        left: Factor<'a>,
        /// Its columns.
        right: Factor<'a>,
    },
    /// Rows of the table by number.
    Lookup {
        /// `[n, 1, 1, t, 1]`
        ids: View<'a>,
        /// Its columns.
        right: Factor<'a>,
        /// Ids that are rows of the table, ascending.
        known: Option<&'a [i64]>,
    },
}

impl Use<'_> {
    /// Whether rows of the Jacobian are read.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Examples.
    pub(super) fn examples(&self) -> usize {
        match self {
            Self::Plain(rows) => rows.examples(),
            Self::Scaled { right, .. } | Self::Lookup { right, .. } => right.examples(),
        }
    }

    /// Units of one example.
    pub(super) fn units(&self, kept: usize) -> usize {
        match self {
            Self::Plain(_) => kept,
            Self::Scaled { right, .. } | Self::Lookup { right, .. } => right.positions(),
        }
    }
}

/// One table: a leaf, or a block of it, or one of the outputs of a trace.
#[derive(Clone, Debug)]
pub(super) struct Job<'a> {
    /// Rows of the table.
    pub(super) rows: usize,
    /// Columns.
    pub(super) cols: usize,
    /// Whether each vector has panels of its own.
    pub(super) padded: bool,
    /// Whether there are few vectors, and a Jacobian.
    pub(super) few: bool,
    /// Rows that belong together where the table is cut.
    pub(super) grain: usize,
    /// Uses of the column side.
    pub(super) pull: Vec<Use<'a>>,
    /// Uses of the row side.
    pub(super) push: Vec<Use<'a>>,
    /// Factor on the leaf's kernel.
    pub(super) factor: f64,
}

impl<'a> Job<'a> {
    /// Whether it adds nothing.
    pub(super) fn is_empty(&self) -> bool {
        let none = |uses: &[Use<'a>]| uses.iter().all(|one| one.examples() * one.units(1) == 0);
        self.rows * self.cols == 0 || none(&self.pull) || none(&self.push)
    }

    /// Sizes of a piece.
    pub(super) fn shape(&self, piece: &Piece) -> Shape {
        let (vectors, rows) = (piece.vectors.len(), piece.rows.len());
        self.shaped(vectors, rows)
    }

    /// Sizes of a piece of so many vectors and rows.
    pub(super) fn shaped(&self, vectors: usize, rows: usize) -> Shape {
        Shape { vectors, rows, cols: self.cols, padded: self.padded, few: self.few }
    }

    /// Multiply-adds, roughly.
    pub(super) fn work(&self, kept: usize, vectors: usize) -> u128 {
        let table = self.rows * self.cols;
        let each = |one: &Use<'a>| match one {
            Use::Lookup { .. } => one.examples() * one.units(kept) * self.cols * vectors,
            _ => one.examples() * one.units(kept) * table * vectors,
        };
        self.pull.iter().chain(&self.push).map(|one| each(one) as u128).sum()
    }
}

/// The tables of all leaves, in order.
///
/// # Errors
/// [`Error::Internal`] if the two sides of a leaf are of different kinds.
pub(super) fn jobs<'a>(
    entries: &[Entry<'a>],
    known: &[Option<&'a [i64]>],
    mode: &'a Mode,
    outputs: usize,
    vectors: usize,
) -> Result<Vec<Job<'a>>, Error> {
    let planes = if matches!(mode, Mode::Trace) { outputs } else { 1 };
    let kept = if matches!(mode, Mode::Full) { outputs } else { 1 };
    let mut found = Vec::new();
    for (entry, known) in entries.iter().zip(known) {
        for plane in 0..planes {
            let lower = Lower { mode, plane, kept, vectors, known: *known };
            lower.entry(entry, &mut found)?;
        }
    }
    Ok(found)
}

struct Lower<'a> {
    mode: &'a Mode,
    plane: usize,
    kept: usize,
    vectors: usize,
    known: Option<&'a [i64]>,
}

impl<'a> Lower<'a> {
    fn entry(&self, entry: &Entry<'a>, found: &mut Vec<Job<'a>>) -> Result<(), Error> {
        let (rows, cols) = (&entry.rows, entry.cols.as_ref().unwrap_or(&entry.rows));
        let factor = entry.weight;
        match (rows, cols) {
            (Leaf::Dense(rows), Leaf::Dense(cols)) => {
                let one = |view, cols| vec![Use::Plain(Rows::There(self.cots(view, 0, cols)))];
                let (push, pull) = (one(*rows, false), one(*cols, true));
                let rows = rows.shape()[4];
                let few = self.vectors <= FEW;
                found.push(Job { rows, cols: 1, padded: false, few, grain: 1, pull, push, factor });
            }
            (Leaf::Uses(rows), Leaf::Uses(cols)) => {
                for group in 0..groups(rows) {
                    found.push(self.table(rows, cols, group, factor));
                }
            }
            _ => return Err(Error::Internal { what: "leaves of different kinds".into() }),
        }
        Ok(())
    }

    fn cots(&self, view: View<'a>, group: usize, cols: bool) -> Factor<'a> {
        let reduce = match self.mode {
            Mode::Select(output) => Reduce::Select(*output),
            Mode::Contract { rows, cols: other } => {
                Reduce::Contract(if cols { other } else { rows })
            }
            Mode::Trace => Reduce::Select(self.plane),
            Mode::AsIs | Mode::Full | Mode::Diagonal => Reduce::Keep,
        };
        Factor { part: Part { view, reduce }, group }
    }

    fn table(&self, rows: &[Given<'a>], cols: &[Given<'a>], group: usize, factor: f64) -> Job<'a> {
        if let ([Given::Outer { .. }], [Given::Outer { .. }]) = (rows, cols) {
            return self.matrix(&rows[0], &cols[0], group, factor);
        }
        let (height, width) = (self.height(rows), width(rows));
        let side = |uses: &[Given<'a>], cols| {
            uses.iter().map(|one| self.tied(one, group, cols)).collect::<Vec<_>>()
        };
        let (push, pull) = (side(rows, false), side(cols, true));
        Job { rows: height, cols: width, padded: true, few: false, grain: 1, pull, push, factor }
    }

    /// A leaf that is used once, as a matrix: its table may lie as it likes.
    fn matrix(&self, rows: &Given<'a>, cols: &Given<'a>, group: usize, factor: f64) -> Job<'a> {
        let (mut push, mut pull) = (self.pair(rows, group, false), self.pair(cols, group, true));
        let (d_in, d_out) = (push.0.features(), push.1.features());
        if self.forms(&push) || self.forms(&pull) {
            let one = |(left, right)| vec![Use::Plain(Rows::Formed { left, right })];
            let (push, pull) = (one(push), one(pull));
            let (rows, grain) = (d_in * d_out, d_out.max(1));
            return Job { rows, cols: 1, padded: false, few: false, grain, pull, push, factor };
        }
        // Long chains and full panels: only the side with the output rows must be the columns.
        if self.kept == 1 && d_in < NARROW && d_out > d_in {
            push = (push.1, push.0);
            pull = (pull.1, pull.0);
        }
        let one = |(left, right)| vec![Use::Scaled { left, right }];
        let (height, cols) = (push.0.features(), push.1.features());
        let (push, pull) = (one(push), one(pull));
        Job { rows: height, cols, padded: padded(cols), few: false, grain: 1, pull, push, factor }
    }

    fn tied(&self, one: &Given<'a>, group: usize, cols: bool) -> Use<'a> {
        match one {
            Given::Lookup { ids, cots } => {
                let right = self.cots(*cots, 0, cols);
                Use::Lookup { ids: *ids, right, known: self.known }
            }
            Given::Outer { transposed, .. } => {
                let (acts, cots) = self.pair(one, group, cols);
                let (left, right) = if *transposed { (cots, acts) } else { (acts, cots) };
                if self.forms(&(acts, cots)) || (*transposed && self.kept > 1) {
                    return Use::Plain(Rows::Formed { left, right });
                }
                Use::Scaled { left, right }
            }
        }
    }

    fn pair(&self, one: &Given<'a>, group: usize, cols: bool) -> (Factor<'a>, Factor<'a>) {
        match one {
            Given::Outer { acts, cots, .. } => {
                let acts = Factor { part: Part { view: *acts, reduce: Reduce::Keep }, group };
                (acts, self.cots(*cots, group, cols))
            }
            Given::Lookup { cots, .. } => {
                (self.cots(*cots, group, cols), self.cots(*cots, group, cols))
            }
        }
    }

    /// Whether forming each unit's table first takes fewer operations.
    fn forms(&self, (acts, cots): &(Factor<'a>, Factor<'a>)) -> bool {
        let (t, k) = (acts.positions() as u128, self.vectors as u128);
        let kept = self.kept as u128;
        let table = acts.features() as u128 * cots.features() as u128;
        kept * table * (t + k) < t * k * (table + kept * cots.features() as u128)
    }

    fn height(&self, uses: &[Given<'a>]) -> usize {
        let tall = |one: &Given<'a>| match one {
            Given::Outer { acts, cots, transposed } => {
                Some(if *transposed { cots.shape()[4] } else { acts.shape()[4] })
            }
            Given::Lookup { .. } => None,
        };
        uses.iter().find_map(tall).unwrap_or_else(|| self.known.map_or(0, <[i64]>::len))
    }
}

fn groups(uses: &[Given<'_>]) -> usize {
    match uses {
        [Given::Outer { acts, .. }, ..] => acts.shape()[2],
        _ => 1,
    }
}

fn width(uses: &[Given<'_>]) -> usize {
    match uses {
        [Given::Outer { acts, transposed: true, .. }, ..] => acts.shape()[4],
        [Given::Outer { cots, .. } | Given::Lookup { cots, .. }, ..] => cots.shape()[4],
        [] => 0,
    }
}

fn padded(cols: usize) -> bool {
    let full = cols.next_multiple_of(NARROW);
    cols >= NARROW && full * WASTE.1 <= cols * WASTE.0
}
