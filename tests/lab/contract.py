"""The step contract: the guarantees of every step, checked on the fake host and on real ones.

The actions of each example of tests/examples.py are done in order and then reverted:

    probe is False -> do -> probe is True -> a second do changes nothing; the same for undo;
    do and undo that were interrupted before their n-th effect can be completed and reverted;
    a foreign object in place is a Conflict, and an operation does not change it.

It runs inside a machine, too (contract_main.py).
"""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.examples import GIB, NVME_TARGET, TARGET, VOLUME, operation
from tests.lab.contract_examples import EXAMPLES, NVME_SECRETS, ROOT, SECRETS
from zfsilod.engine import worker
from zfsilod.engine.plans import backstore_name
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.access import (
    Acl,
    Fenced,
    NoAcl,
    NoReservations,
    NoSession,
    NoUnknownAcls,
)
from zfsilod.engine.steps.export import (
    AllPortals,
    Backstore,
    Namespace,
    NoExport,
    NoOtherPath,
    Reopened,
)
from zfsilod.engine.steps.filesystem import FilesystemGrown
from zfsilod.engine.steps.keys import KeyCarried, KeyLoaded
from zfsilod.engine.steps.limits import SessionsLimited
from zfsilod.engine.steps.mount import FilesystemWorks, LazyUnmounted, MountPoint
from zfsilod.engine.steps.nvme import ControllerPortal, QueueLimit
from zfsilod.engine.steps.ownership import PoolOwned
from zfsilod.engine.steps.replica import ReceiveEnded, ReplicaUnchanged
from zfsilod.engine.steps.session import (
    DiskResponsive,
    DiskSize,
    LossWait,
    NoNode,
    SessionDropped,
    SessionPortal,
    SessionSecrets,
)
from zfsilod.engine.steps.snapshot import SnapshotsUnused
from zfsilod.engine.steps.users import DiskUnused, UsersNamed, ZvolUnused
from zfsilod.engine.steps.zfs import NotNewer, Zvol, ZvolSize
from zfsilod.model.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Operation, Step

DATASET = f"{ROOT}/data"
OTHER_DATASET = f"{ROOT}/other"
OTHER_UID = "f" * 32
FOREIGN_INITIATOR = "iqn.2024-01.lab.foreign:host"
FOREIGN_NQN = "nqn.2024-01.lab.foreign:host"
MAX_EFFECTS = 40
GUARDS = (
    ControllerPortal,
    SessionsLimited,
    Reopened,
    SessionPortal,
    NoOtherPath,
    NoSession,
    Fenced,
    NoUnknownAcls,
    NotNewer,
    DiskResponsive,
    FilesystemWorks,
    DiskUnused,
    UsersNamed,
    ZvolUnused,
    SnapshotsUnused,
    ReplicaUnchanged,
)
# Their undo does nothing: removed objects and changed secrets are not restored.
ONE_WAY = (
    AllPortals,
    KeyCarried,
    KeyLoaded,
    SessionDropped,
    LazyUnmounted,
    NoExport,
    NoAcl,
    NoNode,
    NoReservations,
    SessionSecrets,
    QueueLimit,
    ReceiveEnded,
)


def _host_steps(steps: Sequence[Step]) -> list[HostStep]:
    return [step for step in steps if isinstance(step, HostStep)]


class EffectInterrupted(BaseException):
    """The do or undo of a step was interrupted, as by SIGKILL."""


class EffectInterrupter:
    """Interrupts the do or undo of a step before its n-th effect."""

    def __init__(self) -> None:
        self.left: int | None = None

    def count_calls(
        self, owner: Any, name: str, *, is_effect: Callable[..., bool] = lambda *_args: True
    ) -> None:
        """Count every call of a function, or some of them by their arguments, as an effect."""
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left is not None and is_effect(*args):
                if self.left == 0:
                    raise EffectInterrupted
                self.left -= 1
            return function(*args, **kwargs)

        setattr(owner, name, call)

    def run(self, change: Callable[[], None], effects: int) -> bool:
        """Run a do or undo up to a number of effects; return whether it was completed."""
        self.left = effects
        try:
            change()
        except EffectInterrupted:
            return False
        finally:
            self.left = None
        return True


