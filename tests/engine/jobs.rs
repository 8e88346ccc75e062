//! Whole jobs: a failed job undoes itself and nothing else; nobody is answered before COMMIT returned.
//!
//! The groups here are made by `run_together`: its jobs wait behind a lease, so that one leader takes them all.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use walpool::caller::Call;
use walpool::engine::Engine;
use walpool::error::{Kind, Outcome};
use walpool::group_commit::{Job, Work};
use walpool::value::{Out, Params, Value};

use crate::support::*;

const SCHEMA: &str = "
    CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
    CREATE TABLE child (item INTEGER REFERENCES item(id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER rolls_back AFTER INSERT ON item WHEN NEW.name = 'rollback' BEGIN SELECT RAISE(ROLLBACK, 'told'); END;
    CREATE TRIGGER fails AFTER INSERT ON item WHEN NEW.name = 'fail' BEGIN SELECT RAISE(FAIL, 'told'); END;
    CREATE TRIGGER aborts AFTER INSERT ON item WHEN NEW.name = 'abort' BEGIN SELECT RAISE(ABORT, 'told'); END;
    INSERT INTO item VALUES (1, 'taken');
";

fn many(sql: &str, values: &[&str]) -> Job {
    let row = |value: &&str| Params::Positional(vec![Value::Text((*value).into())]);
    Job::new(Work::Many(sql.into(), values.iter().map(row).collect()))
}

fn script_job(sql: &str) -> Job {
    Job::new(Work::Script(sql.into()))
}

/// Run an offender between two good jobs, and see that it has its error, that nothing of it is left, and that its neighbours
/// are whole. `replays`: how often the group has to be run again for that.
fn assert_undoes_itself_and_nothing_else(offender: Job, kind: Kind, replays: u64) {
    let what = format!("{:?}", offender.work);
    let db = Database::new();
    script(&db, SCHEMA);
    db.stats(&Call::internal(), true).unwrap();
    let before = job("INSERT INTO item VALUES (100, 'before')");
    let behind = batch(&["INSERT INTO item VALUES (101, 'behind')", "INSERT INTO child VALUES (101)"]);
    let answers = run_together(&db, vec![before, offender.clone(), behind]);

    let [Ok(_), Err(error), Ok(_)] = &answers[..] else { panic!("{what}: {answers:?}") };
    assert_eq!((error.kind, error.outcome), (kind, Outcome::NotApplied), "{what}: {error}");
    assert_eq!(items(&db), [1, 100, 101], "{what}");
    assert_eq!(ints(&db, "SELECT count(*) FROM sqlite_schema WHERE name = 'new'"), [0], "{what}");
    assert_eq!(ints(&db, "PRAGMA user_version"), [0], "{what}");
    assert_eq!(ints(&db, "SELECT item FROM child"), [101], "{what}");
    assert_eq!(figure(&db, "group_replays"), replays, "{what}");
    // A group that had to be run again takes no more jobs: the last one has a COMMIT of its own then. On a slow machine
    // a group may close earlier, after 5 ms of work.
    assert!(figure(&db, "groups") > replays.min(1), "{what}");
    assert_eq!((figure(&db, "jobs"), figure(&db, "jobs_failed")), (2, 1), "{what}");
    assert_undoes_itself_when_care_is_taken(&db, offender, &what);
}

/// The same where a job of several statements has failed just before, so that this one stands behind a savepoint.
fn assert_undoes_itself_when_care_is_taken(db: &Engine, offender: Job, what: &str) {
    let one_more = batch(&["INSERT INTO item VALUES (102, 'more')", "INSERT INTO item VALUES (103, 'taken')"]);
    submit(db, one_more).unwrap_err();
    let before = batch(&["INSERT INTO item VALUES (104, 'one')", "INSERT INTO item VALUES (105, 'two')"]);
    let behind = batch(&["INSERT INTO item VALUES (106, 'three')", "INSERT INTO child VALUES (106)"]);
    let answers = run_together(db, vec![before, offender, behind]);

    let [Ok(_), Err(_), Ok(_)] = &answers[..] else { panic!("{what}: {answers:?}") };
    assert_eq!(items(db), [1, 100, 101, 104, 105, 106], "{what}");
    assert_eq!(ints(db, "SELECT item FROM child"), [101, 106], "{what}");
    assert_eq!(ints(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'new'"), [0], "{what}");
    assert_eq!(ints(db, "PRAGMA user_version"), [0], "{what}");
}

#[test]
fn failed_statement_undoes_itself_and_nothing_else() {
    for (sql, replays) in [
        ("INSERT INTO item VALUES (2, 'taken')", 0),
        ("INSERT INTO item (name) VALUES ('new'), ('taken')", 0),
        ("UPDATE item SET name = 'taken' WHERE id = 100", 0), // its neighbour's row, in the same transaction
        ("INSERT OR ABORT INTO item (name) VALUES ('new'), ('taken')", 0),
        ("INSERT OR FAIL INTO item (name) VALUES ('taken')", 0),
        ("INSERT OR FAIL INTO item (name) VALUES ('new'), ('taken')", 1),
        ("INSERT OR ROLLBACK INTO item (name) VALUES ('new'), ('taken')", 1),
        ("INSERT INTO item (name) VALUES ('new'), ('abort')", 0),
        ("INSERT INTO item (name) VALUES ('new'), ('fail')", 1),
        ("INSERT INTO item (name) VALUES ('new'), ('rollback')", 1),
        ("INSERT INTO child VALUES (999)", 1), // a deferred foreign key: it would fail the COMMIT of all
    ] {
        assert_undoes_itself_and_nothing_else(job(sql), Kind::Integrity, replays);
    }
}

#[test]
fn failed_job_of_several_statements_undoes_all_of_them() {
    let good = "INSERT INTO item (name) VALUES ('new')";
    for (offender, replays) in [
        (batch(&["INSERT INTO item VALUES (2, 'taken')", good]), 0), // SQLite undoes its first statement by itself
        (batch(&[good, "INSERT INTO item VALUES (2, 'taken')"]), 1),
        (batch(&["CREATE TABLE new (a)", "INSERT INTO item VALUES (2, 'taken')"]), 1),
        (batch(&["PRAGMA user_version = 7", "INSERT INTO item VALUES (2, 'taken')"]), 1),
        (batch(&[good, "INSERT OR FAIL INTO item (name) VALUES ('newer'), ('taken')"]), 1),
        (batch(&[good, "INSERT OR ROLLBACK INTO item (name) VALUES ('taken')", good]), 1),
        (batch(&[good, "INSERT INTO item (name) VALUES ('rollback')"]), 1),
        (batch(&[good, "INSERT INTO child VALUES (999)"]), 1),
        (many("INSERT INTO item (name) VALUES (?)", &["taken", "a"]), 0),
        (many("INSERT INTO item (name) VALUES (?)", &["a", "b", "taken", "c"]), 1),
        (many("INSERT OR FAIL INTO item (name) VALUES (?)", &["a", "taken"]), 1),
        (many("INSERT INTO item (name) VALUES (?)", &["a", "rollback"]), 1),
        (script_job("INSERT INTO item (name) VALUES ('new'); INSERT INTO item (name) VALUES ('taken');"), 0),
        (script_job("INSERT INTO item (name) VALUES ('new'); INSERT INTO item (name) VALUES ('rollback');"), 1),
        (script_job("INSERT INTO child VALUES (999); INSERT INTO item (name) VALUES ('new');"), 0),
    ] {
        assert_undoes_itself_and_nothing_else(offender, Kind::Integrity, replays);
    }
}

#[test]
fn job_of_several_statements_that_fails_soon_after_another_costs_its_neighbours_no_second_run() {
    let db = Database::new();
    script(&db, SCHEMA);
    let offender = || batch(&["INSERT INTO item (name) VALUES ('new')", "INSERT INTO item VALUES (2, 'taken')"]);
    let (first, second) =
        (batch(&["INSERT INTO item VALUES (100, 'a')"]), batch(&["INSERT INTO item VALUES (101, 'b')"]));
    let answers = run_together(&db, vec![first, offender(), offender(), second, offender()]);
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(|error| error.kind)).collect();
    let failed = Some(Kind::Integrity);
    assert_eq!(kinds, [None, failed, failed, None, failed]);
    assert_eq!(figure(&db, "group_replays"), 1);
    assert_eq!(items(&db), [1, 100, 101]);
}

#[test]
fn answers_of_a_job_that_was_run_again_are_those_of_the_run_that_was_committed() {
    let db = Database::new();
    script(&db, SCHEMA);
    let counting = batch(&[
        "INSERT INTO item (name) SELECT 'n' || count(*) FROM item RETURNING id, name",
        "SELECT last_insert_rowid(), changes()",
    ]);
    let offender = many("INSERT INTO item (name) VALUES (?)", &["x", "y", "taken"]);
    let answers = run_together(&db, vec![counting.clone(), offender, counting]);
    for (place, id, name) in [(0, 2, b"n1"), (2, 3, b"n2")] {
        let ran = answers[place].as_ref().unwrap();
        assert_eq!((ran[0].rowcount, ran[0].lastrowid), (1, Some(id)));
        assert_eq!((ran[0].rows.value(0, 0), ran[0].rows.value(0, 1)), (Out::Integer(id), Out::Text(name)));
        assert_eq!((ran[1].rows.value(0, 0), ran[1].rows.value(0, 1)), (Out::Integer(id), Out::Integer(1)));
    }
    assert!(answers[1].is_err());
    assert_eq!(items(&db), [1, 2, 3]);
}

#[test]
fn job_that_tries_to_end_the_transaction_or_to_weaken_it_is_refused_alone() {
    for sql in [
        "COMMIT",
        "END",
        "ROLLBACK",
        "BEGIN",
        "SAVEPOINT walpool_job",
        "RELEASE walpool_job",
        "ROLLBACK TO walpool_job",
        "/* walpool */ COMMIT",
        "  /* walpool */ ROLLBACK",
        "ATTACH 'other.db' AS other",
        "ATTACH 'oth' || 'er.db' AS other",
        "DETACH main",
        "PRAGMA synchronous = OFF",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA defer_foreign_keys = ON",
        "PRAGMA foreign_keys = OFF",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA schema_version = 1",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "CREATE TEMP TABLE scratch (a)",
        "CREATE TEMP VIEW scratch AS SELECT 1",
        "VACUUM",
        "VACUUM INTO 'copy.db'",
    ] {
        assert_undoes_itself_and_nothing_else(job(sql), Kind::Programming, 0);
        let in_a_batch = batch(&["INSERT INTO item (name) VALUES ('new')", sql]);
        assert_undoes_itself_and_nothing_else(in_a_batch, Kind::Programming, 1);
        let in_a_script = script_job(&format!("INSERT INTO item (name) VALUES ('new'); {sql};"));
        assert_undoes_itself_and_nothing_else(in_a_script, Kind::Programming, 0);
    }
}

#[test]
fn job_that_is_no_sql_or_has_wrong_parameters_fails_alone() {
    for offender in [
        job("INSRT INTO item VALUES (2, 'new')"),
        job("INSERT INTO nowhere VALUES (2)"),
        job("INSERT INTO item VALUES (?, ?)"),
        job("INSERT INTO item VALUES (2, 'a'); INSERT INTO item VALUES (3, 'b')"),
        job(""),
        job("-- only a comment"),
        job_with("INSERT INTO item VALUES (2, :name)", vec![Value::Null]),
        batch(&["INSERT INTO item VALUES (2, 'new')", "INSERT INTO item VALUES (?, ?)"]),
        many("INSERT INTO item VALUES (?, 'new')", &["not", "numbers"]),
    ] {
        let kind = match &offender.work {
            Work::Many(..) => Kind::Integrity, // SQLITE_MISMATCH: an id that is no number
            _ => Kind::Programming,
        };
        let replays = u64::from(matches!(offender.work, Work::Batch(_))); // its first statement was good
        assert_undoes_itself_and_nothing_else(offender, kind, replays);
    }
}

#[test]
fn row_that_cannot_be_returned_undoes_the_insert_that_would_return_it() {
    let offender = job("INSERT INTO item VALUES (2, 'new'), (3, 'newer') RETURNING abs(-9223372036854775807 + 2 - id)");
    assert_undoes_itself_and_nothing_else(offender, Kind::Programming, 0);
}

#[test]
fn several_offenders_in_one_group_each_get_their_own_error() {
    let db = Database::new();
    script(&db, SCHEMA);
    let answers = run_together(
        &db,
        vec![
            job("INSERT INTO item (name) VALUES ('rollback')"),
            job("INSERT INTO item VALUES (2, 'a')"),
            job("INSERT OR FAIL INTO item (name) VALUES ('b'), ('taken')"),
            job("INSERT INTO item VALUES (3, 'b')"),
            job("INSERT INTO child VALUES (999)"),
            job("INSERT INTO item VALUES (3, 'again')"),
            job("INSERT INTO child VALUES (3)"),
        ],
    );
    let kinds: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(|error| error.kind)).collect();
    let failed = Some(Kind::Integrity);
    assert_eq!(kinds, [failed, None, failed, None, failed, failed, None]);
    assert_eq!(items(&db), [1, 2, 3]);
    assert_eq!(ints(&db, "SELECT item FROM child"), [3]);
}

#[test]
fn job_sees_the_jobs_that_were_run_before_it_in_its_group() {
    let db = Database::with_items(|_| ());
    let select_into = job("INSERT INTO item (id) SELECT max(id) + 1 FROM item");
    let answers = run_together(&db, vec![insert(7), select_into.clone(), select_into]);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(items(&db), [7, 8, 9]);
}

#[test]
fn answer_carries_the_count_the_rowid_and_the_rows_of_its_own_job() {
    let db = Database::new();
    script(&db, SCHEMA);
    let answers = run_together(
        &db,
        vec![
            job("INSERT INTO item VALUES (50, 'a'), (51, 'b')"),
            job("INSERT OR IGNORE INTO item VALUES (50, 'a')"), // must not show its neighbour's rowid
            job("UPDATE item SET name = name || '!' RETURNING id, name"),
            job("DELETE FROM item WHERE id > 50"),
            job("CREATE TABLE other (a)"),
            many("INSERT INTO item (name) VALUES (?)", &["c", "d"]),
            batch(&["INSERT INTO item VALUES (60, 'e')", "SELECT count(*) FROM item"]),
        ],
    );
    let ran = |place: usize| answers[place].as_ref().unwrap();
    let counts: Vec<_> = (0..7).map(|place| (ran(place)[0].rowcount, ran(place)[0].lastrowid)).collect();
    assert_eq!(counts, [(2, Some(51)), (0, None), (3, None), (1, None), (-1, None), (2, Some(52)), (1, Some(60))]);
    let updated = &ran(2)[0].rows;
    assert_eq!((updated.len(), updated.value(2, 1)), (3, Out::Text(b"b!")));
    assert_eq!(*updated.columns, ["id".into(), "name".into()]);
    assert_eq!((ran(6)[1].lastrowid, ran(6)[1].rows.value(0, 0)), (None, Out::Integer(5)));
}

/// ```text
/// writer                         a connection that walpool does not know
/// submit: ... COMMIT, answer
///                                SELECT: must find the row
/// ```
#[test]
fn answer_comes_after_commit() {
    let db = Database::with_items(|_| ());
    thread::scope(|scope| {
        for writer in 0..4 {
            let db = &db;
            scope.spawn(move || {
                let foreign = db.foreign();
                let mut find = foreign.prepare("SELECT count(*) FROM item WHERE id = ?").unwrap();
                for id in (writer..400).step_by(4) {
                    submit(db, insert(id)).unwrap();
                    let found: i64 = find.query_row([id], |row| row.get(0)).unwrap();
                    assert_eq!(found, 1, "item {id} was acknowledged and is not there");
                }
            });
        }
    });
    assert_eq!(items(&db).len(), 400);
}

/// ```text
/// four writers                   eight readers
/// submit n, COMMIT, answer
/// acknowledged[w] = n
///                                reads acknowledged[w] = n
///                                SELECT max: n or more
/// ```
#[test]
fn write_that_was_acknowledged_is_seen_by_every_read_that_starts_afterwards() {
    const WRITES: i64 = 200;
    let db = Database::new();
    write(&db, "CREATE TABLE highest (writer INTEGER PRIMARY KEY, n INTEGER)").unwrap();
    write(&db, "INSERT INTO highest VALUES (0, 0), (1, 0), (2, 0), (3, 0)").unwrap();
    let acknowledged: [AtomicI64; 4] = Default::default();
    thread::scope(|scope| {
        for (writer, last) in acknowledged.iter().enumerate() {
            let db = &db;
            scope.spawn(move || {
                for n in 1..=WRITES {
                    let sql = "UPDATE highest SET n = ? WHERE writer = ?";
                    submit(db, job_with(sql, vec![Value::Integer(n), Value::Integer(writer as i64)])).unwrap();
                    last.store(n, Ordering::Release);
                }
            });
        }
        for reader in 0..8 {
            let (db, last) = (&db, &acknowledged[reader % 4]);
            let sql = format!("SELECT n FROM highest WHERE writer = {}", reader % 4);
            scope.spawn(move || {
                let mut seen = 0;
                while seen < WRITES {
                    let promised = last.load(Ordering::Acquire);
                    seen = int(db, &sql);
                    assert!(seen >= promised, "{promised} was acknowledged, and {seen} was read afterwards");
                }
            });
        }
    });
}
