//! Opening ONE connection in a role; every PRAGMA and transaction verb; running a statement. Must not know pools or threads.

pub mod file_system;
mod guard;
mod open;
mod redact;
mod retired;
mod statement;
mod watch;

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Statement, ffi};

use self::guard::Guard;
pub use self::open::{create_file, init_reader, open_writer, reader_flags};
use self::retired::Retired;
pub use self::statement::{Cursor, Ran, Want};
pub use self::watch::{Limit, Watch};
use crate::caller::Lately;
use crate::config::Config;
use crate::error::{Error, Kind, Outcome, Result};
use crate::files::Files;
use crate::functions;
use crate::locking::OfThisProcess;
use crate::sketches::Sketches;
use crate::stats::Stats;
use crate::value::{Params, Rows};

/// The connection type of the reader pool, under the name by which `reader` may know it.
pub type Raw = rusqlite::Connection;
/// What stops a connection's statement from another thread.
pub type Interrupter = rusqlite::InterruptHandle;

/// How long to sleep between two tries for a lock of another process: constant, because SQLite's growing back-off
/// starves those who wait longest.
pub const BUSY_RETRY: Duration = Duration::from_millis(1);

/// Marks walpool's own statements in the statement cache, so that a caller's `COMMIT` never meets ours.
const OWN: &str = "/* walpool */";
const BEGIN: &str = "/* walpool */ BEGIN IMMEDIATE";
const BEGIN_SNAPSHOT: &str = "/* walpool */ BEGIN";
const FIRST_READ: &str = "/* walpool */ SELECT 1 FROM sqlite_schema LIMIT 1";
const COMMIT: &str = "/* walpool */ COMMIT";
const ROLLBACK: &str = "/* walpool */ ROLLBACK";
const SAVEPOINT: &str = "/* walpool */ SAVEPOINT walpool_job";
const RELEASE: &str = "/* walpool */ RELEASE walpool_job";
const ROLLBACK_TO: &str = "/* walpool */ ROLLBACK TO walpool_job";
const DATA_VERSION: &str = "/* walpool */ PRAGMA data_version";
const IN_TRIGGER: &str = "SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'trigger' AND instr(sql, ?1)";
const OWN_STATEMENTS: usize = 9; // those marked above: walpool's own never push a caller's statement out of the cache

/// What the trigger says that SQLite makes of `ON DELETE RESTRICT`.
const RESTRICTED: &str = "FOREIGN KEY constraint failed";
const RAISED: &str = "a trigger refused it; its message is made of values, which are not shown";

const NO_ROWID: i64 = i64::MIN; // no sane table has it; 0 is one that people do use

thread_local! {
    /// Frames in the WAL after the commit that runs on this thread, if it wrote any: SQLite tells it to a hook that can carry
    /// no state of its own.
    static WAL_FRAMES: Cell<Option<u32>> = const { Cell::new(None) };
    /// How often the checkpoint that runs on this thread may still try for a lock.
    static TRIES_LEFT: Cell<u32> = const { Cell::new(0) };
}

/// SQLite's checkpoint modes. <https://www.sqlite.org/pragma.html#pragma_wal_checkpoint>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointMode {
    /// As much as goes without waiting for anybody.
    Passive,
    /// All of it, where no other writer is at work.
    Full,
    /// As Full, and the next writer starts the WAL anew.
    Restart,
    /// As Restart, and the WAL file is cut to nothing.
    Truncate,
}

/// What a checkpoint brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpointed {
    /// Another connection kept it from running or from finishing.
    pub was_busy: bool,
    /// Frames in the WAL.
    pub wal_frames: u32,
    /// Frames of these that are in the file now.
    pub moved_frames: u32,
}

impl Checkpointed {
    /// Whether every frame is in the file now.
    pub fn is_complete(self) -> bool {
        !self.was_busy && self.wal_frames == self.moved_frames
    }

    /// Whether it did not even begin, since another connection was at it.
    pub fn was_refused(self) -> bool {
        self.was_busy && self.wal_frames == 0
    }
}

