"""Fixtures of all tests; a test that leaves a task behind fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

# Its plugin imports it at the end of each run, and that import warns: an error, after all tests.
import hypothesis  # noqa: F401
import pytest

from tests.service_fixture import ServiceFixture, service_fixture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[ServiceFixture]:
    """A service in this process, over a fake host."""
    async with service_fixture(tmp_path) as built:
        yield built
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"
