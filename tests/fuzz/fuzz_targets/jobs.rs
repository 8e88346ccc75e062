//! Sequences of jobs, good and failing, alone, in groups and in leases, beside a model that says what each must answer and
//! what must be in the table afterwards.
#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::thread;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use walpool::caller::Call;
use walpool::config::{Config, Synchronous};
use walpool::connection::{CheckpointMode, Want};
use walpool::engine::Engine;
use walpool::group_commit::{Answer, Job, Work};
use walpool::stats::Figure;
use walpool::value::{Out, Params, Value};

type Table = BTreeMap<i64, i64>;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Conflict {
    Abort,
    Fail,
    Rollback,
    Ignore,
    Replace,
}

#[derive(Arbitrary, Clone, Debug)]
enum Statement {
    Put(u8, i8, Conflict),
    PutTwo(u8, u8, i8, Conflict),
    Change(u8, i8),
    Delete(u8),
    /// A trigger refuses it: RAISE(ABORT), RAISE(FAIL), RAISE(ROLLBACK).
    Refused(u8),
    /// A deferred foreign key that nothing satisfies.
    Orphan(u8),
    /// SQL that may not run.
    Forbidden(u8),
    WrongParams,
}

#[derive(Arbitrary, Debug)]
enum Act {
    Alone(Statement),
    Many(Vec<(u8, i8)>, Conflict),
    Batch(Vec<Statement>),
    Script(Vec<Statement>),
    /// Jobs that stand in the queue together and are committed as one group.
    Group(Vec<Vec<Statement>>),
    /// A transaction, with a savepoint around each part that is undone where it says so, and at last a COMMIT or not.
    Lease(Vec<(Vec<Statement>, bool)>, bool),
    Checkpoint(bool),
}

const FORBIDDEN: [&str; 7] = [
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT walpool_job",
    "PRAGMA journal_mode = delete",
    "ATTACH ':memory:' AS m",
    "nonsense",
    "INSERT INTO nowhere VALUES (1)",
];

impl Conflict {
    fn sql(self) -> &'static str {
        match self {
            Conflict::Abort => "ABORT",
            Conflict::Fail => "FAIL",
            Conflict::Rollback => "ROLLBACK",
            Conflict::Ignore => "IGNORE",
            Conflict::Replace => "REPLACE",
        }
    }

    /// Put a row into the model; false where the statement fails.
    fn put(self, table: &mut Table, key: u8, value: i8) -> bool {
        let (key, value) = (i64::from(key % 16), i64::from(value));
        if !table.contains_key(&key) || matches!(self, Conflict::Replace) {
            table.insert(key, value);
            return true;
        }
        matches!(self, Conflict::Ignore)
    }
}

impl Statement {
    /// The SQL with its values in it: a script takes no parameters.
    fn sql(&self) -> String {
        match self {
            Statement::Put(key, value, conflict) => {
                format!("INSERT OR {} INTO t VALUES ({}, {value})", conflict.sql(), key % 16)
            }
            Statement::PutTwo(one, two, value, conflict) => {
                format!("INSERT OR {} INTO t VALUES ({}, {value}), ({}, {value})", conflict.sql(), one % 16, two % 16)
            }
            Statement::Change(key, value) => format!("UPDATE t SET v = {value} WHERE k = {}", key % 16),
            Statement::Delete(key) => format!("DELETE FROM t WHERE k = {}", key % 16),
            Statement::Refused(how) => format!("INSERT INTO refused VALUES ({})", how % 3),
            Statement::Orphan(key) => format!("INSERT INTO orphans VALUES ({})", 1000 + i64::from(*key)),
            Statement::Forbidden(which) => FORBIDDEN[usize::from(*which) % FORBIDDEN.len()].to_owned(),
            Statement::WrongParams => "SELECT ?, ?".to_owned(),
        }
    }

