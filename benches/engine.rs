//! What the engine costs alone, with no Python: reads, writes alone and in groups, batches, snapshots, vectors.
//!
//! `cargo bench`, or `cargo bench -- --quick`. Each figure is for one operation; `full` and `normal` are `synchronous`.

#![allow(clippy::unwrap_used)] // a benchmark that fails may fail loudly

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use walpool::caller::Call;
use walpool::config::{Config, Synchronous};
use walpool::connection::Want;
use walpool::engine::Engine;
use walpool::group_commit::{Job, Work};
use walpool::value::{Params, Value};

const ROWS: i64 = 10_000;
const ROW_BYTES: usize = 1_000;
const THREADS: u64 = 16;
const DIMS: usize = 1_536;
const VECTORS: i64 = 1_000;

const UPSERT: &str = "INSERT INTO item VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET data = ?2";
const POINT: &str = "SELECT data FROM item WHERE id = ?";
const RANGE: &str = "SELECT id, data FROM item WHERE id >= ? ORDER BY id LIMIT 100";
const NEAREST: &str = "SELECT id FROM vector ORDER BY vec_l2sq(embedding, ?) LIMIT 10";

/// A file with `ROWS` rows of 1 KB; dropped in this order: the engine closes before its folder goes.
struct Database {
    engine: Engine,
    _folder: TempDir,
    next: AtomicI64,
}

impl Database {
    fn new(synchronous: Synchronous) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { synchronous, ..Config::default() };
        let engine = Engine::open(&Call::internal(), &folder.path().join("bench.db"), &config, &[]).unwrap();
        let db = Database { engine, _folder: folder, next: AtomicI64::new(0) };
        db.submit(Work::Execute("CREATE TABLE item (id INTEGER PRIMARY KEY, data BLOB)".into(), Params::NONE));
        let rows = (0..ROWS).map(|_| db.row()).collect();
        db.submit(Work::Many(UPSERT.into(), rows));
        db
    }

    fn submit(&self, work: Work) {
        self.engine.submit(&Call::internal(), Job::new(work)).unwrap();
    }

    /// The next row, and always with other bytes than before: an upsert that changes nothing writes no page.
    fn row(&self) -> Params {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let mut data = vec![7; ROW_BYTES];
        data[..8].copy_from_slice(&n.to_le_bytes());
        Params::Positional(vec![Value::Integer(n % ROWS), Value::Blob(data.into())])
    }

    fn upsert(&self) -> Work {
        Work::Execute(UPSERT.into(), self.row())
    }

    fn batch(&self, size: usize) -> Work {
        Work::Batch((0..size).map(|_| (UPSERT.into(), self.row())).collect())
    }

    /// A key that is there, another one each time.
    fn key(&self) -> Params {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Params::Positional(vec![Value::Integer(n * 7_919 % (ROWS - 100))])
    }

    /// The time that `upserts` take when they come from `THREADS` threads at once.
    fn time_of_upserts_in_groups(&self, upserts: u64) -> Duration {
        let each = upserts.div_ceil(THREADS);
        let start = Barrier::new(THREADS as usize + 1);
        let took = thread::scope(|scope| {
            let write = || {
                start.wait();
                (0..each).for_each(|_| self.submit(self.upsert()));
            };
            let writers: Vec<_> = (0..THREADS).map(|_| scope.spawn(write)).collect();
            start.wait();
            let began = Instant::now();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            began.elapsed()
        });
        took.mul_f64(upserts as f64 / (each * THREADS) as f64)
    }
}

fn reads(criterion: &mut Criterion) {
    let db = Database::new(Synchronous::Normal);
    let want = Want { columns: false, most: usize::MAX };
    let mut group = criterion.benchmark_group("read");
    group.bench_function("point", |bencher| {
        bencher.iter(|| black_box(db.engine.fetch(&Call::internal(), POINT, &db.key(), want).unwrap()));
    });
    group.bench_function("range of 100", |bencher| {
        bencher.iter(|| black_box(db.engine.fetch(&Call::internal(), RANGE, &db.key(), want).unwrap()));
    });
    group.bench_function("snapshot of 3 points", |bencher| {
        bencher.iter(|| {
            let snapshot = db.engine.snapshot(&Call::internal()).unwrap();
            for _ in 0..3 {
                black_box(snapshot.fetch(&Call::internal(), POINT, &db.key(), want).unwrap());
            }
        });
    });
    group.finish();
}

