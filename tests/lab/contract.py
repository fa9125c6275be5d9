"""The step contract: what every step promises, checked on any host, the fake one or a real one.

Each example of tests/examples.py is walked there and back, step by step in its own order:

    probe is False -> do -> probe is True -> do again changes nothing, and the same with undo;
    cut before its n-th effect, do and undo can be finished and can be taken back;
    something of somebody else's in place is a Conflict, and an operation leaves it alone.

A part of it runs inside a machine, where it prints a line of JSON for each case (test_contract.py).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.examples import GIB, PLANS, PUBLICATION, TARGET, UID, VOLUME, Example, operation
from zfsilod.engine import worker
from zfsilod.engine.plans import backstore_name
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.access import Acl, Fenced, NoAcl, NoSession, NoUnknownAcls
from zfsilod.engine.steps.export import Backstore, NoExport
from zfsilod.engine.steps.filesystem import FilesystemGrown
from zfsilod.engine.steps.mount import LazyUnmounted, MountPoint
from zfsilod.engine.steps.session import (
    DiskResponsive,
    DiskSize,
    Node,
    NoNode,
    SessionDropped,
    SessionSecrets,
)
from zfsilod.engine.steps.snapshot import Clone, SnapshotSet
from zfsilod.engine.steps.zfs import Zvol, ZvolSize
from zfsilod.model.chap import Chap
from zfsilod.model.errors import Conflict, FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zfsilod.host import Host
    from zfsilod.model.records import Operation, Step

ROOT = "tank/zfsilo"
DATASET = f"{ROOT}/data"
OTHER_DATASET = f"{ROOT}/other"
OTHER_UID = "f" * 32
STRANGER = "iqn.2024-01.lab.stranger:host"
SECRETS = Chap(
    username="lab-in", password="0123456789abcdef",
    mutual_username="lab-out", mutual_password="fedcba9876543210",
)  # fmt: skip
ROTATED = Chap(
    username="lab-in", password="abcdef0123456789",
    mutual_username="lab-out", mutual_password="9876543210fedcba",
)  # fmt: skip
MAX_CUTS = 40
CONFIGFS = "/sys/kernel/config/target"
CHANGES = ("make", "write", "link", "remove", "unlink")  # of Configfs: each one system call

GUARDS = (NoSession, Fenced, NoUnknownAcls, DiskResponsive)
# What they take away stays away, as do the secrets that they change
ONE_WAY = (SessionDropped, LazyUnmounted, NoExport, NoAcl, NoNode, SessionSecrets)


def secrets(name: str) -> Chap:
    """Return made-up secrets: those of a rotation are others (model.secret_name)."""
    return ROTATED if "#" in name else SECRETS


def _placed(step: Step) -> Step:
    """Return a step with its datasets below the root that the lab's machine gives away."""
    if isinstance(step, SnapshotSet):
        return step.but(refs=tuple(each.but(dataset=_below(each.dataset)) for each in step.refs))
    if isinstance(step, Clone):
        step = step.but(
            snapshot_ref=step.snapshot_ref.but(dataset=_below(step.snapshot_ref.dataset))
        )
    places = [name for name in ("dataset", "trash") if hasattr(step, name)]
    return step.but(**{name: _below(getattr(step, name)) for name in places})


def _below(dataset: str) -> str:
    return f"{ROOT}{dataset.removeprefix('tank')}"


def _host_steps(steps: Sequence[Step]) -> list[HostStep]:
    return [step for step in steps if isinstance(step, HostStep)]


EXAMPLES = {
    each.name: each.but(
        before=tuple(_placed(step) for step in each.before),
        actions=tuple(move.but(step=_placed(move.step)) for move in each.actions),
    )
    for each in PLANS
}


def is_consumers(example: Example) -> bool:
    """Tell whether an example belongs to the host that uses a volume."""
    return any(isinstance(s, Node) for s in (*example.before, *(m.step for m in example.actions)))


