//! The native threads of one engine that work for callers who must not block, and the gate before its readers.
//!
//! - `writer`: one thread, the writer's hand. Scans cannot occupy it.
//! - `readers`: as many threads as there are readers. Each task there has a permit, so none waits for a thread.
//! - `errands`: backups, checks, vacuums and checkpoints, which take as long as the file is large.

use std::collections::VecDeque;
use std::sync::Arc;

use super::lane::Lane;
use crate::error::{Error, Kind, Result};
use crate::stats::Stats;
use crate::sync::Mutex;

const ERRANDS: usize = 2; // one may wait for its turn at the writer for as long as a transaction lasts

/// The threads. None starts before `start`.
pub struct Crew {
    /// Leads groups, begins transactions and runs their statements.
    pub writer: Arc<Lane>,
    /// Runs reads.
    pub readers: Arc<Lane>,
    /// Runs what takes long.
    pub errands: Arc<Lane>,
    /// Where reads wait for a reader.
    pub gate: Arc<Gate>,
}

impl Crew {
    /// For an engine with so many readers.
    pub fn new(readers: u32, stats: Arc<Stats>) -> Self {
        let lane = Lane::new("walpool-reader", readers as usize);
        Crew {
            writer: Lane::new("walpool-writer", 1),
            errands: Lane::new("walpool-errands", ERRANDS),
            gate: Gate::new(Arc::clone(&lane), readers as usize, stats),
            readers: lane,
        }
    }

    /// Start a thread of each kind, so that whatever is accepted later is also done.
    ///
    /// # Errors
    /// `Operational` where the system gives no thread.
    pub fn start(&self) -> Result<()> {
        self.writer.start()?;
        self.readers.start()?;
        self.errands.start()
    }

    /// Refuse reads that wait, and let the running ones end. Before the readers are closed.
    pub fn close_gate(&self) {
        self.gate.close();
    }

    /// End the threads when all is done. After the writer was closed: it needs its hand until then.
    pub fn close(&self) {
        for lane in [&self.errands, &self.readers, &self.writer] {
            lane.close();
        }
    }
}

/// What is done with a permit, or with the reason why there is none.
type Work = Box<dyn FnOnce(Result<Permit>) + Send>;

struct Waiting {
    free: usize,
    line: VecDeque<(u64, Work)>, // by rising place
    next_place: u64,
    is_closed: bool,
}

/// As many permits as there are readers. Who finds none waits here, in line, and not on a thread: those who hold a snapshot
/// can always go on with it, and so give it back.
pub struct Gate {
    lane: Arc<Lane>,
    waiting: Mutex<Waiting>, // never held while work runs
    stats: Arc<Stats>,
}

impl Gate {
    fn new(lane: Arc<Lane>, permits: usize, stats: Arc<Stats>) -> Arc<Self> {
        let waiting = Waiting { free: permits, line: VecDeque::new(), next_place: 0, is_closed: false };
        Arc::new(Gate { lane, waiting: Mutex::new(waiting), stats })
    }

    /// Do work on a native thread as soon as there is a permit for it; returns its place in the line.
    pub fn enter(self: &Arc<Self>, work: impl FnOnce(Result<Permit>) + Send + 'static) -> u64 {
        let mut waiting = self.waiting.lock();
        let place = waiting.next_place;
        waiting.next_place += 1;
        if waiting.is_closed {
            drop(waiting);
            work(Err(closed()));
        } else if waiting.free > 0 {
            waiting.free -= 1;
            drop(waiting);
            self.start(Box::new(work));
        } else {
            waiting.line.push_back((place, Box::new(work)));
            self.stats.reads_waiting.set(waiting.line.len() as u64);
        }
        place
    }

    /// Leave the line; None if it is no longer in it.
    pub fn leave(&self, place: u64) -> Option<Box<dyn FnOnce(Result<Permit>) + Send>> {
        let mut waiting = self.waiting.lock();
        let index = waiting.line.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        let (_, work) = waiting.line.remove(index)?;
        self.stats.reads_waiting.set(waiting.line.len() as u64);
        Some(work)
    }

    fn start(self: &Arc<Self>, work: Work) {
        let permit = Permit(Arc::clone(self));
        self.lane.push(Box::new(move || work(Ok(permit))));
    }

    fn give_back(self: &Arc<Self>) {
        let mut waiting = self.waiting.lock();
        match waiting.line.pop_front() {
            Some((_, work)) => {
                self.stats.reads_waiting.set(waiting.line.len() as u64);
                drop(waiting);
                self.start(work);
            }
            None => waiting.free += 1,
        }
    }

    fn close(&self) {
        let line = {
            let mut waiting = self.waiting.lock();
            waiting.is_closed = true;
            self.stats.reads_waiting.set(0);
            std::mem::take(&mut waiting.line)
        };
        line.into_iter().for_each(|(_, work)| work(Err(closed())));
    }
}

/// The right to use one reader; dropping it lets the next in.
pub struct Permit(Arc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the pool is closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn whoever_holds_a_permit_keeps_the_next_waiting_in_line() {
        let crew = Crew::new(1, Arc::default());
        crew.start().unwrap();
        let (told, heard) = mpsc::channel();
        let enter = |name: &'static str| {
            let told = told.clone();
            crew.gate.enter(move |permit| told.send((name, permit)).unwrap())
        };
        enter("a");
        let (name, held) = heard.recv().unwrap();
        assert_eq!(name, "a");
        let b = enter("b");
        enter("c");
        assert!(crew.gate.leave(b).is_some() && crew.gate.leave(b).is_none());
        assert!(heard.try_recv().is_err());
        drop(held);
        let (name, held) = heard.recv().unwrap();
        assert_eq!(name, "c");
        enter("d");
        crew.close_gate();
        let (name, refused) = heard.recv().unwrap();
        assert!(name == "d" && refused.is_err_and(|error| error.kind == Kind::Closed));
        drop(held);
        crew.close();
    }
}
