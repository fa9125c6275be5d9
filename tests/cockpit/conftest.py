"""Fixtures of the tests of Cockpit's page: one machine and one browser for all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cockpit.machine import SESSIONS, cockpit_host, driver, inside_network
from tests.cockpit.page import WIDE, CockpitPage

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.systemd.namespace import SystemdHost

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them without root, which namespaces need."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("systemd")
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def sd() -> Iterator[SystemdHost]:
    """A machine with zfsilod over a simulated host, the client `take`, Cockpit and the page."""
    with cockpit_host() as machine:
        yield machine


@pytest.fixture(scope="session")
def browser(sd: SystemdHost) -> Iterator[CockpitPage]:
    """A browser inside the machine."""
    with driver(sd) as address, inside_network(sd):
        page = CockpitPage(address)
        try:
            yield page
        finally:
            page.close()


@pytest.fixture
def page(sd: SystemdHost, browser: CockpitPage) -> Iterator[CockpitPage]:
    """The browser with a wide window and the light theme, and new sessions of Cockpit."""
    browser.resize(*WIDE)
    yield browser
    browser.browser.get("about:blank")
    sd.run("systemctl", "stop", *(f"page-{name}.service" for name in SESSIONS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a picture of the page of a failed test, and add what the browser logged."""
    report = yield
    shown = getattr(item, "funcargs", {}).get("page")
    if report.failed and call.when == "call" and isinstance(shown, CockpitPage):
        path = shown.picture(f"failed-{item.name}")
        report.sections.append(("picture", str(path)))
    return report
