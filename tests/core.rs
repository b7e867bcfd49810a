//! The core against the definition, and against itself: the same bits for every instruction set, schedule, block and thread count.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use entk::block::Call;
use entk::cost::Cost;
use entk::cut::Cut;
use entk::kernel::{DType, Isa, MR_F32, MR_F64, Out, Real, View};
use entk::plan::{Blocks, STEP, Sizes};
use entk::program::{Entry, Leaf, Mode, Program, Use};
use entk::schedule::Schedule;
use ndarray::{ArrayView, ArrayViewMut};

/// A float32 array `[n, r, g, t, k]` of small integers: sums of their products are exact.
#[derive(Clone)]
struct Array {
    shape: [usize; 5],
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Array {
    fn new(shape: [usize; 5], seed: usize) -> Self {
        let len: usize = shape.iter().product();
        let value = |i: usize| ((i * 7 + i / 5 + seed * 3) % 7) as f32 - 3.0;
        Self::of(shape, (0..len).map(value).collect())
    }

    fn of(shape: [usize; 5], values: Vec<f32>) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
        Self { shape, values, bytes }
    }

    /// The same shape, values that round.
    fn rough(shape: [usize; 5], seed: usize) -> Self {
        let len: usize = shape.iter().product();
        let value = |i: usize| ((i * 37 + seed * 11) as f32).sin();
        Self::of(shape, (0..len).map(value).collect())
    }

    fn view(&self) -> View<'_> {
        let shape = [self.shape.as_slice(), &[4]].concat();
        View::new(&ArrayView::from_shape(shape, &self.bytes).expect("its shape"), DType::F32, false)
            .expect("five axes")
    }

    fn at(&self, index: [usize; 5]) -> f64 {
        let mut flat = 0;
        for (axis, &i) in index.iter().enumerate() {
            flat = flat * self.shape[axis] + if self.shape[axis] == 1 { 0 } else { i };
        }
        f64::from(self.values[flat])
    }
}

/// A leaf and the definition of its kernel.
struct Case {
    acts: Option<Array>,
    cots: Array,
}

impl Case {
    fn entry(&self) -> Entry<'_> {
        let rows = match &self.acts {
            None => Leaf::Dense(self.cots.view()),
            Some(acts) => Leaf::Uses(vec![Use::Outer {
                acts: acts.view(),
                cots: self.cots.view(),
                transposed: false,
            }]),
        };
        Entry { rows, cols: None, weight: 1.0 }
    }

    fn exact(&self, (n, r): (usize, usize), (m, s): (usize, usize)) -> f64 {
        let [_, _, groups, positions, k] = self.cots.shape;
        let dot = |a: &Array, row: [usize; 4], col: [usize; 4], k: usize| -> f64 {
            let place = |i: [usize; 4], k| a.at([i[0], i[1], i[2], i[3], k]);
            (0..k).map(|k| place(row, k) * place(col, k)).sum()
        };
        let mut sum = 0.0;
        for g in 0..groups {
            for t in 0..positions {
                for u in 0..positions {
                    let right = dot(&self.cots, [n, r, g, t], [m, s, g, u], k);
                    let left = self
                        .acts
                        .as_ref()
                        .map_or(1.0, |acts| dot(acts, [n, 0, g, t], [m, 0, g, u], acts.shape[4]));
                    sum += left * right;
                }
            }
        }
        sum
    }
}

/// Leaves of every contraction: product, gram, shared arrays, pairs of positions, groups, expanded tables, more features than a chain.
fn cases(n: usize, r: usize, make: fn([usize; 5], usize) -> Array) -> Vec<Case> {
    let outer = |g, t, d_in, d_out, seed| Case {
        acts: Some(make([n, 1, g, t, d_in], seed)),
        cots: make([n, r, g, t, d_out], seed + 1),
    };
    let shared = outer(1, 1, 5, 3, 1);
    let bias = Case { acts: None, cots: shared.cots.clone() };
    let dense = Case { acts: None, cots: make([n, r, 1, 1, 600], 4) };
    vec![
        shared,
        bias,
        dense,
        outer(1, 1, 300, 7, 6),
        outer(1, 3, 40, 30, 8),
        outer(2, 1, 4, 5, 10),
        outer(2, 9, 3, 4, 12),
    ]
}

struct Setup {
    isa: Isa,
    threads: usize,
    limit: u128,
}

