//! Flops of leaves and programs, and which contraction each leaf takes.

use crate::contraction::OneSide;
use crate::error::Error;
use crate::kernel::Positions;
use crate::program::{Content, Entry, Mode, Program, Term};
use crate::schedule::term_nodes;

/// What a leaf or a program costs, from its shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Contraction, in words.
    pub plan: &'static str,
    /// Flops for one pair of examples and all its output pairs.
    pub flops: u128,
}

impl Cost {
    /// The whole program: shared nodes count once. `one_side`: leaves may have one side expanded (contraction D, by BLAS).
    pub fn of(program: &Program<'_>, one_side: bool) -> Self {
        let pairs = if program.all_pairs {
            (program.outputs as u128).pow(2)
        } else {
            program.outputs as u128
        };
        let node = |index: usize, shared: bool| {
            let shape = program.nodes[index].shape;
            let positions = (shape.positions as u128).pow(2) * shape.groups as u128;
            2 * positions * shape.k as u128 * if shared { 1 } else { pairs }
        };
        let mut counted = vec![false; program.nodes.len()];
        let mut flops = 0;
        for term in &program.terms {
            if let Some(leaf) = OneSide::of(program, term).filter(|_| one_side) {
                flops += 2 * leaf.multiply_adds();
                continue;
            }
            for index in term_nodes(term).into_iter().flatten() {
                if !counted[index] {
                    counted[index] = true;
                    flops += node(index, program.nodes[index].shape.outputs == 1);
                }
            }
            if let Term::Match { lookup, .. } = *term {
                let spec = &program.lookups[lookup];
                flops += 2 * pairs * (spec.k * spec.rows.1.positions()) as u128;
            }
        }
        Self { plan: "", flops }
    }

    /// Each leaf alone; `one_side` as in [`Cost::of`].
    ///
    /// # Errors
    /// As [`Program::lower`].
    pub fn of_leaves(
        entries: &[Entry<'_>],
        r: usize,
        mode: &Mode,
        one_side: bool,
    ) -> Result<Vec<Self>, Error> {
        let one = |entry: &Entry<'_>| {
            let program = Program::lower(core::slice::from_ref(entry), r, mode)?;
            let tables = program.nodes.iter().any(|n| matches!(n.rows, Content::Table(_)));
            let pairs = program.terms.iter().any(|term| match term {
                Term::Positions(term) => term.positions * term.groups > 1,
                _ => false,
            });
            let split = program.terms.iter().any(|term| OneSide::of(&program, term).is_some());
            let plan = match (program.terms.first(), tables, pairs) {
                _ if split && one_side => "one-side",
                (_, true, _) => "expand",
                (_, _, true) => "pairs",
                (Some(Term::Match { .. }), ..) => "match",
                (Some(Term::Gram { .. } | Term::Positions(Positions { acts: None, .. })), ..) => {
                    "gram"
                }
                _ => "product",
            };
            Ok(Self { plan, ..Self::of(&program, one_side) })
        };
        entries.iter().map(one).collect()
    }
}
