"""Tokens of lists that go over several backends: which backend, and where in its own list.

A backend signs its part; whatever else does not fit is refused with ABORTED, as CSI wants it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zfsilo_csi.errors import Code, CsiError, invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilo_csi.backends import Backend, Backends

T = TypeVar("T")
Answer = Awaitable[tuple[list[T], str]]  # things, and the token behind them
MAX_PAGE = 1000


class SandboxPart(NamedTuple):
    """Where a page begins."""

    backend: str
    token: str  # of that backend; "": from its beginning


def write(place: SandboxPart | None) -> str:
    """Return the token of a place; "": nothing follows."""
    return f"{place.backend}:{place.token}" if place else ""


def read(token: str, backends: list[str]) -> SandboxPart:
    """Return the place that a token names, with "" the beginning of all. Raises ABORTED."""
    if not token:
        return SandboxPart(backends[0], "")
    backend, colon, rest = token.partition(":")
    if not colon or backend not in backends:
        raise CsiError(Code.ABORTED, "the starting token is not one of this plugin's")
    return SandboxPart(backend, rest)


async def walk(
    backends: Backends,
    place: SandboxPart,
    limit: int,
    page: Callable[[Backend, str, int], Answer[T]],
) -> tuple[list[tuple[Backend, T]], SandboxPart | None]:
    """Collect up to `limit` things (0: all) from a place on, and tell where the next page begins.

    A backend that fails fails the whole list: one that is only a part would make the orchestrator
    believe that the rest is gone.
    """
    if limit < 0:
        raise invalid("max_entries is negative")
    found: list[tuple[Backend, T]] = []
    next_place: SandboxPart | None = place
    while next_place is not None and (not limit or len(found) < limit):
        backend = backends.get(next_place.backend)
        size = min(MAX_PAGE, limit - len(found)) if limit else MAX_PAGE
        some, token = await page(backend, next_place.token, size)
        found += [(backend, each) for each in some]
        next_place = _after(backends, next_place, token)
    return found, next_place


def _after(backends: Backends, place: SandboxPart, token: str) -> SandboxPart | None:
    if token:
        return SandboxPart(place.backend, token)
    behind = backends.names[backends.names.index(place.backend) + 1 :]
    return SandboxPart(behind[0], "") if behind else None
