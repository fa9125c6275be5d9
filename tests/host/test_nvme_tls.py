"""TLS over NVMe/TCP: the PSKs, ports and controllers of both adapters."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import UID, FakeKeyCalls, FakeNvmetfs, ScriptedRunner
from tests.host.test_lio import interrupt
from tests.host.test_nvme import DISK, HERE, TAKE, TARGET, FakeKernel
from zfsilod.host.nvme_keyring import NvmeKeyring
from zfsilod.host.nvmet import RealNvmet
from zfsilod.model.chap import Chap
from zfsilod.model.errors import Conflict, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

PORTALS = ("10.77.0.1:4421", "[fd00::1]:4421")
PLAIN = ("10.77.0.1:4420",)
KEYS, ROTATED = (Chap.make_keys(host=TAKE, subsystem=TARGET, tls=True) for _number in range(2))


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


@pytest.fixture
def fs(tmp_path: Path) -> FakeNvmetfs:
    return FakeNvmetfs(tmp_path / "nvmet")


@pytest.fixture
def keys(tmp_path: Path) -> FakeKeyCalls:
    return FakeKeyCalls(tmp_path / "proc")


@pytest.fixture
def nvmet(
    fs: FakeNvmetfs, keys: FakeKeyCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RealNvmet:
    monkeypatch.setattr("zfsilod.host.portals.has_address", lambda _portal: True)
    (keys.proc / "self/net").mkdir(parents=True)
    (keys.proc / "self/net/tcp").write_text("  sl  local_address\n")
    runner = ScriptedRunner()
    adapter = RealNvmet(
        runner,
        dict[str, str]().__getitem__,
        fs,
        proc=keys.proc,
        lock=tmp_path / "lock",
        keyring=NvmeKeyring(keys.proc, keys, keys.note),
    )
    adapter.add_target(TARGET)
    return adapter


# The target


def test_a_port_requires_tls_before_it_has_a_portal(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    """So no half-made one is taken for a port with TLS."""
    before = fs.tree()
    whole, calls = False, 0
    while not whole:
        whole = interrupt(fs, lambda: nvmet.add_portals(TARGET, PORTALS, tls=True), calls)
        assert nvmet.has_portals(TARGET, PORTALS, tls=True) is whole
        for port in fs.names("ports"):
            if fs.read(f"ports/{port}/addr_trsvcid") == "4421":
                assert fs.read(f"ports/{port}/addr_treq") == "required"
                assert fs.read(f"ports/{port}/addr_tsas") == "tls1.3"
        nvmet.remove_portals(TARGET)
        assert fs.tree() == before
        calls += 1
    assert calls > 8


def test_a_half_made_port_of_the_other_kind_is_made_again(
    nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    interrupt(fs, lambda: nvmet.add_portals(TARGET, PORTALS, tls=True), 5)
    nvmet.add_portals(TARGET, PLAIN)
    (port,) = fs.names("ports")
    assert fs.read(f"ports/{port}/addr_treq") != "required"


@pytest.mark.parametrize("tls", [True, False])
def test_no_subsystem_is_linked_to_a_port_of_the_other_kind(
    nvmet: RealNvmet, fs: FakeNvmetfs, *, tls: bool
) -> None:
    second = TARGET.replace(UID, "a" * 32)
    nvmet.add_target(second)
    nvmet.add_portals(second, PLAIN, tls=not tls)
    with pytest.raises(Conflict, match="TLS"):
        nvmet.add_portals(TARGET, PLAIN, tls=tls)
    assert not nvmet.has_portals(TARGET, PLAIN, tls=tls)
    nvmet.remove_portals(second)
    nvmet.add_portals(TARGET, PLAIN, tls=tls)
    assert nvmet.has_portals(TARGET, PLAIN, tls=tls)
    assert not nvmet.has_portals(TARGET, PLAIN, tls=not tls)
    assert fs.names("ports") == ["31232"]


def test_a_plain_port_does_not_linger_for_its_clients(
    nvmet: RealNvmet, fs: FakeNvmetfs, keys: FakeKeyCalls
) -> None:
    nvmet.add_portals(TARGET, PLAIN)
    row = "   1: 01004D0A:1144 02004D0A:C350 01 00000000:00000000\n"
    (keys.proc / "self/net/tcp").write_text(f"  sl  local_address\n{row}")
    assert not nvmet.has_portals(TARGET, PORTALS, tls=True)
    nvmet.add_portals(TARGET, PORTALS, tls=True)
    assert {fs.read(f"ports/{port}/addr_treq") for port in fs.names("ports")} == {"required"}


@pytest.mark.parametrize("tls", [True, False])
def test_several_subsystems_are_linked_together_to_ports_of_one_kind(
    nvmet: RealNvmet, fs: FakeNvmetfs, *, tls: bool
) -> None:
    """As after a boot. One that is linked to a port of the other kind loses that link."""
    second = TARGET.replace(UID, "a" * 32)
    nvmet.add_target(second)
    portals = PORTALS if tls else PLAIN
    nvmet.add_portals(second, ("10.77.0.1:4499",), tls=not tls)
    nvmet.add_portals_to_all((TARGET, second), portals, tls=tls)
    for target in (TARGET, second):
        assert nvmet.has_portals(target, portals, tls=tls)
    kinds = {fs.read(f"ports/{port}/addr_treq") == "required" for port in fs.names("ports")}
    assert kinds == {tls}


def test_a_kernel_without_tls_is_refused(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    """It has the attribute, and takes no value."""
    write = fs.write
    fs.write = lambda path, value: None if path.endswith("tsas") else write(path, value)  # type: ignore[method-assign]
    with pytest.raises(FailedPrecondition) as refused:
        nvmet.add_portals(TARGET, PORTALS, tls=True)
    assert refused.value.reason == "NO_NVME_TLS"


def test_the_psk_of_a_host_comes_and_goes_with_its_access(
    nvmet: RealNvmet, fs: FakeNvmetfs, keys: FakeKeyCalls
) -> None:
    before = fs.tree()
    for interrupted in range(8):
        interrupt(fs, lambda: nvmet.add_acl(TARGET, TAKE, chap=KEYS), interrupted)
        nvmet.add_acl(TARGET, TAKE, chap=KEYS)
        assert nvmet.has_acl(TARGET, TAKE, chap=KEYS, allowed=())
        interrupt(fs, lambda: nvmet.remove_acl(TARGET, TAKE), interrupted)
        nvmet.remove_acl(TARGET, TAKE)
        assert (fs.tree(), keys.payloads) == (before, {})


def test_an_access_without_its_psk_is_not_whole(nvmet: RealNvmet, keys: FakeKeyCalls) -> None:
    """As after a reboot of the server, or when an administrator empties the keyring."""
    nvmet.add_acl(TARGET, TAKE, chap=KEYS)
    keys.payloads.clear()
    assert not nvmet.has_acl(TARGET, TAKE, chap=KEYS, allowed=())
    nvmet.add_acl(TARGET, TAKE, chap=KEYS)
    assert nvmet.has_secrets(TARGET, TAKE, chap=KEYS)


def test_a_rotation_replaces_the_psk(nvmet: RealNvmet, keys: FakeKeyCalls) -> None:
    nvmet.add_acl(TARGET, TAKE, chap=KEYS)
    assert not nvmet.has_secrets(TARGET, TAKE, chap=ROTATED)
    nvmet.set_secrets(TARGET, TAKE, chap=ROTATED)
    assert nvmet.has_secrets(TARGET, TAKE, chap=ROTATED)
    assert len(keys.payloads) == 1


def test_another_host_gets_its_ports_with_tls_back(
    nvmet: RealNvmet, fs: FakeNvmetfs, keys: FakeKeyCalls
) -> None:
    other = Chap.make_keys(host=TAKE.replace("take", "other"), subsystem=TARGET, tls=True)
    for chap in (KEYS, other):
        nvmet.add_acl(TARGET, chap.username, chap=chap)
    nvmet.add_portals(TARGET, PORTALS[:1], tls=True)
    row = "   1: 01004D0A:1145 02004D0A:C350 01 00000000:00000000\n"
    (keys.proc / "self/net/tcp").write_text(f"  sl  local_address\n{row}")
    nvmet.remove_acl(TARGET, TAKE)
    assert nvmet.has_portals(TARGET, PORTALS[:1], tls=True)
    assert len(keys.payloads) == 1


# The client


def connect(kernel: FakeKernel) -> None:
    kernel.adapter.connect(DISK, (HERE,), chap=KEYS, server="give", lost_session_s=0)


def test_a_connect_has_the_psk_in_the_keyring_and_no_key_in_its_options(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = kernel.on_write(monkeypatch, 0)
    connect(kernel)
    assert seen[0]["tls"] == ""
    assert KEYS.tls_key.reveal() not in seen[0].values()
    assert kernel.keyring.has(KEYS)
    assert kernel.adapter.has_controller(DISK, (HERE,), server="give", tls=KEYS)
    kernel.keys.payloads.clear()
    assert not kernel.adapter.has_controller(DISK, (HERE,), server="give", tls=KEYS)
    assert kernel.adapter.has_controller(DISK, (HERE,), server="give")


def test_a_controller_without_tls_is_ended(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = kernel.on_write(monkeypatch, 0)
    monkeypatch.setattr("zfsilod.host.nvme_disks.NvmeController.tls_key", 0)
    with pytest.raises(Unavailable, match="without TLS"):
        connect(kernel)
    assert len(seen) == 1
    assert (kernel.sys / "class/nvme/nvme1/delete_controller").read_text() == "1"


@pytest.mark.parametrize(
    ("number", "error", "reason"),
    [
        (errno.ESRCH, FailedPrecondition, "NO_TLSHD"),
        (errno.EACCES, Unavailable, "NO_LOGIN"),
        (errno.EIO, Unavailable, "NO_LOGIN"),  # of older kernels, which refuse a host with it too
        (errno.ECONNREFUSED, Unavailable, "NO_LOGIN"),
    ],
)
def test_a_failed_handshake_is_told(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[Exception],
    reason: str,
) -> None:
    kernel.on_write(monkeypatch, number)
    with pytest.raises(error) as refused:
        connect(kernel)
    assert getattr(refused.value, "reason", "") == reason
    assert ("TLS" in str(refused.value)) == (number != errno.ECONNREFUSED)


def test_a_controller_without_tls_is_not_that_of_a_connection_with_it(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.on_write(monkeypatch, 0)
    connect(kernel)
    (kernel.sys / "class/nvme/nvme1/tls_key").unlink()
    assert not kernel.adapter.has_controller(DISK, (HERE,), server="give", tls=KEYS)


@pytest.mark.parametrize(
    ("multipath", "answer", "reason"), [("Y", errno.ESRCH, "NO_TLSHD"), ("N", 0, "NO_LOGIN")]
)
def test_a_rotation_that_cannot_connect_leaves_the_controller_as_it_is(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, multipath: str, answer: int, reason: str
) -> None:
    """Written keys would end its connection, and the next handshake fails as well."""
    kernel.on_write(monkeypatch, 0, answer)
    connect(kernel)
    folder = kernel.sys / "class/nvme/nvme1"
    before = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    kernel.multipath.write_text(f"{multipath}\n")
    with pytest.raises((FailedPrecondition, Unavailable)) as refused:
        kernel.adapter.set_session_secrets({TARGET: ROTATED})
    assert refused.value.reason == reason
    after = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize("is_server", [True, False])
def test_a_disconnect_removes_the_psk_unless_the_target_of_this_host_has_it(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, *, is_server: bool
) -> None:
    kernel.on_write(monkeypatch, 0)
    connect(kernel)
    if is_server:
        (kernel.target_hosts / TAKE).mkdir(parents=True)
    monkeypatch.setattr("zfsilod.host.nvme.check_unused", lambda _path, _name: None)
    monkeypatch.setattr(
        "zfsilod.host.nvme_disks.NvmeController.delete", lambda one: shutil.rmtree(one.folder)
    )
    kernel.adapter.logout(DISK)
    assert kernel.keyring.hosts(TARGET) == ([TAKE] if is_server else [])


def test_a_rotation_connects_with_the_new_psk(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.on_write(monkeypatch, 0, 0)
    connect(kernel)
    assert kernel.adapter.has_session_secrets({TARGET: KEYS})
    monkeypatch.setattr(
        "zfsilod.host.nvme_disks.NvmeController.delete", lambda one: shutil.rmtree(one.folder)
    )
    kernel.adapter.set_session_secrets({TARGET: ROTATED})
    assert kernel.adapter.has_session_secrets({TARGET: ROTATED})
    assert not kernel.adapter.has_session_secrets({TARGET: KEYS})
    (controller,) = kernel.disks.controllers(TARGET)
    assert controller.tls_key == kernel.keyring.serial(ROTATED)
    assert len(kernel.keys.payloads) == 1
