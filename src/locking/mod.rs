//! SQLite's file-lock system calls: OFD locks, fork generations. Must not know anything above SQLite.
//!
//! POSIX record locks belong to a process, and any `close` of a file in that process drops all of them: a second SQLite
//! library, `open(db).read()` or a copy of the file would take our locks away (<https://www.sqlite.org/howtocorrupt.html>,
//! 2.2). Locks of an open file description (OFD) belong to the descriptor. So SQLite's own calls are replaced, before its
//! first open, by the ones below.
//!
//! A forked child has SQLite's table of files, which says that it holds locks, and does not hold them:
//!
//! ```text
//! parent                             child
//! open, lock, map the WAL's index
//! fork                               generation + 1; inherited descriptors lead to /dev/null
//! goes on                            never uses, closes or finishes what it inherited
//!                                    open: its inode numbers are salted with the generation, so that its SQLite makes
//!                                    new entries in the table and takes real locks
//! ```

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::error::{Error, Kind, Result};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The generation of this process: it differs from the one in which a parent opened something.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// A thing that belongs to the process that made it: a child that inherited it neither uses it nor drops it.
pub struct OfThisProcess<T> {
    thing: std::mem::ManuallyDrop<T>,
    generation: u32,
}

impl<T> OfThisProcess<T> {
    /// Take hold of something that this process has made.
    pub fn new(thing: T) -> Self {
        OfThisProcess { thing: std::mem::ManuallyDrop::new(thing), generation: generation() }
    }

    /// Whether a parent made it.
    pub fn is_inherited(&self) -> bool {
        self.generation != generation()
    }

    /// The thing, in the process that made it.
    ///
    /// # Errors
    /// `Interface` in a child.
    pub fn get(&self) -> Result<&T> {
        if self.is_inherited() { Err(inherited()) } else { Ok(&self.thing) }
    }
}

impl<T> OfThisProcess<T> {
    /// Take the thing out, for an end that can fail; in a child it is forgotten.
    pub fn into_inner(mut self) -> Result<T> {
        self.get()?;
        // SAFETY: `self` is forgotten, so that nobody takes or drops it again.
        #[allow(unsafe_code)]
        let thing = unsafe { std::mem::ManuallyDrop::take(&mut self.thing) };
        std::mem::forget(self);
        Ok(thing)
    }
}

impl<T> Deref for OfThisProcess<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.thing
    }
}

impl<T> DerefMut for OfThisProcess<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.thing
    }
}

impl<T> Drop for OfThisProcess<T> {
    fn drop(&mut self) {
        if !self.is_inherited() {
            // SAFETY: it is dropped here only, and nobody can use it afterwards.
            #[allow(unsafe_code)]
            unsafe {
                std::mem::ManuallyDrop::drop(&mut self.thing);
            }
        }
    }
}

/// What a child is told that uses something its parent has open.
pub fn inherited() -> Error {
    let text =
        "it was begun by the parent process, before a fork, and belongs to that; begin a new one in this process";
    Error::new(Kind::Interface, text)
}

/// Which kind of locks this process takes.
const UNKNOWN: u8 = 0; // OFD is tried first
const OFD: u8 = 1;
#[cfg(unix)]
const POSIX: u8 = 2;

static KIND: AtomicU8 =
    AtomicU8::new(if cfg!(any(target_os = "linux", target_os = "macos")) { UNKNOWN } else { POSIX });

/// Whether the locks taken here belong to descriptors, so that nobody else in this process can drop them. Known once the first
/// one was taken: else they are POSIX ones, because the kernel or the system has no others.
pub fn has_ofd_locks() -> bool {
    KIND.load(Ordering::Relaxed) == OFD
}

/// What must stand still while a process forks: taken before, let go in both processes afterwards.
pub struct Still {
    /// Take it, on the forking thread.
    pub hold: fn(),
    /// Let it go, on that thread, in the parent and in the child.
    pub release: fn(),
}

static STILL: OnceLock<Still> = OnceLock::new();

/// Replace SQLite's system calls and watch forks, from the first call on.
///
/// # Errors
/// `NotSupported` where SQLite has no Unix file system to speak to.
pub fn install(still: Still) -> Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    // Registered after the calls were replaced: the fork handlers must find nothing half done.
    let is_done = *DONE.get_or_init(|| {
        let is_replaced = system::replace_calls();
        if is_replaced && STILL.set(still).is_ok() {
            system::watch_forks();
        }
        is_replaced
    });
    if is_done { Ok(()) } else { Err(Error::new(Kind::NotSupported, "SQLite's system calls could not be replaced")) }
}

#[cfg(all(unix, target_pointer_width = "64"))]
mod parked;
#[cfg(all(unix, target_pointer_width = "64"))]
mod system;

/// Locks belong to handles here, and there is no fork.
#[cfg(not(all(unix, target_pointer_width = "64")))]
mod system {
    pub(super) fn replace_calls() -> bool {
        true
    }
    pub(super) fn watch_forks() {}
}
