//! What the tests share: a database in a folder of its own, short verbs, callers that tell what they are asked, a time limit.

use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle, ScopedJoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;
use walpool::caller::{Call, Caller, Unhurried};
use walpool::config::{Config, Synchronous};
use walpool::connection::{Ran, Want};
use walpool::engine::{Engine, only};
use walpool::error::{Error, Result};
use walpool::group_commit::{Answer, Job, Work};
use walpool::stats::Figure;
use walpool::value::{Out, Params, Rows, Value};

/// No test takes longer; most take milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Ends the process, with a word why, when a test hangs: a hang is a bug of the engine that no assertion can tell.
pub struct TimeLimit {
    over: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

impl TimeLimit {
    pub fn start() -> Self {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let (over, is_over) = mpsc::channel::<()>();
        let wait = move || {
            if is_over.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                // Not by a macro, whose words the test harness keeps for the end of the test. Nobody is left to hear of a
                // failure.
                let _ = writeln!(std::io::stderr(), "{test} hangs: it did not end within {LIMIT:?}");
                std::process::abort();
            }
        };
        let watch = thread::Builder::new().name("time limit".into()).spawn(wait).unwrap();
        TimeLimit { over: Some(over), watch: Some(watch) }
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(watch) = self.watch.take() {
            watch.join().unwrap();
        }
    }
}

/// An engine on a file of its own. Fields are dropped in this order: the engine closes before its folder goes.
pub struct Database {
    engine: Engine,
    pub path: PathBuf,
    pub folder: TempDir,
    _limit: TimeLimit,
}

impl Database {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// With settings changed: `normal` and four readers, unless a test asks for something else.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let limit = TimeLimit::start();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("test.db");
        let mut config = Config { readers: 4, synchronous: Synchronous::Normal, ..Config::default() };
        change(&mut config);
        let engine = Engine::open(&Call::internal(), &path, &config, &[]).unwrap();
        Database { engine, path, folder, _limit: limit }
    }

    /// With a table of numbers: `item (id INTEGER PRIMARY KEY, data)`.
    pub fn with_items(change: impl FnOnce(&mut Config)) -> Self {
        let db = Self::with(change);
        write(&db, "CREATE TABLE item (id INTEGER PRIMARY KEY, data)").unwrap();
        db
    }

    /// Another handle on the same file.
    pub fn again(&self) -> Engine {
        Engine::open(&Call::internal(), &self.path, &Config::default(), &[]).unwrap()
    }

    /// A connection that walpool knows nothing of, as another process would have it.
    pub fn foreign(&self) -> rusqlite::Connection {
        #[allow(clippy::disallowed_methods)] // it stands for somebody else's connection
        rusqlite::Connection::open(&self.path).unwrap()
    }

    /// Bytes in the WAL file.
    pub fn wal_bytes(&self) -> u64 {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        std::fs::metadata(wal).map_or(0, |file| file.len())
    }
}

impl Deref for Database {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

/// A call of somebody who waits for `timeout` at most.
pub fn call_within(timeout: Duration) -> Call {
    Call::new(&Unhurried, Some(timeout))
}

/// A call of this caller, which lives as long as the process.
pub fn call_of(caller: impl Caller + 'static) -> Call {
    Call::new(Box::leak(Box::new(caller)), None)
}

pub fn job(sql: &str) -> Job {
    job_with(sql, Vec::new())
}

pub fn job_with(sql: &str, values: Vec<Value>) -> Job {
    Job::new(Work::Execute(sql.into(), Params::Positional(values)))
}

/// A job that inserts one number into `item`.
pub fn insert(id: i64) -> Job {
    job_with("INSERT INTO item (id) VALUES (?)", vec![Value::Integer(id)])
}

/// A job that inserts one number into `item`, with so many bytes beside it.
pub fn insert_bytes(id: i64, bytes: usize) -> Job {
    let data = Value::Blob(vec![7; bytes].into());
    job_with("INSERT INTO item VALUES (?, ?)", vec![Value::Integer(id), data])
}

pub fn batch(statements: &[&str]) -> Job {
    Job::new(Work::Batch(statements.iter().map(|sql| ((*sql).into(), Params::NONE)).collect()))
}

pub fn submit(engine: &Engine, job: Job) -> Answer {
    engine.submit(&Call::internal(), job)
}

pub fn write(engine: &Engine, sql: &str) -> Result<Ran> {
    only(submit(engine, job(sql))?)
}

pub fn script(engine: &Engine, sql: &str) {
    submit(engine, Job::new(Work::Script(sql.into()))).unwrap();
}

pub fn fetch(engine: &Engine, call: &Call, sql: &str) -> Result<Rows> {
    engine.fetch(call, sql, &Params::NONE, Want::ALL)
}

/// The first column of rows that hold numbers.
pub fn numbers(rows: &Rows) -> Vec<i64> {
    let number = |row| match rows.value(row, 0) {
        Out::Integer(number) => number,
        other => panic!("row {row} holds no number: {other:?}"),
    };
    (0..rows.len()).map(number).collect()
}

/// What a query of numbers finds now.
pub fn ints(engine: &Engine, sql: &str) -> Vec<i64> {
    numbers(&fetch(engine, &Call::internal(), sql).unwrap())
}

/// What a query of one number finds now.
pub fn int(engine: &Engine, sql: &str) -> i64 {
    ints(engine, sql)[0]
}

/// The numbers in `item`, in order.
pub fn items(engine: &Engine) -> Vec<i64> {
    ints(engine, "SELECT id FROM item ORDER BY id")
}

/// A statement that takes far longer than any test, and reads or writes nothing.
pub const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000000000) SELECT max(i) FROM n";

