//! Who is opened and closed in which order; the one type through which all work enters. Must not know Python.
//!
//! One engine a file: handles on the same (device, inode) in a process share it, so that there are never two writers.

mod absent;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use once_cell::race::OnceBox;

use crate::backup;
use crate::caller::Call;
use crate::checkpoint::Checkpointer;
use crate::config::Config;
use crate::connection::{
    BUSY_RETRY, CheckpointMode, Checkpointed, Common, Ran, Want, file_system, has_wal_reset_fix, open_writer,
    retry_busy, sqlite_version,
};
use crate::error::{Error, Kind, Result};
use crate::files::Files;
use crate::group_commit::{Answer, Job};
use crate::locking::{self, OfThisProcess, Still};
use crate::log::{Level, Log, Message, excerpt};
use crate::reader::{ReaderPool, Rider, Snapshot, Stream};
use crate::revocable::Tenure;
use crate::sketches::Sketches;
use crate::stats::{Figure, Stats};
use crate::sync::{Mutex, MutexGuard};
use crate::value::{Params, Rows};
use crate::workers::{Bell, Crew, Keeper};
use crate::writer::{Lease, Offer, Writer};

pub use self::absent::{Borrowed, Expiry, Leased, Waiting, absent_call};

/// The file a path leads to: device and inode, or the real path where there are no inodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FileId {
    #[cfg(unix)]
    Inode(u64, u64),
    #[cfg(not(unix))]
    Path(PathBuf),
}

/// A place in the engine table. Its lock is held while the engine opens and while it closes, so that whoever asks for the
/// same file meanwhile waits for the outcome.
type Place = Arc<Mutex<Option<Arc<Shared>>>>;

/// Engines by generation and file: a child finds its parent's here, and leaves them alone.
type Table = HashMap<(u32, FileId), Place>;

/// One of the two process-wide tables; empty until the first open.
static ENGINES: Mutex<Option<Table>> = Mutex::new(None);

thread_local! {
    /// The engine table while this thread forks: the child must find it unlocked, and whole.
    static HELD: RefCell<Option<MutexGuard<'static, Option<Table>>>> = const { RefCell::new(None) };
}

const STILL: Still = Still {
    hold: || {
        let table = ENGINES.lock();
        HELD.with(|held| held.replace(Some(table)));
    },
    release: || drop(HELD.with(RefCell::take)),
};

struct Shared {
    path: PathBuf,
    config: Config,
    handles: Mutex<usize>,
    writer: Arc<Writer>,
    readers: Arc<ReaderPool>,
    keeper: Keeper,
    crew: Crew,
    bell: Arc<Bell>,
    sketches: Arc<Sketches>,
    stats: Arc<Stats>,
    log: Arc<Log>,
}

/// A counted handle on the engine of one file; the last one to close closes the file.
pub struct Engine {
    shared: OfThisProcess<Arc<Shared>>,
    /// In a child that inherited this handle: its own, opened when it is first needed. It never waits for another thread,
    /// since a fork might find that thread gone.
    heir: OnceBox<Engine>,
    given: Vec<String>,
    place: OfThisProcess<Place>,
    file: FileId,
    is_closed: AtomicBool,
    /// Whether the close that was begun is done with.
    has_closed: AtomicBool,
    /// The folder of a private temporary database, removed at close.
    folder: Option<PathBuf>,
}

impl Engine {
    /// Open a file, or join the engine that has it open. `given` names the settings that were set explicitly: only these are
    /// compared with the engine's.
    ///
    /// # Errors
    /// `Config` where an explicit setting differs from the open engine's; those of the writer and the readers.
    ///
    /// # Blocking
    /// On another process's lock, for `busy_timeout`; on another thread that opens or closes the same file.
    pub fn open(call: &Call, path: &Path, config: &Config, given: &[&str]) -> Result<Engine> {
        config.validate()?;
        locking::install(STILL)?;
        if !has_wal_reset_fix() {
            return Err(Error::new(
                Kind::NotSupported,
                format!(
                    "SQLite {} can lose committed data (wal.html#walresetbug); 3.51.3 or newer is needed",
                    sqlite_version()
                ),
            ));
        }
        call.caller.about_to_wait(); // opening reads the disk
        if path == Path::new(":memory:") {
            return Self::open_private(call, config, given);
        }
        Self::open_file(call, path, config, given, None).map_err(|error| on_file(error, path))
    }

