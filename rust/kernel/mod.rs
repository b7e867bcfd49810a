//! The fused Gram-Hadamard kernel.
//!
//! For one leaf with `T = 1` and a register tile of `MR` row examples `i` and `NR` column examples `j`:
//!
//! ```text
//! acc[j][i] += (sum_k acts_i[k][i] acts_j[k][j]) * (sum_k cots_i[k][i] cots_j[k][j])
//! ```
//!
//! Neither Gram matrix reaches memory. Everything else is the same arithmetic in another loop: dense leaves lack one factor, positions
//! and groups add pairs of Gram tiles before they are added to `acc`, many outputs share the left Gram tile.
//!
//! | file | holds |
//! |---|---|
//! | `real.rs` | `f32` and `f64` |
//! | `view.rs` | borrowed arrays of any layout and type, read row by row |
//! | `scan.rs` | NaN, infinity and magnitude of every value, before work starts |
//! | `arena.rs` | buffers |
//! | `pack.rs` | rows of examples into zero-padded panels |
//! | `expand.rs` | `sum_t acts (x) cots` into panels (plan B) |
//! | `body.rs` | the arithmetic of a register tile, once |
//! | `groups.rs` | leaves that run through the same loops |
//! | `sweep.rs` | a macro tile: the loops over leaves, panels and chain blocks |
//! | `positions.rs` | leaves with positions, groups or several outputs |
//! | `lookup.rs` | leaves whose left factor is one-hot |
//! | `isa.rs` | which instruction sets this CPU has, and the sweep compiled for each |
//! | `peak.rs` | the FMA rate that benches compare with |
//! | `write.rs` | accumulators into the result, both halves |
//!
//! **Bits.** Every entry is one fixed chain: features ascending in blocks of [`KC`], each block a fused chain from +0.0, blocks added in order, leaves
//! added in order, pairs of positions added symmetrically. Lanes are examples, never features, so nothing here depends on tile,
//! thread or instruction set. Padding rows are +0.0. Changing any of this changes [`KERNEL_ABI`].
//!
//! **Precision.** `|K' - K| <= gamma_m sqrt(S_ii S_jj)` with `m = max over leaves (c(d_in) + c(d_out) + 1 [+ c(T^2)]) + leaves`,
//! `c(d) = min(d, KC) + ceil(d / KC)` (Higham's `gamma`).
//!
//! **Unsafe.** Reads through views, writes through the result's pointer, buffers, and calls into code compiled for a detected
//! instruction set. `SAFETY.md` lists the sites.

mod arena;
mod body;
mod expand;
mod groups;
mod isa;
mod lookup;
mod pack;
mod peak;
mod positions;
mod prefetch;
mod real;
mod scan;
mod sweep;
mod view;
mod write;

pub use arena::Buffer;
pub(crate) use body::{chain, chain_apart, gram};
pub use expand::{EXPAND_BLOCK, EXPAND_FEATURES, Table};
pub use groups::{Group, Operand, Step};
pub(crate) use isa::{Body, on};
pub use isa::{FloatState, Isa, expand_panels, sweep};
pub use lookup::{CHUNK, Cross, Match, Merged, MergedChunk, PlainRows};
pub use pack::{Packed, PanelShape, Part, Reduce, Source, pack_panels};
pub use peak::fma_peak;
pub use positions::Positions;
pub use real::Real;
pub use scan::Scan;
pub use sweep::{Sweep, WIDE_COLS};
pub use view::{AXES, DType, View};
pub use write::{Layout, Out, Region};

/// Column examples of a register tile.
pub const NR: usize = 6;
/// Features of one chain. Part of the bits.
pub const KC: usize = 256;
/// Version of the bits: any change of an entry's chain raises it.
pub const KERNEL_ABI: u32 = 1;
/// A register tile, column by column.
pub type Tile<F, const MR: usize> = [[F; MR]; NR];
/// Row examples of a register tile in `f32`: one AVX-512 register, two AVX2 registers.
pub const MR_F32: usize = 16;
/// Row examples of a register tile in `f64`.
pub const MR_F64: usize = 8;
