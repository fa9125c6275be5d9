"""The launcher: which units of operations are live, by the list of units that systemd returns."""

from __future__ import annotations

from typing import Any, cast

import pytest
from dbus_next import Message, MessageType

from tests.examples import HOW, PUBLICATION, VOLUME
from zfsilod.engine import plans
from zfsilod.engine.plans import server
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.records import Operation
from zfsilod.systemd.launcher import SystemdLauncher
from zfsilod.systemd.unit import properties

ULID = "01jzzzzzzzzzzzzzzzzzzzzzzz"


class Bus:
    """Answers every call with these units."""

    def __init__(self, units: list[list[Any]]) -> None:
        self.units = units
        self.sent: list[Message] = []

    async def call(self, message: Message) -> Message:
        self.sent.append(message)
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


@pytest.mark.parametrize("debug", [False, True])
async def test_a_worker_is_debugged_by_its_environment(debug: bool) -> None:
    bus = Bus([])
    launcher = SystemdLauncher(cast("Any", bus), worker="/worker", timeout_s=60, debug=debug)
    operation = Operation(
        id=ULID,
        kind="create",
        subject="volumes/data",
        title="create data",
        actions=(),
        claims=(),
        commit=(),
    )
    await launcher.start(operation)
    (message,) = bus.sent
    properties = {name: variant.value for name, variant in message.body[2]}
    assert properties.get("Environment") == (["ZFSILO_DEBUG=1"] if debug else None)


@pytest.mark.parametrize("sealed", [False, True])
def test_only_operations_with_secrets_get_the_key_that_systemd_keeps(sealed: bool) -> None:
    """systemd logs a line about a credential that is not configured, for each unit."""
    exporting = server.export_steps(VOLUME, HOW)
    granting = server.grant(VOLUME, PUBLICATION, HOW, ())
    for steps, secret in ((exporting, False), ([*exporting, *granting], True)):
        operation = Operation(
            id=ULID,
            kind="publish",
            subject="volumes/data",
            title="publish data",
            actions=plans.up(steps),
            claims=(),
            commit=(),
        )
        for others in ((), (operation.but(actions=plans.up([*exporting, *granting])),)):
            unit = dict(
                properties(operation, *others, worker="/worker", timeout_s=60, sealed=sealed)
            )
            opens = secret or bool(others)
            assert ("LoadCredentialEncrypted" in unit) == (sealed and opens)


@pytest.mark.parametrize("word", ["1-e3\0", "1" * (128 << 10), "\ud800"])
async def test_a_text_that_would_end_the_connection_is_never_sent(word: str) -> None:
    bus = Bus([])
    launcher = SystemdLauncher(cast("Any", bus), worker="/worker", timeout_s=60)
    with pytest.raises(InvalidArgument):
        await launcher.start_sender(ULID, ("tank/data", word), "replicate data")
    with pytest.raises(InvalidArgument):
        await launcher.start_reader(ULID, ("tank/data",), word)
    assert bus.sent == []
    await launcher.start_sender(ULID, ("tank/data", "1" * 4096), "replicate d\u00e4t\u00e4")
    assert len(bus.sent) == 1
