//! The two types a kernel is accumulated in.

/// `f32` or `f64`: what the arithmetic needs of them.
pub trait Real: Copy + Send + Sync + PartialEq + 'static {
    /// Positive zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Round or keep.
    fn from_f64(value: f64) -> Self;
    /// Widen or keep.
    fn from_f32(value: f32) -> Self;
    /// Widen or keep.
    fn to_f64(self) -> f64;
    /// Round or keep.
    fn to_f32(self) -> f32;
    /// `self * by + plus` with one rounding.
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// Rounded product.
    fn times(self, by: Self) -> Self;
    /// Rounded sum.
    fn plus(self, other: Self) -> Self;
    /// Absolute value.
    fn magnitude(self) -> Self;
    /// Whether a magnitude is finite.
    fn below_infinity(self) -> bool;
    /// The larger of two magnitudes.
    fn larger(self, other: Self) -> Self;
}

macro_rules! real {
    ($t:ty, $from64:expr, $from32:expr, $to64:expr, $to32:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from64(value)
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                $from32(value)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to64(self)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to32(self)
            }
            #[inline(always)]
            fn mul_add(self, by: Self, plus: Self) -> Self {
                <$t>::mul_add(self, by, plus)
            }
            #[inline(always)]
            fn times(self, by: Self) -> Self {
                self * by
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn magnitude(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn below_infinity(self) -> bool {
                self < <$t>::INFINITY
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                if other > self { other } else { self }
            }
        }
    };
}

real!(f32, |x| x as f32, |x| x, f64::from, |x| x);
real!(f64, |x| x, f64::from, |x| x, |x| x as f32);
