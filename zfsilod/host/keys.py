"""Keys of encryption roots: zfs-load-key(8), zfs-change-key(8).

A key is the standard input of zfs, never an argument. A clone has the key and the encryption root
of its origin, so a key is loaded for the root that ZFS names.
"""

from __future__ import annotations

from zfsilod.host.zfs import ANY, CHANGE_TIMEOUT_S
from zfsilod.host.zfs_output import first_line, mismatch, not_encrypted, refused
from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import SEALED_KEY
from zfsilod.model.names import check_dataset

if TYPE_CHECKING:
    from zfsilod.host.run import Completed, Runner
    from zfsilod.host.zfs import RealZfs
    from zfsilod.model.disk_key import DiskKey

AVAILABLE, UNAVAILABLE = "available", "unavailable"  # values of keystatus: zfsprops(7)
FAILED = "Key load error: "
WRONG = "Incorrect key provided for "
LOADED = "Key already loaded for "
CHANGED = ("-o", "keyformat=raw", "-o", "keylocation=prompt")


class RealKeys:
    """The keys of encryption roots in the pools of this host; see KeyAdapter."""

    def __init__(self, run: Runner, zfs: RealZfs) -> None:
        self._run = run
        self._zfs = zfs

    def is_loaded(self, dataset: str) -> bool:
        status, _source = self._zfs.properties(dataset, ("keystatus",))["keystatus"]
        if status not in (AVAILABLE, UNAVAILABLE):
            raise not_encrypted(dataset)
        return status == AVAILABLE

    def load(self, dataset: str, key: DiskKey) -> None:
        if self.is_loaded(dataset):
            return
        root = self.find_root(dataset)
        done = self._with_key(key, "load-key", "-L", "prompt", root)
        if done.rc != 0 and not _reason(done).startswith(LOADED):
            raise mismatch(root) if _reason(done).startswith(WRONG) else _refused(done, root)

    def opens(self, dataset: str, key: DiskKey) -> bool:
        done = self._with_key(key, "load-key", "-n", "-L", "prompt", dataset)
        if done.rc == 0:
            return True
        if _reason(done).startswith(WRONG):
            return False
        raise Unavailable(f"the key of {dataset} cannot be checked: {_reason(done)}")

    def change(self, dataset: str, key: DiskKey) -> None:
        if self.opens(dataset, key):
            return
        done = self._with_key(key, "change-key", *CHANGED, dataset)
        if done.rc != 0:
            raise _refused(done, dataset)

    def find_root(self, dataset: str) -> str:
        root, _source = self._zfs.properties(dataset, ("encryptionroot",))["encryptionroot"]
        return "" if root == "-" else root

    def find_sealed(self, dataset: str) -> str:
        root = self.find_root(dataset)
        return self._zfs.find_mark(root, SEALED_KEY) if root else ""

    def _with_key(self, key: DiskKey, command: str, *args: str) -> Completed:
        check_dataset(args[-1])
        argv = ["zfs", command, *args]
        return self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY, input=key.reveal())


def _reason(done: Completed) -> str:
    return first_line(done).removeprefix(FAILED)


def _refused(done: Completed, dataset: str) -> ZfsiloError:
    return refused(done, _reason(done), dataset)