    /// `:memory:` is a private temporary file, so that every guarantee holds for it too.
    fn open_private(call: &Call, config: &Config, given: &[&str]) -> Result<Engine> {
        let folder = make_private_folder()?;
        let opened = Self::open_file(call, &folder.join("memory.db"), config, given, Some(folder.clone()));
        opened.inspect_err(|_| remove_folder(&folder))
    }

    fn open_file(call: &Call, path: &Path, config: &Config, given: &[&str], folder: Option<PathBuf>) -> Result<Engine> {
        let path = real_path(path)?;
        let doubt = file_system::check(&path)?; // before a file is made there
        loop {
            // Asked before the engine is opened where the file exists, and after where it does not yet.
            let file = match file_id(&path)? {
                Some(file) => file,
                None => create(&path, config)?,
            };
            let key = (locking::generation(), file.clone());
            let place = Arc::clone(ENGINES.lock().get_or_insert_default().entry(key).or_default());
            let mut seat = place.lock();
            if file_id(&path)?.as_ref() != Some(&file) {
                continue; // replaced while this thread waited
            }
            let shared = match seat.as_ref() {
                Some(shared) => {
                    shared.compare(config, given)?;
                    Arc::clone(shared)
                }
                None => {
                    let opened = Shared::open(call, &path, config);
                    let shared = opened.inspect_err(|_| forget_place(&file, &place))?;
                    if let Some(doubt) = &doubt {
                        shared.log.add(Level::Warning, doubt.clone());
                    }
                    *seat = Some(Arc::clone(&shared));
                    shared
                }
            };
            *shared.handles.lock() += 1;
            drop(seat);
            return Ok(Engine {
                shared: OfThisProcess::new(shared),
                heir: OnceBox::new(),
                given: given.iter().map(|&name| name.to_owned()).collect(),
                place: OfThisProcess::new(place),
                file,
                is_closed: AtomicBool::new(false),
                has_closed: AtomicBool::new(false),
                folder,
            });
        }
    }

    /// This handle; in a child that inherited it, the child's own, on an engine of its own.
    fn here(&self, call: &Call) -> Result<&Engine> {
        if !self.shared.is_inherited() {
            return Ok(self);
        }
        if self.is_closed() {
            return Err(Error::new(Kind::Closed, "the pool is closed"));
        }
        loop {
            if let Some(heir) = self.heir.get() {
                return heir.here(call);
            }
            let given: Vec<&str> = self.given.iter().map(String::as_str).collect();
            let opened = Engine::open_file(call, self.path(), self.config(), &given, None);
            // Where another thread was faster, this is a second handle on the same engine, and is given back.
            let _ = self.heir.set(Box::new(opened.map_err(|error| on_file(error, self.path()))?));
        }
    }

    /// The real path of the file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The settings that the engine runs with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Whether this handle was closed.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Run a write job; see `Writer::submit`.
    pub fn submit(&self, call: &Call, job: Job) -> Answer {
        self.guarded(call, |shared| shared.writer.submit(call, job))
    }

    /// Begin a transaction; see `Writer::lease`.
    pub fn lease(&self, call: &Call) -> Result<Lease> {
        self.guarded(call, |shared| shared.writer.lease(call).map(|lease| shared.watched(lease)))
    }

    /// Read; see `ReaderPool::fetch`.
    pub fn fetch(&self, call: &Call, sql: &str, params: &Params, want: Want) -> Result<Rows> {
        self.guarded(call, |shared| shared.readers.fetch(call, sql, params, want))
    }

    /// Take a snapshot; see `ReaderPool::snapshot`.
    pub fn snapshot(&self, call: &Call) -> Result<Snapshot> {
        self.guarded(call, |shared| shared.snapshot(call, None))
    }

    /// Read piece by piece; see `ReaderPool::stream`.
    pub fn stream(&self, call: &Call, sql: &str, params: &Params) -> Result<Stream> {
        self.guarded(call, |shared| shared.stream(call, sql, params, None))
    }

    /// Move the WAL into the file. It waits for nobody: `was_busy` says that a reader or another process was in the way.
    pub fn checkpoint(&self, call: &Call, mode: CheckpointMode) -> Result<Checkpointed> {
        self.guarded(call, |shared| shared.checkpoint(call, mode))
    }

    /// Rewrite the file without its holes.
    pub fn vacuum(&self, call: &Call) -> Result<()> {
        self.guarded(call, |shared| shared.vacuum(call))
    }

