//! The rate that the register tile's own instructions reach from registers: the roof that benches measure against.

use core::hint::black_box;
use std::thread;
use std::time::Instant;

use super::{Isa, NR, Real};

/// Independent vectors: as many as the register tile has. With 8 or 12 of 16 lanes the compiler spills and the rate falls to 2 %.
pub(super) const CHAINS: usize = NR;
const ROUNDS: usize = 20_000;

/// Chains of fused multiply-adds in registers; the caller compiles it for an instruction set.
#[inline(always)]
pub(super) fn spin<F: Real, const MR: usize>(seed: F) -> [[F; MR]; CHAINS] {
    let mut sum = [[seed; MR]; CHAINS];
    let by = [black_box(seed); MR];
    for _ in 0..ROUNDS {
        for chain in &mut sum {
            for (lane, by) in chain.iter_mut().zip(by) {
                *lane = lane.mul_add(by, by);
            }
        }
    }
    sum
}

/// Flops a second of all `threads` together.
pub fn fma_peak(isa: Isa, double: bool, threads: usize, seconds: f64) -> f64 {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    if double {
                        rate::<f64, 8>(isa, seconds)
                    } else {
                        rate::<f32, 16>(isa, seconds)
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0.0)).sum()
    })
}

fn rate<F: Real, const MR: usize>(isa: Isa, seconds: f64) -> f64 {
    let mut best: f64 = 0.0;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        let call = Instant::now();
        black_box(super::isa::spin_on::<F, MR>(isa, F::from_f64(0.5)));
        let flops = (2 * CHAINS * MR * ROUNDS) as f64;
        best = best.max(flops / call.elapsed().as_secs_f64());
    }
    best
}
