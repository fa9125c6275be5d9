"""The NVMe/TCP host, over a temporary sysfs and a file in place of /dev/nvme-fabrics."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from tests.host.doubles import UID, FakeKeyCalls, ScriptedRunner
from zfsilod.host.all_disks import AllDisks
from zfsilod.host.nvme import RealNvme
from zfsilod.host.nvme_disks import NvmeDisks
from zfsilod.host.nvme_fabrics import send_options
from zfsilod.host.nvme_keyring import NvmeKeyring
from zfsilod.host.nvme_paths import MAX_KB
from zfsilod.model.chap import Chap
from zfsilod.model.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from zfsilod.model.host_facts import Disk, SessionProblem
from zfsilod.model.names import host_nqn, uuid_of

TARGET = f"nqn.2026-01.org.zfsilo:give:{UID}"
TAKE = host_nqn("take", UID)
SIZE = 64 << 20
DISK = Disk(target=TARGET, serial=UID, size_bytes=SIZE)
HERE, FORMER = "10.77.0.1:4420", "10.77.0.9:4420"
BESIDE, AWAY = "10.88.0.1:4420", "10.99.0.1:4420"
KEYS = Chap.make_keys(host=TAKE, subsystem=TARGET)


class FakeKernel:
    """Controllers and the disk of their subsystem in a temporary sysfs."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev, self.run = root / "sys", root / "dev", root / "run"
        for folder in (self.sys / "class/nvme", self.sys / "module/nvme_tcp", self.dev, self.run):
            folder.mkdir(parents=True)
        self.fabrics, self.marks = self.dev / "nvme-fabrics", self.run / "marks"
        self.fabrics.write_text("")
        self.multipath = self.sys / "module/nvme_core/parameters/multipath"
        self.multipath.parent.mkdir(parents=True)
        self.multipath.write_text("Y\n")
        self.disks = NvmeDisks(self.sys, self.dev, self.run)
        self.keys = FakeKeyCalls(root / "proc")
        self.target_hosts = root / "nvmet/hosts"
        self.keyring = NvmeKeyring(self.keys.proc, self.keys, self.keys.note, self.target_hosts)
        self.adapter = RealNvme(
            ScriptedRunner(),
            self.disks,
            fabrics=self.fabrics,
            marks=self.marks,
            keyring=self.keyring,
        )

    def connect(
        self,
        number: int = 0,
        *,
        portal: str = HERE,
        state: str = "live",
        host: str = TAKE,
        uid: str = UID,
        size_bytes: int = SIZE,
    ) -> Path:
        """Add a controller with its path, and the disk unless it is there."""
        folder = self.sys / f"class/nvme/nvme{number}"
        address, _colon, port = portal.rpartition(":")
        (folder / f"nvme0c{number}n1/queue").mkdir(parents=True)
        (folder / f"nvme0c{number}n1/queue/max_sectors_kb").write_text("32768\n")
        for name, value in {
            "subsysnqn": TARGET,
            "hostnqn": host,
            "state": state,
            "address": f"traddr={address},trsvcid={port},src_addr=10.77.0.2",
            "ctrl_loss_tmo": "off",
            "reconnect_delay": "2",
            "dhchap_secret": KEYS.password.reveal(),
            "dhchap_ctrl_secret": KEYS.mutual_password.reveal(),
            "delete_controller": "",
            "rescan_controller": "",
        }.items():
            (folder / name).write_text(f"{value}\n")
        self._add_disk(uid, size_bytes)
        return folder

    def _add_disk(self, uid: str, size_bytes: int) -> None:
        subsystem = self.sys / "class/nvme-subsystem/nvme-subsys0"
        head = subsystem / "nvme0n1"
        (head / "queue").mkdir(parents=True, exist_ok=True)
        (subsystem / "subsysnqn").write_text(f"{TARGET}\n")
        (head / "queue/max_sectors_kb").write_text("32768\n")
        (head / "uuid").write_text(f"{uuid_of(uid)}\n")
        (head / "size").write_text(f"{size_bytes // 512}\n")
        (head / "dev").write_text("259:1\n")
        (self.dev / "nvme0n1").write_text("")

    def on_write(self, monkeypatch: pytest.MonkeyPatch, *answers: int) -> list[dict[str, str]]:
        """Answer connects with these errnos in turn; return the options of each."""
        left, seen = list(answers), []

        def send(_fabrics: str, text: dict[str, str]) -> int:
            seen.append(text)
            number = left.pop(0)
            if number == 0:
                portal = f"{text['traddr']}:{text['trsvcid']}"
                folder = self.connect(len(seen), portal=portal)
                for name in ("dhchap_secret", "dhchap_ctrl_secret"):
                    (folder / name).write_text(f"{text[name]}\n")
                if "tls" in text:  # with the first PSK that the kernel finds
                    (folder / "tls_key").write_text(f"{next(iter(self.keys.payloads)):08x}\n")
            return number

        monkeypatch.setattr("zfsilod.host.nvme_paths.send_options", send)
        return seen


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def connect(kernel: FakeKernel, *portals: str, disk: Disk = DISK) -> None:
    kernel.adapter.connect(disk, portals or (HERE,), chap=KEYS, server="give", lost_session_s=0)


