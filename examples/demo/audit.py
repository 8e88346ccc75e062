"""Counting, in a process of its own and without walpool, which acknowledged rows a side's databases do not have.

    python -m demo.audit SIDE STORAGE RESULT

Reads with Python's own sqlite3 and with LanceDB, from the files as the side left them. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from demo.sides import SIDES


def main() -> None:
    """Print what was acknowledged and what of it is lost, for each surface."""
    name, storage, result = sys.argv[1:]
    acknowledged = json.loads(Path(result).read_text())["acknowledged"]
    files = SIDES[name].files(Path(storage))
    counts = {
        "memory": _compare(acknowledged["memories"], _memories(files.memory)),
        "flow": _compare(map(tuple, acknowledged["states"]), _rows(files.flow, _STATES)),
        "kickoff": _compare(_outputs_that_stay(acknowledged), (task for (task,) in _rows(files.kickoff, _OUTPUTS))),
    }
    # The stock table holds one run's outputs, and each kickoff begins by emptying it, whosever outputs they are.
    counts["kickoff"]["reset"] = len(acknowledged["outputs"]) - counts["kickoff"]["acknowledged"]
    sys.stdout.write(json.dumps(counts) + "\n")


_STATES = "SELECT flow_uuid, method_name FROM flow_states"
_OUTPUTS = "SELECT task_id FROM latest_kickoff_task_outputs"


def _compare(acknowledged: Iterable[Any], found: Iterable[Any]) -> dict[str, int]:
    expected, there = Counter(acknowledged), Counter(found)
    return {"acknowledged": expected.total(), "lost": (expected - there).total(), "rows": there.total()}


def _outputs_that_stay(acknowledged: dict[str, Any]) -> list[str]:
    """Return the tasks whose outputs were handed over after the last reset of the table had ended."""
    return [task for task, begun in acknowledged["outputs"] if begun > acknowledged["last_reset"]]


def _memories(path: Path) -> list[str]:
    if path.is_dir():
        import lancedb

        table = lancedb.connect(str(path)).open_table("memories")
        return [str(record_id) for record_id in table.to_arrow().column("id").to_pylist()]
    return [record_id for (record_id,) in _rows(path, "SELECT id FROM memory_records")]


def _rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


if __name__ == "__main__":
    main()
