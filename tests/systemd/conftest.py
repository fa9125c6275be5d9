"""Fixtures of tier 2: a machine with the project in it, and what every test is checked for."""

import os
import time
from collections.abc import Collection, Generator, Iterator
from pathlib import Path

import pytest

from tests.systemd.checks import leaks, scan_secrets
from tests.systemd.install import install
from tests.systemd.namespace import SystemdHost

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where namespaces cannot be made."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("systemd")
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A booted machine with the project installed, for all tests of a file."""
    machine = SystemdHost()
    install(machine)
    with machine:
        yield machine


@pytest.fixture
def secrets() -> list[bytes]:
    """What the test planted: append to it, and no place but `secret_places` may show it."""
    return []


@pytest.fixture
def secret_places() -> Collection[str]:
    """Where secrets may lie, as prefixes of paths inside; a test file overrides it."""
    return ()


@pytest.fixture(autouse=True)
def nothing_left(
    request: pytest.FixtureRequest, secrets: list[bytes], secret_places: Collection[str]
) -> Iterator[None]:
    """Fail a test that leaves something behind or shows a secret."""
    yield
    found = []
    for machine in _machines(request.node):
        left = leaks(machine)
        found += left
        if secrets:
            found += scan_secrets(machine, secrets, secret_places)
        if left:
            machine.power_cut()  # The next test starts clean.
    assert not found, "\n".join(found)


def _machines(item: pytest.Item) -> list[SystemdHost]:
    given = getattr(item, "funcargs", {}).values()
    return [value for value in given if isinstance(value, SystemdHost) and value.running]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the journal says about a failed test to its report."""
    report = yield
    if report.failed:
        since = call.start - 0.01 if call.when == "call" else time.time() - 60
        for machine in _machines(item):
            report.sections.append((f"journal of {machine.name}", machine.journal(since=since)))
    return report
