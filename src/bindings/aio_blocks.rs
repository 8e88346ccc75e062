//! What an event loop's blocks hold: a snapshot, a stream, a transaction. Each verb begins something, as in `aio`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyAny;

use super::aio::{Begun, call, lifetime, nothing};
use super::convert::{self, Seconds};
use super::mailbox::{Mailbox, OfBlock};
use super::prepared::PreparedRows;
use super::reading::{Read, Shape, reading_verbs};
use super::result::Result;
use crate::caller::Call;
use crate::connection::Want;
use crate::engine::{self, Borrowed, Leased, Waiting};
use crate::error;
use crate::reader::{Snapshot, Stream};
use crate::writer::Lease;

/// Several reads of one snapshot.
#[pyclass(frozen, module = "walpool._core")]
pub struct AsyncSnapshot {
    /// What is held.
    pub snapshot: Borrowed<Snapshot>,
    /// Of the loop that it was begun on.
    pub mailbox: OfBlock,
}

reading_verbs!(AsyncSnapshot => Begun<'py>);

#[pymethods]
impl AsyncSnapshot {
    /// Check the reader in. Safe to call twice.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        Mailbox::begin(self.mailbox.bind(py), None, |reply| {
            self.snapshot.end(reply.with(nothing));
            Ok(Waiting::for_its_end())
        })
    }

    /// As `close`, with nobody to wait for it.
    fn abandon(&self) {
        self.snapshot.end(|_| ());
    }
}

impl AsyncSnapshot {
    fn read<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        read: Read<'py>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let params = convert::params(params, sql)?;
        Mailbox::begin(self.mailbox.bind(py), None, |reply| {
            let want = read.want();
            self.snapshot.fetch(call(timeout), sql.into(), params, want, read.tell(reply))
        })
    }
}

impl Drop for AsyncSnapshot {
    fn drop(&mut self) {
        self.snapshot.end(|_| ()); // on a native thread; nobody is left to tell
    }
}

/// The rows of one statement, piece by piece, from one snapshot.
#[pyclass(frozen, module = "walpool._core")]
pub struct AsyncStream {
    /// What is held.
    pub stream: Borrowed<Stream>,
    /// Of the loop that it was begun on.
    pub mailbox: OfBlock,
    /// What each row becomes.
    pub row: Option<Py<PyAny>>,
}

#[pymethods]
impl AsyncStream {
    /// The next rows, fewer than `chunk` only at the end.
    fn next_rows<'py>(&self, py: Python<'py>, chunk: usize) -> PyResult<Begun<'py>> {
        let read = Read::new(self.row.as_ref().map(|row| row.bind(py).clone()), Shape::All)?;
        let want = Want { columns: read.row_as.wants_columns(), most: chunk };
        Mailbox::begin(self.mailbox.bind(py), None, |reply| self.stream.next_rows(want, read.tell(reply)))
    }

    /// Check the reader in. Safe to call twice.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        Mailbox::begin(self.mailbox.bind(py), None, |reply| {
            self.stream.end(reply.with(nothing));
            Ok(Waiting::for_its_end())
        })
    }

    /// As `close`, with nobody to wait for it.
    fn abandon(&self) {
        self.stream.end(|_| ());
    }
}

impl Drop for AsyncStream {
    fn drop(&mut self) {
        self.stream.end(|_| ()); // on a native thread; nobody is left to tell
    }
}

/// An open transaction. What is asked of it is done in order, on the writer's thread.
#[pyclass(frozen, module = "walpool._core")]
pub struct AsyncTransaction {
    /// What is held.
    pub leased: Leased,
    /// Of the loop that it was begun on.
    pub mailbox: OfBlock,
    /// Whose log is taken.
    pub engine: Arc<engine::Engine>,
}

reading_verbs!(AsyncTransaction => Begun<'py>);

#[pymethods]
impl AsyncTransaction {
    #[pyo3(signature = (sql, params, timeout))]
    fn execute<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let (params, sql) = (convert::params(params, sql)?, Box::<str>::from(sql));
        let work = move |call: &_, lease: &Lease| lease.execute(call, &sql, &params);
        self.ask(py, timeout, work, lifetime(|py, ran| Ok(Bound::new(py, Result::new(ran))?.into_any())))
    }

    #[pyo3(signature = (rows, timeout))]
    fn executemany<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PreparedRows>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let (sql, rows) = rows.get().take(py)?;
        let work = move |call: &_, lease: &Lease| lease.execute_many(call, &sql, &rows);
        self.ask(py, timeout, work, lifetime(|py, ran| Ok(Bound::new(py, Result::new(ran))?.into_any())))
    }

    fn mark<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        self.ask(py, None, |call, lease| lease.mark(call), nothing)
    }

    fn keep_mark<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        self.ask(py, None, |call, lease| lease.keep_mark(call), nothing)
    }

    fn undo_to_mark<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        self.ask(py, None, |call, lease| lease.undo_to_mark(call), nothing)
    }

    fn commit<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        self.ask(py, None, |call, lease| lease.commit(call), nothing)
    }

    /// Roll back what is open; nobody needs to wait for it. Safe to call twice.
    fn rollback<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        Mailbox::begin(self.mailbox.bind(py), Some(Arc::clone(&self.engine)), |reply| {
            self.leased.roll_back(reply.with(nothing));
            Ok(Waiting::for_its_end())
        })
    }

    /// As `rollback`, with nobody to wait for it.
    fn abandon(&self) {
        self.leased.roll_back(|_| ());
    }
}

impl AsyncTransaction {
    fn ask<'py, R: Send + 'static>(
        &self,
        py: Python<'py>,
        timeout: Option<Seconds>,
        work: impl FnOnce(&Call, &Lease) -> error::Result<R> + Send + 'static,
        convert: impl for<'a> FnOnce(Python<'a>, R) -> PyResult<Bound<'a, PyAny>> + Send + 'static,
    ) -> PyResult<Begun<'py>> {
        Mailbox::begin(self.mailbox.bind(py), Some(Arc::clone(&self.engine)), |reply| {
            self.leased.ask(timeout.map(|seconds| seconds.0), work, reply.with(convert))
        })
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        read: Read<'py>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let (params, sql) = (convert::params(params, sql)?, Box::<str>::from(sql));
        let want = read.want();
        Mailbox::begin(self.mailbox.bind(py), Some(Arc::clone(&self.engine)), |reply| {
            let work = move |call: &_, lease: &Lease| lease.fetch(call, &sql, &params, want);
            self.leased.ask(timeout.map(|seconds| seconds.0), work, read.tell(reply))
        })
    }
}

impl Drop for AsyncTransaction {
    fn drop(&mut self) {
        self.leased.roll_back(|_| ()); // on the writer's thread; nobody is left to tell
    }
}
