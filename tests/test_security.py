"""What SQL, a file or a name from somebody else must not do: leave its job, load code, end the process."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import run_python, run_queued

import walpool
from walpool import errors, memory
from walpool.crewai import _sql as crewai_sql

Verb = tuple[str, Callable[[], Any]]

TRANSACTIONS = "walpool begins and ends transactions itself"
ATTACHING = "open another Pool"
TEMPORARY = "use an ordinary table or a WITH clause"
SETTINGS = r"use the settings of Pool\(\.\.\.\)"
EXTENSIONS = "extensions are never loaded"
SHADOWS = "may not be modified"
NO_FUNCTION = "no such function"
HARMFUL = r"unsafe use of .*; .*: use it in your own statement|extensions are never loaded"
NO_MODULE = "no such (module|table)"

# `elsewhere.db` must never come to be.
REFUSED = {
    TRANSACTIONS: [
        "BEGIN",
        "BEGIN EXCLUSIVE",
        "COMMIT",
        "END",
        "ROLLBACK",
        "SAVEPOINT mine",
        "RELEASE walpool_job",
        "ROLLBACK TO walpool_job",
        "-- a comment\nCOMMIT",
        "/* a comment */ /* and another */ COMMIT;",
        "/* walpool */ COMMIT",
        " \n/* walpool */ ROLLBACK",
        "/* walpool */ BEGIN IMMEDIATE",
        "EXPLAIN COMMIT",
        "cOmMiT",
    ],
    ATTACHING: [
        "ATTACH 'elsewhere.db' AS other",
        "ATTACH DATABASE 'file:elsewhere.db?mode=rwc' AS other",
        "ATTACH 'else' || 'where.db' AS other",
        "ATTACH (SELECT 'elsewhere.db') AS other",
        "/**/ATTACH ':memory:' AS other",
        "ATTACH '' AS other",
        "EXPLAIN ATTACH 'elsewhere.db' AS other",
        "EXPLAIN QUERY PLAN ATTACH 'elsewhere.db' AS other",
        "DETACH main",
    ],
    TEMPORARY: [
        "CREATE TEMP TABLE mine (a)",
        "CREATE TABLE temp.mine (a)",
        'CREATE TABLE "TEMP".mine AS SELECT * FROM t',
        "CREATE TEMP VIEW mine AS SELECT 1",
        "CREATE VIEW temp.mine AS SELECT 1",
        "CREATE TEMP TRIGGER mine AFTER INSERT ON t BEGIN SELECT 1; END",
        "CREATE TRIGGER temp.mine AFTER INSERT ON t BEGIN SELECT 1; END",
    ],
    SETTINGS: [
        "PRAGMA journal_mode = delete",
        "PRAGMA journal_mode(delete)",
        "PRAGMA main.journal_mode = off",
        "pragma/**/JOURNAL_MODE=memory",
        "PRAGMA 'journal_mode' = delete",
        "EXPLAIN PRAGMA journal_mode = delete",
        "PRAGMA synchronous = off",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA wal_autocheckpoint = 1",
        "PRAGMA mmap_size = 1000000",
        "PRAGMA temp_store = memory",
        "PRAGMA temp_store_directory = '/'",
        "PRAGMA case_sensitive_like = on",
        "PRAGMA query_only = 0",
        "PRAGMA query_only = 1",
        "PRAGMA writable_schema = 1",
        "PRAGMA writable_schema = RESET",
        "PRAGMA trusted_schema = 1",
        "PRAGMA foreign_keys = 0",
        "PRAGMA defer_foreign_keys = 1",
        "PRAGMA ignore_check_constraints = 1",
        "PRAGMA recursive_triggers = 1",
        "PRAGMA cell_size_check = 0",
        "PRAGMA hard_heap_limit = 1000000",
        "PRAGMA soft_heap_limit = 1000000",
        "PRAGMA max_page_count = 1",
        "PRAGMA busy_timeout = 100000",
        "PRAGMA schema_version = 7",
        "PRAGMA journal_size_limit = 0",
        "PRAGMA auto_vacuum = full",
        "PRAGMA secure_delete = 1",
        "PRAGMA read_uncommitted = 1",
        "PRAGMA wal_checkpoint",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA incremental_vacuum",
        "PRAGMA shrink_memory",
        "PRAGMA unheard_of = 1",
    ],
    EXTENSIONS: [
        "SELECT load_extension('elsewhere.so')",
        "SELECT load_extension('elsewhere.so', 'entry')",
        "SELECT LOAD_Extension(a) FROM t",
        "SELECT * FROM t WHERE load_extension('elsewhere.so')",
    ],
    SHADOWS: [
        "UPDATE sqlite_schema SET sql = 'nonsense'",
        "DELETE FROM sqlite_master",
        "INSERT INTO sqlite_schema VALUES ('table', 'mine', 'mine', 2, 'nonsense')",
        "UPDATE words_data SET block = x'00'",
        "DELETE FROM words_content",
        "INSERT INTO words_config VALUES ('mine', 1)",
    ],
    "fts3tokenize disabled": ["SELECT fts3_tokenizer('simple', x'0000000000000000')"],
    "unknown database": ["SELECT * FROM pragma_journal_mode('delete')", "SELECT * FROM pragma_synchronous(0)"],
    NO_FUNCTION: [
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('elsewhere.db', 'x')",
        "SELECT edit('x')",
        "SELECT sqlite_rename_table(1, 2, 3, 4, 5, 6, 7)",
    ],
    NO_MODULE: [
        "SELECT * FROM sqlite_dbpage",
        "CREATE VIRTUAL TABLE mine USING sqlite_dbpage",
        "CREATE VIRTUAL TABLE mine USING csv(filename='/etc/passwd')",
        "CREATE VIRTUAL TABLE mine USING fsdir",
        "SELECT * FROM fsdir('/')",
        "SELECT * FROM sqlite_stmt",
        "SELECT * FROM pragma_wal_checkpoint('truncate')",
    ],
}
CASES = [(sql, advice) for advice, statements in REFUSED.items() for sql in statements]
WRITES_ONLY = [("VACUUM", r"use vacuum\(\)"), ("VACUUM INTO 'elsewhere.db'", r"backup\(\)"), ("VACUUM main", "VACUUM")]

# What a connection is told once, and nobody may tell it otherwise.
STATE = ("journal_mode", "synchronous", "locking_mode", "wal_autocheckpoint", "mmap_size", "temp_store", "query_only")
STATE += ("writable_schema", "trusted_schema", "foreign_keys", "defer_foreign_keys", "ignore_check_constraints")
STATE += ("recursive_triggers", "busy_timeout", "cache_size", "journal_size_limit", "max_page_count", "hard_heap_limit")
STATE += ("schema_version", "auto_vacuum", "secure_delete", "read_uncommitted")


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder in which every new file is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(own_folder: Path, pool: walpool.Pool) -> walpool.Pool:
    pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (1); CREATE VIRTUAL TABLE words USING fts5(a)")
    return pool


def streamed(pool: walpool.Pool, sql: str) -> list[Any]:
    with pool.stream(sql) as rows:
        return list(rows)


def read(pool: walpool.Pool, sql: str) -> list[Any]:
    with pool.read() as snapshot:
        return snapshot.fetch(sql)


def reading(pool: walpool.Pool, sql: str) -> list[Verb]:
    return [
        ("fetch", lambda: pool.fetch(sql)),
        ("fetchone", lambda: pool.fetchone(sql)),
        ("fetchval", lambda: pool.fetchval(sql)),
        ("stream", lambda: streamed(pool, sql)),
        ("snapshot.fetch", lambda: read(pool, sql)),
        ("tx.fetch", lambda: pool.run(lambda tx: tx.fetch(sql))),
    ]


def writing(pool: walpool.Pool, sql: str) -> list[Verb]:
    return [
        ("execute", lambda: pool.execute(sql)),
        ("batch", lambda: pool.batch(["INSERT INTO t VALUES (2)", sql])),
        ("script", lambda: pool.script(f"INSERT INTO t VALUES (3); {sql}")),
        ("tx.execute", lambda: pool.run(lambda tx: (tx.execute("INSERT INTO t VALUES (4)"), tx.execute(sql)))),
    ]


def state(pool: walpool.Pool) -> object:
    """Return all that refused SQL might have changed, on the writer and on a reader, in the file and beside it."""
    on_writer = [pool.execute(f"PRAGMA {name}").rows for name in STATE]
    on_reader = [pool.fetch(f"PRAGMA {name}") for name in STATE]
    # SQLite counts `temp` among the databases once somebody has looked into it.
    attached = pool.execute("SELECT name FROM pragma_database_list WHERE name <> 'temp'").rows
    tables = [pool.execute(f"SELECT * FROM {name}").rows for name in ("sqlite_schema", "sqlite_temp_schema", "t")]
    return on_writer, on_reader, attached, tables, sorted(os.listdir())


@pytest.mark.parametrize(("sql", "advice"), CASES)
def test_sql_that_reaches_past_its_job_is_refused_by_every_verb_and_changes_nothing(table, sql, advice):
    before = state(table)
    writes = [(*verb, advice) for verb in writing(table, sql)]
    reads = [(*verb, f"{advice}|the statement writes") for verb in reading(table, sql)]  # it may find that out first
    for verb, call, expected in [*writes, *reads]:
        with pytest.raises(errors.ProgrammingError, match=expected) as caught:
            call()
        assert caught.value.outcome == "not_applied", verb
        assert state(table) == before, verb


@pytest.mark.parametrize(("sql", "advice"), WRITES_ONLY)
def test_vacuum_in_a_job_is_refused_and_names_the_verb(table, sql, advice):
    before = state(table)
    for _, call in writing(table, sql):
        with pytest.raises(errors.ProgrammingError, match=f"{advice}|writes"):
            call()
    for _, call in reading(table, sql):
        with pytest.raises(errors.ProgrammingError, match="the statement writes"):
            call()
    assert state(table) == before


def test_refused_sql_does_not_harm_its_neighbours_in_the_group(table):
    for sql, _ in [*CASES, *WRITES_ONLY]:
        table.execute("DELETE FROM t")
        one, refused, two = run_queued(
            table,
            [
                partial(table.execute, "INSERT INTO t VALUES ('one')"),
                partial(table.batch, ["INSERT INTO t VALUES ('refused')", sql]),
                partial(table.execute, "INSERT INTO t VALUES ('two')"),
            ],
        )
        assert isinstance(refused, errors.ProgrammingError), sql
        assert (one.rowcount, two.rowcount) == (1, 1), sql
        assert table.fetch("SELECT a FROM t ORDER BY a") == [("one",), ("two",)], sql


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (2)",
        "REPLACE INTO t VALUES (2)",
        "UPDATE t SET a = 2",
        "DELETE FROM t",
        "INSERT INTO t VALUES (2) RETURNING a",
        "WITH x AS (SELECT 2) INSERT INTO t SELECT * FROM x",
        "/* SELECT */ DELETE FROM t",
        "CREATE TABLE mine (a)",
        "CREATE TABLE mine AS SELECT * FROM t",
        "CREATE VIRTUAL TABLE mine USING fts5(a)",
        "INSERT INTO words VALUES ('x')",
        "INSERT INTO words (words) VALUES ('rebuild')",
        "DROP TABLE t",
        "ALTER TABLE t ADD COLUMN b",
        "REINDEX",
        "ANALYZE",
    ],
)
def test_read_that_writes_is_refused_by_every_verb_that_reads(table, sql):
    before = state(table)
    for verb, call in reading(table, sql):
        with pytest.raises(errors.ProgrammingError, match=r"use execute\(\)"):
            call()
        assert state(table) == before, verb


@pytest.mark.parametrize("name", ["user_version", "application_id"])
def test_pragma_that_writes_is_refused_on_a_reader(table, name):
    for verb, call in reading(table, f"PRAGMA {name} = 7"):
        if verb != "tx.fetch":  # that is the writer, and it is undone with its transaction
            with pytest.raises(errors.ProgrammingError, match=r"use execute\(\)"):
                call()
            assert table.fetchval(f"PRAGMA {name}") == 0


@pytest.mark.parametrize("second", ["SELECT 2", "INSERT INTO t VALUES (2)", "DROP TABLE t", "COMMIT", "nonsense"])
def test_second_statement_in_one_text_is_refused_and_the_first_is_not_run(table, second):
    before = state(table)
    for first in ("INSERT INTO t VALUES (3)", "SELECT 1"):
        sql = f"{first}; {second}"
        calls = [*writing(table, sql), *reading(table, sql), ("many", lambda: table.executemany(sql, [()]))]  # noqa: B023
        for verb, call in calls:
            if verb == "script" and second in ("SELECT 2", "INSERT INTO t VALUES (2)", "DROP TABLE t"):
                continue  # what it is for
            with pytest.raises(errors.ProgrammingError):
                call()
    assert state(table) == before


@pytest.mark.parametrize("body", ["load_extension('elsewhere.so')", "fts3_tokenizer('simple')", "bm25(words)"])
def test_view_or_trigger_of_a_strangers_file_calls_no_function_that_could_do_harm(own_folder, database, body):
    with closing(sqlite3.connect(database)) as stranger:
        stranger.executescript(f"""
            CREATE TABLE t (a); INSERT INTO t VALUES (1); CREATE VIRTUAL TABLE words USING fts5(a);
            CREATE VIEW trap AS SELECT {body} AS a FROM words;
            CREATE TRIGGER sprung AFTER INSERT ON t BEGIN SELECT {body} FROM words; END;
        """)
    with walpool.Pool(database) as pool:
        for _, call in [*reading(pool, "SELECT * FROM trap"), *writing(pool, "INSERT INTO t SELECT a FROM trap")]:
            with pytest.raises(errors.ProgrammingError, match=HARMFUL):
                call()
        with pytest.raises(errors.ProgrammingError, match=HARMFUL):
            pool.execute("INSERT INTO t VALUES (2)")
        assert pool.fetch("SELECT a FROM t") == [(1,)]


def test_view_of_a_strangers_file_reads_no_pragma_and_no_page(own_folder, database):
    with closing(sqlite3.connect(database)) as stranger:
        stranger.executescript("CREATE VIEW modes AS SELECT * FROM pragma_journal_mode; CREATE VIEW x AS SELECT 1")
    with walpool.Pool(database) as pool:
        for _, call in reading(pool, "SELECT * FROM modes"):
            with pytest.raises(errors.ProgrammingError, match=HARMFUL):
                call()
        assert pool.fetchval("SELECT * FROM x") == 1


def test_functions_of_walpool_may_stand_in_views_triggers_and_indexes(table):
    table.script("""
        CREATE TABLE v (e BLOB, s BLOB);
        CREATE INDEX v_length ON v (vec_dot(e, e));
        CREATE VIEW lengths AS SELECT vec_dot(e, e) AS squared FROM v;
        CREATE TRIGGER v_sketched AFTER INSERT ON v BEGIN
            UPDATE v SET s = vec_sketch(e, NULL) WHERE rowid = NEW.rowid;
        END;
        INSERT INTO v (e) VALUES (x'0000003f0000003f');
    """)
    assert table.fetch("SELECT squared, s IS NOT NULL FROM lengths, v") == [(0.5, 1)]


# The statement, and what must be there first. Each is far past a limit of SQLite's, or deep enough to need much stack.
BOMBS = """
import sys
import walpool

