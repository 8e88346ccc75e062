//! Opening one connection: what must hold of its path and its file, and every PRAGMA that it is told once.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{OpenFlags, ffi};

use super::{Common, Connection, FIRST_READ, OWN_STATEMENTS, Raw, WAL_FRAMES, retry_busy};
use crate::caller::{Call, WAIT_SLICE};
use crate::config::{Config, Synchronous};
use crate::error::{Error, Kind, Result, from_code};
use crate::functions;

/// The flags with which readers are opened.
pub fn reader_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// What every reader is told once, after it was opened.
pub fn init_reader(raw: &Raw, config: &Config) -> rusqlite::Result<()> {
    init_both(raw, config)?;
    raw.pragma_update(None, "query_only", true)
}

fn init_both(raw: &Raw, config: &Config) -> rusqlite::Result<()> {
    raw.busy_timeout(Duration::ZERO)?; // waiting is done above, where the caller and the clock are known
    raw.set_prepared_statement_cache_capacity(config.statement_cache as usize + OWN_STATEMENTS);
    let cache_kib = i64::try_from(config.cache_size / 1024).unwrap_or(i64::MAX);
    raw.pragma_update(None, "cache_size", -cache_kib)?; // negative: KiB rather than pages
    raw.pragma_update(None, "foreign_keys", config.foreign_keys)?;
    distrust(raw)?;
    functions::register(raw)
}

/// Let neither SQL nor the schema of a file that came from elsewhere do what could damage the file or run foreign code.
/// <https://www.sqlite.org/security.html>
fn distrust(raw: &Raw) -> rusqlite::Result<()> {
    for (config, is_on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true), // no writing to shadow tables or to the schema itself
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false), // views and triggers call innocuous functions only
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false), // it takes a pointer from SQL
    ] {
        raw.set_db_config(config, is_on)?;
    }
    Ok(())
}

/// Open the writer, creating the file if it is not there, and switch WAL on.
///
/// # Errors
/// `Storage` for a path that cannot be opened or only be read, `Corrupt` for a file that is no database, `NotSupported` where
/// WAL does not take or would lose data, `Busy` when another process keeps the file locked for `busy_timeout`.
///
/// # Blocking
/// Waits for another process's lock for up to `busy_timeout`.
pub fn open_writer(call: &Call, path: &Path, config: &Config, common: &Common) -> Result<Connection> {
    create_file(path, config.file_mode)?;
    refuse_no_file(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    #[allow(clippy::disallowed_methods)] // this is the one place
    let raw = Raw::open_with_flags(path, flags)?;
    refuse_read_only(&raw)?; // before a WAL is made, which would be as read-only as the file, and stay so
    raw.busy_timeout(Duration::ZERO)?;
    let mut ask_at = call.started + WAIT_SLICE;
    retry_busy(config.busy_timeout, || {
        if call.caller.can_be_interrupted() && Instant::now() >= ask_at {
            ask_at += WAIT_SLICE;
            if call.caller.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while another process had the file locked"));
            }
        }
        switch_wal_on(&raw)
    })?;
    retry_busy(config.busy_timeout, || init_writer(&raw, config))?;
    refuse_read_only_wal(&raw)?;
    let conn = Connection::adopt(raw, common)?;
    // SQLite takes the file's shared lock once for all connections of a process, through the descriptor of the first that
    // reads, and keeps it until the last one closes. It must be the writer's, which is closed last: a lock that belongs to a
    // descriptor is not let go by another one.
    retry_busy(config.busy_timeout, || conn.own(FIRST_READ))?;
    if !config.write_retired {
        retry_busy(config.busy_timeout, || conn.obey_retirement())?;
    }
    Ok(conn)
}

fn init_writer(raw: &Raw, config: &Config) -> Result<()> {
    init_both(raw, config)?;
    let is_full = config.synchronous == Synchronous::Full;
    raw.pragma_update(None, "synchronous", if is_full { "FULL" } else { "NORMAL" })?;
    if cfg!(target_os = "macos") {
        // There fsync() leaves the data in the drive's cache. https://www.sqlite.org/pragma.html#pragma_fullfsync
        raw.pragma_update(None, "fullfsync", is_full)?;
        raw.pragma_update(None, "checkpoint_fullfsync", is_full)?;
    }
    let wal_limit = i64::try_from(config.wal_limit).unwrap_or(i64::MAX);
    raw.pragma_update_and_check(None, "journal_size_limit", wal_limit, |_| Ok(()))?;
    // This hook also takes the place of SQLite's own checkpoint inside COMMIT.
    raw.wal_hook(Some(|_, frames| {
        WAL_FRAMES.set(u32::try_from(frames).ok());
        Ok(())
    }));
    Ok(())
}

/// Create the file with its permissions before SQLite does: the WAL and its index get the same ones. Does nothing to a file
/// or a link that exists, and says whether there was none.
///
/// The folder is not synced here: SQLite does so with the first sync of a new journal or WAL, before a COMMIT is durable
/// (`unixSync` in <https://sqlite.org/src/file/src/os_unix.c>; `tests/test_power_loss.py`).
pub fn create_file(path: &Path, mode: u32) -> Result<bool> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode; // permissions come from the folder there
    match options.open(path) {
        Ok(_) => Ok(true),
        // Found out without opening the file: closing a descriptor would drop the locks of others on it.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::new(Kind::Storage, format!("the file cannot be created: {error}"))),
    }
}

fn switch_wal_on(raw: &Raw) -> Result<()> {
    let mode = raw.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
    let mode = mode.map_err(|error| name_unknown_format(error.into()))?;
    if mode == "wal" {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotSupported,
        format!(
            "WAL could not be switched on: the journal mode stayed {mode:?}; network file systems and some containers lack \
             the shared memory it needs, so put the file on a local disk"
        ),
    ))
}

/// No caller's SQL runs while a file is opened: an error of SQL there is a file whose format this SQLite does not know.
fn name_unknown_format(error: Error) -> Error {
    let is_unknown = error.kind == Kind::Programming;
    if is_unknown { Error { kind: Kind::NotSupported, ..error } } else { error }
}

/// SQLite would take a device or a pipe for a database, and make its WAL beside it.
fn refuse_no_file(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Error::new(Kind::Storage, "the path leads to no file, but to a folder, a device or a pipe")),
        Err(error) => Err(Error::new(Kind::Storage, format!("the file cannot be looked at: {error}"))),
    }
}

/// Where a file cannot be opened for writing SQLite opens it for reading, without a word. The cause may be gone a moment later
/// (no descriptor was left), but the connection would stay as it is.
fn refuse_read_only(raw: &Raw) -> Result<()> {
    if raw.is_readonly(rusqlite::MAIN_DB)? { Err(read_only()) } else { Ok(()) }
}

/// As `refuse_read_only`, for the WAL. SQLite tells of it only when a write begins, before it asks for the lock.
fn refuse_read_only_wal(raw: &Raw) -> Result<()> {
    match raw.execute_batch("BEGIN IMMEDIATE; ROLLBACK").map_err(Error::from) {
        Err(error) if error.is_busy() => Ok(()), // another process writes
        Err(error) if error.primary_code() == Some(ffi::SQLITE_READONLY) => Err(read_only()),
        begun => begun,
    }
}

fn read_only() -> Error {
    from_code(ffi::SQLITE_READONLY, "the file, or its WAL, could only be opened for reading".to_owned())
}
