//! The engine with no Python: real SQLite, real files, real threads. A file for each subject; the invariants of
//! `src/DESIGN.md` are tests here, by name.

// Helpers of a test may fail as loudly as the test itself; the lint spares functions marked #[test] alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[path = "engine/absent.rs"]
mod absent;
#[path = "engine/another_process.rs"]
mod another_process;
#[path = "engine/build.rs"]
mod build;
#[path = "engine/close.rs"]
mod close;
#[path = "engine/files.rs"]
mod files;
#[path = "engine/interrupts.rs"]
mod interrupts;
#[path = "engine/jobs.rs"]
mod jobs;
#[path = "engine/leases.rs"]
mod leases;
#[path = "engine/queue.rs"]
mod queue;
#[path = "engine/reads.rs"]
mod reads;
#[path = "engine/retired.rs"]
mod retired;
#[path = "engine/revocation.rs"]
mod revocation;
#[path = "engine/stress.rs"]
mod stress;
#[path = "engine/support.rs"]
mod support;
#[path = "engine/wal.rs"]
mod wal;