fn assemble<F: Real, const MR: usize>(
    cases: &[Case],
    r: usize,
    mode: &Mode,
    setup: &Setup,
) -> Vec<f64> {
    let entries: Vec<_> = cases.iter().map(Case::entry).collect();
    let program = Program::lower(&entries, r, mode).expect("one kind a leaf");
    let n = cases[0].cots.shape[0];
    let sizes = Sizes {
        rows: n,
        cols: n,
        item: size_of::<F>(),
        lanes: MR,
        threads: setup.threads,
        limit: setup.limit,
    };
    let blocks = Blocks::new(&program, sizes).expect("enough memory");
    let side = if program.all_pairs { n * r } else { n };
    let planes = if program.all_pairs { 1 } else { program.outputs };
    let mut bytes = vec![0_u8; planes * side * side * 8];
    let shape = vec![planes, side, side, 8];
    let mut array = ArrayViewMut::from_shape(shape, &mut bytes).expect("its shape");
    let (cancel, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let call = Call {
        program: &program,
        blocks: &blocks,
        isa: setup.isa,
        threads: setup.threads,
        out: Out::new(&mut array.view_mut(), true).expect("four axes"),
        scale: 1.0,
        cancel: &cancel,
        done: &done,
    };
    let cut = Cut::Square(0..n);
    assert!(call.run::<F, MR>(&cut).expect("not cancelled"), "an entry is not finite");
    let total = call.total::<MR>(&cut);
    assert_eq!(done.load(Ordering::Relaxed), total, "progress ends at its total");
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight"))).collect()
}

const PLENTY: u128 = 1 << 34;

#[test]
fn integers_give_the_exact_kernel_on_every_instruction_set() {
    let (n, r) = (53, 2);
    let cases = cases(n, r, Array::new);
    for isa in Isa::available() {
        let setup = Setup { isa, threads: 2, limit: PLENTY };
        let got = assemble::<f64, MR_F64>(&cases, r, &Mode::Full, &setup);
        for (index, got) in got.into_iter().enumerate() {
            let (row, col) = (index / (n * r), index % (n * r));
            let pair = ((row / r, row % r), (col / r, col % r));
            let want: f64 = cases.iter().map(|case| case.exact(pair.0, pair.1)).sum();
            assert_eq!(got, want, "{} at ({row}, {col})", isa.name());
        }
    }
}

#[test]
fn the_trace_is_the_sum_over_equal_outputs() {
    let (n, r) = (20, 3);
    let cases = cases(n, r, Array::new);
    let setup = Setup { isa: Isa::choose(None).expect("one"), threads: 1, limit: PLENTY };
    let trace = assemble::<f64, MR_F64>(&cases, r, &Mode::Trace, &setup);
    let planes = assemble::<f64, MR_F64>(&cases, r, &Mode::Diagonal, &setup);
    for (index, trace) in trace.into_iter().enumerate() {
        let sum: f64 = (0..r).map(|plane| planes[plane * n * n + index]).sum();
        assert_eq!(trace, sum, "entry {index}");
    }
}

/// The smallest limit that the planner accepts.
fn smallest_limit(cases: &[Case], r: usize, mode: &Mode, threads: usize) -> u128 {
    let entries: Vec<_> = cases.iter().map(Case::entry).collect();
    let program = Program::lower(&entries, r, mode).expect("one kind a leaf");
    let n = cases[0].cots.shape[0];
    let sizes = Sizes { rows: n, cols: n, item: 4, lanes: MR_F32, threads, limit: 0 };
    match Blocks::new(&program, sizes) {
        Err(entk::error::Error::Memory { needs, .. }) => needs,
        other => panic!("no memory is enough: {other:?}"),
    }
}

#[test]
fn bits_do_not_depend_on_instruction_set_threads_or_memory() {
    let (n, r) = (131, 2);
    let cases = cases(n, r, Array::rough);
    for mode in [Mode::Full, Mode::Trace, Mode::Select(1), Mode::Diagonal] {
        let mut first: Option<Vec<f64>> = None;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let least = smallest_limit(&cases, r, &mode, threads);
                for limit in [least, 2 * least, PLENTY] {
                    let setup = Setup { isa, threads, limit };
                    let got = assemble::<f32, MR_F32>(&cases, r, &mode, &setup);
                    let bits: Vec<u64> = got.iter().map(|x| x.to_bits()).collect();
                    let want = first.get_or_insert_with(|| got.clone());
                    let same = want.iter().map(|x| x.to_bits()).eq(bits);
                    assert!(same, "{mode:?}, {}, {threads} threads, {limit} bytes", isa.name());
                }
            }
        }
    }
}