/// What all connections of an engine have in common.
#[derive(Clone)]
pub struct Common {
    /// Where they count.
    pub stats: Arc<Stats>,
    /// Which statements were long lately.
    pub lately: Arc<Lately>,
    /// What searches keep in memory.
    pub sketches: Arc<Sketches>,
}

impl Common {
    /// Nothing seen, counted or kept yet.
    pub fn new(config: &Config) -> Self {
        let stats = Arc::<Stats>::default();
        let sketches = Arc::new(Sketches::new(config.sketch_memory, Arc::clone(&stats)));
        Common { stats, lately: Arc::default(), sketches }
    }
}

/// A connection in a role, with what watches over it.
pub struct Connection {
    raw: OfThisProcess<Raw>,
    guard: Guard,
    watch: Watch,
    lately: Arc<Lately>,
    wal_frames: Cell<u32>,
    statements_run: Cell<u64>,
    files: OnceCell<Arc<Files>>,
    retired: Retired,
}

/// Try again while another process holds the lock, for `patience` at most.
pub fn retry_busy<T>(patience: Duration, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match work() {
            Err(error) if error.is_busy() && Instant::now() < deadline => std::thread::sleep(BUSY_RETRY),
            done => return done,
        }
    }
}

impl Connection {
    /// Take over a connection that was opened and told its PRAGMAs.
    pub fn adopt(raw: Raw, common: &Common) -> Result<Connection> {
        let guard = Guard::install(&raw)?;
        let watch = Watch::install(&raw, Arc::clone(&common.stats))?;
        functions::register_search(&raw, &common.sketches, &common.stats, watch.clone())?;
        Ok(Connection {
            raw: OfThisProcess::new(raw),
            guard,
            watch,
            lately: Arc::clone(&common.lately),
            wal_frames: Cell::new(0),
            statements_run: Cell::new(0),
            files: OnceCell::new(),
            retired: Retired::default(),
        })
    }

    /// Acknowledge nothing from now on that is written into files which nobody will find.
    pub fn keep_to(&self, files: Arc<Files>) {
        // A second call would name the same files.
        let _ = self.files.set(files);
    }

    /// The watch over what runs here.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The error with walpool's reason in place of SQLite's "interrupted" and "not authorized".
    fn explain(&self, error: Error) -> Error {
        advise(self.watch.explain(self.guard.explain(error)))
    }

    /// As `explain`, for an error that came while the statement ran: SQLite quotes values in some of these.
    fn explain_run(&self, error: Error, sql: &str) -> Error {
        let message = match error.code {
            Some(ffi::SQLITE_CONSTRAINT_TRIGGER) if !self.is_literal_of_a_trigger(&error.message) => RAISED.to_owned(),
            Some(ffi::SQLITE_ERROR) if functions::is_own_message(&error.message) => {
                let kind = functions::kind_of(&error.message).unwrap_or(error.kind);
                return self.explain(Error { kind, ..error });
            }
            Some(ffi::SQLITE_ERROR) => redact::without_values(&error.message, sql),
            _ => return self.explain(error),
        };
        self.explain(Error { message, ..error })
    }

    /// Whether the text stands as it is in a trigger's `RAISE(ABORT, '...')`, and not what an expression there made of values.
    fn is_literal_of_a_trigger(&self, text: &str) -> bool {
        if text == RESTRICTED {
            return true;
        }
        let literal = format!("'{}'", text.replace('\'', "''"));
        let look = || self.raw.query_row(IN_TRIGGER, [literal], |row| row.get(0));
        self.watch.shield(|| self.guard.own(look)).unwrap_or(false) // where it cannot be told, it is not shown
    }

    fn own(&self, sql: &str) -> Result<()> {
        let raw = self.raw.get()?;
        let run = || {
            let mut stmt = raw.prepare_cached(sql)?;
            let mut rows = stmt.raw_query();
            while rows.next()?.is_some() {}
            Ok(())
        };
        self.watch.shield(|| self.guard.own(run))
    }

