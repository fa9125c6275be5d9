"""Short runs of the reference model and of the concurrent load of tests/crash."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.crash import concurrent_load, reference_model
from tests.crash.simulated_machine import simulated_machine

if TYPE_CHECKING:
    from pathlib import Path

SEED = int(os.environ.get("ZFSILO_SEED", "20260101"))
SEQUENCES, STEPS = 200, 12
SECONDS = 5


def test_the_service_agrees_with_the_model() -> None:
    reference_model.check_against_model(SEQUENCES, STEPS, SEED)


async def test_many_clients_leave_records_equal_to_facts(tmp_path: Path) -> None:
    async with simulated_machine(tmp_path) as machine:
        tally, problems = await concurrent_load.run_clients(machine, SECONDS, SEED)
    assert problems == []
    assert set(tally) == {"done", "refused"}, tally
