"""Persistent reservations that LIO saves: given to a new backstore, and forgotten with an ACL."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import INITIATOR, TARGET, UID, FakeConfigfs, ScriptedRunner
from tests.host.test_lio import BACKSTORE, DATASET, interrupt
from zfsilod.host.lio import RealLio
from zfsilod.model.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

OTHER = "iqn.2024-01.lab.other:host"
NONE = "No Registrations or Reservations"


def registration(number: int, initiator: str, *, holder: str = "") -> str:
    """Return a registration as core_scsi3_update_aptpl_buf() of the kernel writes it."""
    held = f"res_holder=1\nres_type={holder}\nres_scope=00\n" if holder else "res_holder=0\n"
    return (
        f"PR_REG_START: {number}\ninitiator_fabric=iSCSI\ninitiator_node={initiator}\n"
        f"initiator_sid=0x00023d000001\nsa_res_key={1311768467463790320 + number}\n{held}"
        "res_all_tg_pt=0\nmapped_lun=0\n"
        f"target_fabric=iSCSI\ntarget_node={TARGET}\ntpgt=1\nport_rtpi=1\ntarget_lun=0\n"
        f"PR_REG_END: {number}\n"
    )


BOTH = registration(0, INITIATOR, holder="08") + registration(1, OTHER)


@pytest.fixture
def fs(tmp_path: Path) -> FakeConfigfs:
    return FakeConfigfs(tmp_path / "target")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the serial, in the folder that the package makes."""
    (tmp_path / "var/target/pr").mkdir(parents=True)
    return tmp_path / f"var/target/pr/aptpl_{UID}"


@pytest.fixture
def lio(fs: FakeConfigfs, monkeypatch: pytest.MonkeyPatch) -> RealLio:
    monkeypatch.setattr("zfsilod.host.lio.check_unused", lambda _path, _name: None)
    return RealLio(ScriptedRunner(), lambda dataset: f"/dev/zvol/{dataset}", fs)


def add(lio: RealLio) -> None:
    lio.add_backstore(BACKSTORE, dataset=DATASET, serial=UID)


def given(fs: FakeConfigfs) -> list[str]:
    """Return the registrations that the kernel was given."""
    path = fs.folder / f"core/iblock_0/{BACKSTORE}/pr/res_aptpl_metadata"
    return path.read_text().splitlines()


def test_a_new_backstore_has_each_registration_once(
    lio: RealLio, fs: FakeConfigfs, file: Path
) -> None:
    """The kernel shows none of them before the LUN is mapped, and would keep one twice."""
    file.write_bytes(BOTH.encode() + b"\0")
    whole, calls = False, 0
    while not whole:
        whole = interrupt(fs, lambda: add(lio), calls)
        add(lio)
        first, second = given(fs)
        assert first.startswith(f"initiator_fabric=iSCSI,initiator_node={INITIATOR},initiator_sid=")
        assert "sa_res_key=1311768467463790320,res_holder=1,res_type=8,res_scope=00," in first
        assert first.endswith(f",target_node={TARGET},tpgt=1,port_rtpi=1,target_lun=0")
        assert f"initiator_node={OTHER}," in second
        add(lio)
        assert given(fs) == [first, second], "of a backstore in use nothing is changed"
        lio.remove_backstore(BACKSTORE)
        calls += 1
    assert calls > 8
    assert file.exists(), "for the next boot"


@pytest.mark.parametrize("content", ["", NONE, f"{NONE}\n\0"], ids=["no file", "none", "cleared"])
def test_without_registrations_none_is_given(
    content: str, lio: RealLio, fs: FakeConfigfs, file: Path
) -> None:
    if content:
        file.write_text(content)
    add(lio)
    assert given(fs) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        BOTH[:-20].encode(),
        BOTH[:40].encode(),
        BOTH.replace("sa_res_key", "key").encode(),
        BOTH.replace("tpgt=1", "tpgt=1,mapped_lun=7").encode(),
        b"\xff\xfe",
    ],
    ids=["empty", "cut off", "cut off early", "without a key", "with a comma", "no text"],
)
def test_an_incomplete_file_stops_the_export(
    content: bytes, lio: RealLio, fs: FakeConfigfs, file: Path
) -> None:
    """It says whom the export refuses: to go on without it would let these in."""
    file.write_bytes(content)
    with pytest.raises(FailedPrecondition, match="remove the file") as caught:
        add(lio)
    assert (caught.value.reason, caught.value.facts["path"]) == ("RESERVATIONS_DAMAGED", str(file))
    assert not lio.has_backstore(BACKSTORE, dataset=DATASET, serial=UID)
    file.unlink()
    add(lio)
    assert given(fs) == []


