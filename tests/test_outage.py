"""Outages: how long I/O waits for a lost session, and filesystems that failed meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.test_detach import CONNECT, UP, ways
from zfsilod.model.identity import DAEMON
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage

if TYPE_CHECKING:
    from typing import Any

    from tests.service_fixture import ServiceFixture

BOOT = (*UP[:2], CONNECT.but(restore="BOOT"), *UP[3:])


def session(fixture: ServiceFixture) -> tuple[str, dict[str, Any]]:
    """Return the name of the only session in the facts, and the session."""
    ((name, fact),) = (
        (name, fact) for name, fact in fixture.host.facts.memory.items() if name[:8] == "session:"
    )
    return name, fact


def configure(fixture: ServiceFixture, lost_session_s: int) -> None:
    """Set client.lost_session_s, as a restart of the daemon does."""
    context = fixture.service.context
    context.settings = context.settings.but(lost_session_s=lost_session_s)


async def test_io_waits_as_long_as_the_configuration_says(fixture: ServiceFixture) -> None:
    configure(fixture, 600)
    await fixture.do(*BOOT)
    assert session(fixture)[1]["wait"] == 600
    configure(fixture, 0)
    report = await fixture.service.reconciler.sync_all(DAEMON)
    assert not report.complaints
    name, fact = session(fixture)
    assert "wait" not in fact, "the standing session keeps the former time"
    assert "wait" not in fixture.host.facts.memory[name.replace("session:", "node:")]
    await fixture.do(UnmountFrom(id="data"), Unstage(id="data"), Disconnect(id="data"))


async def test_a_disconnect_ends_the_waiting_before_the_logout(fixture: ServiceFixture) -> None:
    await fixture.do(*UP[:3])
    done = await fixture.do(Disconnect(id="data"))
    assert ways(done) == ["do DiskResponsive", "undo LossWait", "undo Session", "undo Node"]
