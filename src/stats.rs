//! Counters, gauges and histograms, their names and units. Must not know who counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, KINDS};

/// A number that only grows, until it is popped.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn read(&self, pop: bool) -> u64 {
        if pop { self.0.swap(0, Ordering::Relaxed) } else { self.0.load(Ordering::Relaxed) }
    }
}

/// A level that goes up and down, with its highest value.
#[derive(Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    /// Set the level.
    pub fn set(&self, level: u64) {
        self.now.store(level, Ordering::Relaxed);
        self.peak.fetch_max(level, Ordering::Relaxed);
    }

    /// One up.
    pub fn up(&self) {
        let level = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(level, Ordering::Relaxed);
    }

    /// One down.
    pub fn down(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    /// The level now.
    pub fn level(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn read_peak(&self, pop: bool) -> u64 {
        if pop { self.peak.swap(self.level(), Ordering::Relaxed) } else { self.peak.load(Ordering::Relaxed) }
    }
}

const SUB_BITS: u32 = 3; // 8 buckets for each power of two: a percentile is at most 12.5 % too high
const BUCKETS: usize = 64 << SUB_BITS;

/// How often each size came up, in buckets that widen with the size.
pub struct Histogram(Box<[AtomicU64; BUCKETS]>);

impl Default for Histogram {
    fn default() -> Self {
        Histogram(Box::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }
}

impl Histogram {
    /// Count a plain number.
    pub fn record(&self, n: u64) {
        self.0[bucket(n)].fetch_add(1, Ordering::Relaxed);
    }

    /// Count a duration, in nanoseconds.
    pub fn record_duration(&self, duration: Duration) {
        self.record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The upper ends of the buckets in which these percentiles lie; 0 where nothing was counted.
    fn percentiles<const N: usize>(&self, wanted: [f64; N], pop: bool) -> [u64; N] {
        let counts: Vec<u64> = self
            .0
            .iter()
            .map(|count| if pop { count.swap(0, Ordering::Relaxed) } else { count.load(Ordering::Relaxed) })
            .collect();
        let total: u64 = counts.iter().sum();
        wanted.map(|percent| {
            let rank = ((total as f64) * percent / 100.0).ceil() as u64;
            let mut seen = 0;
            counts
                .iter()
                .position(|count| {
                    seen += count;
                    seen >= rank.max(1)
                })
                .map_or(0, upper_end)
        })
    }
}

fn bucket(n: u64) -> usize {
    let width = 64 - n.leading_zeros();
    if width <= SUB_BITS {
        return n as usize; // small numbers have a bucket each
    }
    let shift = width - SUB_BITS - 1;
    (((shift as usize) + 1) << SUB_BITS) + ((n >> shift) as usize & ((1 << SUB_BITS) - 1))
}

fn upper_end(bucket: usize) -> u64 {
    let (row, column) = (bucket >> SUB_BITS, (bucket & ((1 << SUB_BITS) - 1)) as u64);
    match row {
        0 => column,
        row => ((((1 << SUB_BITS) + column + 1) as u128) << (row - 1)).min(u128::from(u64::MAX)) as u64 - 1,
    }
}

/// One figure of `stats()`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Figure {
    /// A count.
    Count(u64),
    /// A length of time in milliseconds.
    Milliseconds(f64),
}

macro_rules! stats {
    (
        counters { $($counter:ident: $counter_doc:literal,)* }
        facts { $($fact:ident: $fact_doc:literal,)* }
        gauges { $($gauge:ident: $gauge_doc:literal,)* }
        sizes { $($size:ident: $size_doc:literal,)* }
        times { $($time:ident: $time_doc:literal,)* }
    ) => {
        /// All that one engine counts. The names are the keys of `stats()`.
        #[derive(Default)]
        pub struct Stats {
            $(#[doc = $counter_doc] pub $counter: Counter,)*
            $(#[doc = $fact_doc] pub $fact: Gauge,)*
            $(#[doc = $gauge_doc] pub $gauge: Gauge,)*
            $(#[doc = $size_doc] pub $size: Histogram,)*
            $(#[doc = $time_doc] pub $time: Histogram,)*
            errors: [Counter; KINDS.len()],
        }

        /// Each key of `stats()` with what it means, for the documentation and its test.
        pub fn keys() -> Vec<(String, &'static str)> {
            let mut keys = vec![$((stringify!($counter).to_owned(), $counter_doc)),*];
            keys.extend([$((stringify!($fact).to_owned(), $fact_doc)),*]);
            $(
                keys.push((stringify!($gauge).to_owned(), $gauge_doc));
                keys.push((concat!(stringify!($gauge), "_peak").to_owned(), "its highest value"));
            )*
            $(for percent in ["p50", "p99"] {
                keys.push((format!("{}_{percent}", stringify!($size)), $size_doc));
            })*
            $(for percent in ["p50", "p99"] {
                keys.push((format!("{}_ms_{percent}", stringify!($time)), $time_doc));
            })*
            for kind in KINDS {
                keys.push((format!("errors_{}", kind.class_name()), "errors of this class that the engine gave a caller"));
            }
            keys
        }

        impl Stats {
            /// Every figure with its key; `pop` starts counters, peaks and percentiles anew.
            pub fn read(&self, pop: bool) -> Vec<(String, Figure)> {
                let mut figures =
                    vec![$((stringify!($counter).to_owned(), Figure::Count(self.$counter.read(pop)))),*];
                figures.extend([$((stringify!($fact).to_owned(), Figure::Count(self.$fact.level()))),*]);
                $(
                    figures.push((stringify!($gauge).to_owned(), Figure::Count(self.$gauge.level())));
                    figures.push((
                        concat!(stringify!($gauge), "_peak").to_owned(),
                        Figure::Count(self.$gauge.read_peak(pop)),
                    ));
                )*
                $(for (name, figure) in ["p50", "p99"].iter().zip(self.$size.percentiles([50.0, 99.0], pop)) {
                    figures.push((format!("{}_{name}", stringify!($size)), Figure::Count(figure)));
                })*
                $(for (name, nanos) in ["p50", "p99"].iter().zip(self.$time.percentiles([50.0, 99.0], pop)) {
                    let milliseconds = nanos as f64 / 1e6;
                    figures.push((format!("{}_ms_{name}", stringify!($time)), Figure::Milliseconds(milliseconds)));
                })*
                for (kind, counter) in KINDS.iter().zip(&self.errors) {
                    figures.push((format!("errors_{}", kind.class_name()), Figure::Count(counter.read(pop))));
                }
                figures
            }
        }
    };
}

stats! {
    counters {
        jobs: "jobs that were run and committed",
        jobs_failed: "jobs that got an error",
        jobs_withdrawn: "jobs that left the queue before their turn: a timeout, an interrupt or a cancellation",
        groups: "groups committed",
        group_replays: "groups run again without a job that had broken them",
        reads: "reads: fetches, and snapshots and streams begun",
        reads_on_loop: "reads that ran at once on an event loop's own thread",
        reads_restarted: "reads that outgrew their budget on an event loop's thread, and began anew on a native one",
        leases: "leases of the writer: transaction() and run()",
        leases_revoked: "leases and snapshots taken back after transaction_timeout",
        checkpoints: "checkpoints that brought the whole WAL into the file",
        checkpoints_incomplete: "checkpoints that a reader or another process kept from finishing",
        busy_waits: "waits for another process's lock",
        yields_to_wait: "times the GIL was given up because something had to be waited for",
        yields_over_budget: "times the GIL was given up because a statement took longer than its budget",
        searches: "searches by vec_nearest",
        searches_from_table: "searches that read every sketch from the table: sketch_memory was too small, or their snapshot too old",
        sketch_loads: "indexes of sketches loaded: one for each space that is searched, and again after it was changed throughout",
        embeddings_read: "embeddings that searches read to settle who is among the best",
        slow: "jobs, leases and reads past slow_threshold",
        log_dropped: "log messages lost because nobody called the pool to take them",
    }
    facts {
        ofd_locks: "1 where the file's locks belong to descriptors, 0 where the system has only those of a process",
        second_library: "1 once another SQLite library of this process was seen to have the file open",
    }
    gauges {
        jobs_held_back: "jobs of event loops that wait for room in the queue (max_waiting_bytes)",
        jobs_waiting: "jobs and leases in the queue",
        bytes_waiting: "bytes of parameters in the queue",
        readers: "readers open",
        readers_out: "readers checked out",
        reads_waiting: "reads of event loops that wait for a reader or a native thread",
        wal_frames: "frames in the WAL after the last commit",
        sketch_bytes: "bytes of sketches in memory (sketch_memory)",
    }
    sizes {
        jobs_per_group: "jobs committed together",
    }
    times {
        job_wait: "a job's wait until a group took it",
        commit: "COMMIT alone",
        group: "a group from BEGIN to COMMIT returned",
        checkout_wait: "a read's wait for a reader",
        busy_wait: "a wait for another process's lock",
        lease: "how long a lease was held",
        checkpoint: "a checkpoint",
    }
}

impl Stats {
    /// Count an error that goes to a caller.
    pub fn error(&self, error: &Error) {
        if let Some(index) = KINDS.iter().position(|kind| *kind == error.kind) {
            self.errors[index].one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_and_hold_their_numbers() {
        let mut last = 0;
        for n in (0..2_000).chain((11..63).map(|bit| (1 << bit) + 7)) {
            let bucket = bucket(n);
            assert!(bucket >= last, "{n}");
            assert!(upper_end(bucket) >= n, "{n} in bucket {bucket} up to {}", upper_end(bucket));
            assert!(upper_end(bucket) as f64 <= n as f64 * 1.126 + 1.0, "{n}");
            last = bucket;
        }
        assert!(super::bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_come_from_the_counts_and_a_pop_empties_them() {
        let histogram = Histogram::default();
        assert_eq!(histogram.percentiles([50.0], false), [0]);
        for n in 1..=100 {
            histogram.record(n);
        }
        let [p50, p99] = histogram.percentiles([50.0, 99.0], true);
        assert!((50..=56).contains(&p50) && (99..=111).contains(&p99), "{p50} {p99}");
        assert_eq!(histogram.percentiles([99.0], false), [0]);
    }

    #[test]
    fn every_figure_has_a_documented_key() {
        let read: Vec<String> = Stats::default().read(false).into_iter().map(|(key, _)| key).collect();
        let documented: Vec<String> = keys().into_iter().map(|(key, _)| key).collect();
        assert_eq!(read, documented);
    }
}