def test_the_registrations_of_one_client_are_forgotten(
    lio: RealLio, fs: FakeConfigfs, file: Path
) -> None:
    content = BOTH.encode() + b"\0"
    file.write_bytes(content)
    assert lio.has_reservations(UID, INITIATOR)
    lio.forget_reservations(UID, INITIATOR)
    assert not lio.has_reservations(UID, INITIATOR)
    assert lio.has_reservations(UID, OTHER)
    assert len(file.read_bytes()) == len(content), "a shorter file could be cut off by a power cut"
    add(lio)
    assert [f"initiator_node={OTHER}," in line for line in given(fs)] == [True]
    lio.forget_reservations(UID, OTHER)
    assert file.read_bytes().rstrip(b"\0").decode() == f"{NONE}\n"
    assert file.exists()


def test_a_damaged_file_stops_no_end_of_access(lio: RealLio, file: Path) -> None:
    """A client that is fenced has nothing in it that could come back: no export reads it."""
    file.write_bytes(BOTH[:-20].encode())
    assert not lio.has_reservations(UID, INITIATOR)
    lio.forget_reservations(UID, INITIATOR)
    assert file.exists(), "it stops the next export"
    assert lio.has_reservations(UID)
    lio.forget_reservations(UID)
    assert not file.exists()


def test_the_file_stays_while_a_backstore_has_the_serial(lio: RealLio, file: Path) -> None:
    """A target of another program may have it as a LUN, with reservations of its own."""
    file.write_text(BOTH)
    add(lio)
    lio.forget_reservations(UID)
    assert not lio.has_reservations(UID), "there is nothing to remove"
    assert file.read_text() == BOTH
    lio.remove_backstore(BACKSTORE)
    assert lio.has_reservations(UID)
    lio.forget_reservations(UID)
    assert not file.exists()


def test_the_file_of_a_volume_is_removed(lio: RealLio, file: Path) -> None:
    beside = file.with_name("aptpl_of_another_program")
    for path in (file, beside):
        path.write_text(BOTH)
    lio.forget_reservations(UID)
    lio.forget_reservations(UID)
    assert not lio.has_reservations(UID)
    assert not lio.has_reservations(UID, INITIATOR)
    assert beside.exists()


def test_the_kernel_cannot_write_while_the_file_is_changed(
    lio: RealLio, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open(2) of the file breaks the lease: it waits, or fails where it may not wait."""
    file.write_text(BOTH)
    tries = []
    pwrite = os.pwrite

    def look(descriptor: int, content: bytes, offset: int) -> int:
        try:
            os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))
        except BlockingIOError:
            tries.append("refused")
        return pwrite(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", look)
    lio.forget_reservations(UID, INITIATOR)
    assert tries == ["refused"]
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL
    os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))


def test_a_file_that_is_open_is_not_changed(
    lio: RealLio, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfsilod.host.reservations.LEASE_S", 0)
    file.write_text(BOTH)
    with file.open("r+") as other:
        with pytest.raises(Unavailable) as caught:
            lio.forget_reservations(UID, INITIATOR)
        assert other.read() == BOTH
    assert caught.value.reason == "RESERVATIONS_BUSY"


def test_the_folder_is_made_beside_that_of_another_program(
    lio: RealLio, fs: FakeConfigfs, tmp_path: Path
) -> None:
    """The kernel takes /etc/target where that exists, as targetcli makes it."""
    (fs.folder / "dbroot").write_text(f"{tmp_path}/etc/target\n")
    add(lio)
    assert not (tmp_path / "etc").exists(), "the kernel has another folder then"
    lio.remove_backstore(BACKSTORE)
    (tmp_path / "etc/target").mkdir(parents=True)
    add(lio)
    assert (tmp_path / "etc/target/pr").stat().st_mode & 0o777 == 0o700
