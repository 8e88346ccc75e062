//! The compiled module `walpool._core`: the engine as Python sees it. Python objects end here, and the GIL is given up here.

mod aio;
mod aio_blocks;
mod bell;
mod blocks;
mod convert;
mod ending;
mod errors;
mod gil;
mod log;
mod mailbox;
mod pool;
mod prepared;
mod reading;
mod result;
mod turns;
mod upcall;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::config::{Setting, SettingValue, Unit};

/// The engine, compiled. Private: `walpool` is its face.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;
    use pyo3::types::PyTuple;

    #[pymodule_export]
    use super::aio::AsyncEngine;
    #[pymodule_export]
    use super::aio_blocks::{AsyncSnapshot, AsyncStream, AsyncTransaction};
    #[pymodule_export]
    use super::blocks::{Snapshot, Stream, Transaction};
    #[pymodule_export]
    use super::mailbox::Mailbox;
    #[pymodule_export]
    use super::pool::Engine;
    #[pymodule_export]
    use super::prepared::{PreparedBatch, PreparedRows};
    #[pymodule_export]
    use super::result::Result;
    use crate::{config, connection, stats};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::refuse_subinterpreter()?;
        module.add("sqlite_version", connection::sqlite_version())
    }

    /// Each setting: (name, unit, default, minimum, maximum, choices, doc).
    #[pyfunction]
    fn setting_table(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyTuple>>> {
        config::settings().iter().map(|setting| super::setting_row(py, setting)).collect()
    }

    /// Each key of `stats()` with what it means.
    #[pyfunction]
    fn stat_keys() -> Vec<(String, &'static str)> {
        stats::keys()
    }
}

/// Classes, and the GIL as this module gives it up, are the main interpreter's: in another one `except walpool.Error` would
/// catch nothing, and a pool that is collected would look for a thread that is not there.
fn refuse_subinterpreter() -> PyResult<()> {
    // SAFETY: the thread is attached to an interpreter, which is importing this module.
    #[allow(unsafe_code)]
    let interpreter = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    if interpreter == 0 {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "walpool works in the main interpreter alone, not in a subinterpreter; use threads, or processes started by spawn",
    ))
}

fn setting_row<'py>(py: Python<'py>, setting: &Setting) -> PyResult<Bound<'py, PyTuple>> {
    let (unit, choices): (&str, &[&str]) = match setting.unit {
        Unit::Count => ("count", &[]),
        Unit::Duration => ("duration", &[]),
        Unit::Bytes => ("bytes", &[]),
        Unit::Switch => ("switch", &[]),
        Unit::Mode => ("mode", &[]),
        Unit::Choice(words) => ("choice", words),
        Unit::Text => ("text", &[]),
    };
    let value = |value: Option<SettingValue>| setting_object(py, value);
    PyTuple::new(
        py,
        [
            setting.name.into_pyobject(py)?.into_any(),
            unit.into_pyobject(py)?.into_any(),
            value(setting.default_value())?,
            value(setting.minimum.clone())?,
            value(setting.maximum.clone())?,
            PyTuple::new(py, choices)?.into_any(),
            setting.doc.into_pyobject(py)?.into_any(),
        ],
    )
}

fn setting_object(py: Python<'_>, value: Option<SettingValue>) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value {
        None => py.None().into_bound(py),
        Some(SettingValue::Count(count)) => count.into_pyobject(py)?.into_any(),
        Some(SettingValue::Seconds(seconds)) => seconds.into_pyobject(py)?.into_any(),
        Some(SettingValue::Switch(is_on)) => is_on.into_pyobject(py)?.to_owned().into_any(),
        Some(SettingValue::Text(text)) => text.into_pyobject(py)?.into_any(),
    })
}