    /// Run it on the model; false where it fails, and then the model is a copy to be thrown away.
    fn run(&self, table: &mut Table) -> bool {
        match self {
            Statement::Put(key, value, conflict) => conflict.put(table, *key, *value),
            Statement::PutTwo(one, two, value, conflict) => {
                conflict.put(table, *one, *value) && conflict.put(table, *two, *value)
            }
            Statement::Change(key, value) => {
                if let Some(old) = table.get_mut(&i64::from(key % 16)) {
                    *old = i64::from(*value);
                }
                true
            }
            Statement::Delete(key) => {
                table.remove(&i64::from(key % 16));
                true
            }
            Statement::Refused(how) => {
                if how % 3 == 1 {
                    table.insert(99, 99); // by the trigger, before it fails
                }
                false
            }
            _ => false,
        }
    }

    /// Whether a transaction keeps what it wrote before it failed, as SQLite has it; a job never does.
    fn keeps_what_it_wrote(&self) -> bool {
        match self {
            Statement::PutTwo(.., Conflict::Fail) => true,
            Statement::Refused(how) => how % 3 == 1,
            _ => false,
        }
    }

    /// What ends the whole transaction of a lease, savepoints and all.
    fn ends_transaction(&self, table: &Table) -> bool {
        match self {
            Statement::Put(.., Conflict::Rollback) | Statement::PutTwo(.., Conflict::Rollback) => {
                !self.run(&mut table.clone())
            }
            Statement::Refused(how) => how % 3 == 2,
            _ => false,
        }
    }
}

fn all_or_nothing(table: &mut Table, statements: &[Statement]) -> bool {
    let mut copy = table.clone();
    let is_good = statements.iter().all(|statement| statement.run(&mut copy));
    if is_good {
        *table = copy;
    }
    is_good
}

fn batch(statements: &[Statement]) -> Work {
    Work::Batch(statements.iter().map(|statement| (statement.sql().into(), Params::NONE)).collect())
}

/// One engine for the whole run: a file for each input would cost a hundred times what the input does.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let config = Config { readers: 2, synchronous: Synchronous::Normal, ..Config::default() };
        let engine = Engine::open(&Call::internal(), &folder.join("jobs.db"), &config, &[]).unwrap();
        let tables = "CREATE TABLE t (k INTEGER PRIMARY KEY, v);
            CREATE TABLE refused (how);
            CREATE TRIGGER abort BEFORE INSERT ON refused WHEN NEW.how = 0 BEGIN SELECT RAISE(ABORT, 'no'); END;
            CREATE TRIGGER fail BEFORE INSERT ON refused WHEN NEW.how = 1 BEGIN
                INSERT OR REPLACE INTO t VALUES (99, 99); SELECT RAISE(FAIL, 'no');
            END;
            CREATE TRIGGER roll BEFORE INSERT ON refused WHEN NEW.how = 2 BEGIN SELECT RAISE(ROLLBACK, 'no'); END;
            CREATE TABLE orphans (k REFERENCES t DEFERRABLE INITIALLY DEFERRED);";
        submit(&engine, Work::Script(tables.into())).unwrap();
        engine
    })
}

fn submit(engine: &Engine, work: Work) -> Answer {
    engine.submit(&Call::internal(), Job::new(work))
}

fn jobs_waiting(engine: &Engine) -> usize {
    let stats = engine.stats(false);
    match stats.iter().find(|(name, _)| name == "jobs_waiting") {
        Some((_, Figure::Count(count))) => usize::try_from(*count).unwrap(),
        _ => panic!("no such figure"),
    }
}

