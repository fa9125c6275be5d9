"""AttachVolume and DetachVolume: a whole path in one operation, as its single requests leave it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.test_detach import CONNECT, CREATE, FENCE, PUBLISH, UP, attachment, kinds, ways
from tests.test_repair import BrokenHost
from zfsilod.model.errors import Busy, CommandFailed, FailedPrecondition, InvalidArgument
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.whole_paths import AttachVolume, DetachVolume

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture

ATTACH = AttachVolume(id="data", server="give", volume="data", path="/srv/data")
DETACH = DetachVolume(id="data")


def host_facts(fixture: ServiceFixture) -> dict[str, object]:
    """Return the facts but for ids that differ from run to run."""
    return {name: value for name, value in fixture.facts.items() if not name.startswith("content")}


async def test_up_and_down(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    before = host_facts(fixture)
    up = await fixture.do(ATTACH)
    assert (up.kind, up.subject) == ("attach", "volumes/data")
    assert up.title == "attach data of give: mounted at /srv/data"
    record = attachment(fixture)
    assert record is not None
    assert (record.state, record.filesystem.state) == ("MOUNTED", "READY")
    assert [mount.path for mount in record.mounts] == ["/srv/data"]
    down = await fixture.do(DETACH)
    assert down.kind == "detach"
    assert attachment(fixture) is None
    after = host_facts(fixture)
    assert set(after) == set(before)
    assert not kinds(fixture) & {"session", "node", "mount", "point"}


async def test_the_whole_path_has_the_actions_of_its_parts(fixture: ServiceFixture) -> None:
    parts = [await fixture.do(request) for request in UP][2:]
    down = [
        await fixture.do(request)
        for request in (UnmountFrom(id="data"), Unstage(id="data"), Disconnect(id="data"))
    ]
    up = await fixture.do(ATTACH)
    # The filesystem exists by now: no report, and no mkfs.
    reports = {"do Reported"}
    assert [way for way in ways(up) if way not in reports] == [
        way for part in parts for way in ways(part) if way not in reports
    ]
    assert ways(await fixture.do(DETACH)) == [way for part in down for way in ways(part)]


@pytest.mark.parametrize(
    "done", [UP[2:3], UP[2:4], UP[2:5]], ids=["connected", "staged", "mounted"]
)
async def test_what_is_so_already_stays(fixture: ServiceFixture, done: tuple[object, ...]) -> None:
    await fixture.do(CREATE, PUBLISH, *done)  # type: ignore[arg-type]
    before = attachment(fixture)
    await fixture.do(ATTACH)
    record = attachment(fixture)
    assert before is not None
    assert record is not None
    assert record.state == "MOUNTED"
    assert record.secret == before.secret
    again = await fixture.do(ATTACH)
    assert again.title.endswith(": already so")
    await fixture.do(ATTACH.but(state="CONNECTED", path=""))
    assert attachment(fixture) == record


@pytest.mark.parametrize("state", ["STAGED", "CONNECTED"])
async def test_states_between(fixture: ServiceFixture, state: str) -> None:
    await fixture.do(CREATE, PUBLISH, ATTACH.but(state=state, path=""))
    record = attachment(fixture)
    assert record is not None
    assert (record.state, record.mounts) == (state, ())
    await fixture.do(ATTACH, DETACH.but(state=state))
    record = attachment(fixture)
    assert record is not None
    assert (record.state, record.mounts) == (state, ())


async def test_one_failure_takes_the_whole_path_back(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    BrokenHost(fixture).kinds = {"mount": 1}
    with pytest.raises(CommandFailed, match="mount cannot be changed now"):
        await fixture.do(ATTACH)
    await asyncio.gather(*fixture.launcher.tasks.values())
    assert attachment(fixture) is None
    assert not kinds(fixture) & {"session", "node"}


async def test_a_busy_volume_stays_attached(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, ATTACH)
    before, record = host_facts(fixture), attachment(fixture)
    assert record is not None
    user = {"of": record.disk.serial, "kind": "process"}
    fixture.host.facts.effect("user:dd (1)", user)
    with pytest.raises(Busy):
        await fixture.do(DETACH)
    await asyncio.gather(*fixture.launcher.tasks.values())
    fixture.host.facts.effect("user:dd (1)", None)
    assert host_facts(fixture) == before
    with pytest.raises(FailedPrecondition, match="is mounted at /srv/data: unmount it first"):
        await fixture.do(DETACH.but(unmounted=True))
    with pytest.raises(FailedPrecondition, match="is staged at"):
        await fixture.do(DETACH.but(path="/elsewhere"))


@pytest.mark.parametrize("force", [True, False])
async def test_a_lost_session_goes_first(fixture: ServiceFixture, *, force: bool) -> None:
    await fixture.do(CREATE, PUBLISH, ATTACH, FENCE)
    done = await fixture.do(DETACH.but(force=force))
    assert ways(done)[:2] == ["do UsersNamed", "do SessionDropped"]
    assert attachment(fixture) is None
    assert not kinds(fixture) & {"session", "node", "mount", "point"}


async def test_it_publishes_and_releases(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, ATTACH.but(publish_if_needed=True))
    assert "acl" in kinds(fixture)
    await fixture.do(DETACH)
    record = attachment(fixture)
    assert record is None


@pytest.mark.parametrize(
    "request_", [ATTACH.but(path=""), ATTACH.but(state="ABSENT"), DETACH.but(state="MOUNTED")]
)
async def test_what_makes_no_sense_is_refused(
    fixture: ServiceFixture, request_: AttachVolume | DetachVolume
) -> None:
    await fixture.do(CREATE, PUBLISH)
    with pytest.raises(InvalidArgument):
        await fixture.do(request_)


async def test_another_filesystem_or_path_is_refused(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/a"))
    with pytest.raises(FailedPrecondition, match="with other parameters: unstage it first"):
        await fixture.do(ATTACH.but(fs_type="xfs"))
    await fixture.do(ATTACH)
    record = attachment(fixture)
    assert record is not None
    assert [mount.path for mount in record.mounts] == ["/srv/a", "/srv/data"]