    /// Copy the database, as one snapshot sees it, into a new file.
    pub fn backup(&self, call: &Call, dest: &Path) -> Result<()> {
        self.guarded(call, |shared| shared.backup(call, dest))
    }

    /// What SQLite finds wrong with the file; empty where it finds nothing.
    pub fn check(&self, call: &Call) -> Result<Vec<String>> {
        self.guarded(call, |shared| shared.check(call))
    }

    /// The figures of this engine; `pop` starts those that add up anew.
    pub fn stats(&self, call: &Call, pop: bool) -> Result<Vec<(String, Figure)>> {
        Ok(self.here(call)?.shared.stats.read(pop))
    }

    /// Messages for the log, which the engine cannot write itself.
    pub fn take_messages(&self) -> Vec<Message> {
        match self.heir.get() {
            Some(heir) => heir.take_messages(),
            None => self.shared.get().map_or(Vec::new(), |shared| shared.log.take()),
        }
    }

    /// Finish an error: count it, and say on which file it was.
    pub fn told(&self, error: Error) -> Error {
        self.shared.told(error)
    }

    fn guarded<T>(&self, call: &Call, work: impl FnOnce(&Shared) -> Result<T>) -> Result<T> {
        let here = self.here(call)?;
        if here.is_closed() {
            return Err(here.told(Error::new(Kind::Closed, "the pool is closed")));
        }
        work(&here.shared).map_err(|error| here.told(error))
    }

    /// Give the handle back. The last one refuses new work, answers all that was accepted, joins its thread and closes the
    /// file. Safe to call twice: the second caller waits for the first.
    pub fn close(&self, call: &Call) -> Result<()> {
        let was_closed = self.is_closed.swap(true, Ordering::AcqRel);
        if self.shared.is_inherited() {
            return self.heir.get().map_or(Ok(()), |heir| heir.close(call)); // what was inherited is the parent's to close
        }
        call.caller.about_to_wait();
        if was_closed {
            while !self.has_closed.load(Ordering::Acquire) {
                std::thread::sleep(BUSY_RETRY);
            }
            return Ok(());
        }
        let _end = HasClosed(&self.has_closed);
        let mut seat = self.place.lock();
        let is_last = {
            let mut handles = self.shared.handles.lock();
            *handles -= 1;
            *handles == 0
        };
        if !is_last {
            return Ok(());
        }
        *seat = None;
        let closed = self.shared.close(call);
        drop(seat);
        forget_place(&self.file, &self.place);
        if let Some(folder) = &self.folder {
            remove_folder(folder);
        }
        closed.map_err(|error| self.told(error))
    }
}

/// Says at its end that a close is done with, however it ended.
struct HasClosed<'a>(&'a AtomicBool);

impl Drop for HasClosed<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody is left to tell; the writer's own close has answered everybody either way.
        let _ = self.close(&Call::internal());
    }
}

impl Shared {
    fn open(call: &Call, path: &Path, config: &Config) -> Result<Arc<Shared>> {
        let (common, bell) = (Common::new(config), Arc::<Bell>::default());
        let (stats, sketches) = (Arc::clone(&common.stats), Arc::clone(&common.sketches));
        let log = Arc::new(Log::new(Arc::clone(&stats)));
        let checkpointer = Arc::new(Checkpointer::new(path, config, Arc::clone(&stats)));
        // The writer first: it fails at once on a bad path, and turns WAL on.
        let conn = open_writer(call, path, config, &common)?;
        let files = Arc::new(Files::of(path));
        conn.keep_to(Arc::clone(&files));
        tell_second_library(&files, &stats, &log);
        if let Some(mark) = conn.retired() {
            log.add(Level::Warning, format!("{mark}: it is open to read only, as write_retired is off"));
        }
        let after_commit = {
            let (bell, checkpointer) = (Arc::clone(&bell), Arc::clone(&checkpointer));
            let (files, stats, log) = (Arc::clone(&files), Arc::clone(&stats), Arc::clone(&log));
            Box::new(move |frames| {
                if checkpointer.is_due(frames) {
                    bell.ring();
                }
                tell_second_library(&files, &stats, &log);
            })
        };
        let writer = Writer::new(conn, config, after_commit, Arc::clone(&stats), Arc::clone(&log));
        let readers = ReaderPool::open(path, config, Arc::clone(&files), common, Arc::clone(&log));
        let readers = match readers {
            Ok(readers) => Arc::new(readers),
            Err(error) => {
                // The reader's error is the one to tell.
                let _ = writer.close(&Call::internal());
                return Err(error);
            }
        };
        let chore = {
            let (writer, readers, log) = (Arc::clone(&writer), Arc::clone(&readers), Arc::clone(&log));
            Box::new(move || keep_wal_small(&writer, &readers, &checkpointer, &log))
        };
        let keeper = Keeper::start(Arc::clone(&bell), chore)?;
        let crew = Crew::new(readers.size(), Arc::clone(&stats));
        writer.set_hand({
            let (writer, lane) = (Arc::downgrade(&writer), Arc::clone(&crew.writer));
            Box::new(move |offer: Offer| {
                if let Some(writer) = writer.upgrade() {
                    lane.push(Box::new(move || writer.lead_for(offer)));
                }
            })
        });
        stats.ofd_locks.set(u64::from(locking::has_ofd_locks()));
        Ok(Arc::new(Shared {
            path: path.to_owned(),
            config: config.clone(),
            handles: Mutex::new(0),
            writer,
            readers,
            keeper,
            crew,
            bell,
            sketches,
            stats,
            log,
        }))
    }

