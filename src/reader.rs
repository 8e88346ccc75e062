//! The pool of readers: checkout, the snapshot, the clean check-in. Must not know the writer.
//!
//! r2d2 gives the pool its life cycle and r2d2_sqlite's manager opens the readers. A thin manager around it rolls back what
//! a reader brings home, since the next caller would read its stale snapshot.

use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use r2d2::{ManageConnection, PooledConnection};
use r2d2_sqlite::SqliteConnectionManager;
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use crate::caller::{Call, Lately, WAIT_SLICE};
use crate::checkpoint::LONGEST_PATIENCE;
use crate::config::Config;
use crate::connection::{
    BUSY_RETRY, Common, Connection, Cursor, Interrupter, Limit, Raw, Want, Watch, init_reader, reader_flags, retry_busy,
};
use crate::error::{Error, Kind, Result};
use crate::files::Files;
use crate::locking::OfThisProcess;
use crate::log::{Level, Log, excerpt};
use crate::revocable::{Refused, Revocable, Tenure};
use crate::stats::Stats;
use crate::sync::{Condvar, Mutex, RwLock};
use crate::value::{Params, Rows};

/// What a reader is doing, for the one who wonders who holds it.
#[derive(Default)]
struct Activity {
    doing: Mutex<(Option<Instant>, String)>,
    interrupter: OnceLock<Interrupter>, // from when the file is open
}

impl Activity {
    fn begin(&self, sql: &str, now: Instant) {
        let mut doing = self.doing.lock();
        doing.0.get_or_insert(now);
        doing.1.clear();
        doing.1.push_str(sql);
    }

    fn end(&self) {
        self.doing.lock().0 = None;
    }

    fn interrupt(&self) {
        if let Some(interrupter) = self.interrupter.get() {
            interrupter.interrupt();
        }
    }
}

/// All readers that are open, busy or idle.
#[derive(Default)]
struct Books {
    register: Mutex<Register>,
    closed: Condvar,
    last_error: Mutex<Option<Error>>,
    stats: Arc<Stats>,
}

/// Readers are entered before they are opened, so that `close` waits for one that is just being opened too.
#[derive(Default)]
struct Register {
    open: Vec<Weak<Activity>>,
    is_closed: bool,
}

/// Takes a reader off the books when its file has been closed.
struct Entry(Arc<Books>);

impl Drop for Entry {
    fn drop(&mut self) {
        let mut register = self.0.register.lock();
        register.open.retain(|activity| activity.strong_count() > 0);
        self.0.stats.readers.set(register.open.len() as u64);
        self.0.closed.notify_all();
    }
}

/// A reader in the pool. Fields are dropped in this order: the file is closed, and the activity gone, before the books
/// count who is left.
struct Reader {
    conn: Connection,
    activity: Arc<Activity>,
    _entry: Entry,
}

struct Manager {
    opener: SqliteConnectionManager,
    books: Arc<Books>,
    common: Common,
    busy_timeout: Duration,
}

impl Manager {
    fn open(&self) -> Result<Reader> {
        let entry = Entry(Arc::clone(&self.books)); // dropped last, also where opening fails
        let activity = Arc::new(Activity::default());
        {
            let mut register = self.books.register.lock();
            if register.is_closed {
                return Err(closed());
            }
            register.open.push(Arc::downgrade(&activity));
            self.books.stats.readers.set(register.open.len() as u64);
        }
        // Another process that closes the file last, or recovers it, keeps everybody out for a moment.
        let raw: Raw = retry_busy(self.busy_timeout, || Ok(self.opener.connect()?))?;
        let conn = Connection::adopt(raw, &self.common)?;
        activity.interrupter.get_or_init(|| conn.interrupter());
        Ok(Reader { conn, activity, _entry: entry })
    }
}

impl ManageConnection for Manager {
    type Connection = Reader;
    type Error = Error;

