//! Stores as Python objects: converts, releases the interpreter, maps faults to exceptions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::error::{panicked, raise};
use crate::store::fault::Result;
use crate::store::lock::Lock;
use crate::store::npy::{self, NpySink};
use crate::store::npy_read::NpyReader;
use crate::store::sink::{Batch, Paths, sidecar};
use crate::store::vfs::Disk;
use crate::store::zarr::ZarrSink;
use crate::store::zarr_layout;
use crate::store::zarr_read::ZarrReader;
use crate::store::{Fault, Grid, Reader, Sink, Triangle, header, safetensors};

/// The exception for a fault, with its errno.
fn to_python(py: Python<'_>, fault: &Fault) -> PyErr {
    let class = match fault {
        Fault::Io { .. } | Fault::Sync { .. } | Fault::Exists { .. } => "StoreError",
        Fault::Space { .. } => "StoreSpaceError",
        Fault::Locked { .. } => "StoreLockedError",
        Fault::Corrupt(_) => "StoreCorruptError",
        Fault::Format(_) => "StoreFormatError",
        Fault::Incomplete(_) => "StoreIncompleteError",
        Fault::UnsafePath(_) => "UnsafePathError",
        Fault::UnsafeFile(_) => "UnsafeFileError",
    };
    let error = raise(py, class, fault.to_string());
    if let Some(errno) = fault.errno() {
        // An exception without the number still says everything in words.
        let _ = error.value(py).setattr("errno", errno);
    }
    error
}

fn checked<T>(py: Python<'_>, result: Result<T>) -> PyResult<T> {
    result.map_err(|fault| to_python(py, &fault))
}

/// Runs work on files without the interpreter. What it was working on is not used after a panic:
/// the caller gets an exception, and the store is as after a kill.
fn run<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(result) => checked(py, result),
        Err(panic) => Err(panicked(py, &*panic)),
    }
}

fn not_contiguous(py: Python<'_>) -> PyErr {
    raise(py, "InternalError", "a tile must be contiguous bytes".to_owned())
}

fn bytes_of(mask: &[bool]) -> Vec<u8> {
    mask.iter().copied().map(u8::from).collect()
}

/// How a kernel is stored: format, shape, tiles.
#[pyclass(frozen)]
#[derive(Clone)]
pub(super) struct Layout {
    zarr: bool,
    grid: Grid,
}

#[pymethods]
impl Layout {
    #[new]
    #[pyo3(signature = (format, shape, tile, item, *, symmetric, lower))]
    fn new(
        py: Python<'_>,
        format: &str,
        shape: Vec<usize>,
        tile: usize,
        item: usize,
        symmetric: bool,
        lower: bool,
    ) -> PyResult<Self> {
        let triangle = if lower { Triangle::Lower } else { Triangle::Full };
        let grid = checked(py, Grid::new(&shape, tile, item, symmetric, triangle))?;
        Ok(Self { zarr: format == "zarr", grid })
    }

    /// Number of units.
    fn __len__(&self) -> usize {
        self.grid.units()
    }

    /// Position in the grid of tiles, and the entries ``(i, j, i0, i1, j0, j1)``.
    fn unit(&self, index: usize) -> (usize, usize, usize, usize, usize, usize) {
        let unit = self.grid.unit(index);
        (unit.i, unit.j, unit.rows.start, unit.rows.end, unit.cols.start, unit.cols.end)
    }

    /// Rows and columns of a full tile.
    #[getter]
    fn tile(&self) -> (usize, usize) {
        let chunk = self.grid.chunk();
        (chunk[chunk.len() - 2], chunk[chunk.len() - 1])
    }

    /// Metadata of the Zarr array.
    fn array_json(&self) -> String {
        zarr_layout::array_json(&self.grid)
    }
}

/// An unfinished kernel on disk.
#[pyclass(frozen)]
pub(super) struct TileSink {
    inner: Mutex<Box<dyn Sink>>,
    /// Whether the file system reserved all bytes at the start.
    #[pyo3(get)]
    reserved: bool,
}

fn begin(zarr: bool, paths: Paths, grid: Grid, manifest: &[u8]) -> Result<(Box<dyn Sink>, bool)> {
    if zarr {
        return Ok((Box::new(ZarrSink::begin(Disk, paths, grid, manifest)?), true));
    }
    let sink = NpySink::begin(Disk, paths, grid, manifest)?;
    let reserved = sink.reserved();
    Ok((Box::new(sink), reserved))
}

