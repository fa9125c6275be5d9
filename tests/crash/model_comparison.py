"""Hypothesis state machine that compares the service with the reference model.

After each rule records and facts must be those of the model, whatever was killed, restarted,
rebooted or removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from unittest import mock

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.crash import cases
from tests.crash.fault_injector import Fault, How, Process, When
from tests.crash.reference_model import GIB, PATHS, REQUESTS, DrawnRequest, ModelVolume
from tests.crash.simulated_machine import SimulatedMachine
from tests.examples import TAKE
from tests.service_fixture import SETTINGS, administrator
from zfsilod.host.fake import VOLATILE
from zfsilod.model.records import Attachment, Publication, Volume
from zfsilod.requests.detach import ATTACHING
from zfsilod.service.ownership import compare

if TYPE_CHECKING:
    from tests.crash.report import CrashReport, Size
    from zfsilod.requests.request import Request

NAMES = ("a", "b")
PREFIXES = (SETTINGS.export.prefix, "iqn.2026-01.org.zfsilo:nas", "iqn.2020-02.org.example:san")
PORTALS = (SETTINGS.export.portals, ("10.77.0.9:3260",), ("10.77.0.1:3260", "[fd00::1]:3260"))
DETACHING = ("detach", "unmount", "unstage", "disconnect")
CLONE = "c" * 32  # the id of another machine
DAY_S = 24 * 3600
PHASES = (Phase.generate,)
STEPS = 30
SEQUENCES = {"short": 200, "full": 2000, "long": 10_000}


requests = st.builds(
    DrawnRequest,
    st.sampled_from(REQUESTS),
    st.sampled_from(PATHS),
)
faults = st.builds(
    Fault,
    st.sampled_from(get_args(Process)),
    st.integers(1, 24),
    st.sampled_from(get_args(When)),
    st.sampled_from(get_args(How)),
)
names = st.sampled_from(NAMES)


class ServiceAgainstModel(RuleBasedStateMachine):
    """Applies each request, fault, restart, leap and clone to the service and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.model = {name: ModelVolume() for name in NAMES}
        self.leapt_s = 0
        self.clocks = ExitStack()
        now, now_ns = time.time, time.time_ns
        for clock, leapt in (
            ("time.time", lambda: now() + self.leapt_s),
            ("time.time_ns", lambda: now_ns() + self.leapt_s * 10**9),
        ):
            self.clocks.enter_context(mock.patch(clock, leapt))
        self.prefixes: dict[str, str] = {}  # of the targets, as they were when these were made
        self.machine = self.runner.run(self._build())

    async def _build(self) -> SimulatedMachine:
        machine = SimulatedMachine(Path(self.folder.name), SETTINGS)
        await machine.fixture.do(cases.HOST)
        return machine

    def teardown(self) -> None:
        """Stop the daemon and remove its files."""
        self.runner.run(self.machine.stop_daemon())
        self.machine.store.close()
        self.clocks.close()
        self.runner.close()
        self.folder.cleanup()

    @rule(name=names, request=requests)
    def ask(self, name: str, request: DrawnRequest) -> None:
        """A request is done or refused, as the model says."""
        after = request.after(name, self.model[name], self.larger(name))
        done = self._ask(name, request)
        assert done == (after is not None), f"{request}: {self.machine.refusal}"
        self.model[name] = after or self.model[name]
        self.check()

    @rule(name=names, request=requests, first=faults, second=faults)
    def crash(self, name: str, request: DrawnRequest, first: Fault, second: Fault) -> None:
        """A request, and maybe its rollback, meets a fault: it is done, or nothing is changed."""
        after = request.after(name, self.model[name], self.larger(name))
        second = second._replace(process="rollback")
        done = self._ask(name, request, first, *(() if first.how == "reboot" else (second,)))
        if done and after is not None:
            self.model[name] = after
        if any(fault.how == "reboot" for fault in self.machine.injector.injected):
            self._sync_all()
        self.check()

    @rule(name=names, first=requests, second=requests)
    def both(self, name: str, first: DrawnRequest, second: DrawnRequest) -> None:
        """Two requests at once give the state of one after the other, in either order."""
        now = self.model[name]
        size = self.larger(name)
        ends = set()
        for order in permutations((first, second)):
            end = now
            for request in order:
                end = request.after(name, end, size) or end
            ends.add(end)
        for attach, detach in permutations((first, second)):
            if attach.request in ATTACHING and detach.request in DETACHING:  # cancels the first
                ends.add(detach.after(name, now, size) or now)
        self.machine.injector.set()
        self.runner.run(self._at_once(first.of(name, size), second.of(name, size)))
        if {first.request, second.request} == {"connect", "unpublish"}:
            self._disconnect_fenced(name)
        self.model[name] = self.known(name)
        if "unpublish" in (first.request, second.request):
            self._forget_remade(name)
        assert self.model[name] in ends, f"{first} and {second} of {now}: {self.model[name]}"
        self.check()

    def _forget_remade(self, name: str) -> None:
        """Forget the prefix of a target that was removed and made again by two requests at once."""
        with self.machine.store.read() as txn:
            volume = txn.get(Volume, name)
        if volume and volume.target == f"{self.machine.settings.export.prefix}:{volume.uid}":
            self.prefixes.pop(name, None)

    def _disconnect_fenced(self, name: str) -> None:
        """Disconnect if the login came between the last look for sessions and the end of the ACL.

        That session ended with the ACL, as that of a fenced host does.
        """
        known = self.known(name)
        if known.client and known.server < 2:
            assert self._ask(name, DrawnRequest("disconnect")), self.machine.refusal

    @rule()
    def restart(self) -> None:
        """The daemon is killed while no operation runs, and started again."""
        self.runner.run(self._restart())
        self.check()

    @rule()
    def reboot(self) -> None:
        """The machine reboots; the daemon syncs all volumes at boot."""
        self.machine.reboot()
        self.runner.run(self._restart())
        self._sync_all()
        self.check()

    @rule(days=st.integers(-40, 40))
    def leap(self, days: int) -> None:
        """The wall clock leaps before a start of the daemon."""
        self.leapt_s += days * DAY_S
        self.runner.run(self._restart())
        self._sync_all()
        self.check()

    @rule(name=names, request=requests)
    def clone(self, name: str, request: DrawnRequest) -> None:
        """Another machine starts with this store and these facts: it does nothing with them."""
        memory = self.machine.host.facts.memory
        memory["machine"] = CLONE
        self.runner.run(self._restart())
        self._sync_all()
        assert not self._ask(name, request)
        del memory["machine"]
        self.runner.run(self._restart())
        self.check()

    @rule(prefix=st.sampled_from(PREFIXES), portals=st.sampled_from(PORTALS))
    def other_identity(self, prefix: str, portals: tuple[str, ...]) -> None:
        """Host name or prefix, and portals, change: targets keep their names, and listen there."""
        export = self.machine.settings.export.but(prefix=prefix, portals=portals)
        self.machine.settings = self.machine.settings.but(export=export)
        self.runner.run(self._restart())
        self._sync_all()
        self.check()
        facts = self.machine.host.facts.snapshot()
        listening = {tuple(fact) for name, fact in facts.items() if name.startswith("portals:")}
        assert listening <= {tuple(sorted(portals))}

    @rule(kind=st.sampled_from(VOLATILE))
    def drift(self, kind: str) -> None:
        """Facts of one kind are removed behind the daemon; a sync of all volumes restores them."""
        memory = self.machine.host.facts.memory
        for fact in [name for name in memory if name.startswith(f"{kind}:")]:
            del memory[fact]
        self._sync_all()
        self.check()

    def larger(self, name: str) -> int:
        """Return the size for the next update of a volume."""
        return self.model[name].size + GIB

    def _ask(self, name: str, draw: DrawnRequest, *injected: Fault) -> bool:
        """Make a request with these faults; return whether it was done."""
        older = {op.id for op in self.machine.operations()}
        request = draw.of(name, self.larger(name))
        self.machine.injector.set(*injected)
        self.runner.run(
            self.machine.carry_out(
                lambda fixture: fixture.service.submit(request, caller=administrator("x"))
            )
        )
        new = [op for op in self.machine.operations() if op.id not in older]
        return any(op.kind == request.kind and op.state == "DONE" for op in new)

    async def _at_once(self, first: Request[Any], second: Request[Any]) -> None:
        self.machine.request(lambda fixture: fixture.do(first))
        self.machine.request(lambda fixture: fixture.do(second))
        await self.machine.settle()

    async def _restart(self) -> None:
        await self.machine.stop_daemon()
        self.machine.start_daemon()
        await compare(self.machine.fixture.service.context)
        await self.machine.supervisor.recover()

    def _sync_all(self) -> None:
        self.machine.injector.set()
        self.runner.run(
            self.machine.carry_out(
                lambda fixture: fixture.service.reconciler.sync_all(caller=administrator("boot"))
            )
        )

    def check(self) -> None:
        """Compare records and facts with the model; no operation and no claim may be left."""
        assert {name: self.known(name) for name in NAMES} == self.model
        facts = self.machine.host.facts.snapshot()
        assert {name for name in facts if not name.startswith("content:")} == self.expected()
        assert not self.machine.live()
        assert not [key for key in self.machine.state() if key.startswith(("claim", "live"))]

    def known(self, name: str) -> ModelVolume:
        """Return the state of a volume in the records."""
        with self.machine.store.read() as txn:
            volume, attachment = txn.get(Volume, name), txn.get(Attachment, name)
            published = txn.get(Publication, f"{name}/take")
        mounts = attachment.mounts if attachment else ()
        return ModelVolume(
            server=0 if volume is None else 1 if published is None else 2,
            size=volume.capacity_bytes if volume else 0,
            client=0 if attachment is None else 1 if attachment.state == "CONNECTED" else 2,
            client_size=attachment.disk.size_bytes if attachment else 0,
            mounts=frozenset(mount.path for mount in mounts),
        )

    def expected(self) -> set[str]:
        """Return the names of all facts that follow from the model."""
        facts: set[str] = set()
        for name, known in self.model.items():
            with self.machine.store.read() as txn:
                volume = txn.get(Volume, name)
            uid = volume.uid if volume else ""
            if known.server < 2:
                self.prefixes.pop(name, None)
            else:
                self.prefixes.setdefault(name, self.machine.settings.export.prefix)
            target = f"{self.prefixes.get(name)}:{uid}"
            acl = f"{target}/{TAKE}"
            if known.server:
                facts.add(f"zvol:tank/zfsilo/{name}")
            if known.server == 2:
                facts |= {f"{kind}:{target}" for kind in ("target", "lun", "portals", "enabled")}
                facts |= {f"backstore:zfsilo-{uid}", f"acl:{acl}", f"mapped:{acl}"}
            if known.client:
                facts |= {f"node:{target}", f"session:{target}"}
            staged = {f"/var/lib/zfsilo/staging/{name}"} if known.client == 2 else set()
            for path in staged | known.mounts:
                facts |= {f"point:{path}", f"mount:{path}"}
        return facts


def check_against_model(sequences: int, steps: int, number: int) -> None:
    """Run so many sequences; `number`: the seed of everything random."""
    seed(number)(ServiceAgainstModel)
    how = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    with (
        mock.patch("zfsilod.service.supervisor.REPAIR_PAUSES_S", (0,)),
        mock.patch.dict(os.environ, ZFSILO_BOOT_ID="1"),
    ):
        run_state_machine_as_test(ServiceAgainstModel, settings=how)


def run(report: CrashReport, *, size: Size, seed: int) -> None:
    """Run many sequences against the model."""
    logging.disable(logging.ERROR)  # each start of a clone is logged
    try:
        check_against_model(SEQUENCES[size], STEPS, seed)
    except AssertionError as error:
        report.case("all", "model", str(error))
    else:
        for _sequence in range(SEQUENCES[size]):
            report.case("all", "model")
    logging.disable(logging.NOTSET)
