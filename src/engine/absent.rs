//! The engine for callers who must not block: nothing here waits. What takes time is done on a native thread, which tells
//! what came of it. Must not know asyncio.
//!
//! `tell` is called once, on whichever thread is at hand, with nothing of the engine's held.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, Shared};
use crate::caller::{ABSENT, Absent, Call, Cancel};
use crate::connection::{CheckpointMode, Checkpointed, Ran, Want};
use crate::error::{Error, Kind, Result};
use crate::group_commit::Job;
use crate::locking::OfThisProcess;
use crate::reader::{Rider, Snapshot, Stream};
use crate::stats::Figure;
use crate::value::{Params, Rows};
use crate::workers::{Permit, Strand, Task};
use crate::writer::{Lease, Ticket};

/// How a caller is told.
pub trait Tell<T>: FnOnce(Result<T>) + Send + 'static {}

impl<T, F: FnOnce(Result<T>) + Send + 'static> Tell<T> for F {}

/// A call of a caller who is elsewhere.
pub fn absent_call(timeout: Option<Duration>) -> Call {
    Call::new(&ABSENT, timeout)
}

/// Something that was begun for an absent caller, by which it may be given up.
pub struct Waiting(On);

enum On {
    Turn(Arc<Shared>, Arc<Ticket>),
    /// A place at the gate, and what is heard once it runs.
    Reader(Arc<Shared>, u64, Call, Cancel),
    Running(Cancel),
}

/// What has become of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The caller was told that its time is over, or it has nothing more to wait for but the end of what runs.
    Settled,
    /// It may wait until then.
    Until(Instant),
}

impl Waiting {
    /// For what goes on to its end, whatever its caller does.
    pub fn for_its_end() -> Self {
        Waiting(On::Running(Cancel::default()))
    }

    /// Give it up: what has not begun is taken back, a read that runs is interrupted, a job in a group goes on to its end.
    pub fn cancel(&self) {
        match &self.0 {
            On::Turn(shared, ticket) => {
                shared.writer.cancel(ticket);
            }
            On::Reader(shared, place, _, cancel) => {
                cancel.cancel();
                drop(shared.crew.gate.leave(*place));
            }
            On::Running(cancel) => cancel.cancel(),
        }
    }

    /// Look at the clock, and tell the caller if it has waited for too long.
    pub fn expire(&self, now: Instant) -> Expiry {
        let Some(deadline) = self.deadline() else { return Expiry::Settled };
        if now < deadline {
            return Expiry::Until(deadline);
        }
        match &self.0 {
            On::Turn(shared, ticket) => {
                shared.writer.expire(ticket);
            }
            On::Reader(shared, place, call, _) => {
                if let Some(work) = shared.crew.gate.leave(*place) {
                    work(Err(shared.readers.checkout_timeout(call)));
                }
            }
            On::Running(_) => {}
        }
        Expiry::Settled
    }

    /// Until when it may wait; None where it waits for nothing.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.0 {
            On::Turn(shared, ticket) => Some(shared.writer.deadline(ticket.call())),
            On::Reader(shared, _, call, _) => Some(shared.readers.checkout_deadline(call)),
            On::Running(_) => None,
        }
    }
}

impl Engine {
    /// Whether a call would find the engine open in this process: a child that inherited it opens its own first.
    pub fn is_open_here(&self) -> bool {
        !self.shared.is_inherited() || self.is_closed() || self.heir.get().is_some_and(Engine::is_open_here)
    }

    /// Open what this process needs, the native threads among it.
    ///
    /// # Blocking
    /// As `Engine::open`.
    pub fn open_here(&self, call: &Call) -> Result<()> {
        let here = self.here(call)?;
        here.shared.crew.start().map_err(|error| here.told(error))
    }

    /// As `guarded`, without the wait for an engine of this process.
    fn present(&self) -> Result<&Arc<Shared>> {
        if self.is_closed() {
            return Err(self.told(Error::new(Kind::Closed, "the pool is closed")));
        }
        match self.heir.get() {
            Some(heir) => heir.present(),
            None => self.shared.get(),
        }
    }

    /// Read, if that takes no longer than a moment; see `ReaderPool::fetch_at_once`.
    pub fn fetch_at_once(&self, call: &Call, sql: &str, params: &Params, want: Want) -> Result<Option<Rows>> {
        let shared = self.present()?;
        shared.readers.fetch_at_once(call, sql, params, want).transpose().map_err(|error| shared.told(error))
    }

