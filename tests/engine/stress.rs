//! Everything at once, from seeds: whatever the interleaving, what was acknowledged is there, what was not applied is not,
//! every read sees whole jobs, and nobody waits for ever.
//!
//! Each job inserts both halves of a pair, or fails. A seed fixes what each thread does; the scheduler decides the rest, so a
//! seed that fails once is worth running again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use walpool::caller::{Call, Caller, Unhurried};
use walpool::config::Config;
use walpool::connection::{CheckpointMode, Want};
use walpool::error::{Error, Kind, Outcome, Result};
use walpool::group_commit::{Job, Work};
use walpool::value::{Params, Value};

use crate::support::*;

const THREADS: i64 = 8;
const SCHEMA: &str = "
    CREATE TABLE pair (id INTEGER, half INTEGER, PRIMARY KEY (id, half)) WITHOUT ROWID;
    CREATE TABLE child (id INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TRIGGER rolls_back AFTER INSERT ON pair WHEN NEW.half = 7 BEGIN SELECT RAISE(ROLLBACK, 'told'); END;
";
const HALVES: &str = "SELECT count(*) FROM (SELECT 1 FROM pair GROUP BY id HAVING count(*) <> 2)";

/// SplitMix64, by Sebastiano Vigna: <https://prng.di.unimi.it/splitmix64.c>
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// A caller that is interrupted now and then, and is away for a while when it is asked.
struct Restless(Dice);

impl Caller for Restless {
    fn about_to_wait(&self) -> bool {
        true
    }
    fn budget_used(&self) -> bool {
        true
    }
    fn is_waiting_dear(&self) -> bool {
        self.0.roll(2) == 0
    }
    fn can_be_interrupted(&self) -> bool {
        true
    }
    fn is_interrupted(&self) -> bool {
        thread::park_timeout(Duration::from_millis(self.0.roll(8)));
        self.0.roll(5) == 0
    }
}

/// What one thread did, and what it was told about it.
struct Worker<'db> {
    db: &'db Database,
    dice: Dice,
    caller: &'static Restless,
    next_id: i64,
    applied: BTreeSet<i64>,
    unknown: BTreeSet<i64>,
}

impl<'db> Worker<'db> {
    fn new(db: &'db Database, seed: u64, thread: i64) -> Self {
        let seed = seed.wrapping_mul(1_000).wrapping_add(thread as u64);
        let caller = Box::leak(Box::new(Restless(Dice(AtomicU64::new(!seed)))));
        let next_id = thread * 1_000_000;
        let (applied, unknown) = (BTreeSet::new(), BTreeSet::new());
        Worker { db, dice: Dice(AtomicU64::new(seed)), caller, next_id, applied, unknown }
    }

    fn call(&self) -> Call {
        let timeout = [None, None, None, None, Some(Duration::from_millis(1)), Some(Duration::from_millis(70))];
        let timeout = timeout[self.dice.roll(6) as usize];
        if self.dice.roll(2) == 0 { Call::new(self.caller, timeout) } else { Call::new(&Unhurried, timeout) }
    }

    fn act(&mut self) {
        match self.dice.roll(12) {
            0..4 => self.submit_good(),
            4..6 => self.submit_bad(),
            6 | 7 => self.hold_lease(),
            8 => self.fetch(),
            9 => self.hold_snapshot(),
            10 => self.hold_stream(),
            _ => self.maintain(),
        }
    }

    fn new_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    /// Keep what the engine says about a write of this pair.
    fn note<T>(&mut self, id: i64, told: Result<T>, expected: &[Kind]) {
        match told {
            Ok(_) => drop(self.applied.insert(id)),
            Err(error) => {
                assert!(is_expected(&error, expected), "{:?}: {error}", error.kind);
                match error.outcome {
                    Outcome::NotApplied => {}
                    Outcome::Applied => drop(self.applied.insert(id)),
                    Outcome::Unknown => drop(self.unknown.insert(id)),
                }
            }
        }
    }

