//! `vec_nearest`: the records nearest to a vector, exactly, in the snapshot of the statement that asks.
//! Owns its arguments, and the SQL that reads the tables for it. Must not know pools, nor whose tables these are.
//!
//! The sketches say who can be among the best, and the embeddings of those settle it. Sketches come from the index in
//! memory, which is brought up to date first, by what has been committed only. What it cannot show (rows of a transaction
//! that writes, of a snapshot that is older) is read from the table into blocks of the same kind and dropped afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, MAIN_DB, Statement, TransactionState, ffi};

use super::Lookout;
use crate::error::{Error, Kind, Result};
use crate::key_set::KeySet;
use crate::sketches::{
    Block, Candidates, Delta, Edition, Metric, Name, OWN, Place, Row, SLOTS, Search, Seat, Sight, Sketches, Version,
    bytes_of_record,
};
use crate::stats::Stats;
use crate::vector::probe::Probe;
use crate::vector::sketch::padded_width;
use crate::vector::{self, Vector};

const NAME: &str = "vec_nearest";

/// What is asked of the tables, whose names begin with the word in place of `{}`.
mod sql {
    pub const SPACE: &str = "SELECT epoch, dims, centroid, trimmed,
            (SELECT change FROM main.{}_sketches WHERE space = ?1 ORDER BY change DESC LIMIT 1)
        FROM main.{}_spaces WHERE space = ?1";
    pub const ROWS: &str = "SELECT change, key, scope, gone, sketch FROM main.{}_sketches
        WHERE space = ?1 AND change > ?2 ORDER BY change";
    pub const COUNT: &str = "SELECT count(*) FROM main.{}_sketches WHERE space = ?1";
    pub const EMBEDDING: &str = "SELECT embedding FROM main.{}_vectors WHERE rowid = ?1";
}

/// How long a search waits for another thread that loads the index, before it reads the table itself.
const PATIENCE: Duration = Duration::from_secs(2);
const SLICE: Duration = Duration::from_millis(20); // between two looks at the caller
/// A scan of so many bytes takes about the budget of 50 µs.
const LONG_BYTES: usize = 1 << 19;
/// From so many bytes on a second thread pays: it takes 50 µs to start.
const HELPED_BYTES: usize = 1 << 23;
const MOST_HELPERS: usize = 7;
/// Embeddings that are read between two looks: 2 µs each.
const LOOK_EVERY: u32 = 16;
/// Sketches that are read before SQLite drops its copies of their pages, about half as many: some 256 KiB.
const DROP_EVERY: usize = 128;

/// Why a search ended without an answer.
enum Fault {
    Own(Error),
    Sqlite(rusqlite::Error),
    /// The lookout said so, and knows why.
    Stopped,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Own(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Sqlite(error)
    }
}

impl Fault {
    /// What SQLite is told. Its own messages are not passed on, which may hold values.
    fn told(self) -> rusqlite::Error {
        let own = |message: &str| rusqlite::Error::UserFunctionError(format!("{NAME}: {message}").into());
        match self {
            Fault::Own(error) => own(&error.message),
            Fault::Stopped => rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None),
            Fault::Sqlite(rusqlite::Error::SqliteFailure(error, _)) if error.extended_code != ffi::SQLITE_ERROR => {
                rusqlite::Error::SqliteFailure(error, None)
            }
            Fault::Sqlite(_) => own("this file has no such tables, or they are not as walpool makes them"),
        }
    }
}

/// Whether an own message tells of data that is wrong, and not of a statement.
pub(super) fn is_about_data(message: &str) -> bool {
    let ends = ["cannot be compared", "not finite", "4-byte floats", "of vec_key_set", "dims"];
    message.starts_with(NAME) && ends.iter().any(|end| message.ends_with(end))
}

struct Tools<L> {
    sketches: Arc<Sketches>,
    stats: Arc<Stats>,
    lookout: L,
}

