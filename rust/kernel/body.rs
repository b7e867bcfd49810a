//! The arithmetic of a register tile, once. `isa.rs` compiles it for each instruction set; nothing here is unsafe.
//!
//! Written for the vectoriser: fixed-size arrays, no bounds checks, no early exits. 16 x 6 (f64: 8 x 6) reaches the FMA peak
//! with AVX2 and AVX-512; 16 x 8, 16 x 12, 16 x 14, 32 x 8 and 48 x 8 fall to 2 % of it (spilled accumulators), 24 x 4 to a half.
//! The floor in `benches/tile.rs` guards this.

use super::{KC, NR, Real, Tile};

/// One chain: `sum_k rows[k][i] * cols[k][j]`, k ascending, fused, from +0.0.
#[inline(always)]
pub(crate) fn chain<F: Real, const MR: usize>(rows: &[[F; MR]], cols: &[[F; NR]]) -> Tile<F, MR> {
    let mut sum = [[F::ZERO; MR]; NR];
    for (row, col) in rows.iter().zip(cols) {
        for j in 0..NR {
            for i in 0..MR {
                sum[j][i] = row[i].mul_add(col[j], sum[j][i]);
            }
        }
    }
    sum
}

/// The chain of [`chain`] with columns that lie apart, each along `k`.
#[inline(always)]
pub(crate) fn chain_apart<F: Real, const MR: usize>(
    rows: &[[F; MR]],
    cols: [&[F]; NR],
) -> Tile<F, MR> {
    let cols = cols.map(|col| &col[..rows.len()]);
    let mut sum = [[F::ZERO; MR]; NR];
    for (k, row) in rows.iter().enumerate() {
        for j in 0..NR {
            for i in 0..MR {
                sum[j][i] = row[i].mul_add(cols[j][k], sum[j][i]);
            }
        }
    }
    sum
}

/// A whole Gram tile: chains of [`KC`] added in order.
#[inline(always)]
pub(crate) fn gram<F: Real, const MR: usize>(rows: &[[F; MR]], cols: &[[F; NR]]) -> Tile<F, MR> {
    if rows.len() <= KC {
        return chain(rows, cols);
    }
    let mut sum = chain(&rows[..KC], &cols[..KC]);
    for (row, col) in rows[KC..].chunks(KC).zip(cols[KC..].chunks(KC)) {
        add(&mut sum, &chain(row, col));
    }
    sum
}

/// `sum += other`.
#[inline(always)]
pub(super) fn add<F: Real, const MR: usize>(sum: &mut Tile<F, MR>, other: &Tile<F, MR>) {
    for j in 0..NR {
        for i in 0..MR {
            sum[j][i] = sum[j][i].plus(other[j][i]);
        }
    }
}

/// `acc = fma(weight, gram, acc)`; a weight of one is a plain sum, bit for bit.
#[inline(always)]
pub(super) fn add_weighted<F: Real, const MR: usize>(
    acc: &mut Tile<F, MR>,
    weight: F,
    gram: &Tile<F, MR>,
) {
    if weight == F::ONE {
        return add(acc, gram);
    }
    for j in 0..NR {
        for i in 0..MR {
            acc[j][i] = weight.mul_add(gram[j][i], acc[j][i]);
        }
    }
}

/// `acc = fma(weight * a, b, acc)`.
#[inline(always)]
pub(super) fn add_product<F: Real, const MR: usize>(
    acc: &mut Tile<F, MR>,
    weight: F,
    a: &Tile<F, MR>,
    b: &Tile<F, MR>,
) {
    if weight == F::ONE {
        for j in 0..NR {
            for i in 0..MR {
                acc[j][i] = a[j][i].mul_add(b[j][i], acc[j][i]);
            }
        }
        return;
    }
    for j in 0..NR {
        for i in 0..MR {
            acc[j][i] = weight.times(a[j][i]).mul_add(b[j][i], acc[j][i]);
        }
    }
}

/// `acc += round(a b) + round(c d)`: the same sum when the two products change places, which an fma of one into the other is not.
#[inline(always)]
pub(super) fn add_two_products<F: Real, const MR: usize>(
    acc: &mut Tile<F, MR>,
    (a, b): (&Tile<F, MR>, &Tile<F, MR>),
    (c, d): (&Tile<F, MR>, &Tile<F, MR>),
) {
    for j in 0..NR {
        for i in 0..MR {
            let pair = a[j][i].times(b[j][i]).plus(c[j][i].times(d[j][i]));
            acc[j][i] = acc[j][i].plus(pair);
        }
    }
}

/// Lanes of [`dot`].
pub(super) const LANES: usize = 16;

/// A dot product with fixed lanes and a fixed tree, so that its bits depend on nothing but its inputs.
#[inline(always)]
pub(super) fn dot<F: Real>(a: &[[F; LANES]], b: &[[F; LANES]]) -> F {
    let mut sum = [F::ZERO; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sum[lane] = a[lane].mul_add(b[lane], sum[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sum[lane] = sum[lane].plus(sum[lane + width]);
        }
        width /= 2;
    }
    sum[0]
}
