"""Memories in files that others can read: JSON Lines, and Parquet.

    walpool.interchange.export_memory("agents.db", "memories.jsonl.gz")
    walpool.interchange.import_memory("memories.jsonl.gz", "other.db")

A round trip gives every record back to the bit. docs/moving.md describes the files.
"""

from walpool.interchange._export import ExportReport, export_memory
from walpool.interchange._files import Format
from walpool.interchange._import import ImportReport, import_memory
from walpool.interchange._move import MemoryMover, move_memory

__all__ = ["ExportReport", "Format", "ImportReport", "MemoryMover", "export_memory", "import_memory", "move_memory"]

for _public in (ExportReport, ImportReport, MemoryMover, export_memory, import_memory, move_memory):
    _public.__module__ = "walpool.interchange"
