"""What systemd says of the units of operations, and what is made of it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from dbus_next import Message, MessageType

from zfsilod.systemd.launcher import SystemdLauncher

ULID = "01jzzzzzzzzzzzzzzzzzzzzzzz"


class Bus:
    """Answers every call with these units."""

    def __init__(self, units: list[list[Any]]) -> None:
        self.units = units

    async def call(self, _message: Message) -> Message:
        return Message(
            message_type=MessageType.METHOD_RETURN,
            reply_serial=1,
            signature="a(ssssssouso)",
            body=[self.units],
        )


@pytest.mark.parametrize(
    ("name", "state", "job", "live"),
    [
        (f"zfsilo-op-{ULID}.service", "activating", 7, True),
        (f"zfsilo-op-{ULID}.service", "deactivating", 0, True),
        (f"zfsilo-rollback@{ULID}.service", "activating", 7, True),
        (f"zfsilo-op-{ULID}.service", "inactive", 7, True),  # it was started a moment ago
        (f"zfsilo-op-{ULID}.service", "inactive", 0, False),
        (f"zfsilo-op-{ULID}.service", "failed", 0, False),
        ("zfsilo-op-other.service", "activating", 7, False),
    ],
)
async def test_what_is_live(name: str, state: str, job: int, live: bool) -> None:
    unit = [name, "", "loaded", state, "dead", "", "/unit", job, "start" if job else "", "/job"]
    launcher = SystemdLauncher(cast("Any", Bus([unit])), worker="", timeout_s=1)
    assert await launcher.running() == ({ULID} if live else set())
