"""The iSCSI target, in a temporary configfs; each call is interrupted after each of its changes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import (
    INITIATOR,
    TARGET,
    UID,
    FakeConfigfs,
    Interrupted,
    ScriptedRunner,
    chap,
)
from zfsilod.host.export_paths import export_paths
from zfsilod.host.lio import RealLio
from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from zfsilod.model.host_facts import ExportPath

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKSTORE = f"zfsilo-{UID}"
DATASET = "tank/v1"
PORTALS = ("10.77.0.1:3260", "[fd00::1]:3260")
STEPS = ("backstore", "target", "lun", "portals", "enabled", "acl", "mapped")


@pytest.fixture
def fs(tmp_path: Path) -> FakeConfigfs:
    return FakeConfigfs(tmp_path / "target")


@pytest.fixture
def lio(fs: FakeConfigfs, monkeypatch: pytest.MonkeyPatch) -> RealLio:
    monkeypatch.setattr("zfsilod.host.lio.check_unused", lambda _path, _name: None)
    return RealLio(ScriptedRunner(), lambda dataset: f"/dev/zvol/{dataset}", fs)


def facts(
    lio: RealLio,
) -> dict[str, tuple[Callable[[], bool], Callable[[], None], Callable[[], None]]]:
    """Return probe, do and undo of each step, in the order of the steps."""
    return {
        "backstore": (
            lambda: lio.has_backstore(BACKSTORE, dataset=DATASET, serial=UID),
            lambda: lio.add_backstore(BACKSTORE, dataset=DATASET, serial=UID),
            lambda: lio.remove_backstore(BACKSTORE),
        ),
        "target": (
            lambda: lio.has_target(TARGET),
            lambda: lio.add_target(TARGET),
            lambda: lio.remove_target(TARGET),
        ),
        "lun": (
            lambda: lio.has_lun(TARGET, BACKSTORE),
            lambda: lio.add_lun(TARGET, BACKSTORE),
            lambda: lio.remove_lun(TARGET),
        ),
        "portals": (
            lambda: lio.has_portals(TARGET, PORTALS),
            lambda: lio.add_portals(TARGET, PORTALS),
            lambda: lio.remove_portals(TARGET),
        ),
        "enabled": (
            lambda: lio.is_enabled(TARGET),
            lambda: lio.enable(TARGET),
            lambda: lio.disable(TARGET),
        ),
        "acl": (
            lambda: lio.has_acl(TARGET, INITIATOR, chap=chap(), allowed=()),
            lambda: lio.add_acl(TARGET, INITIATOR, chap=chap()),
            lambda: lio.remove_acl(TARGET, INITIATOR),
        ),
        "mapped": (
            lambda: lio.has_mapped_lun(TARGET, INITIATOR, readonly=False),
            lambda: lio.map_lun(TARGET, INITIATOR, readonly=False),
            lambda: lio.unmap_lun(TARGET, INITIATOR),
        ),
    }


def make_all(lio: RealLio, *, below: str = "") -> None:
    for name in STEPS[: STEPS.index(below)] if below else STEPS:
        facts(lio)[name][1]()


def interrupt(fs: FakeConfigfs, action: Callable[[], object], calls: int) -> bool:
    """Run an action that is interrupted after `calls` changes; tell whether it made fewer."""
    fs.calls = calls
    try:
        action()
    except Interrupted:
        return False
    finally:
        fs.calls = None
    return True


@pytest.mark.parametrize("name", STEPS)
def test_every_half_made_state_is_finished_or_undone(
    name: str, lio: RealLio, fs: FakeConfigfs
) -> None:
    make_all(lio, below=name)
    has, do, undo = facts(lio)[name]
    before = fs.tree()
    whole, calls = False, 0
    while not whole:
        assert has() is False
        whole = interrupt(fs, do, calls)
        assert has() is whole
        do()
        assert has() is True
        undo()
        assert fs.tree() == before
        interrupt(fs, do, calls)
        undo()
        assert fs.tree() == before
        do()
        interrupt(fs, undo, calls)
        undo()
        assert fs.tree() == before
        do()
        interrupt(fs, undo, calls)
        do()
        assert has() is True
        undo()
        calls += 1
    assert calls > 1


def test_up_and_down(lio: RealLio, fs: FakeConfigfs) -> None:
    before = fs.tree()
    make_all(lio)
    assert all(has() for has, _, _ in facts(lio).values())
    assert lio.list_targets() == [TARGET]
    assert lio.list_backstores() == [BACKSTORE]
    for name in reversed(STEPS):
        facts(lio)[name][2]()
        facts(lio)[name][2]()
    assert fs.tree() == before


@pytest.mark.parametrize(
    "name", ["../../outside", "..", ".", "", "a/b", "zfsilo-\n", f"{BACKSTORE}/../../../outside"]
)
def test_the_name_of_a_backstore_leads_nowhere_else(
    lio: RealLio, fs: FakeConfigfs, name: str
) -> None:
    lio.add_target(TARGET)
    outside = fs.folder.parent / "outside"
    outside.mkdir()
    before = sorted(fs.folder.parent.rglob("*"))
    calls: tuple[Callable[[], object], ...] = (
        lambda: lio.add_backstore(name, dataset=DATASET, serial=UID),
        lambda: lio.remove_backstore(name),
        lambda: lio.has_backstore(name, dataset=DATASET, serial=UID),
        lambda: lio.remove_export("iqn.2026-01.org.zfsilo:none", name),
    )
    for call in calls:
        with pytest.raises(InvalidArgument):
            call()
    assert sorted(fs.folder.parent.rglob("*")) == before
    with pytest.raises(InvalidArgument):
        lio.add_lun(TARGET, name)
    assert not any(path.is_symlink() for path in fs.folder.parent.rglob("*"))


def test_a_backstore_of_that_name_with_another_device_is_a_conflict(lio: RealLio) -> None:
    lio.add_backstore(BACKSTORE, dataset=DATASET, serial=UID)
    with pytest.raises(Conflict, match="not that of tank/v2"):
        lio.has_backstore(BACKSTORE, dataset="tank/v2", serial=UID)
    with pytest.raises(Conflict, match="serial"):
        lio.has_backstore(BACKSTORE, dataset=DATASET, serial="other")


def test_another_lun_is_a_conflict(lio: RealLio) -> None:
    make_all(lio)
    with pytest.raises(Conflict, match=f"is {BACKSTORE}, not other"):
        lio.has_lun(TARGET, "other")


def test_a_mapped_lun_is_not_removed(lio: RealLio) -> None:
    make_all(lio)
    with pytest.raises(Busy, match=INITIATOR):
        lio.remove_lun(TARGET)
    assert lio.has_lun(TARGET, BACKSTORE)
    with pytest.raises(Busy):
        lio.remove_backstore(BACKSTORE)


def test_acl_is_the_exact_set(lio: RealLio) -> None:
    make_all(lio)
    other = "iqn.2024-01.lab.other:host"
    assert lio.has_acl(TARGET, INITIATOR, chap=chap(), allowed=(other,))
    assert not lio.has_acl(TARGET, other, chap=chap(), allowed=(INITIATOR,))
    with pytest.raises(Conflict, match=INITIATOR):
        lio.has_acl(TARGET, other, chap=chap(), allowed=())


def test_secrets_that_cannot_be_read_are_assumed_to_be_right(
    lio: RealLio, fs: FakeConfigfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon does not have CAP_SYS_ADMIN, which the kernel requires; a worker has."""
    make_all(lio)
    read = fs.read

    def hidden(path: str) -> str | None:
        if "/auth/" in path:
            raise PermissionDenied("the kernel's iSCSI target failed to read it")
        return read(path)

    monkeypatch.setattr(fs, "read", hidden)
    assert lio.has_acl(TARGET, INITIATOR, chap=chap(), allowed=())
    other = "iqn.2024-01.lab.other:host"
    assert not lio.has_acl(TARGET, other, chap=chap(), allowed=(INITIATOR,))


