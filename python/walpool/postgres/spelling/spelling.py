"""`Spelling`: what is known of the values of one type. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, Final, TypeAlias

__all__ = ["Bad", "Limits", "Number", "Read", "Spelling", "always", "class_of", "nearest_text", "plain_text"]

Limits: TypeAlias = Sequence[Any]
"""What a column's type is limited to: characters, digits, labels; empty for a type without limits."""

Read: TypeAlias = Callable[[Any, Limits], Any]
"""Takes a value, not None, and the limits of its column."""

_CLASSES: Final = {int: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB", bool: "BOOLEAN"}


class Bad(ValueError):
    """A value that a column cannot hold; the message says why, and quotes nothing."""


class Number(str):
    """A number of JSON as it is written, to the last digit."""

    __slots__ = ()


def nothing(_: Any, __: Limits) -> Any:
    """Return None: no value of the type is nearer to another one than the others."""
    return None


def always(value: Any) -> Callable[[Limits], Any]:
    """Return a function that returns this value, whatever the limits are."""
    return lambda _: value


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """What is known of the values of one type.

    Attributes:
        read: returns a value as the server gives it back; raises `Bad` for one that a column cannot hold as it is.
        sent: `read` for a value that is written, where that keeps more than what is compared; None: `read`.
        nearest: returns the value nearest to one that `read` refuses, which it may refuse too; None if there is none.
        zero: returns the nothing of the type, by the limits of a column.
        wire: returns what `read` returned as the server takes it: bytes, or a number for `struct`. None: as it is, or
            the bytes of a text.
        element: `read` for a value in an array, as JSON has it: a `Number`, a str or a bool; what `wire` takes. None:
            `read`, of strings.
        json: returns what `element` returned as JSON.
        same: returns what all values have in common that are one to an index; None: the value itself.
        is_plain: whether without limits `read` returns what it is given, so that it need not be called.
        sorts_alike: whether a file has such values in the order in which the server has them.
    """

    read: Read
    sent: Read | None = None
    nearest: Read = nothing
    zero: Callable[[Limits], Any]
    wire: Callable[[Any], Any] | None = None
    element: Read | None = None
    json: Callable[[Any], str] = encode_basestring
    same: Callable[[Any], str] | None = None
    is_plain: bool = False
    sorts_alike: bool = False


def class_of(value: Any) -> str:
    """Return what SQLite calls the class of a value."""
    return _CLASSES.get(type(value), type(value).__name__)


def plain_text(value: Any, of: str = "text") -> str:
    """Return a text.

    Raises:
        Bad: it is none, or has a NUL in it.
    """
    if type(value) is not str:
        raise Bad(f"{class_of(value)} in a column of {of}")
    if "\0" in value:
        raise Bad("a NUL in text")
    return value


def nearest_text(value: Any) -> str:
    """Return the text that is nearest to a value: U+FFFD stands for what no text can hold."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