    fn connect(&self) -> Result<Reader> {
        let opened = self.open();
        // r2d2 tells the reason to nobody who could act on it, and tries again by itself.
        *self.books.last_error.lock() = opened.as_ref().err().cloned();
        opened
    }

    fn is_valid(&self, _: &mut Reader) -> Result<()> {
        Ok(()) // a file does not go away as a server does: no test query
    }

    /// The clean check-in. A reader that cannot be rolled back is thrown away.
    fn has_broken(&self, reader: &mut Reader) -> bool {
        reader.activity.end();
        reader.conn.rollback().is_err() || !reader.conn.is_autocommit()
    }
}

/// The readers of one file.
pub struct ReaderPool {
    pool: RwLock<Option<r2d2::Pool<Manager>>>,
    books: Arc<Books>,
    lately: Arc<Lately>,
    size: u32,
    rules: Rules,
    files: Arc<Files>,
    log: Arc<Log>,
}

/// The settings that reads go by.
#[derive(Clone, Copy)]
struct Rules {
    checkout_timeout: Duration,
    busy_timeout: Duration,
    transaction_timeout: Duration,
    slow_threshold: Duration,
}

/// What rides on a checkout, and is dropped when that has been checked in.
pub type Rider = Box<dyn Send>;

/// A reader out of the pool; dropping it checks it in.
struct Checkout {
    reader: OfThisProcess<PooledConnection<Manager>>,
    stats: Arc<Stats>,
    #[allow(dead_code)] // only its end matters
    rider: Option<Rider>,
}

impl AsRef<Connection> for Checkout {
    fn as_ref(&self) -> &Connection {
        &self.reader.conn
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.stats.readers_out.down();
    }
}

impl ReaderPool {
    /// A pool of readers on a file that the writer has open already. The first reader is opened now, the others when they
    /// are needed.
    ///
    /// # Errors
    /// What opening the first reader says.
    pub fn open(path: &Path, config: &Config, files: Arc<Files>, common: Common, log: Arc<Log>) -> Result<Self> {
        let books = Arc::new(Books { stats: Arc::clone(&common.stats), ..Books::default() });
        let settings = config.clone();
        let opener = SqliteConnectionManager::file(path)
            .with_flags(reader_flags())
            .with_init(move |raw| init_reader(raw, &settings));
        // One thread, and only while readers are being opened; r2d2 would start three for each pool.
        let threads = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("walpool-opener")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let pool = r2d2::Pool::builder()
            .max_size(config.readers)
            .min_idle(Some(0))
            .max_lifetime(None) // expiring a reader would close the file, which drops other libraries' locks on it
            .idle_timeout(None)
            .test_on_check_out(false)
            .thread_pool(Arc::new(threads))
            .build_unchecked(Manager {
                opener,
                books: Arc::clone(&books),
                common: common.clone(),
                busy_timeout: config.busy_timeout,
            });
        let rules = Rules {
            checkout_timeout: config.checkout_timeout,
            busy_timeout: config.busy_timeout,
            transaction_timeout: config.transaction_timeout,
            slow_threshold: config.slow_threshold,
        };
        let lately = common.lately;
        let readers =
            ReaderPool { pool: RwLock::new(Some(pool)), books, lately, size: config.readers, rules, files, log };
        readers.checkout(&Call::internal())?;
        Ok(readers)
    }

    /// Run one statement in a snapshot of its own.
    ///
    /// # Errors
    /// `CheckoutTimeout`, `StatementTimeout`, `Interrupted`, `Busy`, `Closed`, and the statement's own.
    ///
    /// # Guarantees
    /// Isolated reads, read-only readers.
    pub fn fetch(&self, call: &Call, sql: &str, params: &Params, want: Want) -> Result<Rows> {
        let (checkout, started) = self.checkout(call)?;
        self.books.stats.reads.one();
        let limit = call.deadline().map(Limit::Timeout);
        checkout.reader.activity.begin(sql, started);
        let rows = self.patiently(call, || {
            Watch::check_limit(limit)?;
            checkout.reader.conn.watch().arm(call, started, limit, true);
            checkout.reader.conn.fetch(sql, params, want, started)
        });
        drop(checkout);
        self.tell_slow("read", started, sql);
        rows
    }

