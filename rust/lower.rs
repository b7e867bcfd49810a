//! Leaves to the nodes and terms of a program.

use crate::contraction::{Contraction, contraction};
use crate::error::Error;
use crate::kernel::{PanelShape, Part, Positions, Reduce, Source, Table, View};
use crate::program::{Content, Entry, Leaf, LookupSpec, Mode, Node, PlainSpec, Program, Term, Use};

impl<'a> Program<'a> {
    /// Lower leaves to nodes and terms. `r` is the number of output rows of the factors.
    ///
    /// # Errors
    /// [`Error::Internal`] if the two sides of a leaf are of different kinds.
    pub fn lower(entries: &[Entry<'a>], r: usize, mode: &'a Mode) -> Result<Self, Error> {
        let outputs = if mode.keeps_outputs() { r } else { 1 };
        let all_pairs = matches!(mode, Mode::Full);
        let mut program = Self { outputs, all_pairs, ..Self::default() };
        for entry in entries {
            Lower { program: &mut program, mode, r, weight: entry.weight }.entry(entry)?;
        }
        Ok(program)
    }
}

/// One side of a table: its matrix uses as `(left, right)` factors, and its look-ups.
struct Side<'a> {
    left: Vec<Part<'a>>,
    right: Vec<Part<'a>>,
    ids: Vec<View<'a>>,
    rows: Vec<Part<'a>>,
}

/// Adds leaves to a program.
struct Lower<'p, 'a> {
    program: &'p mut Program<'a>,
    mode: &'a Mode,
    r: usize,
    weight: f64,
}