def test_a_connect_writes_its_options_once(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernel.sys / "class/nvme").mkdir(exist_ok=True)
    written = kernel.on_write(monkeypatch, 0)
    connect(kernel)
    (options,) = written
    assert options["nqn"] == TARGET
    assert options["hostnqn"] == TAKE
    assert options["ctrl_loss_tmo"] == "-1"
    assert "fast_io_fail_tmo" not in options
    assert options["dhchap_secret"] == KEYS.password.reveal()
    assert kernel.adapter.has_controller(DISK, (HERE,), server="give")
    assert kernel.adapter.owner(TARGET) == "give"
    assert kernel.adapter.has_queue_limit(DISK)
    connect(kernel)
    assert len(written) == 1, "it is connected"
    modes = {path.stat().st_mode & 0o777 for path in kernel.sys.glob("class/nvme/*/dhchap_*")}
    assert modes == {0o600}


def modes_of_keys(kernel: FakeKernel) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in kernel.sys.glob("class/nvme/*/dhchap_*")}


def test_keys_are_hidden_before_anything_is_waited_for(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not appear left them readable for every user of the host."""
    kernel.on_write(monkeypatch, 0)
    seen: list[set[int]] = []

    def waited(*_arguments: object) -> None:
        seen.append(modes_of_keys(kernel))

    monkeypatch.setattr("zfsilod.host.nvme.wait_for", waited)
    monkeypatch.setattr("zfsilod.host.nvme_paths.wait_for", waited)
    with pytest.raises(Unavailable, match="did not appear"):
        connect(kernel)
    assert seen == [{0o600}] * 2


def test_keys_that_are_not_hidden_are_a_half_made_connect(kernel: FakeKernel) -> None:
    kernel.marks.mkdir()
    kernel.connect()
    (kernel.marks / TARGET).write_text("give\n")
    assert not kernel.adapter.has_controller(DISK, (HERE,), server="give")
    connect(kernel)
    assert kernel.adapter.has_controller(DISK, (HERE,), server="give")
    assert modes_of_keys(kernel) == {0o600}


def test_each_publication_has_a_host_id_of_its_own(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses one host id with two names."""
    written = kernel.on_write(monkeypatch, errno.ECONNREFUSED, errno.ECONNREFUSED)
    for uid in (UID, "a" * 32):
        keys = Chap.make_keys(host=host_nqn("take", uid), subsystem=TARGET)
        with pytest.raises(Unavailable):
            kernel.adapter.connect(DISK, (HERE,), chap=keys, server="give", lost_session_s=0)
    assert len({options["hostid"] for options in written}) == 2


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.EIO, PermissionDenied, "LOGIN_REFUSED"),
        (errno.ENOKEY, PermissionDenied, "LOGIN_REFUSED"),
        (errno.EKEYREJECTED, PermissionDenied, "LOGIN_REFUSED"),
        (errno.ECONNREFUSED, Unavailable, "NO_LOGIN"),
        (errno.ETIMEDOUT, Unavailable, "NO_LOGIN"),
    ],
)
def test_a_refused_connect_says_why_without_keys(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[PermissionDenied],
    reason: str,
) -> None:
    tries = kernel.on_write(monkeypatch, number, number)
    with pytest.raises(kind) as caught:
        connect(kernel, HERE, FORMER)
    assert caught.value.reason == reason
    assert "DHHC" not in str(caught.value)
    assert "DHHC" not in str(caught.value.facts)
    assert len(tries) == 2


def test_the_write_returns_the_errno(kernel: FakeKernel) -> None:
    options = {"nqn": TARGET}
    assert send_options(str(kernel.fabrics), options) == 0
    assert kernel.fabrics.read_text() == f"nqn={TARGET}"
    kernel.fabrics.unlink()
    with pytest.raises(FailedPrecondition) as caught:
        send_options(str(kernel.fabrics), options)
    assert caught.value.reason == "NO_NVME"


