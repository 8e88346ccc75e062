//! Python objects to SQL values and back. Nothing is converted in silence: what SQLite cannot keep as it is, is refused.

use std::time::Duration;

use pyo3::Borrowed;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyIterator, PyList, PyMapping, PyMemoryView, PySequence,
    PyString, PyTuple,
};

use super::errors::wrong;
use super::upcall;
use crate::error::Kind;
use crate::value::{Out, Params, Rows, Value};

/// Where a value stands, for the error that names it.
#[derive(Clone, Copy)]
enum At<'a> {
    Position(usize),
    Name(&'a str),
    /// A name that the SQL does not have: it may be anything, and a secret too.
    UnknownName,
}

impl std::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            At::Position(index) => write!(f, "parameter {}", index + 1),
            At::Name(name) => write!(f, "parameter :{name}"),
            At::UnknownName => f.write_str("a parameter that the statement does not name"),
        }
    }
}

/// The parameters of a statement: a sequence, or a mapping of names.
pub fn params(given: &Bound<'_, PyAny>, sql: &str) -> PyResult<Params> {
    if let Ok(tuple) = given.cast::<PyTuple>() {
        return positional(tuple.iter(), tuple.len());
    }
    if let Ok(list) = given.cast::<PyList>() {
        return positional(list.iter(), list.len());
    }
    if let Ok(dict) = given.cast::<PyDict>() {
        return named(dict.iter().map(Ok), sql);
    }
    if is_text_or_bytes(given) {
        return Err(not_params(given));
    }
    if let Ok(mapping) = given.cast::<PyMapping>() {
        let items = mapping.items()?;
        return named(items.iter().map(|pair| pair.extract()), sql);
    }
    if let Ok(sequence) = given.cast::<PySequence>() {
        let list = sequence.to_list()?;
        return positional(list.iter(), list.len());
    }
    Err(not_params(given))
}

fn is_text_or_bytes(given: &Bound<'_, PyAny>) -> bool {
    given.is_instance_of::<PyString>() || given.is_instance_of::<PyBytes>() || given.is_instance_of::<PyByteArray>()
}

fn not_params(given: &Bound<'_, PyAny>) -> PyErr {
    let type_name = type_name(given);
    let text =
        format!("parameters must be a sequence or a mapping, not {type_name}; a single one is given as (value,)");
    wrong(given.py(), Kind::Programming, text)
}

fn positional<'py>(items: impl Iterator<Item = Bound<'py, PyAny>>, count: usize) -> PyResult<Params> {
    let mut values = Vec::with_capacity(count);
    for (index, item) in items.enumerate() {
        values.push(value(&item, At::Position(index))?);
    }
    Ok(Params::Positional(values))
}

fn named<'py>(
    pairs: impl Iterator<Item = PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)>>,
    sql: &str,
) -> PyResult<Params> {
    let mut values = Vec::new();
    for pair in pairs {
        let (key, item) = pair?;
        let Ok(name) = key.cast::<PyString>() else {
            let text = format!("the names of parameters are str, not {}", type_name(&key));
            return Err(wrong(key.py(), Kind::Programming, text));
        };
        let Ok(name) = name.to_str() else {
            let text = "the name of a parameter holds lone surrogates, which UTF-8 has not".to_owned();
            return Err(wrong(key.py(), Kind::Programming, text));
        };
        let at = if sql.contains(name) { At::Name(name) } else { At::UnknownName };
        values.push((name.into(), value(&item, at)?));
    }
    Ok(Params::Named(values))
}

/// Parameters for each row of `executemany`, from any iterable.
pub fn rows_of_params(given: &Bound<'_, PyAny>, sql: &str) -> PyResult<Vec<Params>> {
    // How many a list or tuple has is known; what `__len__` says of others may be anything, and no memory is taken for it.
    let list_length = given.cast::<PyList>().map(|list| list.len());
    let length = list_length.or_else(|_| given.cast::<PyTuple>().map(|tuple| tuple.len()));
    let mut rows = Vec::with_capacity(length.unwrap_or(0));
    let iterator = given.try_iter()?;
    while add_row(&iterator, sql, &mut rows)? {}
    Ok(rows)
}

/// Convert the parameters of one row more; false at the end.
pub fn add_row(iterator: &Bound<'_, PyIterator>, sql: &str, rows: &mut Vec<Params>) -> PyResult<bool> {
    let Some(row) = upcall::next(iterator)? else { return Ok(false) };
    let converted = params(&row, sql).map_err(|error| in_row(iterator.py(), error, rows.len()))?;
    rows.push(converted);
    Ok(true)
}

