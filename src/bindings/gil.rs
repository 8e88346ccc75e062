//! The GIL, given up lazily: once a call, when the engine says that it waits or that its budget is used up.
//!
//! ```text
//! bindings                      engine
//! lazily: GIL held
//!                               short statement: nothing is said, the GIL is never given up
//!                               about_to_wait / budget_used  -> PyEval_SaveThread
//!                               ... waits, reads, commits; locks are taken and given back
//! lazily returns: takes it back -> PyEval_RestoreThread
//! ```
//!
//! Two rules make it safe. Nobody blocks on an engine lock while holding the GIL: the engine tries, else tells first. Nobody
//! asks for the GIL while holding an engine lock or the writer: it is taken back here, when the engine has returned, or in
//! `is_interrupted`, which the engine asks only with empty hands.
//!
//! PyO3's `Python::detach` gives the GIL up for a whole closure; a wait that only shows in the middle of a statement needs
//! the two C functions themselves. This file is the one place that calls them.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::upcall;
use crate::caller::Caller;
use crate::locking::generation;

thread_local! {
    /// What PyEval_SaveThread returned on this thread; null while the GIL is held.
    static SAVED: Cell<*mut ffi::PyThreadState> = const { Cell::new(ptr::null_mut()) };
    /// What a signal handler raised while the engine was asked to go on.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
    /// Whether waiting was dear when the GIL was given up.
    static WAS_DEAR: Cell<bool> = const { Cell::new(false) };
    /// Whether this is Python's main thread, and in which process that was asked: a fork makes its thread the main one.
    static IS_MAIN: Cell<Option<(u32, bool)>> = const { Cell::new(None) };
}

/// Having the GIL back takes up to a switch interval (5 ms) beside a busy Python thread, and well under one among threads
/// that wait on each other.
const DEAR: Duration = Duration::from_millis(2);
/// For how long the last dear wait is remembered; then one call in a hundred milliseconds tries again.
const DEAR_FOR_MS: u64 = 100;

static DEAR_UNTIL_MS: AtomicU64 = AtomicU64::new(0);
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now_ms() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The Python thread that called into the engine.
pub struct PythonThread;

/// The one caller that the bindings hand down.
pub static PYTHON: PythonThread = PythonThread;

impl Caller for PythonThread {
    fn about_to_wait(&self) -> bool {
        give_up()
    }

    fn budget_used(&self) -> bool {
        give_up()
    }

    fn is_waiting_dear(&self) -> bool {
        let until = DEAR_UNTIL_MS.load(Ordering::Relaxed);
        until != 0 && now_ms() < until
    }

    /// Python runs signal handlers on its main thread alone.
    fn can_be_interrupted(&self) -> bool {
        is_known_main()
    }

    fn is_interrupted(&self) -> bool {
        let had_given_up = take_back();
        let raised = Python::attach(|py| py.check_signals().err());
        let is_raised = raised.is_some();
        if is_raised {
            RAISED.replace(raised);
        }
        if had_given_up {
            give_up();
        }
        is_raised
    }
}

/// Run the engine's work on this thread, the GIL held until the engine gives it up, and held again afterwards.
pub fn lazily<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
    let process = generation();
    if IS_MAIN.get().is_none_or(|(asked_in, _)| asked_in != process) {
        IS_MAIN.set(Some((process, is_main_thread(py))));
    }
    let _back = TakeBack; // also when `work` unwinds
    work()
}

/// Run the handlers of signals that came during the call, while its outcome is at hand. Does nothing but on the main thread.
pub fn hear_signals(py: Python<'_>) {
    if is_known_main()
        && let Err(raised) = py.check_signals()
    {
        RAISED.replace(Some(raised));
    }
}

/// The exception that a signal handler raised during the last call, if one did.
pub fn take_raised() -> Option<PyErr> {
    RAISED.take()
}

struct TakeBack;

impl Drop for TakeBack {
    fn drop(&mut self) {
        take_back();
    }
}

fn is_known_main() -> bool {
    IS_MAIN.get().is_some_and(|(_, is_main)| is_main)
}

fn is_main_thread(py: Python<'_>) -> bool {
    let ask = || -> PyResult<bool> {
        let threading = py.import("threading")?;
        let ask = |what| upcall::call_method(threading.as_any(), what, &PyTuple::empty(py));
        ask("get_ident")?.eq(ask("main_thread")?.getattr("ident")?)
    };
    ask().unwrap_or(false) // an interpreter without `threading` has no Ctrl-C to hear either
}

fn give_up() -> bool {
    if !SAVED.get().is_null() {
        return false;
    }
    // SAFETY: inside `lazily`, which was given the token of the GIL, and it has not been given up since.
    #[allow(unsafe_code)]
    SAVED.set(unsafe { ffi::PyEval_SaveThread() });
    WAS_DEAR.set(PYTHON.is_waiting_dear());
    true
}

fn take_back() -> bool {
    let saved = SAVED.replace(ptr::null_mut());
    if saved.is_null() {
        return false;
    }
    let asked = Instant::now();
    // SAFETY: `saved` came from PyEval_SaveThread on this thread, and is restored once.
    #[allow(unsafe_code)]
    unsafe {
        ffi::PyEval_RestoreThread(saved);
    }
    // What was given up in a dear time does not make it longer: writers that then run one after the other, each for a switch
    // interval, would keep it dear for ever.
    if asked.elapsed() > DEAR && !WAS_DEAR.get() {
        DEAR_UNTIL_MS.store(now_ms() + DEAR_FOR_MS, Ordering::Relaxed);
    }
    true
}
