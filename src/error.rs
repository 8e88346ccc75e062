//! What can go wrong, whose fault it is, and whether the write was applied.
//! Owns `Error`, `Outcome`, `Result` and the meaning of SQLite's result codes. Must not know Python or threads.

use std::fmt;

use rusqlite::ffi;

/// A foreign key refers to nothing.
pub const CONSTRAINT_FOREIGNKEY: i32 = ffi::SQLITE_CONSTRAINT_FOREIGNKEY;

/// The result of everything in the engine that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The answer to the question "was it applied?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of it is in the database.
    NotApplied,
    /// All of it is in the database.
    Applied,
    /// It may be in the database or not; a later read tells.
    Unknown,
}

impl Outcome {
    /// The name that Python sees as `.outcome`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::NotApplied => "not_applied",
            Outcome::Applied => "applied",
            Outcome::Unknown => "unknown",
        }
    }
}

/// Which class of error this is; the exception classes of `walpool.errors` carry the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// walpool was misused.
    Interface,
    /// The pool is closed.
    Closed,
    /// The pool's own verb inside its own transaction or snapshot.
    Reentrant,
    /// A setting is wrong.
    Config,
    /// The environment failed in a way that has no class of its own.
    Operational,
    /// Another connection held the lock for longer than `busy_timeout`.
    Busy,
    /// No reader came free in time.
    CheckoutTimeout,
    /// The job's turn did not come in time.
    WriteTimeout,
    /// The queue holds `max_waiting` jobs.
    QueueFull,
    /// A read ran past its `timeout`.
    StatementTimeout,
    /// A transaction or snapshot was held past `transaction_timeout` and was revoked.
    TransactionTimeout,
    /// The caller was interrupted (Ctrl-C).
    Interrupted,
    /// The writer is gone.
    WriterStopped,
    /// The disk refused: full, read-only, an I/O error.
    Storage,
    /// The database is not to be written any more.
    ReadOnly,
    /// Bad SQL, wrong parameters, a write on a reader.
    Programming,
    /// A constraint.
    Integrity,
    /// A value out of range.
    Data,
    /// The file is damaged, or is no database.
    Corrupt,
    /// This SQLite lacks it.
    NotSupported,
}

/// Every kind, in the order of declaration, for tables and for `stats()`.
pub const KINDS: [Kind; 20] = [
    Kind::Interface,
    Kind::Closed,
    Kind::Reentrant,
    Kind::Config,
    Kind::Operational,
    Kind::Busy,
    Kind::CheckoutTimeout,
    Kind::WriteTimeout,
    Kind::QueueFull,
    Kind::StatementTimeout,
    Kind::TransactionTimeout,
    Kind::Interrupted,
    Kind::WriterStopped,
    Kind::Storage,
    Kind::ReadOnly,
    Kind::Programming,
    Kind::Integrity,
    Kind::Data,
    Kind::Corrupt,
    Kind::NotSupported,
];

impl Kind {
    /// The name of the exception class in `walpool.errors`.
    pub fn class_name(self) -> &'static str {
        match self {
            Kind::Interface => "InterfaceError",
            Kind::Closed => "ClosedError",
            Kind::Reentrant => "ReentrantError",
            Kind::Config => "ConfigError",
            Kind::Operational => "OperationalError",
            Kind::Busy => "BusyError",
            Kind::CheckoutTimeout => "CheckoutTimeout",
            Kind::WriteTimeout => "WriteTimeout",
            Kind::QueueFull => "QueueFull",
            Kind::StatementTimeout => "StatementTimeout",
            Kind::TransactionTimeout => "TransactionTimeout",
            Kind::Interrupted => "Interrupted",
            Kind::WriterStopped => "WriterStopped",
            Kind::Storage => "StorageError",
            Kind::ReadOnly => "ReadOnlyError",
            Kind::Programming => "ProgrammingError",
            Kind::Integrity => "IntegrityError",
            Kind::Data => "DataError",
            Kind::Corrupt => "CorruptError",
            Kind::NotSupported => "NotSupportedError",
        }
    }

    /// Whether the same call may well succeed if it is made again.
    pub fn is_retryable(self) -> bool {
        matches!(self, Kind::Busy | Kind::CheckoutTimeout | Kind::WriteTimeout | Kind::QueueFull)
    }
}

