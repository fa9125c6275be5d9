"""Fixtures of all tests; a test that leaves a task behind fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.doubles import House, house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def zfsilo(tmp_path: Path) -> AsyncIterator[House]:
    """A service in this process, over a fake host."""
    async with house(tmp_path) as built:
        yield built
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"
