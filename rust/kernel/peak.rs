//! The rate of fused multiply-adds from registers: the roof that benches measure against.
//!
//! Written with intrinsics, so that it does not depend on the vectoriser that the kernel relies on.

use core::hint::black_box;
use std::thread;
use std::time::Instant;

use super::Isa;

const ROUNDS: usize = 100_000;

/// Flops a second of all `threads` together.
pub fn fma_peak(isa: Isa, double: bool, threads: usize, seconds: f64) -> f64 {
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(move || rate(isa, double, seconds))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0.0)).sum()
    })
}

/// The best of many short calls: what the core can do when nothing else runs on it.
fn rate(isa: Isa, double: bool, seconds: f64) -> f64 {
    let mut best: f64 = 0.0;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        let call = Instant::now();
        let flops = super::isa::spin_on(isa, double);
        best = best.max(flops as f64 / call.elapsed().as_secs_f64());
    }
    best
}

/// Scalar multiply-adds, for targets without a version of their own. Returns the flops done.
pub(super) fn portable() -> usize {
    const CHAINS: usize = 8;
    let mut sum = [black_box(0.5_f64); CHAINS];
    for _ in 0..ROUNDS {
        for lane in &mut sum {
            *lane = lane.mul_add(0.5, 0.5);
        }
    }
    black_box(sum);
    2 * CHAINS * ROUNDS
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use core::arch::x86_64::{
        _mm256_fmadd_pd, _mm256_fmadd_ps, _mm256_set1_pd, _mm256_set1_ps, _mm512_fmadd_pd,
        _mm512_fmadd_ps, _mm512_set1_pd, _mm512_set1_ps,
    };
    use core::hint::black_box;

    use super::ROUNDS;

    macro_rules! spin {
        ($name:ident, $features:literal, $chains:literal, $lanes:literal, $set:ident, $fma:ident) => {
            /// Independent chains in registers, more than latency times throughput. Returns the flops done.
            #[target_feature(enable = $features)]
            pub(in super::super) fn $name() -> usize {
                let by = $set(black_box(0.5));
                let mut sum = [by; $chains];
                for _ in 0..ROUNDS {
                    for chain in &mut sum {
                        *chain = $fma(*chain, by, by);
                    }
                }
                black_box(sum);
                2 * $lanes * $chains * ROUNDS
            }
        };
    }

    spin!(avx2_f32, "avx2,fma", 12, 8, _mm256_set1_ps, _mm256_fmadd_ps);
    spin!(avx2_f64, "avx2,fma", 12, 4, _mm256_set1_pd, _mm256_fmadd_pd);
    spin!(avx512_f32, "avx512f,avx2,fma", 12, 16, _mm512_set1_ps, _mm512_fmadd_ps);
    spin!(avx512_f64, "avx512f,avx2,fma", 12, 8, _mm512_set1_pd, _mm512_fmadd_pd);
}
