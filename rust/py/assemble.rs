//! `entk._core`: planning, scanning and assembling.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use numpy::{PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::array::{Held, HeldLeaves};
use super::error::{panicked, to_python};
use crate::block::Call;
use crate::cost::Cost;
use crate::cut::Cut;
use crate::error::Error;
use crate::kernel::{Isa, MR_F32, MR_F64, Out, Scan, View};
use crate::plan::{Blocks, Sizes};
use crate::pool;
use crate::program::{Mode, Program};

/// How often the calling thread looks for Ctrl-C and passes progress on.
const POLL: Duration = Duration::from_millis(50);
/// Multiply-adds below which a call is too short to be worth a thread or a poll.
const SHORT: u128 = 20_000_000;

/// Options of a kernel, by name: they come as a dictionary made by `entk._problem` (Python).
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Options {
    pub(super) r: usize,
    mode: String,
    index: usize,
    row_weights: Vec<f64>,
    col_weights: Vec<f64>,
    pub(super) scale: f64,
    pub(super) double: bool,
    threads: usize,
    limit: u128,
    isa: Option<String>,
    cut: (String, Vec<usize>),
}

impl Options {
    pub(super) fn mode(&self) -> Result<Mode, Error> {
        Ok(match self.mode.as_str() {
            "as-is" => Mode::AsIs,
            "index" => Mode::Select(self.index),
            "contract" => {
                Mode::Contract { rows: self.row_weights.clone(), cols: self.col_weights.clone() }
            }
            "trace" => Mode::Trace,
            "full" => Mode::Full,
            "diagonal" => Mode::Diagonal,
            other => return Err(Error::Internal { what: format!("a mode named {other}") }),
        })
    }

    pub(super) fn cut(&self) -> Result<Cut, Error> {
        match (self.cut.0.as_str(), self.cut.1.as_slice()) {
            ("square", &[a, b]) => Ok(Cut::Square(a..b)),
            ("rectangle", &[a, b, c, d]) => Ok(Cut::Rectangle(a..b, c..d)),
            ("diagonal", &[a, b]) => Ok(Cut::Diagonal(a..b)),
            other => Err(Error::Internal { what: format!("a cut {other:?}") }),
        }
    }

    pub(super) fn isa(&self) -> Result<Isa, Error> {
        Isa::choose(self.isa.as_deref()).ok_or_else(|| Error::Internal {
            what: format!("instruction set {:?} is not there", self.isa),
        })
    }

    pub(super) fn sizes(&self, cut: &Cut) -> Sizes {
        let (rows, cols) = match cut {
            Cut::Square(range) => (range.len(), range.len()),
            Cut::Rectangle(rows, cols) => (rows.len(), cols.len()),
            // Blocks on the diagonal only: no gain from large ones.
            Cut::Diagonal(range) => (range.len().min(1536), range.len().min(1536)),
        };
        Sizes {
            rows,
            cols,
            item: if self.double { 8 } else { 4 },
            lanes: if self.double { MR_F64 } else { MR_F32 },
            threads: self.threads,
            limit: self.limit,
        }
    }
}

/// Plan a kernel: a dictionary of sizes, from shapes alone.
#[pyfunction]
pub(super) fn plan<'py>(
    py: Python<'py>,
    rows: &Bound<'py, PyList>,
    cols: Option<&Bound<'py, PyList>>,
    options: Options,
) -> PyResult<Bound<'py, PyDict>> {
    let (rows, cols) = hold(rows, cols)?;
    let planned = || -> Result<_, Error> {
        let (mode, cut) = (options.mode()?, options.cut()?);
        let entries = rows.entries(cols.as_ref())?;
        let program = Program::lower(&entries, options.r, &mode)?;
        let blocks = Blocks::new(&program, options.sizes(&cut))?;
        Ok((blocks, Cost::of_leaves(&entries, options.r, &mode, false)?, Cost::of(&program, false)))
    };
    let (blocks, leaves, whole) = planned().map_err(|error| memory_error(py, &error))?;
    let plan = PyDict::new(py);
    plan.set_item("block", blocks.side)?;
    plan.set_item("passes", blocks.schedule.passes.len())?;
    plan.set_item("bytes", blocks.bytes)?;
    set_cost(&plan, leaves, &whole)?;
    Ok(plan)
}