fn writes(criterion: &mut Criterion) {
    for synchronous in [Synchronous::Full, Synchronous::Normal] {
        let db = Database::new(synchronous);
        let mut group = criterion.benchmark_group(format!("write, {}", synchronous.name()));
        group.bench_function("upsert of 1 KB, alone", |bencher| {
            bencher.iter_batched(|| db.upsert(), |work| db.submit(work), BatchSize::SmallInput);
        });
        group.bench_function("upsert of 1 KB, 16 threads", |bencher| {
            bencher.iter_custom(|upserts| db.time_of_upserts_in_groups(upserts));
        });
        group.throughput(Throughput::Elements(10));
        group.bench_function("batch of 10 upserts of 1 KB", |bencher| {
            bencher.iter_batched(|| db.batch(10), |work| db.submit(work), BatchSize::SmallInput);
        });
        group.finish();
    }
}

/// A vector of small numbers that differ from vector to vector, in its blob form.
fn embedding(n: i64) -> Value {
    let number = |dim: usize| ((n * 31 + dim as i64 * 17) % 101) as f32 / 101.0;
    Value::Blob((0..DIMS).flat_map(|dim| number(dim).to_le_bytes()).collect())
}

fn vectors(criterion: &mut Criterion) {
    let db = Database::new(Synchronous::Normal);
    db.submit(Work::Execute("CREATE TABLE vector (id INTEGER PRIMARY KEY, embedding BLOB)".into(), Params::NONE));
    let row = |n| Params::Positional(vec![Value::Integer(n), embedding(n)]);
    db.submit(Work::Many("INSERT INTO vector VALUES (?, ?)".into(), (0..VECTORS).map(row).collect()));
    let wanted = Params::Positional(vec![embedding(VECTORS)]);
    let mut group = criterion.benchmark_group("vectors");
    group.throughput(Throughput::Elements(VECTORS as u64));
    group.bench_function("vec_l2sq over 1000 x 1536", |bencher| {
        bencher.iter(|| black_box(db.engine.fetch(&Call::internal(), NEAREST, &wanted, Want::ALL).unwrap()));
    });
    group.finish();
    sketches(criterion, &db);
}

const SKETCH_TABLES: &str = "
    CREATE TABLE memory_spaces (space INTEGER PRIMARY KEY, dims INTEGER, centroid BLOB, epoch INTEGER, trimmed INTEGER);
    CREATE TABLE memory_vectors (key INTEGER PRIMARY KEY, embedding BLOB);
    CREATE TABLE memory_sketches (change INTEGER PRIMARY KEY AUTOINCREMENT, space INTEGER NOT NULL, key INTEGER UNIQUE,
        scope INTEGER, gone INTEGER, sketch BLOB);
    CREATE INDEX memory_sketches_space ON memory_sketches (space);
    INSERT INTO memory_spaces VALUES (1, 1536, NULL, 0, 0);
    INSERT INTO memory_vectors SELECT id + 1, embedding FROM vector;
    INSERT INTO memory_sketches SELECT id + 1, 1, id + 1, 1, 0, vec_sketch(embedding, NULL) FROM vector;";
const SKETCH: &str = "SELECT count(vec_sketch(embedding, NULL)) FROM vector";
const SEARCH: &str = "SELECT vec_nearest('memory', 1, ?, 'cosine', 10, NULL, NULL, NULL, NULL, NULL)";

fn sketches(criterion: &mut Criterion, db: &Database) {
    db.submit(Work::Script(SKETCH_TABLES.into()));
    let wanted = Params::Positional(vec![embedding(VECTORS)]);
    let mut group = criterion.benchmark_group("sketches");
    group.throughput(Throughput::Elements(VECTORS as u64));
    group.bench_function("vec_sketch of 1000 x 1536", |bencher| {
        bencher.iter(|| black_box(db.engine.fetch(&Call::internal(), SKETCH, &Params::NONE, Want::ALL).unwrap()));
    });
    group.bench_function("vec_nearest over 1000 x 1536", |bencher| {
        bencher.iter(|| black_box(db.engine.fetch(&Call::internal(), SEARCH, &wanted, Want::ALL).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, reads, writes, vectors);
criterion_main!(benches);
