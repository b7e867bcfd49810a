//! Which instruction sets this CPU has, and the sweep compiled for each.

use core::ops::Range;

use super::expand::{self, Table};
use super::sweep::run;
use super::{Real, Sweep, Tile, peak};

/// An instruction set this CPU was seen to support. Holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// What the target guarantees. Where that lacks fused multiply-add the C library's exact `fma` stands in: slow, same bits.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// Every supported instruction set, slowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other targets have nothing to add")]
        let mut found = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avx512f") {
                found.push(Self(Kind::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Self(Kind::Neon));
        found
    }

    /// The fastest, or the one that this name (of `ENTK_ISA`) forces; `None` where this CPU lacks it.
    pub fn choose(name: Option<&str>) -> Option<Self> {
        let mut found = Self::available();
        match name {
            None => found.pop(),
            Some(name) => found.into_iter().find(|isa| isa.name() == name),
        }
    }

    /// Lower-case name, as in `ENTK_ISA` and the benchmark records.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
        }
    }
}

/// Add every leaf of a pass to the accumulators of one macro tile (`p x q x pairs` register tiles each).
#[inline]
pub fn sweep<F: Real, const MR: usize>(
    isa: Isa,
    job: &Sweep<'_, F, MR>,
    acc: &mut [Tile<F, MR>],
    partial: &mut [Tile<F, MR>],
    scratch: &mut [Tile<F, MR>],
) {
    match isa.0 {
        Kind::Portable => run::<F, MR, false>(job, acc, partial, scratch),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` builds `Avx2` only after detecting avx2 and fma.
        Kind::Avx2 => unsafe { avx2(job, acc, partial, scratch) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` builds `Avx512` only after detecting avx512f, avx2 and fma.
        Kind::Avx512 => unsafe { avx512(job, acc, partial, scratch) },
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => run::<F, MR, true>(job, acc, partial, scratch),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    acc: &mut [Tile<F, MR>],
    partial: &mut [Tile<F, MR>],
    scratch: &mut [Tile<F, MR>],
) {
    run::<F, MR, false>(job, acc, partial, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn avx512<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    acc: &mut [Tile<F, MR>],
    partial: &mut [Tile<F, MR>],
    scratch: &mut [Tile<F, MR>],
) {
    run::<F, MR, true>(job, acc, partial, scratch);
}

/// Expand features `ks` of the examples `first .. end` (at most [`expand::EXPAND_BLOCK`]) into whole panels of width `W`.
#[inline]
pub fn expand_panels<F: Real, const MR: usize, const W: usize>(
    isa: Isa,
    table: &Table<'_>,
    examples: (usize, usize),
    ks: Range<usize>,
    panels: &mut [F],
) {
    match isa.0 {
        Kind::Portable => expand::expand::<F, MR, W>(table, examples, ks, panels),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` builds `Avx2` only after detecting avx2 and fma.
        Kind::Avx2 => unsafe { expand_avx2::<F, MR, W>(table, examples, ks, panels) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` builds `Avx512` only after detecting avx512f, avx2 and fma.
        Kind::Avx512 => unsafe { expand_avx512::<F, MR, W>(table, examples, ks, panels) },
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => expand::expand::<F, MR, W>(table, examples, ks, panels),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn expand_avx2<F: Real, const MR: usize, const W: usize>(
    table: &Table<'_>,
    examples: (usize, usize),
    ks: Range<usize>,
    panels: &mut [F],
) {
    expand::expand::<F, MR, W>(table, examples, ks, panels);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn expand_avx512<F: Real, const MR: usize, const W: usize>(
    table: &Table<'_>,
    examples: (usize, usize),
    ks: Range<usize>,
    panels: &mut [F],
) {
    expand::expand::<F, MR, W>(table, examples, ks, panels);
}

/// Work whose loops are compiled for each instruction set; `run` is to be `#[inline(always)]`.
pub(crate) trait Body {
    /// Do it.
    fn run(self);
}

/// Run a body compiled for an instruction set.
#[inline]
pub(crate) fn on<B: Body>(isa: Isa, body: B) {
    match isa.0 {
        Kind::Portable => body.run(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` builds `Avx2` only after detecting avx2 and fma.
        Kind::Avx2 => unsafe { on_avx2(body) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` builds `Avx512` only after detecting avx512f, avx2 and fma.
        Kind::Avx512 => unsafe { on_avx512(body) },
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => body.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn on_avx2<B: Body>(body: B) {
    body.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn on_avx512<B: Body>(body: B) {
    body.run();
}

/// Fused multiply-adds in registers, for `peak.rs`. Returns the flops done.
pub(super) fn spin_on(isa: Isa, double: bool) -> usize {
    #[cfg(target_arch = "x86_64")]
    match (isa.0, double) {
        // SAFETY: `Isa::available` builds `Avx2` only after detecting avx2 and fma.
        (Kind::Avx2, false) => return unsafe { peak::x86::avx2_f32() },
        // SAFETY: as above.
        (Kind::Avx2, true) => return unsafe { peak::x86::avx2_f64() },
        // SAFETY: `Isa::available` builds `Avx512` only after detecting avx512f, avx2 and fma.
        (Kind::Avx512, false) => return unsafe { peak::x86::avx512_f32() },
        // SAFETY: as above.
        (Kind::Avx512, true) => return unsafe { peak::x86::avx512_f64() },
        (Kind::Portable, _) => {}
    }
    let _ = (isa, double);
    peak::portable()
}

/// Round to nearest with subnormals kept, whatever another library set; the old state comes back on drop.
#[derive(Debug)]
pub struct FloatState {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

impl FloatState {
    /// Set the default state on this thread.
    #[must_use]
    pub fn standard() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let before = control();
            set_control(0x1f80);
            Self { before }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self {}
    }
}

impl Drop for FloatState {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        set_control(self.before);
    }
}

#[cfg(target_arch = "x86_64")]
fn control() -> u32 {
    let mut value = 0_u32;
    // SAFETY: stores the control word into a live local of the right size.
    unsafe { core::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
    value
}

#[cfg(target_arch = "x86_64")]
fn set_control(value: u32) {
    // SAFETY: `value` is the default control word or one that this thread had before.
    unsafe {
        core::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly))
    };
}
