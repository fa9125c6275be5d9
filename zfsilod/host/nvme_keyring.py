"""PSKs of TLS for NVMe/TCP in the kernel's keyring `.nvme`, where kernel and tlshd look them up.

drivers/nvme/common/keyring.c of the kernel makes the keyring and the key type `psk`; a key is found
by its description, the identity of the PSK. The system calls are those of keyctl(2) and add_key(2),
so that no key is in an argument. Like the keyring, a key is gone after a reboot.

Only /proc/keys names the keyring, which a worker sees and the daemon, in its sandbox, does not. So
a worker notes the serial number of the keyring before it adds a key.
"""

from __future__ import annotations

import errno
import os

from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.storage.files import make_folder, write_private
from zfsilod.storage.paths import exists, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from zfsilod.model.chap import Chap
    from zfsilod.storage.paths import AnyPath

KEYRING, TYPE = ".nvme", "psk"
IDENTITY = "NVMe1R01"  # of a retained PSK for SHA-256, with a hash of the PSK
NOTE = "/run/zfsilo/nvme-keyring"  # its serial number; only root may create files there
# linux/keyctl.h, asm/unistd_64.h and asm-generic/unistd.h
KEYCTL_DESCRIBE, KEYCTL_UNLINK, KEYCTL_READ = 6, 9, 11
CALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}  # add_key, keyctl
Psks = dict[tuple[str, str], dict[int, str]]
"""Serials and identities by the host and the subsystem of the identity."""
GONE = (errno.ENOKEY, errno.EKEYREVOKED, errno.EKEYEXPIRED)
SERIAL_BYTES = 4
HEX = frozenset("0123456789abcdef")
DESCRIPTION_BYTES = 4096  # type;uid;gid;mode;description


class KeyCalls:
    """The system calls on keys. Each raises OSError; ENOSYS on a machine that is not in CALLS."""

    def __init__(self, kind: str = TYPE) -> None:
        """`kind`: the type of the keys."""
        self._kind = kind

    def add(self, keyring: int, description: str, payload: bytes) -> int:
        """Add a key to a keyring, in place of one with the same description; return its serial."""
        kind, name = self._kind.encode(), description.encode()
        return _call(_numbers()[0], kind, name, payload, len(payload), keyring)

    def unlink(self, keyring: int, serial: int) -> None:
        """Remove a key from a keyring; the kernel forgets a key that is in none."""
        self._keyctl(KEYCTL_UNLINK, serial, keyring)

    def serials(self, keyring: int) -> list[int]:
        """Return the keys in a keyring."""
        content = self._read(KEYCTL_READ, keyring, self._keyctl(KEYCTL_READ, keyring, None, 0))
        starts = range(0, len(content), SERIAL_BYTES)
        return [_number(content[start : start + SERIAL_BYTES]) for start in starts]

    def describe(self, serial: int) -> tuple[str, str]:
        """Return type and description of a key."""
        text = (
            self._read(KEYCTL_DESCRIBE, serial, DESCRIPTION_BYTES)
            .rstrip(b"\0")
            .decode(errors="replace")
        )
        kind, _uid, _gid, _mode, description = text.split(";", 4)
        return kind, description

    def _read(self, command: int, serial: int, size: int) -> bytes:
        import ctypes  # takes 4 ms, in a worker with TLS

        content = ctypes.create_string_buffer(size)
        length = self._keyctl(command, serial, content, size)
        return content.raw[: min(length, size)]

    def _keyctl(self, *arguments: Any) -> int:
        return _call(_numbers()[1], *arguments)


