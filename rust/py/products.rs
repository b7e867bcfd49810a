//! `entk._core`: products with vectors.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::assemble::{hold, memory_error, settle, watched};
use crate::error::Error;
use crate::kernel::{FloatState, Isa, MR_F32, MR_F64, Real};
use crate::products::Product;
use crate::program::{Entry, Mode};

/// Multiply-adds below which a call is too short to be worth a thread or a poll.
const SHORT: u128 = 20_000_000;

/// Options of a product, by name: they come as a dictionary made by `entk._products` (Python).
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Options<'py> {
    r: usize,
    mode: String,
    index: usize,
    row_weights: PyReadonlyArray1<'py, f64>,
    col_weights: PyReadonlyArray1<'py, f64>,
    scale: f64,
    threads: usize,
    limit: u128,
    isa: Option<String>,
    vectors: usize,
}

impl Options<'_> {
    fn isa(&self) -> Result<Isa, Error> {
        let missing = || format!("instruction set {:?} is not there", self.isa);
        Isa::choose(self.isa.as_deref()).ok_or_else(|| Error::Internal { what: missing() })
    }

    fn mode(&self) -> Result<Mode, Error> {
        let flat = |weights: &PyReadonlyArray1<'_, f64>| weights.as_array().to_vec();
        Ok(match self.mode.as_str() {
            "as-is" => Mode::AsIs,
            "index" => Mode::Select(self.index),
            "contract" => {
                Mode::Contract { rows: flat(&self.row_weights), cols: flat(&self.col_weights) }
            }
            "trace" => Mode::Trace,
            "full" => Mode::Full,
            other => return Err(Error::Internal { what: format!("a mode named {other}") }),
        })
    }

    fn product<'a, F>(
        &self,
        entries: &'a [Entry<'a>],
        known: &'a [Option<&'a [i64]>],
        mode: &'a Mode,
        v: &'a [F],
        cancel: &'a AtomicBool,
    ) -> Result<Product<'a, F>, Error> {
        Ok(Product {
            entries,
            known,
            mode,
            outputs: self.r,
            scale: self.scale,
            v,
            vectors: self.vectors,
            isa: self.isa()?,
            threads: self.threads,
            limit: self.limit,
            cancel,
        })
    }
}

/// Ids that are rows of each leaf's table.
type Known<'py> = Vec<Option<PyReadonlyArray1<'py, i64>>>;

fn owned(known: &Known<'_>) -> PyResult<Vec<Option<Vec<i64>>>> {
    let ids = |array: &Option<PyReadonlyArray1<'_, i64>>| {
        Ok(array.as_ref().map(|array| array.as_slice().map(<[i64]>::to_vec)).transpose()?)
    };
    known.iter().map(ids).collect()
}

/// Add the product with `v` to `y`, both flat float32 or float64.
#[pyfunction]
pub(super) fn multiply<'py>(
    py: Python<'py>,
    rows: &Bound<'py, PyList>,
    cols: Option<&Bound<'py, PyList>>,
    known: Known<'py>,
    options: Options<'py>,
    v: &Bound<'py, PyAny>,
    y: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let (rows, cols) = hold(rows, cols)?;
    let fail = |error: Error| memory_error(py, &error);
    let entries = rows.entries(cols.as_ref()).map_err(fail)?;
    let known = owned(&known)?;
    let known: Vec<_> = known.iter().map(Option::as_deref).collect();
    if let Ok(y) = y.cast::<PyArray1<f64>>() {
        return add::<f64, MR_F64>(py, &entries, &known, &options, v.cast()?, y);
    }
    add::<f32, MR_F32>(py, &entries, &known, &options, v.cast()?, y.cast()?)
}

/// Multiply-adds of each leaf's product.
#[pyfunction]
pub(super) fn multiply_work<'py>(
    py: Python<'py>,
    rows: &Bound<'py, PyList>,
    cols: Option<&Bound<'py, PyList>>,
    known: Known<'py>,
    options: Options<'py>,
) -> PyResult<Vec<u128>> {
    let (rows, cols) = hold(rows, cols)?;
    let fail = |error: Error| memory_error(py, &error);
    let entries = rows.entries(cols.as_ref()).map_err(fail)?;
    let (known, mode) = (owned(&known)?, options.mode().map_err(fail)?);
    let known: Vec<_> = known.iter().map(Option::as_deref).collect();
    let cancel = AtomicBool::new(false);
    let product = options.product::<f64>(&entries, &known, &mode, &[], &cancel).map_err(fail)?;
    product.work().map_err(fail)
}

fn add<'py, F: Real + Element, const MR: usize>(
    py: Python<'py>,
    entries: &[Entry<'_>],
    known: &[Option<&[i64]>],
    options: &Options<'py>,
    v: &Bound<'py, PyArray1<F>>,
    y: &Bound<'py, PyArray1<F>>,
) -> PyResult<()> {
    let fail = |error: Error| memory_error(py, &error);
    let (mode, cancel) = (options.mode().map_err(fail)?, AtomicBool::new(false));
    let (v, mut y) = (v.try_readonly()?, y.try_readwrite()?);
    let product = options.product(entries, known, &mode, v.as_slice()?, &cancel);
    let mut product = product.map_err(fail)?;
    let short = product.work().map_err(fail)?.iter().sum::<u128>() < SHORT;
    if short {
        product.threads = 1;
    }
    let y = Mutex::new(y.as_slice_mut()?);
    let run = || {
        let mut y = y.lock().unwrap_or_else(PoisonError::into_inner);
        product.add_to::<MR>(&mut y).map(|()| true)
    };
    if short {
        let _state = FloatState::standard();
        return settle(py, std::panic::catch_unwind(AssertUnwindSafe(run))).map(drop);
    }
    watched(py, &cancel, run, |py| py.check_signals()).map(drop)
}
