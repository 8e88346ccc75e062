//! How the bundled SQLite is compiled.

use walpool::caller::Call;
use walpool::connection::{has_wal_reset_fix, sqlite_version};
use walpool::value::Out;

use crate::support::*;

fn compile_options() -> Vec<String> {
    let rows = fetch(&Database::new(), &Call::internal(), "PRAGMA compile_options").unwrap();
    let option = |row| match rows.value(row, 0) {
        Out::Text(option) => String::from_utf8_lossy(option).into_owned(),
        other => panic!("no option: {other:?}"),
    };
    (0..rows.len()).map(option).collect()
}

#[test]
fn sqlite_is_compiled_without_what_makes_connections_wait_for_each_other() {
    let options = compile_options();
    let is_on = |option: &str| options.iter().any(|on| on == option);
    for option in ["THREADSAFE=2", "DEFAULT_MEMSTATUS=0", "OMIT_SHARED_CACHE", "STMTJRNL_SPILL=131071", "DQS=0"] {
        assert!(is_on(option), "{option} is not on: {options:?}");
    }
    for option in ["ENABLE_MEMORY_MANAGEMENT", "ENABLE_API_ARMOR"] {
        assert!(!is_on(option), "{option} is on");
    }
}

#[test]
fn sqlite_has_the_fix_of_the_wal_reset_bug() {
    assert!(has_wal_reset_fix(), "SQLite {} loses data: wal.html#walresetbug", sqlite_version());
}

#[test]
fn text_in_double_quotes_is_no_string() {
    let db = Database::new();
    let error = failure(fetch(&db, &Call::internal(), r#"SELECT "text""#));
    assert!(error.message.contains("no such column"), "{}", error.message);
}
