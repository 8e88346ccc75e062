"""What libpq takes from the environment and from a service file where a URL says nothing: who, where, and the TLS mode.

Only as far as walpool must know of it, to say which server is meant and whether that is this machine; libpq itself
reads all of it again. https://www.postgresql.org/docs/18/libpq-pgservice.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["completed"]

_VARIABLES: Final = {
    "dbname": "PGDATABASE",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "sslmode": "PGSSLMODE",
    "user": "PGUSER",
}


def completed(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters with what stands behind them, in libpq's order: the URL, the service, the environment."""
    named = {name: str(value) for name, value in parameters.items()}
    around = {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}
    return {**around, **_of_service(named), **named}


def _of_service(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return what the service file says that a URL or the environment names; nothing where no file has it."""
    service = parameters.get("service") or os.environ.get("PGSERVICE")
    if not service:
        return {}
    for path in _files(parameters):
        try:
            text = path.read_text(errors="replace")
        except OSError:  # libpq says so, if it is the one that it needs
            continue
        found = _section(text, service)
        if found is not None:
            return found
    return {}


def _files(parameters: Mapping[str, str]) -> Iterator[Path]:
    own = parameters.get("servicefile") or os.environ.get("PGSERVICEFILE")
    if own:
        yield Path(own)
    elif os.name == "nt":
        yield Path(os.environ.get("APPDATA", ""), "postgresql", ".pg_service.conf")
    else:
        yield Path(os.path.expanduser("~"), ".pg_service.conf")
    if shared := os.environ.get("PGSYSCONFDIR"):
        yield Path(shared, "pg_service.conf")


def _section(text: str, service: str) -> dict[str, str] | None:
    found: dict[str, str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            if found is not None:
                break
            if line == f"[{service}]":
                found = {}
        elif found is not None and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, value)  # libpq keeps the first
    return found
