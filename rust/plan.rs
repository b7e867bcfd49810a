//! Planning: pure arithmetic on shapes. No data, no threads, no I/O.
//!
//! * [`Schedule`]: the terms of a program cut into passes whose panels fit, and each pass into groups that share their loops.
//! * [`Blocks`]: the side of a block of examples, the width of a pass and the bytes that both take, from a memory limit.
//!
//! None of this changes bits. What does (the contraction of each leaf) is chosen in `program.rs` from shapes alone.

use crate::error::Error;
use crate::kernel::{Cross, Group, KC, Match, NR, Operand, Positions, Step, WIDE_COLS};
use crate::program::{Content, Entry, Mode, Program, Term};

/// Examples that fill whole panels of every width.
pub const STEP: usize = 48;
/// Output pairs of one sweep; a `"full"` kernel with more outputs takes several.
pub const PAIRS: usize = 256;
/// Feature width of a narrow group: its 16-lane panels fill half of a 32 KiB first-level cache.
const NARROW: usize = 128;
/// Widest single leaf of a narrow group.
const NARROW_LEAF: usize = 256;
/// Examples along a block at most: packing a side again for every block costs 2 % there, and its panels stay near the cores.
const BLOCK_SIDE: usize = 3072;
/// Bytes of accumulators of a macro tile: they stay in a 1 MiB second-level cache beside the panels.
const MACRO_BYTES: usize = 600 << 10;
/// Examples along a macro tile at most.
const MACRO_SIDE: usize = 384;
/// Fixed bytes of a call: thread stacks touched, small tables.
const OVERHEAD: u128 = 4 << 20;

/// What is packed and swept together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pass {
    /// Nodes packed for this pass; groups refer to their positions in this list.
    pub nodes: Vec<usize>,
    /// Look-ups prepared for this pass.
    pub lookups: Vec<usize>,
    /// Plain rows prepared for this pass.
    pub plain: Vec<usize>,
    /// Features of the only node, if it is sliced.
    pub slice: Option<core::ops::Range<usize>>,
    /// The loops.
    pub groups: Vec<Group>,
}

impl Pass {
    fn slot(list: &mut Vec<usize>, item: usize) -> usize {
        list.iter().position(|&x| x == item).unwrap_or_else(|| {
            list.push(item);
            list.len() - 1
        })
    }
}

/// The passes of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// In leaf order.
    pub passes: Vec<Pass>,
    /// Elements of one example and side in the widest pass.
    pub elements: usize,
    /// Most tiles of scratch that a group needs, per row panel (wide groups) or in all (positions).
    pub scratch: (usize, usize),
}

impl Schedule {
    /// Cut a program into passes of at most `width` elements for one example and side (a leaf that cannot be sliced may take more).
    pub fn new(program: &Program<'_>, width: usize) -> Self {
        let mut build = Build { program, width, passes: vec![Pass::default()], used: 0 };
        for term in &program.terms {
            build.term(term);
        }
        build.passes.retain(|pass| !pass.groups.is_empty());
        let passes = build.passes;
        let elements = passes.iter().map(|pass| pass_elements(program, pass)).max().unwrap_or(0);
        let groups = || passes.iter().flat_map(|pass| &pass.groups);
        let wide = groups().map(|group| match group {
            Group::Wide { nodes, .. } => nodes.len() * WIDE_COLS,
            _ => 0,
        });
        let flat = groups().map(|group| match group {
            Group::Positions(terms) => 2 * terms.len() * pairs_of_sweep(program),
            _ => 0,
        });
        let scratch = (wide.max().unwrap_or(0), flat.max().unwrap_or(0));
        Self { passes, elements, scratch }
    }

    /// Whether accumulators of a whole block must be kept between passes.
    pub fn keeps_block(&self) -> bool {
        self.passes.len() > 1 || self.partials() > 0
    }

    /// Partial sums of sliced leaves that must be kept between passes.
    pub fn partials(&self) -> usize {
        let groups = self.passes.iter().flat_map(|pass| &pass.groups);
        let slots = groups.map(|group| match group {
            Group::Slice { slot, .. } => slot + 1,
            _ => 0,
        });
        slots.max().unwrap_or(0)
    }
}

/// Output pairs of one sweep.
pub fn pairs_of_sweep(program: &Program<'_>) -> usize {
    let outputs = program.outputs;
    if program.all_pairs {
        let side = outputs.min(PAIRS.isqrt());
        side * side
    } else {
        outputs.min(PAIRS)
    }
}