    /// As `fetch`, if that waits for nothing and stays within the budget: on a thread that must not block. None where it
    /// would, or where nobody knows since the statement never ran; nothing is left of the try.
    pub fn fetch_at_once(&self, call: &Call, sql: &str, params: &Params, want: Want) -> Option<Result<Rows>> {
        if !self.lately.is_short(Lately::place(sql)) {
            return None;
        }
        let pool = self.pool.read().clone()?;
        let reader = OfThisProcess::new(pool.try_get()?);
        if let Err(error) = self.files.look_seldom(call.started) {
            return Some(Err(error));
        }
        self.books.stats.readers_out.up();
        let checkout = Checkout { reader, stats: Arc::clone(&self.books.stats), rider: None };
        checkout.reader.activity.begin(sql, call.started);
        let conn = &checkout.reader.conn;
        conn.watch().arm_for_budget(call, call.deadline().map(Limit::Timeout));
        let rows = conn.fetch(sql, params, want, call.started);
        if conn.watch().was_over_budget() {
            self.books.stats.reads_restarted.one();
            self.lately.doubt(Lately::place(sql));
            return None;
        }
        if rows.as_ref().is_err_and(Error::is_busy) {
            return None; // another process recovers the WAL: that is waited for elsewhere
        }
        self.books.stats.reads.one();
        self.books.stats.reads_on_loop.one();
        self.books.stats.checkout_wait.record_duration(Duration::ZERO);
        Some(rows)
    }

    /// How many readers there are at most.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The instant at which a wait for a reader ends.
    pub fn checkout_deadline(&self, call: &Call) -> Instant {
        call.wait_deadline(self.rules.checkout_timeout)
    }

    /// Take a snapshot and hold it for several reads.
    pub fn snapshot(&self, call: &Call, rider: Option<Rider>) -> Result<Snapshot> {
        let checkout = self.snapshot_checkout(call, "(a snapshot, nothing read yet)", rider)?;
        Ok(Snapshot(self.hold(checkout, "snapshot", "(several reads)")))
    }

    /// Take a snapshot and read one statement's rows from it piece by piece.
    pub fn stream(&self, call: &Call, sql: &str, params: &Params, rider: Option<Rider>) -> Result<Stream> {
        let checkout = self.snapshot_checkout(call, sql, rider)?;
        Ok(Stream(self.hold(Cursor::open(Box::new(checkout), sql, params)?, "stream", sql)))
    }

    fn snapshot_checkout(&self, call: &Call, sql: &str, rider: Option<Rider>) -> Result<Checkout> {
        let (mut checkout, started) = self.checkout(call)?;
        checkout.rider = rider;
        self.books.stats.reads.one();
        checkout.reader.activity.begin(sql, started);
        // For what is prepared in it: SQLite looks at the watch there too.
        checkout.reader.conn.watch().arm(call, started, call.deadline().map(Limit::Timeout), true);
        self.patiently(call, || checkout.reader.conn.begin_snapshot())?;
        Ok(checkout)
    }

    fn hold<T>(&self, thing: T, what: &'static str, sql: &str) -> Arc<Held<T>> {
        let began = Instant::now();
        Arc::new(Held {
            thing: OfThisProcess::new(Revocable::new(thing)),
            what,
            sql: sql.to_owned(),
            began,
            deadline: began + self.rules.transaction_timeout,
            rules: self.rules,
            stats: Arc::clone(&self.books.stats),
            log: Arc::clone(&self.log),
        })
    }

