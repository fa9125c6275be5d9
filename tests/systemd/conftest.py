"""Fixtures of tier 2: a machine with the project installed, and the checks after every test."""

import os
import time
from collections.abc import Collection, Generator, Iterator
from pathlib import Path

import pytest

from tests.systemd.install import install
from tests.systemd.leak_check import leaks, scan_secrets
from tests.systemd.namespace import SystemdHost

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them without root, which namespaces need."""
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
    """Secrets of the test: append to it, and only `secret_places` may contain them."""
    return []


@pytest.fixture
def secret_places() -> Collection[str]:
    """Places that may contain secrets, as prefixes of paths inside; a test file overrides it."""
    return ()


@pytest.fixture(autouse=True)
def nothing_left(
    request: pytest.FixtureRequest, secrets: list[bytes], secret_places: Collection[str]
) -> Iterator[None]:
    """Fail a test that leaves something behind or shows a secret."""
    yield
    problems = []
    for machine in _machines(request.node):
        left = leaks(machine)
        problems += left
        if secrets:
            problems += scan_secrets(machine, secrets, secret_places)
        if left:
            machine.power_cut()  # The next test starts clean.
    assert not problems, "\n".join(problems)


def _machines(item: pytest.Item) -> list[SystemdHost]:
    fixtures = getattr(item, "funcargs", {}).values()
    return [value for value in fixtures if isinstance(value, SystemdHost) and value.running]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the journal of a failed test to its report."""
    report = yield
    if report.failed:
        since = call.start - 0.01 if call.when == "call" else time.time() - 60
        for machine in _machines(item):
            report.sections.append((f"journal of {machine.name}", machine.journal(since=since)))
    return report
