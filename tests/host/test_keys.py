"""The keys of encryption roots, against a made-up zfs(8)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.host.zfs_tool import ZfsTool
from zfsilod.host.keys import RealKeys
from zfsilod.host.zfs import RealZfs
from zfsilod.model.disk_key import DiskKey
from zfsilod.model.errors import CommandFailed, Conflict, FailedPrecondition, Unavailable
from zfsilod.model.marks import SEALED_KEY

if TYPE_CHECKING:
    from zfsilod.host.run import Completed

NAME, CLONE, PLAIN = "tank/zfsilo/data", "tank/zfsilo/copy", "tank/zfsilo/plain"
UID = "0123456789abcdef0123456789abcdef"
FIRST, SECOND, THIRD = (DiskKey(digit * 64) for digit in "123")


class EncryptedZfs(ZfsTool):
    """A zfs that knows keys: of NAME, which CLONE has too."""

    def __init__(self) -> None:
        super().__init__("tank")
        self.inputs: list[bytes] = []
        self.key = FIRST.reveal()
        self.may_load = True
        for name in (NAME, CLONE):
            self.add(name, "volume", {"keystatus": "unavailable", "encryptionroot": NAME})
        self.add(PLAIN, "volume")

    def __call__(self, argv: list[str], **options: object) -> Completed:
        content = options.get("input", b"")
        assert isinstance(content, bytes | str)
        self.inputs.append(content if isinstance(content, bytes) else content.encode())
        assert not any(FIRST.reveal().hex() in word for word in argv), "a key is an argument"
        return super().__call__(argv, **options)  # type: ignore[arg-type]

    def do_create(self, words: list[str]) -> tuple[int, str, str]:
        self.key = self.inputs[-1]
        return super().do_create(words)

    @property
    def loaded(self) -> bool:
        return self.datasets[NAME]["keystatus"][0] == "available"

    def do_load_key(self, words: list[str]) -> tuple[int, str, str]:
        assert ("-L", "prompt") in pairwise(words)
        name, raw = words[-1], self.inputs[-1]
        if not self.may_load:
            return 255, "", "Key load error: Permission denied.\n"
        if name != NAME:
            return (
                255,
                "",
                f"Key load error: Keys must be loaded for encryption root of '{name}'.\n",
            )
        if raw != self.key:
            return 255, "", f"Key load error: Incorrect key provided for '{name}'.\n"
        if "-n" not in words:
            if self.loaded:
                return 255, "", f"Key load error: Key already loaded for '{name}'.\n"
            self.set_status("available")
        return 0, "", ""

    def do_change_key(self, words: list[str]) -> tuple[int, str, str]:
        assert words == ["-o", "keyformat=raw", "-o", "keylocation=prompt", NAME]
        if not self.loaded:
            return 255, "", "Key change error: Key must be loaded\n"
        self.key = self.inputs[-1]
        return 0, "", ""

    def set_status(self, status: str) -> None:
        """Say that the key is loaded, or not."""
        for name in (NAME, CLONE):
            self.datasets[name]["keystatus"] = (status, "-")

    def __getattr__(self, name: str) -> object:
        """Find the method of a command with a hyphen."""
        if name in ("do_load-key", "do_change-key"):
            return getattr(self, name.replace("-", "_"))
        raise AttributeError(name)


@pytest.fixture
def zfs() -> EncryptedZfs:
    return EncryptedZfs()


@pytest.fixture
def keys(zfs: EncryptedZfs) -> RealKeys:
    return RealKeys(zfs, RealZfs(zfs))


def test_a_key_is_loaded_for_the_encryption_root(zfs: EncryptedZfs, keys: RealKeys) -> None:
    assert not keys.is_loaded(CLONE)
    keys.load(CLONE, FIRST)
    assert keys.is_loaded(NAME)
    assert FIRST.reveal() in zfs.inputs
    keys.load(NAME, FIRST)
    assert zfs.starts.count("load-key") == 1, "a loaded key was loaded again"


def test_a_wrong_key_is_named(keys: RealKeys) -> None:
    with pytest.raises(FailedPrecondition, match="does not open") as raised:
        keys.load(NAME, SECOND)
    assert raised.value.reason == "KEY_MISMATCH"
    assert not keys.is_loaded(NAME)
    assert [keys.opens(NAME, key) for key in (FIRST, SECOND)] == [True, False]


def test_a_zvol_without_encryption_is_a_conflict(keys: RealKeys) -> None:
    with pytest.raises(Conflict, match="--raw"):
        keys.is_loaded(PLAIN)


def test_a_process_that_may_not_load_keys_does_not_know(zfs: EncryptedZfs, keys: RealKeys) -> None:
    zfs.may_load = False
    with pytest.raises(Unavailable, match="Permission denied"):
        keys.opens(NAME, FIRST)


def test_a_key_is_changed_once(zfs: EncryptedZfs, keys: RealKeys) -> None:
    with pytest.raises(CommandFailed, match="Key must be loaded"):
        keys.change(NAME, SECOND)
    keys.load(NAME, FIRST)
    keys.change(NAME, SECOND)
    assert (zfs.key, zfs.loaded) == (SECOND.reveal(), True)
    keys.change(NAME, SECOND)
    assert zfs.starts.count("change-key") == 2, "the key was changed twice"


def test_a_zvol_carries_the_key_of_its_encryption_root(zfs: EncryptedZfs, keys: RealKeys) -> None:
    assert keys.find_sealed(CLONE) == ""
    RealZfs(zfs).set_property(NAME, SEALED_KEY, "1:c2VhbGVk")
    assert [keys.find_sealed(name) for name in (NAME, CLONE)] == ["1:c2VhbGVk"] * 2
    assert keys.find_sealed(PLAIN) == ""


def test_the_key_of_a_new_zvol_is_input(zfs: EncryptedZfs) -> None:
    name = "tank/zfsilo/new"
    RealZfs(zfs).create_zvol(
        name,
        size_bytes=1 << 30,
        thin=True,
        volblocksize=16384,
        properties=(),
        marks=(("zfsilo:uid", UID),),
        key=THIRD,
    )
    options = {key: value for key, (value, _source) in zfs.datasets[name].items()}
    assert options["encryption"] == "aes-256-gcm"
    assert (options["keyformat"], options["keylocation"]) == ("raw", "prompt")
    assert zfs.key == THIRD.reveal()


def test_a_key_is_never_shown() -> None:
    for text in (repr(FIRST), f"{FIRST}", str(vars(DiskKey).keys())):
        assert FIRST.reveal().hex() not in text
    with pytest.raises(TypeError):
        FIRST.__reduce__()
