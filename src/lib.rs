//! walpool: a pooled, WAL-mode SQLite engine. Many readers, one writer, one queue, one fsync for everybody who is waiting.
//!
//! The engine stands without Python (`cargo test`); the feature `python` adds the bindings. `DESIGN.md` beside this file is
//! the map.

mod backup;
#[cfg(feature = "python")]
mod bindings;
pub mod caller;
mod checkpoint;
pub mod config;
pub mod connection;
pub mod engine;
pub mod error;
mod files;
mod functions;
pub mod group_commit;
mod grouping;
mod key_set;
mod locking;
pub mod log;
pub mod reader;
mod revocable;
mod sketches;
pub mod stats;
mod sync;
pub mod value;
mod vector;
mod workers;
pub mod writer;
