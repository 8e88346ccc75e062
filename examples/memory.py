"""A notes assistant without a framework: it keeps sentences, and answers with those that go best with a question.

    python examples/memory.py                                            # a demonstration, in a file that is removed
    python examples/memory.py keep "The key hangs behind the door" --scope /home --tag key
    python examples/memory.py ask "where are the keys hanging?"          # by words and by nearness
    python examples/memory.py forget --scope /home --days 90
    walpool memory notes.db                                              # the same file, looked at

The notes lie in notes.db, or where --db says. The embedder hashes parts of words, so that it needs no model and no
network: replace `embed` by a real one, and the rest stays.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from pathlib import Path

from walpool import memory
from walpool.memory import Hits, MemoryStore, Query, Record

DIMS = 256
NOTES = (
    ("/home", "The spare key hangs behind the blue door", "key"),
    ("/home", "The heating runs from six to nine", "heating"),
    ("/home/garden", "Water the tomatoes every other evening", "plants"),
    ("/work", "Ann prefers short meetings, before noon", "people"),
    ("/work", "The invoice for March was paid twice", "money"),
)
QUESTIONS = ("where is the key?", "watering tomato plants", "a meeting with Ann")


def embed(text: str) -> bytes:
    """Return a toy embedding: texts that share parts of words are near each other."""
    numbers = [0.0] * DIMS
    for word in re.findall(r"\w+", text.lower()):
        padded = f" {word} "
        for at in range(len(padded) - 2):
            digest = blake2b(padded[at : at + 3].encode(), digest_size=4).digest()
            numbers[digest[0]] += 1.0 if digest[1] & 1 else -1.0
    return memory.pack(numbers)


def keep(store: MemoryStore, text: str, scope: str = "/", tags: Sequence[str] = ()) -> str:
    """Keep a note and return its id; the same text in the same scope is one note."""
    scope = memory.normalize_scope(scope)
    name = blake2b(f"{scope}\n{text}".encode(), digest_size=6).hexdigest()
    store.save([Record(id=name, content=text, scope=scope, categories=tuple(tags), embedding=embed(text))])
    return name


def ask(store: MemoryStore, question: str, scope: str = "/", limit: int = 3) -> Hits:
    """Return the notes that go best with a question, by their words and by their embeddings, and touch them."""
    hits = store.search(embed(question), Query(scope=scope), text=question, limit=limit)
    store.touch(hit.record.id for hit in hits)
    return hits


def forget(store: MemoryStore, scope: str, days: float) -> int:
    """Delete the notes that were neither made nor found for so many days; return how many there were."""
    return store.delete(Query(scope=scope, accessed_before=datetime.now(timezone.utc) - timedelta(days=days)))


def show(hits: Hits) -> None:
    for hit in hits:
        found = [name for name, rank in (("words", hit.why.words_rank), ("nearness", hit.why.vector_rank)) if rank]
        print(f"  {hit.score:.3f}  {hit.record.scope:<14} {hit.record.content}   ({' and '.join(found)})")
    if not hits:
        print("  nothing")


def demonstrate() -> None:
    with tempfile.TemporaryDirectory() as folder, memory.open(Path(folder) / "notes.db") as store:
        for scope, text, tag in NOTES:
            keep(store, text, scope, [tag])
        print(", ".join(f"{scope}: {number}" for scope, number in store.scopes().items()))
        for question in QUESTIONS:
            print(question)
            show(ask(store, question, limit=1))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Keep notes, and ask for them.")
    parser.add_argument("--db", default="notes.db")
    commands = parser.add_subparsers(dest="command")
    for name, takes_text in (("keep", True), ("ask", True), ("forget", False)):
        command = commands.add_parser(name)
        if takes_text:
            command.add_argument("text")
        command.add_argument("--scope", default="/")
    commands.choices["keep"].add_argument("--tag", action="append", default=[])
    commands.choices["forget"].add_argument("--days", type=float, required=True)
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        demonstrate()
        return 0
    with memory.open(arguments.db) as store:
        if arguments.command == "keep":
            print(keep(store, arguments.text, arguments.scope, arguments.tag))
        elif arguments.command == "ask":
            show(ask(store, arguments.text, arguments.scope))
        else:
            print(f"{forget(store, arguments.scope, arguments.days)} forgotten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
