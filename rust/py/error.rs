//! The core's errors as the package's exceptions.

use std::any::Any;

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;

use crate::error::Error;

/// The exception of `entk._errors` (Python) for an error of the core.
pub(super) fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error {
        Error::Cancelled => return PyKeyboardInterrupt::new_err(()),
        Error::Allocation { .. } | Error::Memory { .. } => "MemoryLimitError",
        Error::Size { .. } => "SizeError",
        Error::Internal { .. } => "InternalError",
    };
    raise(py, class, error.to_string())
}

/// An exception of `entk._errors` by name.
pub(super) fn raise(py: Python<'_>, class: &str, text: String) -> PyErr {
    let class = py.import("entk._errors").and_then(|module| module.getattr(class));
    match class.and_then(|class| class.call1((text.clone(),))) {
        Ok(error) => PyErr::from_value(error),
        Err(_) => PyRuntimeError::new_err(text),
    }
}

/// The exception for a panic of the core: a bug, to be reported, that ends one call and no more.
pub(super) fn panicked(py: Python<'_>, panic: &(dyn Any + Send)) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("the core panicked");
    let version = env!("CARGO_PKG_VERSION");
    raise(py, "InternalError", format!("entk {version}: {text}; please report this"))
}