def triggers(deep):
    tables = "".join(f"CREATE TABLE c{i} (a);" for i in range(deep + 1))
    step = "CREATE TRIGGER g{0} AFTER INSERT ON c{0} BEGIN INSERT INTO c{1} VALUES (NEW.a); END;"
    return tables + "".join(step.format(i, i + 1) for i in range(deep))

def cascades(deep):
    step = "CREATE TABLE k{0} (a PRIMARY KEY REFERENCES k{1} ON DELETE CASCADE); INSERT INTO k{0} VALUES (1);"
    return "CREATE TABLE k0 (a PRIMARY KEY); INSERT INTO k0 VALUES (1);" + "".join(
        step.format(i, i - 1) for i in range(1, deep))

def views(deep):
    return "CREATE VIEW w0 AS SELECT 1 AS a;" + "".join(
        f"CREATE VIEW w{i} AS SELECT a FROM w{i - 1};" for i in range(1, deep))

def nested(before, inside, after, deep):
    return "SELECT " + before * deep + inside + after * deep

few, many = 900, int(sys.argv[2])
bombs = {
    "sum": "SELECT " + "1+" * many + "1",
    "and": "SELECT " + " AND ".join(["1"] * many),
    "signs": nested("- ", "1", "", many),
    "not": nested("NOT ", "1", "", many),
    "parentheses": nested("(", "1", ")", many),
    "collate": nested("", "1", " COLLATE nocase", many),
    "arrows": nested("", "'{}'", " -> '$'", many),
    "subqueries": nested("(SELECT ", "1", ")", many),
    "few subqueries": nested("(SELECT ", "1", ")", few),
    "exists": nested("EXISTS (SELECT ", "1", ")", few),
    "from": "SELECT * FROM " + "(SELECT * FROM " * few + "(SELECT 1)" + ")" * few,
    "case": nested("CASE WHEN 1 THEN ", "1", " END", few),
    "calls": nested("abs(", "1", ")", few),
    "casts": nested("CAST(", "1", " AS INT)", few),
    "between": nested("1 BETWEEN 0 AND ", "1", "", few),
    "windows": nested("sum(", "1", ") OVER ()", few),
    "compound": " UNION ALL ".join(["SELECT 1"] * many),
    "with": "WITH " + ",".join(
        f"a{i} AS (SELECT * FROM a{i - 1})" if i else "a0 AS (SELECT 1)" for i in range(few)) + " SELECT * FROM a899",
    "join": "SELECT * FROM " + ",".join(["(SELECT 1)"] * 65),
    "columns": "SELECT " + ",".join(["1"] * 40_000),
    "arguments": "SELECT max(" + ",".join(["1"] * 40_000) + ")",
    "json": "SELECT json('" + "[" * many + "]" * many + "')",
    "deep json": "SELECT json_extract('" + "[" * 990 + "]" * 990 + "', '$" + "[0]" * 990 + "')",
    "like": "SELECT 'a' LIKE '" + "%a" * 30_000 + "'",
    "zeroblob": "SELECT zeroblob(2000000000)",
    "printf": "SELECT printf('%2000000000d', 1)",
    "match": "SELECT * FROM f WHERE f MATCH '" + "(" * many + "a" + ")" * many + "'",
    "comments": "/*" * many + "*/ SELECT 1",
    "triggers": "INSERT INTO c0 VALUES (1)",
    "cascades": "DELETE FROM k0",
    "views": "SELECT * FROM w399",
}
with walpool.Pool(sys.argv[1]) as pool:
    pool.script("CREATE VIRTUAL TABLE f USING fts5(a); CREATE TABLE t (a);")
    pool.script(triggers(1200) + cascades(1200) + views(400))
    for name, sql in bombs.items():
        for verb in (pool.fetch, pool.execute):
            print(name, file=sys.stderr, flush=True)
            try:
                verb(sql)
            except walpool.DatabaseError as error:
                assert not isinstance(error, walpool.OperationalError), error
                print(name, type(error).__name__)
    pool.execute("INSERT INTO t VALUES (1)")
    assert pool.check() == []
