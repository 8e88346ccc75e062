//! The engine as an event loop sees it: each verb begins something and returns a number and a future, or, for a read that took
//! no longer than a moment, its value. What the blocks hold stands in `aio_blocks`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::aio_blocks::{AsyncSnapshot, AsyncStream, AsyncTransaction};
use super::convert::{self, RowAs, Seconds};
use super::errors::raise;
use super::mailbox::{Mailbox, OfBlock, Reply};
use super::pool::{self, Engine};
use super::prepared::{PreparedBatch, PreparedRows};
use super::reading::{Read, Shape, reading_verbs};
use super::result::Result;
use crate::connection::Ran;
use crate::engine::{self, Waiting, absent_call, only};
use crate::error;
use crate::group_commit::{Job, Work};

/// A number and a future; or, where nothing had to be waited for, one of these two and the value.
pub type Begun<'py> = (i64, Bound<'py, PyAny>);

const DONE: i64 = -1;
/// Done, but this loop's tasks should take turns now.
const DONE_AND_YIELD: i64 = -2;

/// Helps the compiler to see that the closure takes any lifetime.
pub fn lifetime<T, F>(convert: F) -> F
where
    F: for<'py> FnOnce(Python<'py>, T) -> PyResult<Bound<'py, PyAny>>,
{
    convert
}

/// What has no result.
pub fn nothing(py: Python<'_>, (): ()) -> PyResult<Bound<'_, PyAny>> {
    Ok(py.None().into_bound(py))
}

fn one_result(py: Python<'_>, ran: Vec<Ran>) -> PyResult<Bound<'_, PyAny>> {
    let ran = only(ran).map_err(|error| raise(py, &error))?;
    Ok(Bound::new(py, Result::new(ran))?.into_any())
}

/// An engine handle and the mailbox of one event loop.
#[pyclass(frozen, module = "walpool._core")]
pub struct AsyncEngine {
    engine: Arc<engine::Engine>,
    mailbox: Py<Mailbox>,
    is_waking: AtomicBool,
}

reading_verbs!(AsyncEngine => Begun<'py>);

#[pymethods]
impl AsyncEngine {
    #[new]
    fn new(engine: &Engine, mailbox: Py<Mailbox>) -> Self {
        AsyncEngine { engine: Arc::clone(engine.shared()), mailbox, is_waking: AtomicBool::new(false) }
    }

    /// Open a file on a thread of its own; an `Engine` comes back.
    #[staticmethod]
    fn open<'py>(
        mailbox: &Bound<'py, Mailbox>,
        path: PathBuf,
        settings: &Bound<'py, PyDict>,
        given: Vec<String>,
    ) -> PyResult<Begun<'py>> {
        let config = pool::config(mailbox.py(), settings)?;
        Mailbox::aside(mailbox, "walpool-opening", move |reply| {
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            let call = absent_call(None);
            let opened = engine::Engine::open(&call, &path, &config, &given);
            let opened = opened.and_then(|engine| engine.open_here(&call).map(|()| engine));
            reply.send(opened, lifetime(|py, engine| Ok(Bound::new(py, Engine::of(engine))?.into_any())));
        })
    }

    #[getter]
    fn mailbox(&self, py: Python<'_>) -> Py<Mailbox> {
        self.mailbox.clone_ref(py)
    }

    /// Whether the engine is open in this process, its native threads with it.
    #[getter]
    fn is_open_here(&self) -> bool {
        self.engine.is_open_here()
    }

    /// Open what this process lacks: its native threads, and after a fork the engine.
    fn open_here<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        let engine = Arc::clone(&self.engine);
        Mailbox::aside(self.mailbox.bind(py), "walpool-opening", move |reply| {
            reply.send(engine.open_here(&absent_call(None)), nothing);
        })
    }

    fn close<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        let engine = Arc::clone(&self.engine);
        Mailbox::aside(self.mailbox.bind(py), "walpool-closing", move |reply| {
            reply.send(engine.close(&absent_call(None)), nothing);
        })
    }

    /// Have the jobs led that were queued in this turn of the loop.
    fn wake(&self) {
        self.is_waking.store(false, Ordering::Release);
        self.engine.wake();
    }

    #[pyo3(signature = (sql, params, timeout))]
    fn execute<'py>(
        slf: &Bound<'py, Self>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let work = Work::Execute(sql.into(), convert::params(params, sql)?);
        Self::submit(slf, work, timeout, one_result)
    }

    #[pyo3(signature = (rows, timeout))]
    fn executemany<'py>(
        slf: &Bound<'py, Self>,
        rows: &Bound<'py, PreparedRows>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let (sql, rows) = rows.get().take(slf.py())?;
        Self::submit(slf, Work::Many(sql, rows), timeout, one_result)
    }

    #[pyo3(signature = (statements, timeout))]
    fn batch<'py>(
        slf: &Bound<'py, Self>,
        statements: &Bound<'py, PreparedBatch>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let work = Work::Batch(statements.get().0.take(slf.py())?);
        let results = lifetime(|py, ran: Vec<Ran>| {
            let results: Vec<Result> = ran.into_iter().map(Result::new).collect();
            results.into_pyobject(py)
        });
        Self::submit(slf, work, timeout, results)
    }

    #[pyo3(signature = (sql, timeout))]
    fn script<'py>(slf: &Bound<'py, Self>, sql: &str, timeout: Option<Seconds>) -> PyResult<Begun<'py>> {
        Self::submit(slf, Work::Script(sql.into()), timeout, lifetime(|py, _: Vec<Ran>| nothing(py, ())))
    }

    /// An `AsyncSnapshot` comes back.
    #[pyo3(signature = (timeout))]
    fn snapshot<'py>(&self, py: Python<'py>, timeout: Option<Seconds>) -> PyResult<Begun<'py>> {
        let mailbox = self.mailbox.clone_ref(py);
        let make = lifetime(move |py, snapshot| {
            Ok(Bound::new(py, AsyncSnapshot { snapshot, mailbox: OfBlock::of(mailbox) })?.into_any())
        });
        self.begin(py, |reply| self.engine.snapshot_absent(call(timeout), reply.with(make)))
    }

    /// An `AsyncStream` comes back.
    #[pyo3(signature = (sql, params, row, timeout))]
    fn stream<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        row: Option<Bound<'py, PyAny>>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        RowAs::from_argument(row.clone())?; // a wrong one is told now, not at the first row
        let params = convert::params(params, sql)?;
        let (mailbox, row) = (self.mailbox.clone_ref(py), row.map(Bound::unbind));
        let make = lifetime(move |py, stream| {
            Ok(Bound::new(py, AsyncStream { stream, mailbox: OfBlock::of(mailbox), row })?.into_any())
        });
        self.begin(py, |reply| self.engine.stream_absent(call(timeout), sql.into(), params, reply.with(make)))
    }

    /// An `AsyncTransaction` comes back.
    #[pyo3(signature = (timeout))]
    fn lease<'py>(slf: &Bound<'py, Self>, timeout: Option<Seconds>) -> PyResult<Begun<'py>> {
        let (this, py) = (slf.get(), slf.py());
        let (mailbox, engine) = (this.mailbox.clone_ref(py), Arc::clone(&this.engine));
        let make = lifetime(move |py, leased| {
            Ok(Bound::new(py, AsyncTransaction { leased, mailbox: OfBlock::of(mailbox), engine })?.into_any())
        });
        let begun = this.begin(py, |reply| this.engine.lease_absent(&call(timeout), reply.with(make)))?;
        Self::wake_soon(slf)?;
        Ok(begun)
    }

    fn checkpoint<'py>(&self, py: Python<'py>, mode: &str) -> PyResult<Begun<'py>> {
        let mode = pool::checkpoint_mode(py, mode)?;
        let convert = lifetime(|py, done: crate::connection::Checkpointed| {
            Ok((done.was_busy, done.wal_frames, done.moved_frames).into_pyobject(py)?.into_any())
        });
        self.begin(py, |reply| self.engine.checkpoint_absent(mode, reply.with(convert)))
    }

    fn backup<'py>(&self, py: Python<'py>, dest: PathBuf) -> PyResult<Begun<'py>> {
        self.begin(py, |reply| self.engine.backup_absent(dest, reply.with(nothing)))
    }

    fn check<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        let convert = lifetime(|py, lines: Vec<String>| lines.into_pyobject(py));
        self.begin(py, |reply| self.engine.check_absent(reply.with(convert)))
    }

    fn vacuum<'py>(&self, py: Python<'py>) -> PyResult<Begun<'py>> {
        self.begin(py, |reply| self.engine.vacuum_absent(reply.with(nothing)))
    }

    fn stats<'py>(&self, py: Python<'py>, pop: bool) -> PyResult<Bound<'py, PyDict>> {
        let figures = self.engine.stats_at_once(pop).map_err(|error| raise(py, &error))?;
        pool::stats_dict(py, figures)
    }
}

