//! Mutexes and condition variables that a fork may find in any state. Must not know what they guard.
//!
//! These are the standard library's, which keep all their state in themselves: those that a child makes anew work. parking_lot
//! keeps the sleepers of a whole process in one table, and a child that inherited a locked bucket of it would wait for a
//! thread that it does not have. A panic in a holder does not poison: what is guarded here is whole after each statement.

#![allow(clippy::disallowed_types)] // this is the one place

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

/// A place to sleep until something changes.
#[derive(Default)]
pub struct Condvar(std::sync::Condvar);

impl Condvar {
    /// A place where nobody sleeps.
    pub const fn new() -> Self {
        Condvar(std::sync::Condvar::new())
    }

    /// Wake one sleeper.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wake every sleeper.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Sleep, the mutex unlocked meanwhile. May wake for nothing.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// As `wait`, until `deadline` at most; true if that has passed.
    pub fn wait_until<'a, T>(&self, guard: MutexGuard<'a, T>, deadline: Instant) -> (MutexGuard<'a, T>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        let (guard, _) = self.0.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
        (guard, Instant::now() >= deadline)
    }
}