    fn submit_good(&mut self) {
        let id = self.new_id();
        let halves = [0, 1].map(|half| format!("INSERT INTO pair VALUES ({id}, {half})"));
        let job = match self.dice.roll(4) {
            0 => job(&format!("INSERT INTO pair VALUES ({id}, 0), ({id}, 1)")),
            1 => batch(&[&halves[0], &halves[1]]),
            2 => Job::new(Work::Script(halves.join(";").into())),
            _ => {
                let rows = [0, 1].map(|half| Params::Positional(vec![Value::Integer(id), Value::Integer(half)]));
                Job::new(Work::Many("INSERT INTO pair VALUES (?, ?)".into(), rows.into()))
            }
        };
        let told = self.db.submit(&self.call(), job);
        self.note(id, told, &[]);
    }

    fn submit_bad(&mut self) {
        let id = self.new_id();
        let half = format!("INSERT INTO pair VALUES ({id}, 0)");
        let job = match self.dice.roll(6) {
            0 => job(&format!("INSERT OR FAIL INTO pair VALUES ({id}, 0), ({id}, 0)")),
            1 => job(&format!("INSERT OR ROLLBACK INTO pair VALUES ({id}, 0), ({id}, 0)")),
            2 => job(&format!("INSERT INTO pair VALUES ({id}, 0), ({id}, 7)")),
            3 => batch(&[&half, &half]),
            4 => batch(&[&half, "INSERT INTO child VALUES (1)"]),
            _ => batch(&[&half, "COMMIT"]),
        };
        let told = self.db.submit(&self.call(), job);
        assert!(told.is_err(), "it cannot succeed");
        self.note(id, told, &[Kind::Integrity, Kind::Programming]);
        assert!(!self.applied.contains(&id), "it failed, and was applied");
        self.unknown.remove(&id); // whatever its caller could know: nothing of it may be there
    }

    fn hold_lease(&mut self) {
        let id = self.new_id();
        let call = self.call();
        let told = self.db.lease(&call).and_then(|lease| {
            for half in [0, 1] {
                lease.execute(&self.call(), &format!("INSERT INTO pair VALUES ({id}, {half})"), &Params::NONE)?;
                if self.dice.roll(8) == 0 {
                    thread::park_timeout(Duration::from_millis(self.dice.roll(90))); // past its time, sometimes
                }
            }
            if self.dice.roll(4) == 0 {
                return Err(Error::new(Kind::Reentrant, "given up by this test")); // dropped, and so rolled back
            }
            lease.commit(&self.call())
        });
        // A statement that was stopped by its timeout or an interrupt has ended its transaction.
        self.note(id, told, &[Kind::TransactionTimeout, Kind::StatementTimeout, Kind::Reentrant]);
    }

    fn fetch(&mut self) {
        let (call, last) = (self.call(), self.applied.last().copied());
        check(fetch(self.db, &call, HALVES), |rows| assert_eq!(numbers(&rows), [0], "half a job was seen"));
        if let Some(id) = last {
            let sql = format!("SELECT count(*) FROM pair WHERE id = {id}");
            check(fetch(self.db, &self.call(), &sql), |rows| assert_eq!(numbers(&rows), [2], "{id} was acknowledged"));
        }
    }

    fn hold_snapshot(&mut self) {
        check(self.db.snapshot(&self.call()), |snapshot| {
            let count = || snapshot.fetch(&self.call(), "SELECT count(*) FROM pair", &Params::NONE, Want::ALL);
            let first = count();
            thread::park_timeout(Duration::from_millis(self.dice.roll(70)));
            if let (Ok(first), Ok(second)) = (first, count()) {
                assert_eq!((numbers(&first)[0] % 2, numbers(&first)), (0, numbers(&second)), "the snapshot moved");
            }
        });
    }

