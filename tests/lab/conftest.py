"""Fixtures of the lab: a new pair of machines per test class; journals of failed tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.errors import LabError
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.lab.machine import Machine

HERE = Path(__file__).parent
JOURNALS = HERE.parents[1] / "build/lab-journals"
TEST_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the machines; without an emulator they fail, they do not skip."""
    for item in items:
        if item.path.is_relative_to(HERE) and "pair" in getattr(item, "fixturenames", ()):
            item.add_marker("lab")
            if item.get_closest_marker("timeout") is None:
                # Without the fixture, which may have to build the snapshots.
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.fixture(scope="class")
def pair() -> Iterator[Pair]:
    """Two machines that run zfsilo; the tests of a class share them, other tests have their own.

    At the end it asserts that no secret appears anywhere on the machines.
    """
    with restore_pair(ready()) as restored:
        yield restored
        assert leak_check.secrets_shown(restored) == []


@pytest.fixture
def give(pair: Pair) -> Machine:
    """The server, with the pool `tank`."""
    return pair.give


@pytest.fixture
def take(pair: Pair) -> Machine:
    """The client of give."""
    return pair.take


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save journals and consoles when a test fails, and name their folder in the report."""
    report = yield
    fixture = getattr(item, "funcargs", {}).get("pair")
    if report.failed and isinstance(fixture, Pair):
        folder = JOURNALS / re.sub(r"[^\w.\[\]-]+", "_", item.nodeid)
        save_journals(fixture, folder)
        report.sections.append(("lab", f"journals and consoles of both machines: {folder}"))
    return report


def save_journals(pair: Pair, folder: Path) -> None:
    """Write journal, console and emulator log of both machines to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for machine in (pair.give, pair.take):
        try:
            journal = machine.journal()
        except LabError as error:
            journal = f"cannot read the journal: {error}\n"
        (folder / f"{machine.name}.journal").write_text(journal)
        for source in (machine.paths.console, machine.paths.log):
            if source.exists():
                (folder / f"{machine.name}.{source.name}").write_bytes(source.read_bytes())
