//! What a pass adds to its accumulators: leaves, in groups that run through the same loops.

use super::lookup::{Cross, Match};
use super::positions::Positions;

/// Where a step finds a Gram tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Contract the panels of a node.
    Gram {
        /// The node.
        node: usize,
        /// Slot for the tile.
        slot: usize,
        /// Whether a later operand takes it from there.
        again: bool,
    },
    /// Take slot `.0`.
    Kept(usize),
}

/// One leaf: `acc += weight * a [* b]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Left Gram tile.
    pub a: Operand,
    /// Right Gram tile; a dense leaf has none.
    pub b: Option<Operand>,
    /// Factor on the leaf's kernel.
    pub weight: f64,
}

/// Leaves that run through the same loops.
#[derive(Clone, Debug, PartialEq)]
pub enum Group {
    /// Narrow leaves: all panels of a register tile stay in the first-level cache. At most [`Group::SLOTS`] tiles are kept.
    Narrow(Vec<Step>),
    /// Wide leaves: nodes in blocks of [`KC`](super::KC), all kept (operands are `Kept(position in nodes)`).
    Wide {
        /// Nodes to contract.
        nodes: Vec<usize>,
        /// Leaves to add.
        steps: Vec<Step>,
    },
    /// A slice of the features of one node, added to a partial sum that is kept between passes.
    Slice {
        /// The node.
        node: usize,
        /// Which partial sum.
        slot: usize,
        /// Whether this is the first slice, which starts the sum.
        first: bool,
    },
    /// Add a leaf whose partial sums are whole.
    Finish {
        /// Partial sums to multiply: one for a dense leaf, two for a product.
        factors: usize,
        /// Factor on the leaf's kernel.
        weight: f64,
    },
    /// See [`Positions`]. Several leaves share their left factor, groups and positions.
    Positions(Vec<Positions>),
    /// See [`Match`].
    Match(Match),
    /// See [`Cross`].
    Cross(Cross),
}

impl Group {
    /// Tiles that a narrow group may keep.
    pub const SLOTS: usize = 8;
}
