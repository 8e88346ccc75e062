//! Where the native threads put what an event loop waits for: one mailbox for each loop and pool.
//!
//! ```text
//! event loop                       native threads
//! begin: a future, a number
//! goes on with other tasks         put (1): the box was empty -> ring
//!                                  put (2)
//! is woken by its selector         put (3)
//! drain: takes 1, 2, 3 and
//! settles their futures
//! ```
//!
//! The bell is a descriptor that the loop's selector watches, so that a native thread never needs the GIL, which a busy loop
//! gives away each 5 ms only. Where a loop watches no descriptors (Windows' proactor) a thread of its own calls
//! `call_soon_threadsafe`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::bell::Bell;
use super::errors::raise;
use super::turns::Turns;
use super::{ending, log, upcall};
use crate::engine::{Engine, Expiry, Waiting};
use crate::error::{self, Error, Kind, Outcome};
use crate::locking::generation;
use crate::sync::Mutex;
use crate::workers::spawn;

/// Settling futures may keep the loop for this long; what is left waits for the loop's next turn.
const MOST_OF_A_TURN: Duration = Duration::from_micros(500);
/// What becomes a Python object on the loop's thread.
type Convert = Box<dyn for<'py> FnOnce(Python<'py>) -> PyResult<Bound<'py, PyAny>> + Send>;

/// The part of a mailbox that native threads know. Knows no Python objects.
pub struct Inbox {
    done: Mutex<VecDeque<(u64, Convert)>>,
    is_closed: AtomicBool,
    bell: Bell,
}

impl Inbox {
    fn new() -> PyResult<Self> {
        Ok(Inbox { done: Mutex::default(), is_closed: AtomicBool::new(false), bell: Bell::new()? })
    }

    fn put(&self, number: u64, convert: Convert) {
        let was_empty = {
            let mut done = self.done.lock();
            done.push_back((number, convert));
            done.len() == 1
        };
        if self.is_closed.load(Ordering::SeqCst) {
            drop(self.take()); // what it holds, such as a snapshot, goes back: nobody will look
        } else if was_empty {
            self.bell.ring();
        }
    }

    /// Keep nothing from now on.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        drop(self.take());
    }

    fn take(&self) -> VecDeque<(u64, Convert)> {
        std::mem::take(&mut *self.done.lock())
    }

    fn put_back(&self, mut rest: VecDeque<(u64, Convert)>) {
        let mut done = self.done.lock();
        rest.append(&mut done);
        *done = rest;
        drop(done);
        self.bell.ring();
    }
}

/// Sends one result to the loop that waits for it; dropped unsent, it sends an error: nobody is left unanswered.
pub struct Reply(Option<(Arc<Inbox>, u64)>);

impl Reply {
    /// Send it, to be converted on the loop's thread.
    pub fn send<T: Send + 'static>(
        mut self,
        done: error::Result<T>,
        convert: impl for<'py> FnOnce(Python<'py>, T) -> PyResult<Bound<'py, PyAny>> + Send + 'static,
    ) {
        if let Some((inbox, number)) = self.0.take() {
            inbox.put(number, make(done, convert));
        }
    }

    /// A closure that sends what it is called with.
    pub fn with<T: Send + 'static>(
        self,
        convert: impl for<'py> FnOnce(Python<'py>, T) -> PyResult<Bound<'py, PyAny>> + Send + 'static,
    ) -> impl FnOnce(error::Result<T>) + Send + 'static {
        move |done| self.send(done, convert)
    }
}

fn make<T: Send + 'static>(
    done: error::Result<T>,
    convert: impl for<'py> FnOnce(Python<'py>, T) -> PyResult<Bound<'py, PyAny>> + Send + 'static,
) -> Convert {
    Box::new(move |py| match done {
        Ok(done) => convert(py, done),
        Err(error) => Err(raise(py, &error)),
    })
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some((inbox, number)) = self.0.take() {
            let text = "the pool was closed, or a thread of it stopped, before this was done";
            let error = Error::new(Kind::WriterStopped, text).with_outcome(Outcome::Unknown);
            inbox.put(number, make::<()>(Err(error), |py, ()| Ok(py.None().into_bound(py))));
        }
    }
}

