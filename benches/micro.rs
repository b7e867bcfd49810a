//! Micro benches: the sweep of one macro tile against the FMA peak, and the pack against a copy, per instruction set and width.
//!
//! Prints CSV. Fails if a figure is below its floor: code generation of the register tile is fragile (a tile of 24 x 4 runs at half,
//! 48 x 8 at a fiftieth of the peak), and nothing but this would notice. Figures are the best of many short runs.

use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use entk::kernel::{
    Buffer, DType, Group, Isa, MR_F32, MR_F64, NR, Operand, Packed, PanelShape, Real, Reduce,
    Source, Step, Sweep, Tile, View, fma_peak, pack_panels, sweep,
};
use ndarray::ArrayView;

const SIDE: usize = 192;
/// Fraction of the peak that a sweep must reach, by width.
const FLOORS: [(usize, f64); 4] = [(16, 0.65), (64, 0.85), (128, 0.85), (1024, 0.7)];
/// Elements a nanosecond that the pack must reach.
const PACK_FLOOR: f64 = 0.25;

fn main() {
    let mut fine = true;
    println!("bench,isa,type,d,rate,peak,fraction,floor");
    for isa in Isa::available().into_iter().filter(|isa| isa.name() != "portable") {
        for (d, floor) in FLOORS {
            fine &= row(
                "sweep",
                isa,
                "f32",
                d,
                sweep_rate::<f32, MR_F32>(isa, d),
                fma_peak(isa, false, 1, 0.05),
                floor,
            );
            fine &= row(
                "sweep",
                isa,
                "f64",
                d,
                sweep_rate::<f64, MR_F64>(isa, d),
                fma_peak(isa, true, 1, 0.05),
                floor,
            );
        }
    }
    let isa = Isa::PORTABLE;
    for d in [16, 64, 1024] {
        fine &= row("pack16", isa, "f32", d, pack_rate::<MR_F32>(d), 1e9, PACK_FLOOR);
        fine &= row("pack6", isa, "f32", d, pack_rate::<NR>(d), 1e9, PACK_FLOOR);
    }
    std::process::exit(i32::from(!fine));
}

fn row(name: &str, isa: Isa, of: &str, d: usize, rate: f64, peak: f64, floor: f64) -> bool {
    let fraction = rate / peak;
    println!("{name},{},{of},{d},{rate:.3e},{peak:.3e},{fraction:.3},{floor}", isa.name());
    fraction >= floor
}

/// Flops a second of one macro tile of leaves `d x d`, sum of widths at least 256.
fn sweep_rate<F: Real, const MR: usize>(isa: Isa, d: usize) -> f64 {
    let leaves = (128 / d).max(1);
    let fill = |lanes: usize| -> Buffer<F> {
        let mut buffer = Buffer::zeroed(SIDE * d).expect("room");
        buffer.iter_mut().enumerate().for_each(|(i, x)| *x = F::from_f64((i % 7) as f64));
        assert!(SIDE.is_multiple_of(lanes), "whole panels");
        buffer
    };
    let rows: Vec<Buffer<F>> = (0..2 * leaves).map(|_| fill(MR)).collect();
    let cols: Vec<Buffer<F>> = (0..2 * leaves).map(|_| fill(NR)).collect();
    let packed_rows: Vec<_> = rows.iter().map(|x| Packed::<F, MR>::new(x, 1, d)).collect();
    let packed_cols: Vec<_> = cols.iter().map(|x| Packed::<F, NR>::new(x, 1, d)).collect();
    let product = |a, b| Step { a, b: Some(b), weight: 1.0 };
    let group = if d > 256 {
        let steps = vec![product(Operand::Kept(0), Operand::Kept(1))];
        Group::Wide { nodes: vec![0, 1], steps }
    } else {
        let gram = |node, slot| Operand::Gram { node, slot, again: false };
        let step = |leaf| product(gram(2 * leaf, 0), gram(2 * leaf + 1, 1));
        Group::Narrow((0..leaves).map(step).collect())
    };
    let cancel = AtomicBool::new(false);
    let groups = [group];
    let job = Sweep {
        groups: &groups,
        rows: &packed_rows,
        cols: &packed_cols,
        merged: &[],
        plain: &[],
        p: 0..SIDE / MR,
        q: 0..SIDE / NR,
        triangle: false,
        diagonal_only: false,
        examples: (SIDE, SIDE),
        pairs: &[(0, 0)],
        cancel: &cancel,
    };
    let mut acc = vec![[[F::ZERO; MR]; NR]; SIDE * SIDE / (MR * NR)];
    let mut scratch: Vec<Tile<F, MR>> = vec![[[F::ZERO; MR]; NR]; 2 * 16 * SIDE / MR];
    let seconds = best(0.1, || sweep(isa, &job, black_box(&mut acc), &mut [], &mut scratch));
    (4 * leaves * d * SIDE * SIDE) as f64 / seconds
}

/// Elements a second of packing a contiguous float32 matrix.
fn pack_rate<const W: usize>(d: usize) -> f64 {
    const ROWS: usize = 960;
    let bytes = vec![1_u8; ROWS * d * 4];
    let array = ArrayView::from_shape(vec![ROWS, 1, 1, 1, d, 4], &bytes).expect("that shape");
    let view = View::new(&array, DType::F32, false).expect("a view");
    let source = Source::one(view, Reduce::Keep);
    let shape = PanelShape { outputs: 1, groups: 1, positions: 1, k: d };
    let mut panels: Buffer<f32> = Buffer::zeroed(ROWS * d).expect("room");
    let seconds = best(0.1, || {
        pack_panels::<f32, W>(&source, (0, ROWS), shape, (0, 0..d), black_box(&mut panels));
    });
    (ROWS * d) as f64 / seconds
}

/// Least seconds of one call, over many.
fn best(seconds: f64, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut least = f64::INFINITY;
    while start.elapsed().as_secs_f64() < seconds {
        let before = Instant::now();
        call();
        least = least.min(before.elapsed().as_secs_f64());
    }
    least
}
