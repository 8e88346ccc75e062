"""The columns of a record in SQLite, in the order in which `_rows.record` takes them; no I/O."""

from __future__ import annotations

from typing import Final

__all__ = ["COLUMNS", "JOINED"]

COLUMNS: Final = """r.id, r.content, s.path, r.metadata, r.importance, r.created_at, r.accessed_at, r.source, r.private,
    v.embedding, r.categories"""
# CROSS: from what stands before it to the records, each by its key.
JOINED: Final = """CROSS JOIN memory_scopes AS s ON s.scope = r.scope LEFT JOIN memory_vectors AS v ON v.key = r.key"""
