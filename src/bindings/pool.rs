//! The engine handle that Python holds, and how any call enters the engine.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyTuple};

use super::blocks::{Snapshot, Stream, Transaction};
use super::convert::{self, RowAs, Seconds};
use super::errors::{raise, wrong};
use super::gil::{self, PYTHON};
use super::reading::{Read, Shape, reading_verbs};
use super::result::Result;
use super::{log, upcall};
use crate::caller::Call;
use crate::config::{Config, SettingValue};
use crate::connection::CheckpointMode;
use crate::engine::{self, only};
use crate::error::{self, Error, Kind, Outcome};
use crate::group_commit::{Job, Work};
use crate::stats::Figure;
use crate::value::Params;

/// A counted handle on the engine of one file.
#[pyclass(frozen, module = "walpool._core")]
pub struct Engine {
    engine: Arc<engine::Engine>,
}

impl Engine {
    /// A handle that was opened elsewhere.
    pub fn of(engine: engine::Engine) -> Self {
        Engine { engine: Arc::new(engine) }
    }

    /// The engine itself.
    pub fn shared(&self) -> &Arc<engine::Engine> {
        &self.engine
    }
}

thread_local! {
    /// The handles that calls of this thread are inside of: more than one where a signal handler, which runs in the middle of
    /// a call, makes another.
    static INSIDE: RefCell<Vec<*const engine::Engine>> = const { RefCell::new(Vec::new()) };
    static IS_OPENING: Cell<bool> = const { Cell::new(false) };
}

struct Inside;

impl Inside {
    fn of(engine: &engine::Engine) -> Inside {
        INSIDE.with_borrow_mut(|inside| inside.push(ptr::from_ref(engine)));
        Inside
    }

    fn is_in(engine: &engine::Engine) -> bool {
        INSIDE.with_borrow(|inside| inside.contains(&ptr::from_ref(engine)))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with_borrow_mut(Vec::pop);
    }
}

/// This thread opens an engine: others that want the same file wait for it, and so would a signal handler on this thread.
struct Opening;

impl Opening {
    fn begin() -> Option<Opening> {
        (!IS_OPENING.replace(true)).then_some(Opening)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        IS_OPENING.set(false);
    }
}

/// Call into the engine with the GIL given up lazily, then raise what it says and log what it has to tell. `success` is what
/// a call that succeeds has brought into the database, for an interrupt that came too late to stop it.
pub fn call<T: Send>(
    py: Python<'_>,
    engine: &engine::Engine,
    timeout: Option<Seconds>,
    success: Outcome,
    work: impl FnOnce(&Call) -> error::Result<T> + Send,
) -> PyResult<T> {
    let call = Call::new(&PYTHON, timeout.map(|seconds| seconds.0));
    let inside = Inside::of(engine);
    let done = gil::lazily(py, || work(&call));
    drop(inside);
    gil::hear_signals(py);
    // Before anything else runs Python: what a handler raises there would be taken for a failure of the log.
    let raised = gil::take_raised();
    let raised = raised.or_else(|| log::tell(py, engine).err());
    match (done, raised) {
        (Ok(done), None) => Ok(done),
        (Err(error), None) => Err(raise(py, &error)),
        (done, Some(raised)) => {
            let outcome = done.map_or_else(|error| error.outcome, |_| success);
            // An exception that takes no attributes still says what it has to say.
            let _ = raised.value(py).setattr("outcome", outcome.name());
            Err(raised)
        }
    }
}

