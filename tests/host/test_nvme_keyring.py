"""PSKs in the kernel's keyring for NVMe/TCP, over made-up system calls and over real ones."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import UID, FakeKeyCalls
from zfsilod.host.nvme_keyring import KeyCalls, NvmeKeyring
from zfsilod.model.chap import Chap
from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.names import host_nqn

if TYPE_CHECKING:
    from pathlib import Path

TARGET = f"nqn.2026-01.org.zfsilo:give:{UID}"
TAKE, OTHER = host_nqn("take", UID), host_nqn("other", UID)
PROCESS_KEYRING = -2


def keys(host: str = TAKE) -> Chap:
    return Chap.make_keys(host=host, subsystem=TARGET, tls=True)


@pytest.fixture
def calls(tmp_path: Path) -> FakeKeyCalls:
    return FakeKeyCalls(tmp_path / "proc")


@pytest.fixture
def keyring(calls: FakeKeyCalls) -> NvmeKeyring:
    return NvmeKeyring(calls.proc, calls, calls.note)


def test_a_psk_is_put_found_and_removed(calls: FakeKeyCalls, keyring: NvmeKeyring) -> None:
    one, other = keys(), keys(OTHER)
    assert not keyring.has(one)
    assert keyring.serial(one) is None
    keyring.put(one)
    keyring.put(other)
    assert keyring.has(one)
    assert keyring.hosts(TARGET) == sorted([OTHER, TAKE])
    serial = keyring.serial(one)
    keyring.put(one)
    assert keyring.serial(one) == serial, "the same PSK stays, with the controllers that name it"
    keyring.remove(TAKE, TARGET)
    assert keyring.hosts(TARGET) == [OTHER]
    assert not keyring.has(one)
    keyring.remove(TAKE, TARGET)


def test_the_configured_psk_is_not_in_the_keyring(
    calls: FakeKeyCalls, keyring: NvmeKeyring
) -> None:
    chap = keys()
    keyring.put(chap)
    (added,) = calls.payloads.values()
    assert len(added) == 32
    assert added not in chap.tls_key.reveal().encode()


def test_a_new_psk_comes_before_the_former_one_goes(
    calls: FakeKeyCalls, keyring: NvmeKeyring
) -> None:
    """A controller that connects again without any key is given up by the kernel."""
    former, new = keys(), keys()
    keyring.put(former)
    calls.log.clear()
    keyring.put(new)
    assert [call for call, _serial in calls.log] == ["add", "unlink"]
    assert keyring.has(new)
    assert not keyring.has(former)


def test_two_psks_of_one_host_are_not_right(calls: FakeKeyCalls, keyring: NvmeKeyring) -> None:
    """The kernel takes the first one that it finds."""
    former, new = keys(), keys()
    keyring.put(former)
    calls.fail = {"unlink": errno.EACCES}
    with pytest.raises(Unavailable):
        keyring.put(new)
    assert not keyring.has(new)
    calls.fail = {}
    keyring.put(new)
    assert keyring.has(new)


def test_a_key_that_goes_meanwhile_is_no_error(calls: FakeKeyCalls, keyring: NvmeKeyring) -> None:
    keyring.put(keys())
    for number in (errno.ENOKEY, errno.EKEYREVOKED):
        calls.fail = {"describe": number}
        assert keyring.hosts(TARGET) == []
    calls.fail = {"unlink": errno.ENOENT}
    keyring.remove(TAKE, TARGET)


def test_each_key_is_read_once_for_many_volumes(
    calls: FakeKeyCalls, keyring: NvmeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaps = [keys(host_nqn(f"host{number}", UID)) for number in range(5)]
    for chap in chaps:
        keyring.put(chap)
    described: list[int] = []
    describe = calls.describe

    def count(serial: int) -> tuple[str, str]:
        described.append(serial)
        return describe(serial)

    monkeypatch.setattr(calls, "describe", count)
    assert all(map(keyring.has, chaps * 3))
    assert len(set(described) - {calls.KEYRING}) == len(chaps)
    assert len(described) == len(chaps) + described.count(calls.KEYRING)
    keyring.remove(chaps[0].username, TARGET)
    assert [keyring.has(chap) for chap in chaps] == [False, True, True, True, True]


def test_keys_of_others_stay(calls: FakeKeyCalls, keyring: NvmeKeyring) -> None:
    foreign = calls.add(calls.KEYRING, f"NVMe1R01 nqn.foreign {TARGET} AAAA", b"x" * 32)
    keyring.put(keys())
    keyring.remove(TAKE, TARGET)
    assert list(calls.payloads) == [foreign]


@pytest.mark.parametrize("number", [0, errno.ENOKEY, errno.EACCES], ids=["seen", "gone", "hidden"])
def test_a_key_of_another_user_is_not_taken_for_the_keyring(
    number: int, calls: FakeKeyCalls, keyring: NvmeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its description is of any bytes: with a line end it looks like another key in /proc/keys."""
    real = calls.keys.read_bytes()
    forged = b"0000002a I------     1 perm 1f0f0000     0     0 keyring   .nvme: empty"
    own = b"0badf00d I--Q---     1 perm 3f3f3f3f  1000  1000 user      \xff\n"
    calls.keys.write_bytes(own + forged + b": 4\nx \xfe\n" + real)
    describe = calls.describe

    def look(serial: int) -> tuple[str, str]:
        if serial == 0x2A and number:
            raise OSError(number, os.strerror(number))
        return ("keyring", "x") if serial == 0x2A else describe(serial)

    monkeypatch.setattr(calls, "describe", look)
    keyring.put(keys())
    assert len(calls.payloads) == 1, "put into the keyring of the kernel"