/// An error, with all that a caller may branch on as a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The class.
    pub kind: Kind,
    /// For a person: what was tried, on which file, what to do. Never a parameter value.
    pub message: String,
    /// Whether the write was applied; `NotApplied` for reads.
    pub outcome: Outcome,
    /// SQLite's extended result code, where SQLite said no.
    pub code: Option<i32>,
}

impl Error {
    /// An error of walpool's own; nothing was applied.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), outcome: Outcome::NotApplied, code: None }
    }

    /// The same error with another outcome.
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// The same error, its message followed by `: ` and what was being done, or by advice.
    pub fn context(mut self, text: impl fmt::Display) -> Self {
        self.message = format!("{}; {}", self.message, text);
        self
    }

    /// The name of SQLite's extended result code, as in its documentation.
    pub fn code_name(&self) -> Option<&'static str> {
        self.code.map(code_name)
    }

    /// The primary result code: the low byte of the extended one.
    pub fn primary_code(&self) -> Option<i32> {
        self.code.map(|code| code & 0xff)
    }

    /// SQLite answered that another connection holds the lock.
    pub fn is_busy(&self) -> bool {
        self.primary_code() == Some(ffi::SQLITE_BUSY)
    }

    /// Whether a COMMIT that SQLite failed with this had not yet written, whole, the frame that makes it count.
    ///
    /// Named are the codes that come from nowhere behind that frame, read in SQLite's `walFrames`; the rest may.
    pub fn is_before_commit_frame(&self) -> bool {
        let Some(code) = self.code else { return self.outcome == Outcome::NotApplied }; // walpool's own: it knows
        match code & 0xff {
            ffi::SQLITE_BUSY | ffi::SQLITE_CONSTRAINT | ffi::SQLITE_FULL | ffi::SQLITE_PROTOCOL => true,
            ffi::SQLITE_READONLY => true,
            _ => matches!(code, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_READ | ffi::SQLITE_IOERR_SHORT_READ),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        match error {
            E::SqliteFailure(failure, message) => {
                from_code(failure.extended_code, message.unwrap_or_else(|| failure.to_string()))
            }
            E::SqlInputError { error, msg, .. } => from_code(error.extended_code, msg),
            E::MultipleStatement => Error::new(
                Kind::Programming,
                "more than one statement: use batch() for several with parameters, script() for several without",
            ),
            E::NulError(_) => Error::new(Kind::Programming, "the SQL contains a NUL character"),
            E::Utf8Error(column, _) => Error::new(
                Kind::Data,
                format!("column {column} holds TEXT that is not valid UTF-8; read it with CAST(... AS BLOB)"),
            ),
            other => Error::new(Kind::Operational, other.to_string()),
        }
    }
}

/// Make an error of SQLite's extended result code and its message.
pub fn from_code(code: i32, message: String) -> Error {
    let (kind, advice) = meaning(code);
    let message = match advice {
        "" => message,
        advice => format!("{message}; {advice}"),
    };
    Error { kind, message, outcome: Outcome::NotApplied, code: Some(code) }
}

