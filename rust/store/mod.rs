//! Kernels on disk: tiles that are safe once written, and files that never look finished early.
//!
//! A store is filled tile by tile, in any order, by any number of processes. [`Sink`] is what the
//! two formats have in common; both keep the same promises:
//!
//! * while it is unfinished, `K` is called `K.partial`, and the last step is one rename;
//! * a tile counts as done only when its bytes are on the disk, so a kill or a power cut costs at
//!   most the tiles in flight, and writing a tile twice is harmless;
//! * every error names the path, the offset and the errno, and leaves the store resumable.
//!
//! | file | what |
//! |---|---|
//! | `vfs` | the few file operations used, as a trait, and the real disk |
//! | `faulty` | a disk that counts its operations and fails the n-th |
//! | `power` | a disk in memory that forgets what was not synced when its power is cut |
//! | `grid` | shapes, tiles and triangles: pure arithmetic |
//! | `log` | the checksummed list of finished tiles beside a `.npy` |
//! | `npy`, `zarr` | the two formats, written (`npy_files`: the files themselves, `zarr_layout`: where the parts lie); `npy_read` and `zarr_read` read them |
//! | `header`, `safetensors` | strict parsers of foreign files |
//! | `lock` | one job per store |
//! | `fault` | every way this can fail |
//!
//! **Memory.** A sink holds one strip of a tile (for the mirrored half) and eight bytes a tile.
//!
//! **Unsafe.** None.

pub mod fault;
pub mod faulty;
pub mod grid;
pub mod header;
pub mod kill;
pub mod lock;
pub mod log;
pub mod npy;
mod npy_files;
pub mod npy_read;
pub mod power;
pub mod safetensors;
pub mod sink;
pub mod vfs;
pub mod zarr;
pub mod zarr_layout;
pub mod zarr_read;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_disk;
#[cfg(test)]
mod tests_reads;

pub use fault::Fault;
pub use grid::{Grid, Triangle, Unit};
pub use sink::{Paths, Reader, Sink};
