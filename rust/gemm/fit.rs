//! How a problem is cut.

use super::{OVERHEAD, SIDE, TABLE_CHUNK, lookup_terms, one_side};
use crate::contraction::OneSide;
use crate::error::Error;
use crate::kernel::{KC, Positions};
use crate::plan::{Blocks, Sizes};
use crate::program::{Content, Program, Term};

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
            if bytes <= sizes.limit && (side * kept >= 16 || threads == 1) {
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
pub(super) fn rows_of_example(program: &Program<'_>) -> usize {
    if program.all_pairs { program.outputs.max(1) } else { 1 }
}

fn worker_bytes(program: &Program<'_>, sizes: Sizes, side: usize) -> u128 {
    let wide = |x: usize| x as u128;
    let kept = rows_of_example(program);
    let square = wide(side * kept).pow(2);
    let planes = if program.all_pairs { 1 } else { wide(program.outputs.max(1)) };
    let looked_up = lookup_terms(program).is_some();
    let squares = (planes * if looked_up { 2 } else { 1 } + 2) * square;
    let panels = program.terms.iter().map(|term| match (term, OneSide::of(program, term)) {
        (_, Some(_)) => 0,
        (Term::Positions(Positions { acts: Some(acts), cots, .. }), None) => {
            let elements = |&node: &usize| program.nodes[node].elements();
            2 * wide(side) * wide([*acts, *cots].iter().map(elements).sum())
        }
        _ => 2 * wide(side * kept) * wide(TABLE_CHUNK.max(widest_row(program))),
    });
    let leaves = program.terms.iter().filter_map(|term| OneSide::of(program, term));
    let one_side = leaves.map(|leaf| one_side::elements(&leaf, side)).max().unwrap_or(0);
    let scratch = program.nodes.iter().map(|node| match &node.rows {
        Content::Table(table) => wide((TABLE_CHUNK + 2 * table.d_out + 4 * KC) * KC),
        Content::Rows(_) => 0,
    });
    let own = squares + panels.max().unwrap_or(0) + one_side + scratch.max().unwrap_or(0);
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
