"""The SDK's own tests of sessions, and of runs that use them, with `WalpoolSession` in place of its SQLite sessions.

They are fetched with the source of the installed version when these tests run (`sdists`). What is left out reaches
inside SQLiteSession or AsyncSQLiteSession; everything else passes.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import sdists

PLUGIN = Path(__file__).parent / "upstream_plugin.py"

SYNC = "tests/memory/test_session.py"
ASYNC = "tests/extensions/memory/test_async_sqlite_session.py"

# Each file that has a test with one of the two classes, and the least number of its tests that pass.
FILES = {
    SYNC: 40,
    "tests/memory/test_session_limit.py": 15,
    "tests/memory/test_session_context_wrapper.py": 15,
    "tests/memory/test_session_persistence_sanitize.py": 25,
    "tests/memory/test_openai_responses_compaction_session.py": 50,
    ASYNC: 20,
    "tests/extensions/memory/test_encrypt_session.py": 20,
    "tests/sandbox/test_memory.py": 70,
    "tests/test_agent_runner.py": 200,
    "tests/test_agent_runner_streamed.py": 90,
    "tests/test_max_turns.py": 20,
    "tests/test_programmatic_tool_calling.py": 130,
    "tests/test_soft_cancel.py": 25,
}

CONNECTIONS = "looks at the connections that the session keeps (`_connections`, `_connection`); walpool's has none"
ITS_CONNECTION = "puts a connection of the test's own under the session, to fail or to wait there; walpool's uses none"
ITS_LOCK = "looks at the lock that SQLiteSession keeps for each file; walpool's has none"
OPENING = "replaces how AsyncSQLiteSession opens its connection"

DESELECTED = {
    f"{SYNC}::test_sqlite_session_close_closes_worker_thread_connections": CONNECTIONS,
    f"{SYNC}::test_sqlite_session_failed_clear_session_rolls_back": CONNECTIONS,
    f"{SYNC}::test_sqlite_session_failed_pop_item_releases_write_lock": CONNECTIONS,
    f"{SYNC}::test_sqlite_session_file_lock_is_shared_across_instances": ITS_LOCK,
    f"{SYNC}::test_sqlite_session_rollback_failure_evicts_connection": ITS_CONNECTION,
    f"{SYNC}::test_sqlite_session_close_retries_quarantined_connection": ITS_CONNECTION,
    f"{SYNC}::test_sqlite_session_post_commit_cancellation_propagates_after_known_outcome": ITS_CONNECTION,
    f"{ASYNC}::test_cancelled_close_finishes_cleanup_and_propagates_cancellation": ITS_CONNECTION,
    f"{ASYNC}::test_post_commit_cancellation_propagates_after_known_mutation_outcome": ITS_CONNECTION,
    f"{ASYNC}::test_failed_add_items_rolls_back_and_reuses_connection": CONNECTIONS,
    f"{ASYNC}::test_failed_clear_session_rolls_back": CONNECTIONS,
    f"{ASYNC}::test_failed_pop_item_releases_write_lock": CONNECTIONS,
    f"{ASYNC}::test_failed_initialization_closes_candidate_connection": OPENING,
    f"{ASYNC}::test_cancelled_add_items_rolls_back_write_transaction": ITS_CONNECTION,
    f"{ASYNC}::test_operation_failure_then_cancellation_during_rollback": ITS_CONNECTION,
    f"{ASYNC}::test_rollback_failure_closes_and_evicts_connection": ITS_CONNECTION,
    f"{ASYNC}::test_close_retries_connection_quarantined_after_rollback_failure": ITS_CONNECTION,
    f"{ASYNC}::test_close_retries_quarantined_failed_initialization_candidate": OPENING,
    f"{ASYNC}::test_cancelled_initialization_finishes_candidate_close": OPENING,
    f"{ASYNC}::test_initialization_failure_then_cancellation_during_candidate_close": OPENING,
    f"{ASYNC}::test_cancelled_connect_closes_eventually_acquired_connection": OPENING,
}

# Of FILES, those that are about sessions; the least number that pass on PostgreSQL.
ON_A_SERVER = {
    SYNC: 35,
    "tests/memory/test_session_limit.py": 15,
    "tests/memory/test_openai_responses_compaction_session.py": 50,
    ASYNC: 15,
    "tests/extensions/memory/test_encrypt_session.py": 20,
}

# Puts rows that are no JSON into the file, or asks it for its rows, by a connection of another library.
IN_A_FILE = [
    *(
        f"{SYNC}::test_sqlite_session_{name}"
        for name in (
            "pop_item_skips_corrupt_most_recent",
            "pop_item_returns_none_after_dropping_only_corrupt_rows",
            "get_items_limit_skips_corrupt_newest_rows",
            "get_items_session_settings_limit_skips_corrupt_rows",
            "failed_add_items_releases_write_lock",
        )
    ),
    *(
        f"{ASYNC}::test_async_sqlite_session_{name}"
        for name in (
            "pop_item_skips_corrupt_most_recent",
            "pop_item_returns_none_after_dropping_only_corrupt_rows",
            "get_items_limit_skips_corrupt_newest_rows",
            "get_items_same_timestamp_consistent_order",
            "pop_item_same_timestamp_returns_latest",
        )
    ),
]

# What a test that may be left out names: the inside of a session, or the library under AsyncSQLiteSession.
INSIDE = re.compile(
    r"\._(connections?|connections_lock|get_connection|lock|file_locks|closed|quarantined_connections)\b"
    r"|def _init_db_for_connection\b|\"_get_connection\"|aiosqlite, \"connect\""
)

pytestmark = [pytest.mark.upstream, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def source() -> Path:
    """Return the SDK's source with its tests, the version that is installed."""
    pytest.importorskip("aiosqlite")  # AsyncSQLiteSession's tests want it
    pytest.importorskip("cryptography")  # and those of EncryptedSession
    return sdists.source_of("openai-agents")


@pytest.fixture(scope="module")
def outcomes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """Run them all; return, for each file, how many tests passed, failed and were skipped."""
    report = tmp_path_factory.mktemp("report") / "junit.xml"
    return sdists.outcomes(source, PLUGIN, report, list(FILES), DESELECTED, "-o", "asyncio_mode=auto")


@pytest.mark.parametrize("file", FILES)
def test_sdks_own_tests_pass_on_walpool(outcomes: dict[str, Counter[str]], file: str) -> None:
    found = outcomes[file]
    assert found["failure"] == found["error"] == 0
    assert found["passed"] >= FILES[file]
    assert found["skipped"] <= (file == "tests/test_programmatic_tool_calling.py")  # one is skipped by the SDK itself


def test_what_is_left_out_is_still_there_and_reaches_inside_a_session(source: Path) -> None:
    reaching = set()
    for file in {name.partition("::")[0] for name in DESELECTED}:
        text = (source / file).read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                code = ast.get_source_segment(text, node) or ""
                reaching |= {f"{file}::{node.name}"} if INSIDE.search(code) else set()
    assert set(DESELECTED) <= reaching


@pytest.mark.postgres
def test_sdks_own_tests_of_sessions_pass_on_a_server(
    source: Path, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSIONS_IN", postgres_url)
    left_out = {**DESELECTED, **dict.fromkeys(IN_A_FILE, "looks into the file")}
    found = sdists.outcomes(
        source, PLUGIN, tmp_path / "junit.xml", list(ON_A_SERVER), left_out, "-o", "asyncio_mode=auto"
    )
    for file, passed in ON_A_SERVER.items():
        assert found[file]["failure"] == found[file]["error"] == found[file]["skipped"] == 0
        assert found[file]["passed"] >= passed
