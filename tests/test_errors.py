"""The exception tree: its shape, its kinship with sqlite3's, its fields, and that it survives copy and pickle."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import sqlite3
from typing import get_args, get_type_hints

import pytest

from walpool import errors, types
from walpool.errors import Error

CLASSES = [getattr(errors, name) for name in errors.__all__]
PEP_249 = [
    "Error",
    "InterfaceError",
    "DatabaseError",
    "OperationalError",
    "ProgrammingError",
    "IntegrityError",
    "DataError",
    "NotSupportedError",
]


def parent_of(cls: type[Error]) -> str | None:
    parents = [base.__name__ for base in cls.__bases__ if base.__module__ == "walpool.errors"]
    assert len(parents) <= 1
    return parents[0] if parents else None


def drawn_tree() -> dict[str, tuple[str | None, bool]]:
    """Return what the module's docstring draws: for each class its parent, and whether it is marked retryable."""
    drawn: dict[str, tuple[str | None, bool]] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)( \*|    \..*)?", line)
        if match:
            depth = len(match[1]) // 4
            above[depth] = match[2]
            drawn[match[2]] = (above[depth - 1] if depth else None, match[3] == " *")
    return drawn


def test_docstring_draws_the_tree_of_the_classes() -> None:
    assert drawn_tree() == {cls.__name__: (parent_of(cls), cls.retryable) for cls in CLASSES}


def test_all_lists_every_class_of_the_module_and_nothing_else() -> None:
    defined = [name for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    assert sorted(errors.__all__) == sorted(defined)


@pytest.mark.parametrize("name", PEP_249)
def test_each_pep_249_class_is_also_the_sqlite3_class_of_its_name(name: str) -> None:
    assert issubclass(getattr(errors, name), getattr(sqlite3, name))


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_is_caught_as_the_sqlite3_class_of_its_nearest_pep_249_ancestor(cls: type[Error]) -> None:
    nearest = next(base.__name__ for base in cls.__mro__ if base.__name__ in PEP_249)
    with pytest.raises(getattr(sqlite3, nearest)):
        raise cls("refused")
    kin = {name for name in PEP_249 if issubclass(cls, getattr(sqlite3, name))}
    assert kin == {name for name in PEP_249 if issubclass(cls, getattr(errors, name))}


@pytest.mark.parametrize("cls", CLASSES)
def test_no_class_is_a_runtime_error(cls: type[Error]) -> None:
    # Frameworks take RuntimeError for an interpreter that is shutting down.
    assert not issubclass(cls, RuntimeError)


def test_only_a_wrong_setting_is_a_value_error() -> None:
    assert [cls.__name__ for cls in CLASSES if issubclass(cls, ValueError)] == ["ConfigError"]


def test_only_errors_that_waiting_may_cure_are_retryable() -> None:
    retryable = {cls.__name__ for cls in CLASSES if cls("").retryable}
    assert retryable == {"BusyError", "CheckoutTimeout", "WriteTimeout", "QueueFull"}


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_says_in_its_own_words_when_it_comes(cls: type[Error]) -> None:
    assert "__doc__" in vars(cls)
    assert len(str(cls.__doc__).split()) > 4


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_without_details_was_not_applied_and_has_no_sqlite_code(cls: type[Error]) -> None:
    error = cls("refused")
    assert (str(error), error.args) == ("refused", ("refused",))
    assert (error.outcome, error.sqlite_errorcode, error.sqlite_errorname) == ("not_applied", None, None)


def test_an_error_may_have_no_message() -> None:
    assert str(Error()) == ""


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_the_class_and_every_field(cls: type[Error], protocol: int) -> None:
    error = cls("x", outcome="unknown", sqlite_errorcode=2067, sqlite_errorname="SQLITE_CONSTRAINT_UNIQUE")
    assert_same(pickle.loads(pickle.dumps(error, protocol)), error)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_keeps_the_class_and_every_field(duplicate: object) -> None:
    error = errors.IntegrityError("x", outcome="applied", sqlite_errorcode=19, sqlite_errorname="SQLITE_CONSTRAINT")
    assert callable(duplicate)
    assert_same(duplicate(error), error)


def test_pickle_keeps_what_one_error_changed_about_itself() -> None:
    error = errors.Interrupted("x")
    error.retryable = True
    assert pickle.loads(pickle.dumps(error)).retryable


def assert_same(left: Error, right: Error) -> None:
    assert type(left) is type(right)
    assert left is not right
    assert (left.args, vars(left)) == (right.args, vars(right))


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_lives_in_walpool_errors(cls: type[Error]) -> None:
    assert cls.__module__ == "walpool.errors"


def test_errors_and_types_agree_on_the_outcomes() -> None:
    # Neighbours on the lowest floor do not import each other, so each writes the three words.
    assert get_args(get_type_hints(Error)["outcome"]) == get_args(types.Outcome)
