"""Drift: the facts that differ from their records, determined by probes only.

One listing of the pool serves all volumes (host/zvol_survey.py); the kernel's target and initiator
are read as files. So the comparison of a thousand volumes starts as few processes as that of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.mount import FilesystemWorks
from zfsilod.engine.steps.nvme import Controller
from zfsilod.engine.steps.session import Session
from zfsilod.engine.steps.zfs import Zvol
from zfsilod.model.errors import Conflict, FailedPrecondition, Unavailable, ZfsiloError
from zfsilod.model.host_facts import HIDDEN
from zfsilod.model.record import Pairs, Record
from zfsilod.model.records import Action, Attachment, Condition, Volume
from zfsilod.requests.context import INVENTORY_DEADLINE_S
from zfsilod.requests.expected import expected, expected_by_owner
from zfsilod.requests.put_back import as_copy, delete_record
from zfsilod.storage.volume_view import VolumeView, volume_view, volume_views

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zfsilod.host import HostAdapters
    from zfsilod.model.settings import Settings
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

AT_ONCE = 200  # volumes that are compared in one call of a thread
PRESENT, ABSENT = "PRESENT", "ABSENT"
LOST, CONFLICT, UNKNOWN, NOT_RESTORED = "LOST", "CONFLICT", "UNKNOWN", "NOT_RESTORED"
FILESYSTEM_FAILS = "FILESYSTEM_FAILS"


class Difference(Record):
    """A fact about a volume that differs from its record."""

    fact: str  # a description of the step, for people
    wanted: bool  # whether it should hold
    problem: str = ""  # why it cannot be repaired; "": it can
    reason: str = ""  # one of the reasons above when there is a problem


class DriftReport(Record):
    """The differences of one volume."""

    volume: str
    uid: str
    differences: tuple[Difference, ...] = ()

    @property
    def problems(self) -> tuple[Difference, ...]:
        """The differences that cannot be repaired."""
        return tuple(
            difference
            for difference in self.differences
            if difference.reason not in ("", NOT_RESTORED)
        )

    @property
    def unknown(self) -> bool:
        """Whether there are problems, and each is a fact that cannot be known now."""
        return bool(self.problems) and all(one.reason == UNKNOWN for one in self.problems)

    @property
    def missing(self) -> tuple[str, ...]:
        """The facts that should hold and do not, or that do and should not; only repairable ones.

        Also those of an attachment that its owner restores: they tell its true state.
        """
        return tuple(
            difference.fact if difference.wanted else f"{difference.fact} (it should not)"
            for difference in self.differences
            if not difference.reason
        )

    @property
    def repairable(self) -> bool:
        """Whether there is something to repair, and no problem."""
        return not self.problems and any(not difference.reason for difference in self.differences)

    def check(self) -> None:
        """Raise the first problem as its error."""
        for problem in self.problems:
            error = PROBLEMS.get(problem.reason, Unavailable)
            raise error(problem.problem, reason=problem.reason, volume=self.volume)


Problem = Callable[[Action, str], tuple[str, str]]
"""Returns why a differing fact cannot be repaired, as a sentence and a reason; "": it can.