SERVER = [name for name, example in EXAMPLES.items() if not is_consumers(example)]
AFTER_SERVER = ("grow", "refresh-secrets")  # the storage host must have done its part first
CONSUMER = [name for name, example in EXAMPLES.items() if is_consumers(example)]


class Cut(BaseException):
    """The process is gone, as by SIGKILL."""


class Saw:
    """Cuts a piece of work before its n-th effect."""

    def __init__(self) -> None:
        self.left: int | None = None

    def through(self, owner: Any, name: str) -> None:
        """Count every call of a function as an effect."""
        whole = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left is not None:
                if self.left == 0:
                    raise Cut
                self.left -= 1
            return whole(*args, **kwargs)

        setattr(owner, name, call)

    def cut(self, work: Callable[[], None], effects: int) -> bool:
        """Do a piece of work up to so many effects; tell whether that was all of it."""
        self.left = effects
        try:
            work()
        except Cut:
            return False
        finally:
            self.left = None
        return True


class Contract:
    """The contract on one host; each case is reported by its name, with an error or ""."""

    def __init__(
        self, host: Host, saw: Saw, inventory: Callable[[], object], report: Callable[..., None]
    ) -> None:
        self.host = host
        self.saw = saw
        self.inventory = inventory
        self.report = report
        self.known: set[str] = set()
        self.made: set[str] = set()

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Report whether the block went well; the cases after it are tried all the same."""
        try:
            yield
        except Exception:
            self.report(name, traceback.format_exc())
        else:
            self.report(name, "")

    # There and back

    def example(self, name: str) -> None:
        """Walk one example, its moves first to last and back again."""
        example = EXAMPLES[name]
        standing = {repr(step) for step in example.before}
        self.stand(name)
        actions = [move for move in example.actions if isinstance(move.step, HostStep)]
        for way in (actions, [move.but(up=not move.up) for move in reversed(actions)]):
            for move in way:
                step = move.step
                assert isinstance(step, HostStep)
                label = f"{name}: {move.description}"
                if isinstance(step, GUARDS):
                    self.guard(step, label)
                elif isinstance(step, ONE_WAY) and not move.up:
                    self.inert(step, label)
                elif move.up and repr(step) in standing:
                    self.stands(step, label)
                elif move.up:
                    self.cuts(step, label)
                    self.climb(step, label)
                elif repr(step) not in standing or way is actions:
                    self.descend(step, label)
                    standing.discard(repr(step))
        self.clear(name)

    def stand(self, name: str) -> None:
        """Make what must stand before an example."""
        for step in _host_steps(EXAMPLES[name].before):
            if not step.probe(self.host):
                step.do(self.host)
            self.made.add(repr(step))

    def clear(self, name: str) -> None:
        """Take down what stood before an example."""
        for step in reversed(_host_steps(EXAMPLES[name].before)):
            step.undo(self.host)

    def climb(self, step: HostStep, label: str) -> None:
        """Check False, do, True, and do again."""
        with self.case(label):
            if self.is_missing(step):
                assert step.probe(self.host) is False, "true before it was made"
            step.do(self.host)
            assert step.probe(self.host) is True, "not true when made"
            once = self.inventory()
            step.do(self.host)
            assert step.probe(self.host) is True, "not true when made twice"
            assert self.inventory() == once, "made twice is not as made once"
            self.made.add(repr(step))

    def descend(self, step: HostStep, label: str) -> None:
        """Check undo, False, and undo again; a sticky fact stays."""
        with self.case(label):
            for time in ("undone", "undone twice"):
                step.undo(self.host)
                assert step.probe(self.host) is stays(step), f"wrong when {time}"

    def stands(self, step: HostStep, label: str) -> None:
        """Check that a step which was made before is seen, and can be made again."""
        with self.case(f"{label}, which stands"):
            assert step.probe(self.host) is True
            step.do(self.host)
            assert step.probe(self.host) is True

    def guard(self, step: HostStep, label: str) -> None:
        """Check that a guard lets pass, and that its undo changes nothing."""
        with self.case(label):
            assert step.probe(self.host) is True
            step.undo(self.host)
            assert step.probe(self.host) is True

    def inert(self, step: HostStep, label: str) -> None:
        """Check that the undo of what is never turned back changes nothing."""
        with self.case(label):
            before = self.inventory()
            step.undo(self.host)
            assert self.inventory() == before

    def is_missing(self, step: HostStep) -> bool:
        """Tell whether the fact must be false now: a new filesystem fills its disk by itself."""
        if isinstance(step, FilesystemGrown | DiskSize) and step.disk.size_bytes == GIB:
            return False
        return not (stays(step) and repr(step) in self.made)

    # Half made

    def cuts(self, step: HostStep, label: str) -> None:
        """Cut a step that is not made after each of its effects, and mend it both ways."""
        if repr(step) in self.known or stays(step):
            return
        self.known.add(repr(step))
        before = self.inventory()
        for effects in range(MAX_CUTS):
            whole = False
            with self.case(f"{label}, cut after {effects} effects"):
                whole = self._cut(step, effects, before)
            if whole:
                return
        self.report(f"{label}, cut", f"not whole after {MAX_CUTS} effects")

    def _cut(self, step: HostStep, effects: int, before: object) -> bool:
        def do() -> None:
            step.do(self.host)

        def undo() -> None:
            step.undo(self.host)

        def made(how: str) -> None:
            assert step.probe(self.host) is True, f"not true: {how}"

        def gone(how: str) -> None:
            undo()
            assert step.probe(self.host) is False, f"not false: {how}"
            assert self.inventory() == before, f"something is left: {how}"

        whole = self.saw.cut(do, effects)
        assert whole or step.probe(self.host) is False, "true when half made"
        gone("do was cut and taken back")
        self.saw.cut(do, effects)
        do()
        made("do was cut and finished")
        whole = self.saw.cut(undo, effects) and whole
        gone("undo was cut and finished")
        do()
        self.saw.cut(undo, effects)
        do()
        made("undo was cut and taken back")
        gone("the last undo")
        return whole

    # Somebody else's

    def foreign_server(self) -> None:
        """Check what a storage host does when something else is in place already."""
        lio = self.host.lio
        name = backstore_name(VOLUME)
        with self.foreign("create", Zvol, "another's zvol"):
            self._other_zvol(DATASET)
        self.host.zfs.destroy_zvol(DATASET, uid=OTHER_UID, guid="")
        with self.foreign("publish", Backstore, "a backstore on another device"):
            self._other_zvol(OTHER_DATASET)
            lio.add_backstore(name, dataset=OTHER_DATASET, serial=OTHER_UID)
        lio.remove_backstore(name)
        self.host.zfs.destroy_zvol(OTHER_DATASET, uid=OTHER_UID, guid="")
        self.clear("publish")
        with self.foreign("publish-second", Acl, "a stranger's ACL"):
            lio.add_acl(TARGET, STRANGER, chap=SECRETS)
        lio.remove_acl(TARGET, STRANGER)
        self.clear("publish-second")

    def foreign_consumer(self) -> None:
        """Check what a consumer does when something else is in place already."""
        path = next(s.path for s in _of_kind("mount", MountPoint) if isinstance(s, MountPoint))
        with self.foreign("mount", MountPoint, "a file in place of the mount point"):
            self.host.mounts.make_mountpoint(path, file=True)
        self.host.mounts.remove_mountpoint(path, file=True)
        self.clear("mount")

    def _other_zvol(self, dataset: str) -> None:
        self.host.zfs.create_zvol(
            dataset, size_bytes=64 << 20, thin=True, volblocksize=16384, properties=(),
            marks=(("zfsilo:uid", OTHER_UID),),
        )  # fmt: skip

    @contextmanager
    def foreign(self, name: str, kind: type[HostStep], what: str) -> Iterator[None]:
        """Check an example with the thing that the block puts there."""
        self.stand(name)
        yield
        before = self.inventory()
        with self.case(f"{name}: {what}: the probe"):
            for step in _of_kind(name, kind):
                assert _conflict(lambda step=step: step.probe(self.host))  # type: ignore[misc]
        with self.case(f"{name}: {what}: the operation"):
            saved = [operation(EXAMPLES[name])]

            def save(stored: Operation) -> Operation:
                saved.append(stored)
                return stored

            assert _conflict(lambda: worker.run(saved[0], self.host, save))
            worker.rollback(saved[-1], self.host, save, boot_id="first")
            assert saved[-1].state == "ROLLED_BACK"
            for step in _of_kind(name, kind):
                assert _conflict(lambda step=step: step.probe(self.host))  # type: ignore[misc]
            assert self.inventory() == before, "the operation left a trace"


def stays(step: HostStep) -> bool:
    """Tell whether a step's fact outlives its undo."""
    return step.sticky or isinstance(step, (ZvolSize, *ONE_WAY))


