//! Named threads that work for callers who must not block. Must not know asyncio.
//!
//! One for each engine, the keeper: it takes back what was held for too long, and does a chore (checkpoints) when rung.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Kind, Result};
use crate::revocable::Tenure;

/// What the keeper does when it is rung: returns when to do it again, if it is not done with.
pub type Chore = Box<dyn Fn() -> Option<Duration> + Send>;

#[derive(Default)]
struct Agenda {
    tenures: Vec<(Instant, Weak<dyn Tenure>)>,
    chore_at: Option<Instant>,
    is_closing: bool,
}

/// The part of the keeper that others may ring.
#[derive(Default)]
pub struct Bell {
    agenda: Mutex<Agenda>,
    rung: Condvar,
}

impl Bell {
    /// Ask for the chore, as soon as the keeper is free.
    pub fn ring(&self) {
        self.agenda.lock().chore_at.get_or_insert_with(Instant::now);
        self.rung.notify_one();
    }

    /// Revoke this when its deadline passes.
    pub fn watch(&self, tenure: &Arc<dyn Tenure>) {
        let mut agenda = self.agenda.lock();
        agenda.tenures.retain(|(_, tenure)| tenure.strong_count() > 0);
        let deadline = tenure.deadline();
        let is_first = agenda.tenures.iter().all(|(other, _)| *other > deadline);
        agenda.tenures.push((deadline, Arc::downgrade(tenure)));
        drop(agenda);
        if is_first {
            self.rung.notify_one(); // it sleeps until a later one
        }
    }
}

/// The keeper's thread.
pub struct Keeper {
    bell: Arc<Bell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Start the thread.
    pub fn start(bell: Arc<Bell>, chore: Chore) -> Result<Self> {
        let inside = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name("walpool-keeper".into())
            .spawn(move || keep(&inside, &chore))
            .map_err(|error| Error::new(Kind::Operational, format!("no thread could be started: {error}")))?;
        Ok(Keeper { bell, thread: Mutex::new(Some(thread)) })
    }

    /// End the thread and wait for it. Safe to call twice.
    pub fn close(&self) {
        self.bell.agenda.lock().is_closing = true;
        self.bell.rung.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // A panic in the keeper has been told on stderr; there is nothing left to do about it here.
            let _ = thread.join();
        }
    }
}

fn keep(bell: &Bell, chore: &Chore) {
    while let Some(duties) = next_duties(bell) {
        for tenure in duties.overdue {
            tenure.revoke();
        }
        if duties.has_chore
            && let Some(delay) = chore()
        {
            bell.agenda.lock().chore_at.get_or_insert(Instant::now() + delay);
        }
    }
}

struct Duties {
    overdue: Vec<Arc<dyn Tenure>>,
    has_chore: bool,
}

/// Sleep until there is something to do; None when the engine closes.
fn next_duties(bell: &Bell) -> Option<Duties> {
    let mut agenda = bell.agenda.lock();
    loop {
        if agenda.is_closing {
            return None;
        }
        let now = Instant::now();
        let has_chore = agenda.chore_at.take_if(|at| *at <= now).is_some();
        let overdue = take_overdue(&mut agenda.tenures, now);
        if has_chore || !overdue.is_empty() {
            return Some(Duties { overdue, has_chore });
        }
        let next = agenda.tenures.iter().map(|(deadline, _)| *deadline).chain(agenda.chore_at).min();
        match next {
            Some(next) => {
                bell.rung.wait_until(&mut agenda, next);
            }
            None => bell.rung.wait(&mut agenda),
        }
    }
}

fn take_overdue(tenures: &mut Vec<(Instant, Weak<dyn Tenure>)>, now: Instant) -> Vec<Arc<dyn Tenure>> {
    let mut overdue = Vec::new();
    tenures.retain(|(deadline, tenure)| {
        if *deadline <= now {
            overdue.extend(tenure.upgrade());
        }
        *deadline > now && tenure.strong_count() > 0
    });
    overdue
}
