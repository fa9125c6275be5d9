"""HostStep, the base class of all steps of a worker, with its variants Guard and OneWay.

A step is one fact about this host: how it is probed, made true and made false, the words for it,
the things that it concerns, the part of the sandbox that it needs, and the limit of each field
(limits.py). A subclass with a tag that lacks one of these is refused when the class is made.
"""

from __future__ import annotations

from abc import abstractmethod

from zfsilod.engine.limits import check_of
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Step

if TYPE_CHECKING:
    from typing import ClassVar

    from zfsilod.host import HostAdapters
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.records import Operation
    from zfsilod.model.words import SandboxPart

KEPT = "kept"
"""The fact of an operation whose rollback kept something: a sentence that says what, and why."""
CUT = "cut"
"""The fact of an operation that ended uses by force: their names, which its title gets."""


POOL_PARTS: tuple[SandboxPart, ...] = ("POOL", "TARGET")
"""What belongs to the pool: the zvols, and the exports that lead to them."""


class HostStep(Step):
    """A fact about this host: the worker probes it, makes it true and makes it false."""

    ABSTRACT: ClassVar[tuple[str, ...]] = (*Step.ABSTRACT, "probe", "do", "undo")
    part: ClassVar[SandboxPart]
    stays: ClassVar[bool] = False  # once made it is never reverted: its operation is finished

    def __init_subclass__(
        cls, *, part: SandboxPart | None = None, tag: str = "", aliases: tuple[str, ...] = ()
    ) -> None:
        """Set the sandbox part."""
        if part is not None:
            cls.part = part
        super().__init_subclass__(tag=tag, aliases=aliases)

    @classmethod
    def check_class(cls) -> None:
        """Raise TypeError when the class has no sandbox part, or a field without a limit."""
        if not hasattr(cls, "part"):
            raise TypeError(f"{cls.__name__} has no sandbox part: add part= to the class")
        for name in cls.FIELDS:
            if check_of(cls.TAG, name) is None:
                raise TypeError(
                    f"the field {name} of {cls.__name__} has no limit: add it to FIELDS in "
                    "engine/limits.py"
                )

    @abstractmethod
    def probe(self, host: HostAdapters) -> bool:
        """Tell whether the fact is true. Raises Conflict or Unavailable, and changes nothing."""

    @abstractmethod
    def do(self, host: HostAdapters) -> None:
        """Make the fact true, from any half-made state."""

    @abstractmethod
    def undo(self, host: HostAdapters) -> None:
        """Make the fact false, from any half-made state."""

    @property
    def waits(self) -> bool:
        """Whether it may wait for another host."""
        return False

    def safe_untried(self, _host: HostAdapters) -> bool:
        """Tell whether `undo` does no harm now, although `do` was never tried.

        Asked when the fact is not true. A step that may be half made, or true in another way, is
        marked alone: a rollback that undoes it untried would remove what was there before.
        """
        return False

    def revert(self, host: HostAdapters) -> dict[str, str]:
        """Undo what this operation made, unless it is sticky; return what it leaves, as `observed`.

        A rollback calls it instead of `undo`. A step that creates a place for data overrides it: a
        rollback never destroys what somebody may have written, and returns KEPT with a sentence.
        """
        if not self.sticky:
            self.undo(host)
        return {}

    def check_current(self, host: HostAdapters) -> None:
        """Raise Conflict when the host knows a later change than this step: the store is old.

        A rollback of an operation with such a step changes nothing.
        """

    def must_finish(self, _host: HostAdapters) -> bool:
        """Tell whether an operation that a reboot stopped after this step has to be finished.

        A rollback would count what the reboot removed as undone, although the operation may have
        been completed: its store may be a backup from the middle of it.
        """
        return False

    def observed(self, _host: HostAdapters, *, made: bool) -> dict[str, str]:
        """Return values that only the host knows once the fact is true; they complete the record.

        `made`: this operation made it true; otherwise it was true before.
        """
        return {}


class Guard(HostStep):
    """A condition for the steps after it: `do` raises its refusal, `undo` changes nothing."""

    def do(self, host: HostAdapters) -> None:
        """Refuse. Raises `refusal`."""
        raise self.refusal(host)

    def undo(self, _host: HostAdapters) -> None:
        """Change nothing, since `do` changed nothing."""

    @abstractmethod
    def refusal(self, host: HostAdapters) -> ZfsiloError:
        """Return the error that says why the condition does not hold."""

    def describe_undo(self) -> str:
        """Return the words for `undo`."""
        return f"no longer check that {self.fact()}"


class OneWay(HostStep):
    """A fact that is never made false again: `undo` changes nothing."""

    def undo(self, _host: HostAdapters) -> None:
        """Change nothing; the docstring of the step says why."""

    def safe_untried(self, _host: HostAdapters) -> bool:
        """Tell whether `undo` does no harm: it changes nothing."""
        return True

    def describe_undo(self) -> str:
        """Return the words for `undo`."""
        return f"keep: {self.fact()}"


def touches_pool(operation: Operation) -> bool:
    """Tell whether an operation changes the pool or an export."""
    steps = (action.step for action in operation.actions)
    return any(isinstance(step, HostStep) and step.part in POOL_PARTS for step in steps)


def may_share_unit(operation: Operation) -> bool:
    """Tell whether an operation may run after others in one unit.

    It changes only the pool or an export, and waits for no other host: what it starts ends soon.
    """
    return all(
        isinstance(action.step, HostStep)
        and action.step.part in POOL_PARTS
        and not action.step.waits
        for action in operation.actions
    )