/// The same exception, its message led by the row.
fn in_row(py: Python<'_>, error: PyErr, index: usize) -> PyErr {
    let text = format!("row {}: {}", index + 1, error.value(py));
    let made = PyTuple::new(py, [text]).and_then(|args| upcall::call(&error.get_type(py).into_any(), &args, None));
    match made {
        Ok(instance) => PyErr::from_value(instance),
        Err(_) => error,
    }
}

fn value(item: &Bound<'_, PyAny>, at: At<'_>) -> PyResult<Value> {
    if let Ok(text) = item.cast::<PyString>() {
        return match text.to_str() {
            Ok(text) => Ok(Value::Text(text.into())),
            Err(_) => {
                Err(wrong(item.py(), Kind::Data, format!("{at} is a str with lone surrogates, which UTF-8 has not")))
            }
        };
    }
    if item.is_none() {
        return Ok(Value::Null);
    }
    if item.is_instance_of::<PyInt>() {
        return integer(item, at); // bool too
    }
    if let Ok(float) = item.cast::<PyFloat>() {
        let real = float.value();
        if real.is_nan() {
            return Err(wrong(
                item.py(),
                Kind::Data,
                format!("{at} is NaN, which SQLite would store as NULL; give None"),
            ));
        }
        return Ok(Value::Real(real));
    }
    bytes(item).unwrap_or_else(|| Err(unsupported(item, at)))
}

fn integer(item: &Bound<'_, PyAny>, at: At<'_>) -> PyResult<Value> {
    match item.extract::<i64>() {
        Ok(integer) => Ok(Value::Integer(integer)),
        Err(error) if error.is_instance_of::<PyOverflowError>(item.py()) => {
            let text = format!("{at} is an int that does not fit in 64 bits; give a str or bytes");
            Err(wrong(item.py(), Kind::Data, text))
        }
        Err(error) => Err(error),
    }
}

/// bytes, bytearray and memoryview. Not every object with a buffer: numpy's scalars have one, and would become blobs.
fn bytes(item: &Bound<'_, PyAny>) -> Option<PyResult<Value>> {
    if let Ok(bytes) = item.cast::<PyBytes>() {
        return Some(Ok(Value::Blob(bytes.as_bytes().into())));
    }
    if let Ok(bytes) = item.cast::<PyByteArray>() {
        return Some(Ok(Value::Blob(bytes.to_vec().into())));
    }
    if item.is_instance_of::<PyMemoryView>() {
        let copied = item.call_method0("tobytes").and_then(|bytes| bytes.extract::<Vec<u8>>());
        return Some(copied.map(|bytes| Value::Blob(bytes.into())));
    }
    None
}

fn unsupported(item: &Bound<'_, PyAny>, at: At<'_>) -> PyErr {
    let type_name = type_name(item);
    let advice = match type_name.as_str() {
        "datetime" | "date" | "time" => "give .isoformat(), or microseconds as an int",
        "Decimal" | "UUID" | "Path" | "PosixPath" | "WindowsPath" => "give str(value)",
        "list" | "dict" | "set" | "tuple" => "give json.dumps(value)",
        "ndarray" => "give value.tobytes()",
        "int8" | "int16" | "int32" | "int64" | "uint8" | "uint16" | "uint32" | "uint64" | "bool_" | "bool" => {
            "give value.item()"
        }
        "float16" | "float32" => "give value.item()",
        _ => "give None, bool, int, float, str or bytes",
    };
    wrong(item.py(), Kind::Programming, format!("{at} is a {type_name}, which SQLite cannot store; {advice}"))
}

fn type_name(item: &Bound<'_, PyAny>) -> String {
    item.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}

/// Seconds to wait.
#[derive(Clone, Copy)]
pub struct Seconds(pub Duration);

impl FromPyObject<'_, '_> for Seconds {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let py = given.py();
        let seconds = match given.extract::<f64>() {
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => f64::INFINITY,
            seconds => seconds?,
        };
        // A deadline is an instant of a clock that ends; thirty years are as good as for ever.
        Duration::try_from_secs_f64(if seconds > 1e9 { 1e9 } else { seconds }).map(Seconds).map_err(|_| {
            wrong(py, Kind::Programming, format!("timeout must be seconds, 0 or more and no NaN, not {seconds}"))
        })
    }
}

/// What each row becomes.
pub enum RowAs<'py> {
    /// A tuple.
    Tuple,
    /// A dict of column names.
    Dict,
    /// What a callable makes of (columns, values).
    Call(Bound<'py, PyAny>),
}