Of a CONFLICT, whose error says why, it returns what to do.
"""

BY_OWNER = ("restored by its owner, not by zfsilo (restore NEVER)", NOT_RESTORED)
PROBLEMS: dict[str, type[ZfsiloError]] = {
    LOST: FailedPrecondition,
    CONFLICT: Conflict,
    FILESYSTEM_FAILS: FailedPrecondition,
}


PREVENTS = ((CONFLICT, Zvol), (UNKNOWN, Session), (UNKNOWN, Controller))
"""Results after which the facts that depend on the step cannot hold, or be known."""


async def compare_all(context: Context, names: tuple[str, ...] = ()) -> list[DriftReport]:
    """Compare the volumes of these names, or all, with the host; busy ones are left out."""
    with context.read() as txn:
        views = [volume_view(txn, name) for name in names] if names else list(volume_views(txn))
    idle = [view for view in views if not view.operation]
    datasets = tuple(view.volume.dataset for view in idle if view.volume is not None)
    machine = await context.look(
        partial(context.machine.surveyed, datasets), timeout_s=INVENTORY_DEADLINE_S
    )
    probe = partial(compare, machine=machine, settings=context.settings)
    reports: list[DriftReport] = []
    for start in range(0, len(idle), AT_ONCE):
        some = map(probe, idle[start : start + AT_ONCE])
        reports += await context.look(partial(list, some))  # the thread probes
    return reports


def compare(view: VolumeView, machine: HostAdapters, settings: Settings) -> DriftReport:
    """Probe every fact of one volume."""
    return DriftReport(
        volume=view.id,
        uid=view.uid,
        differences=(
            *_differences(expected(view, settings), machine, partial(_problem, view)),
            *_differences(expected_by_owner(view, settings), machine, _left_to_owner),
        ),
    )


def _differences(
    actions: tuple[Action, ...], machine: HostAdapters, problem: Problem
) -> Iterator[Difference]:
    for action in actions:
        step = action.step
        if not isinstance(step, HostStep) or step.sticky:
            continue  # a fact of the server, or one that the daemon's sandbox hides
        reason, sentence = _probe(step, machine)
        if reason == (PRESENT if action.up else ABSENT):
            continue
        if reason in (PRESENT, ABSENT):
            sentence, reason = problem(action, reason)
        elif reason == CONFLICT:
            advice, _reason = problem(action, reason)
            sentence = "; ".join(filter(None, (sentence, advice)))
        yield Difference(fact=step.fact(), wanted=action.up, problem=sentence, reason=reason)
        if reason == LOST or (reason, type(step)) in PREVENTS:
            return  # the facts that depend on it cannot hold, or be known


def _left_to_owner(action: Action, _truth: str) -> tuple[str, str]:
    """Return why zfsilo does not repair a fact of an attachment with `restore` NEVER."""
    if not isinstance(action.step, FilesystemWorks):
        return BY_OWNER
    sentence = (
        f"the filesystem at {action.step.paths[0][0]} failed: detach the volume and attach it "
        "again, or delete its pod"
    )
    return sentence, FILESYSTEM_FAILS


def _problem(view: VolumeView, action: Action, truth: str) -> tuple[str, str]:
    if not isinstance(action.step, Zvol):
        return "", ""
    dataset, delete = action.step.dataset, delete_record(view.id)
    if truth == CONFLICT:
        return f"{as_copy(dataset)}; {delete}", CONFLICT
    sentence = (
        f"zvol {dataset} of volume {view.id} is missing: put it back with zfs rename or zfs "
        f"receive, and run `zfsiloctl adopt {dataset}`; {delete}"
    )
    return sentence, LOST


class Check(Record):
    """A fact of a volume with the result of its probe."""

    kind: str  # the class of the step
    text: str
    wanted: bool
    truth: str  # PRESENT, ABSENT, CONFLICT or UNKNOWN
    problem: str = ""
    parameters: Pairs = ()


def check_facts(view: VolumeView, machine: HostAdapters, settings: Settings) -> list[Check]:
    """Probe every fact that makes up a volume on this host."""
    checks = []
    for action in (*expected(view, settings), *expected_by_owner(view, settings)):
        step = action.step
        if not isinstance(step, HostStep):
            continue
        truth, problem = UNKNOWN, HIDDEN
        if not step.sticky:
            truth, problem = _probe(step, machine)
        check = Check(
            kind=type(step).__name__,
            text=step.fact(),
            wanted=action.up,
            truth=truth,
            problem=problem,
            parameters=tuple((name, _as_text(getattr(step, name))) for name in step.FIELDS),
        )
        checks.append(check)
    return checks


def _probe(step: HostStep, machine: HostAdapters) -> tuple[str, str]:
    """Return PRESENT, ABSENT, CONFLICT or UNKNOWN, and a sentence for the last two."""
    try:
        return (PRESENT if step.probe(machine) else ABSENT), ""
    except Conflict as error:
        return CONFLICT, error.message
    except ZfsiloError as error:
        return UNKNOWN, error.message


def _as_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def store_conditions(
    txn: Transaction,
    reports: list[DriftReport],
    failed: Mapping[str, ZfsiloError],
    *,
    repaired: bool = True,
) -> None:
    """Store the conditions of volumes for all readers; write only those that changed.

    `repaired`: the differences were repaired, except those of `failed`, by volume. Otherwise a
    known condition stays until nothing differs any more.
    """
    for report in reports:
        conditions = {problem.problem: problem.reason for problem in report.problems}
        error = failed.get(report.volume)
        if not conditions and error is not None:
            conditions = {error.message: error.reason}
        sentences, reasons = tuple(conditions), tuple(conditions.values())
        known = txn.get(Condition, report.uid)
        if sentences and (
            known is None or (known.sentences, known.reasons) != (sentences, reasons)
        ):
            txn.put(Condition(id=report.uid, sentences=sentences, reasons=reasons))
        elif known is not None and not sentences and (repaired or not report.missing):
            txn.drop(Condition.bucket(), report.uid)
    # Conditions of volumes that do not exist on this host any more.
    uids = {condition["id"] for condition in txn.scan_plain(Condition)}
    if uids:
        uids -= {volume["uid"] for volume in txn.scan_plain(Volume)}
        uids -= {attachment["disk"]["serial"] for attachment in txn.scan_plain(Attachment)}
    for uid in uids:
        txn.drop(Condition.bucket(), uid)