    /// Take a reader out, without waiting where one is free; with the instant from which the reader's own time counts.
    fn checkout(&self, call: &Call) -> Result<(Checkout, Instant)> {
        let Some(pool) = self.pool.read().clone() else { return Err(closed()) };
        self.files.look_seldom(call.started)?; // what is read from files that were removed is nobody's state any more
        let (reader, started) = match pool.try_get() {
            Some(reader) => (reader, call.work_starts()),
            None => (self.wait_for_reader(call, &pool)?, Instant::now()),
        };
        self.books.stats.checkout_wait.record_duration(started - call.started);
        self.books.stats.readers_out.up();
        let (reader, stats) = (OfThisProcess::new(reader), Arc::clone(&self.books.stats));
        Ok((Checkout { reader, stats, rider: None }, started))
    }

    fn wait_for_reader(&self, call: &Call, pool: &r2d2::Pool<Manager>) -> Result<PooledConnection<Manager>> {
        self.tell_waiting(call);
        let deadline = call.wait_deadline(self.rules.checkout_timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // r2d2 waits on a condition variable; the slice is for the deadline's and the caller's sake only.
            if let Ok(reader) = pool.get_timeout(left.min(WAIT_SLICE)) {
                return Ok(reader);
            }
            if self.pool.read().is_none() {
                return Err(closed());
            }
            if pool.state().connections == 0
                && let Some(error) = self.books.last_error.lock().clone()
            {
                return Err(error.context("no reader could be opened"));
            }
            if Instant::now() >= deadline {
                return Err(self.checkout_timeout(call));
            }
            if call.caller.can_be_interrupted() && call.caller.is_interrupted() {
                return Err(Error::new(Kind::Interrupted, "interrupted while waiting for a reader"));
            }
        }
    }

    /// The error of a caller that waited for a reader until its time was over.
    pub fn checkout_timeout(&self, call: &Call) -> Error {
        let waited = call.started.elapsed().as_secs_f64();
        let mut text = format!("no reader came free within {waited:.1} s: all {} are out", self.size);
        if let Some((age, sql)) = self.oldest_read() {
            text += &format!(", one for {:.1} s with: {}", age.as_secs_f64(), excerpt(&sql));
        }
        if let Some(error) = self.books.last_error.lock().as_ref() {
            text += &format!("; another could not be opened: {error}");
        }
        Error::new(Kind::CheckoutTimeout, text + "; end snapshots and streams sooner, or raise readers")
    }

    /// Try again while another process keeps the file, as when it recovers the WAL after a crash.
    fn patiently<T>(&self, call: &Call, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut busy_since = None;
        let mut ask_at = call.started + WAIT_SLICE;
        loop {
            let done = work();
            match &done {
                Err(error) if error.is_busy() => {}
                _ => return done,
            }
            let since = *busy_since.get_or_insert_with(|| {
                self.tell_waiting(call);
                self.books.stats.busy_waits.one();
                Instant::now()
            });
            if since.elapsed() >= self.rules.busy_timeout {
                return done;
            }
            Watch::check_limit(call.deadline().map(Limit::Timeout))?;
            if Instant::now() >= ask_at {
                ask_at = Instant::now() + WAIT_SLICE;
                if call.caller.can_be_interrupted() && call.caller.is_interrupted() {
                    return Err(Error::new(Kind::Interrupted, "interrupted while another process had the file locked"));
                }
            }
            std::thread::sleep(BUSY_RETRY);
        }
    }

    fn tell_waiting(&self, call: &Call) {
        if call.caller.about_to_wait() {
            self.books.stats.yields_to_wait.one();
        }
    }

    fn tell_slow(&self, what: &str, began: Instant, sql: &str) {
        self.rules.tell_slow(&self.books.stats, &self.log, what, began, sql);
    }

    /// The read that pins the WAL, with its SQL: the longest, if it has gone on for longer than a checkpoint may wait for.
    pub fn longest_read(&self) -> Option<(Duration, String)> {
        self.oldest_read().filter(|(age, _)| *age > LONGEST_PATIENCE)
    }

