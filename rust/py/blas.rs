//! SciPy's BLAS as a Python object, and the kernel by it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use numpy::{PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyDict, PyList};

use super::assemble::{Options, hold, memory_error, set_cost, watched};
use super::error::to_python;
use crate::blas::{Multiply, Published};
use crate::cost::Cost;
use crate::error::Error;
use crate::gemm::{Engine, Fit, fit, lookup_terms};
use crate::kernel::{MR_F32, MR_F64, Real};
use crate::plan::{Blocks, Sizes};
use crate::program::Program;

/// The GEMMs that `scipy.linalg.cython_blas` publishes.
#[pyclass(frozen)]
pub(super) struct Blas(crate::blas::Blas);

#[pymethods]
impl Blas {
    /// Takes the capsules of sgemm and dgemm with their names, which are their C signatures.
    #[new]
    fn new(
        py: Python<'_>,
        sgemm: (Bound<'_, PyCapsule>, String),
        dgemm: (Bound<'_, PyCapsule>, String),
        wide: bool,
    ) -> PyResult<Self> {
        let address = |(capsule, name): &(Bound<'_, PyCapsule>, String)| {
            capsule.pointer_checked(Some(&CString::new(name.as_str())?))
        };
        let single = Published { address: address(&sgemm)?, signature: &sgemm.1 };
        let double = Published { address: address(&dgemm)?, signature: &dgemm.1 };
        let blas = crate::blas::Blas::new(single, double, wide);
        Ok(Self(blas.map_err(|error| to_python(py, &error))?))
    }

    /// Assembles a cut like `entk._core.assemble`. None if BLAS gave a wrong product.
    #[pyo3(signature = (rows, cols, options, out, out_double, progress = None))]
    #[allow(clippy::too_many_arguments, reason = "those of `assemble`")]
    fn assemble<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyList>,
        cols: Option<&Bound<'py, PyList>>,
        options: Options,
        out: &Bound<'py, PyArrayDyn<u8>>,
        out_double: bool,
        progress: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<bool>> {
        let (rows, cols) = hold(rows, cols)?;
        let fail = |error: Error| memory_error(py, &error);
        let mode = options.mode().map_err(fail)?;
        let entries = rows.entries(cols.as_ref()).map_err(fail)?;
        let program = Program::lower(&entries, options.r, &mode).map_err(fail)?;
        let run = Run { program: &program, options: &options, progress };
        match options.double {
            true => run.on::<f64, MR_F64>(py, &self.0, out, out_double),
            false => run.on::<f32, MR_F32>(py, &self.0, out, out_double),
        }
    }
}

struct Run<'a, 'py> {
    program: &'a Program<'a>,
    options: &'a Options,
    progress: Option<&'a Bound<'py, PyAny>>,
}

impl<'py> Run<'_, 'py> {
    fn on<F: Real, const MR: usize>(
        &self,
        py: Python<'py>,
        blas: &dyn Multiply<F>,
        out: &Bound<'py, PyArrayDyn<u8>>,
        out_double: bool,
    ) -> PyResult<Option<bool>> {
        let fail = |error: Error| memory_error(py, &error);
        let cut = self.options.cut().map_err(fail)?;
        let sizes = self.options.sizes(&cut);
        let Fit { side, threads, .. } = fit(self.program, sizes).map_err(fail)?;
        let one = Sizes { rows: side, cols: side, threads: 1, limit: u128::MAX, ..sizes };
        let lookups = lookup_terms(self.program)
            .map(|terms| Blocks::new(&terms, one).map(|blocks| (terms, blocks)))
            .transpose()
            .map_err(fail)?;
        let (cancel, wrong, done) =
            (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        let engine = Engine {
            program: self.program,
            lookups,
            blas,
            side,
            threads,
            isa: self.options.isa().map_err(fail)?,
            scale: self.options.scale,
            cancel: &cancel,
            wrong: &wrong,
            done: &done,
        };
        let total = engine.total(&cut);
        let mut out = out.try_readwrite()?;
        let view = Mutex::new(Some(out.as_array_mut()));
        let report = |py: Python<'_>| -> PyResult<()> {
            py.check_signals()?;
            match self.progress {
                Some(progress) => progress.call1((done.load(Ordering::Relaxed), total)).map(drop),
                None => Ok(()),
            }
        };
        let run = || {
            let view = view.lock().unwrap_or_else(PoisonError::into_inner).take();
            let again = || Error::Internal { what: "a kernel by BLAS twice".into() };
            engine.run::<MR>(&cut, view.ok_or_else(again)?, out_double)
        };
        let result = watched(py, &cancel, run, report);
        if wrong.load(Ordering::Relaxed) { Ok(None) } else { result.map(Some) }
    }
}

/// Plan [`Blas::assemble`]: the bytes that it adds besides the result, and flops.
#[pyfunction]
pub(super) fn blas_plan<'py>(
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
        let bytes = fit(&program, options.sizes(&cut))?.bytes;
        Ok((bytes, Cost::of_leaves(&entries, options.r, &mode, true)?, Cost::of(&program, true)))
    };
    let (bytes, leaves, whole) = planned().map_err(|error| memory_error(py, &error))?;
    let plan = PyDict::new(py);
    plan.set_item("bytes", bytes)?;
    set_cost(&plan, leaves, &whole)?;
    Ok(plan)
}