impl TileSink {
    fn locked(&self) -> MutexGuard<'_, Box<dyn Sink>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl TileSink {
    /// Joins the unfinished store of this name, or makes one.
    #[new]
    fn new(py: Python<'_>, path: PathBuf, layout: &Layout, manifest: &[u8]) -> PyResult<Self> {
        let (zarr, grid, paths) = (layout.zarr, layout.grid, Paths::new(&path));
        let (sink, reserved) = run(py, || begin(zarr, paths, grid, manifest))?;
        Ok(Self { inner: Mutex::new(sink), reserved })
    }

    /// One byte a unit: 1 if it is safe on the disk, whoever wrote it.
    fn done<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let done = run(py, || self.locked().done())?;
        Ok(PyBytes::new(py, &bytes_of(&done)))
    }

    /// Writes a unit; safe after the next commit.
    fn write(
        &self,
        py: Python<'_>,
        index: usize,
        tile: PyReadonlyArrayDyn<'_, u8>,
    ) -> PyResult<()> {
        let bytes = tile.as_slice().map_err(|_| not_contiguous(py))?;
        run(py, || self.locked().write(index, bytes))
    }

    /// Makes the units written so far safe, whichever thread wrote them. Others wait, so that none returns before its own units are
    /// safe because another thread took them along.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        run(py, || self.locked().commit())
    }

    /// The units written so far, to be made safe apart from the sink.
    fn take(&self) -> TileBatch {
        TileBatch { inner: Mutex::new(Some(self.locked().take())) }
    }

    /// Gives the store its name.
    fn finish(&self, py: Python<'_>, manifest: &[u8], replace: bool) -> PyResult<()> {
        run(py, || self.locked().finish(manifest, replace))
    }
}

/// Units that were written and are not safe yet.
#[pyclass(frozen)]
pub(super) struct TileBatch {
    inner: Mutex<Option<Box<dyn Batch>>>,
}

#[pymethods]
impl TileBatch {
    /// Makes them safe. Nothing is left to do the second time.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        let batch = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        run(py, || batch.map_or(Ok(()), |batch| batch.commit()))
    }
}

/// A kernel on disk for reading, finished or not.
#[pyclass(frozen)]
pub(super) struct TileReader {
    inner: Box<dyn Reader>,
}

#[pymethods]
impl TileReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, layout: &Layout, side: PathBuf) -> PyResult<Self> {
        let (zarr, grid) = (layout.zarr, layout.grid);
        let inner = run(py, || {
            Ok(if zarr {
                Box::new(ZarrReader::open(Disk, &path, grid)?) as Box<dyn Reader>
            } else {
                Box::new(NpyReader::open(Disk, &path, &side, grid)?)
            })
        })?;
        Ok(Self { inner })
    }

    /// One byte a unit: 1 if it is there.
    fn done<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let done = run(py, || self.inner.done())?;
        Ok(PyBytes::new(py, &bytes_of(&done)))
    }

    /// Copies entries of one plane of one unit into contiguous bytes, unchecked.
    #[pyo3(signature = (out, plane, index, rows, cols))]
    fn block(
        &self,
        py: Python<'_>,
        mut out: PyReadwriteArrayDyn<'_, u8>,
        plane: usize,
        index: usize,
        rows: (usize, usize),
        cols: (usize, usize),
    ) -> PyResult<()> {
        let grid = self.inner.grid();
        let want = (rows.1.saturating_sub(rows.0)) * (cols.1.saturating_sub(cols.0)) * grid.item();
        let inside = index < grid.units() && plane < grid.planes() && {
            let unit = grid.unit(index);
            unit.rows.start <= rows.0
                && rows.1 <= unit.rows.end
                && unit.cols.start <= cols.0
                && cols.1 <= unit.cols.end
        };
        if !inside || out.len() != want {
            return Err(raise(py, "InternalError", format!("no block of tile {index}")));
        }
        let bytes = out.as_slice_mut().map_err(|_| not_contiguous(py))?;
        run(py, || self.inner.block(plane, index, rows.0..rows.1, cols.0..cols.1, bytes))
    }

    /// Compares a unit with its checksum, and with `mirror` its mirror image too.
    #[pyo3(signature = (index, *, mirror))]
    fn check(&self, py: Python<'_>, index: usize, mirror: bool) -> PyResult<()> {
        if index >= self.inner.grid().units() {
            return Err(raise(py, "InternalError", format!("no tile {index}")));
        }
        run(py, || self.inner.check(index, mirror))
    }
}

