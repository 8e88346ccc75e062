//! Whether the files that are open still lie at their paths, and who else in this process has them open.
//! Looks at names only: opening and closing a database file would drop other libraries' locks on it. Must not know SQLite.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

/// The database's path with something behind it, as SQLite names the files beside it.
pub fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A file as the system knows it; None where it does not lie there, or cannot be looked at.
type Identity = Option<(u64, u64)>;

/// Asked without its times. Whoever asks for a file's times makes the kernel keep them finely, and so the next write dirty the
/// inode: that was a third of a commit (benches/README.md, "stat").
/// <https://docs.kernel.org/filesystems/multigrain-ts.html>
#[cfg(target_os = "linux")]
fn identity(path: &Path) -> std::io::Result<Identity> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
        Ok(found) => Ok(Some(((u64::from(found.stx_dev_major) << 32) | u64::from(found.stx_dev_minor), found.stx_ino))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that is open cannot be removed there.
#[cfg(not(unix))]
fn identity(_: &Path) -> std::io::Result<Identity> {
    Ok(None)
}

/// The files of one database, as they were when it was opened.
pub struct Files {
    database: (PathBuf, Identity),
    wal: (PathBuf, Identity),
    is_lost: AtomicBool,
    began: Instant,
    looked_ms: AtomicU64,
    searched_ms: AtomicU64,
    has_second_library: AtomicBool,
}

const NEVER: u64 = u64::MAX;
/// For how long a commit trusts the last look. A look takes several microseconds behind an fsync, and what was acknowledged a
/// millisecond before the files were removed is as lost as what was a millisecond after.
const OFTEN: Duration = Duration::from_millis(1);
/// For how long reads, and whoever begins to write, trust it.
const SELDOM: Duration = Duration::from_millis(50);
/// How often a second library is searched for: reading the process's map costs a fifth of a millisecond.
const SEARCH: Duration = Duration::from_secs(1);

impl Files {
    /// Remember the files of a database that was just opened in WAL mode.
    pub fn of(database: &Path) -> Self {
        let wal = beside(database, "-wal");
        // Where they cannot be looked at now they are not watched.
        let known = |path: &Path| identity(path).ok().flatten();
        Files {
            database: (database.to_owned(), known(database)),
            wal: (wal.clone(), known(&wal)),
            is_lost: AtomicBool::new(false),
            began: Instant::now(),
            looked_ms: AtomicU64::new(0),
            searched_ms: AtomicU64::new(NEVER),
            has_second_library: AtomicBool::new(false),
        }
    }

    /// Look, and say if a file was removed or replaced. Once it was, it stays so: the pool must be opened anew.
    ///
    /// # Errors
    /// `Storage`.
    pub fn look(&self) -> Result<()> {
        for (what, (path, known)) in [("database file", &self.database), ("WAL", &self.wal)] {
            let is_there = known.is_none() || identity(path).is_ok_and(|found| found == *known);
            if self.is_lost.load(Ordering::Relaxed) || !is_there {
                self.is_lost.store(true, Ordering::Relaxed);
                return Err(lost(what));
            }
        }
        Ok(())
    }

    /// Look, before a commit is acknowledged, if the last look was more than a millisecond ago.
    pub fn look_after_commit(&self) -> Result<()> {
        self.look_again_after(OFTEN, Instant::now())
    }

    /// Look if that was not done lately.
    pub fn look_seldom(&self, now: Instant) -> Result<()> {
        self.look_again_after(SELDOM, now)
    }

    fn look_again_after(&self, trust: Duration, now: Instant) -> Result<()> {
        if self.is_lost.load(Ordering::Relaxed) || self.is_due(&self.looked_ms, now, trust) {
            self.look()
        } else {
            Ok(())
        }
    }

    /// Whether `last` lies so far back; if it does, it is now. Threads that race do something twice, which is no harm.
    fn is_due(&self, last: &AtomicU64, now: Instant, every: Duration) -> bool {
        let since = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let before = last.load(Ordering::Relaxed);
        let is_due = before == NEVER || since.saturating_sub(before) >= every.as_millis() as u64;
        if is_due {
            last.store(since, Ordering::Relaxed);
        }
        is_due
    }

    /// Whether another SQLite library of this process was found to have the database open, for the first time; it is searched
    /// for where that was not done lately. Such a one has mapped the WAL's index too.
    pub fn finds_second_library(&self) -> bool {
        if self.has_second_library.load(Ordering::Relaxed) || !self.is_due(&self.searched_ms, Instant::now(), SEARCH) {
            return false;
        }
        let index = beside(&self.database.0, "-shm");
        // Where there is no /proc, nobody can tell.
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return false };
        starts_mapped(&maps, &index.to_string_lossy()) > 1 && !self.has_second_library.swap(true, Ordering::Relaxed)
    }
}

fn lost(what: &str) -> Error {
    Error::new(
        Kind::Storage,
        format!(
            "the {what} was removed or replaced while it was open: what is written now reaches no file that anybody will \
             find; close every pool on it in this process, and open it anew"
        ),
    )
}

/// How often the beginning of a file is mapped. A line: address, permissions, offset, device, inode, path.
/// <https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html>
fn starts_mapped(maps: &str, path: &str) -> usize {
    let starts = maps.lines().filter(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(2).is_some_and(|offset| offset.bytes().all(|digit| digit == b'0')) && line.ends_with(path)
    });
    starts.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_file_that_is_replaced_is_lost_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        std::fs::write(&path, "1").unwrap();
        std::fs::write(beside(&path, "-wal"), "1").unwrap();
        let files = Files::of(&path);
        assert_eq!(files.look(), Ok(()));
        std::fs::rename(beside(&path, "-wal"), folder.path().join("away")).unwrap();
        assert!(files.look().unwrap_err().message.contains("WAL"));
        std::fs::rename(folder.path().join("away"), beside(&path, "-wal")).unwrap();
        assert_eq!(files.look().unwrap_err().kind, Kind::Storage);
        assert_eq!(Files::of(&path).look(), Ok(()));
    }

    #[test]
    fn only_the_beginning_of_the_index_counts() {
        let maps = "\
            7f00-7f08 rw-s 00000000 fe:00 12 /tmp/a b.db-shm\n\
            7f08-7f10 rw-s 00008000 fe:00 12 /tmp/a b.db-shm\n\
            7f10-7f18 rw-s 00000000 fe:00 13 /tmp/a.db-shm\n";
        assert_eq!((starts_mapped(maps, "/tmp/a b.db-shm"), starts_mapped(maps, "/tmp/c.db-shm")), (1, 0));
    }
}
