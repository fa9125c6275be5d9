"""Many zvols, looked at in one process: what Sync probes a thousand volumes with.

The answers are those of one moment. That is sound where nobody else changes the datasets meanwhile:
in a worker, whose operations claim them, or where a wrong answer only makes a worker look again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.zfs import ANY, UID, RealZfs
from zfsilod.host.zfs_output import table
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.names import check_dataset

if TYPE_CHECKING:
    from zfsilod.host.run import Runner

TIMEOUT_S = 120
PROPERTIES = ("type", "guid", UID, "volsize")

Found = dict[str, tuple[str, str]]


class SurveyedZfs(RealZfs):
    """The pools of this host; what probes ask of the surveyed datasets is known already."""

    def __init__(self, run: Runner, datasets: tuple[str, ...]) -> None:
        super().__init__(run)
        self._found: dict[str, Found] = {}
        self._troubles: dict[str, ZfsiloError] = {}
        self._parents = sorted({_parent(check_dataset(dataset)) for dataset in datasets})
        if self._parents:
            self._find()

    def _find(self) -> None:
        argv = ["zfs", "get", "-Hp", "-r", "-d", "1", "-t", "filesystem,volume"]
        argv += ["-o", "name,property,value,source", ",".join(PROPERTIES), *self._parents]
        done = self._run(argv, timeout_s=TIMEOUT_S, ok=ANY)
        # A listing that was cut short must not make a zvol look absent.
        self._found = table(done.stdout) if done.rc in (0, 1) else {}
        for parent in self._parents:
            if done.rc != 0 or parent not in self._found:
                self._explain(parent)

    def _explain(self, parent: str) -> None:
        """Find out why a parent was not listed, or not wholly; its children share the reason."""
        try:
            if super()._look(parent, "type"):
                self._parents = [each for each in self._parents if each != parent]
        except ZfsiloError as error:
            self._troubles[parent] = error

    def _look(self, dataset: str, *names: str) -> Found:
        """Answer from the survey what it covers, and ask zfs for the rest."""
        parent = _parent(dataset)
        if parent in self._troubles:
            raise self._troubles[parent]
        found = self._found.get(dataset, {})
        told = not found or set(names) <= found.keys()
        if parent not in self._parents or not set(names) <= set(PROPERTIES) or not told:
            return super()._look(dataset, *names)
        return {name: found[name] for name in names} if found else {}


def _parent(dataset: str) -> str:
    return dataset.rpartition("/")[0] or dataset
