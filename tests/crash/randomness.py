"""Counted numbers in place of random numbers and clocks, so that two runs can be compared."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterator

TODAY = 1_800_000_000.0


class CountedRandomness:
    """A counter in place of random numbers and clocks, so that two runs can be compared."""

    def __init__(self) -> None:
        self.count = self.saved_count = 0

    def save(self) -> None:
        """Remember the count, for `restore`."""
        self.saved_count = self.count

    def restore(self) -> None:
        """Continue from the saved count: the next run draws the numbers of the one before."""
        self.count = self.saved_count

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _bits(self, _count: int) -> int:
        return self._next()

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Replace the sources of random numbers and the wall clock."""
        with (
            mock.patch("os.urandom", lambda size: self._next().to_bytes(size, "big")),
            mock.patch("secrets.randbits", self._bits),
            mock.patch("time.time", return_value=TODAY),
            mock.patch("time.time_ns", return_value=int(TODAY * 1e9)),
        ):
            yield
