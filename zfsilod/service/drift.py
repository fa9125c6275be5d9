"""Facts against records: what differs, found by probes alone. Nothing is changed here.

One look at the pool serves all volumes (host/survey.py), the kernel's target and initiator are read
as files: so a look at a thousand volumes starts as few processes as one at a single one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.zfs import Zvol
from zfsilod.model.errors import Conflict, FailedPrecondition, Unavailable, ZfsiloError
from zfsilod.model.record import Pairs, Record
from zfsilod.model.records import Action, Attachment, Condition, Volume
from zfsilod.storage.volume_view import VolumeView, volume_view, volume_views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host import Host as Machine
    from zfsilod.model.settings import Settings
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

AT_ONCE = 200  # volumes that are compared in one call of a thread
DATASETS_DEADLINE_S = 150  # of the one look at the pool, which may hold very many
LOST, CONFLICT, UNKNOWN, NOT_RESTORED = "LOST", "CONFLICT", "UNKNOWN", "NOT_RESTORED"
SO, NOT_SO = "SO", "NOT_SO"


class Difference(Record):
    """A fact about a volume that is not as its record says."""

    fact: str  # the step, in words
    wanted: bool  # whether it should be so
    problem: str = ""  # why it cannot just be put right; "": it can
    reason: str = ""  # LOST, CONFLICT, UNKNOWN or NOT_RESTORED where there is a problem


class DriftReport(Record):
    """What differs of one volume."""

    volume: str
    uid: str
    differences: tuple[Difference, ...] = ()

    @property
    def problems(self) -> tuple[Difference, ...]:
        """The differences that a repair should put right and cannot."""
        return tuple(d for d in self.differences if d.reason not in ("", NOT_RESTORED))

    @property
    def repairable(self) -> bool:
        """Whether there is something to repair, and nothing in the way of it."""
        return not self.problems and any(not each.reason for each in self.differences)

    def check(self) -> None:
        """Raise the first problem as the error that it is."""
        for each in self.problems:
            kind = PROBLEMS.get(each.reason, Unavailable)
            raise kind(each.problem, reason=each.reason, volume=self.volume)


Problem = Callable[[Action], tuple[str, str]]
"""Why a fact that differs cannot just be put right, with a reason for programs; "": it can."""

PROBLEMS: dict[str, type[ZfsiloError]] = {LOST: FailedPrecondition, CONFLICT: Conflict}


async def survey(service: Service, names: tuple[str, ...] = ()) -> list[DriftReport]:
    """Compare the volumes of these names, or all, with the host; those at work are left out."""
    with service.store.read() as txn:
        found = [volume_view(txn, name) for name in names] if names else list(volume_views(txn))
    idle = [each for each in found if not each.operation]
    datasets = tuple(each.volume.dataset for each in idle if each.volume is not None)
    machine = await service.look(
        partial(service.machine.surveyed, datasets), timeout_s=DATASETS_DEADLINE_S
    )
    reports: list[DriftReport] = []
    for start in range(0, len(idle), AT_ONCE):
        some = idle[start : start + AT_ONCE]
        compared = partial(_compare_all, some, machine, service.settings)
        reports += await service.look(compared)
    return reports


def _compare_all(
    found: list[VolumeView], machine: Machine, settings: Settings
) -> list[DriftReport]:
    return [compare(each, machine, settings) for each in found]


def compare(found: VolumeView, machine: Machine, settings: Settings) -> DriftReport:
    """Probe every fact of one volume."""
    return DriftReport(
        volume=found.id,
        uid=found.uid,
        differences=(
            *_differences(truth(found, settings), machine, _problem(found)),
            *_differences(unrestored(found), machine, _nobody_restores),
        ),
    )


def truth(found: VolumeView, settings: Settings) -> tuple[Action, ...]:
    """Return all that must be so, and must not, on this host for a volume.

    An attachment that nobody restores (`restore` NEVER) is left to whoever made it: after a reboot
    it must not come back by itself.
    """
    actions: tuple[Action, ...] = ()
    if found.volume is not None:
        actions += plans.server_facts(found.volume, found.publications, settings.export)
    if found.attachment is not None and found.attachment.restore == "BOOT":
        actions += plans.client_facts(found.attachment)
    return actions


def unrestored(found: VolumeView) -> tuple[Action, ...]:
    """Return what would be so if somebody restored an attachment that zfsilo does not."""
    if found.attachment is None or found.attachment.restore == "BOOT":
        return ()
    return plans.client_facts(found.attachment)


def _differences(
    actions: tuple[Action, ...], machine: Machine, problem: Problem
) -> Iterator[Difference]:
    for action in actions:
        step = action.step
        if not isinstance(step, HostStep) or step.sticky:
            continue  # a remote one is the server's; a sticky one the daemon's sandbox cannot see
        reason, why = _seen(step, machine)
        if reason == (SO if action.up else NOT_SO):
            continue
        if reason in (SO, NOT_SO):
            why, reason = problem(action)
        yield Difference(fact=step.fact(), wanted=action.up, problem=why, reason=reason)
        if reason == LOST:
            return  # all that stands on it is beside the point


def _problem(found: VolumeView) -> Problem:
    def why(action: Action) -> tuple[str, str]:
        if not isinstance(action.step, Zvol):
            return "", ""
        sentence = (
            f"the zvol {action.step.dataset} of {found.id} is gone: restore it (zfs rename, zfs "
            "receive), or delete the volume"
        )
        return sentence, LOST

    return why


def _nobody_restores(_action: Action) -> tuple[str, str]:
    return "whoever connected it restores it, zfsilo does not (restore NEVER)", NOT_RESTORED


class Fact(Record):
    """A fact of a volume, with what a look at it gave."""

    kind: str  # the class of the step
    text: str
    wanted: bool
    truth: str  # SO, NOT_SO, CONFLICT or UNKNOWN
    problem: str = ""
    parameters: Pairs = ()


def facts(found: VolumeView, machine: Machine, settings: Settings) -> list[Fact]:
    """Look at every fact that makes up a volume on this host."""
    actions = (*truth(found, settings), *unrestored(found))
    return [_fact(m.step, machine, up=m.up) for m in actions if isinstance(m.step, HostStep)]


def _fact(step: HostStep, machine: Machine, *, up: bool) -> Fact:
    seen, problem = UNKNOWN, ""
    if step.sticky:
        problem = "the daemon's sandbox hides it"
    else:
        seen, problem = _seen(step, machine)
    parameters = tuple((name, _shown(getattr(step, name))) for name in step.FIELDS)
    return Fact(
        kind=type(step).__name__,
        text=step.fact(),
        wanted=up,
        truth=seen,
        problem=problem,
        parameters=parameters,
    )


def _seen(step: HostStep, machine: Machine) -> tuple[str, str]:
    """Look at a fact: SO, NOT_SO, CONFLICT or UNKNOWN, and why it is one of the last two."""
    try:
        return (SO if step.probe(machine) else NOT_SO), ""
    except Conflict as error:
        return CONFLICT, error.message
    except ZfsiloError as error:
        return UNKNOWN, error.message


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def note(txn: Transaction, reports: list[DriftReport], complaints: dict[str, str]) -> None:
    """Keep what is wrong with volumes, for all who look at them; write only what changed."""
    for each in reports:
        problems = dict.fromkeys(p.problem for p in each.problems)
        failed = () if problems else (complaints.get(each.volume, ""),)
        sentences = tuple(filter(None, (*problems, *failed)))
        known = txn.get(Condition, each.uid)
        if sentences and (known is None or known.sentences != sentences):
            txn.put(Condition(id=each.uid, sentences=sentences))
        elif known is not None and not sentences:
            txn.drop(Condition.bucket(), each.uid)
    _forget_gone(txn)


def _forget_gone(txn: Transaction) -> None:
    """Drop what was kept of volumes that are gone from here by now."""
    noted = {each["id"] for each in txn.scan_plain(Condition)}
    if noted:
        noted -= {each["uid"] for each in txn.scan_plain(Volume)}
        noted -= {each["disk"]["serial"] for each in txn.scan_plain(Attachment)}
    for uid in noted:
        txn.drop(Condition.bucket(), uid)
