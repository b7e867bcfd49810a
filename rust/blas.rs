//! SciPy's BLAS behind safe functions.
//!
//! The user's own BLAS: `scipy.linalg.cython_blas` publishes its routines as capsules, whose names are their C signatures. Nothing is linked and
//! nothing bundled; threadpoolctl controls the threads. Of a routine it is checked, before it is used: the signature, the sizes of every
//! call against the slices, and once the result of a small product against a plain loop.
//!
//! Matrices here are row by row. BLAS reads columns, so it sees each as its transpose, and `C = A B^T` is asked for as `C^T = B A^T`.
//!
//! **Unsafe.** Pointers into functions, and their calls. `SAFETY.md` lists the sites.

use core::ffi::{c_char, c_void};
use core::mem;
use core::ops::Range;
use core::ptr::NonNull;

use crate::error::Error;
use crate::kernel::Real;

/// `gemm(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)`, integers `I`, numbers `S`.
type Gemm<I, S> = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const I,
    *const I,
    *const I,
    *const S,
    *const S,
    *const I,
    *const S,
    *const I,
    *const S,
    *mut S,
    *const I,
);

/// A matrix in a slice: `rows` rows of `k` numbers, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, F> {
    data: &'a [F],
    rows: usize,
    k: usize,
    stride: usize,
}

impl<'a, F> Rows<'a, F> {
    /// View a slice as a matrix.
    ///
    /// # Panics
    /// If the slice is too short, or rows overlap.
    pub fn new(data: &'a [F], rows: usize, k: usize, stride: usize) -> Self {
        assert!(k <= stride, "rows of {k} overlap at a stride of {stride}");
        assert!(
            rows == 0 || (rows - 1) * stride + k <= data.len(),
            "a matrix of too short a slice"
        );
        Self { data, rows, k, stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    pub fn features(&self) -> usize {
        self.k
    }

    /// Some features of every row.
    pub fn columns(&self, ks: Range<usize>) -> Self {
        let start = ks.start.min(self.data.len());
        Self::new(&self.data[start..], self.rows, ks.len(), self.stride)
    }

    /// One row.
    pub fn row(&self, row: usize) -> &'a [F] {
        &self.data[row * self.stride..][..self.k]
    }
}

/// Something that multiplies matrices; tests put a damaged one here.
pub trait Multiply<F>: Sync {
    /// `C = A B^T + beta C`, with `C` of `a.rows() x b.rows()` without gaps, and beta 0 or 1.
    fn product(&self, a: Rows<'_, F>, b: Rows<'_, F>, keep: bool, c: &mut [F]);
}

#[derive(Clone, Copy, Debug)]
enum Routine<S> {
    Narrow(Gemm<i32, S>),
    Wide(Gemm<i64, S>),
}

/// The two routines, tested.
#[derive(Clone, Copy, Debug)]
pub struct Blas {
    single: Routine<f32>,
    double: Routine<f64>,
}

/// A routine as its capsule describes it.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// Its address.
    pub address: NonNull<c_void>,
    /// Its C signature.
    pub signature: &'a str,
}

impl Blas {
    /// Take `sgemm` and `dgemm`; `wide` says that their integers have 64 bits.
    ///
    /// # Errors
    /// [`Error::Internal`] if a signature is not that of a GEMM, or a small product comes out wrong.
    pub fn new(sgemm: Published<'_>, dgemm: Published<'_>, wide: bool) -> Result<Self, Error> {
        check_signature("sgemm", sgemm.signature)?;
        check_signature("dgemm", dgemm.signature)?;
        let (single, double) = (sgemm.address.as_ptr(), dgemm.address.as_ptr());
        let blas = if wide {
            // SAFETY: the capsule's name says that this is a GEMM, and SciPy that its integers have 64 bits.
            let single = unsafe { mem::transmute::<*mut c_void, Gemm<i64, f32>>(single) };
            // SAFETY: as above.
            let double = unsafe { mem::transmute::<*mut c_void, Gemm<i64, f64>>(double) };
            Self { single: Routine::Wide(single), double: Routine::Wide(double) }
        } else {
            // SAFETY: as above, with integers of 32 bits.
            let single = unsafe { mem::transmute::<*mut c_void, Gemm<i32, f32>>(single) };
            // SAFETY: as above.
            let double = unsafe { mem::transmute::<*mut c_void, Gemm<i32, f64>>(double) };
            Self { single: Routine::Narrow(single), double: Routine::Narrow(double) }
        };
        test_product::<f32>(&blas, "sgemm")?;
        test_product::<f64>(&blas, "dgemm")?;
        Ok(blas)
    }
}