/// Tell a future, unless whoever waited for it was cancelled.
fn settle<'py>(future: &Bound<'py, PyAny>, result: PyResult<Bound<'py, PyAny>>) -> PyResult<()> {
    let py = future.py();
    if future.call_method0(intern!(py, "done"))?.is_truthy()? {
        return Ok(());
    }
    let fail = |error: PyErr| {
        upcall::call_method(future, "set_exception", &PyTuple::new(py, [error.into_value(py)])?).map(drop)
    };
    match result {
        Ok(object) => upcall::call_method(future, "set_result", &PyTuple::new(py, [object])?).map(drop),
        // No future takes StopIteration, which a row factory may raise: the refusal says so.
        Err(error) => fail(error).or_else(fail),
    }
}

/// The mailbox of a block that is open: its loop goes on watching until the block is over.
pub struct OfBlock(Py<Mailbox>);

impl OfBlock {
    /// For one more block.
    pub fn of(mailbox: Py<Mailbox>) -> Self {
        mailbox.get().open_blocks.fetch_add(1, Ordering::AcqRel);
        OfBlock(mailbox)
    }

    /// The mailbox.
    pub fn bind<'py>(&self, py: Python<'py>) -> &Bound<'py, Mailbox> {
        self.0.bind(py)
    }
}

impl Drop for OfBlock {
    fn drop(&mut self) {
        self.0.get().open_blocks.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Pending {
    future: Py<PyAny>,
    waiting: Option<Waiting>,
    engine: Option<Arc<Engine>>, // whose log is taken when it is done
}

/// One event loop's mailbox. Only `Inbox` is touched by other threads.
#[pyclass(frozen, weakref, module = "walpool._core")]
pub struct Mailbox {
    inbox: Arc<Inbox>,
    process: u32,
    pending: Mutex<HashMap<u64, Pending>>,
    next_number: AtomicU64,
    is_closed: AtomicBool,
    open_blocks: AtomicUsize,
    timer: Mutex<Option<(Instant, Py<PyAny>)>>, // the one that is armed, and the loop's handle on it
    turns: Mutex<Turns>,
    asides: Mutex<Vec<JoinHandle<()>>>,
    create_future: Py<PyAny>,
    call_soon: Py<PyAny>,
    call_later: Py<PyAny>,
}

#[pymethods]
impl Mailbox {
    /// For one event loop; whoever makes it has the loop watch `fileno`, or calls `ring_by`.
    #[new]
    fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        ending::watch(event_loop.py())?;
        Ok(Mailbox {
            inbox: Arc::new(Inbox::new()?),
            process: generation(),
            pending: Mutex::default(),
            next_number: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            open_blocks: AtomicUsize::new(0),
            timer: Mutex::default(),
            turns: Mutex::default(),
            asides: Mutex::default(),
            create_future: event_loop.getattr("create_future")?.unbind(),
            call_soon: event_loop.getattr("call_soon")?.unbind(),
            call_later: event_loop.getattr("call_later")?.unbind(),
        })
    }

    /// The descriptor that is readable when `drain` has something to do; -1 where the system has none.
    fn fileno(&self) -> i32 {
        self.inbox.bell.fileno()
    }

    /// Have a thread of its own ring, by calling `call_soon_threadsafe(drain)`.
    fn ring_by(slf: &Bound<'_, Self>, call_soon_threadsafe: Py<PyAny>) -> PyResult<()> {
        let drain = slf.getattr("drain")?.unbind();
        let rung = slf.get().inbox.bell.ring_by(call_soon_threadsafe, drain);
        rung.map_err(|error| raise(slf.py(), &error))
    }

    /// Settle the futures of what is done.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.inbox.bell.hush();
        let began = Instant::now();
        let mut done = self.inbox.take();
        while let Some((number, convert)) = done.pop_front() {
            let settled = self.settle(py, number, convert);
            if !done.is_empty() && (settled.is_err() || began.elapsed() > MOST_OF_A_TURN) {
                self.inbox.put_back(done);
                return settled;
            }
            settled?;
        }
        Ok(())
    }

