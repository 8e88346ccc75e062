"""After the restart: a process that knows only the storage folder recalls what crews and flows had stored there.

    python -m demo.recall RESULT

Prints one line of JSON: for each flow asked for, the state that it goes on from, and what the crew's memory says of it.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from demo.sides import WALPOOL
from demo.worker import keep_standard_output_for_messages

ASKED = 3  # flows that are resumed; spread over the run


def main() -> None:
    """Resume some flows and ask the memory what they were about; print what came back, and what is wrong with it."""
    messages = keep_standard_output_for_messages()
    reports = json.loads(Path(sys.argv[1]).read_text())["reports"]
    WALPOOL.install()
    workload = import_module("demo.workload")  # not before: its flow class takes its store when it is decorated
    asked = reports[:: max(1, len(reports) // ASKED)][:ASKED]
    recalled = [_recall(workload, report) for report in asked]
    messages.write(json.dumps({"recalled": recalled, "ok": all(item["ok"] for item in recalled)}) + "\n")
    messages.flush()


def _recall(workload: Any, before: dict[str, Any]) -> dict[str, Any]:
    state = workload.resume(before["id"])
    question = before["text"].split(" is ")[0]
    matches = workload.memory().recall(question, limit=1, depth="shallow")
    memory = matches[0].record.content if matches else ""
    return {
        "flow": before["id"],
        "topic": state.topic,
        "text": state.text,
        "times_filed": state.times_filed,
        "question": question,
        "memory": memory,
        "score": matches[0].score if matches else 0.0,
        "ok": (
            (state.topic, state.text, state.times_filed) == (before["topic"], before["text"], before["times_filed"] + 1)
            and memory != ""
            and memory in before["text"]
        ),
    }


if __name__ == "__main__":
    main()