def _of_kind(name: str, kind: type[HostStep]) -> list[HostStep]:
    return [move.step for move in EXAMPLES[name].actions if isinstance(move.step, kind)]


def _conflict(work: Callable[[], object]) -> bool:
    try:
        work()
    except Conflict:
        return True
    return False


# Inside a machine


def real_inventory() -> list[str]:
    """Return what of the steps' making is on this machine, but for zvols."""
    found = []
    for folder, below, _files in os.walk(CONFIGFS):
        found += [path for name in below if UID in (path := f"{folder}/{name}")]
    root = Path("/")
    found += [str(path) for path in root.glob("etc/iscsi/nodes/*/*")]
    found += [p.read_text() for p in root.glob("sys/class/iscsi_session/*/targetname")]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if "/dev/sd" in line or "/sd" in line.split()[3]:
            found.append(line.split()[4])
    return sorted(found)


def real_contract() -> Contract:
    """Return the contract on this machine."""
    from zfsilod.host.configfs import Configfs
    from zfsilod.host.real import real_host
    from zfsilod.host.run import Runner

    saw = Saw()
    for name in CHANGES:
        saw.through(Configfs, name)
    saw.through(Runner, "__call__")
    return Contract(real_host(secrets), saw, real_inventory, _print)


def _print(case: str, error: str) -> None:
    print(json.dumps({"case": case, "ok": not error, "error": error}), flush=True)


