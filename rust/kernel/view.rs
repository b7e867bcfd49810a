//! Borrowed arrays of any strides, alignment, byte order and element type.
//!
//! A [`View`] always has the five axes `[n, r, g, t, k]` of a factor (see the crate's notation); axes
//! that an array lacks have length one. It is checked once, when it is made, and read row by row along `k`.

use core::marker::PhantomData;

use half::{bf16, f16};
use ndarray::ArrayViewD;

use super::Real;
use crate::error::Error;

/// Element type of a borrowed array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl DType {
    /// The type with this NumPy name, if it is supported.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "float32" => Self::F32,
            "float64" => Self::F64,
            "float16" => Self::F16,
            "bfloat16" => Self::BF16,
            "int8" => Self::I8,
            "int16" => Self::I16,
            "int32" => Self::I32,
            "int64" => Self::I64,
            "uint8" => Self::U8,
            "uint16" => Self::U16,
            "uint32" => Self::U32,
            "uint64" => Self::U64,
            "bool" => Self::Bool,
            _ => return None,
        })
    }

    /// Whether float32 holds every value of this type.
    pub fn fits_f32(self) -> bool {
        !matches!(self, Self::F64 | Self::I32 | Self::I64 | Self::U32 | Self::U64)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }
}

/// Number of axes of a view: examples, output rows, groups, positions, features.
pub const AXES: usize = 5;

/// A borrowed array `[n, r, g, t, k]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    base: *const u8,
    shape: [usize; AXES],
    strides: [isize; AXES],
    dtype: DType,
    swapped: bool,
    borrow: PhantomData<&'a [u8]>,
}