/// Which SQLite code means what: https://www.sqlite.org/rescode.html
fn meaning(code: i32) -> (Kind, &'static str) {
    match code & 0xff {
        ffi::SQLITE_BUSY => (Kind::Busy, ""),
        ffi::SQLITE_LOCKED => (Kind::Operational, ""),
        ffi::SQLITE_INTERRUPT => (Kind::Interrupted, ""),
        ffi::SQLITE_FULL => (Kind::Storage, "free space on the disk, then try again"),
        ffi::SQLITE_IOERR => (Kind::Storage, "look at the disk and the system's log"),
        ffi::SQLITE_CANTOPEN => {
            (Kind::Storage, "check that the folder exists, may be written to, and that descriptors are left")
        }
        ffi::SQLITE_READONLY => (Kind::Storage, "check the permissions of the file and of its folder"),
        ffi::SQLITE_PERM => (Kind::Storage, "check the permissions of the file and of its folder"),
        ffi::SQLITE_PROTOCOL => (Kind::Busy, ""),
        ffi::SQLITE_NOMEM => (Kind::Operational, "out of memory"),
        // SQLite calls a read that the disk refused (EIO) by this name too, and keeps no trace of the difference.
        ffi::SQLITE_CORRUPT => (
            Kind::Corrupt,
            "look in the system's log for a disk that could not be read, run check(), and restore a backup if it finds damage",
        ),
        ffi::SQLITE_NOTADB => (Kind::Corrupt, "the file is not an SQLite database"),
        ffi::SQLITE_CONSTRAINT => (Kind::Integrity, ""),
        ffi::SQLITE_MISMATCH => (Kind::Integrity, ""),
        ffi::SQLITE_TOOBIG => (Kind::Data, "a string or blob is larger than SQLite allows"),
        ffi::SQLITE_RANGE => (Kind::Programming, ""),
        ffi::SQLITE_AUTH => (Kind::Programming, ""),
        ffi::SQLITE_ERROR => (Kind::Programming, ""),
        ffi::SQLITE_MISUSE => (Kind::Interface, ""),
        ffi::SQLITE_NOLFS => (Kind::NotSupported, "the file system has no large files"),
        _ => (Kind::Operational, ""),
    }
}

macro_rules! code_names {
    ($code:expr, $($name:ident),+ $(,)?) => {
        match $code {
            $(ffi::$name => stringify!($name),)+
            _ => match $code & 0xff {
                ffi::SQLITE_IOERR => "SQLITE_IOERR",
                ffi::SQLITE_CONSTRAINT => "SQLITE_CONSTRAINT",
                ffi::SQLITE_READONLY => "SQLITE_READONLY",
                ffi::SQLITE_CANTOPEN => "SQLITE_CANTOPEN",
                ffi::SQLITE_CORRUPT => "SQLITE_CORRUPT",
                _ => "SQLITE_ERROR",
            },
        }
    };
}

