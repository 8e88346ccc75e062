"""Row-level security for the memory tables: the SQL that a DBA runs once, and what a store looks at before it opens.

    owner       owns the tables, and makes and changes them; logs in for nothing else
    app         what the stores log in as: reads and writes the rows of the tenant that its transaction names
    reader      reads them

A transaction names its tenant by the setting `walpool.tenant`; where it has named none, no row is there. FORCE puts the
owner under the policies too. Superusers and roles with BYPASSRLS stand above them, so a store refuses to run as one.
"""

from __future__ import annotations

from typing import Final

from walpool.errors import ConfigError
from walpool.memory._operations import Read
from walpool.memory._postgres_hnsw import statement
from walpool.memory._postgres_schema import MIGRATIONS, TABLES
from walpool.types import Row

__all__ = ["init_sql", "trusted"]

_TENANT: Final = "tenant = nullif(current_setting('walpool.tenant', true), '')"
_NAMED: Final = ", ".join(f"to_regclass('{table}')" for table in TABLES)
_LOOK: Final = f"""SELECT r.rolsuper, r.rolbypassrls,
    (SELECT count(*) FROM pg_class AS c WHERE c.oid IN ({_NAMED}) AND pg_has_role(c.relowner, 'MEMBER')),
    (SELECT count(*) FROM pg_class AS c WHERE c.oid IN ({_NAMED}) AND c.relrowsecurity AND c.relforcerowsecurity)
    FROM pg_roles AS r WHERE r.rolname = current_user"""


def init_sql(
    *,
    owner: str = "walpool_owner",
    app: str = "walpool_app",
    reader: str = "walpool_reader",
    version: int = 0,
    hnsw_dims: int | None = None,
) -> str:
    """Return the SQL of roles, tables, policies and grants, one transaction; for a superuser, or who may as much.

    Args:
        owner: the role that owns the tables; made if it is not there, as are the others. Memory tables that are there
            become its own.
        app: the role that stores log in as; it may be the one that owned the tables before.
        reader: the role that may only look.
        version: which version of the memory tables the database has; 0 if it has none.
        hnsw_dims: also make an HNSW index for embeddings of this length.
    """
    its, apps, readers = map(_quoted, (owner, app, reader))
    listed = ", ".join(TABLES)
    parts = [
        "BEGIN",
        _role(owner, "NOLOGIN"),
        _role(app, "LOGIN"),
        _role(reader, "LOGIN"),
        "CREATE EXTENSION IF NOT EXISTS vector",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {its}",
        f"GRANT USAGE ON SCHEMA public TO {apps}, {readers}",
        f"GRANT {its} TO CURRENT_USER",
        # Where other sets of tables made it, it stays whose it is: they have versions there too.
        f"""DO $schema$ BEGIN
    IF to_regclass('walpool_schema') IS NULL THEN
        CREATE TABLE walpool_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL);
        ALTER TABLE walpool_schema OWNER TO {its};
    END IF;
END $schema$""",
        f"GRANT SELECT, INSERT, UPDATE ON walpool_schema TO {its}",
        f"GRANT SELECT ON walpool_schema TO {apps}, {readers}",
        *(f"ALTER TABLE {table} OWNER TO {its}" for table in TABLES if version),
        f"SET LOCAL ROLE {its}",
        *(sql for migration in MIGRATIONS[version:] for sql in migration),
        f"""INSERT INTO walpool_schema (name, version) VALUES ('memory', {len(MIGRATIONS)})
    ON CONFLICT (name) DO UPDATE SET version = excluded.version""",
        *([] if hnsw_dims is None else [statement(int(hnsw_dims))]),
    ]
    for table in TABLES:
        parts += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"DROP POLICY IF EXISTS {table}_tenant ON {table}",
            f"CREATE POLICY {table}_tenant ON {table} USING ({_TENANT}) WITH CHECK ({_TENANT})",
        ]
    parts += [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {listed} TO {apps}",
        f"GRANT SELECT ON {listed} TO {readers}",
        "COMMIT",
    ]
    return "".join(f"{part};\n" for part in parts)


def trusted(name: str) -> Read[ConfigError | None]:
    """Return the read of why row-level security would not hold here, as an error; None: it does.

    Args:
        name: of the database, for messages.
    """

    def decode(rows: list[Row]) -> ConfigError | None:
        is_super, bypasses, owned, secured = rows[0]
        reason = None
        if is_super or bypasses:
            reason = "is a superuser" if is_super else "has BYPASSRLS"
        elif owned:
            reason = "owns the memory tables, or is a member of the role that does"
        if reason is not None:
            return ConfigError(
                f"tenancy='rls': the role of the connection {reason}, so that the policies would not hold; connect as "
                f"the app's role (walpool pg-init makes one) [{name}]"
            )
        if secured < len(TABLES):
            return ConfigError(
                "tenancy='rls': row-level security is not on, and forced, for every memory table; have a superuser run "
                f"walpool pg-init on this database, or what it prints with --print-sql [{name}]"
            )
        return None

    return Read(_LOOK, (), decode)


def _role(name: str, login: str) -> str:
    text = name.replace("'", "''")
    return f"""DO $roles$ BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{text}') THEN CREATE ROLE {_quoted(name)} {login}; END IF;
END $roles$"""


def _quoted(name: str) -> str:
    if any(part in name for part in ("\0", "$roles$", "$schema$")):
        raise ConfigError("a role has another name")
    return '"' + name.replace('"', '""') + '"'
