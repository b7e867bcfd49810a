//! A kernel as a small program: *nodes* (Grams of packed matrices) and *terms* (what each leaf adds), in leaf order.
//!
//! | leaf | term |
//! |---|---|
//! | dense | `acc += node(jac)` |
//! | outer, one position | `acc += node(acts) * node(cots)` |
//! | outer, plan A | `acc += sum over pairs of positions of node(acts) * node(cots)` |
//! | outer, plan B | `acc += node(sum_t acts (x) cots)` |
//! | look-up | `acc += sum over ids that meet of <e_n[id], e_m[id]>` |
//! | tied | the above for its uses, plus their cross terms |
//!
//! Leaves whose arrays are the same (the same memory or the same content) share a node. Sharing, like everything that the schedule
//! does later, changes no bits: a node is the same chain wherever it is computed.

use crate::contraction::{Contraction, contraction};
use crate::error::Error;
use crate::kernel::{PanelShape, Part, Positions, Reduce, Source, Table, View};

/// One use of a tied table, or a leaf of its own.
#[derive(Clone, Debug)]
pub enum Use<'a> {
    /// `sum acts (x) cots`, or `sum cots (x) acts` if transposed.
    Outer {
        /// `[n, 1, g, t, d_in]`
        acts: View<'a>,
        /// `[n, r, g, t, d_out]`
        cots: View<'a>,
        /// Whether `cots` index the rows of the table.
        transposed: bool,
    },
    /// Rows of a table.
    Lookup {
        /// `[n, 1, 1, t, 1]`, negative = none.
        ids: View<'a>,
        /// `[n, r, 1, t, d]`
        cots: View<'a>,
    },
}

/// A leaf on one side of the kernel.
#[derive(Clone, Debug)]
pub enum Leaf<'a> {
    /// `[n, r, 1, 1, p]`
    Dense(View<'a>),
    /// All uses of one table.
    Uses(Vec<Use<'a>>),
}

/// A leaf on both sides.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Row examples.
    pub rows: Leaf<'a>,
    /// Column examples; `None` = the same.
    pub cols: Option<Leaf<'a>>,
    /// Factor on the leaf's kernel.
    pub weight: f64,
}

/// Which kernel is made of the factors' output rows.
#[derive(Clone, Debug)]
pub enum Mode {
    /// The factors have one output row.
    AsIs,
    /// One of their rows.
    Select(usize),
    /// Weighted sums of their rows, `(n, R)` weights for each side.
    Contract {
        /// Row examples.
        rows: Vec<f64>,
        /// Column examples.
        cols: Vec<f64>,
    },
    /// Sum over equal rows.
    Trace,
    /// All pairs of rows.
    Full,
    /// Each row with itself.
    Diagonal,
}

impl Mode {
    fn keeps_outputs(&self) -> bool {
        matches!(self, Self::Full | Self::Diagonal)
    }
}

/// What a node packs.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// Rows of arrays.
    Rows(Source<'a>),
    /// Expanded tables (plan B).
    Table(Box<Table<'a>>),
}

/// One packed matrix.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// Row examples.
    pub rows: Content<'a>,
    /// Column examples; `None` = the same.
    pub cols: Option<Content<'a>>,
    /// Units and features.
    pub shape: PanelShape,
}

impl<'a> Node<'a> {
    /// The column side.
    pub fn cols(&self) -> &Content<'a> {
        self.cols.as_ref().unwrap_or(&self.rows)
    }

    /// Elements of one example.
    pub fn elements(&self) -> usize {
        self.shape.units() * self.shape.k
    }
}

/// Look-ups of one leaf on both sides.
#[derive(Clone, Debug)]
pub struct LookupSpec<'a> {
    /// `(ids, rows)` of the row examples.
    pub rows: (Vec<View<'a>>, Source<'a>),
    /// The same of the column examples.
    pub cols: Option<(Vec<View<'a>>, Source<'a>)>,
    /// Output rows kept.
    pub outputs: usize,
    /// Features.
    pub k: usize,
}