def test_a_kernel_without_the_keyring_is_told(calls: FakeKeyCalls, keyring: NvmeKeyring) -> None:
    calls.hide_keyring()
    assert not keyring.is_made
    assert not keyring.has(keys())
    with pytest.raises(FailedPrecondition) as refused:
        keyring.put(keys())
    assert refused.value.reason == "NO_NVME_TLS"


def test_a_process_without_proc_finds_the_keyring_that_a_worker_noted(
    calls: FakeKeyCalls, keyring: NvmeKeyring
) -> None:
    """The daemon has ProcSubset=pid."""
    one, other = keys(), keys(OTHER)
    keyring.put(one)
    calls.keys.unlink()
    assert keyring.has(one)
    assert not keyring.has(other)
    calls.payloads.clear()
    assert not keyring.has(one)


def test_what_cannot_be_seen_is_neither_there_nor_missing(
    calls: FakeKeyCalls, keyring: NvmeKeyring
) -> None:
    calls.keys.unlink()
    for read in (keyring.has, keyring.serial):
        with pytest.raises(Unavailable, match="cannot be seen"):
            read(keys())
    (calls.proc / "version").touch()  # so it is not hidden: the kernel has no keyrings
    assert not keyring.has(keys())


@pytest.mark.parametrize("loaded_again", [True, False])
def test_a_noted_keyring_that_is_gone_has_no_key(
    calls: FakeKeyCalls, keyring: NvmeKeyring, *, loaded_again: bool
) -> None:
    """The module was unloaded; the number may be that of another key then."""
    chap = keys()
    keyring.put(chap)
    calls.keys.unlink()
    calls.KEYRING += 1
    if loaded_again:
        calls.descriptions[calls.KEYRING - 1] = "another key"
    else:
        calls.fail = {"describe": errno.ENOKEY}
    assert not keyring.has(chap)


@pytest.mark.parametrize(("machine", "bits"), [("s390x", 64), ("x86_64", 32)])
def test_a_machine_whose_system_calls_are_not_known_is_told(
    calls: FakeKeyCalls, monkeypatch: pytest.MonkeyPatch, machine: str, bits: int
) -> None:
    """The number of a system call is that of another one there."""
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr("sys.maxsize", 2 ** (bits - 1) - 1)
    with pytest.raises(Unavailable, match=f"does not know the system calls of {machine}"):
        NvmeKeyring(calls.proc, KeyCalls(), calls.note).put(keys())


def test_a_client_leaves_the_psks_of_the_target_of_its_host(
    calls: FakeKeyCalls, keyring: NvmeKeyring, tmp_path: Path
) -> None:
    """Both have one PSK, which a rotation replaces for the target first."""
    hosts = tmp_path / "nvmet/hosts"
    client = NvmeKeyring(calls.proc, calls, calls.note, target_hosts=hosts)
    former, new = keys(), keys()
    (hosts / TAKE).mkdir(parents=True)
    keyring.put(former)
    client.put(former)
    assert keyring.has(former)
    keyring.put(new)
    client.put(former)  # with its secrets from before
    assert client.has(former)
    assert keyring.serial(new)
    client.put(new)
    assert client.has(new)
    keyring.put(new)
    assert keyring.has(new)
    client.forget(TARGET)
    assert keyring.has(new)
    (hosts / TAKE).rmdir()
    client.forget(TARGET)
    assert calls.payloads == {}


def test_the_system_calls_work_on_a_key_of_another_type() -> None:
    """The type of a PSK needs a kernel module."""
    calls = KeyCalls("user")
    try:
        serial = calls.add(PROCESS_KEYRING, "zfsilo-test one", b"x" * 32)
    except OSError as error:
        pytest.skip(f"keys are not permitted here: {os.strerror(error.errno or 0)}")
    again = calls.add(PROCESS_KEYRING, "zfsilo-test two", b"y" * 32)
    assert calls.describe(serial) == ("user", "zfsilo-test one")
    assert {serial, again} <= set(calls.serials(PROCESS_KEYRING))
    calls.unlink(PROCESS_KEYRING, serial)
    assert serial not in calls.serials(PROCESS_KEYRING)
    with pytest.raises(OSError, match="Required key not available") as missing:
        calls.describe(2**30)
    assert missing.value.errno == errno.ENOKEY
