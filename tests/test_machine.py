"""The service against a reference model, and under many clients at once: tests/crash has more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.crash import crowd, ladder
from tests.crash.life import machine

if TYPE_CHECKING:
    from pathlib import Path

SEED = int(os.environ.get("ZFSILO_SEED", "20260101"))
SEQUENCES, STEPS = 200, 12
SECONDS = 5


def test_the_service_holds_against_the_model() -> None:
    ladder.hold(SEQUENCES, STEPS, SEED)


async def test_many_clients_leave_records_equal_to_facts(tmp_path: Path) -> None:
    async with machine(tmp_path) as built:
        tally, wrong = await crowd.crowd(built, SECONDS, SEED)
    assert wrong == []
    assert set(tally) == {"done", "refused"}, tally
