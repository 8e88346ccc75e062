//! Calls out of Rust into Python code, from which a thread may not come back.
//!
//! When the interpreter ends, Python before 3.14 ends each other thread at the place where it next wants the GIL, by unwinding
//! its stack (`pthread_exit`). Frames of C let that pass; one of Rust aborts the process. So the thread is stopped in the
//! frame next to Python's, where 3.14 stops it too, and PyO3 where it takes the GIL itself:
//!
//! ```text
//! main thread              daemon thread
//! the program ends
//!                          in a log handler: gives the GIL up, wants it back
//!                          is unwound as far as to here, and stands still
//! the process ends
//! ```
//!
//! <https://github.com/python/cpython/issues/87135>, <https://github.com/rust-lang/rust/issues/135929>

use std::hint::black_box; // or the compiler, which knows the function, takes PyO3's word that it never unwinds
use std::mem;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyTuple};

type Object = *mut ffi::PyObject;
type Call = unsafe extern "C" fn(Object, Object, Object) -> Object;
type CallThatUnwinds = unsafe extern "C-unwind" fn(Object, Object, Object) -> Object;
type Next = unsafe extern "C" fn(Object) -> Object;
type NextThatUnwinds = unsafe extern "C-unwind" fn(Object) -> Object;

/// A frame that is not unwound any further.
struct StandStill;

impl Drop for StandStill {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// Call what may be Python code.
pub fn call<'py>(
    callable: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let kwargs = kwargs.map_or(std::ptr::null_mut(), |kwargs| kwargs.as_ptr());
    // SAFETY: the same function; only that it may unwind is said of it here.
    #[allow(unsafe_code)]
    let call_it = black_box(unsafe { mem::transmute::<Call, CallThatUnwinds>(ffi::PyObject_Call) });
    let here = StandStill;
    // SAFETY: three live objects, the last of which may be null; what comes back is a new reference, or null and an exception.
    #[allow(unsafe_code)]
    let returned = unsafe { call_it(callable.as_ptr(), args.as_ptr(), kwargs) };
    mem::forget(here);
    // SAFETY: as above.
    #[allow(unsafe_code)]
    unsafe {
        Bound::from_owned_ptr_or_err(callable.py(), returned)
    }
}

/// Call a method that may be Python code.
pub fn call_method<'py>(
    object: &Bound<'py, PyAny>,
    name: &str,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    call(&object.getattr(name)?, args, None)
}

/// The next of an iterator that may be Python code, as a generator is.
pub fn next<'py>(iterator: &Bound<'py, PyIterator>) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: the same function; only that it may unwind is said of it here.
    #[allow(unsafe_code)]
    let next_of = black_box(unsafe { mem::transmute::<Next, NextThatUnwinds>(ffi::PyIter_Next) });
    let here = StandStill;
    // SAFETY: a live iterator; what comes back is a new reference, or null with or without an exception.
    #[allow(unsafe_code)]
    let item = unsafe { next_of(iterator.as_ptr()) };
    mem::forget(here);
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let item = unsafe { Bound::from_owned_ptr_or_opt(iterator.py(), item) };
    match item {
        None => PyErr::take(iterator.py()).map_or(Ok(None), Err),
        some => Ok(some),
    }
}
