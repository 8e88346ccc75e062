//! How a native thread wakes an event loop: by a descriptor that the loop watches, without the GIL.

use pyo3::prelude::*;

use super::ending;
use crate::error::{Error, Kind, Result};
use crate::sync::{Condvar, Mutex};
use crate::workers::spawn;
use std::sync::Arc;

/// A bell for one loop.
pub struct Bell {
    wire: wire::Wire,
    ringer: Mutex<Option<Arc<Ringer>>>,
}

/// A thread that calls `call_soon_threadsafe`, for loops that watch no descriptors.
#[derive(Default)]
struct Ringer {
    state: Mutex<(bool, bool)>, // rung, closed
    changed: Condvar,
}

impl Bell {
    /// A bell that nobody hears yet.
    pub fn new() -> PyResult<Bell> {
        Ok(Bell { wire: wire::Wire::new()?, ringer: Mutex::default() })
    }

    /// The descriptor that is readable once it was rung; -1 if there is none.
    pub fn fileno(&self) -> i32 {
        self.wire.fileno()
    }

    /// Wake the loop. Called with no lock held, and without the GIL.
    pub fn ring(&self) {
        let ringer = self.ringer.lock().clone();
        match ringer {
            Some(ringer) => {
                ringer.state.lock().0 = true;
                ringer.changed.notify_one();
            }
            None => self.wire.ring(),
        }
    }

    /// Make it ring anew the next time.
    pub fn hush(&self) {
        self.wire.hush();
    }

    /// Ring through this from now on.
    pub fn ring_by(&self, call_soon_threadsafe: Py<PyAny>, drain: Py<PyAny>) -> Result<()> {
        let ringer = Arc::new(Ringer::default());
        let heard = Arc::clone(&ringer);
        // It ends when the mailbox is closed, or the loop. Nobody can wait for it: it may be waiting for the GIL.
        let thread = spawn("walpool-bell", move || {
            while heard.wait() {
                let call = |py: Python<'_>| call_soon_threadsafe.call1(py, (&drain,)).is_ok();
                if ending::attach(call) != Some(true) {
                    return; // the loop is closed, or the interpreter is ending
                }
            }
        })?;
        drop(thread);
        *self.ringer.lock() = Some(ringer);
        Ok(())
    }

    /// End the thread, if there is one.
    pub fn close(&self) {
        if let Some(ringer) = self.ringer.lock().take() {
            ringer.state.lock().1 = true;
            ringer.changed.notify_one();
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ringer {
    /// Sleep until rung; false once it is closed.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.0 && !state.1 {
            state = self.changed.wait(state);
        }
        state.0 = false;
        !state.1
    }
}

fn no_wire(error: &std::io::Error) -> Error {
    Error::new(Kind::Operational, format!("no descriptor for an event loop's mailbox: {error}"))
}

#[cfg(target_os = "linux")]
mod wire {
    use std::os::fd::{AsRawFd, OwnedFd};

    use pyo3::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{read, write};

    pub(super) struct Wire(OwnedFd);

    impl Wire {
        pub(super) fn new() -> PyResult<Self> {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let made = eventfd(0, flags).map_err(|error| super::no_wire(&error.into()));
            made.map(Wire).map_err(|error| Python::attach(|py| super::super::errors::raise(py, &error)))
        }

        pub(super) fn fileno(&self) -> i32 {
            self.0.as_raw_fd()
        }

        pub(super) fn ring(&self) {
            // It fails only where it has been rung 2^64 times and not been heard.
            let _ = write(&self.0, &1_u64.to_ne_bytes());
        }

        pub(super) fn hush(&self) {
            // It fails where it was not rung.
            let _ = read(&self.0, &mut [0_u8; 8]);
        }
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod wire {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use pyo3::prelude::*;

    pub(super) struct Wire {
        near: UnixStream,
        far: UnixStream,
    }

    impl Wire {
        pub(super) fn new() -> PyResult<Self> {
            let make = || {
                let (near, far) = UnixStream::pair()?;
                near.set_nonblocking(true)?;
                far.set_nonblocking(true)?;
                Ok(Wire { near, far })
            };
            let made = make().map_err(|error| super::no_wire(&error));
            made.map_err(|error| Python::attach(|py| super::super::errors::raise(py, &error)))
        }

        pub(super) fn fileno(&self) -> i32 {
            self.near.as_raw_fd()
        }

        pub(super) fn ring(&self) {
            // It fails where the pipe is full, and then it has been rung.
            let _ = (&self.far).write(&[1]);
        }

        pub(super) fn hush(&self) {
            let mut rung = [0_u8; 64];
            while matches!((&self.near).read(&mut rung), Ok(64)) {}
        }
    }
}

#[cfg(not(unix))]
mod wire {
    use pyo3::prelude::*;

    /// Loops watch no descriptors here that a thread could write to.
    pub(super) struct Wire;

    impl Wire {
        pub(super) fn new() -> PyResult<Self> {
            Ok(Wire)
        }

        pub(super) fn fileno(&self) -> i32 {
            -1
        }

        pub(super) fn ring(&self) {}

        pub(super) fn hush(&self) {}
    }
}