pub(super) fn register(
    conn: &Connection,
    sketches: Arc<Sketches>,
    stats: Arc<Stats>,
    lookout: impl Lookout,
) -> rusqlite::Result<()> {
    let tools = Tools { sketches, stats, lookout };
    // Not deterministic, since it reads tables, and for statements of the caller's own only.
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    conn.create_scalar_function(NAME, 10, flags, move |ctx| nearest(ctx, &tools).map_err(Fault::told))
}

/// What the row of a space says, and what a search needs of it.
struct Space {
    name: Name,
    edition: Edition,
    trimmed: i64,
    /// The newest change that the snapshot has. Tombstones up to `trimmed` may be gone, and with them their changes.
    newest: i64,
}

fn nearest<L: Lookout>(ctx: &Context<'_>, tools: &Tools<L>) -> Result<String, Fault> {
    let arguments = Arguments::read(ctx)?;
    // SAFETY: the connection is used by the function that SQLite calls on it, while it runs.
    #[allow(unsafe_code)]
    let conn = unsafe { ctx.get_connection()? };
    let name = Name { tables: arguments.tables.to_owned(), space: arguments.space };
    let mut stmt = prepare(&conn, sql::SPACE, &name)?;
    // Open until the end, so that all that is read is of one snapshot: the statement outside may read no table itself.
    let mut rows = stmt.query([name.space])?;
    let Some(row) = rows.next()? else { return Ok("[]".to_owned()) };
    let dims = row.get::<_, Option<u32>>(1)?.map(|dims| dims as usize);
    let trimmed = row.get(3)?;
    let newest = row.get::<_, Option<i64>>(4)?.unwrap_or(0).max(trimmed);
    let edition = Edition { epoch: row.get(0)?, dims: dims.unwrap_or(0) };
    let space = Space { name, edition, trimmed, newest };
    let centroid = row.get_ref(2)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
    let search = arguments.search(dims, centroid.map(Vector::from_blob).transpose()?)?;
    tools.stats.searches.one();
    let Some(search) = search else { return Ok("[]".to_owned()) };
    let table = Table { conn: &conn, space, tools };
    let candidates = table.candidates(&search)?;
    let keys = table.settle(candidates, arguments.query, search.metric)?;
    let keys: Vec<String> = keys.iter().map(i64::to_string).collect();
    Ok(format!("[{}]", keys.join(",")))
}

fn prepare<'c>(conn: &'c Connection, sql: &str, name: &Name) -> rusqlite::Result<Statement<'c>> {
    conn.prepare(&sql.replace("{}", &name.tables))
}

struct Arguments<'a> {
    tables: &'a str,
    space: i64,
    query: Vector<'a>,
    metric: Metric,
    limit: i64,
    scopes: Option<&'a [u8]>,
    keys: Option<&'a [u8]>,
    change: Option<i64>,
    after: Option<Place>,
}

impl<'a> Arguments<'a> {
    fn read(ctx: &'a Context<'_>) -> Result<Self> {
        let needed = |index: usize, what| move || refused(index, what, ValueRef::Null);
        let metric = match ctx.get_raw(3) {
            ValueRef::Text(b"cosine") => Metric::Cosine,
            ValueRef::Text(b"dot") => Metric::Dot,
            ValueRef::Text(b"l2") => Metric::L2,
            _ => return Err(Error::new(Kind::Programming, "the metric must be 'cosine', 'dot' or 'l2'")),
        };
        let score = match ctx.get_raw(8) {
            ValueRef::Null => None,
            ValueRef::Real(score) => Some(score),
            ValueRef::Integer(score) => Some(score as f64),
            other => return Err(refused(8, "a REAL", other)),
        };
        let after = match (score, integer(ctx, 9)?) {
            (Some(score), Some(key)) => Some(Place { score: score + 0.0, key }),
            (None, None) => None,
            _ => return Err(Error::new(Kind::Programming, "after_score and after_key go together")),
        };
        Ok(Arguments {
            tables: word(ctx, 0)?,
            space: integer(ctx, 1)?.ok_or_else(needed(1, "an INTEGER"))?,
            query: Vector::from_blob(blob(ctx, 2)?.ok_or_else(needed(2, "a BLOB"))?)?,
            metric,
            limit: integer(ctx, 4)?.ok_or_else(needed(4, "an INTEGER"))?,
            scopes: blob(ctx, 5)?,
            keys: blob(ctx, 6)?,
            change: integer(ctx, 7)?,
            after,
        })
    }

