//! What stands between SQLite and the system, and what happens at a fork.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::ffi;

use super::{GENERATION, KIND, OFD, POSIX, STILL, generation, parked};

#[cfg(target_os = "linux")]
const TO_OFD: [(c_int, c_int); 3] =
    [(libc::F_SETLK, libc::F_OFD_SETLK), (libc::F_SETLKW, libc::F_OFD_SETLKW), (libc::F_GETLK, libc::F_OFD_GETLK)];
/// Not in Apple's public headers, but in its own SQLite: <https://github.com/apple-oss-distributions/xnu>, `bsd/sys/fcntl.h`.
#[cfg(target_os = "macos")]
const TO_OFD: [(c_int, c_int); 3] = [(libc::F_SETLK, 90), (libc::F_SETLKW, 91), (libc::F_GETLK, 92)];
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
const TO_OFD: [(c_int, c_int); 0] = [];

/// Descriptors that SQLite has open, a bit for each number; those past the end are not known.
static OURS: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
const WORDS: usize = 1024; // 65 536 descriptors, past the usual limits

type Call = unsafe extern "C" fn();

fn note(fd: c_int, is_open: bool) {
    let Ok(number) = usize::try_from(fd) else { return };
    let Some(word) = OURS.get(number / 64) else { return };
    let bit = 1 << (number % 64);
    if is_open {
        word.fetch_or(bit, Ordering::Relaxed)
    } else {
        word.fetch_and(!bit, Ordering::Relaxed)
    };
}

extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    if let Some(fd) = parked::take(path, flags) {
        return fd;
    }
    // SAFETY: SQLite's own arguments, for the call that it meant to make.
    #[allow(unsafe_code)]
    let fd = unsafe { libc::open(path, flags, mode) };
    note(fd, true);
    fd
}

extern "C" fn close(fd: c_int) -> c_int {
    parked::let_go().for_each(|free| {
        // What comes of closing a file that nobody has written through since does not matter.
        let _ = really_close(free);
    });
    if parked::park(fd) { 0 } else { really_close(fd) }
}

fn really_close(fd: c_int) -> c_int {
    note(fd, false); // before the number can be given to somebody else
    // SAFETY: as in `open`.
    #[allow(unsafe_code)]
    unsafe {
        libc::close(fd)
    }
}

/// A child does not get what SQLite maps, the WAL's index: a mapping holds its descriptor open, and with that its locks.
extern "C" fn mmap(
    address: *mut c_void,
    length: libc::size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: as in `open`; what was mapped is marked as a whole, and if that fails the child merely gets it.
    #[allow(unsafe_code)]
    unsafe {
        let mapped = libc::mmap(address, length, protection, flags, fd, offset);
        if mapped != libc::MAP_FAILED {
            #[cfg(target_os = "linux")]
            libc::madvise(mapped, length, libc::MADV_DONTFORK);
            #[cfg(target_os = "macos")]
            libc::minherit(mapped, length, libc::VM_INHERIT_NONE);
        }
        mapped
    }
}

/// The salt of inode numbers: none in a process that was never forked.
fn salt() -> libc::ino_t {
    libc::ino_t::from(generation()).rotate_right(8) // the highest bits, where inode numbers seldom get
}

extern "C" fn stat(path: *const c_char, found: *mut libc::stat) -> c_int {
    // SAFETY: as in `open`; `found` is written by the call, and read only if it succeeded.
    #[allow(unsafe_code)]
    unsafe {
        let code = libc::stat(path, found);
        if code == 0 {
            (*found).st_ino ^= salt();
        }
        code
    }
}

extern "C" fn fstat(fd: c_int, found: *mut libc::stat) -> c_int {
    // SAFETY: as in `stat`.
    #[allow(unsafe_code)]
    unsafe {
        let code = libc::fstat(fd, found);
        if code == 0 {
            (*found).st_ino ^= salt();
        }
        code
    }
}

/// SQLite calls this through a variadic type. Its third argument is where a third one is passed, except on Apple's ARM,
/// where variadic ones lie on the stack: behind the eight that fit into registers.
#[cfg(not(all(target_vendor = "apple", target_arch = "aarch64")))]
extern "C" fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    lock_call(fd, command, argument)
}

#[cfg(all(target_vendor = "apple", target_arch = "aarch64"))]
#[allow(clippy::too_many_arguments)] // the registers
extern "C" fn fcntl(
    fd: c_int,
    command: c_int,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
    argument: *mut c_void,
) -> c_int {
    lock_call(fd, command, argument)
}

