//! Empirical neural tangent kernels in bounded memory.
//!
//! | symbol | code | shape | meaning |
//! |---|---|---|---|
//! | `N` | `n`, `m` | | examples of the rows, of the columns |
//! | `R` | `r`, `s` | | output rows kept: 1, or all outputs `O` |
//! | `G` | `g` | | blocks of a leaf (groups, heads, experts) |
//! | `T` | `t`, `u` | | positions at which a leaf is used |
//! | `A` | `acts` | `(N, G, T, d_in)` | inputs of the leaf |
//! | `B` | `cots` | `(N, R, G, T, d_out)` | cotangents of its outputs |
//! | `K` | `kernel` | `(N R, N R)` | `sum_leaf sum_{g,t,u} <A_ngt, A_mgu> <B_nrgt, B_msgu>` |
//!
//! | module | part |
//! |---|---|
//! | [`program`] | nodes and terms |
//! | [`lower`] | leaves to nodes and terms |
//! | [`contraction`] | the order of a leaf's contraction |
//! | [`schedule`] | terms to passes and groups |
//! | [`plan`] | blocks and bytes, from a memory limit |
//! | [`cost`] | flops |
//! | [`cut`](cut::Cut) | which entries, in blocks and macro tiles |
//! | [`block`] | one block of the kernel: pack (`side.rs`), sweep, write |
//! | [`gemm`] | the same by BLAS |
//! | [`blas`] | SciPy's BLAS |
//! | [`products`] | products with vectors, without the kernel |
//! | [`pool`] | workers |
//! | [`team`] | workers for many short phases |
//! | [`limits`] | the memory that the process may use |
//! | [`kernel`] | the arithmetic |
//! | [`store`] | kernels on disk |
//! | [`error`] | what can go wrong |

#[allow(unsafe_code, reason = "pointers into SciPy's BLAS, and its calls")]
pub mod blas;
pub mod block;
pub mod contraction;
pub mod cost;
pub mod cut;
pub mod error;
pub mod gemm;
#[allow(unsafe_code, reason = "views, buffers, the result's pointer, and instruction sets")]
pub mod kernel;
pub mod limits;
pub mod lower;
pub mod plan;
pub mod pool;
pub mod products;
pub mod program;
pub mod schedule;
mod side;
pub mod store;
#[allow(unsafe_code, reason = "work lent to threads that outlive it")]
pub mod team;

#[cfg(feature = "python")]
mod py;
