"""What every memory store promises about conditions and hostile text; subclassed like `contract.StoreContract`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.contract import NOON, SUPPRESSED, ids, record
from walpool.errors import DataError
from walpool.memory import (
    Contains,
    Equals,
    Exists,
    In,
    MemoryStore,
    PythonEquals,
    Query,
    Range,
    pack,
)

LONG: Final = "a" * 600
VALUES: Final[dict[str, Any]] = {
    "int": 1,
    "float": 1.0,
    "half": 1.5,
    "zero": 0,
    "minus zero": -0.0,
    "true": True,
    "false": False,
    "null": None,
    "text": "1",
    "empty": "",
    "word": "one",
    "é": "é",
    "emoji": "\U0001f600",
    "NUL": "a\0b",
    "a": "a",
    "quoted": '"$.a" \\ \' OR 1=1',
    "big": 2**53 + 1,
    "bigger": 2**63 - 1,
    "huge": 10**30,
    "tiny": 5e-324,
    "long": LONG,
    "longer": LONG + "b",
    "long é": "é" * 400,
    "list": [1, "2", None],
    "same list": [1.0, "2", None],
    "nested": [[1], {"k": [True]}],
    "empty list": [],
    "long list": [LONG],
    "object": {"a": 1, "b": {"c": [0.5]}},
    "same object": {"b": {"c": [0.5]}, "a": 1.0},
    "empty object": {},
    "keys": {'"': 1, "é": 2},
    "infinite": math.inf,
}
HOSTILE: Final = (
    "' OR 1=1 --",
    "'; DROP TABLE memory_records; --",
    "$.a",
    '"',
    "\\",
    "%",
    "_",
    "*",
    "..",
    "../..",
    ".",
    "~",
    "null",
    "0",
    "-1",
    "é",
    "e\u0301",
    "\U0001f600",
    "\u202e",
    "\ufeff",
    "\uffff",
    "a\nb",
    "\t",
    " ",
    "x" * 5_000,
    "[]",
    "{}",
    "?1",
    ":a",
    "@a",
    "NaN",
)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal as JSON is: by type, but a number is a number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or float(a) == float(b) == math.inf
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def meets(metadata: Mapping[str, Any], name: str, wanted: Any) -> bool:
    """Return what a condition says of a record, by its documentation."""
    value, there = metadata.get(name), name in metadata
    if isinstance(wanted, Exists):
        return there == wanted.wanted
    if isinstance(wanted, PythonEquals):
        return bool(value == wanted.value)
    if isinstance(wanted, In):
        return there and any(same(value, one) for one in wanted.values)
    if isinstance(wanted, Contains):
        return isinstance(value, list) and any(same(one, wanted.element) for one in value)
    if isinstance(wanted, Range):
        bounds = [wanted.at_least, wanted.above, wanted.at_most, wanted.below]
        kind = str if any(isinstance(bound, str) for bound in bounds) else (int, float)
        if not there or isinstance(value, bool) or not isinstance(value, kind):
            return False
        low, above, high, below = bounds
        return (
            (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
            and (below is None or value < below)
        )
    return there and same(value, wanted.value if isinstance(wanted, Equals) else wanted)


class ConditionsContract:
    """Conditions on metadata and the other fields of a record, and texts that are code elsewhere."""

    keeps_nul = True
    """Whether a content may hold a NUL."""

    @pytest.fixture
    def filled(self, store: MemoryStore) -> MemoryStore:
        store.save(
            [*(record(name, [1.0], metadata={"k": value}) for name, value in VALUES.items()), record("lacking", [1.0])]
        )
        return store

    @pytest.mark.parametrize("name", VALUES)
    def test_value_is_found_by_type_and_value(self, filled: MemoryStore, name: str) -> None:
        wanted = VALUES[name]
        for condition in (
            wanted,
            Equals(wanted),
            In([wanted]),
            In([wanted, "none has this", 77]),
            PythonEquals(wanted),
        ):
            expected = {other for other, value in VALUES.items() if meets({"k": value}, "k", condition)}
            if isinstance(condition, PythonEquals) and wanted is None:
                expected.add("lacking")
            assert set(ids(filled.list(Query(metadata={"k": condition})))) == expected, condition
            assert filled.count(Query(metadata={"k": condition})) == len(expected)

    @pytest.mark.parametrize(
        "condition",
        [
            Exists(),
            Exists(False),
            In([]),
            In([1, "1", None, [1, "2", None]]),
            In([True, False]),
            Contains(1),
            Contains("2"),
            Contains(None),
            Contains([1]),
            Contains({"k": [True]}),
            Contains(LONG),
            Contains(True),
            Range(at_least=1),
            Range(above=1),
            Range(at_most=1, above=0),
            Range(below=0),
            Range(at_least=2**53 + 1, below=2**53 + 2),
            Range(at_least=10**29),
            Range(below=10**400),
            Range(at_least=""),
            Range(at_least="a", below="b"),
            Range(above=LONG),
            Range(at_most=LONG),
            Range(above=LONG, at_most=LONG + "c"),
            Range(at_least="é"),
            Range(below="\U0001f600"),
            Equals(math.nan),
            Equals((1, "2", None)),
            PythonEquals(math.nan),
            PythonEquals((1, "2", None)),
            PythonEquals(10**400),
        ],
        ids=repr,
    )
    def test_condition_means_what_its_documentation_says(self, filled: MemoryStore, condition: Any) -> None:
        expected = {name for name, value in VALUES.items() if meets({"k": value}, "k", condition)}
        if meets({}, "k", condition):
            expected.add("lacking")
        query = Query(metadata={"k": condition})
        assert set(ids(filled.list(query))) == expected
        assert set(ids(filled.search(pack([1.0]), query, limit=100))) == expected
        assert set(ids(filled.iterate(query))) == expected

    def test_condition_on_another_key_is_met_by_none(self, filled: MemoryStore) -> None:
        for name in ("K", "k ", "$.k", "", "k' OR '1'='1"):
            assert filled.count(Query(metadata={name: Exists()})) == 0
            assert filled.count(Query(metadata={name: Exists(False)})) == len(VALUES) + 1

    @pytest.mark.bounced
    def test_all_conditions_are_met(self, store: MemoryStore) -> None:
        store.save([record(f"{n}{text}", metadata={"n": n, "text": text}) for n in range(3) for text in "xy"])
        assert set(ids(store.list(Query(metadata={"n": Range(at_least=1), "text": "x"})))) == {"1x", "2x"}
        assert store.count(Query(metadata={"n": 1, "text": PythonEquals("y")})) == 1
        assert store.count(Query(metadata={"n": 1, "text": Exists(False)})) == 0

    @pytest.mark.bounced
    def test_index_of_metadata_follows_every_change(self, store: MemoryStore) -> None:
        store.save([record("a", metadata={"k": [1, 2], "l": "x"})])
        store.save([record("a", metadata={"k": [2, 3]})])
        assert [store.count(Query(metadata={"k": Contains(n)})) for n in (1, 2, 3)] == [0, 1, 1]
        assert store.count(Query(metadata={"l": Exists()})) == 0
        store.update("a", metadata={"m": LONG})
        assert [store.count(Query(metadata={name: Exists()})) for name in "klm"] == [0, 0, 1]
        assert store.count(Query(metadata={"m": LONG + "x"})) == 0
        store.delete(Query(ids=("a",)))
        assert store.count(Query(metadata={"m": Exists()})) == 0
        assert store.check() == []

    @pytest.mark.parametrize("bad", [{"k": {1, 2}}, {"k": NOON}])
    def test_condition_that_json_cannot_hold_is_refused(self, store: MemoryStore, bad: Any) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            store.list(Query(metadata=bad))

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            (Query(source="s"), {"a", "b"}),
            (Query(source="S"), set()),
            (Query(private=True), {"b"}),
            (Query(private=False), {"a", "c"}),
            (Query(created_after=NOON), {"b", "c"}),
            (Query(created_before=NOON + timedelta(days=1)), {"a", "b"}),
            (Query(created_after=NOON, created_before=NOON + timedelta(days=1)), {"b"}),
            (Query(accessed_before=NOON), {"c"}),
            (Query(importance_at_least=0.5), {"b", "c"}),
            (Query(importance_below=0.5), {"a"}),
            (Query(source="s", private=True, scope="/x", importance_at_least=0.1), {"b"}),
        ],
    )
    def test_field_is_a_condition(self, store: MemoryStore, query: Query, expected: set[str]) -> None:
        day = timedelta(days=1)
        store.save(
            [
                record("a", [1.0], source="s", created_at=NOON - day, accessed_at=NOON, importance=0.2),
                record(
                    "b",
                    [1.0],
                    source="s",
                    created_at=NOON,
                    accessed_at=NOON,
                    importance=0.5,
                    private=True,
                    scope="/x/y",
                ),
                record("c", created_at=NOON + day, accessed_at=NOON - day, importance=0.9),
            ]
        )
        assert set(ids(store.list(query))) == set(ids(store.iterate(query))) == expected
        assert set(ids(store.search(pack([1.0]), query))) == expected
        assert store.count(query) == len(expected)
        assert store.delete(query) == len(expected)

    # Hostile text

    @pytest.mark.parametrize("text", HOSTILE, ids=ascii)
    def test_text_is_never_code(self, store: MemoryStore, text: str) -> None:
        given_record = record(
            text,
            [1.0],
            scope=f"/{text}",
            categories=(text,),
            metadata={text: text, "list": [text]},
            source=text,
            created_at=NOON,
        )
        other = record(
            "other", [1.0], scope="/other", categories=("other",), metadata={"other": "other"}, source="other"
        )
        store.save([given_record, other])
        assert store.get(text) == given_record
        for query in (
            Query(ids=(text,)),
            Query(categories=(text,)),
            Query(source=text),
            Query(scope=given_record.scope),
            Query(metadata={text: text}),
            Query(metadata={text: PythonEquals(text)}),
            Query(metadata={text: Exists()}),
            Query(metadata={"list": Contains(text)}),
        ):
            assert ids(store.list(query)) == [text], query
            assert ids(store.search(pack([1.0]), query)) == [text], query
        assert store.categories() == dict(sorted({text: 1, "other": 1}.items()))
        assert given_record.scope in store.scopes(deep=True)
        assert store.summary(given_record.scope).count == 1
        assert store.touch([text], NOON) == 1
        assert store.update(text, content=text)
        assert store.check() == []
        assert store.delete(Query(scope=given_record.scope)) == 1
        assert ids(store.list()) == ["other"]

    @pytest.mark.parametrize("field", ["id", "scope", "categories", "source", "metadata", "key", "element"])
    @pytest.mark.parametrize("text", ["a\ud800", "\udc00", "a\0b"], ids=ascii)
    def test_text_that_is_none_is_refused_and_nothing_is_saved(self, store: MemoryStore, field: str, text: str) -> None:
        changes: dict[str, Any] = {
            "categories": {"categories": ("x", text)},
            "metadata": {"metadata": {"k": text}},
            "key": {"metadata": {text: 1}},
            "element": {"metadata": {"k": [{"l": text}]}},
        }.get(field, {field: text})
        bad = replace(record("bad"), **changes)
        if field in ("metadata", "element") and "\0" in text:
            store.save([bad])  # a NUL is a character there
            assert store.get("bad") == bad
            return
        with pytest.raises(DataError):
            store.save([record("good"), bad])
        assert (store.count(), store.scopes(), store.check()) == (0, {}, [])
        store.save([record("bad")])
        if field != "id":
            with pytest.raises(DataError):
                store.update("bad", **changes)
            assert store.list(limit=1)[0].metadata == {}
        assert store.check() == []

    def test_content_may_hold_a_nul_and_no_lone_surrogate(self, store: MemoryStore) -> None:
        nul = replace(record("nul"), content="a\0b")
        if self.keeps_nul:
            store.save([nul])
            assert store.get("nul") == nul
        else:
            with pytest.raises(DataError):
                store.save([record("good"), nul])
        kept = store.count()
        with pytest.raises(DataError):
            store.save([replace(record("bad"), content="a\ud800")])
        assert store.count() == kept == int(self.keeps_nul)

    @pytest.mark.parametrize(
        "query",
        [
            Query(ids=("a\ud800",)),
            Query(scope="/a\ud800"),
            Query(source="a\ud800"),
            Query(categories=("b", "a\ud800")),
            Query(metadata={"a\ud800": 1}),
            Query(metadata={"a\ud800": Exists(False)}),
            Query(metadata={"a\ud800": PythonEquals(1)}),
        ],
        ids=ascii,
    )
    def test_name_with_a_lone_surrogate_is_a_data_error_in_a_query_too(self, store: MemoryStore, query: Query) -> None:
        store.save([record("a")])
        with pytest.raises(DataError):
            store.count(query)

    def test_metadata_that_is_too_deep_is_refused(self, store: MemoryStore) -> None:
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(DataError, match="too deep"):
            store.save([record("a", metadata={"k": deep})])
        assert store.count() == 0

    @settings(max_examples=60, deadline=None, suppress_health_check=SUPPRESSED)
    @given(data=st.data())
    def test_conditions_agree_with_python_on_any_json(self, store: MemoryStore, data: st.DataObject) -> None:
        text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4) | st.sampled_from(
            ["a", LONG, LONG + "b"]
        )
        number = (
            st.integers(-(2**63), 2**63 - 1)
            | st.sampled_from([0, 1, -1])
            | st.floats(allow_nan=False, allow_infinity=False)
        )
        leaf = st.none() | st.booleans() | number | text
        value = st.recursive(
            leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
        )
        name = st.sampled_from(["k", "l"])
        kept = data.draw(st.lists(st.dictionaries(name, value), max_size=5))
        pool = [None, 1, "a", *(found for metadata in kept for found in metadata.values())]
        pool += [element for found in pool if isinstance(found, list) for element in found]
        wanted = st.sampled_from(pool) | value
        condition = data.draw(
            st.one_of(
                wanted.map(Equals),
                wanted.map(Contains),
                wanted.map(PythonEquals),
                st.booleans().map(Exists),
                st.lists(wanted, max_size=3).map(In),
                st.builds(Range, at_least=number, below=st.none() | number),
                st.builds(Range, above=text, at_most=st.none() | text),
            )
        )
        key = data.draw(name)
        store.reset()
        store.save([record(str(n), metadata=metadata) for n, metadata in enumerate(kept)])
        expected = {
            str(n) for n, metadata in enumerate(kept) if meets(json.loads(json.dumps(metadata)), key, condition)
        }
        assert set(ids(store.list(Query(metadata={key: condition})))) == expected
        assert store.check() == []