/// Unpacked rows of a matrix use of a tied table.
#[derive(Clone, Debug)]
pub struct PlainSpec<'a> {
    /// Row examples.
    pub rows: Source<'a>,
    /// Column examples.
    pub cols: Option<Source<'a>>,
    /// Output rows kept.
    pub outputs: usize,
    /// Features.
    pub k: usize,
}

/// What a leaf adds. Indices are into the program's lists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    /// `acc += weight * node`
    Gram {
        /// The node.
        node: usize,
        /// Factor.
        weight: f64,
    },
    /// `acc += weight * a * b`
    Product {
        /// Left node.
        a: usize,
        /// Right node.
        b: usize,
        /// Factor.
        weight: f64,
    },
    /// Positions, groups or outputs.
    Positions(Positions),
    /// Ids that meet.
    Match {
        /// Which look-up.
        lookup: usize,
        /// Sum over this many outputs.
        trace: Option<usize>,
        /// Factor.
        weight: f64,
    },
    /// Look-up against matrix use.
    Cross {
        /// Which look-up.
        lookup: usize,
        /// Plain rows of the factor that the ids index.
        table: usize,
        /// Plain rows of the other factor.
        rows: usize,
        /// Sum over this many outputs.
        trace: Option<usize>,
        /// Factor.
        weight: f64,
    },
}

/// The whole kernel.
#[derive(Clone, Debug, Default)]
pub struct Program<'a> {
    /// Packed matrices.
    pub nodes: Vec<Node<'a>>,
    /// Look-ups.
    pub lookups: Vec<LookupSpec<'a>>,
    /// Plain rows.
    pub plain: Vec<PlainSpec<'a>>,
    /// Terms, in leaf order.
    pub terms: Vec<Term>,
    /// Output rows of the kernel: R for `"full"` and `"diagonal"`, else 1.
    pub outputs: usize,
    /// Whether every pair of output rows is wanted.
    pub all_pairs: bool,
}

impl<'a> Program<'a> {
    /// Lower leaves to nodes and terms. `r` is the number of output rows of the factors.
    ///
    /// # Errors
    /// [`Error::Internal`] if the two sides of a leaf are of different kinds.
    pub fn lower(entries: &[Entry<'a>], r: usize, mode: &'a Mode) -> Result<Self, Error> {
        let outputs = if mode.keeps_outputs() { r } else { 1 };
        let all_pairs = matches!(mode, Mode::Full);
        let mut program = Self { outputs, all_pairs, ..Self::default() };
        for entry in entries {
            Lower { program: &mut program, mode, r, weight: entry.weight }.entry(entry)?;
        }
        Ok(program)
    }

    fn intern(&mut self, node: Node<'a>) -> usize {
        let found = self.nodes.iter().position(|other| same_node(other, &node));
        found.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }
}

fn same_node(a: &Node<'_>, b: &Node<'_>) -> bool {
    let same = |a: &Content<'_>, b: &Content<'_>| match (a, b) {
        (Content::Rows(a), Content::Rows(b)) => same_source(a, b),
        _ => false,
    };
    a.shape == b.shape
        && same(&a.rows, &b.rows)
        && match (&a.cols, &b.cols) {
            (None, None) => true,
            (Some(a), Some(b)) => same(a, b),
            _ => false,
        }
}

fn same_source(a: &Source<'_>, b: &Source<'_>) -> bool {
    let reduce = |a: &Reduce<'_>, b: &Reduce<'_>| match (a, b) {
        (Reduce::Keep, Reduce::Keep)
        | (Reduce::Fold, Reduce::Fold)
        | (Reduce::Groups, Reduce::Groups) => true,
        (Reduce::Select(a), Reduce::Select(b)) => a == b,
        (Reduce::Contract(a), Reduce::Contract(b)) => core::ptr::eq(*a, *b),
        _ => false,
    };
    a.parts.len() == b.parts.len()
        && a.parts
            .iter()
            .zip(&b.parts)
            .all(|(a, b)| reduce(&a.reduce, &b.reduce) && a.view.same_content(&b.view))
}

/// One side of a table: its matrix uses as `(left, right)` factors, and its look-ups.
struct Side<'a> {
    left: Vec<Part<'a>>,
    right: Vec<Part<'a>>,
    ids: Vec<View<'a>>,
    rows: Vec<Part<'a>>,
}

