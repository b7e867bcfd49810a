//! Which order of contraction a matrix leaf takes, from its shapes alone (an order changes bits).
//!
//! The three of Novak et al. 2022, by multiply-adds for a pair of examples and each of `G` blocks:
//!
//! | order | multiply-adds | engine |
//! |---|---|---|
//! | A, pairs of positions | `T^2 (d_in + R^2 d_out)` | both |
//! | B, both gradients expanded | `R^2 d_in d_out` | both |
//! | D, the column's gradient expanded | `T R d_in d_out + R^2 T d_out` | BLAS |
//!
//! D rounds `K(n, m)` and `K(m, n)` differently, so the fused engine, whose bits are promised, has no use for it.

use crate::kernel::{Positions, Source};
use crate::program::{Content, Node, Program, Term};

/// How a matrix leaf is contracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contraction {
    /// Plan A: Gram tiles of the factors, for every pair of positions.
    Pairs,
    /// Plan B: the table of each example, then one Gram tile.
    Expand,
}

/// The cheaper of the two orders that treat both examples alike.
pub fn contraction(
    groups: usize,
    positions: usize,
    d_in: usize,
    d_out: usize,
    outputs: usize,
) -> Contraction {
    let both_alike = positions > 1 && groups > 0;
    if both_alike && expand(d_in, d_out, outputs) < pairs(positions, d_in, d_out, outputs) {
        Contraction::Expand
    } else {
        Contraction::Pairs
    }
}

fn pairs(positions: usize, d_in: usize, d_out: usize, outputs: usize) -> u128 {
    (positions as u128).pow(2) * (d_in as u128 + (outputs as u128).pow(2) * d_out as u128)
}

fn expand(d_in: usize, d_out: usize, outputs: usize) -> u128 {
    (outputs as u128).pow(2) * d_in as u128 * d_out as u128
}

/// The factors of a leaf on one side of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Factored<'p, 'a> {
    /// Left factor, `(N, 1, G, T, d_in)`.
    pub acts: &'p Source<'a>,
    /// Right factor, `(N, R, G, T, d_out)`.
    pub cots: &'p Source<'a>,
}

/// A leaf for which D is the cheapest order; none of its sizes is zero.
#[derive(Clone, Copy, Debug)]
pub struct OneSide<'p, 'a> {
    /// Row examples.
    pub rows: Factored<'p, 'a>,
    /// Column examples, whose gradients are expanded.
    pub cols: Factored<'p, 'a>,
    /// Output rows.
    pub outputs: usize,
    /// Blocks.
    pub groups: usize,
    /// Positions of the longer side.
    pub positions: usize,
    /// Features of the left factor.
    pub d_in: usize,
    /// Features of the right factor.
    pub d_out: usize,
    /// Factor on the leaf's kernel.
    pub weight: f64,
}

impl<'p, 'a> OneSide<'p, 'a> {
    /// The leaf of a term, if D is cheaper than A and B.
    pub fn of(program: &'p Program<'a>, term: &Term) -> Option<Self> {
        let found = match *term {
            Term::Positions(Positions { acts: None, cots: node, weight, .. }) => {
                Self::table(&program.nodes[node], weight)?
            }
            Term::Positions(term @ Positions { acts: Some(acts), acts_by_output: false, .. }) => {
                Self::pair(&program.nodes[acts], &program.nodes[term.cots], &term)?
            }
            _ => return None,
        };
        let alike =
            |side: &Factored<'_, '_>| side.acts.parts.iter().all(|part| part.view.shape()[1] == 1);
        let fits = program.all_pairs && alike(&found.rows) && alike(&found.cols);
        let Self { positions, d_in, d_out, outputs, .. } = found;
        let others = pairs(positions, d_in, d_out, outputs).min(expand(d_in, d_out, outputs));
        (fits && found.each() < others).then_some(found)
    }

    fn table(node: &'p Node<'a>, weight: f64) -> Option<Self> {
        let (Content::Table(rows), Content::Table(cols)) = (&node.rows, node.cols()) else {
            return None;
        };
        let (groups, positions) = (rows.groups, rows.positions);
        let (d_in, d_out, outputs) = (rows.d_in, rows.d_out, rows.outputs);
        let [rows, cols] =
            [rows, cols].map(|table| Factored { acts: &table.acts, cots: &table.cots });
        Some(Self { rows, cols, outputs, groups, positions, d_in, d_out, weight })
    }

    fn pair(acts: &'p Node<'a>, cots: &'p Node<'a>, term: &Positions) -> Option<Self> {
        let side = |acts: &'p Content<'a>, cots: &'p Content<'a>| match (acts, cots) {
            (Content::Rows(acts), Content::Rows(cots)) => Some(Factored { acts, cots }),
            _ => None,
        };
        let (rows, cols) = (side(&acts.rows, &cots.rows)?, side(acts.cols(), cots.cols())?);
        let Positions { groups, positions, weight, .. } = *term;
        let (d_in, d_out, outputs) = (acts.shape.k, cots.shape.k, cots.shape.outputs);
        Some(Self { rows, cols, outputs, groups, positions, d_in, d_out, weight })
    }

    /// Multiply-adds of one block of one pair of examples.
    fn each(&self) -> u128 {
        let (r, t) = (self.outputs as u128, self.positions as u128);
        t * r * self.d_out as u128 * (self.d_in as u128 + r)
    }

    /// Multiply-adds for a pair of examples and all its pairs of outputs.
    pub fn multiply_adds(&self) -> u128 {
        self.groups as u128 * self.each()
    }
}
