//! The Python module `entk._core`: converts, borrows, releases the interpreter, calls.

use pyo3::prelude::*;

mod array;
mod assemble;
mod blas;
mod error;
mod products;
mod store;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    store::register(module)?;
    module.add_class::<blas::Blas>()?;
    module.add_function(wrap_pyfunction!(blas::blas_plan, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("KERNEL_ABI", crate::kernel::KERNEL_ABI)?;
    module.add("KC", crate::kernel::KC)?;
    module.add_function(wrap_pyfunction!(assemble::plan, module)?)?;
    module.add_function(wrap_pyfunction!(assemble::assemble, module)?)?;
    module.add_function(wrap_pyfunction!(products::multiply, module)?)?;
    module.add_function(wrap_pyfunction!(products::multiply_work, module)?)?;
    module.add_function(wrap_pyfunction!(assemble::scan, module)?)?;
    module.add_function(wrap_pyfunction!(assemble::instruction_sets, module)?)?;
    module.add_function(wrap_pyfunction!(assemble::usable_cores, module)?)?;
    module.add_function(wrap_pyfunction!(assemble::memory_limit, module)?)?;
    module.add_function(wrap_pyfunction!(assemble::fma_peak, module)?)
}
