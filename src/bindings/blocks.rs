//! What a caller's blocks hold: an open transaction, a snapshot, a stream.

use std::sync::Arc;
use std::thread::ThreadId;

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::convert::{self, RowAs, Seconds};
use super::errors::wrong;
use super::gil;
use super::pool::call;
use super::reading::{Read, Shape, reading_verbs};
use super::result::Result;
use crate::caller::Call;
use crate::connection::Want;
use crate::engine;
use crate::error::{self, Kind, Outcome};
use crate::reader;
use crate::writer::Lease;

/// An open transaction, on the thread that began it.
#[pyclass(frozen, module = "walpool._core")]
pub struct Transaction {
    lease: Option<Lease>, // None only while it is dropped
    engine: Arc<engine::Engine>,
    thread: ThreadId,
}

impl Transaction {
    /// Begun on this thread.
    pub fn new(lease: Lease, engine: &Arc<engine::Engine>) -> Self {
        Transaction { lease: Some(lease), engine: Arc::clone(engine), thread: std::thread::current().id() }
    }
}

reading_verbs!(Transaction => Bound<'py, PyAny>);

#[pymethods]
impl Transaction {
    #[pyo3(signature = (sql, params, timeout))]
    fn execute(
        &self,
        py: Python<'_>,
        sql: &str,
        params: &Bound<'_, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Result> {
        let params = convert::params(params, sql)?;
        self.call(py, timeout, |call, lease| lease.execute(call, sql, &params)).map(Result::new)
    }

    #[pyo3(signature = (sql, rows, timeout))]
    fn executemany(
        &self,
        py: Python<'_>,
        sql: &str,
        rows: &Bound<'_, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Result> {
        let rows = convert::rows_of_params(rows, sql)?;
        self.call(py, timeout, |call, lease| lease.execute_many(call, sql, &rows)).map(Result::new)
    }

    fn mark(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, None, |call, lease| lease.mark(call))
    }

    fn keep_mark(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, None, |call, lease| lease.keep_mark(call))
    }

    fn undo_to_mark(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, None, |call, lease| lease.undo_to_mark(call))
    }

    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.ending(py, None, Outcome::Applied, |call, lease| lease.commit(call))
    }

    fn rollback(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, None, |_, lease| lease.rollback())
    }
}

impl Transaction {
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds>,
        work: impl FnOnce(&Call, &Lease) -> error::Result<T> + Send,
    ) -> PyResult<T> {
        // An interrupt ends the block, which rolls back, whatever the statement did.
        self.ending(py, timeout, Outcome::NotApplied, work)
    }

    fn ending<T: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<Seconds>,
        success: Outcome,
        work: impl FnOnce(&Call, &Lease) -> error::Result<T> + Send,
    ) -> PyResult<T> {
        if self.thread != std::thread::current().id() {
            let text = "a transaction belongs to the thread that began it; begin another one in this thread".to_owned();
            return Err(wrong(py, Kind::Interface, text));
        }
        let Some(lease) = &self.lease else { return Err(wrong(py, Kind::Interface, ENDED.to_owned())) };
        call(py, &self.engine, timeout, success, |call| work(call, lease).map_err(|error| self.engine.told(error)))
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        read: Read<'py>,
        timeout: Option<Seconds>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let params = convert::params(params, sql)?;
        let want = read.want();
        let rows = self.call(py, timeout, |call, lease| lease.fetch(call, sql, &params, want))?;
        read.answer(py, &rows)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            Python::attach(|py| gil::lazily(py, || drop(lease))); // it may have to roll back
        }
    }
}

/// Several reads of one snapshot.
#[pyclass(frozen, module = "walpool._core")]
pub struct Snapshot {
    snapshot: Option<reader::Snapshot>, // None only while it is dropped
    engine: Arc<engine::Engine>,
}

impl Snapshot {
    /// One that was begun.
    pub fn new(snapshot: reader::Snapshot, engine: &Arc<engine::Engine>) -> Self {
        Snapshot { snapshot: Some(snapshot), engine: Arc::clone(engine) }
    }
}

reading_verbs!(Snapshot => Bound<'py, PyAny>);

#[pymethods]
impl Snapshot {
    /// Check the reader in. Safe to call twice.
    fn close(&self, py: Python<'_>) {
        if let Some(snapshot) = &self.snapshot {
            gil::lazily(py, || snapshot.end());
        }
    }
}

impl Snapshot {
    fn read<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        read: Read<'py>,
        timeout: Option<Seconds>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (params, want) = (convert::params(params, sql)?, read.want());
        let Some(snapshot) = &self.snapshot else { return Err(wrong(py, Kind::Interface, ENDED.to_owned())) };
        let rows = call(py, &self.engine, timeout, Outcome::NotApplied, |call| {
            snapshot.fetch(call, sql, &params, want).map_err(|error| self.engine.told(error))
        })?;
        read.answer(py, &rows)
    }
}

/// The rows of one statement, piece by piece, from one snapshot.
#[pyclass(frozen, module = "walpool._core")]
pub struct Stream {
    stream: Option<reader::Stream>, // None only while it is dropped
    engine: Arc<engine::Engine>,
    row: Option<Py<PyAny>>,
}

impl Stream {
    /// One that was begun; `row` is what each row becomes.
    pub fn new(stream: reader::Stream, engine: &Arc<engine::Engine>, row: Option<Py<PyAny>>) -> Self {
        Stream { stream: Some(stream), engine: Arc::clone(engine), row }
    }
}

#[pymethods]
impl Stream {
    /// The next rows, fewer than `chunk` only at the end.
    fn next_rows<'py>(&self, py: Python<'py>, chunk: usize) -> PyResult<Bound<'py, PyList>> {
        let row_as = RowAs::from_argument(self.row.as_ref().map(|row| row.bind(py).clone()))?;
        let Some(stream) = &self.stream else { return Err(wrong(py, Kind::Interface, ENDED.to_owned())) };
        let want = Want { columns: row_as.wants_columns(), most: chunk };
        let rows = call(py, &self.engine, None, Outcome::NotApplied, |call| {
            stream.next_rows(call, want).map_err(|error| self.engine.told(error))
        })?;
        convert::list(py, &rows, &row_as)
    }

    /// Check the reader in. Safe to call twice.
    fn close(&self, py: Python<'_>) {
        if let Some(stream) = &self.stream {
            gil::lazily(py, || stream.end());
        }
    }
}

const ENDED: &str = "it has ended";