fn check_signature(name: &str, signature: &str) -> Result<(), Error> {
    let inner = signature.strip_prefix("void (").and_then(|rest| rest.strip_suffix(')'));
    let arguments: Vec<&str> = inner.unwrap_or("").split(',').map(str::trim).collect();
    let texts = arguments.iter().take(2).all(|argument| argument.starts_with("char"));
    if arguments.len() == 13 && texts && arguments.iter().all(|a| a.ends_with('*')) {
        return Ok(());
    }
    Err(Error::Internal { what: format!("{name} has the signature {signature:?}") })
}

/// Three by two, with gaps between the rows, against a plain loop in small integers.
fn test_product<F: Real>(blas: &impl Multiply<F>, name: &str) -> Result<(), Error> {
    let number = |i: usize| F::from_f64(((i * 7 + 3) % 11) as f64 - 5.0);
    let (a, b): (Vec<F>, Vec<F>) = ((0..15).map(number).collect(), (4..14).map(number).collect());
    let (a, b) = (Rows::new(&a, 3, 4, 5), Rows::new(&b, 2, 4, 5));
    let mut c = [F::ONE; 6];
    for (keep, times) in [(false, 1.0), (true, 2.0)] {
        blas.product(a, b, keep, &mut c);
        for (at, &got) in c.iter().enumerate() {
            let pairs = a.row(at / 2).iter().zip(b.row(at % 2));
            let want: f64 = pairs.map(|(x, y)| x.to_f64() * y.to_f64()).sum();
            if got.to_f64() != times * want {
                return Err(Error::Internal { what: format!("{name} gave a wrong product") });
            }
        }
    }
    Ok(())
}

macro_rules! multiply {
    ($number:ty, $field:ident) => {
        impl Multiply<$number> for Blas {
            fn product(
                &self,
                a: Rows<'_, $number>,
                b: Rows<'_, $number>,
                keep: bool,
                c: &mut [$number],
            ) {
                assert_eq!(a.k, b.k, "rows of different lengths");
                assert_eq!(c.len(), a.rows * b.rows, "a product of another size");
                if c.is_empty() {
                    return;
                }
                match self.$field {
                    Routine::Narrow(gemm) => call(gemm, a, b, <$number>::from(u8::from(keep)), c),
                    Routine::Wide(gemm) => call(gemm, a, b, <$number>::from(u8::from(keep)), c),
                }
            }
        }
    };
}
multiply!(f32, single);
multiply!(f64, double);

/// Sizes of a call in BLAS's integers.
fn sizes<I: TryFrom<usize>>(of: [usize; 6]) -> [I; 6] {
    of.map(|size| match I::try_from(size) {
        Ok(size) => size,
        Err(_) => panic!("a matrix side of {size} is too long for this BLAS"),
    })
}

fn call<I: TryFrom<usize>, F: Real>(
    gemm: Gemm<I, F>,
    a: Rows<'_, F>,
    b: Rows<'_, F>,
    beta: F,
    c: &mut [F],
) {
    let [m, n, k, lda, ldb, ldc] =
        sizes::<I>([b.rows, a.rows, a.k, b.stride.max(1), a.stride.max(1), b.rows.max(1)]);
    let (turned, plain) = (b'T' as c_char, b'N' as c_char);
    // SAFETY: `Rows::new` checked that both matrices lie within their slices, `product` that `c` holds the result without gaps; BLAS reads
    // the first two and writes the third, and keeps no pointer.
    unsafe {
        gemm(
            &turned,
            &plain,
            &m,
            &n,
            &k,
            &F::ONE,
            b.data.as_ptr(),
            &lda,
            a.data.as_ptr(),
            &ldb,
            &beta,
            c.as_mut_ptr(),
            &ldc,
        );
    }
}
