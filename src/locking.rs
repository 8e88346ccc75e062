//! What a fork leaves behind: in which generation of processes this code runs.
//!
//! A child inherits its parent's connections but none of their locks, and must not use them; see `Engine`. The number is
//! counted by a fork handler, because asking the system for the process id costs a call for every read.

use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The generation of this process: it differs from the one in which a parent opened something.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Count forks from now on. Called before a file is opened; more often than once does no harm but a higher count.
#[cfg(unix)]
pub fn watch_forks() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    ONCE.call_once(|| {
        // SAFETY: the handler only touches an atomic, which is allowed in the child of a process with threads.
        #[allow(unsafe_code)]
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}

/// There is no fork here.
#[cfg(not(unix))]
pub fn watch_forks() {}
