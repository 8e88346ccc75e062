"""Values that the target cannot take: what is wrong with one, and what it becomes if it is replaced. Pure."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from typing import Any, Final

from walpool.migrating._canonical import Bad, canonical, is_typed, nearest
from walpool.migrating.plan import Column
from walpool.postgres.binary import Form

__all__ = ["Garbled", "as_json", "fault", "mended"]

_RANGES: Final = {Form.SMALLINT: 2**15, Form.INTEGER: 2**31, Form.BIGINT: 2**63}
_CLASSES: Final = {int: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB", bool: "BOOLEAN"}
_NAMES: Final = {Form.TEXT: "text", Form.BYTEA: "bytes", Form.DOUBLE: "numbers"}


class Garbled(bytes):
    """A text that is no UTF-8: lone surrogates, or bytes of another encoding."""

    __slots__ = ()


def fault(column: Column, value: Any) -> str | None:
    """Return what is wrong with a value of a column, None if nothing is."""
    form = column.form
    if value is None:
        return "NULL in a column that must not hold one" if column.is_required else None
    if isinstance(value, Garbled):
        return "text that is not valid UTF-8"
    if is_typed(column):
        return _typed_fault(column, value)
    if form in (Form.TEXT, Form.JSON):
        return _text_fault(form, value)
    if form in _RANGES:
        return _integer_fault(form, value)
    if form is Form.DOUBLE:
        return _number_fault(value)
    if form is Form.BOOLEAN:
        is_bool = isinstance(value, int) and value in (0, 1)
        return None if is_bool else f"{_class(value)} other than 0 and 1 in a column of booleans"
    return None if isinstance(value, bytes) else _mixed(form, value)


def mended(column: Column, value: Any) -> Any:
    """Return what a value becomes: itself, if it has no fault, the nearest that the column can hold; else NULL.

    Where the column may not be NULL either, it is the zero of its type.
    """
    if fault(column, value) is None:
        return value
    found = None
    if value is not None:
        found = nearest(column, value) if is_typed(column) else _nearest(column.form, value)
    if found is None or fault(column, found) is not None:
        found = _ZEROS[column.form] if column.is_required else None
    return found


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes as `{"base64": ...}`, an infinity or NaN as its name."""
    if isinstance(value, bytes):
        return {"base64": b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


_ZEROS: Final[dict[Form, Any]] = {
    Form.SMALLINT: 0,
    Form.INTEGER: 0,
    Form.BIGINT: 0,
    Form.DOUBLE: 0.0,
    Form.NUMERIC: 0,
    Form.TEXT: "",
    Form.JSON: "null",
    Form.BYTEA: b"",
    Form.BOOLEAN: 0,
    Form.JSONB: "null",
    Form.CHAR: "",
    Form.REAL: 0.0,
    Form.UUID: "00000000-0000-0000-0000-000000000000",
    Form.DATE: "1970-01-01",
    Form.TIMESTAMP: "1970-01-01 00:00:00",
    Form.TIMESTAMPTZ: "1970-01-01 00:00:00+00",
}


def _class(value: Any) -> str:
    return _CLASSES.get(type(value), type(value).__name__)


def _mixed(form: Form, value: Any) -> str:
    return f"{_class(value)} in a column of {_NAMES.get(form, 'integers')}"


def _typed_fault(column: Column, value: Any) -> str | None:
    try:
        canonical(column, value)
    except Bad as bad:
        return str(bad)
    return None


def _text_fault(form: Form, value: Any) -> str | None:
    if not isinstance(value, str):
        return _mixed(Form.TEXT, value)
    if "\0" in value:
        return "a NUL in text"
    if form is Form.JSON and not _is_json(value):
        return "no JSON by the standard (a NaN or an infinity, perhaps)"
    return None


def _integer_fault(form: Form, value: Any) -> str | None:
    if type(value) is not int:
        return _mixed(form, value)
    return None if -_RANGES[form] <= value < _RANGES[form] else f"an integer beyond the range of {form.type}"


def _number_fault(value: Any) -> str | None:
    if type(value) not in (int, float):
        return _mixed(Form.DOUBLE, value)
    if math.isnan(value):
        return "NaN, which SQLite would store as NULL"
    return None if value + 0.0 == value else "an integer that a double cannot hold"


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(name)


def _nearest(form: Form, value: Any) -> Any:
    if form in (Form.TEXT, Form.JSON):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return json.dumps(text) if form is Form.JSON and not _is_json(text) else text
    if form is Form.BYTEA:
        return bytes(value) if isinstance(value, bytes) else str(value).encode()
    try:
        if form is Form.DOUBLE:
            return float(value)
        return int(value)  # of a text too; a REAL loses what is behind its point
    except (TypeError, ValueError, OverflowError):
        return None