fn term_nodes(term: &Term) -> [Option<usize>; 2] {
    match *term {
        Term::Gram { node, .. } => [Some(node), None],
        Term::Product { a, b, .. } => [Some(a), Some(b)],
        Term::Positions(Positions { acts, cots, .. }) => [acts, Some(cots)],
        Term::Match { .. } | Term::Cross { .. } => [None, None],
    }
}

fn pass_elements(program: &Program<'_>, pass: &Pass) -> usize {
    if let Some(slice) = &pass.slice {
        return program.nodes[pass.nodes[0]].shape.units() * slice.len();
    }
    let nodes: usize = pass.nodes.iter().map(|&node| program.nodes[node].elements()).sum();
    let lookups: usize = pass.lookups.iter().map(|&l| lookup_elements(program, l)).sum();
    let plain: usize = pass.plain.iter().map(|&x| plain_elements(program, x)).sum();
    nodes + lookups + plain
}

fn lookup_elements(program: &Program<'_>, lookup: usize) -> usize {
    let spec = &program.lookups[lookup];
    let positions =
        |ids: &[crate::kernel::View<'_>]| -> usize { ids.iter().map(|view| view.shape()[3]).sum() };
    let most = positions(&spec.rows.0).max(spec.cols.as_ref().map_or(0, |c| positions(&c.0)));
    // The rows, with room for the growth of the list that holds them, and an id for each.
    most * (2 * spec.outputs * spec.k.next_multiple_of(16) + 4)
}

fn plain_elements(program: &Program<'_>, plain: usize) -> usize {
    let spec = &program.plain[plain];
    let most = spec.rows.positions().max(spec.cols.as_ref().map_or(0, |c| c.positions()));
    spec.outputs * most * spec.k.next_multiple_of(16)
}

struct Build<'p, 'a> {
    program: &'p Program<'a>,
    width: usize,
    passes: Vec<Pass>,
    used: usize,
}

impl Build<'_, '_> {
    fn term(&mut self, term: &Term) {
        let nodes = term_nodes(term);
        let sliced = match *term {
            Term::Gram { node, weight } => Some((vec![node], weight)),
            Term::Product { a, b, weight } => Some((vec![a, b], weight)),
            Term::Positions(Positions { acts: None, cots, weight, .. }) => {
                Some((vec![cots], weight))
            }
            _ => None,
        };
        if let Some((factors, weight)) = sliced
            && factors.iter().any(|&node| self.too_wide(node))
        {
            return self.slices(&factors, weight);
        }
        let fresh = nodes.iter().flatten().filter(|node| !self.last().nodes.contains(node));
        let mut extra: usize = fresh.map(|&node| self.program.nodes[node].elements()).sum();
        extra += match *term {
            Term::Match { lookup, .. } if !self.last().lookups.contains(&lookup) => {
                lookup_elements(self.program, lookup)
            }
            Term::Cross { lookup, table, rows, .. } => {
                let fresh = !self.last().lookups.contains(&lookup);
                usize::from(fresh) * lookup_elements(self.program, lookup)
                    + plain_elements(self.program, table)
                    + plain_elements(self.program, rows)
            }
            _ => 0,
        };
        if self.used > 0 && self.used + extra > self.width {
            self.next_pass();
            return self.term(term);
        }
        self.used += extra;
        self.join(term);
    }

    fn last(&self) -> &Pass {
        &self.passes[self.passes.len() - 1]
    }

    fn next_pass(&mut self) {
        self.passes.push(Pass::default());
        self.used = 0;
    }

    fn too_wide(&self, node: usize) -> bool {
        self.program.nodes[node].elements() > self.width.max(KC)
            && !self.last().nodes.contains(&node)
    }

    fn slices(&mut self, factors: &[usize], weight: f64) {
        for (slot, &node) in factors.iter().enumerate() {
            let shape = self.program.nodes[node].shape;
            let step = (self.width / shape.units() / KC).max(1) * KC;
            for start in (0..shape.k.max(1)).step_by(step) {
                self.next_pass();
                let pass = self.passes.last_mut().expect("just pushed");
                pass.nodes.push(node);
                pass.slice = Some(start..(start + step).min(shape.k));
                pass.groups.push(Group::Slice { node: 0, slot, first: start == 0 });
            }
        }
        let pass = self.passes.last_mut().expect("just pushed");
        pass.groups.push(Group::Finish { factors: factors.len(), weight });
        self.next_pass();
    }

    fn join(&mut self, term: &Term) {
        let index = self.passes.len() - 1;
        let pass = &mut self.passes[index];
        match *term {
            Term::Gram { node, weight } => {
                let a = Pass::slot(&mut pass.nodes, node);
                self.step(a, None, weight);
            }
            Term::Product { a, b, weight } => {
                let a = Pass::slot(&mut pass.nodes, a);
                let b = Pass::slot(&mut pass.nodes, b);
                self.step(a, Some(b), weight);
            }
            Term::Positions(term) => {
                let acts = term.acts.map(|node| Pass::slot(&mut pass.nodes, node));
                let cots = Pass::slot(&mut pass.nodes, term.cots);
                let term = Positions { acts, cots, ..term };
                match pass.groups.last_mut() {
                    Some(Group::Positions(terms)) if shares_left(terms, &term) => terms.push(term),
                    _ => pass.groups.push(Group::Positions(vec![term])),
                }
            }
            Term::Match { lookup, trace, weight } => {
                let merged = Pass::slot(&mut pass.lookups, lookup);
                pass.groups.push(Group::Match(Match { merged, trace, weight }));
            }
            Term::Cross { lookup, table, rows, trace, weight } => {
                let merged = Pass::slot(&mut pass.lookups, lookup);
                let table = Pass::slot(&mut pass.plain, table);
                let rows = Pass::slot(&mut pass.plain, rows);
                pass.groups.push(Group::Cross(Cross { merged, table, rows, trace, weight }));
            }
        }
    }

    /// Add a leaf to the last group if it is of its kind and there is room, else to a new one.
    fn step(&mut self, a: usize, b: Option<usize>, weight: f64) {
        let index = self.passes.len() - 1;
        let pass = &mut self.passes[index];
        let program = self.program;
        let width = |slots: &[usize]| -> usize {
            slots.iter().map(|&slot| program.nodes[pass.nodes[slot]].shape.k).sum()
        };
        let mut own: Vec<usize> = [Some(a), b].into_iter().flatten().collect();
        own.dedup();
        let narrow = width(&own) <= NARROW_LEAF && own.iter().all(|&s| width(&[s]) <= KC);
        let step = |nodes: &mut Vec<usize>| Step {
            a: Operand::Kept(Pass::slot(nodes, a)),
            b: b.map(|b| Operand::Kept(Pass::slot(nodes, b))),
            weight,
        };
        if let Some(Group::Wide { nodes, steps }) = pass.groups.last_mut()
            && own.iter().any(|slot| nodes.contains(slot))
            && (nodes.len() < Group::SLOTS || own.iter().all(|slot| nodes.contains(slot)))
        {
            steps.push(step(nodes));
            return;
        }
        if !narrow {
            let mut nodes = Vec::new();
            let steps = vec![step(&mut nodes)];
            pass.groups.push(Group::Wide { nodes, steps });
            return;
        }
        // Slots are dealt by `deal_slots`; until then operands only name their nodes.
        let gram = |node| Operand::Gram { node, slot: 0, again: false };
        let new = Step { a: gram(a), b: b.map(gram), weight };
        if let Some(Group::Narrow(steps)) = pass.groups.last_mut() {
            let mut slots = step_nodes(steps);
            slots.extend(&own);
            slots.sort_unstable();
            slots.dedup();
            let joined = [steps.as_slice(), &[new]].concat();
            if width(&slots) <= NARROW.max(width(&step_nodes(steps)))
                && let Some(dealt) = deal_slots(&joined)
            {
                *steps = dealt;
                return;
            }
        }
        let steps = deal_slots(&[new]).expect("one leaf needs two slots at most");
        pass.groups.push(Group::Narrow(steps));
    }
}

/// Whether a leaf meets the same left Gram tiles as the leaves before it.
fn shares_left(terms: &[Positions], next: &Positions) -> bool {
    let first = &terms[0];
    terms.len() < Group::SLOTS
        && next.acts.is_some()
        && !next.acts_by_output
        && !first.acts_by_output
        && (first.acts, first.groups, first.positions) == (next.acts, next.groups, next.positions)
}

/// The nodes of a narrow group's operands, in order of use; a slot stands for the node that was contracted into it last.
fn operand_nodes(steps: &[Step]) -> Vec<usize> {
    let mut holds = [0; Group::SLOTS];
    let operands = steps.iter().flat_map(|step| [Some(step.a), step.b]).flatten();
    operands
        .map(|operand| match operand {
            Operand::Gram { node, slot, .. } => {
                holds[slot] = node;
                node
            }
            Operand::Kept(slot) => holds[slot],
        })
        .collect()
}

fn step_nodes(steps: &[Step]) -> Vec<usize> {
    let mut nodes = operand_nodes(steps);
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Contract every node of a narrow group once: each gets a slot from its first to its last use. `None` if slots run out.
fn deal_slots(steps: &[Step]) -> Option<Vec<Step>> {
    let nodes = operand_nodes(steps);
    let mut holds = [None; Group::SLOTS];
    let mut at = 0;
    let mut deal = |last_of_step: bool| {
        let node = nodes[at];
        let used_later = |held: usize| nodes[at..].contains(&held);
        if let Some(slot) = holds.iter().position(|&held| held == Some(node)) {
            at += 1;
            return Some(Operand::Kept(slot));
        }
        // The other operand of this step must stay too.
        let before = at.checked_sub(1).map(|i| nodes[i]);
        let free = |held: &Option<usize>| {
            held.is_none_or(|held| !(used_later(held) || last_of_step && before == Some(held)))
        };
        let slot = holds.iter().position(free)?;
        holds[slot] = Some(node);
        at += 1;
        Some(Operand::Gram { node, slot, again: nodes[at..].contains(&node) })
    };
    let mut dealt = Vec::with_capacity(steps.len());
    for step in steps {
        let a = deal(false)?;
        let b = match step.b {
            Some(_) => Some(deal(true)?),
            None => None,
        };
        dealt.push(Step { a, b, ..*step });
    }
    Some(dealt)
}

/// The problem as the planner of memory sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Row examples.
    pub rows: usize,
    /// Column examples.
    pub cols: usize,
    /// Bytes of an accumulator.
    pub item: usize,
    /// Lanes of a row panel.
    pub lanes: usize,
    /// Workers.
    pub threads: usize,
    /// Bytes that this part of the call may take.
    pub limit: u128,
}

/// How a problem is cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// Examples along a block; a multiple of [`STEP`].
    pub side: usize,
    /// Examples along a macro tile; a multiple of [`STEP`].
    pub macro_side: usize,
    /// The passes.
    pub schedule: Schedule,
    /// Most bytes that the call adds besides the result.
    pub bytes: u128,
}

