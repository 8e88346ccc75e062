//! Reads: one snapshot each, on connections that cannot write, beside a writer that they never block.

use std::thread;
use std::time::Duration;

use walpool::caller::Call;
use walpool::connection::Want;
use walpool::error::Kind;
use walpool::reader::{Snapshot, Stream};
use walpool::value::Params;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(50);

fn count_in(snapshot: &Snapshot) -> i64 {
    numbers(&snapshot.fetch(&Call::internal(), "SELECT count(*) FROM item", &Params::NONE, Want::ALL).unwrap())[0]
}

fn next(stream: &Stream, most: usize) -> Vec<i64> {
    numbers(&stream.next_rows(&Call::internal(), Want { columns: false, most }).unwrap())
}

/// ```text
/// reader                 writer
/// snapshot
///                        COMMIT       not visible in the snapshot, which was taken before its first read
/// SELECT: 0
///                        COMMIT
/// SELECT: 0
/// ends it; SELECT: 2
/// ```
#[test]
fn reader_keeps_its_snapshot_while_the_writer_commits() {
    let db = Database::with_items(|config| config.readers = 1);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    submit(&db, insert(1)).unwrap();
    assert_eq!(count_in(&snapshot), 0);
    submit(&db, insert(2)).unwrap();
    assert_eq!(count_in(&snapshot), 0);
    snapshot.end();
    snapshot.end(); // safe to call twice
    let error = failure(snapshot.fetch(&Call::internal(), "SELECT 1", &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::Interface);
    assert_eq!(items(&db), [1, 2], "the reader has not brought its old snapshot home");
}

#[test]
fn snapshot_that_is_dropped_in_an_error_gives_back_a_clean_reader() {
    let db = Database::with_items(|config| config.readers = 1);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    failure(snapshot.fetch(&Call::internal(), "SELECT nothing", &Params::NONE, Want::ALL));
    drop(snapshot);
    submit(&db, insert(1)).unwrap();
    assert_eq!((items(&db), figure(&db, "readers_out")), (vec![1], 0));
}

#[test]
fn reads_cannot_write() {
    let db = Database::with_items(|_| ());
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    for sql in [
        "INSERT INTO item (id) VALUES (1)",
        "INSERT INTO item (id) VALUES (1) RETURNING id",
        "WITH new(id) AS (SELECT 1) INSERT INTO item (id) SELECT id FROM new",
        "CREATE TABLE other (a)",
        "CREATE TEMP TABLE other (a)",
        "DROP TABLE item",
        "PRAGMA query_only = OFF",
        "PRAGMA user_version = 7",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "VACUUM",
        "ATTACH ':memory:' AS other",
    ] {
        assert_eq!(failure(fetch(&db, &Call::internal(), sql)).kind, Kind::Programming, "fetch: {sql}");
        let in_snapshot = snapshot.fetch(&Call::internal(), sql, &Params::NONE, Want::ALL);
        assert_eq!(failure(in_snapshot).kind, Kind::Programming, "snapshot: {sql}");
        let stream = db.stream(&Call::internal(), sql, &Params::NONE);
        assert_eq!(stream.err().unwrap().kind, Kind::Programming, "stream: {sql}");
    }
    assert_eq!((items(&db), int(&db, "PRAGMA user_version")), (vec![], 0));
}

#[test]
fn reads_and_an_open_transaction_do_not_wait_for_each_other() {
    let db = Database::with_items(|config| config.readers = 1);
    let lease = db.lease(&Call::internal()).unwrap();
    lease.execute(&Call::internal(), "INSERT INTO item (id) VALUES (1)", &Params::NONE).unwrap();
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    assert_eq!(count_in(&snapshot), 0);
    lease.commit(&Call::internal()).unwrap();
    assert_eq!(count_in(&snapshot), 0);
}

/// ```text
/// holder          eight writers          reader
/// lease
///                 queued, all of them
///                                        SELECT: has the only reader
/// ```
#[test]
fn pool_is_never_exhausted_by_writers() {
    let db = Database::with_items(|config| config.readers = 1);
    let lease = db.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        for id in 0..8 {
            let db = &db;
            scope.spawn(move || submit(db, insert(id)).unwrap());
        }
        until_waiting(&db, 8);
        assert_eq!(fetch(&db, &call_within(SHORT), "SELECT id FROM item").unwrap().len(), 0);
        lease.rollback().unwrap();
    });
    assert_eq!(items(&db).len(), 8);
}