impl<'py> RowAs<'py> {
    /// From the argument `row=`.
    pub fn from_argument(row: Option<Bound<'py, PyAny>>) -> PyResult<Self> {
        let Some(row) = row else { return Ok(RowAs::Tuple) };
        let py = row.py();
        if row.is(py.get_type::<PyTuple>()) {
            Ok(RowAs::Tuple)
        } else if row.is(py.get_type::<PyDict>()) {
            Ok(RowAs::Dict)
        } else if row.is_callable() {
            Ok(RowAs::Call(row))
        } else {
            Err(wrong(py, Kind::Programming, "row must be tuple, dict or a callable of (columns, values)".to_owned()))
        }
    }

    /// Whether the names of the columns are needed.
    pub fn wants_columns(&self) -> bool {
        !matches!(self, RowAs::Tuple)
    }
}

/// Every row, as Python has it.
pub fn list<'py>(py: Python<'py>, rows: &Rows, row_as: &RowAs<'py>) -> PyResult<Bound<'py, PyList>> {
    let columns = columns(py, rows)?;
    let made = (0..rows.len()).map(|index| Made(one(py, rows, index, row_as, &columns)));
    PyList::new(py, made)
}

/// Cells from which on a list is made on a native thread, in pieces: a loop would make it for longer than a moment.
pub const MANY_CELLS: usize = 2_000;
const ROWS_OF_A_PIECE: usize = 500;

/// As `list`, giving others the GIL now and then.
pub fn list_in_pieces<'py>(py: Python<'py>, rows: &Rows, row_as: &RowAs<'py>) -> PyResult<Bound<'py, PyList>> {
    let columns = columns(py, rows)?;
    let list = PyList::empty(py);
    for index in 0..rows.len() {
        list.append(one(py, rows, index, row_as, &columns)?)?;
        if index % ROWS_OF_A_PIECE == ROWS_OF_A_PIECE - 1 {
            py.detach(std::thread::yield_now);
        }
    }
    Ok(list)
}

/// The first row, or None.
pub fn first<'py>(py: Python<'py>, rows: &Rows, row_as: &RowAs<'py>) -> PyResult<Bound<'py, PyAny>> {
    if rows.is_empty() {
        return Ok(py.None().into_bound(py));
    }
    one(py, rows, 0, row_as, &columns(py, rows)?)
}

/// The first value of the first row, or None.
pub fn first_value<'py>(py: Python<'py>, rows: &Rows) -> PyResult<Bound<'py, PyAny>> {
    if rows.is_empty() || rows.width() == 0 {
        return Ok(py.None().into_bound(py));
    }
    object(py, rows, 0, 0)
}

/// The names of the columns.
pub fn columns<'py>(py: Python<'py>, rows: &Rows) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, rows.columns.iter().map(|name| PyString::new(py, name)))
}

fn one<'py>(
    py: Python<'py>,
    rows: &Rows,
    index: usize,
    row_as: &RowAs<'py>,
    columns: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    match row_as {
        RowAs::Tuple => Ok(tuple(py, rows, index)?.into_any()),
        RowAs::Call(factory) => upcall::call(factory, &PyTuple::new(py, [columns, &tuple(py, rows, index)?])?, None),
        RowAs::Dict => {
            let dict = PyDict::new(py);
            for column in 0..rows.width() {
                dict.set_item(columns.get_item(column)?, object(py, rows, index, column)?)?;
            }
            Ok(dict.into_any())
        }
    }
}

fn tuple<'py>(py: Python<'py>, rows: &Rows, index: usize) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(py, (0..rows.width()).map(|column| Made(object(py, rows, index, column))))
}

/// An object, or the error of making it, for the constructors of tuples and lists: they take it without a Vec between.
struct Made<'py>(PyResult<Bound<'py, PyAny>>);

impl<'py> IntoPyObject<'py> for Made<'py> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, _: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.0
    }
}

fn object<'py>(py: Python<'py>, rows: &Rows, row: usize, column: usize) -> PyResult<Bound<'py, PyAny>> {
    Ok(match rows.value(row, column) {
        Out::Null => py.None().into_bound(py),
        Out::Integer(integer) => integer.into_pyobject(py)?.into_any(),
        Out::Real(real) => PyFloat::new(py, real).into_any(),
        Out::Text(text) => PyString::from_bytes(py, text).map_err(|_| not_utf8(py, column))?.into_any(),
        Out::Blob(blob) => PyBytes::new(py, blob).into_any(),
    })
}

fn not_utf8(py: Python<'_>, column: usize) -> PyErr {
    let text = format!("column {} holds TEXT that is not valid UTF-8; read it with CAST(... AS BLOB)", column + 1);
    wrong(py, Kind::Data, text)
}

/// Whether a Python object is exactly True or False.
pub fn is_bool(item: &Bound<'_, PyAny>) -> bool {
    item.is_instance_of::<PyBool>()
}