    /// Read, on a native thread.
    pub fn fetch_absent(
        &self,
        call: Call,
        sql: Box<str>,
        params: Params,
        want: Want,
        tell: impl Tell<Rows>,
    ) -> Result<Waiting> {
        let fetch = move |shared: &Shared, _: Permit| shared.readers.fetch(&call.handed_on(), &sql, &params, want);
        self.with_reader(call, fetch, tell)
    }

    /// Take a snapshot.
    pub fn snapshot_absent(&self, call: Call, tell: impl Tell<Borrowed<Snapshot>>) -> Result<Waiting> {
        let begin = move |shared: &Shared, permit| shared.snapshot(&call.handed_on(), Some(Box::new(permit) as Rider));
        self.borrow(call, begin, tell)
    }

    /// Begin a stream.
    pub fn stream_absent(
        &self,
        call: Call,
        sql: Box<str>,
        params: Params,
        tell: impl Tell<Borrowed<Stream>>,
    ) -> Result<Waiting> {
        let begin = move |shared: &Shared, permit| {
            shared.stream(&call.handed_on(), &sql, &params, Some(Box::new(permit) as Rider))
        };
        self.borrow(call, begin, tell)
    }

    fn borrow<T: Send + Sync + 'static>(
        &self,
        call: Call,
        begin: impl FnOnce(&Shared, Permit) -> Result<T> + Send + 'static,
        tell: impl Tell<Borrowed<T>>,
    ) -> Result<Waiting> {
        let shared = Arc::clone(self.present()?);
        let strand = Strand::new(Arc::clone(&shared.crew.readers));
        let lend = move |thing: Result<T>| {
            tell(thing.map(|thing| Borrowed { thing: Arc::new(thing), strand, shared: OfThisProcess::new(shared) }))
        };
        self.with_reader(call, begin, lend)
    }

    fn with_reader<T: 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&Shared, Permit) -> Result<T> + Send + 'static,
        tell: impl Tell<T>,
    ) -> Result<Waiting> {
        let shared = Arc::clone(self.present()?);
        let cancel = Cancel::default();
        let (here, heard) = (Arc::clone(&shared), cancel.clone());
        let place = shared.crew.gate.enter(move |permit| {
            let run = |permit| Absent::working_for(&heard, || work(&here, permit));
            tell(permit.and_then(run).map_err(|error| here.told(error)));
        });
        Ok(Waiting(On::Reader(shared, place, call, cancel)))
    }

    /// Queue a job; see `Writer::submit_absent`. It is led after `wake`.
    pub fn submit_absent(&self, call: &Call, job: Job, tell: impl Tell<Vec<Ran>>) -> Result<Waiting> {
        let shared = Arc::clone(self.present()?);
        let here = Arc::clone(&shared);
        let told = move |answer: Result<Vec<Ran>>| tell(answer.map_err(|error| here.told(error)));
        let ticket = shared.writer.submit_absent(call, job, told).map_err(|error| shared.told(error))?;
        Ok(Waiting(On::Turn(shared, ticket)))
    }

    /// Queue for a transaction. It is led after `wake`.
    pub fn lease_absent(&self, call: &Call, tell: impl Tell<Leased>) -> Result<Waiting> {
        let shared = Arc::clone(self.present()?);
        let here = Arc::clone(&shared);
        let told = move |lease: Result<Lease>| {
            let leased = lease.map(|lease| Leased {
                lease: Arc::new(here.watched(lease)),
                shared: OfThisProcess::new(Arc::clone(&here)),
            });
            tell(leased.map_err(|error| here.told(error)));
        };
        let ticket = shared.writer.lease_absent(call, told).map_err(|error| shared.told(error))?;
        Ok(Waiting(On::Turn(shared, ticket)))
    }

    /// Have the jobs led that were queued since the last time.
    pub fn wake(&self) {
        if let Ok(shared) = self.present() {
            shared.writer.wake();
        }
    }

    /// Move the WAL into the file; see `Engine::checkpoint`.
    pub fn checkpoint_absent(&self, mode: CheckpointMode, tell: impl Tell<Checkpointed>) -> Result<Waiting> {
        self.errand(move |shared, call| shared.checkpoint(call, mode), tell)
    }

    /// Copy the database; see `Engine::backup`.
    pub fn backup_absent(&self, dest: PathBuf, tell: impl Tell<()>) -> Result<Waiting> {
        self.errand(move |shared, call| shared.backup(call, &dest), tell)
    }

    /// What SQLite finds wrong with the file; see `Engine::check`.
    pub fn check_absent(&self, tell: impl Tell<Vec<String>>) -> Result<Waiting> {
        self.errand(Shared::check, tell)
    }

    /// Rewrite the file without its holes; see `Engine::vacuum`.
    pub fn vacuum_absent(&self, tell: impl Tell<()>) -> Result<Waiting> {
        self.errand(Shared::vacuum, tell)
    }

    fn errand<T: 'static>(
        &self,
        errand: impl FnOnce(&Shared, &Call) -> Result<T> + Send + 'static,
        tell: impl Tell<T>,
    ) -> Result<Waiting> {
        let shared = self.present()?;
        let (work, waiting) = task(shared, move |shared| errand(shared, &absent_call(None)), tell);
        shared.crew.errands.push(work);
        Ok(waiting)
    }

    /// As `stats`, without waiting.
    pub fn stats_at_once(&self, pop: bool) -> Result<Vec<(String, Figure)>> {
        Ok(self.present()?.stats.read(pop))
    }
}