    fn oldest_read(&self) -> Option<(Duration, String)> {
        let register = self.books.register.lock();
        let doing = register.open.iter().filter_map(Weak::upgrade).filter_map(|activity| {
            let doing = activity.doing.lock();
            doing.0.map(|since| (since.elapsed(), doing.1.clone()))
        });
        doing.max_by_key(|(age, _)| *age)
    }

    /// Refuse new checkouts, and return when every reader has come home and its file is closed.
    ///
    /// # Blocking
    /// For as long as a read lasts, `transaction_timeout` at most: a snapshot is taken back then, and a fetch is stopped.
    pub fn close(&self, call: &Call) {
        self.books.register.lock().is_closed = true;
        let pool = self.pool.write().take();
        drop(pool);
        let mut register = self.books.register.lock();
        if !register.open.is_empty() {
            self.tell_waiting(call);
        }
        let patience = Instant::now() + self.rules.transaction_timeout;
        while !register.open.is_empty() {
            // Again and again: one that was between two statements has begun another since.
            let until = patience.max(Instant::now() + WAIT_SLICE);
            let is_over;
            (register, is_over) = self.books.closed.wait_until(register, until);
            if is_over {
                register.open.iter().filter_map(Weak::upgrade).for_each(|activity| activity.interrupt());
            }
        }
    }
}

impl Rules {
    fn tell_slow(self, stats: &Stats, log: &Log, what: &str, began: Instant, sql: &str) {
        let took = began.elapsed();
        if took > self.slow_threshold {
            stats.slow.one();
            log.add(Level::Warning, format!("slow {what}: {:.3} s: {}", took.as_secs_f64(), excerpt(sql)));
        }
    }
}

/// A reader, or a cursor on one, that the engine takes back after `transaction_timeout`.
pub struct Held<T> {
    thing: OfThisProcess<Revocable<T>>,
    what: &'static str,
    sql: String,
    began: Instant,
    deadline: Instant,
    rules: Rules,
    stats: Arc<Stats>,
    log: Arc<Log>,
}

impl<T: Send> Held<T> {
    fn with<R>(&self, call: &Call, work: impl FnOnce(&mut T, Limit) -> Result<R>) -> Result<R> {
        let limit = match call.deadline() {
            Some(deadline) if deadline < self.deadline => Limit::Timeout(deadline),
            _ => Limit::Tenure(self.deadline),
        };
        let lent = self.thing.get()?;
        if Instant::now() >= self.deadline {
            self.revoke(); // the keeper may be late
        }
        let used = lent.use_it(|thing| work(thing, limit), |thing| self.take_back(thing));
        let done = used.map_err(|refused| self.refusal(refused))?;
        if let Err(error) = &done
            && error.kind == Kind::TransactionTimeout
        {
            self.revoke(); // what its error says is true when the caller reads it
        }
        done
    }

    fn refusal(&self, refused: Refused) -> Error {
        match refused {
            Refused::Revoked => Error::new(
                Kind::TransactionTimeout,
                format!(
                    "the snapshot was held for longer than transaction_timeout ({} s) and was taken back, since it kept the \
                     WAL from shrinking; read in shorter pieces, or raise transaction_timeout",
                    self.rules.transaction_timeout.as_secs_f64()
                ),
            ),
            Refused::InUse => Error::new(Kind::Interface, "the snapshot is in use by another thread"),
            Refused::Ended => Error::new(Kind::Interface, "the snapshot has ended"),
        }
    }

    fn take_back(&self, thing: T) {
        drop(thing);
        self.stats.leases_revoked.one();
        let held = self.began.elapsed().as_secs_f64();
        self.log.add(Level::Warning, format!("a snapshot was taken back after {held:.1} s (transaction_timeout)"));
    }

