"""Journal commands of the documentation: their fields are those of real lines."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import PAGES, ROOT
from zfsilod.model.records import Operation, journal_fields
from zfsilod.systemd.unit import properties

ULID = "01jzzzzzzzzzzzzzzzzzzzzzzz"
COMMANDS = sorted(
    {
        match
        for page in PAGES
        for match in re.findall(r"journalctl (ZFSILO_\w+=\w+)", page.read_text())
    }
)


@pytest.mark.parametrize("match", COMMANDS)
def test_a_match_selects_the_lines_of_an_operation(match: str) -> None:
    operation = Operation(
        id=ULID,
        kind="publish",
        subject="volumes/data",
        title="publish data",
        actions=(),
        claims=(),
        commit=(),
    )
    unit = properties(operation, worker="zfsilo-worker", timeout_s=300, sealed=False)
    fields = dict(unit)["LogExtraFields"].value
    assert match.replace("OPERATION=OPERATION", f"OPERATION={ULID}").encode() in fields


def test_the_daemon_writes_the_same_fields() -> None:
    assert COMMANDS == ["ZFSILO_OPERATION=OPERATION", "ZFSILO_VOLUME=data"]
    assert journal_fields("volumes/data")["ZFSILO_VOLUME"] == "data"
    rollback = (ROOT / "units/zfsilo-rollback@.service").read_text()
    assert "LogExtraFields=ZFSILO_OPERATION=%i\n" in rollback
