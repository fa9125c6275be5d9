"""Records: the tag under which a class is stored, and class definitions that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import golden
from tests.golden import records_in
from zfsilod.engine import steps  # noqa: F401 - its classes have tags too
from zfsilod.model.record import CLASSES, Record, Stored, from_plain, to_plain
from zfsilod.model.records import Step

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def scratch() -> Iterator[None]:
    """Forget the classes that a test has made."""
    known = dict(CLASSES)
    yield
    CLASSES.clear()
    CLASSES.update(known)


def stored_tags() -> set[str]:
    """Return every tag in the golden stores."""
    return {
        value["is"]
        for path in golden.PATHS
        for record in golden.plain_records(path)
        for value in records_in(record)
    }


def test_every_tag_that_was_ever_stored_has_a_class() -> None:
    assert stored_tags() <= set(CLASSES)


def test_every_stored_class_and_step_has_a_tag() -> None:
    waiting: list[type[Record]] = [Stored, Step]
    without = set()
    while waiting:
        kinds = [k for k in waiting.pop().__subclasses__() if k.__module__.startswith("zfsilod")]
        waiting += kinds
        without |= {kind.__name__ for kind in kinds if not kind.TAG and "probe" in vars(kind)}
        without |= {kind.__name__ for kind in kinds if not kind.TAG and issubclass(kind, Stored)}
    assert without == {"HostStep", "RunOutcome", "TimedPolicy"}


def test_a_renamed_class_keeps_its_stored_form() -> None:
    class Before(Stored, tag="TestRenamed"):
        id: str

    stored = to_plain(Before(id="a"))
    del CLASSES["TestRenamed"]

    class After(Stored, tag="TestRenamed"):
        id: str

    assert to_plain(After(id="a")) == stored
    assert from_plain(stored) == After(id="a")
    assert After.bucket() == "testrenamed"


def test_an_alias_is_read_and_the_tag_is_written() -> None:
    class Renamed(Record, tag="TestNew", aliases=("TestOld",)):
        name: str

    assert from_plain({"is": "TestOld", "name": "a"}) == Renamed(name="a")
    assert to_plain(Renamed(name="a")) == {"is": "TestNew", "name": "a"}


@pytest.mark.parametrize(("tag", "aliases"), [("Volume", ()), ("TestTag", ("Volume",))])
def test_a_tag_is_not_used_twice(tag: str, aliases: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match="Second has the tag"):
        type("Second", (Record,), {}, tag=tag, aliases=aliases)


def test_aliases_need_a_tag() -> None:
    with pytest.raises(TypeError, match="Second has aliases but no tag"):
        type("Second", (Record,), {}, aliases=("TestOld",))


def test_a_tag_is_not_inherited() -> None:
    class First(Stored, tag="TestFirst"):
        id: str

    class Second(First):
        pass

    with pytest.raises(TypeError, match="Second has no tag"):
        to_plain(Second(id="a"))
    with pytest.raises(TypeError, match="Second has no tag"):
        Second.bucket()


def test_a_record_without_a_tag_is_not_stored_in_another() -> None:
    class Inner(Record):
        name: str

    class Outer(Record, tag="TestOuter"):
        inner: tuple[Inner, ...]

    with pytest.raises(TypeError, match="Inner has no tag and cannot be stored: add tag="):
        to_plain(Outer(inner=(Inner(name="a"),)))
