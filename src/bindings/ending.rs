//! Native threads that need the GIL, and the interpreter's end.
//!
//! Before Python 3.14 a thread that waits for the GIL while the interpreter ends is ended in the middle of that wait, by an
//! unwinding that must not pass Rust's frames: the process aborts. So the end waits for those who are inside, and nobody goes
//! in after it has begun:
//!
//! ```text
//! native thread                    main thread, in atexit
//! INSIDE += 1
//! CLOSED? no
//!                                  CLOSED = true
//! waits for the GIL                INSIDE > 0: gives the GIL up and waits
//! works, INSIDE -= 1
//!                                  goes on to the end
//! INSIDE += 1
//! CLOSED? yes: INSIDE -= 1, out
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::upcall;
use crate::locking::generation;

// Atomics and no mutex: a fork may find them in any state.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicBool = AtomicBool::new(false);
static IS_WATCHED: AtomicBool = AtomicBool::new(false);
static COUNTED_IN: AtomicU32 = AtomicU32::new(0); // the process, by its fork generation, whose threads INSIDE counts

struct Visit;

impl Drop for Visit {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Do something with the GIL on a native thread; None once the interpreter is ending.
pub fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let _visit = Visit;
    if CLOSED.load(Ordering::SeqCst) {
        return None;
    }
    Python::try_attach(work)
}

/// See to it that the interpreter's end waits; called before a native thread may come here.
pub fn watch(py: Python<'_>) -> PyResult<()> {
    forget_parent();
    if IS_WATCHED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let stop = pyo3::wrap_pyfunction!(stop_attaching, py)?;
    upcall::call_method(py.import("atexit")?.as_any(), "register", &PyTuple::new(py, [stop])?).map(drop)
}

/// In a child nobody is inside who was so in the parent. Under the GIL, and before the child has native threads.
fn forget_parent() {
    let process = generation();
    if COUNTED_IN.swap(process, Ordering::SeqCst) != process {
        INSIDE.store(0, Ordering::SeqCst);
    }
}

/// Let no native thread in any more, and wait for those that are.
#[pyfunction]
fn stop_attaching(py: Python<'_>) {
    forget_parent();
    CLOSED.store(true, Ordering::SeqCst);
    while INSIDE.load(Ordering::SeqCst) > 0 {
        py.detach(|| std::thread::sleep(Duration::from_millis(1)));
    }
}