#[test]
fn stream_gives_the_rows_of_one_snapshot_piece_by_piece() {
    let db = Database::with_items(|_| ());
    submit(&db, job("INSERT INTO item (id) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 95) SELECT i FROM n"))
        .unwrap();
    let stream = db.stream(&Call::internal(), "SELECT id FROM item ORDER BY id", &Params::NONE).unwrap();
    assert_eq!(next(&stream, 40), (1..=40).collect::<Vec<_>>());
    submit(&db, job("UPDATE item SET id = id + 1000")).unwrap();
    assert_eq!(next(&stream, 40), (41..=80).collect::<Vec<_>>());
    assert_eq!(next(&stream, 40), (81..=95).collect::<Vec<_>>());
    assert_eq!(items(&db)[0], 1001);
    stream.end();
    assert_eq!(figure(&db, "readers_out"), 0);
}

#[test]
fn stream_that_has_ended_stays_at_its_end() {
    let db = Database::new();
    for rows in [0, 4, 5] {
        let sql = format!("WITH n(i) AS (VALUES (1), (2), (3), (4), (5)) SELECT i FROM n LIMIT {rows}");
        let stream = db.stream(&Call::internal(), &sql, &Params::NONE).unwrap();
        let read: Vec<_> = (0..6).flat_map(|_| next(&stream, 2)).collect();
        assert_eq!(read, (1..=rows).collect::<Vec<_>>());
    }
}

#[test]
fn stream_that_failed_does_not_begin_again() {
    let db = Database::new();
    let sql =
        "WITH n(i) AS (VALUES (1), (2), (3)) SELECT abs(CASE i WHEN 2 THEN -9223372036854775807 - 1 ELSE i END) FROM n";
    let stream = db.stream(&Call::internal(), sql, &Params::NONE).unwrap();
    let want = Want { columns: false, most: 1 };
    assert_eq!(next(&stream, 1), [1]);
    assert_eq!(failure(stream.next_rows(&Call::internal(), want)).kind, Kind::Programming, "integer overflow");
    assert!(stream.next_rows(&Call::internal(), want).map_or(true, |rows| rows.is_empty()));
}

#[test]
fn read_that_finds_no_reader_in_time_says_who_has_it() {
    let db = Database::with_items(|config| {
        config.readers = 1;
        config.checkout_timeout = SHORT;
    });
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    assert_eq!(count_in(&snapshot), 0);
    for error in [
        failure(fetch(&db, &Call::internal(), "SELECT 1")),
        failure(fetch(&db, &call_within(SHORT / 5), "SELECT 1")),
        db.snapshot(&Call::internal()).err().unwrap(),
    ] {
        assert!(error.kind == Kind::CheckoutTimeout && error.kind.is_retryable(), "{error}");
        assert!(error.message.contains("SELECT count(*) FROM item"), "{error}");
    }
    drop(snapshot);
    assert_eq!(int(&db, "SELECT 1"), 1);
}

/// ```text
/// holder                waiter
/// snapshot
///                       fetch: no reader is free, waits
/// ends it               has the reader
/// ```
#[test]
fn read_that_waits_has_the_reader_that_comes_home() {
    let db = Database::with_items(|config| config.readers = 1);
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let (caller, waits) = Telling::waits();
    let call = call_of(caller);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| fetch(&db, &call, "SELECT 7"));
        waits.recv().unwrap();
        snapshot.end();
        assert_eq!(numbers(&waiter.join().unwrap().unwrap()), [7]);
    });
}

