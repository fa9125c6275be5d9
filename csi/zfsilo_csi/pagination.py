"""Pages of lists that span all backends. A token is BACKEND:TOKEN, with the token of that backend.

A backend signs its own tokens; every other text is refused with ABORTED, as CSI demands.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zfsilo_csi.errors import Code, CsiError, invalid, nonsense

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from zfsilo_csi.backends import Backend, Backends

T = TypeVar("T", bound="Message")
# Items of one backend, as messages of CSI so that a list is in memory once, and its next token.
BackendPage = Awaitable[tuple[list[T], str]]
MAX_PAGE = 1000  # of a backend
MAX_ITEMS = 2000  # of one page of the plugin
# Clients of gRPC accept 4 MiB. A page of the plugin ends with the page of a backend that takes it
# over MAX_BYTES, so those have few items: one with many zones or nodes has some KiB.
MAX_BYTES, PART = 2 << 20, 200


class Position(NamedTuple):
    """The start of a page."""

    backend: str
    token: str  # of this backend; "": its first page


def write_token(position: Position | None) -> str:
    """Return the token of a position; "" for None, the end of the list."""
    return f"{position.backend}:{position.token}" if position else ""


def read_token(token: str, backends: list[str]) -> Position:
    """Return the position of a token; "" is the start of the list. Raises ABORTED."""
    if not token:
        return Position(backends[0], "")
    backend, colon, rest = token.partition(":")
    if not colon or backend not in backends:
        raise invalid_token()
    return Position(backend, rest)


def invalid_token() -> CsiError:
    """Return the error for a token that no list of the plugin returned."""
    return CsiError(Code.ABORTED, "starting_token is invalid; list again without it")


async def collect(
    backends: Backends,
    start: Position,
    limit: int,
    page: Callable[[Backend, str, int], BackendPage[T]],
) -> tuple[list[T], Position | None]:
    """Return up to `limit` items (0: MAX_ITEMS) from a position on, and the position behind them.

    The list ends earlier at MAX_BYTES.

    An error of one backend is an error of the whole list, because an orchestrator would take the
    items that a partial list lacks for deleted.
    """
    if limit < 0:
        raise invalid(f"max_entries is {limit}; use 0 (no limit) or more")
    limit = min(limit or MAX_ITEMS, MAX_ITEMS)
    items: list[T] = []
    size_bytes = 0
    position: Position | None = start
    while position is not None and len(items) < limit and size_bytes < MAX_BYTES:
        backend = backends.get(position.backend)
        size = min(PART, limit - len(items))
        some, token = await page(backend, position.token, size)
        if len(some) > size or (token and token == position.token):
            raise nonsense(backend.name, "its page is longer than requested, or does not end")
        items += some
        size_bytes += sum(item.ByteSize() for item in some)
        if token:
            position = Position(backend.key, token)
        else:
            later = backends.names[backends.names.index(backend.key) + 1 :]
            position = Position(later[0], "") if later else None
    return items, position
