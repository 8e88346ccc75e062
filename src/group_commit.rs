//! One group on one connection: the jobs, replay, COMMIT, then the answers. Must not know queues or threads.
//!
//! Each job is all or nothing, and no neighbour notices when one fails:
//!
//! - SQLite undoes a failed statement by itself, so a job of one statement needs nothing else.
//! - What that does not undo makes the group roll back and run again without the offender: the statements that a job had run
//!   before the one that failed, the end of the whole transaction (`OR ROLLBACK`, `RAISE(ROLLBACK)`), the rows that `OR FAIL`
//!   keeps, a deferred foreign key that would fail the shared COMMIT. The results of the first run are thrown away: they may
//!   have come from the offender's rows.
//! - After a job of several statements has failed, the next ones of its kind stand behind a savepoint each, and are rolled
//!   back to it: so do scripts, always. A savepoint costs SQLite a copy of every page that the job changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::{Connection, Ran, retry_busy};
use crate::error::{CONSTRAINT_FOREIGNKEY, Error, Kind, Outcome, Result, from_code};
use crate::grouping::Past;
use crate::value::Params;

/// What a job does.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// One statement.
    Execute(Box<str>, Params),
    /// One statement for each row of parameters.
    Many(Box<str>, Vec<Params>),
    /// Several statements.
    Batch(Vec<(Arc<str>, Params)>),
    /// Several statements in one text, without parameters.
    Script(Box<str>),
}

/// One caller's write, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What it does.
    pub work: Work,
    /// Bytes of SQL and parameters that it holds back in the queue.
    pub bytes: u64,
}

/// What a job's caller gets: what each of its statements did.
pub type Answer = Result<Vec<Ran>>;

impl Job {
    /// A job, with its size reckoned.
    pub fn new(work: Work) -> Self {
        let bytes = match &work {
            Work::Execute(sql, params) => sql.len() as u64 + params.bytes(),
            Work::Many(sql, rows) => sql.len() as u64 + rows.iter().map(Params::bytes).sum::<u64>(),
            Work::Batch(parts) => parts.iter().map(|(sql, params)| sql.len() as u64 + params.bytes()).sum(),
            Work::Script(sql) => sql.len() as u64,
        };
        Job { work, bytes }
    }

    /// The text that names it in a log.
    pub fn sql(&self) -> &str {
        match &self.work {
            Work::Execute(sql, _) | Work::Many(sql, _) | Work::Script(sql) => sql,
            Work::Batch(parts) => parts.first().map_or("(an empty batch)", |(sql, _)| sql),
        }
    }

    /// Whether SQLite undoes it by itself when it fails.
    fn is_one_statement(&self) -> bool {
        match &self.work {
            Work::Execute(..) => true,
            Work::Many(_, rows) => rows.len() == 1,
            Work::Batch(parts) => parts.len() == 1,
            Work::Script(_) => false,
        }
    }

    fn run(&self, conn: &Connection) -> Answer {
        match &self.work {
            Work::Execute(sql, params) => Ok(vec![conn.run(sql, params)?]),
            Work::Many(sql, rows) => Ok(vec![conn.run_many(sql, rows)?]),
            Work::Batch(parts) => run_batch(conn, parts),
            Work::Script(sql) => Ok(vec![conn.run_script(sql)?]),
        }
    }
}

/// Run statements one after the other; where a text comes several times in a row it is prepared once.
fn run_batch(conn: &Connection, parts: &[(Arc<str>, Params)]) -> Answer {
    let mut ran = Vec::with_capacity(parts.len());
    for same in parts.chunk_by(|(one, _), (next, _)| one == next) {
        conn.run_each(&same[0].0, same.iter().map(|(_, params)| params), &mut ran)
            .map_err(|error| error.context(format!("in statement {} of the batch", ran.len() + 1)))?;
    }
    Ok(ran)
}

/// How one run of a job ended.
enum Run {
    /// It is in the transaction, or it undid itself: this is its answer if the COMMIT succeeds.
    Settled(Answer),
    /// It left something behind that only a rollback of the group undoes.
    Spoilt(Error),
}

struct Entry {
    job: Arc<Job>,
    answer: Answer,
    /// It broke the group once, and is left out of every later run of it.
    is_out: bool,
}

/// A group in its transaction.
pub struct Group<'conn> {
    conn: &'conn Connection,
    entries: Vec<Entry>,
    busy_timeout: Duration,
    past: Past,
    replays: u64,
    /// A replay could not begin: every job has its error, and whatever may still be in the transaction is not wanted.
    is_lost: bool,
}

/// A group's end.
pub struct Ended {
    /// Each job's answer, in the order in which the jobs were run.
    pub answers: Vec<Answer>,
    /// Whether it was committed; the answers carry the error where it was not.
    pub wal_frames: Option<u32>,
    /// What COMMIT alone took.
    pub commit_took: Duration,
    /// How often the group was run again.
    pub replays: u64,
    /// What the next group should know.
    pub past: Past,
}

impl<'conn> Group<'conn> {
    /// An empty group in the transaction that was begun on this connection.
    pub fn new(conn: &'conn Connection, busy_timeout: Duration, past: Past) -> Self {
        Group { conn, entries: Vec::new(), busy_timeout, past, replays: 0, is_lost: false }
    }