    /// Begin a write transaction; `Busy` at once where another process has one, `ReadOnly` where the file is retired.
    pub fn begin(&self) -> Result<()> {
        if let Some(files) = self.files.get() {
            files.look_seldom(Instant::now())?;
        }
        self.refuse_retired()?;
        self.own(BEGIN)?;
        self.look_if_retired().inspect_err(|_| {
            // Should this fail, the next BEGIN says so.
            let _ = self.rollback();
        })
    }

    /// Begin a read transaction and take its snapshot.
    ///
    /// A deferred transaction takes its snapshot at its first read, not at BEGIN, so it reads once here
    /// (<https://www.sqlite.org/isolation.html>):
    ///
    /// ```text
    /// reader            writer
    /// BEGIN
    ///                   COMMIT (a)     visible to the reader
    /// SELECT
    ///                   COMMIT (b)     not visible
    /// ```
    pub fn begin_snapshot(&self) -> Result<()> {
        self.own(BEGIN_SNAPSHOT)?;
        self.own(FIRST_READ).inspect_err(|_| {
            // The error of the first read is the one to tell; check-in rolls back once more should this fail.
            let _ = self.rollback();
        })
    }

    /// Commit, and say how many frames the WAL has since the last commit that wrote something.
    ///
    /// # Errors
    /// `Storage` with the outcome `Unknown` where COMMIT succeeded, but into files that no longer lie at their paths.
    pub fn commit(&self) -> Result<u32> {
        WAL_FRAMES.set(None);
        self.own(COMMIT)?;
        self.note_own_change();
        if let Some(files) = self.files.get() {
            files.look_after_commit().map_err(|error| error.with_outcome(Outcome::Unknown))?;
        }
        if let Some(frames) = WAL_FRAMES.get() {
            self.wal_frames.set(frames);
        }
        Ok(self.wal_frames.get())
    }

    /// Roll back what is open; does nothing outside a transaction.
    pub fn rollback(&self) -> Result<()> {
        if self.raw.is_autocommit() { Ok(()) } else { self.own(ROLLBACK) }
    }

    /// Set a mark to which `undo_to_mark` returns. Marks nest.
    pub fn mark(&self) -> Result<()> {
        self.own(SAVEPOINT)
    }

    /// Keep what was done since the mark, and forget the mark.
    pub fn keep_mark(&self) -> Result<()> {
        self.own(RELEASE)
    }

    /// Undo what was done since the mark, and forget the mark.
    pub fn undo_to_mark(&self) -> Result<()> {
        self.own(ROLLBACK_TO)?;
        self.own(RELEASE)
    }

    /// A number that changes when another connection has committed, as this one's transaction sees it.
    /// <https://www.sqlite.org/pragma.html#pragma_data_version>
    pub fn data_version(&self) -> Result<i64> {
        self.guard.own(|| Ok(self.raw.prepare_cached(DATA_VERSION)?.query_row([], |row| row.get(0))?))
    }

    /// Whether no transaction is open.
    pub fn is_autocommit(&self) -> bool {
        self.raw.is_autocommit()
    }

    /// Rows changed since the connection was opened, triggers and foreign-key actions included.
    pub fn total_changes(&self) -> u64 {
        self.raw.total_changes()
    }

    /// Statements that `run`, `run_each` and `run_many` have run to their end since the connection was opened.
    pub fn statements_run(&self) -> u64 {
        self.statements_run.get()
    }

    /// Whether a deferred foreign key stands violated, so that a COMMIT now would fail.
    pub fn has_deferred_violation(&self) -> bool {
        let (mut now, mut highest) = (0, 0);
        // SAFETY: the handle lives as long as `self`; both out-parameters are valid for the call.
        #[allow(unsafe_code)]
        let code = unsafe {
            ffi::sqlite3_db_status(self.raw.handle(), ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &mut now, &mut highest, 0)
        };
        code == ffi::SQLITE_OK && now != 0
    }

    /// Begin a job or lease with no last rowid: an insert that is ignored would leave a neighbour's.
    pub fn forget_last_rowid(&self) {
        self.set_last_rowid(NO_ROWID);
    }