fn code_name(code: i32) -> &'static str {
    code_names!(
        code,
        SQLITE_ERROR,
        SQLITE_INTERNAL,
        SQLITE_PERM,
        SQLITE_ABORT,
        SQLITE_BUSY,
        SQLITE_LOCKED,
        SQLITE_NOMEM,
        SQLITE_READONLY,
        SQLITE_INTERRUPT,
        SQLITE_IOERR,
        SQLITE_CORRUPT,
        SQLITE_NOTFOUND,
        SQLITE_FULL,
        SQLITE_CANTOPEN,
        SQLITE_PROTOCOL,
        SQLITE_EMPTY,
        SQLITE_SCHEMA,
        SQLITE_TOOBIG,
        SQLITE_CONSTRAINT,
        SQLITE_MISMATCH,
        SQLITE_MISUSE,
        SQLITE_NOLFS,
        SQLITE_AUTH,
        SQLITE_RANGE,
        SQLITE_NOTADB,
        SQLITE_ABORT_ROLLBACK,
        SQLITE_BUSY_RECOVERY,
        SQLITE_BUSY_SNAPSHOT,
        SQLITE_BUSY_TIMEOUT,
        SQLITE_CONSTRAINT_CHECK,
        SQLITE_CONSTRAINT_COMMITHOOK,
        SQLITE_CONSTRAINT_FOREIGNKEY,
        SQLITE_CONSTRAINT_FUNCTION,
        SQLITE_CONSTRAINT_NOTNULL,
        SQLITE_CONSTRAINT_PRIMARYKEY,
        SQLITE_CONSTRAINT_TRIGGER,
        SQLITE_CONSTRAINT_UNIQUE,
        SQLITE_CONSTRAINT_VTAB,
        SQLITE_CONSTRAINT_ROWID,
        SQLITE_CONSTRAINT_PINNED,
        SQLITE_CONSTRAINT_DATATYPE,
        SQLITE_CANTOPEN_NOTEMPDIR,
        SQLITE_CANTOPEN_ISDIR,
        SQLITE_CANTOPEN_FULLPATH,
        SQLITE_CANTOPEN_CONVPATH,
        SQLITE_CANTOPEN_DIRTYWAL,
        SQLITE_CANTOPEN_SYMLINK,
        SQLITE_CORRUPT_VTAB,
        SQLITE_CORRUPT_SEQUENCE,
        SQLITE_CORRUPT_INDEX,
        SQLITE_ERROR_MISSING_COLLSEQ,
        SQLITE_ERROR_RETRY,
        SQLITE_ERROR_SNAPSHOT,
        SQLITE_READONLY_RECOVERY,
        SQLITE_READONLY_CANTLOCK,
        SQLITE_READONLY_ROLLBACK,
        SQLITE_READONLY_DBMOVED,
        SQLITE_READONLY_CANTINIT,
        SQLITE_READONLY_DIRECTORY,
        SQLITE_IOERR_READ,
        SQLITE_IOERR_SHORT_READ,
        SQLITE_IOERR_WRITE,
        SQLITE_IOERR_FSYNC,
        SQLITE_IOERR_DIR_FSYNC,
        SQLITE_IOERR_TRUNCATE,
        SQLITE_IOERR_FSTAT,
        SQLITE_IOERR_UNLOCK,
        SQLITE_IOERR_RDLOCK,
        SQLITE_IOERR_DELETE,
        SQLITE_IOERR_BLOCKED,
        SQLITE_IOERR_NOMEM,
        SQLITE_IOERR_ACCESS,
        SQLITE_IOERR_CHECKRESERVEDLOCK,
        SQLITE_IOERR_LOCK,
        SQLITE_IOERR_CLOSE,
        SQLITE_IOERR_DIR_CLOSE,
        SQLITE_IOERR_SHMOPEN,
        SQLITE_IOERR_SHMSIZE,
        SQLITE_IOERR_SHMLOCK,
        SQLITE_IOERR_SHMMAP,
        SQLITE_IOERR_SEEK,
        SQLITE_IOERR_DELETE_NOENT,
        SQLITE_IOERR_MMAP,
        SQLITE_IOERR_GETTEMPPATH,
        SQLITE_IOERR_CONVPATH,
        SQLITE_IOERR_VNODE,
        SQLITE_IOERR_AUTH,
        SQLITE_IOERR_BEGIN_ATOMIC,
        SQLITE_IOERR_COMMIT_ATOMIC,
        SQLITE_IOERR_ROLLBACK_ATOMIC,
        SQLITE_IOERR_DATA,
        SQLITE_IOERR_CORRUPTFS,
        SQLITE_LOCKED_SHAREDCACHE,
        SQLITE_LOCKED_VTAB,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_codes_keep_their_class_and_their_names() {
        for (code, kind, name) in [
            (ffi::SQLITE_BUSY_SNAPSHOT, Kind::Busy, "SQLITE_BUSY_SNAPSHOT"),
            (ffi::SQLITE_CONSTRAINT_UNIQUE, Kind::Integrity, "SQLITE_CONSTRAINT_UNIQUE"),
            (ffi::SQLITE_FULL, Kind::Storage, "SQLITE_FULL"),
            (ffi::SQLITE_NOTADB, Kind::Corrupt, "SQLITE_NOTADB"),
            (ffi::SQLITE_TOOBIG, Kind::Data, "SQLITE_TOOBIG"),
            (ffi::SQLITE_ERROR, Kind::Programming, "SQLITE_ERROR"),
        ] {
            let error = from_code(code, "x".into());
            assert_eq!((error.kind, error.code_name()), (kind, Some(name)));
            assert_eq!(error.outcome, Outcome::NotApplied);
        }
    }

    #[test]
    fn a_failed_commit_is_not_applied_only_where_its_last_frame_cannot_be_whole() {
        let is_before = |code| from_code(code, String::new()).is_before_commit_frame();
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_CONSTRAINT_FOREIGNKEY, ffi::SQLITE_BUSY] {
            assert!(is_before(code), "{code}");
        }
        for code in [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMMAP, ffi::SQLITE_CORRUPT]
        {
            assert!(!is_before(code), "{code}");
        }
    }

    #[test]
    fn only_waiting_errors_are_retryable() {
        let retryable: Vec<_> = KINDS.iter().filter(|kind| kind.is_retryable()).map(|kind| kind.class_name()).collect();
        assert_eq!(retryable, ["BusyError", "CheckoutTimeout", "WriteTimeout", "QueueFull"]);
    }
}