impl Blocks {
    /// The largest blocks within the limit: one pass over all leaves if that leaves blocks of a fair size, else several passes.
    ///
    /// # Errors
    /// [`Error::Memory`] with the smallest limit that would do.
    pub fn new(program: &Program<'_>, sizes: Sizes) -> Result<Self, Error> {
        let whole = sizes.rows.max(sizes.cols).max(1).next_multiple_of(STEP);
        let everything = Schedule::new(program, usize::MAX);
        let fair = whole.min(1536);
        let mut side = whole.min(BLOCK_SIDE);
        while side >= fair.min(STEP.max(side)) && side >= STEP {
            let blocks = Self::measure(program, sizes, side, everything.clone());
            if blocks.bytes <= sizes.limit && side >= fair {
                return Ok(blocks);
            }
            if side <= fair {
                break;
            }
            side = halve(side).max(fair);
        }
        let mut best: Option<Self> = None;
        let mut side = whole.min(4096_usize.next_multiple_of(STEP));
        loop {
            for width in [1 << 16, 1 << 14, 2048, 1024, 512, 256, 1] {
                let schedule = Schedule::new(program, width);
                let blocks = Self::measure(program, sizes, side, schedule);
                if blocks.bytes <= sizes.limit {
                    return Ok(blocks);
                }
                if best.as_ref().is_none_or(|best| blocks.bytes < best.bytes) {
                    best = Some(blocks);
                }
            }
            let single = Self::measure(program, sizes, side, everything.clone());
            if single.bytes <= sizes.limit {
                return Ok(single);
            }
            if side == STEP {
                break;
            }
            side = halve(side);
        }
        let needs = best.map_or(0, |best| best.bytes);
        Err(Error::Memory {
            limit: sizes.limit,
            needs,
            what: format!(
                "{} threads, tile {STEP} x {STEP}, d = {}",
                sizes.threads,
                program.nodes.iter().map(|node| node.elements()).max().unwrap_or(0)
            ),
        })
    }

