//! The core's errors as the package's exceptions.

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
