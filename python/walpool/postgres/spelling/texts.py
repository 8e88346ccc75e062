"""Texts: `text` and `varchar(n)`, `char(n)`, `name`, and the labels of enums. Pure."""

from __future__ import annotations

from typing import Any, Final

from walpool.postgres.spelling.spelling import Bad, Limits, Spelling, always, nearest_text, plain_text

__all__ = ["CHAR", "ENUM", "NAME", "TEXT"]

_NAME_BYTES: Final = 63  # https://www.postgresql.org/docs/18/datatype-character.html


def _text(value: Any, limits: Limits) -> str:
    text = plain_text(value)
    if limits and len(text) > limits[0]:
        raise Bad(f"text of more than {limits[0]} characters")
    return text


def _nearest_text(value: Any, limits: Limits) -> str:
    text = nearest_text(value)
    return text[: limits[0]] if limits else text


def _padded(value: Any, limits: Limits) -> str:
    """Return what `char(n)` gives back: the spaces at the end do not count."""
    return _text(plain_text(value).rstrip(" "), limits)


def _name(value: Any, _: Limits) -> str:
    text = plain_text(value)
    if len(text.encode()) > _NAME_BYTES:
        raise Bad(f"a name of more than {_NAME_BYTES} bytes")
    return text


def _nearest_name(value: Any, _: Limits) -> str:
    return nearest_text(value).encode()[:_NAME_BYTES].decode("utf-8", "ignore")


def _label(value: Any, limits: Limits) -> str:
    text = plain_text(value, "labels")
    if text not in limits:
        raise Bad("TEXT that is no label of the type")
    return text


TEXT: Final = Spelling(read=_text, nearest=_nearest_text, zero=always(""), is_plain=True, sorts_alike=True)
CHAR: Final = Spelling(read=_padded, nearest=_nearest_text, zero=always(""))
NAME: Final = Spelling(read=_name, nearest=_nearest_name, zero=always(""))
ENUM: Final = Spelling(read=_label, zero=lambda labels: labels[0] if labels else "")
"""Its limits are its labels; the server has them in an order of their own."""
