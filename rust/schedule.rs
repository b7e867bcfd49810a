//! The terms of a program cut into passes whose panels fit, and each pass into groups that share their loops.
//!
//! None of this changes bits: a node is the same chain in whatever pass and group it is contracted.

use crate::kernel::{Cross, Group, KC, Match, Operand, Positions, Step, WIDE_COLS};
use crate::program::{Program, Term};

/// Output pairs of one sweep; a `"full"` kernel with more outputs takes several.
pub const PAIRS: usize = 256;
/// Feature width of a narrow group: its 16-lane panels fill half of a 32 KiB first-level cache.
const NARROW: usize = 128;
/// Widest single leaf of a narrow group.
const NARROW_LEAF: usize = 256;

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

pub(crate) fn term_nodes(term: &Term) -> [Option<usize>; 2] {
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
