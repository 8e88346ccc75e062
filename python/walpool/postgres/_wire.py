"""Several statements in one round trip, and what is set for one transaction. Knows no jobs and no pools."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import psycopg

if TYPE_CHECKING:
    from walpool.postgres._address import Connection

__all__ = ["durations", "pipelined", "set_local"]

T = TypeVar("T")


def pipelined(connection: Connection, send: Callable[[], T]) -> T:
    """Call `send`, whose statements do not wait for each other, and return what it returns once all are answered.

    Raises:
        psycopg.Error: the first that failed; those after it were skipped, and a transaction is as that one left it.
    """
    failure: psycopg.Error | None = None
    sent: T | None = None
    try:
        # No exception leaves the block: psycopg would log what the rest of the pipeline says, that it was skipped.
        with connection.pipeline() as pipeline:
            try:
                sent = send()
                pipeline.sync()
            except psycopg.Error as error:
                failure = error
                with suppress(psycopg.Error):
                    pipeline.sync()
    except psycopg.Error as error:
        failure = failure or error
    if failure is not None:
        raise failure
    return sent  # type: ignore[return-value]


def set_local(connection: Connection, settings: Iterable[tuple[str, str]]) -> None:
    """Set server settings until the end of the transaction; no session keeps any, since poolers share them."""
    given = [text for pair in settings for text in pair]
    if given:
        calls = ", ".join(f"set_config(${n}, ${n + 1}, true)" for n in range(1, len(given), 2))
        connection.execute(f"SELECT {calls}", given)


def durations(**seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Return server settings that are durations; those that are None are left out."""
    return tuple((name, f"{max(1, int(value * 1000))}ms") for name, value in seconds.items() if value is not None)