#[test]
fn read_that_runs_past_its_timeout_is_stopped_and_its_reader_serves_the_next() {
    let db = Database::with(|config| config.readers = 1);
    for _ in 0..3 {
        let call = call_within(SHORT);
        let error = failure(fetch(&db, &call, ENDLESS));
        assert_eq!(error.kind, Kind::StatementTimeout);
        assert!(call.started.elapsed() < 20 * SHORT, "{:?}", call.started.elapsed());
        assert_eq!(int(&db, "SELECT 7"), 7);
    }
    let snapshot = db.snapshot(&Call::internal()).unwrap();
    let error = failure(snapshot.fetch(&call_within(SHORT), ENDLESS, &Params::NONE, Want::ALL));
    assert_eq!(error.kind, Kind::StatementTimeout);
    let rows = snapshot.fetch(&Call::internal(), "SELECT 7", &Params::NONE, Want::ALL).unwrap();
    assert_eq!(numbers(&rows), [7], "the snapshot outlives a statement that was stopped");
}

/// SQLite counts the steps of a cached statement over all its runs, and asks the watch every 500: sooner or later it asks in
/// the middle of walpool's own first read, when the timeout of an earlier statement is long over.
#[test]
fn snapshot_is_never_stopped_by_the_timeout_of_an_earlier_read() {
    let db = Database::with(|config| config.readers = 1);
    let call = call_within(SHORT);
    fetch(&db, &call, "SELECT 1").unwrap();
    until("the timeout is over", || call.started.elapsed() > SHORT);
    for _ in 0..600 {
        db.snapshot(&Call::internal()).unwrap().end();
    }
    assert_eq!(figure(&db, "readers"), 1, "a reader that could not be rolled back would have been thrown away");
}

#[test]
fn long_reads_are_told_with_their_sql_and_without_their_values() {
    let db = Database::with(|config| config.slow_threshold = Duration::ZERO);
    let secret = walpool::value::Value::Text("a secret".into());
    db.fetch(&Call::internal(), "SELECT ?", &Params::Positional(vec![secret.clone()]), Want::ALL).unwrap();
    write(&db, "CREATE TABLE item (data)").unwrap();
    submit(&db, job_with("INSERT INTO item VALUES (?)", vec![secret])).unwrap();
    let told: Vec<_> = db.take_messages().into_iter().map(|message| message.text).collect();
    for sql in ["SELECT ?", "INSERT INTO item VALUES (?)"] {
        assert!(told.iter().any(|text| text.contains(sql)), "{sql} is not in {told:?}");
    }
    assert!(!told.iter().any(|text| text.contains("secret")), "{told:?}");
}

#[test]
fn backup_is_one_snapshot_of_a_database_that_goes_on() {
    let db = Database::with_items(|_| ());
    submit(&db, insert(1)).unwrap();
    let copy = db.folder.path().join("copy.db");
    db.backup(&Call::internal(), &copy).unwrap();
    submit(&db, insert(2)).unwrap();
    assert_eq!(failure(db.backup(&Call::internal(), &copy)).kind, Kind::Storage, "it writes over no file");
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&copy.metadata().unwrap().permissions()) & 0o777, 0o600);
    let copied = walpool::engine::Engine::open(&Call::internal(), &copy, db.config(), &[]).unwrap();
    assert_eq!((items(&copied), items(&db)), (vec![1], vec![1, 2]));
    assert!(copied.check(&Call::internal()).unwrap().is_empty());
}

/// ```text
/// check: runs, pauses
///                        transaction_timeout passes
/// goes on to its end
/// ```
#[test]
fn check_takes_as_long_as_the_file_is_large() {
    const TENURE: Duration = Duration::from_millis(300);
    let db = Database::with_items(|config| config.transaction_timeout = TENURE);
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50000) SELECT i, i FROM n";
    write(&db, &format!("INSERT INTO item {numbers}")).unwrap();
    let (caller, is_running, go_on) = Paused::new();
    let call = call_of(caller);
    thread::scope(|scope| {
        let check = scope.spawn(|| db.check(&call));
        is_running.recv().unwrap();
        until("a snapshot would have been taken back", || call.started.elapsed() > 2 * TENURE);
        go_on.send(()).unwrap();
        assert!(check.join().unwrap().unwrap().is_empty());
    });
}
