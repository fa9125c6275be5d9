"""Short runs of the fuzz tests; `make fuzz` is the long run."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import bus, messages
from tests.fuzz.parsers import PARSERS, try_parser

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES, CALLS, EXAMPLES, SEED = 1500, 400, 60, 1


async def test_mutated_messages(tmp_path: Path) -> None:
    outcome = await messages.fuzz(tmp_path, MESSAGES, SEED)
    assert outcome.failures == []
    assert outcome.codes.total() == MESSAGES


@pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")
async def test_hostile_calls(tmp_path: Path) -> None:
    outcome = await bus.fuzz(tmp_path, CALLS, SEED)
    assert outcome.failures == []
    assert outcome.errors.total() == CALLS


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_parsers(name: str, data: Any) -> None:
    try_parser(name, data.draw(PARSERS[name][0]))