    /// A future for a task that has read beyond its share: it may go on when the future is done.
    fn turn<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let future = self.create_future.bind(py).call0()?;
        self.turns.lock().wait(future.clone().unbind());
        Ok(future)
    }

    /// The loop's next turn has come: some of the tasks that wait may read on its thread again.
    fn begin_turn(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (this, py) = (slf.get(), slf.py());
        let (again, is_due) = this.turns.lock().next();
        let settled = again.iter().try_for_each(|future| settle(future.bind(py), Ok(py.None().into_bound(py))));
        if is_due {
            this.call_soon(slf.getattr(intern!(py, "begin_turn"))?)?; // behind the tasks that go on now
        }
        settled
    }

    /// As `drain`, however long it takes: the mailbox is about to be closed.
    fn drain_all(&self, py: Python<'_>) -> PyResult<()> {
        self.settle_all(py, &self.inbox)
    }

    /// Give up what was begun under this number, if it is not done.
    fn withdraw(&self, number: u64) {
        if self.is_inherited() {
            return; // what a parent began goes on there
        }
        let pending = self.pending.lock().remove(&number);
        if let Some(waiting) = pending.and_then(|pending| pending.waiting) {
            waiting.cancel();
        }
    }

    /// Tell those whose time is over; the loop's timer calls it.
    fn expire(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if this.is_inherited() {
            return Ok(());
        }
        drop(this.timer.lock().take());
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for pending in this.pending.lock().values_mut() {
            let Some(waiting) = &pending.waiting else { continue };
            if waiting.deadline().is_none() {
                continue;
            }
            match waiting.expire(now) {
                Expiry::Until(deadline) => next = Some(next.map_or(deadline, |next| next.min(deadline))),
                Expiry::Settled => {}
            }
        }
        next.map_or(Ok(()), |deadline| this.see_to(slf, deadline))
    }

    /// Calls that wait for an answer, and blocks that are open.
    #[getter]
    fn waiting(&self) -> usize {
        self.pending.lock().len() + self.turns.lock().waiting() + self.open_blocks.load(Ordering::Acquire)
    }

    /// Give up whatever waits, because its loop is closed: nobody will hear of it.
    fn close(&self, py: Python<'_>) {
        if self.is_inherited() {
            return;
        }
        let timer = self.timer.lock().take(); // it knows this mailbox, which so would never go
        if let Some((_, handle)) = timer {
            // A loop that is closed needs no cancelling.
            let _ = handle.bind(py).call_method0(intern!(py, "cancel"));
        }
        self.is_closed.store(true, Ordering::Release);
        self.turns.lock().clear();
        let pending = std::mem::take(&mut *self.pending.lock());
        pending.values().filter_map(|pending| pending.waiting.as_ref()).for_each(Waiting::cancel);
        self.inbox.bell.close();
        self.inbox.close();
    }
}

impl Mailbox {
    /// Whether a parent made it, whose threads and locks are not here.
    fn is_inherited(&self) -> bool {
        self.process != generation()
    }

