"""What a server has to have for the memory tables, and whom its policies would show nothing; no I/O."""

from __future__ import annotations

from typing import Final

from walpool.errors import ConfigError
from walpool.memory._operations import Read
from walpool.types import Row

__all__ = ["hidden", "missing"]

_OLDEST: Final = (0, 7)
_VECTORS: Final = """SELECT e.extversion, a.default_version,
    r.rolsuper OR (v.trusted AND has_database_privilege(current_database(), 'CREATE'))
    FROM pg_roles AS r
    LEFT JOIN pg_extension AS e ON e.extname = 'vector'
    LEFT JOIN pg_available_extensions AS a ON a.name = 'vector'
    LEFT JOIN pg_available_extension_versions AS v ON v.name = 'vector' AND v.version = a.default_version
    WHERE r.rolname = current_user"""
_HIDDEN: Final = """SELECT row_security_active(to_regclass('memory_records'))
        AND (?1 = '' OR coalesce(current_setting('walpool.tenant', true), '') <> ?1)
    FROM pg_policy WHERE polrelid = to_regclass('memory_records') AND polname = 'memory_records_tenant'"""


def missing() -> Read[str | None]:
    """Return the read of what a server lacks for the memory tables, in words; None: it has all that is known of."""

    def decode(rows: list[Row]) -> str | None:
        installed, offered, may_create = rows[0]
        if installed is None and offered is None:
            return "memory stores need the extension pgvector, 0.7 or newer, which this server lacks"
        found = str(installed or offered)
        if tuple(map(int, found.split(".")[:2])) < _OLDEST:
            return f"memory stores need the extension pgvector, 0.7 or newer, and this server has {found}"
        if installed is None and not may_create:
            return "memory stores need pgvector in this database: have a superuser run CREATE EXTENSION vector there"
        return None

    return Read(_VECTORS, (), decode)


def hidden(tenant: str, name: str) -> Read[ConfigError | None]:
    """Return the read of why walpool's policies would hide what is a tenant's from the connection; None: they do not.

    Args:
        tenant: whose records are wanted.
        name: of the database, for messages.
    """

    def decode(rows: list[Row]) -> ConfigError | None:
        if not rows or not rows[0][0]:
            return None
        return ConfigError(
            "row-level security shows this role the memories of the one tenant that it names: open with tenant= and "
            f"tenancy='rls' [{name}]"
        )

    return Read(_HIDDEN, (tenant,), decode)