/// A call for an event loop.
pub fn call(timeout: Option<Seconds>) -> crate::caller::Call {
    absent_call(timeout.map(|seconds| seconds.0))
}

impl AsyncEngine {
    fn begin<'py>(&self, py: Python<'py>, start: impl FnOnce(Reply) -> error::Result<Waiting>) -> PyResult<Begun<'py>> {
        Mailbox::begin(self.mailbox.bind(py), Some(Arc::clone(&self.engine)), start)
    }

    fn submit<'py>(
        slf: &Bound<'py, Self>,
        work: Work,
        timeout: Option<Seconds>,
        convert: impl for<'a> FnOnce(Python<'a>, Vec<Ran>) -> PyResult<Bound<'a, PyAny>> + Send + 'static,
    ) -> PyResult<Begun<'py>> {
        let this = slf.get();
        let submit = |reply: Reply| this.engine.submit_absent(&call(timeout), Job::new(work), reply.with(convert));
        let begun = this.begin(slf.py(), submit)?;
        Self::wake_soon(slf)?;
        Ok(begun)
    }

    /// Once in a turn of the loop: what its tasks queue in this turn makes one group.
    fn wake_soon(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if this.is_waking.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        this.mailbox.get().call_soon(slf.getattr(intern!(slf.py(), "wake"))?)
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        read: Read<'py>,
        timeout: Option<Seconds>,
    ) -> PyResult<Begun<'py>> {
        let params = convert::params(params, sql)?;
        let (call, want) = (call(timeout), read.want());
        let at_once = self.engine.fetch_at_once(&call, sql, &params, want).map_err(|error| raise(py, &error))?;
        if let Some(rows) = at_once {
            let value = read.answer(py, &rows)?;
            let must_yield = Mailbox::spend(self.mailbox.bind(py), call.started.elapsed())?;
            return Ok((if must_yield { DONE_AND_YIELD } else { DONE }, value));
        }
        self.begin(py, |reply| self.engine.fetch_absent(call, sql.into(), params, want, read.tell(reply)))
    }
}
