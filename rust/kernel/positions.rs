//! Leaves with positions, groups or several outputs: sums of products of Gram tiles.

use super::body::{add, add_product, add_two_products, add_weighted, gram};
use super::{NR, Real, Sweep, Tile};

/// Pairs of positions added up before they join the running sum of a leaf.
const PAIR_CHAIN: usize = 256;

/// A leaf with positions, groups or several outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Positions {
    /// Node of the left factor; a dense leaf has none.
    pub acts: Option<usize>,
    /// Node of the right factor.
    pub cots: usize,
    /// Blocks `G`.
    pub groups: usize,
    /// Positions `T`.
    pub positions: usize,
    /// Whether the left factor differs between outputs (tied uses).
    pub acts_by_output: bool,
    /// Factor on the leaf's kernel.
    pub weight: f64,
}

#[inline(always)]
pub(super) fn add_positions<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    terms: &[Positions],
    acc: &mut [Tile<F, MR>],
    scratch: &mut [Tile<F, MR>],
) {
    let pairs = job.pairs.len();
    let (chains, sums) = scratch.split_at_mut(terms.len() * pairs);
    for p in job.p.clone() {
        for q in job.q.clone() {
            if !job.wanted(p, q) {
                continue;
            }
            let at = job.at(p, q);
            let acc = &mut acc[at..at + pairs];
            if terms[0].groups * terms[0].positions == 1 {
                single(job, terms, (p, q), acc);
            } else {
                let sums = &mut sums[..terms.len() * pairs];
                all_positions(job, terms, (p, q), chains, sums);
                for (term, sums) in terms.iter().zip(sums.chunks(pairs)) {
                    for (acc, sum) in acc.iter_mut().zip(sums) {
                        add_weighted(acc, F::from_f64(term.weight), sum);
                    }
                }
            }
            if job.stopped() {
                return;
            }
        }
    }
}

/// One group, one position, many outputs.
#[inline(always)]
fn single<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    terms: &[Positions],
    (p, q): (usize, usize),
    acc: &mut [Tile<F, MR>],
) {
    let mut left = None;
    for term in terms {
        let weight = F::from_f64(term.weight);
        for (acc, &(r, s)) in acc.iter_mut().zip(job.pairs) {
            if let Some(node) = term.acts
                && (left.is_none() || term.acts_by_output)
            {
                let units = if term.acts_by_output { (r, s) } else { (0, 0) };
                left = Some(whole_gram(job, node, (p, q), units));
            }
            let right = whole_gram(job, term.cots, (p, q), (r, s));
            match &left {
                Some(left) => add_product(acc, weight, left, &right),
                None => add_weighted(acc, weight, &right),
            }
        }
    }
}

#[inline(always)]
fn whole_gram<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    node: usize,
    (p, q): (usize, usize),
    (row, col): (usize, usize),
) -> Tile<F, MR> {
    gram(job.rows[node].panel(p, row), job.cols[node].panel(q, col))
}

/// `sums[leaf][pair] = sum over groups and pairs of positions`, pairs `(t, u)` and `(u, t)` together.
#[inline(always)]
fn all_positions<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    terms: &[Positions],
    at: (usize, usize),
    chains: &mut [Tile<F, MR>],
    sums: &mut [Tile<F, MR>],
) {
    sums.fill([[F::ZERO; MR]; NR]);
    chains.fill([[F::ZERO; MR]; NR]);
    let mut length = 0;
    for g in 0..terms[0].groups {
        for t in 0..terms[0].positions {
            for u in 0..=t {
                position_pair(job, terms, at, (g, t, u), chains);
                length += 1;
                if length == PAIR_CHAIN {
                    join(sums, chains);
                    length = 0;
                }
            }
            if job.stopped() {
                return;
            }
        }
    }
    join(sums, chains);
}

#[inline(always)]
fn join<F: Real, const MR: usize>(sums: &mut [Tile<F, MR>], chains: &mut [Tile<F, MR>]) {
    for (sum, chain) in sums.iter_mut().zip(chains) {
        add(sum, chain);
        *chain = [[F::ZERO; MR]; NR];
    }
}

#[inline(always)]
fn position_pair<F: Real, const MR: usize>(
    job: &Sweep<'_, F, MR>,
    terms: &[Positions],
    (p, q): (usize, usize),
    (g, t, u): (usize, usize, usize),
    chains: &mut [Tile<F, MR>],
) {
    let (groups, positions) = (terms[0].groups, terms[0].positions);
    let unit = |r: usize, t: usize| (r * groups + g) * positions + t;
    let mut left = [[F::ONE; MR]; NR];
    let mut left_turned = left;
    let leaves = terms.iter().flat_map(|term| job.pairs.iter().map(move |pair| (term, pair)));
    for (index, (chain, (term, &(r, s)))) in chains.iter_mut().zip(leaves).enumerate() {
        if let Some(node) = term.acts
            && (index == 0 || term.acts_by_output)
        {
            let (r, s) = if term.acts_by_output { (r, s) } else { (0, 0) };
            left = whole_gram(job, node, (p, q), (unit(r, t), unit(s, u)));
            if t != u {
                left_turned = whole_gram(job, node, (p, q), (unit(r, u), unit(s, t)));
            }
        }
        let right = whole_gram(job, term.cots, (p, q), (unit(r, t), unit(s, u)));
        if t == u {
            add_product(chain, F::ONE, &left, &right);
        } else {
            let turned = whole_gram(job, term.cots, (p, q), (unit(r, u), unit(s, t)));
            add_two_products(chain, (&left, &right), (&left_turned, &turned));
        }
    }
}