"""


def test_huge_and_deep_statements_end_in_an_error_and_never_in_a_crash(database, torture):
    output, _ = run_python(BOMBS, database, torture.size(20_000, 200_000))
    refused = set(output.splitlines())
    for name in ("sum", "parentheses", "subqueries", "compound", "json", "match", "triggers", "cascades", "like"):
        assert f"{name} ProgrammingError" in refused
    assert "zeroblob DataError" in refused


@pytest.mark.skipif(sys.platform == "win32", reason="permissions come from the folder there")
class TestFiles:
    """New files are their owner's alone; what was there before is left as it was."""

    @staticmethod
    def mode(path: Path | str) -> int:
        return stat.S_IMODE(os.stat(path).st_mode)

    @staticmethod
    @contextmanager
    def umask(mask: int) -> Iterator[None]:
        before = os.umask(mask)
        try:
            yield
        finally:
            os.umask(before)

    @pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
    def test_new_file_with_its_wal_and_index_is_its_owners_whatever_the_umask(self, database, tmp_path, mask):
        with self.umask(mask), walpool.Pool(database) as pool:
            pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
            assert pool.fetchval("SELECT a FROM t") == 1
            pool.backup(tmp_path / "copy.db")
            names = sorted(path.name for path in tmp_path.iterdir())
            assert names == ["copy.db", "test.db", "test.db-shm", "test.db-wal"]
            assert {name: self.mode(tmp_path / name) for name in names} == dict.fromkeys(names, 0o600)

    @pytest.mark.parametrize(("wanted", "mask", "given"), [(0o640, 0o022, 0o640), (0o660, 0o077, 0o600)])
    def test_file_mode_is_given_and_the_umask_may_take_from_it(self, database, wanted, mask, given):
        with self.umask(mask), walpool.Pool(database, file_mode=wanted) as pool:
            pool.script("CREATE TABLE t (a)")
            assert {self.mode(f"{database}{end}") for end in ("", "-wal", "-shm")} == {given}

    def test_mode_of_an_existing_file_is_left_alone(self, database):
        with closing(sqlite3.connect(database)) as stranger:
            stranger.executescript("CREATE TABLE t (a)")
        database.chmod(0o644)
        with walpool.Pool(database, file_mode=0o600) as pool:
            pool.execute("INSERT INTO t VALUES (1)")
            assert {self.mode(f"{database}{end}") for end in ("", "-wal", "-shm")} == {0o644}
        assert self.mode(database) == 0o644

    def test_private_database_lies_in_a_folder_of_its_owner_and_goes_with_it(self):
        with self.umask(0o000), walpool.Pool(":memory:") as pool:
            pool.script("CREATE TABLE t (a)")
            folder = Path(pool.path).parent
            assert self.mode(folder) == 0o700
            assert {self.mode(path) for path in folder.iterdir()} == {0o600}
        assert not folder.exists()

    def test_link_that_was_planted_at_a_new_path_leads_to_a_file_of_ones_own(self, database, tmp_path):
        target = tmp_path / "target.db"
        database.symlink_to(target)
        with self.umask(0o022), walpool.Pool(database) as pool:
            pool.script("CREATE TABLE t (a)")
            assert pool.path == str(target.resolve())
            assert {self.mode(f"{target}{end}") for end in ("", "-wal", "-shm")} == {0o600}

    def test_link_to_a_strangers_text_is_refused_and_the_text_is_left_as_it_was(self, database, tmp_path):
        target = tmp_path / "precious.txt"
        target.write_text("precious " * 200)
        database.symlink_to(target)
        with pytest.raises(errors.CorruptError):
            walpool.Pool(database)
        assert target.read_text() == "precious " * 200

    def test_link_at_the_path_of_a_backup_is_refused_and_followed_nowhere(self, pool, tmp_path):
        for target in (tmp_path / "there.txt", tmp_path / "not there.txt"):
            (tmp_path / "there.txt").write_text("precious")
            link = tmp_path / f"link to {target.name}"
            link.symlink_to(target)
            with pytest.raises(errors.StorageError):
                pool.backup(link)
            assert (tmp_path / "there.txt").read_text() == "precious"
            assert not (tmp_path / "not there.txt").exists()
            assert link.is_symlink()

    def test_link_at_the_path_of_a_wal_is_not_written_through(self, database, tmp_path):
        target = tmp_path / "precious.txt"
        target.write_text("precious")
        Path(f"{database}-wal").symlink_to(target)
        try:
            with walpool.Pool(database) as pool:
                pool.script("CREATE TABLE t (a)")
        except errors.Error:
            pass
        assert target.read_text() == "precious"


