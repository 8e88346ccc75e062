//! The engine's messages on their way to `logging`: its own threads must not enter Python.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::upcall;
use crate::engine::Engine;
use crate::log::Level;

/// Log what the engine has to tell.
///
/// # Errors
/// What is no failure of the log: Ctrl-C, or an exception that another thread set.
pub fn tell(py: Python<'_>, engine: &Engine) -> PyResult<()> {
    tell_all(py, engine).err().and_then(|error| not_of_the_log(py, error)).map_or(Ok(()), Err)
}

/// A log that fails must not take the place of a result that is committed. But Ctrl-C, or an exception that another thread
/// set, is no failure of the log that it happens to come in, and must not be lost.
fn not_of_the_log(py: Python<'_>, error: PyErr) -> Option<PyErr> {
    if !error.is_instance_of::<PyException>(py) {
        return Some(error);
    }
    error.write_unraisable(py, None);
    None
}

fn tell_all(py: Python<'_>, engine: &Engine) -> PyResult<()> {
    let messages = engine.take_messages();
    if messages.is_empty() {
        return Ok(());
    }
    let logger = upcall::call_method(py.import("logging")?.as_any(), "getLogger", &PyTuple::new(py, ["walpool"])?)?;
    for message in messages {
        let method = match message.level {
            Level::Info => "info",
            Level::Warning => "warning",
        };
        let path = engine.path().display().to_string();
        upcall::call_method(&logger, method, &PyTuple::new(py, ["%s [%s]", &message.text, &path])?)?;
    }
    Ok(())
}