class Contract:
    """The contract on one host; each case is reported with its name and an error or ""."""

    def __init__(
        self,
        host: HostAdapters,
        interrupter: EffectInterrupter,
        inventory: Callable[[], object],
        report: Callable[[str, str], None],
    ) -> None:
        self.host = host
        self.interrupter = interrupter
        self.inventory = inventory
        self.report = report
        self.interrupted: set[str] = set()  # steps that were interrupted at every effect
        self.made: set[str] = set()

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Report whether the block succeeded; a failure does not stop later cases."""
        try:
            yield
        except Exception:
            self.report(name, traceback.format_exc())
        else:
            self.report(name, "")

    def example(self, name: str) -> None:
        """Do the actions of an example first to last, then revert them last to first."""
        example = EXAMPLES[name]
        done = {repr(step) for step in example.before}
        self.prepare(name)
        actions = [action for action in example.actions if isinstance(action.step, HostStep)]
        for sequence in (actions, [action.but(up=not action.up) for action in reversed(actions)]):
            for action in sequence:
                step = action.step
                assert isinstance(step, HostStep)
                label = f"{name}: {action.description}"
                if isinstance(step, GUARDS):
                    self.check_guard(step, label)
                elif isinstance(step, ONE_WAY) and not action.up:
                    self.check_one_way(step, label)
                elif action.up and repr(step) in done:
                    self.check_redo(step, label)
                elif action.up:
                    self.check_interruptions(step, label)
                    self.check_do(step, label)
                elif repr(step) not in done or sequence is actions:
                    self.check_undo(step, label)
                    done.discard(repr(step))
        self.clean_up(name)

    def prepare(self, name: str) -> None:
        """Do the steps that an example needs."""
        for step in _host_steps(EXAMPLES[name].before):
            if not step.probe(self.host):
                step.do(self.host)
            self.made.add(repr(step))

    def clean_up(self, name: str) -> None:
        """Undo the steps that an example needs."""
        for step in reversed(_host_steps(EXAMPLES[name].before)):
            step.undo(self.host)

    def check_do(self, step: HostStep, label: str) -> None:
        """Check that probe is False, do makes it True, and a second do changes nothing."""
        with self.case(label):
            if self.is_missing(step):
                assert step.probe(self.host) is False, "true before do"
            step.do(self.host)
            assert step.probe(self.host) is True, "false after do"
            once = self.inventory()
            step.do(self.host)
            assert step.probe(self.host) is True, "false after a second do"
            assert self.inventory() == once, "a second do changed the host"
            self.made.add(repr(step))

    def check_undo(self, step: HostStep, label: str) -> None:
        """Check that probe is False after undo and after a second undo; a sticky fact stays."""
        with self.case(label):
            for time in ("undo", "a second undo"):
                step.undo(self.host)
                assert step.probe(self.host) is stays(step), f"wrong after {time}"

    def check_redo(self, step: HostStep, label: str) -> None:
        """Check that a step that is already done is detected and can be done again."""
        with self.case(f"{label}, already done"):
            assert step.probe(self.host) is True
            step.do(self.host)
            assert step.probe(self.host) is True

    def check_guard(self, step: HostStep, label: str) -> None:
        """Check that a guard succeeds and that its undo changes nothing."""
        with self.case(label):
            assert step.probe(self.host) is True
            step.undo(self.host)
            assert step.probe(self.host) is True

    def check_one_way(self, step: HostStep, label: str) -> None:
        """Check that the undo of a one-way step changes nothing."""
        with self.case(label):
            before = self.inventory()
            step.undo(self.host)
            assert self.inventory() == before

    def is_missing(self, step: HostStep) -> bool:
        """Return whether the fact must be false: a new filesystem has the size of its disk."""
        if isinstance(step, FilesystemGrown | DiskSize) and step.disk.size_bytes == GIB:
            return False
        if isinstance(step, LossWait | QueueLimit | KeyLoaded | NoReservations | ReceiveEnded):
            return False  # of the node record, by udev, since the creation of the zvol, never saved
        return not (stays(step) and repr(step) in self.made)

    def check_interruptions(self, step: HostStep, label: str) -> None:
        """Interrupt a step after each of its effects; complete it and revert it."""
        if repr(step) in self.interrupted or stays(step):
            return
        self.interrupted.add(repr(step))
        if isinstance(step, LossWait):
            step.undo(self.host)  # true since the login
        before = self.inventory()
        for effects in range(MAX_EFFECTS):
            completed = False
            with self.case(f"{label}, interrupted after {effects} effects"):
                completed = self._interrupt(step, effects, before)
            if completed:
                return
        self.report(f"{label}, interrupted", f"not completed after {MAX_EFFECTS} effects")

    def _interrupt(self, step: HostStep, effects: int, before: object) -> bool:
        def do() -> None:
            step.do(self.host)

        def undo() -> None:
            step.undo(self.host)

        def check_done(case: str) -> None:
            assert step.probe(self.host) is True, f"probe is not True: {case}"

        def check_undone(case: str) -> None:
            undo()
            assert step.probe(self.host) is False, f"probe is not False: {case}"
            assert self.inventory() == before, f"something is left: {case}"

        completed = self.interrupter.run(do, effects)
        assert completed or step.probe(self.host) is False, "probe is True when half done"
        check_undone("do was interrupted and reverted")
        self.interrupter.run(do, effects)
        do()
        check_done("do was interrupted and completed")
        completed = self.interrupter.run(undo, effects) and completed
        check_undone("undo was interrupted and completed")
        do()
        self.interrupter.run(undo, effects)
        do()
        check_done("undo was interrupted and reverted")
        check_undone("the last undo")
        return completed

    def foreign_server(self) -> None:
        """Check foreign objects in place of zvol, backstore and ACL of a server."""
        lio = self.host.lio
        name = backstore_name(VOLUME)
        with self.foreign("create", Zvol, "zvol of another volume"):
            self._other_zvol(DATASET)
        self.host.zfs.destroy_zvol(DATASET, uid=OTHER_UID, guid="")
        with self.foreign("publish", Backstore, "backstore on another device"):
            self._other_zvol(OTHER_DATASET)
            lio.add_backstore(name, dataset=OTHER_DATASET, serial=OTHER_UID)
        lio.remove_backstore(name)
        self.host.zfs.destroy_zvol(OTHER_DATASET, uid=OTHER_UID, guid="")
        self.clean_up("publish")
        with self.foreign("publish-second", Acl, "ACL of a foreign initiator"):
            lio.add_acl(TARGET, FOREIGN_INITIATOR, chap=SECRETS)
        lio.remove_acl(TARGET, FOREIGN_INITIATOR)
        self.clean_up("publish-second")

    def foreign_subsystem(self) -> None:
        """Check foreign objects in place of the namespace and the host of a subsystem."""
        nvmet = self.host.nvmet
        with self.foreign("nvme-publish", Namespace, "namespace on another device"):
            self._other_zvol(OTHER_DATASET)
            nvmet.add_target(NVME_TARGET)
            nvmet.add_namespace(NVME_TARGET, dataset=OTHER_DATASET, uid=OTHER_UID)
        nvmet.remove_namespace(NVME_TARGET)
        nvmet.remove_target(NVME_TARGET)
        self.host.zfs.destroy_zvol(OTHER_DATASET, uid=OTHER_UID, guid="")
        self.clean_up("nvme-publish")
        with self.foreign("nvme-publish-second", Acl, "right of a foreign host"):
            nvmet.add_acl(NVME_TARGET, FOREIGN_NQN, chap=NVME_SECRETS)
        nvmet.remove_acl(NVME_TARGET, FOREIGN_NQN)
        self.clean_up("nvme-publish-second")

    def foreign_client(self) -> None:
        """Check a foreign object in place of the mount point of a client."""
        path = next(s.path for s in steps_of("mount", MountPoint) if isinstance(s, MountPoint))
        with self.foreign("mount", MountPoint, "file in place of the mount point"):
            self.host.mounts.make_mountpoint(path, file=True)
        self.host.mounts.remove_mountpoint(path, file=True)
        self.clean_up("mount")

    def _other_zvol(self, dataset: str) -> None:
        self.host.zfs.create_zvol(
            dataset,
            size_bytes=64 << 20,
            thin=True,
            volblocksize=16384,
            properties=(),
            marks=(("zfsilo:uid", OTHER_UID),),
        )

    @contextmanager
    def foreign(self, name: str, kind: type[HostStep], title: str) -> Iterator[None]:
        """Check an example with the foreign object that the block creates."""
        self.prepare(name)
        yield
        before = self.inventory()
        with self.case(f"{name}: {title}: the probe"):
            for step in steps_of(name, kind):
                assert _conflict(lambda step=step: step.probe(self.host))  # type: ignore[misc]
        with self.case(f"{name}: {title}: the operation"):
            saved = [operation(EXAMPLES[name])]

            def save(stored: Operation) -> Operation:
                saved.append(stored)
                return stored

            assert _conflict(lambda: worker.run(saved[0], self.host, save))
            worker.rollback(saved[-1], self.host, save, boot_id="first")
            assert saved[-1].state == "ROLLED_BACK"
            for step in steps_of(name, kind):
                assert _conflict(lambda step=step: step.probe(self.host))  # type: ignore[misc]
            assert self.inventory() == before, "the operation changed the host"


def stays(step: HostStep) -> bool:
    """Return whether the fact of a step remains after its undo."""
    return step.sticky or isinstance(step, (ZvolSize, PoolOwned, *ONE_WAY))


def steps_of(name: str, kind: type[HostStep]) -> list[HostStep]:
    """Return the steps of a kind in an example."""
    return [action.step for action in EXAMPLES[name].actions if isinstance(action.step, kind)]


def _conflict(call: Callable[[], object]) -> bool:
    try:
        call()
    except Conflict:
        return True
    return False