def bare_zvol(contract: Contract) -> None:
    """Check that a zvol which somebody made by hand is not ours."""
    from zfsilod.host.run import Runner

    run = Runner()
    with contract.foreign("create", Zvol, "a zvol without marks"):
        run(["zfs", "create", "-s", "-V", "64M", DATASET], timeout_s=60)
    with contract.case("create: a zvol without marks: it stays"):
        run(["zfs", "destroy", DATASET], timeout_s=60)


def live_session(contract: Contract) -> None:
    """Check that the guard of an unpublication sees a session, and refuses."""
    guard, _once_more = _of_kind("unpublish", NoSession)
    with contract.case("unpublish: the guard with a live session"):
        assert guard.probe(contract.host) is False
        refused = ""
        try:
            guard.do(contract.host)
        except FailedPrecondition as error:
            refused = error.reason
        assert refused == "SESSION_LIVE"
        assert guard.probe(contract.host) is False, "the guard ended the session"


def main(words: list[str]) -> None:
    """Run a part: server, consumer, guard, resize, rotate; or example, stand, clear with a name."""
    contract = real_contract()
    match words:
        case ["server"]:
            for name in SERVER:
                contract.example(name)
            contract.foreign_server()
            bare_zvol(contract)
        case ["consumer"]:
            for name in CONSUMER:
                if name not in AFTER_SERVER:
                    contract.example(name)
            contract.foreign_consumer()
        case ["guard"]:
            live_session(contract)
        case ["rotate"]:
            contract.host.lio.set_secrets(TARGET, PUBLICATION.initiator, chap=ROTATED)
        case ["example", name]:
            contract.example(name)
        case ["stand", name]:
            contract.stand(name)
        case ["clear", name]:
            contract.clear(name)
        case ["resize"]:
            for step in _of_kind("resize", ZvolSize):
                contract.climb(step, "resize: under a live session")
        case _:
            sys.exit(f"unknown: {words}")