/// Let the jobs queue up in this order behind a held writer, then let it go.
fn run_group(engine: &Engine, jobs: &[Vec<Statement>]) -> Vec<Answer> {
    let lease = engine.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for job in jobs {
            threads.push(scope.spawn(|| submit(engine, batch(job))));
            while jobs_waiting(engine) < threads.len() {
                thread::yield_now();
            }
        }
        lease.rollback().unwrap();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Run a lease on engine and model; true where it was committed.
fn run_lease(engine: &Engine, table: &mut Table, parts: &[(Vec<Statement>, bool)], commits: bool) {
    let call = Call::internal();
    let lease = engine.lease(&call).unwrap();
    let mut inside = table.clone();
    for (statements, keeps) in parts {
        let before = inside.clone();
        lease.mark(&call).unwrap();
        for statement in statements {
            if matches!(statement, Statement::Orphan(_)) {
                continue; // it fails at COMMIT, and the savepoints in between decide whether it does
            }
            let ends = statement.ends_transaction(&inside);
            let mut after = inside.clone();
            let is_good = statement.run(&mut after);
            let done = lease.execute(&call, &statement.sql(), &Params::NONE);
            assert_eq!(done.is_ok(), is_good, "{statement:?}: {done:?}");
            if ends {
                assert!(lease.fetch(&call, "SELECT 1", &Params::NONE, Want::ALL).is_err(), "{statement:?}");
                let _ = lease.rollback(); // it is over already
                return;
            }
            if is_good || statement.keeps_what_it_wrote() {
                inside = after;
            }
        }
        if *keeps {
            lease.keep_mark(&call).unwrap();
        } else {
            lease.undo_to_mark(&call).unwrap();
            inside = before;
        }
    }
    if commits {
        lease.commit(&call).unwrap();
        *table = inside;
    } else {
        lease.rollback().unwrap();
    }
}

fn act(engine: &Engine, table: &mut Table, act: &Act) {
    match act {
        Act::Alone(statement) => {
            let done = submit(engine, Work::Execute(statement.sql().into(), Params::NONE));
            assert_eq!(done.is_ok(), all_or_nothing(table, std::slice::from_ref(statement)), "{done:?}");
        }
        Act::Many(rows, conflict) => {
            let sql = format!("INSERT OR {} INTO t VALUES (?, ?)", conflict.sql());
            let values =
                |(key, value): &(u8, i8)| vec![Value::Integer((key % 16).into()), Value::Integer((*value).into())];
            let params = rows.iter().map(|row| Params::Positional(values(row))).collect();
            let puts: Vec<_> = rows.iter().map(|(key, value)| Statement::Put(*key, *value, *conflict)).collect();
            let done = submit(engine, Work::Many(sql.into(), params));
            assert_eq!(done.is_ok(), all_or_nothing(table, &puts), "{done:?}");
        }
        Act::Batch(statements) => {
            let done = submit(engine, batch(statements));
            assert_eq!(done.is_ok(), all_or_nothing(table, statements), "{done:?}");
        }
        Act::Script(statements) => {
            // Without parameters SQLite takes NULL for each, and the script goes on.
            let has_params = statements.iter().any(|statement| matches!(statement, Statement::WrongParams));
            let sql: Vec<String> = statements.iter().map(Statement::sql).collect();
            if !has_params {
                let done = submit(engine, Work::Script(sql.join(";\n").into()));
                assert_eq!(done.is_ok(), all_or_nothing(table, statements), "{done:?}");
            }
        }
        Act::Group(jobs) => {
            let jobs = &jobs[..jobs.len().min(6)];
            for (job, done) in jobs.iter().zip(run_group(engine, jobs)) {
                assert_eq!(done.is_ok(), all_or_nothing(table, job), "{job:?}: {done:?}");
            }
        }
        Act::Lease(parts, commits) => run_lease(engine, table, parts, *commits),
        Act::Checkpoint(is_passive) => {
            let mode = if *is_passive { CheckpointMode::Passive } else { CheckpointMode::Truncate };
            engine.checkpoint(&Call::internal(), mode).unwrap();
        }
    }
}

fuzz_target!(|acts: Vec<Act>| {
    let engine = engine();
    submit(engine, Work::Script("DELETE FROM t; DELETE FROM orphans; DELETE FROM refused".into())).unwrap();
    let mut table = Table::new();
    for one in &acts {
        act(engine, &mut table, one);
        let rows = engine.fetch(&Call::internal(), "SELECT k, v FROM t ORDER BY k", &Params::NONE, Want::ALL).unwrap();
        let found: Vec<_> = (0..rows.len()).map(|row| (rows.value(row, 0), rows.value(row, 1))).collect();
        let expected: Vec<_> = table.iter().map(|(k, v)| (Out::Integer(*k), Out::Integer(*v))).collect();
        assert_eq!(found, expected, "after {one:?}");
    }
});