/// A task that runs work for an absent caller, and what the caller waits on.
fn task<T: 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    tell: impl Tell<T>,
) -> (Task, Waiting) {
    let (cancel, shared) = (Cancel::default(), Arc::clone(shared));
    let heard = cancel.clone();
    let task = move || {
        let done = Absent::working_for(&heard, || if heard.is_cancelled() { Err(cancelled()) } else { work(&shared) });
        tell(done.map_err(|error| shared.told(error)));
    };
    (Box::new(task), Waiting(On::Running(cancel)))
}

fn cancelled() -> Error {
    Error::new(Kind::Interrupted, "it was cancelled before it began")
}

/// A snapshot or a stream in an absent caller's hands. What is asked of it is done in order, on native threads.
pub struct Borrowed<T: Send + Sync + 'static> {
    thing: Arc<T>,
    strand: Arc<Strand>,
    shared: OfThisProcess<Arc<Shared>>,
}

impl<T: Send + Sync + 'static> Borrowed<T> {
    fn ask<R: 'static>(
        &self,
        work: impl FnOnce(&T) -> Result<R> + Send + 'static,
        tell: impl Tell<R>,
    ) -> Result<Waiting> {
        let thing = Arc::clone(&self.thing);
        let (task, waiting) = task(self.shared.get()?, move |_| work(&thing), tell);
        self.strand.push(task);
        Ok(waiting)
    }

    fn push(&self, work: impl FnOnce(&T) + Send + 'static, tell: impl Tell<()>) {
        if self.shared.is_inherited() {
            return tell(Ok(())); // its parent has it
        }
        let thing = Arc::clone(&self.thing);
        self.strand.push(Box::new(move || {
            work(&thing);
            tell(Ok(()));
        }));
    }
}

impl Borrowed<Snapshot> {
    /// Read in it.
    pub fn fetch(
        &self,
        call: Call,
        sql: Box<str>,
        params: Params,
        want: Want,
        tell: impl Tell<Rows>,
    ) -> Result<Waiting> {
        self.ask(move |snapshot| snapshot.fetch(&call.handed_on(), &sql, &params, want), tell)
    }

    /// Check the reader in. Safe to call twice.
    pub fn end(&self, tell: impl Tell<()>) {
        self.push(Snapshot::end, tell);
    }
}

impl Borrowed<Stream> {
    /// The next rows, fewer than `want.most` only at the end.
    pub fn next_rows(&self, want: Want, tell: impl Tell<Rows>) -> Result<Waiting> {
        self.ask(move |stream| stream.next_rows(&absent_call(None), want), tell)
    }

    /// Check the reader in. Safe to call twice.
    pub fn end(&self, tell: impl Tell<()>) {
        self.push(Stream::end, tell);
    }
}

/// An open transaction in an absent caller's hands. What is asked of it is done in order, on the writer's thread.
pub struct Leased {
    lease: Arc<Lease>,
    shared: OfThisProcess<Arc<Shared>>,
}

impl Leased {
    /// Do something in it.
    pub fn ask<R: 'static>(
        &self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Call, &Lease) -> Result<R> + Send + 'static,
        tell: impl Tell<R>,
    ) -> Result<Waiting> {
        let lease = Arc::clone(&self.lease);
        let (task, waiting) = task(self.shared.get()?, move |_| work(&absent_call(timeout), &lease), tell);
        self.shared.crew.writer.push(task);
        Ok(waiting)
    }

    /// End it, and undo what is not committed, whoever cancels.
    pub fn roll_back(&self, tell: impl Tell<()>) {
        if self.shared.is_inherited() {
            return tell(Ok(())); // its parent has it
        }
        let (lease, shared) = (Arc::clone(&self.lease), Arc::clone(&self.shared));
        let task = move || tell(lease.rollback().map_err(|error| shared.told(error)));
        self.shared.crew.writer.push(Box::new(task));
    }
}
