//! A bounded set of threads before one line of tasks. Must not know what the tasks do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::spawn;
use crate::error::Result;
use crate::sync::{Condvar, Mutex};

/// Something to be done on a native thread.
pub type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Line {
    tasks: VecDeque<Task>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    is_closed: bool,
}

/// The threads, and their line. Threads start when they are needed, and stay.
pub struct Lane {
    name: &'static str,
    most: usize,
    line: Mutex<Line>, // never held while a task runs
    is_wanted: Condvar,
}

impl Lane {
    /// A lane of at most so many threads, none of which has started.
    pub fn new(name: &'static str, most: usize) -> Arc<Self> {
        Arc::new(Lane { name, most, line: Mutex::default(), is_wanted: Condvar::new() })
    }

    /// See to it that there is a thread, so that every later task is done.
    ///
    /// # Errors
    /// `Operational` where the system gives none.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let mut line = self.line.lock();
        if line.threads.is_empty() { self.add_thread(&mut line) } else { Ok(()) }
    }

    fn add_thread(self: &Arc<Self>, line: &mut Line) -> Result<()> {
        let lane = Arc::clone(self);
        line.threads.push(spawn(self.name, move || lane.work())?);
        Ok(())
    }

    /// Have a task done. Once the lane is closed it is done at once, here: its engine is closed too, so that it finds nothing
    /// to wait for and says why.
    pub fn push(self: &Arc<Self>, task: Task) {
        let mut line = self.line.lock();
        if line.is_closed {
            drop(line);
            return task();
        }
        line.tasks.push_back(task);
        if line.tasks.len() > line.idle && line.threads.len() < self.most {
            // One more would be faster; `start` has made sure that there is one at all.
            let _ = self.add_thread(&mut line);
        }
        drop(line);
        self.is_wanted.notify_one();
    }

    fn work(&self) {
        let mut line = self.line.lock();
        loop {
            if let Some(task) = line.tasks.pop_front() {
                drop(line);
                task();
                line = self.line.lock();
            } else if line.is_closed {
                return;
            } else {
                line.idle += 1;
                line = self.is_wanted.wait(line);
                line.idle -= 1;
            }
        }
    }

    /// Do what is in the line, end the threads and wait for them. Safe to call twice; not on one of the threads.
    pub fn close(&self) {
        let threads = {
            let mut line = self.line.lock();
            line.is_closed = true;
            std::mem::take(&mut line.threads)
        };
        self.is_wanted.notify_all();
        for thread in threads {
            // A panic in it has been told on stderr; there is nothing left to do about it here.
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Knots {
    tasks: VecDeque<Task>,
    is_running: bool,
}

/// Tasks that run one after the other, on whichever thread of a lane is free.
pub struct Strand {
    lane: Arc<Lane>,
    knots: Mutex<Knots>,
}

impl Strand {
    /// A strand on a lane.
    pub fn new(lane: Arc<Lane>) -> Arc<Self> {
        Arc::new(Strand { lane, knots: Mutex::default() })
    }

    /// Have a task done after those before it.
    pub fn push(self: &Arc<Self>, task: Task) {
        let mut knots = self.knots.lock();
        knots.tasks.push_back(task);
        let is_running = std::mem::replace(&mut knots.is_running, true);
        drop(knots);
        if !is_running {
            self.go_on();
        }
    }

    fn go_on(self: &Arc<Self>) {
        let strand = Arc::clone(self);
        self.lane.push(Box::new(move || strand.run_one()));
    }

    fn run_one(self: &Arc<Self>) {
        let task = self.knots.lock().tasks.pop_front();
        if let Some(task) = task {
            task();
        }
        let mut knots = self.knots.lock();
        knots.is_running = !knots.tasks.is_empty();
        if knots.is_running {
            drop(knots);
            self.go_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_lane_has_no_more_threads_than_it_may_and_does_all_before_it_closes() {
        let lane = Lane::new("test", 2);
        lane.start().unwrap();
        let (told, heard) = mpsc::channel();
        for n in 0..100 {
            let told = told.clone();
            lane.push(Box::new(move || told.send(n).unwrap()));
        }
        let threads = lane.line.lock().threads.len();
        lane.close();
        lane.close();
        assert!((1..=2).contains(&threads));
        let mut done: Vec<i32> = heard.try_iter().collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_strand_runs_one_task_after_the_other() {
        let lane = Lane::new("test", 4);
        lane.start().unwrap();
        let strand = Strand::new(Arc::clone(&lane));
        let order = Arc::new(Mutex::new(Vec::new()));
        let (told, heard) = mpsc::channel();
        for n in 0..200 {
            let (order, told) = (Arc::clone(&order), told.clone());
            strand.push(Box::new(move || {
                order.lock().push(n);
                told.send(()).unwrap();
            }));
        }
        assert_eq!(heard.iter().take(200).count(), 200);
        lane.close();
        assert_eq!(*order.lock(), (0..200).collect::<Vec<_>>());
        let (told, heard) = mpsc::channel();
        strand.push(Box::new(move || told.send(()).unwrap()));
        assert_eq!(heard.try_recv(), Ok(())); // at once, since the lane is closed
    }
}