    fn measure(program: &Program<'_>, sizes: Sizes, side: usize, schedule: Schedule) -> Self {
        let pairs = pairs_of_sweep(program);
        let wide = |x: usize| x as u128;
        let item = wide(sizes.item);
        let rows = wide(side.min(sizes.rows.next_multiple_of(STEP)));
        let cols = wide(side.min(sizes.cols.next_multiple_of(STEP)));
        let macro_side = macro_side(sizes, pairs, side);
        let panels = (rows + cols) * wide(schedule.elements) * item;
        let kept = u128::from(schedule.keeps_block()) + wide(schedule.partials());
        let block = rows * cols * wide(pairs) * item * kept;
        let own = if schedule.keeps_block() { 0 } else { macro_side * macro_side * pairs };
        let scratch = schedule.scratch.0 * (macro_side / sizes.lanes) + schedule.scratch.1;
        let expand = wide(expand_elements(program, &schedule));
        let worker = wide(own) * item
            + wide(scratch * sizes.lanes * NR) * item
            + expand * item
            + wide(sizes.lanes * macro_side * pairs) * item
            + (128 << 10);
        let bytes = OVERHEAD + panels + block + wide(sizes.threads) * worker;
        Self { side, macro_side, schedule, bytes }
    }
}

fn halve(side: usize) -> usize {
    (side / 2).next_multiple_of(STEP).min(side - STEP).max(STEP)
}