def test_no_option_is_smuggled_in_by_a_server(kernel: FakeKernel) -> None:
    keys = Chap(
        username=TAKE,
        password="DHHC-1:01:x:,hostnqn=other",
        mutual_username=TARGET,
        mutual_password="DHHC-1:01:y:",
    )
    with pytest.raises(InvalidArgument) as caught:
        kernel.adapter.connect(DISK, (HERE,), chap=keys, server="give", lost_session_s=0)
    assert "DHHC" not in str(caught.value)
    assert kernel.fabrics.read_text() == ""


def test_a_controller_that_zfsilo_did_not_make_is_a_conflict(kernel: FakeKernel) -> None:
    kernel.connect(host="nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111")
    for call in (
        lambda: kernel.adapter.has_controller(DISK, (HERE,), server="give"),
        lambda: connect(kernel),
    ):
        with pytest.raises(Conflict) as caught:
            call()
        assert caught.value.reason == "FOREIGN_TARGET"


def test_a_disk_with_another_identity_is_a_conflict(kernel: FakeKernel) -> None:
    kernel.marks.mkdir()
    (kernel.marks / TARGET).write_text("give\n")
    kernel.connect(uid="f" * 32)
    with pytest.raises(Conflict):
        kernel.adapter.has_controller(DISK, (HERE,), server="give")
    assert kernel.adapter.problems([DISK]) == {TARGET: SessionProblem(fault="NO_DISK")}


def test_a_lost_controller_is_waited_for_at_its_address(kernel: FakeKernel) -> None:
    kernel.marks.mkdir()
    (kernel.marks / TARGET).write_text("give\n")
    kernel.connect(state="connecting")
    with pytest.raises(Unavailable) as caught:
        kernel.adapter.has_controller(DISK, (HERE,), server="give")
    assert caught.value.reason == "SESSION_RECOVERY"
    assert kernel.adapter.is_lost(DISK)
    assert kernel.adapter.has_any_session(DISK)
    assert kernel.adapter.problems([DISK]) == {TARGET: SessionProblem(fault="LOST")}


