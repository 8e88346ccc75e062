//! The engine's errors as exceptions of `walpool.errors`: the one place that raises them.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule, PyTuple};

use super::{gil, upcall};
use crate::error::{Error, Kind};

static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// The exception for an error. Where a signal handler raised one, that one, with the outcome on it.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    if let Some(raised) = gil::take_raised() {
        // An exception that takes no attributes still says what the handler wanted to say.
        let _ = raised.value(py).setattr("outcome", error.outcome.name());
        return raised;
    }
    make(py, error).unwrap_or_else(|failure| failure)
}

fn make(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let module = ERRORS.get_or_try_init(py, || py.import("walpool.errors").map(Bound::unbind))?;
    let class = module.bind(py).getattr(error.kind.class_name())?;
    let fields = PyDict::new(py);
    fields.set_item("outcome", error.outcome.name())?;
    fields.set_item("sqlite_errorcode", error.code)?;
    fields.set_item("sqlite_errorname", error.code_name())?;
    let args = PyTuple::new(py, [error.message.as_str()])?;
    Ok(PyErr::from_value(upcall::call(&class, &args, Some(&fields))?))
}

/// An error about what the caller gave.
pub fn wrong(py: Python<'_>, kind: Kind, message: String) -> PyErr {
    make(py, &Error::new(kind, message)).unwrap_or_else(|failure| failure)
}
