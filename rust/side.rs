//! One side of a block: its examples packed for a pass.

use core::ops::Range;

use crate::block::Call;
use crate::error::Error;
use crate::kernel::{
    Buffer, CHUNK, EXPAND_BLOCK, Isa, Merged, MergedChunk, PanelShape, PlainRows, Real, Source,
    Table, expand_panels, pack_panels,
};
use crate::program::Content;
use crate::schedule::Pass;
use crate::team::Team;

/// Examples that one packing task takes.
const PACK_BLOCK: usize = 192;

/// The packed examples of one side of a block.
pub(crate) struct Side<F> {
    /// All nodes, one after the other.
    pub(crate) panels: Buffer<F>,
    /// Where each node lies.
    pub(crate) spans: Vec<Range<usize>>,
    pub(crate) merged: Vec<Merged<F>>,
    pub(crate) plain: Vec<PlainRows<F>>,
}

impl Call<'_> {
    /// Pack one side of a block for a pass, into the memory of an earlier one where that is large enough.
    pub(crate) fn side<F: Real, const MR: usize, const W: usize>(
        &self,
        team: &Team<'_>,
        pass: &Pass,
        (range, cols): (Range<usize>, bool),
        spare: Option<Side<F>>,
    ) -> Result<Side<F>, Error> {
        let nodes = || pass.nodes.iter().map(|&node| &self.program.nodes[node]);
        let whole = range.len().next_multiple_of(W);
        let mut spans = Vec::new();
        let mut end = 0;
        for node in nodes() {
            let k = pass.slice.as_ref().map_or(node.shape.k, ExactSizeIterator::len);
            let start = end;
            end += whole * node.shape.units() * k;
            spans.push(start..end);
            end = end.next_multiple_of(16);
        }
        let mut panels = match spare {
            Some(side) if side.panels.len() >= end => side.panels,
            spare => {
                drop(spare);
                Buffer::zeroed(end)?
            }
        };
        let mut tasks = Vec::new();
        let mut rest: &mut [F] = &mut panels;
        let mut taken = 0;
        for (node, span) in nodes().zip(&spans) {
            let (_, later) = rest.split_at_mut(span.start - taken);
            let (own, later) = later.split_at_mut(span.len());
            (rest, taken) = (later, span.end);
            let content = if cols { node.cols() } else { &node.rows };
            let ks = pass.slice.clone().unwrap_or(0..node.shape.k);
            let step = match content {
                Content::Rows(_) => PACK_BLOCK,
                Content::Table(_) => EXPAND_BLOCK,
            };
            let chunk = (step * node.shape.units() * ks.len()).max(1);
            for (index, part) in own.chunks_mut(chunk).enumerate() {
                let first = range.start + index * step;
                let shape = node.shape;
                tasks.push(PackTask { content, shape, ks: ks.clone(), first, part });
            }
        }
        let mut idle = vec![(); self.threads];
        team.run(&mut idle, tasks, self.cancel, |(), task| {
            task.run::<MR, W>(self.isa, range.end);
        });
        let merged = pass.lookups.iter().map(|&l| self.merged(team, l, &range, cols)).collect();
        let plain = pass.plain.iter().map(|&x| self.plain(x, &range, cols)).collect();
        Ok(Side { panels, spans, merged, plain })
    }

    fn merged<F: Real>(
        &self,
        team: &Team<'_>,
        lookup: usize,
        range: &Range<usize>,
        cols: bool,
    ) -> Merged<F> {
        let spec = &self.program.lookups[lookup];
        let (ids, rows) = spec.cols.as_ref().filter(|_| cols).unwrap_or(&spec.rows);
        let firsts: Vec<usize> = range.clone().step_by(CHUNK).collect();
        let mut chunks: Vec<Option<MergedChunk<F>>> = firsts.iter().map(|_| None).collect();
        let mut idle = vec![(); self.threads];
        let tasks: Vec<_> = firsts.into_iter().zip(&mut chunks).collect();
        team.run(&mut idle, tasks, self.cancel, |(), (first, chunk)| {
            let examples = (first, (first + CHUNK).min(range.end));
            *chunk = Some(MergedChunk::build(ids, rows, (spec.outputs, spec.k), examples));
        });
        Merged::new(chunks.into_iter().flatten().collect(), spec.outputs, spec.k)
    }

    fn plain<F: Real>(&self, plain: usize, range: &Range<usize>, cols: bool) -> PlainRows<F> {
        let spec = &self.program.plain[plain];
        let source = spec.cols.as_ref().filter(|_| cols).unwrap_or(&spec.rows);
        let shape = (spec.outputs, source.positions(), spec.k);
        PlainRows::build(source, shape, (range.start, range.end))
    }
}

struct PackTask<'t, 'a, F> {
    content: &'t Content<'a>,
    shape: PanelShape,
    ks: Range<usize>,
    first: usize,
    part: &'t mut [F],
}

impl<F: Real> PackTask<'_, '_, F> {
    fn run<const MR: usize, const W: usize>(self, isa: Isa, end: usize) {
        match self.content {
            Content::Rows(source) => self.rows::<W>(source, end),
            Content::Table(table) => self.table::<MR, W>(isa, table, end),
        }
    }

    fn rows<const W: usize>(self, source: &Source<'_>, end: usize) {
        pack_panels::<F, W>(source, (self.first, end), self.shape, (0, self.ks), self.part);
    }

    fn table<const MR: usize, const W: usize>(self, isa: Isa, table: &Table<'_>, end: usize) {
        expand_panels::<F, MR, W>(isa, table, (self.first, end), self.ks, self.part);
    }
}
