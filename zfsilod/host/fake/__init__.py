"""A simulated host, which consists of facts: for `zfsilod --simulate` and for tests.

With a path the facts are in a file that the daemon and its workers share, otherwise in memory. A
change that takes two system calls on a real host takes two effects here, so that half-made states
exist. There is one file for each adapter, as in host/; the contract tests (tests/lab/contract.py)
run the same examples with this host and with a real one. With the fact `disks` mounts are real:
see real_disks.py.
"""

from __future__ import annotations

from zfsilod.host.fake.block import FakeBlock
from zfsilod.host.fake.facts import VOLATILE, Facts
from zfsilod.host.fake.io_limits import FakeIoLimits
from zfsilod.host.fake.iscsi import FakeIscsi
from zfsilod.host.fake.keys import FakeKeys, MadeUpKeys
from zfsilod.host.fake.lio import FakeLio
from zfsilod.host.fake.mount import FakeMounts
from zfsilod.host.fake.nvme import FakeNvme
from zfsilod.host.fake.nvmet import FakeNvmet
from zfsilod.host.fake.snapshots import FakeSnapshots
from zfsilod.host.fake.zfs import SIMULATED_BYTES, FakeZfs
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.fake.replicas import FakeReplicas
    from zfsilod.host.server_protocols import KeyStore
    from zfsilod.model.chap import Chap
    from zfsilod.storage.paths import AnyPath

SIMULATED_MACHINE = "51" * 16
SHORTHANDS = ("minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")

__all__ = ["SIMULATED_BYTES", "SIMULATED_MACHINE", "VOLATILE", "Facts", "FakeHost"]


class FakeHost:
    """A simulated machine, server and client at once."""

    def __init__(
        self,
        path: AnyPath | None = None,
        *,
        chap: Callable[[str], Chap],
        key_store: KeyStore | None = None,
    ) -> None:
        self.facts = Facts(path)
        self.open_stream: Callable[[str], int] | None = None
        self._replicas: FakeReplicas | None = None
        self.chap = chap
        self.key_store = key_store or MadeUpKeys()
        self.zfs = FakeZfs(self.facts)
        self.snapshots = FakeSnapshots(self.zfs)
        self.mounts = FakeMounts(self.facts)
        if disks := self.facts.get("disks"):
            from zfsilod.host.fake import real_disks
            from zfsilod.host.run import Runner

            run = Runner()
            self.facts = real_disks.SharedFacts(path, disks)
            self.zfs = FakeZfs(self.facts)
            self.snapshots = real_disks.CopiedSnapshots(self.zfs, disks, run)
            self.mounts = real_disks.KernelMounts(self.facts, disks, run)
        self.keys = FakeKeys(self.zfs)
        self.lio = FakeLio(self.facts)
        self.nvmet = FakeNvmet(self.facts)
        self.limits = FakeIoLimits(self.facts)
        self.iscsi = FakeIscsi(self.facts)
        self.nvme = FakeNvme(self.facts)
        self.block = FakeBlock(self.facts)

    @property
    def replicas(self) -> FakeReplicas:
        """The replicas, made at their first use: few operations need them."""
        if self._replicas is None:
            from zfsilod.host.fake.replicas import FakeReplicas
            from zfsilod.host.replica_protocol import no_stream

            def open_stream(operation: str) -> int:
                return (self.open_stream or no_stream)(operation)

            self._replicas = FakeReplicas(self.snapshots, open_stream)
        return self._replicas

    def machine_id(self) -> str:
        """Return the fact "machine", which a test changes for another machine."""
        return str(self.facts.get("machine") or SIMULATED_MACHINE)

    def calendar_problem(self, calendar: str) -> str:
        """Return why this is no calendar: a word of systemd.time(7), or it has a number or `*`."""
        has_time = any(character.isdecimal() or character == "*" for character in calendar)
        return "" if has_time or calendar in SHORTHANDS else "it cannot be parsed"

    def calendar_due(self, calendar: str, after: int) -> int:
        """Return the time after two hours for hourly, after two days for all others."""
        return after + 2 * (3600 if calendar == "hourly" else 86400)

    def surveyed(self, _datasets: tuple[str, ...]) -> FakeHost:
        """Return this host: reading a fact starts no process."""
        return self
