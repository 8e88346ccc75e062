//! Parameters of a job for an event loop, converted in pieces: many of them would keep the loop for longer than a moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyIterator;

use super::errors::wrong;
use super::{convert, pool};
use crate::error::Kind;
use crate::sync::Mutex;
use crate::value::Params;

const BETWEEN_LOOKS: usize = 16; // items between two looks at the clock

/// What comes out of an iterator, piece by piece.
pub struct Pieces<T> {
    iterator: Py<PyIterator>,
    made: Mutex<Option<Vec<T>>>,
}

impl<T> Pieces<T> {
    fn of(items: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Pieces { iterator: items.try_iter()?.unbind(), made: Mutex::new(Some(Vec::new())) })
    }

    /// Convert for so long; false once all is converted.
    fn prepare(
        &self,
        py: Python<'_>,
        seconds: f64,
        add: impl Fn(&Bound<'_, PyIterator>, &mut Vec<T>) -> PyResult<bool>,
    ) -> PyResult<bool> {
        let until = Instant::now() + Duration::try_from_secs_f64(seconds).unwrap_or_default();
        // Out of its place: an iterator may be Python code, which may come here again.
        let mut made = self.take(py)?;
        let iterator = self.iterator.bind(py);
        let mut more = add(iterator, &mut made);
        while let Ok(true) = more
            && (made.len() % BETWEEN_LOOKS != 0 || Instant::now() < until)
        {
            more = add(iterator, &mut made);
        }
        *self.made.lock() = Some(made);
        more
    }

    /// All that was made.
    pub fn take(&self, py: Python<'_>) -> PyResult<Vec<T>> {
        let in_use = || wrong(py, Kind::Interface, "these parameters are in use already".to_owned());
        self.made.lock().take().ok_or_else(in_use)
    }
}

/// The rows of `executemany`.
#[pyclass(frozen, module = "walpool._core")]
pub struct PreparedRows {
    sql: Box<str>,
    rows: Pieces<Params>,
}

#[pymethods]
impl PreparedRows {
    #[new]
    fn new(sql: &str, rows: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(PreparedRows { sql: sql.into(), rows: Pieces::of(rows)? })
    }

    /// Convert for so long, in seconds; false once all is converted.
    fn prepare(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        self.rows.prepare(py, seconds, |iterator, rows| convert::add_row(iterator, &self.sql, rows))
    }
}

impl PreparedRows {
    /// The statement, and the parameters of each row.
    pub fn take(&self, py: Python<'_>) -> PyResult<(Box<str>, Vec<Params>)> {
        Ok((self.sql.clone(), self.rows.take(py)?))
    }
}

/// The statements of `batch`.
#[pyclass(frozen, module = "walpool._core")]
pub struct PreparedBatch(pub Pieces<(Arc<str>, Params)>);

#[pymethods]
impl PreparedBatch {
    #[new]
    fn new(statements: &Bound<'_, PyAny>) -> PyResult<Self> {
        Pieces::of(statements).map(PreparedBatch)
    }

    /// Convert for so long, in seconds; false once all is converted.
    fn prepare(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        self.0.prepare(py, seconds, pool::add_statement)
    }
}