def test_new_secrets_replace_the_old(lio: RealLio, fs: FakeConfigfs) -> None:
    make_all(lio)
    assert not lio.has_acl(TARGET, INITIATOR, chap=chap(2), allowed=())
    lio.add_acl(TARGET, INITIATOR, chap=chap(2))
    assert lio.has_acl(TARGET, INITIATOR, chap=chap(2), allowed=())
    auth = fs.folder / f"iscsi/{TARGET}/tpgt_1/acls/{INITIATOR}/auth"
    assert (auth / "password").read_text() == "initiator-2"  # no newline: it would be part of it
    assert (auth / "userid_mutual").read_text() == "musr"


def test_a_lun_is_never_writable_half_made(lio: RealLio, fs: FakeConfigfs) -> None:
    make_all(lio, below="mapped")
    interrupt(fs, lambda: lio.map_lun(TARGET, INITIATOR, readonly=True), 3)
    assert not lio.has_mapped_lun(TARGET, INITIATOR, readonly=False)
    lio.map_lun(TARGET, INITIATOR, readonly=True)
    assert lio.has_mapped_lun(TARGET, INITIATOR, readonly=True)


def test_access_for_unknown_initiators_is_repaired(lio: RealLio, fs: FakeConfigfs) -> None:
    make_all(lio)
    attribute = fs.folder / f"iscsi/{TARGET}/tpgt_1/attrib/generate_node_acls"
    attribute.write_text("1\n")
    assert not lio.has_target(TARGET)
    lio.add_target(TARGET)
    assert attribute.read_text() == "0"


