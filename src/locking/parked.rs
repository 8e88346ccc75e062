//! Descriptors that are not closed, because another SQLite library of this process has locks on their file.
//!
//! Its locks belong to the process, and our `close` would drop all of them (howtocorrupt.html, 2.2). So such a descriptor is
//! parked, and used again when SQLite opens that file; or closed, once the other library has let go.
//!
//! The places are a fixed number of atomics: a fork may come at any instant, and there is a limit to what is kept open.

use std::ffi::{c_char, c_int};
#[cfg(target_os = "linux")]
use std::fs::read_to_string;
use std::sync::atomic::{AtomicI32, Ordering};

/// As many as four engines with the usual readers may leave; further ones are closed as if nobody had locks.
const PLACES: usize = 64;
const EMPTY: c_int = -1;

static PARKED: [AtomicI32; PLACES] = [const { AtomicI32::new(EMPTY) }; PLACES];

/// Park a descriptor instead of closing it, if its file has locks of another library of this process.
pub fn park(fd: c_int) -> bool {
    has_foreign_locks(fd) && put(fd)
}

fn put(fd: c_int) -> bool {
    PARKED.iter().any(|place| place.compare_exchange(EMPTY, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok())
}

/// A parked descriptor of the file at `path` that was opened with these flags.
pub fn take(path: *const c_char, flags: c_int) -> Option<c_int> {
    if flags & libc::O_EXCL != 0 || PARKED.iter().all(|place| place.load(Ordering::Relaxed) == EMPTY) {
        return None;
    }
    let wanted = identity(|found| {
        // SAFETY: SQLite's own path; `found` is written by the call.
        #[allow(unsafe_code)]
        unsafe {
            libc::stat(path, found)
        }
    })?;
    PARKED.iter().find_map(|place| {
        let fd = place.swap(EMPTY, Ordering::Relaxed); // nobody else may take it meanwhile
        if fd == EMPTY || (identity_of(fd) == Some(wanted) && access(fd) == flags & libc::O_ACCMODE) {
            return (fd != EMPTY).then_some(fd);
        }
        // Should others have filled every place meanwhile, it stays open for good: closing it would drop their locks.
        let _ = put(fd);
        None
    })
}

/// Take out what can be closed by now.
pub fn let_go() -> impl Iterator<Item = c_int> {
    PARKED.iter().filter_map(|place| {
        let fd = place.load(Ordering::Relaxed);
        let is_free = fd != EMPTY && !has_foreign_locks(fd);
        (is_free && place.compare_exchange(fd, EMPTY, Ordering::Relaxed, Ordering::Relaxed).is_ok()).then_some(fd)
    })
}

/// Forget all of them, in a child: they are its parent's.
pub fn forget() {
    PARKED.iter().for_each(|place| place.store(EMPTY, Ordering::Relaxed));
}

fn access(fd: c_int) -> c_int {
    // SAFETY: only asks.
    #[allow(unsafe_code)]
    unsafe {
        libc::fcntl(fd, libc::F_GETFL) & libc::O_ACCMODE
    }
}

fn identity_of(fd: c_int) -> Option<(u64, u64)> {
    identity(|found| {
        // SAFETY: `found` is written by the call.
        #[allow(unsafe_code)]
        unsafe {
            libc::fstat(fd, found)
        }
    })
}

fn identity(look: impl FnOnce(*mut libc::stat) -> c_int) -> Option<(u64, u64)> {
    let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
    if look(found.as_mut_ptr()) != 0 {
        return None;
    }
    // SAFETY: the call succeeded, and so has written all of it.
    #[allow(unsafe_code)]
    let found = unsafe { found.assume_init() };
    #[allow(clippy::unnecessary_cast)] // other widths on other systems
    Some((found.st_dev as u64, found.st_ino as u64))
}

/// Whether this process has POSIX locks on the file: ours belong to descriptors, so they are another library's.
#[cfg(target_os = "linux")]
fn has_foreign_locks(fd: c_int) -> bool {
    // SAFETY: all zero is a flock over the whole file; the call writes only into it.
    #[allow(unsafe_code)]
    let found = unsafe {
        let mut lock = std::mem::zeroed::<libc::flock>();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        if libc::fcntl(fd, libc::F_OFD_GETLK, &mut lock) != 0 || lock.l_type == libc::F_UNLCK as libc::c_short {
            return false;
        }
        lock.l_pid
    };
    // It tells one lock only. Where that is another process's the kernel's list must tell.
    let process = std::process::id();
    found.cast_unsigned() == process
        || identity_of(fd).is_some_and(|(_, inode)| {
            read_to_string("/proc/locks").is_ok_and(|locks| lists_posix_lock(&locks, process, inode))
        })
}

/// Elsewhere nobody can tell whose a lock is.
#[cfg(not(target_os = "linux"))]
fn has_foreign_locks(_: c_int) -> bool {
    false
}

/// Whether the kernel's list has a POSIX lock of a process on an inode. The device is not compared: a wrong match keeps a
/// descriptor open for longer. `1: POSIX ADVISORY READ 4242 fe:00:1234 0 EOF`,
/// <https://man7.org/linux/man-pages/man5/proc_locks.5.html>
#[cfg(target_os = "linux")]
fn lists_posix_lock(locks: &str, process: u32, inode: u64) -> bool {
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(1) == Some(&"POSIX")
            && fields.get(4) == Some(&process.to_string().as_str())
            && fields.get(5).is_some_and(|at| at.rsplit(':').next() == Some(inode.to_string().as_str()))
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_its_kind_its_process_and_its_file() {
        let locks =
            "1: POSIX  ADVISORY  READ 42 fe:00:1234 1073741826 1073742335\n2: OFDLCK ADVISORY  READ -1 fe:00:7 0 EOF\n";
        let lists = |process, inode| lists_posix_lock(locks, process, inode);
        assert!(lists(42, 1234));
        assert!(!lists(43, 1234) && !lists(42, 234) && !lists(42, 7));
    }
}