    fn told(&self, error: Error) -> Error {
        self.stats.error(&error);
        on_file(error, &self.path)
    }

    fn watched(&self, lease: Lease) -> Lease {
        let tenure: Arc<dyn Tenure> = Arc::clone(lease.transaction()) as Arc<dyn Tenure>;
        self.bell.watch(&tenure);
        lease
    }

    fn snapshot(&self, call: &Call, rider: Option<Rider>) -> Result<Snapshot> {
        let snapshot = self.readers.snapshot(call, rider)?;
        self.bell.watch(&snapshot.tenure());
        Ok(snapshot)
    }

    fn stream(&self, call: &Call, sql: &str, params: &Params, rider: Option<Rider>) -> Result<Stream> {
        let stream = self.readers.stream(call, sql, params, rider)?;
        self.bell.watch(&stream.tenure());
        Ok(stream)
    }

    fn checkpoint(&self, call: &Call, mode: CheckpointMode) -> Result<Checkpointed> {
        call.caller.about_to_wait();
        self.writer.turn(call)?.run(|conn| conn.checkpoint(mode))
    }

    fn vacuum(&self, call: &Call) -> Result<()> {
        call.caller.about_to_wait();
        let turn = self.writer.turn(call)?;
        turn.run(|conn| match conn.vacuum() {
            Err(error) if error.is_busy() => {
                self.stats.busy_waits.one();
                let left = call.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
                let patience = self.config.busy_timeout;
                retry_busy(left.map_or(patience, |left| left.min(patience)), || conn.vacuum())
            }
            done => done,
        })
    }

    fn backup(&self, call: &Call, dest: &Path) -> Result<()> {
        call.caller.about_to_wait();
        let snapshot = self.readers.snapshot(call, None)?;
        snapshot.with_connection(call, |conn| backup::copy(conn, dest, self.config.file_mode, call))
    }

    fn check(&self, call: &Call) -> Result<Vec<String>> {
        call.caller.about_to_wait();
        let snapshot = self.readers.snapshot(call, None)?;
        snapshot.with_connection(call, |conn| conn.integrity_problems())
    }

    fn compare(&self, config: &Config, given: &[&str]) -> Result<()> {
        match self.config.first_difference(config, given) {
            None => Ok(()),
            Some((name, open, wanted)) => Err(Error::new(
                Kind::Config,
                format!("{name}={wanted} was given, but the file is open in this process with {name}={open}"),
            )),
        }
    }

    /// Readers first, the writer last: the last connection to close checkpoints, and a reader cannot. The keeper goes between
    /// them, since it takes back the snapshots and leases that are still held; the crew ends last, since the writer's hand is
    /// of it.
    fn close(&self, call: &Call) -> Result<()> {
        self.crew.close_gate();
        self.readers.close(call);
        let closed = self.writer.close(call);
        self.keeper.close();
        self.crew.close();
        self.sketches.clear(); // a closed handle may live on
        closed
    }
}

/// The keeper's chore: checkpoint between two groups, and warn about a WAL that a reader keeps from shrinking.
fn keep_wal_small(
    writer: &Arc<Writer>,
    readers: &ReaderPool,
    checkpointer: &Checkpointer,
    log: &Log,
) -> Option<Duration> {
    checkpointer.sync_wal();
    let Ok(turn) = writer.turn(&Call::internal()) else { return None }; // closing: the last close checkpoints
    let longest_read = readers.longest_read().map_or(Duration::ZERO, |(age, _)| age);
    let next = match turn.run(|conn| checkpointer.run(conn, longest_read)) {
        Ok(next) => next,
        Err(error) => {
            log.add(
                Level::Warning,
                format!("a checkpoint failed, and will be tried again after the next commits: {error}"),
            );
            return None;
        }
    };
    drop(turn);
    if let Some(bytes) = next.bytes_past_limit {
        log.add(Level::Warning, wal_warning(bytes, readers.longest_read()));
    }
    next.retry
}