def test_portals_are_those_and_no_others(lio: RealLio) -> None:
    make_all(lio)
    assert not lio.has_portals(TARGET, PORTALS[:1])
    lio.add_portals(TARGET, PORTALS[:1])
    assert lio.has_portals(TARGET, PORTALS[:1])
    with pytest.raises(InvalidArgument):
        lio.add_portals(TARGET, ("10.77.0.1",))
    assert lio.has_portals(TARGET, PORTALS[:1])


def test_a_portal_whose_address_is_missing_is_left_out(
    lio: RealLio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network may come back; the loss of one must not end the service by the others."""
    monkeypatch.setattr("zfsilod.host.portals.has_address", PORTALS[:1].__contains__)
    lio.add_target(TARGET)
    lio.add_portals(TARGET, PORTALS)
    assert lio.has_portals(TARGET, PORTALS)
    monkeypatch.setattr("zfsilod.host.portals.has_address", PORTALS.__contains__)
    assert not lio.has_portals(TARGET, PORTALS)
    lio.add_portals(TARGET, PORTALS)
    assert lio.has_portals(TARGET, PORTALS)
    monkeypatch.setattr("zfsilod.host.portals.has_address", PORTALS[:1].__contains__)
    assert lio.has_portals(TARGET, PORTALS), "clients may be logged in there"


@pytest.mark.parametrize(
    ("number", "here", "reason", "words"),
    [
        (errno.EADDRINUSE, True, "PORTAL_IN_USE", "port 3260 of 10.77.0.1.*server.portals"),
        (errno.EADDRNOTAVAIL, False, "NO_ADDRESS", "address 10.77.0.1.*server.portals"),
        (errno.EINVAL, True, "FAILED_PRECONDITION", "failed to make"),
    ],
)
def test_a_portal_at_which_the_kernel_does_not_listen_is_named(
    number: int,
    *,
    here: bool,
    reason: str,
    words: str,
    lio: RealLio,
    fs: FakeConfigfs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others are opened all the same."""
    make, away = os.mkdir, "10.77.0.1:3260"

    def refuse(path: str) -> None:
        if path.endswith(away):
            raise OSError(number, os.strerror(number))
        make(path)

    monkeypatch.setattr("zfsilod.host.portals.has_address", lambda _portal: here)
    lio.add_target(TARGET)
    monkeypatch.setattr("zfsilod.host.configfs.os.mkdir", refuse)
    portals = (away,) if number == errno.EADDRNOTAVAIL else (away, "[fd00::1]:3260")
    with pytest.raises(FailedPrecondition, match=words) as caught:
        lio.add_portals(TARGET, portals)
    assert caught.value.reason == reason
    assert fs.names(f"iscsi/{TARGET}/tpgt_1/np") == list(portals[1:])


def test_a_portal_with_another_spelling_stays(lio: RealLio, fs: FakeConfigfs) -> None:
    """As an earlier version, or an administrator, has made it."""
    lio.add_target(TARGET)
    fs.make(f"iscsi/{TARGET}/tpgt_1/np/[::ffff:10.77.0.1]:3260")
    assert lio.has_portals(TARGET, ("10.77.0.1:3260",))
    lio.add_portals(TARGET, ("10.77.0.1:3260",))
    assert fs.names(f"iscsi/{TARGET}/tpgt_1/np") == ["[::ffff:10.77.0.1]:3260"]


@pytest.mark.parametrize("missing_times", [1, 2])
def test_a_link_that_udev_removes_is_waited_for(tmp_path: Path, missing_times: int) -> None:
    """It may disappear again while an earlier zvol with the same name is being removed."""
    device = tmp_path / "zvol"
    seen: list[str] = []

    def wait_for_device(dataset: str) -> str:
        seen.append(dataset)
        if len(seen) > missing_times:
            device.touch()
        return str(device)

    lio = RealLio(ScriptedRunner(), wait_for_device, FakeConfigfs(tmp_path / "target"))
    lio.add_backstore(BACKSTORE, dataset=DATASET, serial=UID)
    assert len(seen) == missing_times + 1


def test_a_link_that_does_not_return_is_an_error(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    lio = RealLio(ScriptedRunner(), lambda _: nothing, FakeConfigfs(tmp_path / "target"))
    with pytest.raises(Unavailable, match="cannot be opened"):
        lio.add_backstore(BACKSTORE, dataset=DATASET, serial=UID)


def info_of(fs: FakeConfigfs, backstore: str, text: str) -> None:
    (fs.folder / f"core/iblock_0/{backstore}/info").write_text(text)


def test_every_path_to_a_zvol_is_seen_by_its_device(
    lio: RealLio, fs: FakeConfigfs, tmp_path: Path
) -> None:
    """The path text may be outdated: the zvol was renamed, and udev knows its present name."""
    make_all(lio)
    (tmp_path / "udev").mkdir()
    (tmp_path / "udev/b230:16").write_text("S:zvol/tank/renamed\nE:ID_FS_TYPE=\n")
    device = "Status: ACTIVATED\n        iBlock device: zd16  UDEV PATH: /dev/zvol/tank/v1  "
    info_of(fs, BACKSTORE, f"{device}readonly: 0\n        Major: 230 Minor: 16  CLAIMED: IBLOCK\n")
    own = ExportPath(
        dataset="tank/renamed", backstore=BACKSTORE, target=TARGET, initiators=(INITIATOR,)
    )
    assert list(export_paths(fs, tmp_path / "udev")) == [own]
    second = TARGET.replace("give", "nas")
    lio.add_target(second)
    lio.add_lun(second, BACKSTORE)
    other = own.but(target=second, initiators=())
    assert set(export_paths(fs, tmp_path / "udev")) == {own, other}
    with pytest.raises(Busy, match=second):
        lio.remove_export(TARGET, BACKSTORE)
    lio.remove_export(second, None)
    assert lio.list_backstores() == [BACKSTORE]
    lio.remove_backstore(BACKSTORE)


def test_the_path_of_a_file_backstore_and_an_open_target_are_seen(
    lio: RealLio, fs: FakeConfigfs, tmp_path: Path
) -> None:
    fs.make("core/fileio_1")
    fs.make("core/fileio_1/disk")
    text = "TCM FILEIO ID: 0        File: /dev/zvol/tank/v1  Size: 1024  Mode: O_DSYNC Async: 0\n"
    (fs.folder / "core/fileio_1/disk/info").write_text(text)
    alone = ExportPath(dataset="tank/v1", backstore="disk")
    assert list(export_paths(fs, tmp_path)) == [alone]
    lio.add_target(TARGET)
    fs.make(f"iscsi/{TARGET}/tpgt_1/lun/lun_3")
    fs.link(f"iscsi/{TARGET}/tpgt_1/lun/lun_3/abc", "core/fileio_1/disk")
    (fs.folder / f"iscsi/{TARGET}/tpgt_1/attrib/generate_node_acls").write_text("1\n")
    assert list(export_paths(fs, tmp_path)) == [alone.but(target=TARGET, open=True)]
    (fs.folder / "core/fileio_1/disk/info").write_text("File: /srv/disk.img  Size: 1024\n")
    assert list(export_paths(fs, tmp_path)) == []


def test_session(lio: RealLio, fs: FakeConfigfs) -> None:
    assert not lio.has_session(TARGET, INITIATOR)
    make_all(lio)
    assert not lio.has_session(TARGET, INITIATOR)
    info = fs.folder / f"iscsi/{TARGET}/tpgt_1/acls/{INITIATOR}/info"
    info.write_text(f"InitiatorName: {INITIATOR}\nSession State: TARG_SESS_STATE_LOGGED_IN\n")
    assert lio.has_session(TARGET, INITIATOR)


@pytest.mark.parametrize("name", ["../../x", "iqn.2024-01.x:a/b", "x", "", "iqn.", "iqn.a b"])
def test_invalid_names_cannot_leave_their_directory(name: str, lio: RealLio) -> None:
    with pytest.raises(InvalidArgument):
        lio.add_acl(TARGET, name, chap=chap())
    with pytest.raises(InvalidArgument):
        lio.add_target(name)
    with pytest.raises(InvalidArgument):
        lio.remove_target(name)


def test_modules_are_loaded_when_missing(tmp_path: Path) -> None:
    class Unmounted(FakeConfigfs):
        def has(self, path: str) -> bool:
            return path not in ("core", "iscsi") and super().has(path)

    modprobe = "modprobe -a target_core_mod target_core_iblock iscsi_target_mod"
    run = ScriptedRunner((modprobe, 0, "", ""))
    lio = RealLio(run, lambda dataset: f"/dev/zvol/{dataset}", Unmounted(tmp_path / "target"))
    with pytest.raises(FailedPrecondition, match="configfs"):
        lio.add_target(TARGET)
    assert not run.script
