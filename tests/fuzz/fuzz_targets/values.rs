//! Whatever fits a parameter comes back as it was: by position and by name, by every verb that reads.
#![no_main]

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use walpool::caller::Call;
use walpool::config::{Config, Synchronous};
use walpool::connection::Want;
use walpool::engine::{Engine, only};
use walpool::group_commit::{Job, Work};
use walpool::value::{Out, Params, Rows, Value};

#[derive(Arbitrary, Debug)]
enum Given {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
    /// Bytes that are mostly text, with NULs and halves of characters in them.
    Long(u8, u16),
}

impl Given {
    fn value(&self) -> Value {
        match self {
            Given::Null => Value::Null,
            Given::Integer(integer) => Value::Integer(*integer),
            Given::Real(real) => Value::Real(*real),
            Given::Text(text) => Value::Text(text.as_str().into()),
            Given::Blob(blob) => Value::Blob(blob.as_slice().into()),
            Given::Long(byte, length) => Value::Blob(vec![*byte; usize::from(*length)].into()),
        }
    }
}

fn is_same(given: &Value, out: Out<'_>) -> bool {
    match (given, out) {
        (Value::Null, Out::Null) => true,
        (Value::Integer(a), Out::Integer(b)) => *a == b,
        (Value::Real(a), Out::Real(b)) => *a == b,
        (Value::Real(a), Out::Null) => a.is_nan(), // SQLite has none; the bindings refuse it before
        (Value::Text(a), Out::Text(b)) => a.as_bytes() == b,
        (Value::Blob(a), Out::Blob(b)) => **a == *b,
        _ => false,
    }
}

fn check(values: &[Value], rows: &Rows) {
    assert_eq!(rows.len(), values.len());
    for (row, value) in values.iter().enumerate() {
        assert!(is_same(value, rows.value(row, 1)), "{value:?} came back as {:?}", rows.value(row, 1));
    }
}

/// One engine for the whole run: a file for each input would cost a hundred times what the input does.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let config = Config { readers: 2, synchronous: Synchronous::Normal, ..Config::default() };
        let engine = Engine::open(&Call::internal(), &folder.join("values.db"), &config, &[]).unwrap();
        let table = Work::Script("CREATE TABLE t (id INTEGER PRIMARY KEY, v)".into());
        engine.submit(&Call::internal(), Job::new(table)).unwrap();
        engine
    })
}

fn submit(work: Work) -> Rows {
    engine().submit(&Call::internal(), Job::new(work)).and_then(only).unwrap().rows
}

fuzz_target!(|given: Vec<Given>| {
    let values: Vec<Value> = given.iter().map(Given::value).collect();
    let (engine, call) = (engine(), Call::internal());
    submit(Work::Execute("DELETE FROM t".into(), Params::NONE));
    let rows = values.iter().map(|value| Params::Positional(vec![value.clone()])).collect();
    submit(Work::Many("INSERT INTO t (v) VALUES (?)".into(), rows));
    let all = "SELECT id, v FROM t ORDER BY id";
    check(&values, &engine.fetch(&call, all, &Params::NONE, Want::ALL).unwrap());
    let stream = engine.stream(&call, all, &Params::NONE).unwrap();
    let whole = Want { columns: false, most: values.len() + 1 };
    check(&values, &stream.next_rows(&call, whole).unwrap());
    stream.end();
    for value in &values {
        let named = Params::Named(vec![("v".into(), value.clone()), ("unused".into(), Value::Null)]);
        let echo = "SELECT 1, $v UNION ALL SELECT 2, @v UNION ALL SELECT 3, v FROM (SELECT :v AS v)";
        let rows = engine.fetch(&call, echo, &named, Want::ALL);
        // One name with three signs is three parameters.
        check(&[value.clone(), value.clone(), value.clone()], &rows.unwrap());
        let put = "INSERT INTO t (v) VALUES (:v) RETURNING 1, v";
        check(std::slice::from_ref(value), &submit(Work::Execute(put.into(), named)));
    }
});