    /// Begin something; returns its number and the future of its result.
    pub fn begin<'py>(
        slf: &Bound<'py, Self>,
        engine: Option<Arc<Engine>>,
        start: impl FnOnce(Reply) -> error::Result<Waiting>,
    ) -> PyResult<(i64, Bound<'py, PyAny>)> {
        let (py, this) = (slf.py(), slf.get());
        let future = this.create_future.bind(py).call0()?;
        let number = this.next_number.fetch_add(1, Ordering::Relaxed);
        // Before it starts: a native thread may be done with it at once.
        this.pending.lock().insert(number, Pending { future: future.clone().unbind(), waiting: None, engine });
        // No loop looks into a closed one. A parent's thread may have held the inherited one when it forked.
        let is_deaf = this.is_closed.load(Ordering::Acquire) || this.is_inherited();
        let inbox = if is_deaf { Arc::new(Inbox::new()?) } else { Arc::clone(&this.inbox) };
        let waiting = match start(Reply(Some((Arc::clone(&inbox), number)))) {
            Ok(waiting) => waiting,
            Err(error) => {
                this.pending.lock().remove(&number);
                return Err(raise(py, &error));
            }
        };
        let deadline = waiting.deadline();
        if let Some(pending) = this.pending.lock().get_mut(&number) {
            pending.waiting = Some(waiting);
        }
        deadline.map_or(Ok(()), |deadline| this.see_to(slf, deadline))?;
        if is_deaf {
            this.settle_all(py, &inbox)?; // no loop watches it; what is closed, or a parent's, answers at once
        }
        Ok((number as i64, future))
    }

    /// As `begin`, for blocking work on a thread that is started for it.
    pub fn aside<'py>(
        slf: &Bound<'py, Self>,
        name: &str,
        work: impl FnOnce(Reply) + Send + 'static,
    ) -> PyResult<(i64, Bound<'py, PyAny>)> {
        Self::begin(slf, None, |reply| {
            let mut asides = slf.get().asides.lock();
            asides.retain(|thread| !thread.is_finished());
            asides.push(spawn(name, move || work(reply))?);
            Ok(Waiting::for_its_end())
        })
    }

    /// Have the loop call something in its next turn.
    pub fn call_soon(&self, callback: Bound<'_, PyAny>) -> PyResult<()> {
        self.call_soon.bind(callback.py()).call1((callback,)).map(drop)
    }

    /// Count what a read took on the loop's thread; true if its task should let the others take their turns.
    pub fn spend(slf: &Bound<'_, Self>, took: Duration) -> PyResult<bool> {
        let this = slf.get();
        let (is_over, is_due) = this.turns.lock().spend(took);
        if is_due {
            this.call_soon(slf.getattr(intern!(slf.py(), "begin_turn"))?)?;
        }
        Ok(is_over)
    }

    fn settle_all(&self, py: Python<'_>, inbox: &Inbox) -> PyResult<()> {
        let settled = inbox.take().into_iter().map(|(number, convert)| self.settle(py, number, convert));
        settled.fold(Ok(()), Result::and)
    }

    fn settle(&self, py: Python<'_>, number: u64, convert: Convert) -> PyResult<()> {
        let pending = self.pending.lock().remove(&number);
        let result = convert(py); // also where nobody waits: what it makes gives back what it holds
        let Some(pending) = pending else { return Ok(()) };
        let future = pending.future.bind(py);
        settle(future, result)?;
        pending.engine.map_or(Ok(()), |engine| log::tell(py, &engine))
    }

    /// See to it that the loop looks at what waits when this deadline has passed.
    fn see_to(&self, slf: &Bound<'_, Self>, deadline: Instant) -> PyResult<()> {
        let replaced = {
            let mut timer = self.timer.lock();
            if timer.as_ref().is_some_and(|(at, _)| *at <= deadline) {
                return Ok(());
            }
            timer.take()
        };
        if let Some((_, handle)) = replaced {
            handle.bind(slf.py()).call_method0(intern!(slf.py(), "cancel"))?; // else it would arm another when it fires
        }
        let seconds = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let expire = slf.getattr(intern!(slf.py(), "expire"))?;
        let handle = self.call_later.bind(slf.py()).call1((seconds, expire))?;
        *self.timer.lock() = Some((deadline, handle.unbind()));
        Ok(())
    }
}