    /// Run a job. False if the group should take no more: it had to be run again, and commits what it has.
    ///
    /// Closing the group then bounds the cost of many such jobs: each is run once, and its neighbours once more.
    pub fn run(&mut self, job: Arc<Job>) -> bool {
        let settled = run_whole(self.conn, &job, self.past);
        if !job.is_one_statement() {
            self.note(&settled);
        }
        let (answer, is_out) = match settled {
            Run::Settled(answer) => (answer, false),
            Run::Spoilt(error) => (Err(error), true),
        };
        self.entries.push(Entry { job, answer, is_out });
        if is_out {
            self.replay();
        }
        self.conn.watch().look_between();
        !is_out
    }

    fn note(&mut self, settled: &Run) {
        match settled {
            Run::Settled(Ok(_)) => self.past.ran(),
            Run::Settled(Err(_)) | Run::Spoilt(_) => self.past.failed(),
        }
    }

    /// Roll back and run every job again but those that broke the group, until a run leaves the transaction whole.
    fn replay(&mut self) {
        loop {
            self.replays += 1;
            // A transaction that SQLite has already ended, or that cannot be rolled back, shows at the BEGIN.
            let begun = self.conn.rollback().and_then(|()| retry_busy(self.busy_timeout, || self.conn.begin()));
            if let Err(error) = begun {
                self.is_lost = true;
                return self.fail_all(&error);
            }
            let Some(offender) = self.replay_once() else { return };
            self.entries[offender].is_out = true;
        }
    }

    fn replay_once(&mut self) -> Option<usize> {
        for (index, entry) in self.entries.iter_mut().enumerate().filter(|(_, entry)| !entry.is_out) {
            match run_whole(self.conn, &entry.job, self.past) {
                Run::Settled(answer) => entry.answer = answer,
                Run::Spoilt(error) => {
                    entry.answer = Err(error);
                    return Some(index);
                }
            }
        }
        None
    }

    /// Give every job that had succeeded this error instead.
    fn fail_all(&mut self, error: &Error) {
        for entry in &mut self.entries {
            if entry.answer.is_ok() {
                entry.answer = Err(error.clone());
            }
        }
    }

    /// Commit, and hand out the answers: nobody is answered before COMMIT has returned.
    pub fn commit(mut self) -> Ended {
        let started = Instant::now();
        let committed = if self.is_lost { None } else { self.commit_or_fail_all() };
        let commit_took = started.elapsed();
        self.past.committed(commit_took);
        Ended {
            answers: self.entries.into_iter().map(|entry| entry.answer).collect(),
            wal_frames: committed,
            commit_took,
            replays: self.replays,
            past: self.past,
        }
    }

    fn commit_or_fail_all(&mut self) -> Option<u32> {
        match self.conn.commit() {
            Ok(frames) => Some(frames),
            Err(error) => {
                let outcome = commit_outcome(&error);
                self.fail_all(&error.with_outcome(outcome).context("the group's COMMIT failed"));
                // A failed COMMIT may leave the transaction open. Should this fail too, the next BEGIN says so.
                let _ = self.conn.rollback();
                None
            }
        }
    }
}

/// Whether a COMMIT that failed may have been applied all the same.
///
/// The frame that makes a transaction count is written last, then comes the fsync, then the WAL's index is told. Only what
/// fails before that frame is complete is certainly not applied. Later, the frame stays in the file when the transaction is
/// rolled back, and a crash before the next commit overwrites it would bring it back: so after a failed fsync, and so where
/// there is no room for the index to grow. <https://www.sqlite.org/walformat.html>
pub fn commit_outcome(error: &Error) -> Outcome {
    if error.is_before_commit_frame() { Outcome::NotApplied } else { Outcome::Unknown }
}

/// Run a job so that it is in the transaction as a whole, or not at all, or else say that it spoilt the transaction.
fn run_whole(conn: &Connection, job: &Job, past: Past) -> Run {
    let needs_mark = !job.is_one_statement() && (past.is_careful() || matches!(job.work, Work::Script(_)));
    if needs_mark { run_marked(conn, job) } else { run_bare(conn, job) }
}

fn run_bare(conn: &Connection, job: &Job) -> Run {
    // Not the changed rows alone: statements that change none, as CREATE TABLE, must be undone too.
    let done = || (conn.total_changes(), conn.statements_run());
    let done_before = done();
    conn.forget_last_rowid();
    let answer = job.run(conn);
    if conn.is_autocommit() {
        return Run::Spoilt(answer.err().unwrap_or_else(transaction_gone));
    }
    match answer {
        Err(error) if done() != done_before => Run::Spoilt(error),
        Err(error) => Run::Settled(Err(error)),
        Ok(_) if conn.has_deferred_violation() => Run::Spoilt(deferred_violation()),
        answer => Run::Settled(answer),
    }
}

fn run_marked(conn: &Connection, job: &Job) -> Run {
    conn.forget_last_rowid();
    if let Err(error) = conn.mark() {
        return Run::Spoilt(error);
    }
    let mut answer = job.run(conn);
    if conn.is_autocommit() {
        return Run::Spoilt(answer.err().unwrap_or_else(transaction_gone));
    }
    if answer.is_ok() && conn.has_deferred_violation() {
        answer = Err(deferred_violation());
    }
    let unmarked = if answer.is_ok() { conn.keep_mark() } else { conn.undo_to_mark() };
    match (unmarked, answer) {
        (Ok(()), answer) => Run::Settled(answer),
        (Err(_), Err(error)) | (Err(error), Ok(_)) => Run::Spoilt(error),
    }
}

fn transaction_gone() -> Error {
    Error::new(Kind::Operational, "the statement ended walpool's transaction; the job was rolled back")
}

fn deferred_violation() -> Error {
    from_code(CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed (deferred, at the end of the job)".into())
}
