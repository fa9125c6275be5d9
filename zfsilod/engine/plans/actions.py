"""Actions made of steps, in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.records import Action, Step

if TYPE_CHECKING:
    from collections.abc import Sequence


def up(steps: Sequence[Step]) -> tuple[Action, ...]:
    """Return the actions that make these facts true, first to last."""
    return tuple(Action(step=step, up=True) for step in steps)


def down(steps: Sequence[Step]) -> tuple[Action, ...]:
    """Return the actions that make these facts false, last to first."""
    return tuple(Action(step=step, up=False) for step in reversed(steps))