/// A write that takes far longer than any test.
pub const ENDLESS_WRITE: &str = "INSERT INTO item (id) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
                                 LIMIT 100000000000) SELECT max(i) FROM n";

/// A write that takes some milliseconds, and inserts the number 1 000 into `item`.
pub const TAKES_MILLISECONDS: &str = "INSERT INTO item (id) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
                                      LIMIT 30000) SELECT 1000 FROM n WHERE i = 30000";

/// One figure of `stats()`.
pub fn figure(engine: &Engine, key: &str) -> u64 {
    match engine.stats(&Call::internal(), false).unwrap().into_iter().find(|(name, _)| name == key) {
        Some((_, Figure::Count(count))) => count,
        other => panic!("no count is called {key}: {other:?}"),
    }
}

/// Wait until something is so. Polled, where what is waited for is seen from outside only (a gauge, a file's size): the
/// engine has no event for it, and needs none.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so within 20 s: {what}");
        thread::park_timeout(Duration::from_micros(200));
    }
}

pub fn until_waiting(engine: &Engine, jobs: u64) {
    until(&format!("{jobs} jobs stand in the queue"), || figure(engine, "jobs_waiting") == jobs);
}

/// Let these jobs come to wait behind a lease, in this order, then end the lease; their answers, in the same order.
///
/// ```text
/// this thread          thread 1        thread 2        ...
/// lease
///                      submit: queued
///                                      submit: queued
/// ends the lease       leads: both in one group
/// ```
pub fn run_together(engine: &Engine, jobs: Vec<Job>) -> Vec<Answer> {
    let lease = engine.lease(&Call::internal()).unwrap();
    thread::scope(|scope| {
        let queue = |(place, job)| -> ScopedJoinHandle<'_, Answer> {
            let waiter = scope.spawn(move || submit(engine, job));
            until_waiting(engine, place as u64 + 1);
            waiter
        };
        let waiting: Vec<_> = jobs.into_iter().enumerate().map(queue).collect();
        lease.rollback().unwrap();
        waiting.into_iter().map(|waiter| waiter.join().unwrap()).collect()
    })
}

/// The error of something that must have failed.
pub fn failure<T: std::fmt::Debug>(done: Result<T>) -> Error {
    done.expect_err("it should have failed")
}

/// A caller that says when it is told that the engine waits.
pub struct Telling(Sender<()>);

impl Telling {
    /// The caller, and what tells of every wait.
    pub fn waits() -> (Self, Receiver<()>) {
        let (waits, told) = mpsc::channel();
        (Telling(waits), told)
    }
}

impl Caller for Telling {
    fn about_to_wait(&self) -> bool {
        self.0.send(()).is_ok() // the test may have heard enough and gone on
    }
    fn budget_used(&self) -> bool {
        false
    }
    fn is_waiting_dear(&self) -> bool {
        false
    }
    fn can_be_interrupted(&self) -> bool {
        false
    }
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// A caller whose work stops once, when it has run for 50 µs, until the test lets it go on.
pub struct Paused {
    runs: Sender<()>,
    go_on: Mutex<Receiver<()>>,
    has_paused: AtomicBool,
}

impl Paused {
    /// The caller, what tells that its statement runs, and what lets it go on.
    pub fn new() -> (Self, Receiver<()>, Sender<()>) {
        let ((runs, is_running), (go, go_on)) = (mpsc::channel(), mpsc::channel());
        (Paused { runs, go_on: Mutex::new(go_on), has_paused: AtomicBool::new(false) }, is_running, go)
    }
}

impl Caller for Paused {
    fn about_to_wait(&self) -> bool {
        false
    }
    fn budget_used(&self) -> bool {
        if !self.has_paused.swap(true, Ordering::Relaxed) {
            self.runs.send(()).unwrap();
            self.go_on.lock().recv().unwrap();
        }
        true
    }
    fn is_waiting_dear(&self) -> bool {
        false
    }
    fn can_be_interrupted(&self) -> bool {
        false
    }
    fn is_interrupted(&self) -> bool {
        false
    }
}

/// A caller that was interrupted before it called.
pub struct Interrupted;

impl Caller for Interrupted {
    fn about_to_wait(&self) -> bool {
        false
    }
    fn budget_used(&self) -> bool {
        false
    }
    fn is_waiting_dear(&self) -> bool {
        false
    }
    fn can_be_interrupted(&self) -> bool {
        true
    }
    fn is_interrupted(&self) -> bool {
        true
    }
}

/// A caller that is asked whether it was interrupted, and answers when the test says so: meanwhile it is away.
/// Once the test has dropped an end of it, it says no at once.
pub struct Asked {
    asked: Sender<()>,
    answers: Mutex<Receiver<bool>>,
}

impl Asked {
    /// The caller, what tells that it is asked, and how it is answered.
    pub fn new() -> (Self, Receiver<()>, Sender<bool>) {
        let ((asked, is_asked), (answer, answers)) = (mpsc::channel(), mpsc::channel());
        (Asked { asked, answers: Mutex::new(answers) }, is_asked, answer)
    }
}

impl Caller for Asked {
    fn about_to_wait(&self) -> bool {
        false
    }
    fn budget_used(&self) -> bool {
        false
    }
    fn is_waiting_dear(&self) -> bool {
        false
    }
    fn can_be_interrupted(&self) -> bool {
        true
    }
    fn is_interrupted(&self) -> bool {
        self.asked.send(()).is_ok() && self.answers.lock().recv().unwrap_or(false)
    }
}

/// Descriptors that this process has open on the file or on what lies beside it under its name.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))] // /proc is Linux's
pub fn descriptors(path: &Path) -> Vec<PathBuf> {
    let name = path.to_string_lossy().into_owned();
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with(&name)).collect()
}