fn lock_call(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
    let wanted = TO_OFD.iter().find(|(posix, _)| *posix == command).map(|(_, ofd)| *ofd);
    let kind = KIND.load(Ordering::Relaxed);
    // SAFETY: as in `open`; the lock commands, and they alone, carry a `flock`, whose process must be 0 for OFD.
    #[allow(unsafe_code)]
    unsafe {
        let Some(ofd) = wanted.filter(|_| kind != POSIX) else { return libc::fcntl(fd, command, argument) };
        (*argument.cast::<libc::flock>()).l_pid = 0;
        let code = libc::fcntl(fd, ofd, argument);
        if kind == OFD {
            return code;
        }
        // The first lock of this process tells: gVisor and kernels before 3.15 know no OFD locks.
        if code != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
            KIND.store(POSIX, Ordering::Relaxed);
            return libc::fcntl(fd, command, argument);
        }
        KIND.store(OFD, Ordering::Relaxed);
        code
    }
}

pub fn replace_calls() -> bool {
    let calls: [(&CStr, *const ()); 6] = [
        (c"open", open as *const ()),
        (c"close", close as *const ()),
        (c"stat", stat as *const ()),
        (c"fstat", fstat as *const ()),
        (c"fcntl", fcntl as *const ()),
        (c"mmap", mmap as *const ()),
    ];
    // SAFETY: the default file system lives for ever; each function has the type of the call that it replaces.
    #[allow(unsafe_code)]
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(std::ptr::null());
        let Some(set) = vfs.as_ref().and_then(|vfs| vfs.xSetSystemCall) else { return false };
        calls.iter().all(|(name, call)| {
            let call = std::mem::transmute::<*const (), Call>(*call);
            set(vfs, name.as_ptr(), Some(call)) == ffi::SQLITE_OK
        })
    }
}

/// SQLite's mutexes of the whole process, in the order in which it nests them: who has one takes only later ones.
const MUTEXES: [c_int; 10] = [
    ffi::SQLITE_MUTEX_STATIC_MAIN,
    ffi::SQLITE_MUTEX_STATIC_OPEN,
    ffi::SQLITE_MUTEX_STATIC_VFS1,
    ffi::SQLITE_MUTEX_STATIC_VFS2,
    ffi::SQLITE_MUTEX_STATIC_VFS3,
    ffi::SQLITE_MUTEX_STATIC_APP1,
    ffi::SQLITE_MUTEX_STATIC_LRU,
    ffi::SQLITE_MUTEX_STATIC_PMEM,
    ffi::SQLITE_MUTEX_STATIC_PRNG,
    ffi::SQLITE_MUTEX_STATIC_MEM,
];

extern "C" fn before_fork() {
    if let Some(still) = STILL.get() {
        (still.hold)();
    }
    // SAFETY: static mutexes are always there; the same thread leaves them in `after_fork`.
    #[allow(unsafe_code)]
    MUTEXES.iter().for_each(|id| unsafe { ffi::sqlite3_mutex_enter(ffi::sqlite3_mutex_alloc(*id)) });
}

extern "C" fn after_fork() {
    // SAFETY: entered in `before_fork`, on this thread.
    #[allow(unsafe_code)]
    MUTEXES.iter().rev().for_each(|id| unsafe { ffi::sqlite3_mutex_leave(ffi::sqlite3_mutex_alloc(*id)) });
    if let Some(still) = STILL.get() {
        (still.release)();
    }
}

/// The child's part: only calls that are allowed in the child of a process with threads.
extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    abandon_descriptors();
    after_fork();
    // SAFETY: forgets the state of SQLite's generator, or `randomblob` would give parent and child the same keys.
    #[allow(unsafe_code)]
    unsafe {
        ffi::sqlite3_randomness(0, std::ptr::null_mut());
    }
}

/// Let the inherited descriptors lead to /dev/null, as nothing is mapped from them (see `mmap`). An OFD lock lasts as long as any process has its descriptor: a parent
/// that is killed while it writes would leave the file locked for as long as its children live. Their numbers stay
/// taken, so that nothing of SQLite's, should it still use one, meets somebody else's file.
fn abandon_descriptors() {
    parked::forget();
    // SAFETY: the numbers are those of descriptors that SQLite opened, and nobody in this process will use again.
    #[allow(unsafe_code)]
    unsafe {
        let nowhere = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if nowhere < 0 {
            return; // then they stay as they are, which is worse only if the parent is killed
        }
        for (place, word) in OURS.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                let fd = (place * 64) as c_int + bits.trailing_zeros() as c_int;
                libc::dup2(nowhere, fd);
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                bits &= bits - 1;
            }
        }
        libc::close(nowhere);
    }
}

pub fn watch_forks() {
    // SAFETY: the handlers live for ever, and do what their comments say.
    #[allow(unsafe_code)]
    unsafe {
        libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child));
    }
}