reading_verbs!(Engine => Bound<'py, PyAny>);

#[pymethods]
impl Engine {
    /// Open a file with these settings; only those named in `given` are compared with an engine that has it open already.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, settings: &Bound<'_, PyDict>, given: Vec<String>) -> PyResult<Engine> {
        let config = config(py, settings)?;
        let Some(_opening) = Opening::begin() else {
            let text = "a signal handler opens a pool while its thread is opening one, and would wait for itself; raise in the \
                        handler, and open afterwards";
            return Err(wrong(py, Kind::Reentrant, text.to_owned()));
        };
        let opened = gil::lazily(py, || {
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            engine::Engine::open(&Call::new(&PYTHON, None), &path, &config, &given)
        });
        let engine = opened.map_err(|error| raise(py, &error))?;
        Ok(Engine::of(engine))
    }

    /// The real path of the file.
    #[getter]
    fn path(&self) -> PathBuf {
        self.engine.path().to_owned()
    }

    /// Whether this handle was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.engine.is_closed()
    }

    #[pyo3(signature = (sql, params, timeout))]
    fn execute(
        &self,
        py: Python<'_>,
        sql: &str,
        params: &Bound<'_, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Result> {
        let work = Work::Execute(sql.into(), convert::params(params, sql)?);
        self.submit_one(py, work, timeout)
    }

    #[pyo3(signature = (sql, rows, timeout))]
    fn executemany(
        &self,
        py: Python<'_>,
        sql: &str,
        rows: &Bound<'_, PyAny>,
        timeout: Option<Seconds>,
    ) -> PyResult<Result> {
        let work = Work::Many(sql.into(), convert::rows_of_params(rows, sql)?);
        self.submit_one(py, work, timeout)
    }

    #[pyo3(signature = (statements, timeout))]
    fn batch(&self, py: Python<'_>, statements: &Bound<'_, PyAny>, timeout: Option<Seconds>) -> PyResult<Vec<Result>> {
        let work = Work::Batch(batch_parts(statements)?);
        let answer =
            call(py, &self.engine, timeout, Outcome::Applied, |call| self.engine.submit(call, Job::new(work)))?;
        Ok(answer.into_iter().map(Result::new).collect())
    }

    #[pyo3(signature = (sql, timeout))]
    fn script(&self, py: Python<'_>, sql: &str, timeout: Option<Seconds>) -> PyResult<()> {
        let work = Work::Script(sql.into());
        call(py, &self.engine, timeout, Outcome::Applied, |call| self.engine.submit(call, Job::new(work))).map(drop)
    }

    #[pyo3(signature = (sql, params, row, timeout))]
    fn stream<'py>(
        &self,
        py: Python<'py>,
        sql: &str,
        params: &Bound<'py, PyAny>,
        row: Option<Bound<'py, PyAny>>,
        timeout: Option<Seconds>,
    ) -> PyResult<Stream> {
        RowAs::from_argument(row.clone())?; // a wrong one is told now, not at the first row
        let params = convert::params(params, sql)?;
        let stream =
            call(py, &self.engine, timeout, Outcome::NotApplied, |call| self.engine.stream(call, sql, &params))?;
        Ok(Stream::new(stream, &self.engine, row.map(Bound::unbind)))
    }

    #[pyo3(signature = (timeout))]
    fn snapshot(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<Snapshot> {
        let snapshot = call(py, &self.engine, timeout, Outcome::NotApplied, |call| self.engine.snapshot(call))?;
        Ok(Snapshot::new(snapshot, &self.engine))
    }

    #[pyo3(signature = (timeout))]
    fn lease(&self, py: Python<'_>, timeout: Option<Seconds>) -> PyResult<Transaction> {
        let lease = call(py, &self.engine, timeout, Outcome::NotApplied, |call| self.engine.lease(call))?;
        Ok(Transaction::new(lease, &self.engine))
    }

    /// (was_busy, frames in the WAL, frames that are in the file now)
    fn checkpoint(&self, py: Python<'_>, mode: &str) -> PyResult<(bool, u32, u32)> {
        let mode = checkpoint_mode(py, mode)?;
        let done = call(py, &self.engine, None, Outcome::Applied, |call| self.engine.checkpoint(call, mode))?;
        Ok((done.was_busy, done.wal_frames, done.moved_frames))
    }

    fn backup(&self, py: Python<'_>, dest: PathBuf) -> PyResult<()> {
        call(py, &self.engine, None, Outcome::Applied, |call| self.engine.backup(call, &dest))
    }

    fn check(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        call(py, &self.engine, None, Outcome::NotApplied, |call| self.engine.check(call))
    }

    fn vacuum(&self, py: Python<'_>) -> PyResult<()> {
        call(py, &self.engine, None, Outcome::Applied, |call| self.engine.vacuum(call))
    }

    fn stats<'py>(&self, py: Python<'py>, pop: bool) -> PyResult<Bound<'py, PyDict>> {
        stats_dict(py, call(py, &self.engine, None, Outcome::NotApplied, |call| self.engine.stats(call, pop))?)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        // main thread                          engine
        // fetch                                runs it
        //                                      asks whether there was a signal
        // the handler: close()                 waits for the fetch, which waits for the handler
        if Inside::is_in(&self.engine) {
            let text = format!(
                "close() in a signal handler that interrupted a call of the same pool would wait for itself; let the handler \
                 raise an exception, and close after the call [{}]",
                self.engine.path().display()
            );
            return Err(wrong(py, Kind::Reentrant, text));
        }
        call(py, &self.engine, None, Outcome::Applied, |call| self.engine.close(call))
    }
}