pub(super) fn set_cost(plan: &Bound<'_, PyDict>, leaves: Vec<Cost>, whole: &Cost) -> PyResult<()> {
    plan.set_item("flops_per_pair", whole.flops)?;
    let leaves = leaves.into_iter().map(|cost| (cost.plan, cost.flops));
    plan.set_item("leaves", leaves.collect::<Vec<_>>())
}

/// Assemble a cut of a kernel into `out`, a uint8 array `[plane, row, column, byte]`. Returns whether all entries are finite.
#[pyfunction]
#[pyo3(signature = (rows, cols, options, out, out_double, progress = None))]
pub(super) fn assemble<'py>(
    py: Python<'py>,
    rows: &Bound<'py, PyList>,
    cols: Option<&Bound<'py, PyList>>,
    options: Options,
    out: &Bound<'py, PyArrayDyn<u8>>,
    out_double: bool,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<bool> {
    let (rows, cols) = hold(rows, cols)?;
    let mut out = out.try_readwrite()?;
    let mut bytes = out.as_array_mut();
    let fail = |error: Error| memory_error(py, &error);
    let out = Out::new(&mut bytes, out_double).map_err(fail)?;
    let (mode, cut) = (options.mode().map_err(fail)?, options.cut().map_err(fail)?);
    let entries = rows.entries(cols.as_ref()).map_err(fail)?;
    let program = Program::lower(&entries, options.r, &mode).map_err(fail)?;
    let sizes = options.sizes(&cut);
    let work = Cost::of(&program, false).flops * sizes.rows as u128 * sizes.cols as u128;
    let threads = if work < SHORT { 1 } else { options.threads };
    let blocks = Blocks::new(&program, Sizes { threads, ..sizes }).map_err(fail)?;
    let (cancel, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let call = Call {
        program: &program,
        blocks: &blocks,
        isa: options.isa().map_err(fail)?,
        threads,
        out,
        scale: options.scale,
        cancel: &cancel,
        done: &done,
    };
    let run = || match options.double {
        true => call.run::<f64, MR_F64>(&cut),
        false => call.run::<f32, MR_F32>(&cut),
    };
    if work < SHORT {
        let _state = crate::kernel::FloatState::standard();
        return settle(py, catch_unwind(AssertUnwindSafe(run)));
    }
    let total = match options.double {
        true => call.total::<MR_F64>(&cut),
        false => call.total::<MR_F32>(&cut),
    };
    let report = |py: Python<'_>| -> PyResult<()> {
        py.check_signals()?;
        match progress {
            Some(progress) => progress.call1((done.load(Ordering::Relaxed), total)).map(drop),
            None => Ok(()),
        }
    };
    watched(py, &cancel, run, report)
}

/// Run on a thread of its own while this one polls; `report` may stop it by failing.
pub(super) fn watched<'py>(
    py: Python<'py>,
    cancel: &AtomicBool,
    run: impl Fn() -> Result<bool, Error> + Sync,
    report: impl Fn(Python<'_>) -> PyResult<()>,
) -> PyResult<bool> {
    thread::scope(|scope| {
        let (send, receive) = channel();
        let run = &run;
        scope.spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(run));
            // The receiver lives until the scope ends.
            let _ = send.send(result);
        });
        let mut receive = receive;
        let mut stopped = None;
        loop {
            let (message, channel) = py.detach(move || (receive.recv_timeout(POLL), receive));
            receive = channel;
            match message {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(result) => {
                    return match stopped {
                        Some(error) => Err(error),
                        None => {
                            report(py)?;
                            settle(py, result)
                        }
                    };
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return settle(py, Err(Box::new("the worker went away")));
                }
            }
            if stopped.is_none()
                && let Err(error) = report(py)
            {
                cancel.store(true, Ordering::Relaxed);
                stopped = Some(error);
            }
        }
    })
}

pub(super) fn settle(
    py: Python<'_>,
    result: thread::Result<Result<bool, Error>>,
) -> PyResult<bool> {
    match result {
        Ok(result) => result.map_err(|error| memory_error(py, &error)),
        Err(panic) => Err(panicked(py, &*panic)),
    }
}

/// Memory errors carry their numbers, so that the caller can word them.
pub(super) fn memory_error(py: Python<'_>, error: &Error) -> PyErr {
    let made = to_python(py, error);
    if let Error::Memory { limit, needs, what } = error {
        let value = made.value(py);
        let numbers = [("needs", needs), ("limit", limit)];
        for (name, number) in numbers {
            // An attribute that cannot be set leaves a plainer message.
            let _ = value.setattr(name, *number);
        }
        let _ = value.setattr("what", what);
    }
    made
}