    /// None where nothing is wanted.
    fn search(&self, dims: Option<usize>, centroid: Option<Vector<'_>>) -> Result<Option<Search>> {
        if let Some(dims) = dims {
            vector::check_dims(dims, self.query.dims())?;
        }
        // Where no record has an embedding yet, nothing but the query's length matters, and there is no centroid.
        let centroid = centroid.filter(|_| dims.is_some());
        let probe =
            Probe::new(self.query, centroid)?.ok_or_else(|| Error::new(Kind::Data, "the query is not finite"))?;
        let is_flat = dims.is_none() || (self.query.norm_squared() == 0.0 && self.metric != Metric::L2);
        let zeros = vec![0; self.query.dims() * 4];
        let score_of_zero = score(self.metric, Vector::from_blob(&zeros)?, self.query)?;
        if self.limit <= 0 {
            return Ok(None);
        }
        Ok(Some(Search {
            probe: (!is_flat).then_some(probe),
            metric: self.metric,
            score_of_zero,
            limit: usize::try_from(self.limit).unwrap_or(usize::MAX / 8).min(usize::MAX / 8),
            scopes: self.scopes.map(KeySet::from_blob).transpose()?,
            keys: self.keys.map(KeySet::from_blob).transpose()?,
            change: self.change.unwrap_or(i64::MAX),
            after: self.after,
        }))
    }
}

/// A word that may stand in SQL as it is.
fn word<'a>(ctx: &'a Context<'_>, index: usize) -> Result<&'a str> {
    let is_plain = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    match ctx.get_raw(index) {
        ValueRef::Text(text) => str::from_utf8(text).ok().filter(|word| is_plain(word)).ok_or_else(|| {
            Error::new(Kind::Programming, "the tables are named by a word of lower-case letters, such as 'memory'")
        }),
        other => Err(refused(index, "a TEXT", other)),
    }
}

fn blob<'a>(ctx: &'a Context<'_>, index: usize) -> Result<Option<&'a [u8]>> {
    super::argument(ctx, index)
}

fn integer(ctx: &Context<'_>, index: usize) -> Result<Option<i64>> {
    match ctx.get_raw(index) {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(number) => Ok(Some(number)),
        other => Err(refused(index, "an INTEGER", other)),
    }
}

fn refused(index: usize, wanted: &str, given: ValueRef<'_>) -> Error {
    let text = format!("argument {} must be {wanted}, not {}", index + 1, given.data_type());
    Error::new(Kind::Programming, text)
}

fn score(metric: Metric, embedding: Vector<'_>, query: Vector<'_>) -> Result<f64> {
    match metric {
        Metric::Cosine => vector::cosine(embedding, query, query.norm_squared()),
        Metric::Dot => vector::dot(embedding, query),
        Metric::L2 => Ok(1.0 / (1.0 + vector::l2_squared(embedding, query)?)),
    }
}

/// The tables, as the statement's snapshot has them.
struct Table<'a, L> {
    conn: &'a Connection,
    space: Space,
    tools: &'a Tools<L>,
}

