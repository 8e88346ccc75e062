//! As much of parking_lot as r2d2 and its thread pool use, on the standard library's mutexes. It takes parking_lot's place in
//! this build (`[patch.crates-io]` in Cargo.toml).
//!
//! parking_lot keeps the sleepers of a whole process in one table. A forked child inherits the table with threads in it that
//! it does not have, and gives their memory to new ones: a list there may then lead to itself, and whoever walks it never
//! comes back. The standard library's mutexes keep all their state in themselves.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A mutex that is not poisoned.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

/// Unlocks when it is dropped. Empty only while a condition variable sleeps with it.
pub struct MutexGuard<'a, T>(Option<std::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    /// Wait for it and lock it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

const ASLEEP: &str = "the guard is with a condition variable";

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().expect(ASLEEP)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_deref_mut().expect(ASLEEP)
    }
}

/// Whether a wait ended because its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether the time was over.
    pub fn timed_out(self) -> bool {
        self.0
    }
}

/// A condition variable.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// One on which nobody sleeps.
    pub const fn new() -> Self {
        Condvar(std::sync::Condvar::new())
    }

    /// Wake one sleeper. Whether there was one is not known here, and nobody asks.
    pub fn notify_one(&self) -> bool {
        self.0.notify_one();
        false
    }

    /// Wake every sleeper. How many there were is not known here, and nobody asks.
    pub fn notify_all(&self) -> usize {
        self.0.notify_all();
        0
    }

    /// Sleep, the mutex unlocked meanwhile.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect(ASLEEP);
        guard.0 = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    /// As `wait`, for so long at most.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
        let held = guard.0.take().expect(ASLEEP);
        let (held, result) = self.0.wait_timeout(held, timeout).unwrap_or_else(PoisonError::into_inner);
        guard.0 = Some(held);
        WaitTimeoutResult(result.timed_out())
    }

    /// As `wait`, until then at most.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }
}