struct Lower<'p, 'a> {
    program: &'p mut Program<'a>,
    mode: &'a Mode,
    r: usize,
    weight: f64,
}

impl<'a> Lower<'_, 'a> {
    fn entry(&mut self, entry: &Entry<'a>) -> Result<(), Error> {
        match (&entry.rows, &entry.cols) {
            (Leaf::Dense(rows), None) => self.dense(*rows, None),
            (Leaf::Dense(rows), Some(Leaf::Dense(cols))) => self.dense(*rows, Some(*cols)),
            (Leaf::Uses(rows), None) => self.uses(rows, None),
            (Leaf::Uses(rows), Some(Leaf::Uses(cols))) => self.uses(rows, Some(cols)),
            _ => return Err(Error::Internal { what: "leaves of different kinds".into() }),
        }
        Ok(())
    }

    /// The reduction of an array that carries the output rows.
    fn reduce(&self, cols: bool) -> Reduce<'a> {
        match self.mode {
            Mode::AsIs | Mode::Full | Mode::Diagonal => Reduce::Keep,
            Mode::Select(output) => Reduce::Select(*output),
            Mode::Contract { rows, cols: other } => {
                Reduce::Contract(if cols { other } else { rows })
            }
            Mode::Trace => Reduce::Fold,
        }
    }

    fn trace(&self) -> Option<usize> {
        matches!(self.mode, Mode::Trace).then_some(self.r)
    }

    fn add_gram(&mut self, node: usize) {
        let weight = self.weight;
        self.program.terms.push(if self.program.outputs == 1 {
            Term::Gram { node, weight }
        } else {
            Term::Positions(Positions {
                acts: None,
                cots: node,
                groups: 1,
                positions: 1,
                acts_by_output: false,
                weight,
            })
        });
    }

    fn dense(&mut self, rows: View<'a>, cols: Option<View<'a>>) {
        let node = |view, cols| Source::one(view, self.reduce(cols));
        let (rows, cols) = (node(rows, false), cols.map(|view| node(view, true)));
        let k = rows.parts[0].k();
        let shape = PanelShape { outputs: self.program.outputs, groups: 1, positions: 1, k };
        let node = Node { rows: Content::Rows(rows), cols: cols.map(Content::Rows), shape };
        let node = self.program.intern(node);
        self.add_gram(node);
    }

    fn uses(&mut self, rows: &[Use<'a>], cols: Option<&Vec<Use<'a>>>) {
        let turned = rows.iter().any(|u| matches!(u, Use::Outer { transposed: true, .. }));
        let looked_up = rows.iter().any(|u| matches!(u, Use::Lookup { .. }));
        let mixed = turned && self.r > 1;
        let rows = self.side(rows, false, mixed);
        let cols = cols.map(|uses| self.side(uses, true, mixed));
        let lookup = looked_up.then(|| self.lookup(&rows, cols.as_ref()));
        if !rows.left.is_empty() {
            self.outer(&rows, cols.as_ref(), mixed);
        }
        let (trace, weight) = (self.trace(), self.weight);
        if let Some(lookup) = lookup {
            self.program.terms.push(Term::Match { lookup, trace, weight });
            if !rows.left.is_empty() {
                let table = self.plain(&rows.left, cols.as_ref().map(|side| &side.left));
                let rows = self.plain(&rows.right, cols.as_ref().map(|side| &side.right));
                self.program.terms.push(Term::Cross { lookup, table, rows, trace, weight });
            }
        }
    }

    fn side(&self, uses: &[Use<'a>], cols: bool, mixed: bool) -> Side<'a> {
        let mut side =
            Side { left: Vec::new(), right: Vec::new(), ids: Vec::new(), rows: Vec::new() };
        let reduced = match self.reduce(cols) {
            Reduce::Fold if mixed => Reduce::Groups,
            reduce => reduce,
        };
        let plain = if matches!(reduced, Reduce::Groups) { Reduce::Groups } else { Reduce::Keep };
        for one in uses {
            match *one {
                Use::Outer { acts, cots, transposed } => {
                    let acts = Part { view: acts, reduce: plain };
                    let cots = Part { view: cots, reduce: reduced };
                    let (left, right) = if transposed { (cots, acts) } else { (acts, cots) };
                    side.left.push(left);
                    side.right.push(right);
                }
                Use::Lookup { ids, cots } => {
                    // The trace of look-ups is a sum over outputs at each pair, so the rows keep them.
                    let reduce = match self.reduce(cols) {
                        Reduce::Fold => Reduce::Keep,
                        reduce => reduce,
                    };
                    side.ids.push(ids);
                    side.rows.push(Part { view: cots, reduce });
                }
            }
        }
        side
    }

    fn outer(&mut self, rows: &Side<'a>, cols: Option<&Side<'a>>, mixed: bool) {
        let outputs = self.program.outputs;
        let by_output = mixed && outputs > 1;
        let (left, right) = (&rows.left[0], &rows.right[0]);
        let groups = match (mixed, self.trace()) {
            (true, Some(r)) => r,
            _ => left.view.shape()[2].max(right.view.shape()[2]),
        };
        let source = |parts: &[Part<'a>]| Source { parts: parts.to_vec() };
        let positions = |side: &Side<'a>| source(&side.left).positions();
        let positions = positions(rows).max(cols.map_or(0, positions));
        let (d_in, d_out) = (left.k(), right.k());
        let weight = self.weight;
        if contraction(groups, positions, d_in, d_out, outputs) == Contraction::Expand {
            let table = |side: &Side<'a>| {
                let (acts, cots) = (source(&side.left), source(&side.right));
                Content::Table(Box::new(Table {
                    acts,
                    cots,
                    outputs,
                    groups,
                    positions,
                    d_in,
                    d_out,
                }))
            };
            let k = groups * d_in * d_out;
            let shape = PanelShape { outputs, groups: 1, positions: 1, k };
            let node = Node { rows: table(rows), cols: cols.map(table), shape };
            let node = self.program.intern(node);
            return self.add_gram(node);
        }
        let mut intern = |pick: for<'s> fn(&'s Side<'a>) -> &'s [Part<'a>], outputs, k| {
            let shape = PanelShape { outputs, groups, positions, k };
            let rows = Content::Rows(source(pick(rows)));
            let cols = cols.map(|side| Content::Rows(source(pick(side))));
            self.program.intern(Node { rows, cols, shape })
        };
        let a = intern(|side| side.left.as_slice(), if by_output { outputs } else { 1 }, d_in);
        let b = intern(|side| side.right.as_slice(), outputs, d_out);
        self.program.terms.push(if groups * positions * outputs == 1 {
            Term::Product { a, b, weight }
        } else {
            Term::Positions(Positions {
                acts: Some(a),
                cots: b,
                groups,
                positions,
                acts_by_output: by_output,
                weight,
            })
        });
    }

    fn kept(&self) -> usize {
        self.trace().unwrap_or(self.program.outputs)
    }

    fn lookup(&mut self, rows: &Side<'a>, cols: Option<&Side<'a>>) -> usize {
        let spec = |side: &Side<'a>| (side.ids.clone(), Source { parts: side.rows.clone() });
        let k = rows.rows[0].k();
        let (rows, cols) = (spec(rows), cols.map(spec));
        self.program.lookups.push(LookupSpec { rows, cols, outputs: self.kept(), k });
        self.program.lookups.len() - 1
    }

    /// Rows for the cross terms keep their outputs, whatever the matrix uses among themselves do with them.
    fn plain(&mut self, rows: &[Part<'a>], cols: Option<&Vec<Part<'a>>>) -> usize {
        let keep = |part: &Part<'a>| match part.reduce {
            Reduce::Fold | Reduce::Groups => Part { reduce: Reduce::Keep, ..*part },
            _ => *part,
        };
        let source = |parts: &[Part<'a>]| Source { parts: parts.iter().map(keep).collect() };
        let k = keep(&rows[0]).k();
        let outputs =
            if rows.iter().any(|part| part.view.shape()[1] > 1) { self.kept() } else { 1 };
        let (rows, cols) = (source(rows), cols.map(|parts| source(parts)));
        self.program.plain.push(PlainSpec { rows, cols, outputs, k });
        self.program.plain.len() - 1
    }
}