    fn hold_stream(&mut self) {
        let stream = self.db.stream(&self.call(), "SELECT id FROM pair ORDER BY id", &Params::NONE);
        check(stream, |stream| {
            let want = Want { columns: false, most: 1 + self.dice.roll(50) as usize };
            let mut read = Vec::new();
            while let Ok(rows) = stream.next_rows(&self.call(), want) {
                if rows.is_empty() {
                    assert!(read.chunks(2).all(|pair| pair.len() == 2 && pair[0] == pair[1]), "half a job was seen");
                    break;
                }
                read.extend(numbers(&rows));
            }
        });
    }

    fn maintain(&mut self) {
        let modes = [CheckpointMode::Passive, CheckpointMode::Full, CheckpointMode::Restart, CheckpointMode::Truncate];
        match self.dice.roll(6) {
            mode @ 0..4 => check(self.db.checkpoint(&self.call(), modes[mode as usize]), drop),
            4 => check(self.db.vacuum(&self.call()), drop),
            _ => check(self.db.check(&self.call()), |problems| assert!(problems.is_empty(), "{problems:?}")),
        }
    }
}

/// What may come in the way of anything here: the settings are tight, callers are interrupted, and another process writes.
fn is_expected(error: &Error, also: &[Kind]) -> bool {
    const ALWAYS: [Kind; 3] = [Kind::WriteTimeout, Kind::Busy, Kind::Interrupted];
    ALWAYS.contains(&error.kind) || also.contains(&error.kind)
}

fn check<T>(told: Result<T>, is_right: impl FnOnce(T)) {
    match told {
        Ok(done) => is_right(done),
        Err(error) => {
            let also = [Kind::CheckoutTimeout, Kind::StatementTimeout, Kind::TransactionTimeout];
            assert!(is_expected(&error, &also), "{:?}: {error}", error.kind);
        }
    }
}

fn tight(config: &mut Config) {
    config.readers = 3;
    config.checkout_timeout = Duration::from_millis(100);
    config.write_timeout = Duration::from_millis(400);
    config.transaction_timeout = Duration::from_millis(60);
    config.busy_timeout = Duration::from_millis(80);
    config.max_group = 4;
    config.max_waiting_bytes = 1_024;
    config.statement_cache = 4;
    config.wal_limit = 64 * 1_024;
}

/// Another process takes the write lock now and then, and writes whole pairs too.
fn foreign_writer(db: &Database, dice: &Dice, acts: u64) -> BTreeSet<i64> {
    let foreign = db.foreign();
    let pairs = -(acts as i64)..0;
    pairs
        .filter(|id| {
            if foreign.execute_batch("BEGIN IMMEDIATE").is_err() {
                return false;
            }
            thread::park_timeout(Duration::from_millis(dice.roll(120)));
            let sql = format!("INSERT INTO pair VALUES ({id}, 0), ({id}, 1); COMMIT");
            foreign.execute_batch(&sql).unwrap();
            thread::park_timeout(Duration::from_millis(dice.roll(120)));
            true
        })
        .collect()
}