impl Engine {
    fn submit_one(&self, py: Python<'_>, work: Work, timeout: Option<Seconds>) -> PyResult<Result> {
        call(py, &self.engine, timeout, Outcome::Applied, |call| {
            self.engine.submit(call, Job::new(work)).and_then(only)
        })
        .map(Result::new)
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
        let rows =
            call(py, &self.engine, timeout, Outcome::NotApplied, |call| self.engine.fetch(call, sql, &params, want))?;
        read.answer(py, &rows)
    }
}

/// A checkpoint's mode by its name.
pub fn checkpoint_mode(py: Python<'_>, mode: &str) -> PyResult<CheckpointMode> {
    Ok(match mode {
        "passive" => CheckpointMode::Passive,
        "full" => CheckpointMode::Full,
        "restart" => CheckpointMode::Restart,
        "truncate" => CheckpointMode::Truncate,
        _ => {
            let text = "mode must be passive, full, restart or truncate".to_owned();
            return Err(wrong(py, Kind::Programming, text));
        }
    })
}

/// The figures as Python has them.
pub fn stats_dict(py: Python<'_>, figures: Vec<(String, Figure)>) -> PyResult<Bound<'_, PyDict>> {
    let stats = PyDict::new(py);
    for (key, figure) in figures {
        match figure {
            Figure::Count(count) => stats.set_item(key, count)?,
            Figure::Milliseconds(milliseconds) => stats.set_item(key, milliseconds)?,
        }
    }
    Ok(stats)
}

/// The statements of a batch: pairs of SQL and parameters, or SQL alone.
fn batch_parts(statements: &Bound<'_, PyAny>) -> PyResult<Vec<(Arc<str>, Params)>> {
    let mut parts = Vec::new();
    let statements = statements.try_iter()?;
    while add_statement(&statements, &mut parts)? {}
    Ok(parts)
}

/// Convert one statement of a batch more; false at the end.
pub fn add_statement(statements: &Bound<'_, PyIterator>, parts: &mut Vec<(Arc<str>, Params)>) -> PyResult<bool> {
    let Some(statement) = upcall::next(statements)? else { return Ok(false) };
    if let Ok(sql) = statement.extract::<&str>() {
        parts.push((shared(sql, parts), Params::NONE));
        return Ok(true);
    }
    let pair =
        statement.cast::<PyTuple>().ok().and_then(|pair| pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>().ok());
    let Some((Ok(sql), params)) = pair.as_ref().map(|(sql, params)| (sql.extract::<&str>(), params)) else {
        let text = "batch() takes pairs of SQL and parameters".to_owned();
        return Err(wrong(statement.py(), Kind::Programming, text));
    };
    let params = convert::params(params, sql)?;
    parts.push((shared(sql, parts), params));
    Ok(true)
}

/// The text, shared with the statement before where that has the same: a batch repeats it for each row.
fn shared(sql: &str, parts: &[(Arc<str>, Params)]) -> Arc<str> {
    match parts.last() {
        Some((last, _)) if **last == *sql => Arc::clone(last),
        _ => sql.into(),
    }
}

pub fn config(py: Python<'_>, settings: &Bound<'_, PyDict>) -> PyResult<Config> {
    let mut config = Config::default();
    for (name, value) in settings.iter() {
        let name: String = name.extract()?;
        let Some(value) = setting_value(&value)? else { continue };
        config.set(&name, &value).map_err(|error: Error| raise(py, &error))?;
    }
    Ok(config)
}

fn setting_value(value: &Bound<'_, PyAny>) -> PyResult<Option<SettingValue>> {
    Ok(if value.is_none() {
        None
    } else if convert::is_bool(value) {
        Some(SettingValue::Switch(value.extract()?))
    } else if let Ok(count) = value.extract::<u64>() {
        Some(SettingValue::Count(count))
    } else if let Ok(seconds) = value.extract::<f64>() {
        Some(SettingValue::Seconds(seconds))
    } else {
        Some(SettingValue::Text(value.extract()?))
    })
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The file of a pool that nobody closed: Python has warned about it, and what was accepted is answered.
        let engine = &self.engine;
        let closed = Python::attach(|py| gil::lazily(py, || engine.close(&Call::new(&PYTHON, None))));
        drop(closed); // nobody is left to tell
    }
}