    fn set_last_rowid(&self, rowid: i64) {
        // SAFETY: the handle lives as long as `self`; the call only stores a number.
        #[allow(unsafe_code)]
        unsafe {
            ffi::sqlite3_set_last_insert_rowid(self.raw.handle(), rowid);
        }
    }

    /// Run a statement and say which rowid it inserted itself, if it did. What an earlier statement of the same job inserted
    /// stays there for the SQL function `last_insert_rowid()`.
    fn with_own_rowid(&self, sql: &str, run: impl FnOnce() -> Result<Ran>) -> Result<Ran> {
        let before = self.raw.last_insert_rowid();
        let asks = before != NO_ROWID && statement::mentions(sql, "last_insert_rowid");
        if before != NO_ROWID && !asks {
            self.set_last_rowid(NO_ROWID);
        }
        let ran = run();
        let after = self.raw.last_insert_rowid();
        let inserted = if asks { statement::inserts(sql) } else { after != NO_ROWID };
        if after == NO_ROWID && before != NO_ROWID {
            self.set_last_rowid(before);
        }
        ran.map(|ran| Ran { lastrowid: (inserted && ran.rowcount > 0).then_some(after), ..ran })
    }

    fn prepare(&self, sql: &str) -> Result<rusqlite::CachedStatement<'_>> {
        refuse_nul(sql)?;
        self.raw.get()?;
        if sql.trim_start().starts_with(OWN) {
            // The cache would hand out ours without asking the guard. This prepares it anew, and so asks.
            self.raw.prepare(sql).map_err(|error| self.explain(error.into()))?;
        }
        self.raw.prepare_cached(sql).map_err(|error| self.explain(error.into()))
    }

    /// Prepare a statement that only reads, outside the cache.
    ///
    /// # Errors
    /// `Programming` for bad SQL, and for a statement that writes.
    fn prepare_read(&self, sql: &str) -> Result<Statement<'_>> {
        refuse_nul(sql)?;
        if statement::is_empty(sql) {
            return Err(no_statement());
        }
        let stmt = self.raw.get()?.prepare(sql).map_err(|error| self.explain(error.into()))?;
        if stmt.readonly() { Ok(stmt) } else { Err(write_on_reader()) }
    }

    /// Run one statement as a write: all of it, or nothing of it unless its SQL says otherwise (`OR FAIL`).
    pub fn run(&self, sql: &str, params: &Params) -> Result<Ran> {
        self.run_in(&mut None, sql, params)
    }

    /// Run one statement for each of these parameters, each as `run` does, and put what they did behind what is there.
    pub fn run_each<'p>(
        &self,
        sql: &str,
        each: impl Iterator<Item = &'p Params>,
        all_ran: &mut Vec<Ran>,
    ) -> Result<()> {
        let mut stmt = None;
        for params in each {
            all_ran.push(self.run_in(&mut stmt, sql, params)?);
        }
        Ok(())
    }

    /// Run a statement, which is prepared where it is not yet.
    fn run_in<'conn>(
        &'conn self,
        stmt: &mut Option<rusqlite::CachedStatement<'conn>>,
        sql: &str,
        params: &Params,
    ) -> Result<Ran> {
        let run = || {
            let stmt = match stmt {
                Some(stmt) => stmt,
                None => stmt.insert(self.prepare(sql)?),
            };
            self.run_prepared(stmt, sql, params)
        };
        self.with_own_rowid(sql, || self.timed(sql, Instant::now(), run))
    }

    /// Run one statement for each row of parameters; `rowcount` is the sum, `lastrowid` the last.
    pub fn run_many(&self, sql: &str, rows: &[Params]) -> Result<Ran> {
        let run = || {
            let mut stmt = self.prepare(sql)?;
            if stmt.column_count() > 0 {
                return Err(Error::new(Kind::Programming, "executemany() takes no statement that returns rows"));
            }
            let counts = statement::counts_rows(sql, stmt.readonly());
            let mut total = Ran { rowcount: if counts { 0 } else { -1 }, ..Ran::default() };
            for (index, params) in rows.iter().enumerate() {
                let ran = self
                    .run_prepared(&mut stmt, sql, params)
                    .map_err(|error| error.context(format_args!("in row {} of executemany", index + 1)))?;
                total.rowcount += if counts { ran.rowcount } else { 0 };
            }
            Ok(total)
        };
        self.with_own_rowid(sql, || self.timed(sql, Instant::now(), run))
    }

    /// Run several statements without parameters, one after the other.
    pub fn run_script(&self, sql: &str) -> Result<Ran> {
        refuse_nul(sql)?;
        let mut statements = rusqlite::Batch::new(&self.raw, sql);
        while let Some(mut stmt) = statements.next().map_err(|error| self.explain(error.into()))? {
            let mut rows = stmt.raw_query();
            while rows.next().map_err(|error| self.explain_run(error.into(), sql))?.is_some() {}
        }
        Ok(Ran { rowcount: -1, ..Ran::default() })
    }

    fn run_prepared(&self, stmt: &mut Statement<'_>, sql: &str, params: &Params) -> Result<Ran> {
        statement::bind(stmt, params)?;
        let want = Want { columns: stmt.column_count() > 0, most: usize::MAX };
        let rows = statement::collect(stmt, want).map_err(|error| self.explain_run(error, sql))?;
        let rowcount = if statement::counts_rows(sql, stmt.readonly()) {
            i64::try_from(self.raw.changes()).unwrap_or(i64::MAX)
        } else {
            -1
        };
        self.statements_run.set(self.statements_run.get() + 1);
        Ok(Ran { rowcount, lastrowid: None, rows })
    }

    /// Run one statement that only reads, and buffer its rows. Its time counts from `since`.
    ///
    /// # Errors
    /// `Programming` for bad SQL, wrong parameters or a statement that writes; `StatementTimeout`, `TransactionTimeout` or
    /// `Interrupted` where the armed limit or the caller stopped it; `Busy` where another process has the file.
    pub fn fetch(&self, sql: &str, params: &Params, want: Want, since: Instant) -> Result<Rows> {
        self.timed(sql, since, || {
            let mut stmt = self.prepare(sql)?;
            // SQLite calls a PRAGMA that could write no reader, even where it only tells; the guard has looked at those.
            if !stmt.readonly() && !statement::is_pragma(sql) {
                return Err(write_on_reader());
            }
            statement::bind(&mut stmt, params)?;
            statement::collect(&mut stmt, want).map_err(|error| self.explain_run(name_write(error), sql))
        })
    }

    /// Run, giving the caller's thread up at the start where the statement was long lately, and remember how long it took.
    fn timed<T>(&self, sql: &str, since: Instant, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let place = Lately::place(sql);
        if self.lately.is_long(place) {
            self.watch.expect_long();
        }
        let done = work().map_err(|error| name_empty(sql, error));
        self.lately.ran(place, since.elapsed());
        done
    }

    /// Move frames from the WAL into the file.
    pub fn checkpoint(&self, mode: CheckpointMode) -> Result<Checkpointed> {
        let sql = match mode {
            CheckpointMode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            CheckpointMode::Full => "PRAGMA wal_checkpoint(FULL)",
            CheckpointMode::Restart => "PRAGMA wal_checkpoint(RESTART)",
            CheckpointMode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        };
        let frames = |number: i64| u32::try_from(number).unwrap_or(0); // -1 where there is no WAL
        self.guard.own(|| {
            let done = self.raw.query_row(sql, [], |row| {
                Ok(Checkpointed {
                    was_busy: row.get::<_, i64>(0)? != 0,
                    wal_frames: frames(row.get(1)?),
                    moved_frames: frames(row.get(2)?),
                })
            })?;
            Ok(done)
        })
    }

    /// As `checkpoint`, waiting for the write lock and then, with it, for readers to leave, `patience` in all.
    ///
    /// SQLite must do this waiting: between two tries from outside, other processes would write, and readers come back.
    pub fn checkpoint_patiently(&self, mode: CheckpointMode, patience: Duration) -> Result<Checkpointed> {
        TRIES_LEFT.set((patience.as_micros() / BUSY_RETRY.as_micros()) as u32);
        self.raw.busy_handler(Some(|_| {
            let left = TRIES_LEFT.get();
            TRIES_LEFT.set(left.saturating_sub(1));
            if left > 0 {
                std::thread::sleep(BUSY_RETRY);
            }
            left > 0
        }))?;
        let done = self.checkpoint(mode);
        self.raw.busy_timeout(Duration::ZERO)?; // takes the handler away
        done
    }

    /// Rewrite the whole file without its holes. Not inside a transaction. Called again where another process was in the way.
    pub fn vacuum(&self) -> Result<()> {
        self.refuse_retired()?;
        self.watch.look_between_tries()?;
        self.guard.own(|| self.raw.execute_batch("VACUUM")).map_err(|error| self.explain(error.into()))
    }

    /// Every problem that SQLite finds in the file; empty where it finds none.
    pub fn integrity_problems(&self) -> Result<Vec<String>> {
        let found: rusqlite::Result<Vec<String>> = self.guard.own(|| {
            let mut stmt = self.raw.prepare("PRAGMA integrity_check")?;
            stmt.query_map([], |row| row.get(0))?.collect()
        });
        let found = found.map_err(|error| self.explain(error.into()))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// What stops the statement that runs here, from another thread; it does nothing between two statements.
    pub fn interrupter(&self) -> Interrupter {
        self.raw.get_interrupt_handle()
    }

    /// The connection itself, for `backup`.
    pub(crate) fn raw(&self) -> &Raw {
        &self.raw
    }

    /// Close the file. Where others lie at its paths by now nothing is checkpointed and no WAL removed: it would be theirs.
    pub fn close(self) -> Result<()> {
        if self.files.get().is_some_and(|files| files.look().is_err()) {
            self.raw.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
        self.raw.flush_prepared_statement_cache();
        self.raw.into_inner()?.close().map_err(|(_, error)| error.into())
    }
}

/// SQLite would end the text there, and run what stands before it.
fn refuse_nul(sql: &str) -> Result<()> {
    if sql.contains('\0') {
        return Err(Error::new(Kind::Programming, "the SQL contains a NUL character"));
    }
    Ok(())
}

fn write_on_reader() -> Error {
    Error::new(Kind::Programming, "the statement writes, and this is a read: use execute(), batch() or transaction()")
}

/// What a PRAGMA that writes meets on a read-only connection.
fn name_write(error: Error) -> Error {
    if error.primary_code() == Some(ffi::SQLITE_READONLY) { write_on_reader() } else { error }
}

/// SQLite answers "misuse" to a text without a statement in it.
fn name_empty(sql: &str, error: Error) -> Error {
    if error.kind == Kind::Interface && statement::is_empty(sql) { no_statement() } else { error }
}

fn no_statement() -> Error {
    Error::new(Kind::Programming, "the SQL holds no statement")
}

/// What to do about a refusal of SQLite's own.
fn advise(error: Error) -> Error {
    if error.message.starts_with("cannot VACUUM") {
        // It asks no authorizer, but refuses to run inside a transaction, where all writing SQL of callers runs.
        let text = "VACUUM runs outside of transactions: use vacuum(), or backup() for a copy";
        return Error { message: text.to_owned(), ..error };
    }
    if error.message.starts_with("unsafe use of") {
        return error
            .context("a view or trigger may not, since the file may be a stranger's: use it in your own statement");
    }
    error
}

/// The version of the SQLite that is compiled in.
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// Whether this SQLite is free of the bug by which two connections that write and checkpoint at once lose data.
/// <https://www.sqlite.org/wal.html#walresetbug>
pub fn has_wal_reset_fix() -> bool {
    // Fixed in 3.51.3, not in 3.52, and again from 3.53 on.
    let version = rusqlite::version_number();
    version >= 3_053_000 || (3_051_003..3_052_000).contains(&version)
}