class NvmeKeyring:
    """The PSKs of this host, as a client or as a server.

    A host that connects to its own target has one PSK for both, with one identity. It is the
    target's: the client never removes it, nor the other one that the target has after a rotation.
    """

    def __init__(
        self,
        proc: AnyPath = "/proc",
        calls: KeyCalls | None = None,
        note: AnyPath = NOTE,
        target_hosts: AnyPath = "",
    ) -> None:
        """`target_hosts`: of a client, the folder of the hosts of this host's target."""
        self._proc = os.fspath(proc)
        self._calls = calls or KeyCalls()
        self._note = os.fspath(note)
        self._target_hosts = os.fspath(target_hosts)
        self._seen: tuple[list[int], Psks] = ([], {})

    @property
    def is_made(self) -> bool:
        """Whether the kernel has made the keyring: nvme-tcp and nvmet-tcp load its module."""
        return self._find() is not None

    def has(self, chap: Chap) -> bool:
        """Tell whether the keyring has the PSK of a connection, and no other one for it.

        Raises Unavailable where the keyring cannot be seen.
        """
        keyring = self._find()
        keys = [] if keyring is None else list(self._keys_of(keyring, chap).values())
        identity = _derived_psk(chap)[0]
        return identity in keys if self._is_shared(chap.username) else keys == [identity]

    def serial(self, chap: Chap) -> int | None:
        """Return the serial number of the PSK of a connection; None: the keyring has none.

        Raises Unavailable.
        """
        keyring = self._find()
        identity = _derived_psk(chap)[0]
        keys = {} if keyring is None else self._keys_of(keyring, chap)
        return next((serial for serial, other in keys.items() if other == identity), None)

    def put(self, chap: Chap) -> None:
        """Add the PSK of a connection, then remove others of its host and subsystem.

        The new one comes first: a controller that connects again meanwhile finds a key, without
        which the kernel gives it up. Raises FailedPrecondition (NO_NVME_TLS), Unavailable.
        """
        keyring = self._find()
        if keyring is None:
            raise FailedPrecondition(
                "the kernel of this host has no keyring for TLS over NVMe/TCP: it needs "
                "CONFIG_NVME_TCP_TLS, on a server CONFIG_NVME_TARGET_TCP_TLS",
                reason="NO_NVME_TLS",
            )
        make_folder(os.path.dirname(self._note))
        write_private(self._note, f"{keyring}\n".encode())
        identity, psk = _derived_psk(chap)
        present = self._keys_of(keyring, chap)
        if identity not in present.values():
            with _typed_errors("add a key"):
                self._calls.add(keyring, identity, psk)
        for serial, other in present.items():
            if other != identity and not self._is_shared(chap.username):
                self._unlink(keyring, serial)

    def remove(self, host: str, subsystem: str) -> None:
        """Remove each PSK of a host and a subsystem."""
        keyring = self._find()
        if keyring is not None:
            for serial in self._psks(keyring).get((host, subsystem), {}):
                self._unlink(keyring, serial)

    def forget(self, subsystem: str) -> None:
        """Remove the PSKs of a client for a subsystem. Raises Unavailable."""
        for host in self.hosts(subsystem):
            if not self._is_shared(host):
                self.remove(host, subsystem)

    def _is_shared(self, host: str) -> bool:
        """Tell whether a target of this host has the PSK too."""
        return bool(self._target_hosts) and exists(f"{self._target_hosts}/{host}")

    def hosts(self, subsystem: str) -> list[str]:
        """Return the hosts that have a PSK for a subsystem."""
        keyring = self._find()
        psks = {} if keyring is None else self._psks(keyring)
        return sorted(host for host, other in psks if other == subsystem)

    def _keys_of(self, keyring: int, chap: Chap) -> dict[int, str]:
        """Return the PSKs of a host and a subsystem: serials and identities."""
        return self._psks(keyring).get((chap.username, chap.mutual_username), {})

    def _psks(self, keyring: int) -> Psks:
        """Return all PSKs; they are read once while the keyring has the same keys.

        A comparison of many volumes asks for those of each.
        """
        with _typed_errors("list the keys"):
            serials = self._calls.serials(keyring)
            if serials == self._seen[0]:
                return self._seen[1]
            psks: Psks = {}
            for serial in serials:
                kind, identity = self._described(serial)  # ("", "") if it was removed meanwhile
                words = identity.split(" ")
                if kind == TYPE and len(words) == 4 and words[0] == IDENTITY:
                    psks.setdefault((words[1], words[2]), {})[serial] = identity
        self._seen = (serials, psks)
        return psks

    def _described(self, serial: int) -> tuple[str, str]:
        """Return type and description of a key; empty ones if it does not exist."""
        try:
            return self._calls.describe(serial)
        except OSError as error:
            if error.errno in GONE:
                return "", ""
            raise

    def _unlink(self, keyring: int, serial: int) -> None:
        with _typed_errors("remove a key"):
            try:
                self._calls.unlink(keyring, serial)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOKEY):
                    raise

    def _find(self) -> int | None:
        """Return the serial number of the keyring: proc_keys(5); None: the kernel has none."""
        try:
            lines = read_text(f"{self._proc}/keys", errors="replace").split("\n")
        except FileNotFoundError:
            if exists(f"{self._proc}/version"):  # which ProcSubset=pid hides too
                return None  # a kernel without keyrings
            return self._find_noted()
        # Any user makes keys whose descriptions are of any bytes, line ends too.
        for line in lines:
            words = line.split(None, 8)
            if len(words) == 9 and words[7] == "keyring" and words[8].startswith(f"{KEYRING}:"):
                serial = int(words[0], 16) if HEX.issuperset(words[0]) else 0
                if serial and self._is_keyring(serial):
                    return serial
        return None

    def _is_keyring(self, serial: int) -> bool:
        """Tell whether a key is the keyring: only the kernel makes one whose name has that dot."""
        with _typed_errors("find the keys"):
            try:
                return self._described(serial) == ("keyring", KEYRING)
            except PermissionError:
                return False  # root may look at that of the kernel

    def _find_noted(self) -> int | None:
        """Return the keyring that a worker noted; None: the kernel has removed it since."""
        try:
            serial = int(read_text(self._note))
        except FileNotFoundError as error:
            raise Unavailable(
                f"the keyring {KEYRING} of the kernel cannot be seen from here, and no worker has "
                "noted it since the boot"
            ) from error
        return serial if self._is_keyring(serial) else None


def _derived_psk(chap: Chap) -> tuple[str, bytes]:
    from zfsilod.host.nvme_psk import derived_psk  # only a worker with TLS needs it

    return derived_psk(chap)


@contextmanager
def _typed_errors(what: str) -> Iterator[None]:
    """Raise Unavailable for an OSError of a system call on keys."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"cannot {what} of TLS in the keyring {KEYRING}: {error.strerror}"
        ) from error


def _numbers() -> tuple[int, int]:
    """Return the numbers of the system calls. Raises OSError for an unknown machine."""
    import sys

    machine = os.uname().machine
    if machine not in CALLS or sys.maxsize < 2**32:  # a process of 32 bits has others
        raise OSError(errno.ENOSYS, f"zfsilo does not know the system calls of {machine}")
    return CALLS[machine]


def _call(number: int, *arguments: Any) -> int:
    """Make a system call. Raises OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *map(_argument, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _argument(value: Any) -> Any:
    import ctypes

    return ctypes.c_long(value) if isinstance(value, int) else value


def _number(raw: bytes) -> int:
    import sys

    return int.from_bytes(raw, sys.byteorder)