// SAFETY: a view only reads, and what it reads stays borrowed for `'a`.
unsafe impl Send for View<'_> {}
// SAFETY: as above; no method writes.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// View the bytes of an array: `bytes` has the array's five axes and a last one over the bytes of an element.
    ///
    /// # Errors
    /// [`Error::Internal`] if the axes or the element size are not as promised.
    pub fn new(bytes: &ArrayViewD<'a, u8>, dtype: DType, swapped: bool) -> Result<Self, Error> {
        let wrong = || Error::Internal {
            what: format!("a view of {dtype:?} got bytes of shape {:?}", bytes.shape()),
        };
        let (&item, axes) = bytes.shape().split_last().ok_or_else(wrong)?;
        let shape: [usize; AXES] = axes.try_into().map_err(|_| wrong())?;
        let steps = bytes.strides();
        if item != dtype.size() || (item > 1 && steps[AXES] != 1) {
            return Err(wrong());
        }
        let mut strides = [0; AXES];
        strides.copy_from_slice(&steps[..AXES]);
        Ok(Self { base: bytes.as_ptr(), shape, strides, dtype, swapped, borrow: PhantomData })
    }

    /// Lengths of the axes `[n, r, g, t, k]`.
    pub fn shape(&self) -> [usize; AXES] {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Read `out.len()` features from `k0` on, widened or rounded to `F`.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn row<F: Real>(&self, at: [usize; 4], k0: usize, out: &mut [F]) {
        if out.is_empty() {
            return;
        }
        let start = self.offset(at, k0, out.len());
        let step = self.strides[4];
        macro_rules! read {
            ($t:ty, $bits:ty, $convert:expr) => {{
                for (i, to) in out.iter_mut().enumerate() {
                    let from = start.wrapping_offset(step * i as isize).cast::<$bits>();
                    // SAFETY: `offset` checked the indices of the whole row against the borrowed array.
                    let raw = unsafe { from.read_unaligned() };
                    let raw = if self.swapped { raw.swap_bytes() } else { raw };
                    *to = $convert(<$t>::from_ne_bytes(raw.to_ne_bytes()));
                }
            }};
        }
        match self.dtype {
            DType::F32 if !self.swapped && step == 4 => {
                for (i, to) in out.iter_mut().enumerate() {
                    // SAFETY: as above; the features are contiguous.
                    let value = unsafe { start.cast::<f32>().wrapping_add(i).read_unaligned() };
                    *to = F::from_f32(value);
                }
            }
            DType::F32 => read!(f32, u32, F::from_f32),
            DType::F64 => read!(f64, u64, F::from_f64),
            DType::F16 => read!(f16, u16, |x: f16| F::from_f32(x.to_f32())),
            DType::BF16 => read!(bf16, u16, |x: bf16| F::from_f32(x.to_f32())),
            DType::I8 => read!(i8, u8, |x| F::from_f64(f64::from(x))),
            DType::I16 => read!(i16, u16, |x| F::from_f64(f64::from(x))),
            DType::I32 => read!(i32, u32, |x| F::from_f64(f64::from(x))),
            DType::I64 => read!(i64, u64, |x| F::from_f64(x as f64)),
            DType::U8 | DType::Bool => read!(u8, u8, |x| F::from_f64(f64::from(x))),
            DType::U16 => read!(u16, u16, |x| F::from_f64(f64::from(x))),
            DType::U32 => read!(u32, u32, |x| F::from_f64(f64::from(x))),
            DType::U64 => read!(u64, u64, |x| F::from_f64(x as f64)),
        }
    }

    /// One element of an integer array, exactly.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn integer(&self, at: [usize; 4], k: usize) -> i128 {
        let start = self.offset(at, k, 1);
        macro_rules! read {
            ($t:ty, $bits:ty) => {{
                // SAFETY: `offset` checked the index against the borrowed array.
                let raw = unsafe { start.cast::<$bits>().read_unaligned() };
                let raw = if self.swapped { raw.swap_bytes() } else { raw };
                i128::from(<$t>::from_ne_bytes(raw.to_ne_bytes()))
            }};
        }
        match self.dtype {
            DType::I8 => read!(i8, u8),
            DType::I16 => read!(i16, u16),
            DType::I32 => read!(i32, u32),
            DType::I64 => read!(i64, u64),
            DType::U8 | DType::Bool => read!(u8, u8),
            DType::U16 => read!(u16, u16),
            DType::U32 => read!(u32, u32),
            DType::U64 => read!(u64, u64),
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => {
                let mut value = [0.0_f64];
                self.row(at, k, &mut value);
                value[0] as i128
            }
        }
    }

    /// Whether both views read the same memory in the same way.
    pub fn same_memory(&self, other: &Self) -> bool {
        let axis = |i: usize| self.shape[i] <= 1 || self.strides[i] == other.strides[i];
        self.base == other.base
            && self.shape == other.shape
            && self.dtype == other.dtype
            && self.swapped == other.swapped
            && (0..AXES).all(axis)
    }

    /// Whether both views have the same shape, type and bits of every element. An axis along which neither moves is read once, so
    /// that arrays of nothing but repeats, which stand in for large ones in plans, cost no time.
    pub fn same_content(&self, other: &Self) -> bool {
        if self.shape != other.shape || self.dtype != other.dtype {
            return false;
        }
        if self.same_memory(other) {
            return true;
        }
        let repeats = |axis: usize| self.strides[axis] == 0 && other.strides[axis] == 0;
        let reads =
            |axis: usize| if repeats(axis) { self.shape[axis].min(1) } else { self.shape[axis] };
        let [n, r, g, t, k] = core::array::from_fn(reads);
        let mut rows = (0..n)
            .flat_map(|n| (0..r).map(move |r| (n, r)))
            .flat_map(|(n, r)| (0..g).map(move |g| (n, r, g)))
            .flat_map(|(n, r, g)| (0..t).map(move |t| [n, r, g, t]));
        let (mut mine, mut theirs) = ([0.0_f64; 256], [0.0_f64; 256]);
        rows.all(|at| {
            (0..k).step_by(256).all(|k0| {
                let len = (k - k0).min(256);
                self.row(at, k0, &mut mine[..len]);
                other.row(at, k0, &mut theirs[..len]);
                let bits = |x: &f64| x.to_bits();
                mine[..len].iter().map(bits).eq(theirs[..len].iter().map(bits))
            })
        })
    }

    fn offset(&self, at: [usize; 4], k0: usize, len: usize) -> *const u8 {
        let inside = (0..4).all(|axis| at[axis] < self.shape[axis]) && k0 + len <= self.shape[4];
        assert!(inside, "index {at:?}, {k0} + {len} is outside a view of shape {:?}", self.shape);
        let mut offset = k0 as isize * self.strides[4];
        for axis in 0..4 {
            offset += at[axis] as isize * self.strides[axis];
        }
        self.base.wrapping_offset(offset)
    }
}
