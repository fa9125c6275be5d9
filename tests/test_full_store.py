"""A full store and a full disk: nothing is added, all can be removed, and errors say why."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.examples import PLANS, operation
from tests.service_fixture import service_fixture
from zfsilod.model.errors import InvalidArgument, ResourceExhausted, Unavailable, disk_error
from zfsilod.model.identity import Certified, Identity
from zfsilod.model.records import Issued, Operation
from zfsilod.model.validation import check_labels
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.hosts import CreateHost, DeleteHost
from zfsilod.requests.volumes import CreateVolume
from zfsilod.security.audit import Audit
from zfsilod.security.credentials import is_revoked, revoke
from zfsilod.security.issued import limit_certificates
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
PUBLISH = next(example for example in PLANS if example.name == "publish")
# Fills a disk of 1 MiB from within a store, in a mount namespace of its own.
ON_A_FULL_DISK = """
import sys
from pathlib import Path
from zfsilod.model.errors import ZfsiloError
from zfsilod.storage.store import Store
store = Store.create(Path(sys.argv[1]) / "state", host="simulated", size_bytes=64 << 20)
try:
    for number in range(1000):
        with store.write() as txn:
            txn.put_raw("filler", str(number), bytes(4000))
except ZfsiloError as error:
    print(type(error).__name__, error.reason, error.message)
with store.read() as txn:
    assert txn.get_raw("filler", "0") is not None
"""


def small(directory: Path, mib: int = 2) -> Store:
    """Return a new store of a few MiB."""
    return Store.create(directory, host="simulated", size_bytes=mib << 20, durable=False)


async def test_a_full_store_refuses_what_adds_and_does_what_frees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registering a host needs room although it has no actions; deletes need none."""
    async with service_fixture(tmp_path) as fixture:
        await fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
        await fixture.do(CreateHost(id="one", iqn="iqn.2024-01.lab.x:one"))
        monkeypatch.setattr(fixture.service.context.store, "used", lambda: 0.95)
        for request in (
            CreateVolume(id="more", capacity_bytes=GIB),
            CreateHost(id="two", iqn="iqn.2024-01.lab.x:two"),
        ):
            with pytest.raises(ResourceExhausted, match="store is full"):
                await fixture.do(request)
        await fixture.do(DeleteVolume(id="data"))
        await fixture.do(DeleteHost(id="one"))


def test_records_of_all_sizes_fill_the_head_room_and_descents_go_on(tmp_path: Path) -> None:
    """Scattered free pages do not make the map full before the store is; the map has a reserve."""
    store = small(tmp_path)
    number = 0
    while True:
        try:
            store.check_head_room()
        except ResourceExhausted:
            break
        number += 1
        with store.write() as txn:
            txn.put_raw("record", str(number), bytes(300 + 997 * number % 20_000))
            if number % 3 == 0:
                txn.drop_raw("record", str(number - number % 7))
    for kept in range(number):
        with store.write() as txn:
            running = txn.add_operation(operation(PUBLISH).but(id=f"op{kept}", claims=()))
            txn.drop_raw("record", str(kept))
        with store.write() as txn:
            txn.put(running.but(state="DONE"))
    store.close()


def test_ended_operations_are_bounded_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop of requests does not fill the store before the retention ends; live ones stay."""
    monkeypatch.setattr("zfsilod.storage.transaction.KEPT_OPERATIONS", 20)
    store = small(tmp_path, 8)
    with store.write() as txn:
        live = txn.add_operation(operation(PUBLISH).but(id="live"))
        for number in range(200):
            txn.put(operation(PUBLISH).but(id=f"op{number:03}", claims=(), state="DONE"))
        kept = [one.id for one in txn.scan(Operation)]
    assert len(kept) < 25
    assert live.id in kept
    assert "op199" in kept
    store.close()


def test_the_certificates_of_one_identity_are_bounded(tmp_path: Path) -> None:
    """Renewals end at a limit, and records of expired certificates are removed."""
    store = small(tmp_path)

    def renew(number: int, now: int) -> None:
        issued = Issued(
            id=str(number), subject="host/a", role="host", created_at=now, expires_at=now + 100
        )
        with store.write() as txn:
            limit_certificates(txn, issued, now)
            txn.put(issued)

    for number in range(32):
        renew(number, 1000)
    with pytest.raises(ResourceExhausted, match="32 valid certificates"):
        renew(32, 1000)
    renew(33, 1000 + 40 * 86400)
    with store.read() as txn:
        assert [one.id for one in txn.scan(Issued)] == ["33"]
    store.close()


def test_a_clock_that_is_ahead_forgets_no_certificate(tmp_path: Path) -> None:
    """A revoked certificate whose record is gone would be valid again when the clock is set."""
    store = small(tmp_path)
    identity = Identity(kind="host", id="a", role="host")
    certified = Certified(identity=identity, fingerprint="f" * 64, not_after=5000, own=True)
    issued = Issued(id="f" * 64, subject="host/a", role="host", created_at=1000, expires_at=5000)
    with store.write() as txn:
        txn.put(issued)
        revoke(txn, "f" * 64, 1000)
        ahead = issued.but(id="e" * 64, created_at=400 * 86400, expires_at=490 * 86400)
        limit_certificates(txn, ahead, None)
        assert is_revoked(txn, certified)
        limit_certificates(txn, ahead, ahead.created_at)  # the clock is right
        assert txn.get(Issued, issued.id) is None
    store.close()


def test_labels_are_bounded_together() -> None:
    """64 labels of the largest size each are too large."""
    with pytest.raises(InvalidArgument, match="at most 8192 together"):
        check_labels(tuple((f"label{number}", "x" * 256) for number in range(64)))


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_refused_calls_do_not_fill_the_journal(code: str) -> None:
    """Records of refused calls have a rate, and one summary; other callers keep theirs."""
    written: list[str] = []
    audit = Audit(lambda sentence, _fields: written.append(sentence))
    error = Unavailable("refused")
    error.code = code
    for number in range(2000):
        caller = f"nobody (10.0.0.{number % 250})" if code == "UNAUTHENTICATED" else "user/a"
        audit.refused(caller, "CreateVolume", "volumes/x", error)
    assert 50 < len(written) < 150
    assert any("refused-calls" in sentence for sentence in written)
    audit.refused("user/other", "CreateVolume", "volumes/x", Unavailable("refused"))
    assert written[-1].startswith("user/other")


@pytest.mark.skipif("os.geteuid() != 0")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """LMDB on a full filesystem: a typed error with the path and the command; reads go on."""
    script = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    argv = ["unshare", "--mount", "sh", "-c", script, sys.executable, ON_A_FULL_DISK]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ResourceExhausted DISK_FULL")
    assert str(tmp_path) in done.stdout
    assert "df -h" in done.stdout


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "DISK_FULL"),
        (errno.EDQUOT, "DISK_FULL"),
        (errno.EIO, "DISK_FAILED"),
        (errno.EROFS, "DISK_FAILED"),
    ],
)
def test_errors_of_own_files_are_typed(number: int, reason: str) -> None:
    """A failure of a file is no internal error; another one of the system still is."""
    error = disk_error(OSError(number, "text", "/var/lib/zfsilo/tls/ca.key"))
    assert error is not None
    assert error.reason == reason
    assert error.facts["path"] == "/var/lib/zfsilo/tls/ca.key"
    assert disk_error(OSError(errno.EBADF, "text")) is None