impl<L: Lookout> Table<'_, L> {
    fn look(&self) -> Result<(), Fault> {
        if self.tools.lookout.look() { Err(Fault::Stopped) } else { Ok(()) }
    }

    fn expect_long(&self) -> Result<(), Fault> {
        if self.tools.lookout.expect_long() { Err(Fault::Stopped) } else { Ok(()) }
    }

    fn prepare(&self, sql: &str) -> rusqlite::Result<Statement<'_>> {
        prepare(self.conn, sql, &self.space.name)
    }

    /// Whether this transaction may hold what is not committed, and may never be.
    fn is_writing(&self) -> Result<bool, Fault> {
        Ok(self.conn.transaction_state(Some(MAIN_DB))? == TransactionState::Write)
    }

    /// Who may be among the best.
    fn candidates<'s>(&self, search: &'s Search) -> Result<Candidates<'s>, Fault> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let version = self.tools.sketches.version(&self.space.name);
            let same = version.as_ref().filter(|version| version.edition() == self.space.edition);
            if let Some(version) = same
                && let Some(point) = version.point(self.space.newest, self.space.trimmed)
            {
                return self.look_from(search, version, point);
            }
            if !self.is_news(version.as_deref()) || self.is_writing()? || !self.has_room()? {
                return self.read_all(search);
            }
            if let Some(seat) = self.tools.sketches.seat(&self.space.name, version.as_ref()) {
                let version = self.load(seat)?;
                return self.scan(search, &version, Sight { point: self.space.newest, hidden: None });
            }
            if !self.wait_for_loader(patience)? {
                return self.read_all(search);
            }
        }
    }

    /// Whether an index made now would be newer than that one.
    fn is_news(&self, version: Option<&Version>) -> bool {
        version.is_none_or(|version| (version.edition(), version.newest()) < (self.space.edition, self.space.newest))
    }

    fn has_room(&self) -> Result<bool, Fault> {
        let rows: i64 = self.prepare(sql::COUNT)?.query_row([self.space.name.space], |row| row.get(0))?;
        let bytes = rows.cast_unsigned().saturating_mul(bytes_of_record(self.space.edition.dims));
        Ok(self.tools.sketches.has_room(bytes))
    }

    /// False where it took too long.
    fn wait_for_loader(&self, patience: Instant) -> Result<bool, Fault> {
        self.expect_long()?;
        while Instant::now() < patience {
            if self.tools.sketches.wait(&self.space.name, Instant::now() + SLICE) {
                return Ok(true);
            }
            self.look()?;
        }
        Ok(false)
    }

    fn load(&self, seat: Seat) -> Result<Arc<Version>, Fault> {
        let mut blocks = Vec::new();
        self.rows_since(i64::MIN, SLOTS, |block| {
            blocks.push(std::mem::replace(block, Block::with_room(self.space.edition.dims, SLOTS)));
            Ok(())
        })?;
        self.tools.stats.sketch_loads.one();
        Ok(seat.fill(self.space.edition, self.space.newest, blocks))
    }

    /// Look through the index from a point of its, and through the rows since then.
    fn look_from<'s>(&self, search: &'s Search, version: &Arc<Version>, point: i64) -> Result<Candidates<'s>, Fault> {
        if point == self.space.newest {
            return self.scan(search, version, Sight { point, hidden: None });
        }
        let delta = self.delta(point)?;
        if version.newest() == point
            && !self.is_writing()?
            && let Some(seat) = self.tools.sketches.seat(&self.space.name, Some(version))
        {
            // With the seat in hand nobody else has brought it on: what was read is all that it lacks.
            return match seat.advance(delta, self.space.newest) {
                Some(next) => self.scan(search, &next, Sight { point: self.space.newest, hidden: None }),
                None => self.read_all(search),
            };
        }
        let mut touched: Vec<i64> = delta.touched.iter().map(|&(key, _)| key).collect();
        touched.sort_unstable();
        let hidden = KeySet::from_sorted(touched);
        let mut candidates = self.scan(search, version, Sight { point, hidden: Some(&hidden) })?;
        delta.blocks.iter().for_each(|block| candidates.scan(block, OWN));
        Ok(candidates)
    }

    fn delta(&self, point: i64) -> Result<Delta, Fault> {
        let mut blocks = Vec::new();
        let touched = self.rows_since(point, 4, |block| {
            blocks.push(std::mem::replace(block, Block::with_room(self.space.edition.dims, SLOTS)));
            Ok(())
        })?;
        Ok(Delta { touched, blocks })
    }

    /// Read every sketch, and keep none.
    fn read_all<'s>(&self, search: &'s Search) -> Result<Candidates<'s>, Fault> {
        self.tools.stats.searches_from_table.one();
        let mut candidates = Candidates::new(search);
        self.rows_since(i64::MIN, SLOTS, |block| {
            candidates.scan(block, OWN);
            block.clear();
            self.look()
        })?;
        Ok(candidates)
    }

    /// Read the rows after a change, and hand out the states in blocks; with which records the rows were of, and their changes.
    fn rows_since(
        &self,
        change: i64,
        room: usize,
        mut work: impl FnMut(&mut Block) -> Result<(), Fault>,
    ) -> Result<Vec<(i64, i64)>, Fault> {
        let mut block = Block::with_room(self.space.edition.dims, room);
        let mut touched = Vec::new();
        let mut stmt = self.prepare(sql::ROWS)?;
        let mut rows = stmt.query([self.space.name.space, change])?;
        while let Some(row) = rows.next()? {
            let (change, key): (i64, i64) = (row.get(0)?, row.get(1)?);
            touched.push((key, change));
            if touched.len().is_multiple_of(DROP_EVERY) {
                // Nobody comes back to them, and the next ones are read into the same memory, which the CPU's cache has,
                // rather than all over the page cache: a fifth of the time (benches/README.md).
                self.conn.release_memory()?;
            }
            if row.get::<_, bool>(3)? {
                continue;
            }
            let sketch = row.get_ref(4)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
            block.push(Row { change, key, scope: row.get(2)?, sketch })?;
            if block.len() == SLOTS {
                work(&mut block)?;
            }
        }
        if !block.is_empty() {
            block.fit();
            work(&mut block)?;
        }
        Ok(touched)
    }

    /// Look through the index, with more than one thread where that pays.
    fn scan<'s>(&self, search: &'s Search, version: &Version, sight: Sight<'_>) -> Result<Candidates<'s>, Fault> {
        let blocks = version.blocks();
        let slots: usize = blocks.iter().map(|block| block.len()).sum();
        let bytes = slots * (padded_width(self.space.edition.dims) + 64); // the second planes of few are looked at
        if bytes > LONG_BYTES {
            self.expect_long()?;
        }
        let helpers = self.tools.sketches.helpers(MOST_HELPERS.min(bytes / HELPED_BYTES));
        let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let part = |look: &dyn Fn() -> Result<(), Fault>| {
            let mut candidates = Candidates::new(search);
            while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                candidates.scan(block, sight);
                look().inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
            }
            Ok::<_, Fault>(candidates)
        };
        thread::scope(|scope| {
            let spawn = |_| {
                let named = thread::Builder::new().name("walpool-scan".to_owned());
                named.spawn_scoped(scope, || part(&|| Ok(()))).ok() // where none can be had, it takes longer
            };
            let spawned: Vec<_> = (0..helpers.count).filter_map(spawn).collect();
            let mut candidates = part(&|| self.look())?;
            for helper in spawned {
                match helper.join() {
                    Ok(found) => candidates.join(found?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(candidates)
        })
    }

    /// Read the embeddings that settle who is among the best.
    fn settle(&self, candidates: Candidates<'_>, query: Vector<'_>, metric: Metric) -> Result<Vec<i64>, Fault> {
        let mut stmt = self.prepare(sql::EMBEDDING)?;
        let zeros = vec![0; query.dims() * 4];
        let mut read = 0_u32;
        let settled = candidates.settle(|key| {
            read += 1;
            if read.is_multiple_of(LOOK_EVERY) {
                self.look()?;
            }
            let mut rows = stmt.query([key])?;
            let embedding = match rows.next()? {
                Some(row) => row.get_ref(0)?.as_blob_or_null().map_err(rusqlite::Error::from)?,
                None => None,
            };
            Ok::<_, Fault>(score(metric, Vector::from_blob(embedding.unwrap_or(&zeros))?, query)?)
        });
        self.tools.stats.embeddings_read.add(u64::from(read));
        settled
    }
}
