//! An online copy to a file. Must not know pools.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};

use crate::caller::Call;
use crate::connection::{BUSY_RETRY, Connection, create_file};
use crate::error::{Error, Kind, Result};

/// Pages copied in one step: 4 MiB, so that an interrupt is heard between two steps.
const PAGES: std::ffi::c_int = 1_024;

/// Copy the whole database, as one snapshot sees it, into a new file with these permissions. It is durable on return.
///
/// # Errors
/// `Storage` if the file exists or cannot be written; `Interrupted`; the half-made copy is removed.
///
/// # Blocking
/// For the length of the copy. Nobody else waits for it.
pub fn copy(source: &Connection, dest: &Path, file_mode: u32, call: &Call) -> Result<()> {
    // By creating it rather than by a look before: nobody else's file may come between the two, and no link is followed.
    if !create_file(dest, file_mode)? {
        let text = format!("the backup's file {} exists; give a name that is free", dest.display());
        return Err(Error::new(Kind::Storage, text));
    }
    let copied = copy_into(source, dest, call);
    if copied.is_err() {
        // The error of the copy is the one to tell. A full disk keeps SQLite from rolling the copy back, and then its journal
        // stays, hot: it would be played back into the next file of this name. Last, since it alone tells that a copy is half
        // made.
        let mut journal = dest.as_os_str().to_owned();
        journal.push("-journal");
        let _ = std::fs::remove_file(dest);
        let _ = std::fs::remove_file(journal);
    }
    copied
}

fn copy_into(source: &Connection, dest: &Path, call: &Call) -> Result<()> {
    #[allow(clippy::disallowed_methods)] // the copy's own connection, which no pool knows
    let mut target = rusqlite::Connection::open(dest)?;
    // The copy is committed when its rollback journal is gone. A journal that a power failure brings back would undo it, so
    // the folder is synced too, which FULL does not do. https://www.sqlite.org/pragma.html#pragma_synchronous
    target.pragma_update(None, "synchronous", "EXTRA")?;
    if cfg!(target_os = "macos") {
        target.pragma_update(None, "fullfsync", true)?; // there fsync() leaves the data in the drive's cache
    }
    {
        let backup = Backup::new(source.raw(), &mut target)?;
        loop {
            match backup.step(PAGES)? {
                StepResult::Done => break,
                StepResult::More => {}
                _ => std::thread::sleep(BUSY_RETRY.max(Duration::from_millis(1))),
            }
            if call.caller.can_be_interrupted() && call.caller.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "the backup was interrupted; its file was removed"));
            }
        }
    }
    target.close().map_err(|(_, error)| error.into())
}