/// Elements that one worker needs to expand tables.
fn expand_elements(program: &Program<'_>, schedule: &Schedule) -> usize {
    let of_node = |pass: &Pass, node: usize| match &program.nodes[node].rows {
        Content::Rows(_) => 0,
        Content::Table(table) => {
            let positions = table.groups * table.positions;
            let widest = table.d_in.max(table.d_out);
            let slice = pass.slice.as_ref().map_or(table.k(), ExactSizeIterator::len);
            16 * (positions * (table.d_in + table.d_out + NR + widest) + slice)
        }
    };
    let of_pass = |pass: &Pass| pass.nodes.iter().map(|&n| of_node(pass, n)).max().unwrap_or(0);
    schedule.passes.iter().map(of_pass).max().unwrap_or(0)
}

/// Examples along a macro tile: accumulators stay in cache, and there are enough macro tiles for the workers.
fn macro_side(sizes: Sizes, pairs: usize, side: usize) -> usize {
    let fits = (MACRO_BYTES / (pairs * sizes.item).max(1)).isqrt() / STEP * STEP;
    let entries = side.min(sizes.rows.max(1)) as u128 * side.min(sizes.cols.max(1)) as u128;
    let shares = (entries / (16 * sizes.threads as u128).max(1)).isqrt() as usize / STEP * STEP;
    let shares = if sizes.threads == 1 { MACRO_SIDE } else { shares };
    fits.min(MACRO_SIDE).min(shares.max(2 * STEP)).min(side).max(STEP)
}

/// What a leaf or a program costs, from its shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Contraction, in words.
    pub plan: &'static str,
    /// Flops for one pair of examples and all its output pairs.
    pub flops: u128,
}

impl Cost {
    /// The whole program: shared nodes count once.
    pub fn of(program: &Program<'_>) -> Self {
        let pairs = if program.all_pairs {
            (program.outputs as u128).pow(2)
        } else {
            program.outputs as u128
        };
        let node = |index: usize, shared: bool| {
            let shape = program.nodes[index].shape;
            let positions = (shape.positions as u128).pow(2) * shape.groups as u128;
            2 * positions * shape.k as u128 * if shared { 1 } else { pairs }
        };
        let mut counted = vec![false; program.nodes.len()];
        let mut flops = 0;
        for term in &program.terms {
            for index in term_nodes(term).into_iter().flatten() {
                if !counted[index] {
                    counted[index] = true;
                    flops += node(index, program.nodes[index].shape.outputs == 1);
                }
            }
            if let Term::Match { lookup, .. } = *term {
                let spec = &program.lookups[lookup];
                flops += 2 * pairs * (spec.k * spec.rows.1.positions()) as u128;
            }
        }
        Self { plan: "", flops }
    }

    /// Each leaf alone.
    ///
    /// # Errors
    /// As [`Program::lower`].
    pub fn of_leaves(entries: &[Entry<'_>], r: usize, mode: &Mode) -> Result<Vec<Self>, Error> {
        let one = |entry: &Entry<'_>| {
            let program = Program::lower(core::slice::from_ref(entry), r, mode)?;
            let tables = program.nodes.iter().any(|n| matches!(n.rows, Content::Table(_)));
            let pairs = program.terms.iter().any(|term| match term {
                Term::Positions(term) => term.positions * term.groups > 1,
                _ => false,
            });
            let plan = match (program.terms.first(), tables, pairs) {
                (_, true, _) => "expand",
                (_, _, true) => "pairs",
                (Some(Term::Match { .. }), ..) => "match",
                (Some(Term::Gram { .. } | Term::Positions(Positions { acts: None, .. })), ..) => {
                    "gram"
                }
                _ => "product",
            };
            Ok(Self { plan, ..Self::of(&program) })
        };
        entries.iter().map(one).collect()
    }
}
