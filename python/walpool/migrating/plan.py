"""What a migration will do: tables, their columns and keys, and what becomes of the rest. Plain data, and its JSON.

Knows no database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from walpool.postgres.binary import Array, Form, Wire
from walpool.postgres.spelling import arrays
from walpool.postgres.spelling.spelling import Spelling
from walpool.types import Row

if TYPE_CHECKING:
    from walpool.migrating.sets import Backend, Part

__all__ = ["Barred", "Column", "Element", "Fault", "ForeignKey", "Index", "LongKeys", "Plan", "Table"]

FAULTS_KEPT = 1000
"""Rows that a plan lists; the others are counted."""


@dataclass(frozen=True, slots=True)
class Element:
    """What the elements of an array are.

    Attributes:
        form: how they go.
        limits: of their type.
        oid: the number of their type on the server.
    """

    form: Form
    limits: tuple[int | str, ...] = ()
    oid: int = 0


@dataclass(frozen=True, slots=True)
class Column:
    """One column that is copied.

    Attributes:
        name: on both sides.
        form: how its values go, and are hashed.
        postgres: its type in PostgreSQL, as SQL.
        sqlite: its declared type in SQLite.
        is_required: NOT NULL.
        default: SQL of the target, or None.
        is_counted: an INTEGER PRIMARY KEY, or an identity: the database gives the next number.
        sorts_alike: whether both sides have its values in one order.
        limits: of a type with some: how many characters, or bits; how many digits, and how many of them behind the
            point; how many digits behind the second; the labels of an enum.
        is_compared: whether both sides are to have one value in it.
        element: what the elements are of an array.
        domain: the domain of the target whose conditions its values have to meet; empty is none.
        behind: the type that the server compares its values as, where that is not the one in `postgres`.
    """

    name: str
    form: Form
    postgres: str
    sqlite: str
    is_required: bool = False
    default: str | None = None
    is_counted: bool = False
    sorts_alike: bool = True
    limits: tuple[int | str, ...] = ()
    is_compared: bool = True
    element: Element | None = None
    domain: str = ""
    behind: str = ""

    @property
    def spelling(self) -> Spelling:
        """What is known of its values."""
        element = self.element
        return self.form.spelling if element is None else arrays.of(element.form.spelling, element.limits)

    @property
    def wire(self) -> Wire:
        """What its values are encoded as."""
        return self.form if self.element is None else Array(self.element.form, self.element.oid)


_PLACE = Column("walpool_place", Form.BIGINT, "BIGINT", "INTEGER", is_required=True)


@dataclass(frozen=True, slots=True)
class Index:
    """An index that is made after the copy.

    Attributes:
        name: empty for one that the database names.
        columns: its columns; of one on expressions, those that stand in them.
        is_unique: whether it is.
        falling: which of its parts fall.
        parts: the SQL of its parts, if they are not just the columns.
        where: the condition of the rows that are in it, as SQL; empty is all.
    """

    name: str
    columns: tuple[str, ...]
    is_unique: bool = False
    falling: tuple[bool, ...] = ()
    parts: tuple[str, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key, added last.

    Attributes:
        is_deferred: looked at when a transaction ends, and not after each statement.
    """

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str = "NO ACTION"
    on_update: str = "NO ACTION"
    is_deferred: bool = False