/// The lock of a running job.
#[pyclass(frozen)]
pub(super) struct StoreLock {
    inner: Mutex<Option<Lock<Disk>>>,
    /// Whether the file system has locks at all.
    #[pyo3(get)]
    real: bool,
}

#[pymethods]
impl StoreLock {
    #[new]
    #[pyo3(signature = (path, *, shared))]
    fn new(py: Python<'_>, path: PathBuf, shared: bool) -> PyResult<Self> {
        let paths = Paths::new(&path);
        let lock = run(py, || Lock::take(&Disk, &paths.lock, &paths.target, shared))?;
        let real = lock.is_real();
        Ok(Self { inner: Mutex::new(Some(lock)), real })
    }

    /// Lets go. Harmless the second time.
    fn release(&self) {
        let lock = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock {
            lock.release(&Disk);
        }
    }
}

/// Does what a stop between the two last renames of a `.npy` left undone.
#[pyfunction]
pub(super) fn tidy(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    let paths = Paths::new(&path);
    run(py, || npy::tidy(&Disk, &paths))
}

/// The directory of manifest and log beside a `.npy`.
#[pyfunction]
pub(super) fn sidecar_of(path: PathBuf) -> PathBuf {
    sidecar(&path)
}

/// CRC-32C of contiguous bytes, going on from `start`.
#[pyfunction]
#[pyo3(signature = (bytes, start = 0))]
pub(super) fn crc32c(
    py: Python<'_>,
    bytes: PyReadonlyArrayDyn<'_, u8>,
    start: u32,
) -> PyResult<u32> {
    let bytes = bytes.as_slice().map_err(|_| not_contiguous(py))?;
    Ok(py.detach(|| ::crc32c::crc32c_append(start, bytes)))
}

/// CRC-32C of two pieces one after the other, from those of each; `length` is the second one's.
#[pyfunction]
pub(super) fn crc32c_combine(first: u32, second: u32, length: usize) -> u32 {
    ::crc32c::crc32c_combine(first, second, length)
}

/// Bytes that the header of a `.npy` takes, from the first twelve.
#[pyfunction]
pub(super) fn npy_span(py: Python<'_>, first: &[u8]) -> PyResult<u64> {
    checked(py, header::npy_span(first))
}

/// Header of a `.npy`.
#[pyfunction]
pub(super) fn npy_header<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyDict>> {
    let found = checked(py, header::read_npy(bytes))?;
    let dict = PyDict::new(py);
    dict.set_item("descr", found.descr)?;
    dict.set_item("fortran", found.fortran)?;
    dict.set_item("shape", found.shape)?;
    dict.set_item("start", found.start)?;
    dict.set_item("bytes", found.bytes)?;
    Ok(dict)
}

/// Length of the header of a safetensors file of `length` bytes, from its first eight.
#[pyfunction]
pub(super) fn safetensors_span(py: Python<'_>, first: &[u8], length: u64) -> PyResult<u64> {
    checked(py, safetensors::span(first, length))
}

/// Tensors of a safetensors file: name to (dtype, shape, first byte, bytes).
#[pyfunction]
pub(super) fn safetensors_header<'py>(
    py: Python<'py>,
    header: &[u8],
    length: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, tensor) in checked(py, safetensors::read(header, length))? {
        dict.set_item(name, (tensor.dtype, tensor.shape, tensor.start, tensor.bytes))?;
    }
    Ok(dict)
}

/// Adds the names of this file to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Tells the tests that this build has kill points; a release must not.
    #[cfg(feature = "fault")]
    module.add("KILL_POINTS", true)?;
    module.add_class::<Layout>()?;
    module.add_class::<TileSink>()?;
    module.add_class::<TileBatch>()?;
    module.add_class::<TileReader>()?;
    module.add_class::<StoreLock>()?;
    module.add_function(wrap_pyfunction!(tidy, module)?)?;
    module.add_function(wrap_pyfunction!(sidecar_of, module)?)?;
    module.add_function(wrap_pyfunction!(self::crc32c, module)?)?;
    module.add_function(wrap_pyfunction!(crc32c_combine, module)?)?;
    module.add_function(wrap_pyfunction!(npy_span, module)?)?;
    module.add_function(wrap_pyfunction!(npy_header, module)?)?;
    module.add_function(wrap_pyfunction!(safetensors_span, module)?)?;
    module.add_function(wrap_pyfunction!(safetensors_header, module)?)
}
