//! Mutexes and condition variables that a fork may find in any state. Must not know what they guard.
//!
//! These are the standard library's, which keep all their state in themselves: those that a child makes anew work. parking_lot
//! keeps the sleepers of a whole process in one table, which leads a child astray that inherited it (`.cargo/parking_lot`).
//! A panic in a holder does not poison: what is guarded here is whole after each statement.

#![allow(clippy::disallowed_types)] // this is the one place

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, TryLockError};
use std::time::Instant;

pub use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// A mutex.
#[derive(Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// An unlocked mutex.
    pub const fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    /// Wait for it and lock it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lock it if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A lock for many readers or one writer.
pub struct RwLock<T>(std::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        RwLock(std::sync::RwLock::new(value))
    }

    /// Wait for it and read.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for it and write.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place to sleep until something changes. Waking nobody is free: the standard library's asks the system each time.
#[derive(Default)]
pub struct Condvar {
    place: std::sync::Condvar,
    /// Counted with the mutex held, before it is let go. So whoever has changed what it guards, and wakes afterwards, either
    /// sees the sleeper here, or the sleeper has seen the change.
    sleepers: AtomicUsize,
}

impl Condvar {
    /// A place where nobody sleeps.
    pub const fn new() -> Self {
        Condvar { place: std::sync::Condvar::new(), sleepers: AtomicUsize::new(0) }
    }

    /// Wake one sleeper. Called with the mutex held, or after it was held.
    pub fn notify_one(&self) {
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.place.notify_one();
        }
    }

    /// Wake every sleeper. Called with the mutex held, or after it was held.
    pub fn notify_all(&self) {
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.place.notify_all();
        }
    }

    /// Sleep, the mutex unlocked meanwhile. May wake for nothing.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        let guard = self.place.wait(guard).unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// As `wait`, until `deadline` at most; true if that has passed.
    pub fn wait_until<'a, T>(&self, guard: MutexGuard<'a, T>, deadline: Instant) -> (MutexGuard<'a, T>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        let (guard, _) = self.place.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        (guard, Instant::now() >= deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    /// ```text
    /// sleeper                          waker
    /// locks, finds 0, counts itself
    /// lets go and sleeps
    ///                                  locks, adds one, lets go, wakes
    /// ```
    #[test]
    fn nobody_who_sleeps_is_overlooked() {
        let shared = Arc::new((Mutex::new(0), Condvar::new(), Condvar::new()));
        let waker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .spawn(move || {
                let (number, is_more, is_less) = &*waker;
                for _ in 0..20_000 {
                    let mut guard = number.lock();
                    while *guard == 1 {
                        guard = is_less.wait(guard);
                    }
                    *guard = 1;
                    drop(guard);
                    is_more.notify_one();
                }
            })
            .unwrap();
        let (number, is_more, is_less) = &*shared;
        for _ in 0..20_000 {
            let mut guard = number.lock();
            let deadline = Instant::now() + Duration::from_secs(20);
            while *guard == 0 {
                let is_over;
                (guard, is_over) = is_more.wait_until(guard, deadline);
                assert!(!is_over, "overlooked");
            }
            *guard = 0;
            drop(guard);
            is_less.notify_all();
        }
        thread.join().unwrap();
    }
}