/// Warn, once, if another SQLite library of this process has the file open.
fn tell_second_library(files: &Files, stats: &Stats, log: &Log) {
    if !files.finds_second_library() {
        return;
    }
    stats.second_library.set(1);
    let risk = if locking::has_ofd_locks() {
        "the locks of both are kept apart, but it meets \"database is locked\" while walpool writes"
    } else {
        "each drops the other's locks when it closes the file, since this system's locks belong to a process: the file may be \
         damaged"
    };
    let text =
        "another SQLite library in this process has the file open (Python's sqlite3, or a package that brings one)";
    log.add(Level::Warning, format!("{text}: {risk}; open it through walpool alone, or in another process"));
}

fn wal_warning(bytes: u64, reader: Option<(Duration, String)>) -> String {
    let size = bytes as f64 / (1024.0 * 1024.0);
    let who = match reader {
        Some((age, sql)) => format!("a reader has pinned it for {:.1} s: {}", age.as_secs_f64(), excerpt(&sql)),
        None => "another process pins it".to_owned(),
    };
    format!("the WAL has {size:.0} MiB, past wal_limit; {who}")
}

fn on_file(error: Error, path: &Path) -> Error {
    let message = format!("{} [{}]", error.message, path.display());
    Error { message, ..error }
}

/// The path with its folder's links resolved, and its own if it exists: what SQLite and every other process will use.
fn real_path(path: &Path) -> Result<PathBuf> {
    let not_found = match path.canonicalize() {
        Ok(real) if real.is_dir() => {
            return Err(Error::new(Kind::Storage, "the path is a folder; name a file in it"));
        }
        Ok(real) => return Ok(real),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Storage, "the path names no file"))?;
    let folder = folder.canonicalize().map_err(|error| {
        Error::new(Kind::Storage, format!("the folder {} cannot be used: {error}; make it first", folder.display()))
    })?;
    let path = folder.join(name);
    match path.read_link() {
        Ok(target) if not_found => real_path(&folder.join(target)), // a link to a file that does not exist yet
        _ => Ok(path),
    }
}

#[cfg(unix)]
fn file_id(path: &Path) -> Result<Option<FileId>> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(FileId::Inode(metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new(Kind::Storage, format!("the file cannot be looked at: {error}"))),
    }
}

#[cfg(not(unix))]
fn file_id(path: &Path) -> Result<Option<FileId>> {
    Ok(path.canonicalize().ok().map(FileId::Path))
}

fn create(path: &Path, config: &Config) -> Result<FileId> {
    crate::connection::create_file(path, config.file_mode)?;
    file_id(path)?.ok_or_else(|| Error::new(Kind::Storage, "the file was removed while it was opened"))
}

fn forget_place(file: &FileId, place: &Place) {
    let mut engines = ENGINES.lock();
    if let Some(table) = engines.as_mut() {
        // Two owners are the table and the closing handle: somebody else who holds it is about to open the file again.
        let key = (locking::generation(), file.clone());
        let is_unused = table.get(&key).is_some_and(|known| Arc::ptr_eq(known, place)) && Arc::strong_count(place) == 2;
        if is_unused {
            table.remove(&key);
        }
    }
}

/// A new folder that only this user may enter.
fn make_private_folder() -> Result<PathBuf> {
    for attempt in 0..100_u32 {
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let folder = std::env::temp_dir().join(format!("walpool-{}-{nanos:x}-{attempt}", std::process::id()));
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Error::new(Kind::Storage, format!("no temporary folder could be made: {error}")));
            }
        }
    }
    Err(Error::new(Kind::Storage, "no temporary folder could be made: every name was taken"))
}

fn remove_folder(folder: &Path) {
    // It is ours alone, and the system clears its temporary folder too.
    let _ = std::fs::remove_dir_all(folder);
}

/// What a job's single statement did.
pub fn only(mut answer: Vec<Ran>) -> Result<Ran> {
    answer.pop().ok_or_else(|| Error::new(Kind::Interface, "an empty job has no result"))
}