@dataclass(frozen=True, slots=True)
class LongKeys:
    """Keys that an index of PostgreSQL's does not take: its columns, and the hashes of their values, rising."""

    columns: tuple[str, ...]
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Barred:
    """Values that a domain of PostgreSQL's does not take: of which column, and their hashes, rising."""

    column: str
    domain: str
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One table that is copied.

    Attributes:
        name: on both sides.
        columns: those that are copied.
        primary: the columns of its primary key in the target; none if it has none.
        key: the columns that tell its rows apart: the primary key, or a UNIQUE one without NULLs. None: it is copied
            whole.
        checks: conditions that each row of the target is to meet, as SQL.
        rows: about how many.
        row_bytes: about how long one is.
        notes: what becomes of what is not copied.
        exists: whether it is there in the target already.
        is_suspect: whether some of its values must be looked at one by one, wherever they are read.
        long: keys that are too long for an index; their rows are as bad as those with bad values.
        barred: values that a domain of the target refuses.
        on_odd: what happens to rows of a server with what a file cannot hold (a NaN, an array whose subscripts do not
            begin at 1), `skip` or `replace`; empty where there are none.
        owner: the set of walpool's own that it is a part of.
        part: how both sides have that part.
    """

    name: str
    columns: tuple[Column, ...]
    primary: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    indexes: tuple[Index, ...] = ()
    foreign: tuple[ForeignKey, ...] = ()
    checks: tuple[str, ...] = ()
    rows: int = 0
    row_bytes: int = 64
    notes: tuple[str, ...] = ()
    exists: bool = False
    is_suspect: bool = False
    long: tuple[LongKeys, ...] = ()
    barred: tuple[Barred, ...] = ()
    on_odd: str = ""
    owner: str = ""
    part: Part | None = None

    @property
    def wires(self) -> list[Wire]:
        """What the values of its columns are encoded as."""
        return [column.wire for column in self.columns]

    @property
    def key_columns(self) -> list[Column]:
        """The columns of its key."""
        by_name = {column.name: column for column in self.columns}
        return [by_name[name] for name in self.key]

    @property
    def is_grouped(self) -> bool:
        """Whether several rows have one key, and are one thing."""
        return self.part is not None and self.part.is_grouped

    @property
    def hashed_columns(self) -> list[Column]:
        """The columns that are compared; of rows that are one thing each has its place among them too."""
        return [column for column in self.columns if column.is_compared] + ([_PLACE] if self.is_grouped else [])

    @property
    def is_ordered(self) -> bool:
        """Whether both sides have its rows in one order, so that a range of keys is the same rows on both."""
        by_key = {self.order("sqlite"), self.order("postgres")} == {self.key} and not self.is_grouped
        return bool(self.key) and by_key and all(column.sorts_alike for column in self.key_columns)

    def order(self, backend: Backend) -> tuple[str, ...]:
        """Return the columns by which a backend's rows are read in pages; none for a table without a key."""
        return self.part.order(backend) if self.part is not None else self.key

    def ordering_columns(self, backend: Backend) -> list[Column]:
        """Return those columns."""
        by_name = {column.name: column for column in self.columns}
        return [by_name[name] for name in self.order(backend)]

    @property
    def page(self) -> int:
        """How many rows are read at once."""
        return max(1, min(20_000, (16 << 20) // max(self.row_bytes, 1)))

    @property
    def rowid(self) -> str:
        """What SQLite calls the number of a row here: the first of its three names that is no column's."""
        taken = {column.name.lower() for column in self.columns}
        return next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), "")

    def key_of(self, row: Row) -> Row:
        """Return the key of a row."""
        return self._values([row], self.key)[0]

    def keys_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the key of each row."""
        return self._values(rows, self.key)

    def place_of(self, row: Row, backend: Backend) -> Row:
        """Return after what the next page of a backend's rows begins, if this row was the last of one."""
        return self._values([row], self.order(backend))[0]

    def _values(self, rows: Sequence[Row], names: tuple[str, ...]) -> list[Row]:
        by_name = {column.name: place for place, column in enumerate(self.columns)}
        # By columns, in loops that run in C for the most part; and where there are none, a row has none.
        columns = [[row[by_name[name]] for row in rows] for name in names]
        return list(zip(*columns, strict=True)) if columns else [()] * len(rows)

    def others_of(self, row: Row) -> Row:
        """Return what a row has beside its key."""
        return tuple(value for column, value in zip(self.columns, row, strict=True) if column.name not in self.key)

    def only(self, names: set[str]) -> Table:
        """Return the table with these columns of it, and those by which it is read."""
        wanted = names | {*self.key, *self.order("sqlite"), *self.order("postgres")}
        return replace(self, columns=tuple(column for column in self.columns if column.name in wanted))


class Fault(NamedTuple):
    """A value that the target cannot take."""

    table: str
    column: str
    key: str
    """The key of its row, as JSON; of a table without a key the number of the row, in the order of reading."""
    why: str


@dataclass(slots=True)
class Plan:
    """All that a migration will do, found out without writing anything.

    Attributes:
        source, target: paths or URLs, without passwords.
        direction: `to_postgres` or `to_sqlite`.
        tables: what is copied.
        left_out: what is not, and why: pairs of a name and a sentence.
        notes: what else a person should know.
        faults: the first of the values that the target cannot take.
        faulty: how many there are.
        obstacles: why it cannot be done.
        moved: the sets that are moved as a whole, by what knows them.
        tenant: whose rows of walpool's own sets the server's are; None is the one without a name.
    """

    source: str
    target: str
    direction: str
    tables: list[Table] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    faulty: int = 0
    obstacles: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    tenant: str | None = None

    def found(self, fault: Fault) -> None:
        """Note a value that the target cannot take."""
        self.faulty += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(fault)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        document = asdict(replace(self, tables=[replace(table, part=None) for table in self.tables]))
        for table in document["tables"]:
            del table["part"]  # which is code
            for column in table["columns"]:
                for typed in filter(None, (column, column["element"])):
                    typed["form"] = typed["form"].name
        document["faults"] = [fault._asdict() for fault in self.faults]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Plan:
        """Return the plan that `as_dict` wrote down."""
        given = dict(document)
        given["tables"] = [_table(table) for table in given["tables"]]
        given["faults"] = [Fault(**fault) for fault in given["faults"]]
        given["left_out"] = [(name, why) for name, why in given["left_out"]]
        return cls(**given)


def _table(document: Mapping[str, Any]) -> Table:
    given = _tuples(document)
    given["columns"] = tuple(map(_column, given["columns"]))
    given["indexes"] = tuple(Index(**_tuples(index)) for index in given["indexes"])
    given["long"] = tuple(LongKeys(**_tuples(keys)) for keys in given["long"])
    given["barred"] = tuple(Barred(**_tuples(barred)) for barred in given["barred"])
    given["foreign"] = tuple(ForeignKey(**_tuples(foreign)) for foreign in given["foreign"])
    return Table(**given)


def _column(document: Mapping[str, Any]) -> Column:
    element = document["element"]
    return Column(**{**_typed(document), "element": None if element is None else Element(**_typed(element))})


def _typed(document: Mapping[str, Any]) -> dict[str, Any]:
    return {**_tuples(document), "form": Form[document["form"]]}


def _tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
