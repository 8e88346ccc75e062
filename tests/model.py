"""What a small database should hold: statements, and what SQLite's documentation says that each does, in plain Python.

No database here. A job is all or nothing. A statement that fails inside a transaction undoes itself, but for `OR FAIL`
and `RAISE(FAIL)`, which keep the rows before, and `OR ROLLBACK` and `RAISE(ROLLBACK)`, which end the transaction.
https://www.sqlite.org/lang_conflict.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations

SCHEMA = """
    CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, size INTEGER CHECK (size > 0));
    CREATE TABLE child (id INTEGER PRIMARY KEY, word INTEGER REFERENCES word DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER poison AFTER INSERT ON word BEGIN
        SELECT RAISE(ABORT, 'poison') WHERE NEW.text = 'raise abort';
        SELECT RAISE(FAIL, 'poison') WHERE NEW.text = 'raise fail';
        SELECT RAISE(ROLLBACK, 'poison') WHERE NEW.text = 'raise rollback';
    END;
"""
WORDS = "SELECT id, text, size FROM word ORDER BY id"
CHILDREN = "SELECT id, word FROM child ORDER BY id"

Value = str | int | None
Told = tuple[int, int | None, list[tuple[Value, ...]]]  # rowcount, lastrowid, rows


class Refused(Exception):
    """The statement fails, with an exception of this name.

    Args:
        kind: the name of walpool's exception.
        keeps: what it wrote before it failed stays.
        ends: the transaction is rolled back as a whole.
    """

    def __init__(self, kind: str = "IntegrityError", *, keeps: bool = False, ends: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.keeps = keeps
        self.ends = ends


@dataclass
class State:
    """The rows of both tables, by id."""

    words: dict[int, tuple[str, int]] = field(default_factory=dict)
    children: dict[int, int] = field(default_factory=dict)

    def copy(self) -> State:
        return State(dict(self.words), dict(self.children))

    def take(self, other: State) -> None:
        self.words, self.children = other.words, other.children

    def rows(self) -> tuple[list[tuple[int, str, int]], list[tuple[int, int]]]:
        """Return what WORDS and CHILDREN give."""
        words = [(each, *self.words[each]) for each in sorted(self.words)]
        return words, sorted(self.children.items())

    def id_of(self, text: Value) -> int | None:
        return next((each for each, (known, _) in self.words.items() if known == text), None)

    def has_orphans(self) -> bool:
        return not set(self.children.values()) <= set(self.words)


@dataclass(frozen=True)
class Statement:
    """One statement, and what it does to a state: it changes it, and tells what walpool should tell, or is refused."""

    sql: str
    params: tuple[Value, ...]
    apply: Callable[[State], Told]

    def literal(self) -> str:
        """Return the statement with its values in it, for a script."""
        first, *rest = self.sql.split("?")
        return first + "".join(_quoted(value) + after for value, after in zip(self.params, rest, strict=True))

    def __repr__(self) -> str:
        return f"«{self.literal()}»"


def _quoted(value: Value) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


# Statements


def insert(rows: Sequence[tuple[Value, int]], policy: str = "ABORT", *, returning: bool = False) -> Statement:
    """Insert words; the policy says what comes of one that is taken, missing, or too small."""
    values = ", ".join(["(?, ?)"] * len(rows))
    sql = f"INSERT OR {policy} INTO word (text, size) VALUES {values}" + " RETURNING id, text" * returning

    def apply(state: State) -> Told:
        made = [each for row in rows if (each := _insert_one(state, *row, policy)) is not None]
        told: list[tuple[Value, ...]] = [(each, text) for each, text in made] if returning else []
        return len(made), made[-1][0] if made else None, told

    return Statement(sql, tuple(value for row in rows for value in row), apply)


def _insert_one(state: State, text: Value, size: int, policy: str) -> tuple[int, str] | None:
    taken = state.id_of(text)
    if not isinstance(text, str) or size <= 0 or (taken is not None and policy != "REPLACE"):
        if policy == "IGNORE":
            return None
        raise Refused(keeps=policy == "FAIL", ends=policy == "ROLLBACK")
    new = max(state.words, default=0) + 1
    if taken is not None:
        del state.words[taken]
    if text.startswith("raise"):
        # A policy of the statement stands above `RAISE`'s only where a constraint fails.
        state.words[new] = (text, size)
        raise Refused(keeps=text == "raise fail", ends=text == "raise rollback")
    state.words[new] = (text, size)
    return new, text


def put(text: str, size: int) -> Statement:
    """Insert a word, or set the size of the one that is there."""

    def apply(state: State) -> Told:
        known = state.id_of(text)
        if size <= 0:
            raise Refused
        if known is None:
            made = _insert_one(state, text, size, "ABORT")
            return 1, made and made[0], []
        state.words[known] = (text, size)
        return 1, None, []

    sql = "INSERT INTO word (text, size) VALUES (?, ?) ON CONFLICT (text) DO UPDATE SET size = excluded.size"
    return Statement(sql, (text, size), apply)


def grow(least: str, by: int) -> Statement:
    """Add to the size of many words; none may become too small."""

    def apply(state: State) -> Told:
        grown = {each: (text, size + by) for each, (text, size) in state.words.items() if text >= least}
        if any(size <= 0 for _, size in grown.values()):
            raise Refused
        state.words |= grown
        return len(grown), None, [(each, size) for each, (_, size) in sorted(grown.items())]

    return Statement("UPDATE word SET size = size + ? WHERE text >= ? RETURNING id, size", (by, least), apply)


def rename(old: str, new: str) -> Statement:
    def apply(state: State) -> Told:
        known = state.id_of(old)
        if known is None:
            return 0, None, []
        if state.id_of(new) not in (None, known):
            raise Refused
        state.words[known] = (new, state.words[known][1])
        return 1, None, []

    return Statement("UPDATE word SET text = ? WHERE text = ?", (new, old), apply)


def delete(text: str) -> Statement:
    """Delete a word; its children stay, and must have gone, or have a new one, when the job ends."""

    def apply(state: State) -> Told:
        known = state.id_of(text)
        return (0 if state.words.pop(known or 0, None) is None else 1), None, []

    return Statement("DELETE FROM word WHERE text = ?", (text,), apply)


def adopt(word: int) -> Statement:
    """Insert a child of a word, which may be missing until the job ends."""

    def apply(state: State) -> Told:
        new = max(state.children, default=0) + 1
        state.children[new] = word
        return 1, new, []

    return Statement("INSERT INTO child (word) VALUES (?)", (word,), apply)


def leave(word: int) -> Statement:
    """Delete the children of a word."""

    def apply(state: State) -> Told:
        gone = [each for each, parent in state.children.items() if parent == word]
        for each in gone:
            del state.children[each]
        return len(gone), None, []

    return Statement("DELETE FROM child WHERE word = ?", (word,), apply)


def nonsense(sql: str) -> Statement:
    """What is refused before it runs."""

    def apply(_: State) -> Told:
        raise Refused("ProgrammingError")

    return Statement(sql, (), apply)


# Jobs


def run_job(state: State, statements: Sequence[Statement]) -> list[Told]:
    """Run the statements as one job: all of them, with what each tells, or none.

    Raises:
        Refused: it failed; the state is as it was.
    """
    after = state.copy()
    told = [statement.apply(after) for statement in statements]
    if after.has_orphans():
        raise Refused
    state.take(after)
    return told


def run_in_transaction(state: State, statement: Statement) -> Told:
    """Run one statement of a transaction.

    Raises:
        Refused: it failed; the state is as it was, but for the rows that `FAIL` keeps.
    """
    after = state.copy()
    try:
        told = statement.apply(after)
    except Refused as refusal:
        if refusal.keeps:
            state.take(after)
        raise
    state.take(after)
    return told


def run_many_in_transaction(state: State, statements: Sequence[Statement]) -> None:
    """Run the rows of an `executemany` in a transaction: all of them, or none."""
    after = state.copy()
    for statement in statements:
        statement.apply(after)
    state.take(after)


def endings(state: State, jobs: Sequence[Sequence[Statement]], answers: Mapping[int, object]) -> Iterator[State]:
    """Yield what may be left of jobs that ran at once until the process was killed.

    They ran in some order, up to some point; those that were answered (by index, with what `outcome_of` gives) had run.
    """
    for order in permutations(range(len(jobs))):
        after, unseen = state.copy(), set(answers)
        for index in (None, *order):
            if index is not None:
                outcome = outcome_of(partial(run_job, after, jobs[index]))
                if answers.get(index, outcome) != outcome:
                    break
                unseen.discard(index)
            if not unseen:
                yield after.copy()


def outcome_of(run: Callable[[], object]) -> object:
    """Return what running gives, or the name of the exception with which it is refused."""
    try:
        return run()
    except Refused as refusal:
        return refusal.kind
