"""Rights: operations of others, and rights that change between the first read and the plan."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from tests.test_repair import BrokenHost, live_operation
from zfsilod.model.errors import Busy, CommandFailed, NotFound, PermissionDenied
from zfsilod.model.identity import DAEMON, Caller
from zfsilod.model.records import Attachment, Operation, Publication
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Clear, Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume, UpdateVolume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.service_fixture import ServiceFixture
    from zfsilod.model.identity import Role
    from zfsilod.requests.request import Request

GIB = 1 << 30
NAME = "csi-data"
MADE = CreateVolume(id=NAME, capacity_bytes=GIB, hosts=("take",))
PUBLISH = Publish(volume=NAME, host="take")
CONNECT = Connect(id=NAME, server="give", volume=NAME)


def as_(role: Role, subject: str = "x") -> Caller:
    return Caller(role=role, subject=subject, origin="test", local=role == "node")


NODE, CONTROLLER, TAKE = as_("node", "uid 0"), as_("controller", "csi"), as_("host", "take")
ROOT = administrator("uid 0 (unix)")


def test_ranks() -> None:
    overriding = {
        (caller.rights, other.rights)
        for caller in (DAEMON, ROOT, CONTROLLER, TAKE, as_("host", "b"), NODE, as_("reader"))
        for other in (ROOT, CONTROLLER, TAKE, as_("host", "b"), NODE)
        if caller.overrides(other.rights)
    }
    assert overriding == {
        *(("admin", right) for right in ("admin", "controller", "host take", "host b", "node")),
        *(("controller", right) for right in ("controller", "host take", "host b")),
        ("host take", "host take"),
        ("host b", "host b"),
        ("node", "node"),
    }
    for caller in (CONTROLLER, TAKE, NODE):
        assert not caller.overrides(""), (
            "an operation of a former version may be an administrator's"
        )
    assert ROOT.overrides("")


def state(fixture: ServiceFixture, operation: Operation) -> str:
    return fixture.service.operation(operation.id).state


@pytest.mark.parametrize(
    "request_", [Disconnect(id=NAME, force=True), Unstage(id=NAME), UnmountFrom(id=NAME)], ids=str
)
async def test_a_node_does_not_cancel_the_connect_of_root(
    fixture: ServiceFixture, request_: Request[Any]
) -> None:
    await fixture.do(MADE)
    await fixture.do(PUBLISH, caller=CONTROLLER)
    fixture.launcher.gate.clear()
    running = await fixture.service.submit(CONNECT, caller=ROOT)
    with pytest.raises(Busy, match=running.id):
        await fixture.service.submit(request_, caller=NODE, deadline_s=0.1)
    assert state(fixture, running) == "RUNNING"
    fixture.launcher.gate.set()
    assert (await fixture.service.wait(running.id, 20)).state == "DONE"
    with pytest.raises(PermissionDenied):
        await fixture.do(request_, caller=NODE)


async def test_a_node_does_not_join_the_connect_of_root(fixture: ServiceFixture) -> None:
    await fixture.do(MADE)
    await fixture.do(PUBLISH, caller=CONTROLLER)
    fixture.launcher.gate.clear()
    running = await fixture.service.submit(CONNECT, caller=ROOT)
    joining = asyncio.create_task(fixture.service.submit(CONNECT, caller=NODE))
    assert (await fixture.service.submit(CONNECT, caller=ROOT)).id == running.id
    fixture.launcher.gate.set()
    with pytest.raises(PermissionDenied, match="administrator"):
        await joining


async def test_root_cancels_the_connect_of_a_node_and_a_node_its_own(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(MADE)
    await fixture.do(PUBLISH, caller=CONTROLLER)
    for caller in (ROOT, NODE):
        gate, fixture.launcher.gate = fixture.launcher.gate, asyncio.Event()
        running = await fixture.service.submit(CONNECT, caller=NODE)
        await fixture.do(Disconnect(id=NAME), caller=caller)
        assert state(fixture, running) == "ROLLED_BACK"
        fixture.launcher.gate = gate


async def test_nobody_repairs_or_abandons_the_operation_of_root(fixture: ServiceFixture) -> None:
    await fixture.do(MADE)
    await fixture.do(PUBLISH, caller=CONTROLLER)
    broken = BrokenHost(fixture)
    broken.after, broken.kinds = 2, {"session": 1, "node": 99}
    with pytest.raises(CommandFailed):
        await fixture.do(CONNECT)
    await asyncio.gather(*fixture.launcher.tasks.values())
    owner = live_operation(fixture)
    broken.kinds = {}
    with pytest.raises(Busy, match=owner.id):
        await fixture.do(Disconnect(id=NAME, force=True), caller=NODE)
    assert state(fixture, owner) == "NEEDS_REPAIR"
    await fixture.do(Disconnect(id=NAME, force=True))
    assert state(fixture, owner) == "ROLLED_BACK"


async def test_a_host_does_not_repair_the_publish_of_another(fixture: ServiceFixture) -> None:
    await fixture.do(MADE.but(hosts=("*",)))
    broken = BrokenHost(fixture)
    broken.after, broken.kinds = 8, {"acl": 1, "target": 1}
    with pytest.raises(CommandFailed):
        await fixture.do(PUBLISH, caller=TAKE)
    await asyncio.gather(*fixture.launcher.tasks.values())
    owner = live_operation(fixture)
    broken.kinds = {}
    with pytest.raises(Busy, match=owner.id):
        await fixture.do(Unpublish(volume=NAME, host="b"), caller=as_("host", "b"))
    assert state(fixture, owner) == "NEEDS_REPAIR"
    await fixture.do(Unpublish(volume=NAME, host="take"), caller=CONTROLLER)
    assert state(fixture, owner) == "ROLLED_BACK"


def pause_gather(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Request[Any]],
    meanwhile: Callable[[], Awaitable[Any]],
) -> None:
    """Do something once between the first read of a request and its transaction."""
    gather, done = kind.gather, asyncio.Event()

    async def paused(self: Any, context: Any, operation_id: str) -> Any:
        inputs = await gather(self, context, operation_id)
        if not done.is_set():
            done.set()
            await meanwhile()
        return inputs

    monkeypatch.setattr(kind, "gather", paused)


async def test_a_host_that_root_removes_meanwhile_does_not_publish(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(MADE)
    remove = UpdateVolume(id=NAME, mask=("hosts",), hosts=())
    pause_gather(monkeypatch, Publish, lambda: fixture.do(remove))
    with pytest.raises((PermissionDenied, NotFound)):
        await fixture.do(PUBLISH, caller=TAKE)
    with fixture.service.context.read() as txn:
        assert not list(txn.scan(Publication))


async def test_an_attachment_that_root_makes_meanwhile_is_not_the_nodes(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(MADE)
    await fixture.do(PUBLISH, caller=CONTROLLER)
    pause_gather(monkeypatch, Connect, lambda: fixture.do(CONNECT.but(restore="BOOT")))
    with pytest.raises(PermissionDenied):
        await fixture.do(CONNECT, caller=NODE)
    await fixture.do(Disconnect(id=NAME))
    monkeypatch.undo()
    pause_gather(monkeypatch, Disconnect, lambda: fixture.do(CONNECT))
    with pytest.raises(PermissionDenied):
        await fixture.do(Disconnect(id=NAME, force=True), caller=NODE)
    with fixture.service.context.read() as txn:
        assert txn.get(Attachment, NAME) is not None


async def test_a_node_clears_no_session_of_others(fixture: ServiceFixture) -> None:
    await fixture.do(MADE)
    await fixture.do(PUBLISH, caller=CONTROLLER)
    await fixture.do(CONNECT)
    with fixture.service.context.read() as txn:
        attachment = txn.get(Attachment, NAME)
    assert attachment is not None
    for request in (
        Clear(id="data", disk=attachment.disk, paths=()),
        Clear(id=NAME, disk=attachment.disk, paths=("/srv/data",)),
    ):
        with pytest.raises(PermissionDenied):
            await fixture.do(request, caller=NODE)


async def test_a_publication_of_schema_2_says_who_made_it() -> None:
    for text, by_controller in (
        ("controller csi (token 1, 10.0.0.1)", True),
        ("uid 0 (unix)", False),
        ("host controller (certificate 1, 10.0.0.1)", False),
        ("admin controller (certificate 1, 10.0.0.1)", False),
    ):
        publication = Publication(
            id="data/take", volume="data", host="take", initiator="iqn", published_by=text
        )
        assert publication.by_controller == by_controller
