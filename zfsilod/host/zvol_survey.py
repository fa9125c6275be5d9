"""Probes many zvols with one process, as SyncVolumes needs for a thousand volumes.

The answers are those of one moment, which is correct where no other process changes the datasets
meanwhile: in a worker, whose operations have claimed them, and in the daemon, where an outdated
answer only starts a worker that probes again. A dataset that this process changes is asked again.
"""

from __future__ import annotations

from zfsilod.host.run import Runner
from zfsilod.host.zfs import ANY, UID, RealZfs
from zfsilod.host.zfs_output import Properties, table
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import EPOCH
from zfsilod.model.names import check_dataset

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.host.run import Completed

TIMEOUT_S = 120
READS = ("get", "list")  # commands of zfs(8) that change nothing
KEYS = ("load-key", "unload-key", "change-key")  # they change all that share an encryption root
SURVEYED = ("type", "guid", UID, EPOCH, "volsize", "sync", "keystatus")


class WatchingRunner(Runner):
    """A runner that remembers the datasets that zfs was told to change."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self._wrapped = run
        self._changed: set[str] = set()
        self._keys_changed = False

    def __call__(self, argv: list[str], **how: Any) -> Completed:
        """Run a tool. What a command failed to do may be done in part, so all commands count."""
        if argv[0] == "zfs" and argv[1] not in READS:
            self._changed.update(word.partition("@")[0] for word in argv[2:])
            self._keys_changed = self._keys_changed or argv[1] in KEYS
        return self._wrapped(argv, **how)

    def has_changed(self, dataset: str) -> bool:
        """Tell whether a command may have changed properties of a dataset."""
        return self._keys_changed or dataset in self._changed


class SurveyedZfs(RealZfs):
    """The zvols of this host; the SURVEYED properties of some are read in advance, once.

    The other adapters of the host have to run their tools by `run`.
    """

    def __init__(self, run: Runner, datasets: tuple[str, ...]) -> None:
        self.run = WatchingRunner(run)
        super().__init__(self.run)
        self._properties: dict[str, Properties] = {}
        self._errors: dict[str, ZfsiloError] = {}
        self._parents = sorted({_parent(check_dataset(dataset)) for dataset in datasets})
        if not self._parents:
            return
        # All children of the parents, in one listing: zfs-get(8) with `-d 1`.
        argv = ["zfs", "get", "-Hp", "-r", "-d", "1", "-t", "filesystem,volume"]
        argv += ["-o", "name,property,value,source", ",".join(SURVEYED), *self._parents]
        done = self._run(argv, timeout_s=TIMEOUT_S, ok=ANY)
        # An incomplete listing must not make a zvol seem to be missing.
        self._properties = table(done.stdout) if done.rc in (0, 1) else {}
        for parent in self._parents:
            if done.rc != 0 or parent not in self._properties:
                self._exclude(parent)

    def _exclude(self, parent: str) -> None:
        """Leave a parent that was not listed completely out of the survey, or keep its error."""
        try:
            if super()._get(parent, "type"):
                self._parents = [other for other in self._parents if other != parent]
        except ZfsiloError as error:
            self._errors[parent] = error

    def _get(self, dataset: str, *names: str) -> Properties:
        """Return properties from the survey where it has them, otherwise from zfs."""
        parent = _parent(dataset)
        if self.run.has_changed(dataset):
            return super()._get(dataset, *names)
        if parent in self._errors:
            raise self._errors[parent]
        properties = self._properties.get(dataset, {})
        complete = not properties or set(names) <= properties.keys()
        if parent not in self._parents or not set(names) <= set(SURVEYED) or not complete:
            return super()._get(dataset, *names)
        return {name: properties[name] for name in names} if properties else {}


def _parent(dataset: str) -> str:
    return dataset.rpartition("/")[0] or dataset