    fn end(&self) {
        if let Ok(lent) = self.thing.get()
            && let Ok(thing) = lent.end()
        {
            drop(thing);
            self.rules.tell_slow(&self.stats, &self.log, self.what, self.began, &self.sql);
        }
    }
}

impl<T: Send> Tenure for Held<T> {
    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn revoke(&self) {
        if let Some(thing) = self.thing.revoke() {
            self.take_back(thing);
        }
    }
}

/// Several reads of one snapshot; dropping it checks the reader in.
pub struct Snapshot(Arc<Held<Checkout>>);

impl Snapshot {
    /// What the engine watches.
    pub fn tenure(&self) -> Arc<dyn Tenure> {
        Arc::clone(&self.0) as Arc<dyn Tenure>
    }

    /// Run one statement in this snapshot.
    pub fn fetch(&self, call: &Call, sql: &str, params: &Params, want: Want) -> Result<Rows> {
        let started = call.work_starts();
        let rows = self.0.with(call, |checkout, limit| {
            checkout.reader.activity.begin(sql, started);
            checkout.reader.conn.watch().arm(call, started, Some(limit), true);
            checkout.reader.conn.fetch(sql, params, want, started)
        });
        self.0.rules.tell_slow(&self.0.stats, &self.0.log, "read", started, sql);
        rows
    }

    /// Use the reader's connection itself, for a backup or a check: these take as long as the file is large, and have no
    /// limit but the caller's.
    pub fn with_connection<R>(&self, call: &Call, work: impl FnOnce(&Connection) -> Result<R>) -> Result<R> {
        self.0.with(call, |checkout, _| {
            let limit = call.deadline().map(Limit::Timeout);
            checkout.reader.conn.watch().arm(call, Instant::now(), limit, true);
            work(&checkout.reader.conn)
        })
    }
}

impl Snapshot {
    /// Check the reader in. Safe to call twice.
    pub fn end(&self) {
        self.0.end();
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.end();
    }
}

/// The rows of one statement, piece by piece, from one snapshot; dropping it checks the reader in.
pub struct Stream(Arc<Held<Cursor>>);

impl Stream {
    /// What the engine watches.
    pub fn tenure(&self) -> Arc<dyn Tenure> {
        Arc::clone(&self.0) as Arc<dyn Tenure>
    }

    /// The next rows, fewer than `want.most` only at the end.
    pub fn next_rows(&self, call: &Call, want: Want) -> Result<Rows> {
        self.0.with(call, |cursor, limit| {
            cursor.connection().watch().arm(call, Instant::now(), Some(limit), true);
            cursor.next_rows(want)
        })
    }
}

impl Stream {
    /// Check the reader in. Safe to call twice.
    pub fn end(&self) {
        self.0.end();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the pool is closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::open_writer;

    /// SQLite's own words where another process has the file, as while it recovers the WAL after a crash.
    fn is_locked() -> Result<()> {
        Err(crate::error::from_code(5, "database is locked".into()))
    }

    #[test]
    fn read_waits_for_another_process_until_busy_timeout_or_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let config = Config { busy_timeout: Duration::from_millis(30), ..Config::default() };
        let common = Common::new(&config);
        let _writer = open_writer(&Call::internal(), &path, &config, &common).unwrap();
        let log = Arc::new(Log::new(Arc::clone(&common.stats)));
        let readers = ReaderPool::open(&path, &config, Arc::new(Files::of(&path)), common, log).unwrap();
        let mut tries = 0;
        let locked_once = || {
            tries += 1;
            if tries == 1 { is_locked() } else { Ok(()) }
        };
        readers.patiently(&Call::internal(), locked_once).unwrap();
        let kind = |timeout| {
            let call = Call { timeout, ..Call::internal() };
            readers.patiently(&call, is_locked).unwrap_err().kind
        };
        assert_eq!((kind(None), kind(Some(Duration::from_millis(5)))), (Kind::Busy, Kind::StatementTimeout));
    }
}
