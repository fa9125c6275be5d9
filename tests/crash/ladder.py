"""A reference model of the ladder, and a hypothesis machine that holds the service against it.

The model knows states, sizes and mounts, and nothing of steps, marks or claims. After each rule
records and facts must be what it says: whatever was killed, restarted, rebooted or taken away.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args
from unittest import mock

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.crash import cases
from tests.crash.life import Machine
from tests.crash.saw import Cut, How, SandboxPart, When
from tests.doubles import SETTINGS
from tests.examples import TAKE
from zfsilod.host.fake import VOLATILE
from zfsilod.model.records import Attachment, Publication, Volume
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import UpdateVolume
from zfsilod.service.prerequisites import CLIMBS

if TYPE_CHECKING:
    from tests.crash.report import Report, Size
    from zfsilod.requests.request import Request

GIB = cases.GIB
NAMES = ("a", "b")
DESCENTS = ("unmount", "unstage", "disconnect")
PATHS = ("/srv/one", "/srv/two")
PHASES = (Phase.generate,)
STEPS = 30
SEQUENCES = {"short": 200, "full": 2000, "long": 10_000}


class Known(NamedTuple):
    """What the model knows of a volume: how high it stands on either side."""

    served: int = 0  # 0 absent, 1 created, 2 published
    size: int = 0
    used: int = 0  # 0 absent, 1 connected, 2 staged
    seen: int = 0  # the size that the consumer knows
    mounts: frozenset[str] = frozenset()


class Draw(NamedTuple):
    """Something that a caller asks for."""

    request: str
    path: str = ""

    def of(self, name: str, size: int) -> Request:
        """Return the real request; `size`: to which an update grows."""
        path = f"{self.path}-{name}"
        match self.request:
            case "create":
                return cases.CREATE.but(id=name)
            case "update":
                return UpdateVolume(id=name, mask=("capacity_bytes",), capacity_bytes=size)
            case "publish":
                return cases.PUBLISH.but(volume=name)
            case "connect":
                return cases.CONNECT.but(id=name, volume=name)
            case "stage":
                return Stage(id=name)
            case "mount":
                return MountAt(id=name, path=path)
            case "grow":
                return Grow(id=name)
            case "unmount":
                return UnmountFrom(id=name, path=path)
            case "unstage":
                return Unstage(id=name)
            case "disconnect":
                return Disconnect(id=name)
            case "unpublish":
                return Unpublish(volume=name)
            case "delete":
                return DeleteVolume(id=name)
        return SyncVolume(id=name)

    def told(self, name: str, now: Known, size: int) -> Known | None:
        """Return what is so afterwards; None: it is refused."""
        path = f"{self.path}-{name}"
        match self.request:
            case "create" if now.served == 0:
                return now._replace(served=1, size=GIB)
            case "create" if now.size == GIB:
                return now
            case "update" if now.served and size >= now.size:
                return now._replace(size=size)
            case "publish" if now.served:
                return now._replace(served=2)
            case "connect" if now.served == 2:
                return now if now.used else now._replace(used=1, seen=now.size)
            case "stage" if now.used == 1:
                return now._replace(used=2, seen=now.size)
            case "stage" if now.used == 2:
                return now
            case "mount" if now.used == 2:
                return now._replace(mounts=now.mounts | {path})
            case "grow" if now.used:
                return now._replace(seen=now.size)
            case "unmount":
                return now._replace(mounts=now.mounts - {path})
            case "unstage" if now.used < 2:
                return now
            case "unstage" if not now.mounts:
                return now._replace(used=1)
            case "disconnect" if now.used < 2:
                return now._replace(used=0, seen=0)
            case "unpublish" if now.served and not now.used:
                return now._replace(served=1)
            case "delete" if now.served == 1:
                return Known()
            case "sync" if now.served:
                return now
        return None


requests = st.builds(
    Draw,
    st.sampled_from(
        (
            *("create", "publish", "connect", "stage", "mount", "grow", "update", "sync"),
            *("unmount", "unstage", "disconnect", "unpublish", "delete"),
        )
    ),
    st.sampled_from(PATHS),
)
cuts = st.builds(
    Cut,
    st.sampled_from(get_args(SandboxPart)),
    st.integers(1, 24),
    st.sampled_from(get_args(When)),
    st.sampled_from(get_args(How)),
)
names = st.sampled_from(NAMES)


class Ladder(RuleBasedStateMachine):
    """The service and the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.model = {name: Known() for name in NAMES}
        self.machine = self.runner.run(self._build())

    async def _build(self) -> Machine:
        built = Machine(Path(self.folder.name), SETTINGS)
        await built.house.do(cases.HOST)
        return built

    def teardown(self) -> None:
        """End it without a trace."""
        self.runner.run(self.machine.bury())
        self.machine.store.close()
        self.runner.close()
        self.folder.cleanup()

    # What happens

    @rule(name=names, request=requests)
    def ask(self, name: str, request: Draw) -> None:
        """A request is carried out, or refused, as the model says."""
        told = request.told(name, self.model[name], self.larger(name))
        done = self._ask(name, request)
        assert done == (told is not None), f"{request}: {self.machine.refusal}"
        self.model[name] = told or self.model[name]
        self.check()

    @rule(name=names, request=requests, first=cuts, second=cuts)
    def crash(self, name: str, request: Draw, first: Cut, second: Cut) -> None:
        """A request is cut, and maybe its rollback: it is done, or nothing is changed."""
        told = request.told(name, self.model[name], self.larger(name))
        second = second._replace(place="rollback")
        done = self._ask(name, request, first, *(() if first.how == "reboot" else (second,)))
        if done and told is not None:
            self.model[name] = told
        if any(cut.how == "reboot" for cut in self.machine.saw.made):
            self._sync_all()
        self.check()

    @rule(name=names, first=requests, second=requests)
    def both(self, name: str, first: Draw, second: Draw) -> None:
        """Two requests at once: the end is that of one after the other, in either order."""
        now = self.model[name]
        size = self.larger(name)
        ends = set()
        for order in permutations((first, second)):
            end = now
            for each in order:
                end = each.told(name, end, size) or end
            ends.add(end)
        for climb, descent in permutations((first, second)):
            if climb.request in CLIMBS and descent.request in DESCENTS:  # which cancels the climb
                ends.add(descent.told(name, now, size) or now)
        self.machine.saw.set()
        self.runner.run(self._at_once(first.of(name, size), second.of(name, size)))
        if {first.request, second.request} == {"connect", "unpublish"}:
            self._let_go_of_lost(name)
        self.model[name] = self.known(name)
        assert self.model[name] in ends, f"{first} and {second} of {now}: {self.model[name]}"
        self.check()

    def _let_go_of_lost(self, name: str) -> None:
        """Let go of a session that was begun when nobody was seen any more, and admitted still.

        It ended with its admission, as that of a host that is fenced.
        """
        known = self.known(name)
        if known.used and known.served < 2:
            assert self._ask(name, Draw("disconnect")), self.machine.refusal

    @rule()
    def restart(self) -> None:
        """The daemon is killed at rest, and started again."""
        self.runner.run(self._restart())
        self.check()

    @rule()
    def reboot(self) -> None:
        """The machine loses what a kernel forgets; the daemon compares all volumes at boot."""
        self.machine.reboot()
        self.runner.run(self._restart())
        self._sync_all()
        self.check()

    @rule(kind=st.sampled_from(VOLATILE))
    def drift(self, kind: str) -> None:
        """Somebody else takes something away; a comparison of all volumes puts it back."""
        memory = self.machine.host.facts.memory
        for fact in [each for each in memory if each.startswith(f"{kind}:")]:
            del memory[fact]
        self._sync_all()
        self.check()

    def larger(self, name: str) -> int:
        """Return the size to which an update grows a volume now."""
        return self.model[name].size + GIB

    def _ask(self, name: str, draw: Draw, *made: Cut) -> bool:
        """Carry a request out; tell whether it came to its end."""
        older = {op.id for op in self.machine.operations()}
        request = draw.of(name, self.larger(name))
        self.machine.saw.set(*made)
        self.runner.run(
            self.machine.carry_out(lambda house: house.service.submit(request, caller="x"))
        )
        new = [op for op in self.machine.operations() if op.id not in older]
        return any(op.kind == request.kind and op.state == "DONE" for op in new)

    async def _at_once(self, *asked: Request) -> None:
        self.machine.request(lambda house: house.do(asked[0]))
        self.machine.request(lambda house: house.do(asked[1]))
        await self.machine.settle()

    async def _restart(self) -> None:
        await self.machine.bury()
        self.machine.born()
        await self.machine.supervisor.recover()

    def _sync_all(self) -> None:
        self.machine.saw.set()
        self.runner.run(self.machine.carry_out(lambda house: house.service.sync_all(caller="boot")))

    # What must be so

    def check(self) -> None:
        """Records are what the model says, facts are what both say, and nothing is under way."""
        assert {name: self.known(name) for name in NAMES} == self.model
        facts = self.machine.host.facts.snapshot()
        assert {name for name in facts if not name.startswith("content:")} == self.expected()
        assert not self.machine.live()
        assert not [key for key in self.machine.state() if key.startswith(("claim", "live"))]

    def known(self, name: str) -> Known:
        """Return what the records say."""
        with self.machine.store.read() as txn:
            volume, used = txn.get(Volume, name), txn.get(Attachment, name)
            published = txn.get(Publication, f"{name}/take")
        return Known(
            served=0 if volume is None else 1 if published is None else 2,
            size=volume.capacity_bytes if volume else 0,
            used=0 if used is None else 1 if used.state == "CONNECTED" else 2,
            seen=used.disk.size_bytes if used else 0,
            mounts=frozenset(each.path for each in used.mounts) if used else frozenset(),
        )

    def expected(self) -> set[str]:
        """Return the names of all facts that there should be, as the model has it."""
        found: set[str] = set()
        for name, known in self.model.items():
            with self.machine.store.read() as txn:
                volume = txn.get(Volume, name)
            uid = volume.uid if volume else ""
            target = f"iqn.2026-01.org.zfsilo:give:{uid}"
            acl = f"{target}/{TAKE}"
            if known.served:
                found.add(f"zvol:tank/zfsilo/{name}")
            if known.served == 2:
                found |= {f"{kind}:{target}" for kind in ("target", "lun", "portals", "enabled")}
                found |= {f"backstore:zfsilo-{uid}", f"acl:{acl}", f"mapped:{acl}"}
            if known.used:
                found |= {f"node:{target}", f"session:{target}"}
            staged = {f"/var/lib/zfsilo/staging/{name}"} if known.used == 2 else set()
            for path in staged | known.mounts:
                found |= {f"point:{path}", f"mount:{path}"}
        return found


def hold(sequences: int, steps: int, number: int) -> None:
    """Hold so many sequences against the model; `number`: the seed of all that is random."""
    seed(number)(Ladder)
    how = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    with (
        mock.patch("zfsilod.requests.sync.REPAIR_PAUSES_S", (0,)),
        mock.patch.dict(os.environ, ZFSILO_BOOT_ID="1"),
    ):
        run_state_machine_as_test(Ladder, settings=how)


def run(report: Report, *, size: Size, seed: int) -> None:
    """Hold many sequences against the model."""
    try:
        hold(SEQUENCES[size], STEPS, seed)
    except AssertionError as error:
        report.case("all", "model", str(error))
    else:
        for _sequence in range(SEQUENCES[size]):
            report.case("all", "model")
