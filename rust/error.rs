//! Every way the core can fail. No variant mentions Python; `py/error.rs` maps them.

use core::fmt;

/// Why an `entk` call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked to stop.
    Cancelled,
    /// The operating system refused a buffer.
    Allocation {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The problem does not fit the memory limit.
    Memory {
        /// Bytes allowed.
        limit: u128,
        /// The smallest limit that would do.
        needs: u128,
        /// What takes the room, in words.
        what: String,
    },
    /// A size does not fit the arithmetic of array sizes.
    Size {
        /// The sum that overflowed, in words.
        what: String,
    },
    /// Arrays or arguments that should have been refused before they came here.
    Internal {
        /// What was seen.
        what: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => write!(f, "cancelled"),
            Self::Allocation { bytes } => {
                write!(f, "the system refused a buffer of {bytes} bytes")
            }
            Self::Memory { limit, needs, what } => {
                write!(f, "needs at least {needs} bytes ({what}); got {limit}")
            }
            Self::Size { what } | Self::Internal { what } => f.write_str(what),
        }
    }
}

impl core::error::Error for Error {}
