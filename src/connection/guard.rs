//! What a caller's SQL may not do: the authorizer, installed once a connection, its mode in a cell.
//!
//! Switching an authorizer on and off expires every prepared statement, so it stays on and looks at the mode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::ffi;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::retired::is_mark;
use crate::error::{Error, Kind};
use crate::sync::Mutex;

const TRANSACTION: &str = "walpool begins and ends transactions itself: use batch() or transaction()";
const ATTACH: &str = "ATTACH and DETACH would reach one connection of many: open another Pool";
const TEMP: &str = "TEMP objects would live on one connection of many: use an ordinary table or a WITH clause";
const EXTENSION: &str = "extensions are never loaded: FTS5, JSON and the vec_* functions are built in";
const PRAGMA: &str =
    "this PRAGMA would change one connection of many, or the guarantees: use the settings of Pool(...) instead";

/// PRAGMAs that only tell something, whatever their argument says.
const TELLING: &[&str] = &[
    "application_id", // also sets a number in the file's header, as a job like any other
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "module_list",
    "optimize", // ANALYZE where it pays
    "page_count",
    "pragma_list",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version", // also sets a number in the file's header
];

/// PRAGMAs that act even without an argument.
const ACTING: &[&str] = &["incremental_vacuum", "shrink_memory", "wal_checkpoint"];

/// The authorizer's mode and its last refusal.
#[derive(Clone, Default)]
pub struct Guard(Arc<Cells>);

#[derive(Default)]
struct Cells {
    is_own: AtomicBool,
    refusal: Mutex<Option<&'static str>>,
    has_marked: AtomicBool,
}

impl Guard {
    /// A guard that watches a connection for as long as it is open.
    pub fn install(raw: &rusqlite::Connection) -> rusqlite::Result<Guard> {
        let guard = Guard::default();
        let cells = Arc::clone(&guard.0);
        raw.authorizer(Some(move |context: AuthContext<'_>| match cells.judge(&context) {
            None => Authorization::Allow,
            Some(reason) => {
                *cells.refusal.lock() = Some(reason);
                Authorization::Deny
            }
        }))?;
        Ok(guard)
    }

    /// Run walpool's own SQL: nothing is refused meanwhile. It covers running as well as preparing, since SQLite prepares
    /// a statement anew, and asks again, when the schema has changed.
    pub fn own<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.is_own.store(true, Ordering::Relaxed);
        let done = work();
        self.0.is_own.store(false, Ordering::Relaxed);
        done
    }

    /// Whether a caller's SQL that may mark the file as retired has been prepared; it may run at any time since.
    pub fn has_marked(&self) -> bool {
        self.0.has_marked.load(Ordering::Relaxed)
    }

    /// An error that says what was refused, in place of SQLite's "not authorized".
    pub fn explain(&self, error: Error) -> Error {
        // For a function SQLite says so in its words, and in its code only that the statement is wrong.
        if error.primary_code() != Some(ffi::SQLITE_AUTH) && !error.message.starts_with("not authorized") {
            return error;
        }
        match self.0.refusal.lock().take() {
            Some(reason) => Error { kind: Kind::Programming, message: reason.to_owned(), ..error },
            None => error,
        }
    }
}

impl Cells {
    /// The reason to refuse, if there is one.
    fn judge(&self, context: &AuthContext<'_>) -> Option<&'static str> {
        if self.is_own.load(Ordering::Relaxed) {
            return None;
        }
        match &context.action {
            AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => Some(TRANSACTION),
            AuthAction::Attach { .. } | AuthAction::Detach { .. } => Some(ATTACH),
            AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::CreateTempView { .. } => Some(TEMP),
            // `CREATE TABLE temp.t` is no temporary table by its action, but it is entered in the schema of that name.
            AuthAction::Insert { .. } if context.database_name == Some("temp") => Some(TEMP),
            AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } if is_mark(table_name) => {
                self.has_marked.store(true, Ordering::Relaxed);
                None
            }
            AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
                Some(EXTENSION)
            }
            AuthAction::Pragma { pragma_name, pragma_value } => judge_pragma(pragma_name, pragma_value.is_some()),
            // ATTACH with an expression for a name, and the like, come without their arguments.
            AuthAction::Unknown { code, .. } if *code == ffi::SQLITE_ATTACH || *code == ffi::SQLITE_DETACH => {
                Some(ATTACH)
            }
            AuthAction::Unknown { code, .. } if *code == ffi::SQLITE_TRANSACTION || *code == ffi::SQLITE_SAVEPOINT => {
                Some(TRANSACTION)
            }
            _ => None,
        }
    }
}

fn judge_pragma(name: &str, has_value: bool) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let name = name.as_str();
    if TELLING.contains(&name) || (!has_value && !ACTING.contains(&name)) { None } else { Some(PRAGMA) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pragmas_that_tell_are_allowed_and_those_that_act_are_not() {
        for (name, has_value, is_allowed) in [
            ("table_info", true, true),
            ("USER_VERSION", true, true),
            ("journal_mode", false, true),
            ("journal_mode", true, false),
            ("synchronous", true, false),
            ("defer_foreign_keys", true, false),
            ("wal_checkpoint", false, false),
            ("schema_version", false, true),
            ("schema_version", true, false), // a wrong number makes others read the file by an old schema
        ] {
            assert_eq!(judge_pragma(name, has_value).is_none(), is_allowed, "{name} {has_value}");
        }
    }
}