pub(super) fn hold<'py>(
    rows: &Bound<'py, PyList>,
    cols: Option<&Bound<'py, PyList>>,
) -> PyResult<(HeldLeaves<'py>, Option<HeldLeaves<'py>>)> {
    Ok((HeldLeaves::extract(rows)?, cols.map(HeldLeaves::extract).transpose()?))
}

/// Scan arrays `(bytes, dtype, swapped)`: of each `(first bad place or None, bad examples, largest magnitude)`.
#[pyfunction]
#[allow(clippy::type_complexity, reason = "a plain tuple for Python")]
pub(super) fn scan<'py>(
    py: Python<'py>,
    arrays: Vec<Bound<'py, PyAny>>,
    threads: usize,
) -> PyResult<Vec<(Option<Vec<usize>>, Vec<usize>, f64)>> {
    let held = arrays.iter().map(Held::extract).collect::<PyResult<Vec<_>>>()?;
    let views = held.iter().map(Held::view).collect::<Result<Vec<_>, Error>>();
    let views = views.map_err(|error| to_python(py, &error))?;
    let scans = py.detach(|| scan_views(&views, threads));
    let plain = |scan: Scan| (scan.first.map(|at| at.to_vec()), scan.examples, scan.largest);
    Ok(scans.into_iter().map(plain).collect())
}

/// Elements of a task of a scan, and those below which one thread does it all.
const SCAN_TASK: usize = 1 << 18;
const SCAN_SHORT: usize = 1 << 21;

fn scan_views(views: &[View<'_>], threads: usize) -> Vec<Scan> {
    let mut tasks = Vec::new();
    for (index, view) in views.iter().enumerate() {
        let [n, rest @ ..] = view.shape();
        let step = SCAN_TASK.div_ceil(rest.iter().product::<usize>().max(1));
        tasks.extend((0..n).step_by(step).map(|first| (index, first, (first + step).min(n))));
    }
    let elements: usize = views.iter().map(|view| view.shape().iter().product::<usize>()).sum();
    let mut parts = vec![Scan::default(); tasks.len()];
    let mut idle = vec![(); if elements < SCAN_SHORT { 1 } else { threads }];
    let work = tasks.iter().zip(&mut parts).collect();
    pool::run(&mut idle, work, &AtomicBool::new(false), |(), (&(index, first, end), part)| {
        *part = Scan::of(&views[index], first, end);
    });
    let mut whole = vec![Scan::default(); views.len()];
    tasks.iter().zip(parts).for_each(|(&(index, ..), part)| whole[index].join(part));
    whole
}

/// Instruction sets of this CPU, slowest first.
#[pyfunction]
pub(super) fn instruction_sets() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

/// Cores that this process may use: affinity and cgroup quota.
#[pyfunction]
pub(super) fn usable_cores() -> usize {
    thread::available_parallelism().map_or(1, Into::into)
}

/// Fused multiply-add rate of all `threads` together, in flops a second: the peak that benches compare with.
#[pyfunction]
pub(super) fn fma_peak(
    py: Python<'_>,
    double: bool,
    threads: usize,
    isa: Option<&str>,
    seconds: f64,
) -> PyResult<f64> {
    let isa = Isa::choose(isa).ok_or_else(|| {
        to_python(py, &Error::Internal { what: "that instruction set is not there".into() })
    })?;
    Ok(py.detach(|| crate::kernel::fma_peak(isa, double, threads, seconds)))
}

/// The tightest limit on this process's memory: `available` bytes now, and its `source`; and all that `fence` it, by
/// source, with the bytes of each and those available.
#[pyfunction]
pub(super) fn memory_limit(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let found = PyDict::new(py);
    let fences = crate::limits::limits(Path::new("/"));
    let (available, source) = match crate::limits::tightest(&fences) {
        Some(limit) => (limit.available, limit.source.as_str()),
        None => (4 << 30, "no limit found; a guess"),
    };
    found.set_item("available", available)?;
    found.set_item("source", source)?;
    let fences = fences.iter().map(|fence| (&fence.source, fence.limit, fence.available));
    found.set_item("fences", fences.collect::<Vec<_>>())?;
    Ok(found)
}