#[test]
fn results_are_symmetric_bit_for_bit() {
    let (n, r) = (101, 3);
    let cases = cases(n, r, Array::rough);
    let setup = Setup { isa: Isa::choose(None).expect("one"), threads: 2, limit: PLENTY };
    let kernel = assemble::<f32, MR_F32>(&cases, r, &Mode::Full, &setup);
    let side = n * r;
    for i in 0..side {
        for j in 0..i {
            let (a, b) = (kernel[i * side + j], kernel[j * side + i]);
            assert_eq!(a.to_bits(), b.to_bits(), "({i}, {j})");
        }
    }
}

#[test]
fn a_bias_beside_its_weight_costs_no_flops() {
    let cases = cases(4, 1, Array::rough);
    let entries: Vec<_> = cases.iter().map(Case::entry).collect();
    let flops = |entries: &[Entry<'_>]| {
        Cost::of(&Program::lower(entries, 1, &Mode::AsIs).expect("one kind a leaf"), false).flops
    };
    assert_eq!(
        flops(&entries[..2]),
        flops(&entries[..1]),
        "the bias shares the weight's cotangents"
    );
    assert_eq!(flops(&entries[..1]), 2 * (5 + 3));
}

#[test]
fn passes_hold_every_term_once_and_stay_within_their_width() {
    let cases = cases(4, 2, Array::rough);
    let entries: Vec<_> = cases.iter().map(Case::entry).collect();
    let mode = Mode::Full;
    let program = Program::lower(&entries, 2, &mode).expect("one kind a leaf");
    let widest = program.nodes.iter().map(|node| node.elements()).max().expect("nodes");
    for width in [1, 300, 1000, 5000, usize::MAX] {
        let schedule = Schedule::new(&program, width);
        assert!(schedule.elements <= width.max(2 * widest), "{width}: {}", schedule.elements);
        let mut slices: Vec<_> = schedule.passes.iter().filter_map(|p| p.slice.clone()).collect();
        slices.sort_by_key(|slice| slice.start);
        assert!(slices.iter().all(|slice| slice.start % 256 == 0), "slices cut chains: {slices:?}");
    }
}

#[test]
fn more_memory_never_makes_smaller_blocks() {
    let cases = cases(1000, 1, Array::rough);
    let entries: Vec<_> = cases.iter().map(Case::entry).collect();
    let program = Program::lower(&entries, 1, &Mode::AsIs).expect("one kind a leaf");
    let mut before = 0;
    for limit in [5_u128 << 20, 8 << 20, 16 << 20, 64 << 20, 1 << 30] {
        let sizes = Sizes { rows: 1000, cols: 1000, item: 4, lanes: MR_F32, threads: 2, limit };
        let Ok(blocks) = Blocks::new(&program, sizes) else { continue };
        assert!(blocks.bytes <= limit, "{} > {limit}", blocks.bytes);
        assert!(blocks.side >= before && blocks.side % STEP == 0);
        before = blocks.side;
    }
    assert!(before >= 1000, "a gibibyte is enough for one block");
}

#[test]
fn a_cancelled_call_says_so() {
    let cases = cases(60, 1, Array::rough);
    let entries: Vec<_> = cases.iter().map(Case::entry).collect();
    let program = Program::lower(&entries, 1, &Mode::AsIs).expect("one kind a leaf");
    let sizes = Sizes { rows: 60, cols: 60, item: 4, lanes: MR_F32, threads: 1, limit: PLENTY };
    let blocks = Blocks::new(&program, sizes).expect("enough memory");
    let mut bytes = vec![0_u8; 60 * 60 * 4];
    let mut array = ArrayViewMut::from_shape(vec![1, 60, 60, 4], &mut bytes).expect("its shape");
    let (cancel, done) = (AtomicBool::new(true), AtomicU64::new(0));
    let call = Call {
        program: &program,
        blocks: &blocks,
        isa: Isa::PORTABLE,
        threads: 1,
        out: Out::new(&mut array.view_mut(), false).expect("four axes"),
        scale: 1.0,
        cancel: &cancel,
        done: &done,
    };
    let got = call.run::<f32, MR_F32>(&Cut::Square(0..60));
    assert_eq!(got, Err(entk::error::Error::Cancelled));
}

/// CI sets `ENTK_REQUIRE_ISA`, so that a runner without the instructions fails instead of skipping.
#[test]
fn the_required_instruction_set_was_tested() {
    let Ok(want) = std::env::var("ENTK_REQUIRE_ISA") else { return };
    let have: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    assert!(have.contains(&want.as_str()), "{want} was required but this CPU has {have:?}");
}