HOSTILE = [
    "x'; DROP TABLE memory_records; --",
    'x" OR 1 = 1 --',
    "x) OR (1",
    "%",
    "?1",
    ":a",
    "x\0y",
    "/* walpool */",
    "ключ",
]


class Overheard:
    """A pool, a snapshot or a transaction, and the SQL that it was given."""

    def __init__(self, of, texts):
        self._of, self._texts = of, texts

    def __getattr__(self, name):
        return getattr(self._of, name)

    def fetch(self, sql, params=()):
        self._texts.append(sql)
        return self._of.fetch(sql, params)

    def execute(self, sql, params=()):
        self._texts.append(sql)
        return self._of.execute(sql, params)

    def batch(self, statements):
        self._texts += [sql for sql, _ in statements]
        return self._of.batch(statements)

    def run(self, work):
        return self._of.run(lambda tx: work(Overheard(tx, self._texts)))

    @contextmanager
    def read(self):
        with self._of.read() as snapshot:
            yield Overheard(snapshot, self._texts)


def texts_of(database, name):
    """Return the SQL of every operation that takes names and values of a caller's, with this one in all places."""
    texts = []
    name = name.replace("\0", "")  # which a memory's names may not hold
    with memory.SqliteMemoryStore(Overheard(walpool.Pool(database), texts), tenant=name, collection=name) as store:
        del texts[:]
        condition = memory.Query(
            scope=f"/a{name}", ids=(name,), categories=(name,), metadata={name: name, "a": 1}, source=name
        )
        embedding = memory.pack([1.0])
        record = memory.Record(
            id=name,
            content=name,
            scope=name,
            categories=(name,),
            metadata={name: name},
            source=name,
            embedding=embedding,
        )
        store.save([record])
        store.update(name, content=name, scope=name, metadata={name: name})
        store.get(name), store.list(condition), store.count(condition), store.categories(condition)
        store.scopes(name), store.summary(name), store.search(embedding, condition), store.touch([name])
        store.count(memory.Query(metadata={name: memory.PythonEquals(name)}))
        store.expire(condition, keep=1), store.delete(condition)
        store.reset()
    statements = []
    for backend in ("sqlite", "postgres"):
        statements += [crewai_sql.save_state(backend, name, name, name, name), crewai_sql.load_state(backend, name)]
        statements += [crewai_sql.save_feedback(backend, name, name, name, name)]
        statements += [crewai_sql.load_feedback(backend, name), crewai_sql.clear_feedback(backend, name)]
        statements += [crewai_sql.add_output(backend, name, name, name, name, 1, name, False)]
        statements += [crewai_sql.update_outputs(backend, 1, {"output": name, name: name})]
        statements += [crewai_sql.put_checkpoint(backend, name, name, name, name, name)]
        statements += [crewai_sql.load_checkpoint(backend, name), crewai_sql.prune_checkpoints(backend, name, 1)]
        statements += [crewai_sql.save_long_term(backend, name, name, name, name)]
        statements += [crewai_sql.load_long_term(backend, name, 1)]
    return texts + [sql for sql, _ in statements]


@pytest.mark.parametrize("name", HOSTILE)
def test_name_or_value_of_a_caller_never_becomes_sql(database, name):
    assert texts_of(database, name) == texts_of(database, "harmless")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_sql_are_kept_and_found_as_they_are(database, name):
    with memory.open(database) as store:
        store.save([memory.Record(id="other", content="other", categories=("other",), metadata={"a": "other"})])
        record = memory.Record(id=name, content=name, scope=f"/{name}", categories=(name,), metadata={name: name})
        if "\0" in name:
            with pytest.raises(errors.DataError, match="no NUL"):
                store.save([record])
            return
        store.save([record])
        for query in (memory.Query(ids=(name,)), memory.Query(categories=(name,)), memory.Query(metadata={name: name})):
            assert [found.content for found in store.list(query)] == [name]
        found = store.get(name)
        assert found is not None
        assert (found.id, found.categories, found.metadata) == (name, (name,), {name: name})
        assert store.delete(memory.Query(scope=record.scope)) == 1
        assert store.count() == 1
