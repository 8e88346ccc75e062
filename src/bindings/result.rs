//! `walpool.Result`: what a write statement did.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyTuple};

use super::convert::{self, RowAs};
use crate::connection::Ran;

/// What one write statement did; it is committed by the time that the caller has it.
#[pyclass(frozen, module = "walpool")]
pub struct Result {
    ran: Ran,
    rows: PyOnceLock<Py<PyList>>, // made when somebody looks: most writes return none
}

impl Result {
    /// For what the engine says.
    pub fn new(ran: Ran) -> Self {
        Result { ran, rows: PyOnceLock::new() }
    }
}

#[pymethods]
impl Result {
    /// Rows that the statement itself inserted, updated or deleted (not its triggers); the sum over `executemany`; -1 for
    /// other statements.
    #[getter]
    fn rowcount(&self) -> i64 {
        self.ran.rowcount
    }

    /// The rowid of the last row that the statement inserted; None if it inserted none.
    #[getter]
    fn lastrowid(&self) -> Option<i64> {
        self.ran.lastrowid
    }

    /// The rows of a RETURNING clause, in SQLite's order; empty without one.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let make = || {
            let list = convert::list(py, &self.ran.rows, &RowAs::Tuple);
            list.map(Bound::unbind).inspect_err(|error| {
                // The write is committed, whatever its rows hold. An exception that takes no attributes says so less well.
                let _ = error.value(py).setattr("outcome", "applied");
            })
        };
        Ok(self.rows.get_or_try_init(py, make)?.bind(py).clone())
    }

    /// The names of the columns of `rows`; empty without RETURNING.
    #[getter]
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        convert::columns(py, &self.ran.rows)
    }

    /// The rows are counted, not shown: what people store does not belong in a log.
    fn __repr__(&self) -> String {
        let lastrowid = self.ran.lastrowid.map_or_else(|| "None".to_owned(), |rowid| rowid.to_string());
        format!("Result(rowcount={}, lastrowid={lastrowid}, rows=<{}>)", self.ran.rowcount, self.ran.rows.len())
    }
}
