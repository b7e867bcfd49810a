//! Empirical neural tangent kernels in bounded memory.

#[cfg(feature = "python")]
mod py;