fn storm(seed: u64, acts: u64) {
    let db = Database::with(tight);
    script(&db, SCHEMA);
    let (mut applied, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    thread::scope(|scope| {
        let work = |thread| {
            let mut worker = Worker::new(&db, seed, thread);
            scope.spawn(move || {
                (0..acts).for_each(|_| worker.act());
                (worker.applied, worker.unknown)
            })
        };
        let workers: Vec<_> = (1..=THREADS).map(work).collect();
        let foreign = scope.spawn(|| foreign_writer(&db, &Dice(AtomicU64::new(seed)), acts / 4));
        for worker in workers {
            let told = worker.join().unwrap();
            applied.extend(told.0);
            unknown.extend(told.1);
        }
        applied.extend(foreign.join().unwrap());
    });
    db.close(&Call::internal()).unwrap();
    let found: BTreeSet<i64> = ints(&db.again(), "SELECT DISTINCT id FROM pair").into_iter().collect();
    assert_eq!(int(&db.again(), HALVES), 0);
    let (lost, uninvited): (Vec<_>, Vec<_>) =
        (applied.difference(&found).collect(), found.difference(&applied).collect());
    assert!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
    assert!(uninvited.iter().all(|id| unknown.contains(id)), "not applied, and there: {uninvited:?}");
    assert!(!applied.is_empty());
}

#[test]
fn whatever_happens_at_once_what_was_acknowledged_is_there_and_nothing_else() {
    for seed in 1..=3 {
        eprintln!("seed {seed}");
        storm(seed, 60);
    }
}

#[test]
#[ignore = "takes half a minute: for those who change the queue, the leases or close"]
fn whatever_happens_at_once_for_a_long_time() {
    let start = Call::internal().started;
    let mut seed = start.elapsed().as_nanos() as u64 + std::process::id() as u64;
    while start.elapsed() < Duration::from_secs(30) {
        seed += 1;
        eprintln!("seed {seed}");
        storm(seed, 120);
    }
}

/// ```text
/// eight threads, each again and again           whoever has the seat
/// submit or lease, with patience for microseconds
///                                               passes it on
/// gives up at that very instant
/// ```
#[test]
fn seat_that_is_offered_as_its_caller_gives_up_is_never_lost() {
    let db = Database::with_items(|config| config.max_group = 2);
    let applied: u64 = thread::scope(|scope| {
        let hurry = |thread: i64| {
            let (db, dice) = (&db, Dice(AtomicU64::new(thread as u64)));
            scope.spawn(move || (0..3_000).filter(|n| is_applied(db, &dice, thread * 10_000 + n)).count() as u64)
        };
        let hurried: Vec<_> = (0..THREADS).map(hurry).collect();
        hurried.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    submit(&db, insert(-1)).unwrap();
    assert_eq!(int(&db, "SELECT count(*) FROM item"), applied as i64 + 1);
    assert!(figure(&db, "jobs_withdrawn") > 0 && applied > 0, "the test tests nothing");
}

fn is_applied(db: &Database, dice: &Dice, id: i64) -> bool {
    let call = call_within(Duration::from_micros(dice.roll(400)));
    let told = if dice.roll(4) == 0 {
        db.lease(&call).and_then(|lease| {
            let values = Params::Positional(vec![Value::Integer(id)]);
            lease.execute(&Call::internal(), "INSERT INTO item (id) VALUES (?)", &values)?;
            lease.commit(&Call::internal())
        })
    } else {
        db.submit(&call, insert(id)).map(drop)
    };
    told.inspect_err(|error| assert!(is_expected(error, &[]), "{:?}: {error}", error.kind)).is_ok()
}

/// ```text
/// eight threads, again and again                keeper
/// fetch or snapshot, with patience for microseconds
///                                               takes snapshots back after a millisecond
/// gives up at that very instant
/// ```
#[test]
fn reader_that_comes_home_as_its_caller_gives_up_is_never_lost() {
    let db = Database::with_items(|config| {
        config.readers = 2;
        config.transaction_timeout = Duration::from_millis(1);
    });
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (db, dice) = (&db, Dice(AtomicU64::new(thread as u64)));
            scope.spawn(move || (0..1_500).for_each(|_| read_in_a_hurry(db, &dice)));
        }
    });
    until("every reader has come home", || figure(&db, "readers_out") == 0);
    let both = [0, 1].map(|_| db.snapshot(&call_within(Duration::from_secs(10))));
    assert!(both.iter().all(Result::is_ok) && figure(&db, "readers") == 2);
}

fn read_in_a_hurry(db: &Database, dice: &Dice) {
    let call = call_within(Duration::from_micros(dice.roll(400)));
    if dice.roll(2) == 0 {
        return check(fetch(db, &call, "SELECT count(*) FROM item"), drop);
    }
    check(db.snapshot(&call), |snapshot| {
        let until = Duration::from_micros(dice.roll(1_500));
        while call.started.elapsed() < until {
            check(snapshot.fetch(&call, "SELECT count(*) FROM item", &Params::NONE, Want::ALL), drop);
        }
    });
}