impl<'a> Lower<'_, 'a> {
    fn entry(&mut self, entry: &Entry<'a>) -> Result<(), Error> {
        match (&entry.rows, &entry.cols) {
            (Leaf::Dense(rows), None) => self.dense(*rows, None),
            (Leaf::Dense(rows), Some(Leaf::Dense(cols))) => self.dense(*rows, Some(*cols)),
            (Leaf::Uses(rows), None) => self.uses(rows, None),
            (Leaf::Uses(rows), Some(Leaf::Uses(cols))) => self.uses(rows, Some(cols)),
            _ => return Err(Error::Internal { what: "leaves of different kinds".into() }),
        }
        Ok(())
    }

    /// The reduction of an array that carries the output rows.
    fn reduce(&self, cols: bool) -> Reduce<'a> {
        match self.mode {
            Mode::AsIs | Mode::Full | Mode::Diagonal => Reduce::Keep,
            Mode::Select(output) => Reduce::Select(*output),
            Mode::Contract { rows, cols: other } => {
                Reduce::Contract(if cols { other } else { rows })
            }
            Mode::Trace => Reduce::Fold,
        }
    }

    fn trace(&self) -> Option<usize> {
        matches!(self.mode, Mode::Trace).then_some(self.r)
    }

    fn add_gram(&mut self, node: usize) {
        let weight = self.weight;
        self.program.terms.push(if self.program.outputs == 1 {
            Term::Gram { node, weight }
        } else {
            Term::Positions(Positions {
                acts: None,
                cots: node,
                groups: 1,
                positions: 1,
                acts_by_output: false,
                weight,
            })
        });
    }

    fn dense(&mut self, rows: View<'a>, cols: Option<View<'a>>) {
        let node = |view, cols| Source::one(view, self.reduce(cols));
        let (rows, cols) = (node(rows, false), cols.map(|view| node(view, true)));
        let k = rows.parts[0].k();
        let shape = PanelShape { outputs: self.program.outputs, groups: 1, positions: 1, k };
        let node = Node { rows: Content::Rows(rows), cols: cols.map(Content::Rows), shape };
        let node = self.program.intern(node);
        self.add_gram(node);
    }

    fn uses(&mut self, rows: &[Use<'a>], cols: Option<&Vec<Use<'a>>>) {
        let turned = rows.iter().any(|u| matches!(u, Use::Outer { transposed: true, .. }));
        let looked_up = rows.iter().any(|u| matches!(u, Use::Lookup { .. }));
        let mixed = turned && self.r > 1;
        let rows = self.side(rows, false, mixed);
        let cols = cols.map(|uses| self.side(uses, true, mixed));
        let lookup = looked_up.then(|| self.lookup(&rows, cols.as_ref()));
        if !rows.left.is_empty() {
            self.outer(&rows, cols.as_ref(), mixed);
        }
        let (trace, weight) = (self.trace(), self.weight);
        if let Some(lookup) = lookup {
            self.program.terms.push(Term::Match { lookup, trace, weight });
            if !rows.left.is_empty() {
                let table = self.plain(&rows.left, cols.as_ref().map(|side| &side.left));
                let rows = self.plain(&rows.right, cols.as_ref().map(|side| &side.right));
                self.program.terms.push(Term::Cross { lookup, table, rows, trace, weight });
            }
        }
    }

    fn side(&self, uses: &[Use<'a>], cols: bool, mixed: bool) -> Side<'a> {
        let mut side =
            Side { left: Vec::new(), right: Vec::new(), ids: Vec::new(), rows: Vec::new() };
        let reduced = match self.reduce(cols) {
            Reduce::Fold if mixed => Reduce::Groups,
            reduce => reduce,
        };
        let plain = if matches!(reduced, Reduce::Groups) { Reduce::Groups } else { Reduce::Keep };
        for one in uses {
            match *one {
                Use::Outer { acts, cots, transposed } => {
                    let acts = Part { view: acts, reduce: plain };
                    let cots = Part { view: cots, reduce: reduced };
                    let (left, right) = if transposed { (cots, acts) } else { (acts, cots) };
                    side.left.push(left);
                    side.right.push(right);
                }
                Use::Lookup { ids, cots } => {
                    // The trace of look-ups is a sum over outputs at each pair, so the rows keep them.
                    let reduce = match self.reduce(cols) {
                        Reduce::Fold => Reduce::Keep,
                        reduce => reduce,
                    };
                    side.ids.push(ids);
                    side.rows.push(Part { view: cots, reduce });
                }
            }
        }
        side
    }

    fn outer(&mut self, rows: &Side<'a>, cols: Option<&Side<'a>>, mixed: bool) {
        let outputs = self.program.outputs;
        let by_output = mixed && outputs > 1;
        let (left, right) = (&rows.left[0], &rows.right[0]);
        let groups = match (mixed, self.trace()) {
            (true, Some(r)) => r,
            _ => left.view.shape()[2].max(right.view.shape()[2]),
        };
        let source = |parts: &[Part<'a>]| Source { parts: parts.to_vec() };
        let positions = |side: &Side<'a>| source(&side.left).positions();
        let positions = positions(rows).max(cols.map_or(0, positions));
        let (d_in, d_out) = (left.k(), right.k());
        let weight = self.weight;
        if contraction(groups, positions, d_in, d_out, outputs) == Contraction::Expand {
            let table = |side: &Side<'a>| {
                let (acts, cots) = (source(&side.left), source(&side.right));
                Content::Table(Box::new(Table {
                    acts,
                    cots,
                    outputs,
                    groups,
                    positions,
                    d_in,
                    d_out,
                }))
            };
            let k = groups * d_in * d_out;
            let shape = PanelShape { outputs, groups: 1, positions: 1, k };
            let node = Node { rows: table(rows), cols: cols.map(table), shape };
            let node = self.program.intern(node);
            return self.add_gram(node);
        }
        let mut intern = |pick: for<'s> fn(&'s Side<'a>) -> &'s [Part<'a>], outputs, k| {
            let shape = PanelShape { outputs, groups, positions, k };
            let rows = Content::Rows(source(pick(rows)));
            let cols = cols.map(|side| Content::Rows(source(pick(side))));
            self.program.intern(Node { rows, cols, shape })
        };
        let a = intern(|side| side.left.as_slice(), if by_output { outputs } else { 1 }, d_in);
        let b = intern(|side| side.right.as_slice(), outputs, d_out);
        self.program.terms.push(if groups * positions * outputs == 1 {
            Term::Product { a, b, weight }
        } else {
            Term::Positions(Positions {
                acts: Some(a),
                cots: b,
                groups,
                positions,
                acts_by_output: by_output,
                weight,
            })
        });
    }

    fn kept(&self) -> usize {
        self.trace().unwrap_or(self.program.outputs)
    }

    fn lookup(&mut self, rows: &Side<'a>, cols: Option<&Side<'a>>) -> usize {
        let spec = |side: &Side<'a>| (side.ids.clone(), Source { parts: side.rows.clone() });
        let k = rows.rows[0].k();
        let (rows, cols) = (spec(rows), cols.map(spec));
        self.program.lookups.push(LookupSpec { rows, cols, outputs: self.kept(), k });
        self.program.lookups.len() - 1
    }

    /// Rows for the cross terms keep their outputs, whatever the matrix uses among themselves do with them.
    fn plain(&mut self, rows: &[Part<'a>], cols: Option<&Vec<Part<'a>>>) -> usize {
        let keep = |part: &Part<'a>| match part.reduce {
            Reduce::Fold | Reduce::Groups => Part { reduce: Reduce::Keep, ..*part },
            _ => *part,
        };
        let source = |parts: &[Part<'a>]| Source { parts: parts.iter().map(keep).collect() };
        let k = keep(&rows[0]).k();
        let outputs =
            if rows.iter().any(|part| part.view.shape()[1] > 1) { self.kept() } else { 1 };
        let (rows, cols) = (source(rows), cols.map(|parts| source(parts)));
        self.program.plain.push(PlainSpec { rows, cols, outputs, k });
        self.program.plain.len() - 1
    }
}