def test_a_controller_follows_its_server(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new path joins the disk before the former one goes, so that no I/O fails."""
    kernel.marks.mkdir()
    (kernel.marks / TARGET).write_text("give\n")
    former = kernel.connect(portal=FORMER, state="connecting")
    assert not kernel.adapter.has_controller(DISK, (HERE,), server="give")
    assert kernel.adapter.follows(DISK, (FORMER,))
    assert not kernel.adapter.follows(DISK, (HERE,))
    kernel.on_write(monkeypatch, 0)
    connect(kernel)
    assert (former / "delete_controller").read_text() == "1"
    shutil.rmtree(former)
    assert kernel.adapter.follows(DISK, (HERE,))
    assert kernel.adapter.portal(DISK) == HERE


def answer_at(monkeypatch: pytest.MonkeyPatch, *portals: str) -> None:
    """Let only these portals accept connections."""
    monkeypatch.setattr("zfsilod.host.portals.accepts_connections", portals.__contains__)


def test_each_portal_that_answers_is_a_path(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_at(monkeypatch, HERE, BESIDE)
    written = kernel.on_write(monkeypatch, 0, 0)
    connect(kernel, HERE, BESIDE, AWAY)
    assert [options["traddr"] for options in written] == ["10.77.0.1", "10.88.0.1"]
    assert kernel.adapter.follows(DISK, (HERE, BESIDE, AWAY)), "nothing answers at the last one"
    assert not kernel.adapter.problems([DISK])
    assert kernel.adapter.has_queue_limit(DISK)


def test_the_first_portal_may_be_away(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_at(monkeypatch, HERE)
    kernel.on_write(monkeypatch, errno.ETIMEDOUT, 0)
    connect(kernel, AWAY, HERE)
    assert kernel.adapter.portal(DISK) == HERE


def test_a_lost_path_is_a_problem_and_stays(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel connects it again; the disk works by the other one."""
    answer_at(monkeypatch, HERE)
    kernel.connect(0, portal=HERE)
    kernel.connect(1, portal=BESIDE, state="connecting")
    assert kernel.adapter.problems([DISK]) == {
        TARGET: SessionProblem(fault="PATH_LOST", portals=(BESIDE,))
    }
    assert not kernel.adapter.is_lost(DISK)
    assert kernel.adapter.follows(DISK, (HERE, BESIDE))
    assert not kernel.adapter.follows(DISK, (HERE,)), "a path at a former portal"


def test_a_live_path_at_a_former_portal_goes_after_another_has_joined(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_at(monkeypatch, HERE)
    kernel.marks.mkdir()
    (kernel.marks / TARGET).write_text("give\n")
    former = kernel.connect(0, portal=FORMER)
    assert kernel.adapter.follows(DISK, (AWAY,)), "the disk needs it"
    assert not kernel.adapter.follows(DISK, (HERE,))
    kernel.on_write(monkeypatch, 0)
    connect(kernel, HERE)
    assert (former / "delete_controller").read_text() == "1"


def test_a_portal_that_is_back_becomes_a_path_again(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_at(monkeypatch, HERE, BESIDE)
    kernel.marks.mkdir()
    (kernel.marks / TARGET).write_text("give\n")
    kernel.connect(0, portal=HERE)
    assert not kernel.adapter.follows(DISK, (HERE, BESIDE))
    written = kernel.on_write(monkeypatch, 0)
    connect(kernel, HERE, BESIDE)
    assert [options["traddr"] for options in written] == ["10.88.0.1"]


def test_a_further_path_that_is_refused_does_not_matter(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_at(monkeypatch, HERE, BESIDE)
    kernel.on_write(monkeypatch, 0, errno.EIO)
    connect(kernel, HERE, BESIDE)
    assert kernel.adapter.portal(DISK) == HERE


def test_a_portal_at_another_server_does_not_refuse_the_others(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the network of this client an address of the server may be that of another one."""
    answer_at(monkeypatch, HERE, BESIDE)
    kernel.on_write(monkeypatch, errno.EIO, 0)
    connect(kernel, BESIDE, HERE)
    assert kernel.adapter.portal(DISK) == HERE


def test_a_refusal_is_told_before_a_portal_that_is_away(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.on_write(monkeypatch, errno.EKEYREJECTED, errno.ETIMEDOUT)
    with pytest.raises(PermissionDenied, match=HERE):
        connect(kernel, HERE, AWAY)


def test_without_native_multipath_there_is_one_path(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.multipath.write_text("N\n")
    answer_at(monkeypatch, HERE, BESIDE)
    written = kernel.on_write(monkeypatch, 0)
    connect(kernel, HERE, BESIDE)
    assert len(written) == 1
    assert kernel.adapter.follows(DISK, (HERE, BESIDE))


def test_the_limit_is_set_on_the_disk_and_on_every_path(kernel: FakeKernel) -> None:
    assert not kernel.adapter.has_queue_limit(DISK), "without a disk"
    kernel.connect(0)
    kernel.connect(1)
    assert not kernel.adapter.has_queue_limit(DISK)
    kernel.adapter.set_queue_limit(DISK)
    assert kernel.adapter.has_queue_limit(DISK)
    limits = [int(path.read_text()) for path in kernel.sys.rglob("max_sectors_kb")]
    assert limits == [MAX_KB] * 3
    one = next(kernel.sys.rglob("nvme0c1n1/queue/max_sectors_kb"))
    one.write_text("32768\n")
    assert not kernel.adapter.has_queue_limit(DISK)


@pytest.mark.parametrize(("seconds", "shown"), [(0, "off"), (5, "6"), (600, "600")])
def test_the_wait_is_compared_as_the_kernel_rounds_it(
    kernel: FakeKernel, seconds: int, shown: str
) -> None:
    folder = kernel.connect()
    (folder / "ctrl_loss_tmo").write_text("77\n")
    assert not kernel.adapter.has_loss_wait(DISK, seconds)
    kernel.adapter.set_loss_wait(DISK, seconds)
    assert (folder / "ctrl_loss_tmo").read_text() == str(seconds or -1)
    (folder / "ctrl_loss_tmo").write_text(f"{shown}\n")
    assert kernel.adapter.has_loss_wait(DISK, seconds)


def test_an_unmount_does_not_wait_for_ever(kernel: FakeKernel) -> None:
    folder = kernel.connect()
    disks = AllDisks(kernel.sys, kernel.dev, kernel.run)
    with disks.hurried(TARGET):
        assert (folder / "ctrl_loss_tmo").read_text() == "30"
    assert (folder / "ctrl_loss_tmo").read_text() == "-1"


def test_new_secrets_are_for_a_lost_controller_too(kernel: FakeKernel) -> None:
    folder = kernel.connect(state="connecting")
    assert kernel.adapter.has_session_secrets({TARGET: KEYS})
    new = Chap.make_keys(host=TAKE, subsystem=TARGET)
    assert not kernel.adapter.has_session_secrets({TARGET: new})
    (folder / "dhchap_secret").write_text(new.password.reveal())
    assert not kernel.adapter.has_session_secrets({TARGET: new}), "half changed"
    kernel.adapter.set_session_secrets({TARGET: new})
    assert kernel.adapter.has_session_secrets({TARGET: new})
    assert kernel.adapter.has_session_secrets({"nqn.2026-01.org.zfsilo:none": new})


def rotate(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *answers: int) -> Chap:
    """Give a live controller new keys; the kernel answers connects with these errnos."""
    kernel.marks.mkdir()
    kernel.connect()
    kernel.on_write(monkeypatch, *answers)
    monkeypatch.setattr(
        "zfsilod.host.nvme_disks.NvmeController.delete", lambda one: shutil.rmtree(one.folder)
    )
    new = Chap.make_keys(host=TAKE, subsystem=TARGET)
    kernel.adapter.set_session_secrets({TARGET: new})
    return new


def test_a_live_controller_is_replaced_by_one_with_the_new_keys(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write of one key to a live controller authenticates it with the other one as it was."""
    new = rotate(kernel, monkeypatch, 0)
    (controller,) = kernel.disks.controllers(TARGET)
    assert controller.folder.endswith("nvme1")
    assert kernel.adapter.has_session_secrets({TARGET: new})
    assert kernel.adapter.portal(DISK) == HERE
    (path,) = kernel.disks.paths(TARGET)
    assert int((Path(path) / "queue/max_sectors_kb").read_text()) == MAX_KB
    modes = {path.stat().st_mode & 0o777 for path in kernel.sys.glob("class/nvme/*/dhchap_*")}
    assert modes == {0o600}


def test_a_replacement_that_was_cut_is_completed(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = rotate(kernel, monkeypatch, 0)
    former = kernel.connect()  # as the worker leaves it that was killed before the removal
    kernel.adapter.set_session_secrets({TARGET: new})
    assert not former.exists()
    assert len(kernel.disks.controllers(TARGET)) == 1


@pytest.mark.parametrize("multipath", [True, False])
def test_a_controller_that_cannot_be_replaced_gets_the_keys(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *, multipath: bool
) -> None:
    """The connect fails, or the new controller would have a disk of its own."""
    if not multipath:
        kernel.multipath.write_text("N\n")
    new = rotate(kernel, monkeypatch, errno.ECONNREFUSED if multipath else 0)
    (controller,) = kernel.disks.controllers(TARGET)
    assert controller.folder.endswith("nvme0")
    assert kernel.adapter.has_session_secrets({TARGET: new})


def test_a_disconnect_removes_the_controller_and_its_mark(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.marks.mkdir()
    (kernel.marks / TARGET).write_text("give\n")
    folder = kernel.connect()
    monkeypatch.setattr("zfsilod.host.nvme.check_unused", lambda _path, _name: None)
    monkeypatch.setattr(
        "zfsilod.host.nvme_disks.NvmeController.delete", lambda _one: shutil.rmtree(folder)
    )
    kernel.adapter.logout(DISK)
    assert not kernel.adapter.has_any_session(DISK)
    assert list(kernel.marks.iterdir()) == []


def test_the_disk_is_found_by_its_subsystem(kernel: FakeKernel) -> None:
    kernel.connect()
    disks = AllDisks(kernel.sys, kernel.dev, kernel.run)
    device = disks.need(DISK)
    assert (device.name, device.serial, device.number) == ("nvme0n1", UID, "259:1")
    assert disks.find("nqn.2026-01.org.zfsilo:give:other") is None
    assert disks.find(f"iqn.2026-01.org.zfsilo:give:{UID}") is None
    with pytest.raises(FailedPrecondition):
        disks.need(DISK.but(target="nqn.2026-01.org.zfsilo:give:other"))


def test_keys_have_the_form_of_the_kernel() -> None:
    import base64
    import zlib

    kind, transform, text, end = KEYS.password.reveal().split(":")
    raw = base64.b64decode(text)
    assert (kind, transform, end, len(raw)) == ("DHHC-1", "01", "", 36)
    assert int.from_bytes(raw[32:], "little") == zlib.crc32(raw[:32])
    assert KEYS.password != KEYS.mutual_password
