//! Which entries of a kernel are wanted, cut into blocks of examples and those into macro tiles: geometry alone.

use core::ops::Range;

use crate::kernel::NR;

/// Which entries are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The square of these examples with themselves: the lower half is computed, the upper is its mirror image.
    Square(Range<usize>),
    /// These rows against these columns.
    Rectangle(Range<usize>, Range<usize>),
    /// The diagonal of these examples.
    Diagonal(Range<usize>),
}

/// Two ranges of the same kind, which do not have to be the same range.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub triangle: bool,
}

/// The blocks of a cut, of at most `side` examples along each axis, in the order of work.
pub(crate) fn blocks_of(cut: &Cut, side: usize) -> Vec<Block> {
    let ranges = |range: &Range<usize>| -> Vec<Range<usize>> {
        let starts = range.clone().step_by(side);
        starts.map(|start| start..(start + side).min(range.end)).collect()
    };
    match cut {
        Cut::Square(range) => {
            let parts = ranges(range);
            let lower = (0..parts.len()).flat_map(|i| (0..=i).map(move |j| (i, j)));
            lower
                .map(|(i, j)| {
                    let (rows, cols) = (parts[i].clone(), parts[j].clone());
                    Block { rows, cols, triangle: i == j }
                })
                .collect()
        }
        Cut::Rectangle(rows, cols) => {
            let cols = ranges(cols);
            let block = |rows: &Range<usize>, cols: &Range<usize>| Block {
                rows: rows.clone(),
                cols: cols.clone(),
                triangle: false,
            };
            let rows = ranges(rows);
            rows.iter().flat_map(|rows| cols.iter().map(|cols| block(rows, cols))).collect()
        }
        Cut::Diagonal(range) => ranges(range)
            .into_iter()
            .map(|rows| Block { cols: rows.clone(), rows, triangle: true })
            .collect(),
    }
}

/// Panels of a macro tile.
#[derive(Clone, Debug)]
pub(crate) struct Macro {
    pub p: Range<usize>,
    pub q: Range<usize>,
    pub entries: u64,
}

impl Macro {
    pub(crate) fn area(&self) -> u64 {
        self.entries
    }
}

/// Macro tiles of a block, those on the diagonal last: they are the small change that evens out the workers.
pub(crate) fn macro_tiles<const MR: usize>(block: &Block, side: usize, cut: &Cut) -> Vec<Macro> {
    let cuts = |len: usize| (0..len).step_by(side).map(move |a| a..(a + side).min(len));
    let mut below = Vec::new();
    let mut diagonal = Vec::new();
    for rows in cuts(block.rows.len()) {
        for cols in cuts(block.cols.len()) {
            let on = rows.start == cols.start;
            let wanted = match cut {
                Cut::Diagonal(_) => on,
                _ => !block.triangle || cols.start <= rows.start,
            };
            if wanted {
                let half = if block.triangle && on { 2 } else { 1 };
                let tile = Macro {
                    p: rows.start / MR..rows.end.div_ceil(MR),
                    q: cols.start / NR..cols.end.div_ceil(NR),
                    entries: (rows.len() * cols.len() / half) as u64,
                };
                if block.triangle && on { diagonal.push(tile) } else { below.push(tile) }
            }
        }
    }
    below.append(&mut diagonal);
    below
}
