//! Messages for the program's log, kept until somebody takes them. Must not know where they go.
//!
//! The engine's own threads must not enter Python, so a message waits here for the next call into the engine.
//! SQL texts stand in messages; parameter values never do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::stats::Stats;
use crate::sync::Mutex;

const MOST: usize = 256; // messages kept; more than one screen of any log, and a bound on memory

/// How serious a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Somebody should look.
    Warning,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// How serious it is.
    pub level: Level,
    /// For a person.
    pub text: String,
}

/// The messages of one engine.
pub struct Log {
    waiting: Mutex<VecDeque<Message>>,
    has_some: AtomicBool, // looked at on every call: must cost nothing
    stats: Arc<Stats>,
}

impl Log {
    /// An empty log.
    pub fn new(stats: Arc<Stats>) -> Self {
        Log { waiting: Mutex::default(), has_some: AtomicBool::new(false), stats }
    }

    /// Add a message; the oldest goes where there are too many.
    pub fn add(&self, level: Level, text: String) {
        let mut waiting = self.waiting.lock();
        if waiting.len() == MOST {
            waiting.pop_front();
            self.stats.log_dropped.one();
        }
        waiting.push_back(Message { level, text });
        self.has_some.store(true, Ordering::Release);
    }

    /// Take all messages, oldest first.
    pub fn take(&self) -> Vec<Message> {
        if !self.has_some.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut waiting = self.waiting.lock();
        self.has_some.store(false, Ordering::Release);
        waiting.drain(..).collect()
    }
}

/// A statement's text, cut to a length that a log line can bear.
pub fn excerpt(sql: &str) -> String {
    const MOST_CHARS: usize = 200;
    let flat: String = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", &flat[..end]),
        None => flat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_message_goes_when_nobody_takes_them() {
        let log = Log::new(Arc::default());
        for number in 0..=MOST {
            log.add(Level::Info, number.to_string());
        }
        let taken = log.take();
        assert_eq!((taken.len(), taken[0].text.as_str()), (MOST, "1"));
        assert!(log.take().is_empty());
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt("SELECT\n  1"), "SELECT 1");
        assert_eq!(excerpt(&"ä".repeat(300)).chars().count(), 203);
    }
}
