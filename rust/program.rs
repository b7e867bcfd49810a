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

use crate::kernel::{PanelShape, Positions, Reduce, Source, Table, View};

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
    /// Whether output rows of the kernel are kept apart.
    pub(crate) fn keeps_outputs(&self) -> bool {
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
    /// The node's place; one of the same content serves for both.
    pub(crate) fn intern(&mut self, node: Node<'a>) -> usize {
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
