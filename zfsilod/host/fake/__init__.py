"""A host that is only a set of facts: for `--simulate`, for trying things out, and for tests.

Facts lie in a file when a path is given (daemon and workers share it) and in memory otherwise. What
takes two effects on a real host takes two here, so half-made states exist. One file an adapter, as
in host/; the contract tests run the same examples here and on a real host, which keeps them honest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.fake.block import FakeBlock
from zfsilod.host.fake.facts import VOLATILE, Facts
from zfsilod.host.fake.iscsi import FakeIscsi
from zfsilod.host.fake.lio import FakeLio
from zfsilod.host.fake.mount import FakeMounts
from zfsilod.host.fake.snapshots import FakeSnapshots
from zfsilod.host.fake.zfs import SIMULATED_BYTES, FakeZfs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zfsilod.model.chap import Chap

__all__ = ["SIMULATED_BYTES", "VOLATILE", "Facts", "FakeHost"]


class FakeHost:
    """A whole simulated machine, storage host and consumer at once."""

    def __init__(self, path: Path | None = None, *, chap: Callable[[str], Chap]) -> None:
        self.facts = Facts(path)
        self.zfs = FakeZfs(self.facts)
        self.snapshots = FakeSnapshots(self.zfs)
        self.lio = FakeLio(self.facts)
        self.iscsi = FakeIscsi(self.facts)
        self.block = FakeBlock(self.facts)
        self.mounts = FakeMounts(self.facts)
        self.chap = chap

    def surveyed(self, _datasets: tuple[str, ...]) -> FakeHost:
        """Return this host: its facts are looked at without a process anyway."""
        return self
