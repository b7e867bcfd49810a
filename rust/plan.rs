//! Planning of memory: the side of a block of examples, the width of a pass and the bytes that both take, from a limit.
//!
//! Pure arithmetic on shapes: no data, no threads, no I/O. None of it changes bits. What does (the contraction of each leaf) is chosen
//! in `program.rs`, from shapes alone.

use crate::error::Error;
use crate::kernel::{EXPAND_FEATURES, NR};
use crate::program::{Content, Program};
use crate::schedule::{Pass, Schedule, pairs_of_sweep};

/// Examples that fill whole panels of every width.
pub const STEP: usize = 48;
/// Examples along a block at most: packing a side again for every block costs 2 % there, and its panels stay near the cores.
const BLOCK_SIDE: usize = 3072;
/// Bytes of accumulators of a macro tile: they stay in a 1 MiB second-level cache beside the panels.
const MACRO_BYTES: usize = 600 << 10;
/// Examples along a macro tile at most.
const MACRO_SIDE: usize = 384;
/// Fixed bytes of a call: thread stacks touched, small tables.
const OVERHEAD: u128 = 4 << 20;

/// The problem as the planner of memory sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Row examples.
    pub rows: usize,
    /// Column examples.
    pub cols: usize,
    /// Bytes of an accumulator.
    pub item: usize,
    /// Lanes of a row panel.
    pub lanes: usize,
    /// Workers.
    pub threads: usize,
    /// Bytes that this part of the call may take.
    pub limit: u128,
}

/// How a problem is cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// Examples along a block; a multiple of [`STEP`].
    pub side: usize,
    /// Examples along a macro tile; a multiple of [`STEP`].
    pub macro_side: usize,
    /// The passes.
    pub schedule: Schedule,
    /// Most bytes that the call adds besides the result.
    pub bytes: u128,
}

impl Blocks {
    /// The largest blocks within the limit: one pass over all leaves if that leaves blocks of a fair size, else several passes.
    ///
    /// # Errors
    /// [`Error::Memory`] with the smallest limit that would do.
    pub fn new(program: &Program<'_>, sizes: Sizes) -> Result<Self, Error> {
        let whole = sizes.rows.max(sizes.cols).max(1).next_multiple_of(STEP);
        let everything = Schedule::new(program, usize::MAX);
        let fair = whole.min(1536);
        let mut side = whole.min(BLOCK_SIDE);
        while side >= fair.min(STEP.max(side)) && side >= STEP {
            let blocks = Self::measure(program, sizes, side, everything.clone());
            if blocks.bytes <= sizes.limit && side >= fair {
                return Ok(blocks);
            }
            if side <= fair {
                break;
            }
            side = halve(side).max(fair);
        }
        let mut best: Option<Self> = None;
        let mut side = whole.min(4096_usize.next_multiple_of(STEP));
        loop {
            for width in [1 << 16, 1 << 14, 2048, 1024, 512, 256, 1] {
                let schedule = Schedule::new(program, width);
                let blocks = Self::measure(program, sizes, side, schedule);
                if blocks.bytes <= sizes.limit {
                    return Ok(blocks);
                }
                if best.as_ref().is_none_or(|best| blocks.bytes < best.bytes) {
                    best = Some(blocks);
                }
            }
            let single = Self::measure(program, sizes, side, everything.clone());
            if single.bytes <= sizes.limit {
                return Ok(single);
            }
            if side == STEP {
                break;
            }
            side = halve(side);
        }
        let needs = best.map_or(0, |best| best.bytes);
        Err(Error::Memory {
            limit: sizes.limit,
            needs,
            what: format!(
                "{} threads, tile {STEP} x {STEP}, d = {}",
                sizes.threads,
                program.nodes.iter().map(|node| node.elements()).max().unwrap_or(0)
            ),
        })
    }

    fn measure(program: &Program<'_>, sizes: Sizes, side: usize, schedule: Schedule) -> Self {
        let pairs = pairs_of_sweep(program);
        let wide = |x: usize| x as u128;
        let item = wide(sizes.item);
        let rows = wide(side.min(sizes.rows.next_multiple_of(STEP)));
        let cols = wide(side.min(sizes.cols.next_multiple_of(STEP)));
        let macro_side = macro_side(sizes, pairs, side);
        let panels = (rows + cols) * wide(schedule.elements) * item;
        let kept = u128::from(schedule.keeps_block()) + wide(schedule.partials());
        let block = rows * cols * wide(pairs) * item * kept;
        let own = if schedule.keeps_block() { 0 } else { macro_side * macro_side * pairs };
        let scratch = schedule.scratch.0 * (macro_side / sizes.lanes) + schedule.scratch.1;
        let expand = wide(expand_elements(program, &schedule));
        let worker = wide(own) * item
            + wide(scratch * sizes.lanes * NR) * item
            + expand * item
            + wide(sizes.lanes * macro_side * pairs) * item
            + (128 << 10);
        let bytes = OVERHEAD + panels + block + wide(sizes.threads) * worker;
        Self { side, macro_side, schedule, bytes }
    }
}

fn halve(side: usize) -> usize {
    (side / 2).next_multiple_of(STEP).min(side - STEP).max(STEP)
}

/// Elements that one worker needs to expand tables.
fn expand_elements(program: &Program<'_>, schedule: &Schedule) -> usize {
    let of_node = |node: usize| match &program.nodes[node].rows {
        Content::Rows(_) => 0,
        Content::Table(table) => {
            let positions = table.groups * table.positions;
            let widest = table.d_in.max(table.d_out);
            let part = EXPAND_FEATURES.max(table.d_out);
            16 * (positions * (table.d_in + table.d_out + NR + widest) + part)
        }
    };
    let of_pass = |pass: &Pass| pass.nodes.iter().map(|&node| of_node(node)).max().unwrap_or(0);
    schedule.passes.iter().map(of_pass).max().unwrap_or(0)
}

/// Examples along a macro tile: accumulators stay in cache, and there are enough macro tiles for the workers.
fn macro_side(sizes: Sizes, pairs: usize, side: usize) -> usize {
    let fits = (MACRO_BYTES / (pairs * sizes.item).max(1)).isqrt() / STEP * STEP;
    let entries = side.min(sizes.rows.max(1)) as u128 * side.min(sizes.cols.max(1)) as u128;
    let shares = (entries / (16 * sizes.threads as u128).max(1)).isqrt() as usize / STEP * STEP;
    let shares = if sizes.threads == 1 { MACRO_SIDE } else { shares };
    fits.min(MACRO_SIDE).min(shares.max(2 * STEP)).min(side).max(STEP)
}
