//! The mark of a file that has gone over to a server (`walpool migrate --retire`): nobody writes such a file by mistake.
//! Owns how it is found. Must not know who sets it: that is `python/walpool/schema.py`.
//!
//! ```text
//! writer                                     another process, migrating
//! COMMIT
//!                                            BEGIN IMMEDIATE, copies the last rows, sets the mark, COMMIT
//! BEGIN IMMEDIATE
//! the file has changed: looks for the mark,
//! finds it, rolls back
//! ```

use std::cell::{Cell, OnceCell};
use std::ptr;

use rusqlite::{OptionalExtension, ffi};

use super::{Connection, FIRST_READ};
use crate::error::{Error, Kind, Result};

const TABLE: &str = "walpool_retired";
const MARK: &str = "SELECT CAST(successor AS BLOB), CAST(retired_at AS BLOB) FROM main.walpool_retired \
                    ORDER BY retired_at DESC LIMIT 1";
const MOST_CHARS: usize = 300; // of a URL: the file may be a stranger's

/// Whether the file may be written, as far as one connection knows.
#[derive(Default)]
pub(super) struct Retired {
    is_obeyed: Cell<bool>,
    /// The file's version, when it was last known to have no mark.
    version: Cell<Option<u32>>,
    /// What the mark says. It is never taken back: a connection that found one stays so until it is opened anew.
    mark: OnceCell<String>,
}

/// Whether SQL about this table may set the mark.
pub(super) fn is_mark(table: &str) -> bool {
    table.eq_ignore_ascii_case(TABLE)
}

impl Connection {
    /// Begin no write transaction in a file that is retired, from now on. It has been read from just now.
    pub fn obey_retirement(&self) -> Result<()> {
        self.retired.is_obeyed.set(true);
        self.look_for_mark()
    }

    /// When the file was retired, and in favour of what, if this connection obeys that.
    pub fn retired(&self) -> Option<&str> {
        self.retired.mark.get().map(String::as_str)
    }

    /// Refuse a write where the file is known to be retired.
    pub(super) fn refuse_retired(&self) -> Result<()> {
        let Some(mark) = self.retired() else { return Ok(()) };
        let advice = "nothing was written; write there, or take the mark off (walpool unretire); write_retired=True or \
                      WALPOOL_WRITE_RETIRED=1 lets a pool write all the same";
        Err(Error::new(Kind::ReadOnly, format!("{mark}, and is open to read only: {advice}")))
    }

    /// In a write transaction, look whether the mark was set since the last one. Where nobody else has written, that is told by
    /// one number in memory.
    pub(super) fn look_if_retired(&self) -> Result<()> {
        if !self.retired.is_obeyed.get() {
            return Ok(());
        }
        // A commit of one's own is no change by others: what it may have marked is known by its SQL.
        let is_unchanged = self.retired.version.get().is_some_and(|known| self.file_version() == Some(known));
        if !is_unchanged || self.guard.has_marked() {
            self.own(FIRST_READ)?; // brings the schema that SQLite has in memory up to date
            self.look_for_mark()?;
        }
        self.refuse_retired()
    }

    /// After a commit of one's own.
    pub(super) fn note_own_change(&self) {
        if self.retired.is_obeyed.get() {
            self.retired.version.set(self.file_version());
        }
    }

    fn look_for_mark(&self) -> Result<()> {
        let raw = self.raw.get()?;
        if raw.table_exists(Some("main"), TABLE)? {
            let look = || raw.query_row(MARK, [], |row| Ok((row.get(0)?, row.get(1)?))).optional();
            match self.watch.shield(|| self.guard.own(look)).map_err(Error::from) {
                Ok(Some((successor, retired_at))) => {
                    // A second look would find the same.
                    let _ = self.retired.mark.set(say(retired_at, successor));
                }
                Ok(None) => {}
                Err(error) if error.kind == Kind::Programming => {} // a table of that name with other columns
                Err(error) => return Err(error),
            }
        }
        self.retired.version.set(self.file_version());
        Ok(())
    }

    /// A number that changes with each change of the file that this connection makes or notices; None where SQLite has none.
    /// <https://www.sqlite.org/c3ref/c_fcntl_begin_atomic_write.html#sqlitefcntldataversion>
    fn file_version(&self) -> Option<u32> {
        let mut version: u32 = 0;
        let out = ptr::from_mut(&mut version).cast();
        let main = ptr::null(); // it need not be looked for by its name
        // SAFETY: the handle lives as long as `self`, NULL names the main database, and this operation writes an unsigned int.
        #[allow(unsafe_code)]
        let code = unsafe { ffi::sqlite3_file_control(self.raw.handle(), main, ffi::SQLITE_FCNTL_DATA_VERSION, out) };
        (code == ffi::SQLITE_OK).then_some(version)
    }
}

fn say(retired_at: Option<Vec<u8>>, successor: Option<Vec<u8>>) -> String {
    format!("the file was retired by walpool migrate at {} UTC in favour of {}", shown(retired_at), shown(successor))
}

/// A text of the file's as a message may show it: short, and on one line.
fn shown(text: Option<Vec<u8>>) -> String {
    let text = text.unwrap_or_default();
    String::from_utf8_lossy(&text).chars().map(|c| if c.is_control() { '?' } else { c }).take(MOST_CHARS).collect()
}
