"""The NVMe target, in a temporary configfs; each call is interrupted after each of its changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host.doubles import UID, FakeKeyCalls, FakeNvmetfs, ScriptedRunner
from tests.host.test_lio import interrupt
from zfsilod.host.nvme_keyring import NvmeKeyring
from zfsilod.host.nvmet import RealNvmet
from zfsilod.host.nvmet_closed import ClosedPorts
from zfsilod.host.portals import has_address
from zfsilod.model.chap import Chap
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import ExportPath
from zfsilod.model.names import check_portal, host_nqn

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = f"nqn.2026-01.org.zfsilo:give:{UID}"
TAKE, OTHER = host_nqn("take", UID), host_nqn("other", UID)
DATASET = "tank/v1"
PORTALS = ("10.77.0.1:4420", "[fd00::1]:4420")
STEPS = ("target", "namespace", "acl", "portals")
FOREIGN = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111"
CONNECTED = "   0: 0100007F:1144 0200007F:9C40 01 00000000:00000000\n"  # at port 4420
LISTENING = "   1: 00000000:1144 00000000:0000 0A 00000000:00000000\n"


def keys(number: int = 1, host: str = TAKE) -> Chap:
    return Chap(
        username=host,
        password=f"DHHC-1:01:host-{number}:",
        mutual_username=TARGET,
        mutual_password=f"DHHC-1:01:target-{number}:",
    )


@pytest.fixture
def fs(tmp_path: Path) -> FakeNvmetfs:
    return FakeNvmetfs(tmp_path / "nvmet")


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    """The table of TCP sockets: this host listens, and has no connection."""
    folder = tmp_path / "proc/self/net"
    folder.mkdir(parents=True)
    (folder / "tcp").write_text(f"  sl  local_address\n{LISTENING}")
    return folder / "tcp"


@pytest.fixture
def nvmet(
    fs: FakeNvmetfs, sockets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RealNvmet:
    datasets = {"/dev/zd0": DATASET, "/dev/zd16": "tank/v2"}
    monkeypatch.setattr("zfsilod.host.nvmet.check_unused", lambda _path, _name: None)
    monkeypatch.setattr("zfsilod.host.nvmet.dataset_of_device", lambda path: datasets.get(path, ""))
    monkeypatch.setattr("zfsilod.host.nvmet.RENAMED_S", 0)
    monkeypatch.setattr("zfsilod.host.portals.has_address", lambda _portal: True)
    devices = {dataset: path for path, dataset in datasets.items()}
    proc = sockets.parents[2]
    lock, runner = tmp_path / "lock", ScriptedRunner()
    keyring = NvmeKeyring(proc, FakeKeyCalls(proc))
    closed = ClosedPorts(tmp_path / "run/closed")
    return RealNvmet(
        runner, devices.__getitem__, fs, proc=proc, lock=lock, keyring=keyring, closed=closed
    )


def facts(
    nvmet: RealNvmet,
) -> dict[str, tuple[Callable[[], bool], Callable[[], None], Callable[[], None]]]:
    """Return probe, do and undo of each step, in the order of the steps."""
    return {
        "target": (
            lambda: nvmet.has_target(TARGET),
            lambda: nvmet.add_target(TARGET),
            lambda: nvmet.remove_target(TARGET),
        ),
        "namespace": (
            lambda: nvmet.has_namespace(TARGET, dataset=DATASET, uid=UID),
            lambda: nvmet.add_namespace(TARGET, dataset=DATASET, uid=UID),
            lambda: nvmet.remove_namespace(TARGET),
        ),
        "acl": (
            lambda: nvmet.has_acl(TARGET, TAKE, chap=keys(), allowed=()),
            lambda: nvmet.add_acl(TARGET, TAKE, chap=keys()),
            lambda: nvmet.remove_acl(TARGET, TAKE),
        ),
        "portals": (
            lambda: nvmet.has_portals(TARGET, PORTALS),
            lambda: nvmet.add_portals(TARGET, PORTALS),
            lambda: nvmet.remove_portals(TARGET),
        ),
    }


def make_all(nvmet: RealNvmet, *, below: str = "") -> None:
    for name in STEPS[: STEPS.index(below)] if below else STEPS:
        facts(nvmet)[name][1]()


@pytest.mark.parametrize("name", STEPS)
def test_every_half_made_state_is_finished_or_undone(
    name: str, nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    make_all(nvmet, below=name)
    has, do, undo = facts(nvmet)[name]
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


def test_new_keys_are_probed_as_wholly_as_they_are_written(
    nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    make_all(nvmet)
    whole, calls = False, 0
    while not whole:
        nvmet.set_secrets(TARGET, TAKE, chap=keys(1))

        def change() -> None:
            nvmet.set_secrets(TARGET, TAKE, chap=keys(2))

        whole = interrupt(fs, change, calls)
        assert nvmet.has_secrets(TARGET, TAKE, chap=keys(2)) is whole
        calls += 1
    assert calls > 2
    (fs.folder / f"hosts/{TAKE}/dhchap_key").chmod(0o644)
    assert not nvmet.has_secrets(TARGET, TAKE, chap=keys(2)), "any user can read it"


def test_a_namespace_of_another_volume_is_a_conflict(nvmet: RealNvmet) -> None:
    nvmet.add_target(TARGET)
    nvmet.add_namespace(TARGET, dataset=DATASET, uid="f" * 32)
    with pytest.raises(Conflict, match="UUID"):
        nvmet.has_namespace(TARGET, dataset=DATASET, uid=UID)


def test_a_zvol_that_was_replaced_is_not_served(nvmet: RealNvmet) -> None:
    make_all(nvmet)
    assert nvmet.has_namespace(TARGET, dataset="tank/v2", uid=UID) is False
    with pytest.raises(Conflict, match="renamed or replaced"):
        nvmet.add_namespace(TARGET, dataset="tank/v2", uid=UID)


def test_a_namespace_that_another_program_added_is_a_conflict(
    nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    make_all(nvmet)
    fs.make(f"subsystems/{TARGET}/namespaces/2")
    with pytest.raises(Conflict, match="namespaces 2"):
        nvmet.has_namespace(TARGET, dataset=DATASET, uid=UID)


def test_a_host_that_no_publication_names_is_a_conflict(nvmet: RealNvmet) -> None:
    make_all(nvmet)
    nvmet.add_acl(TARGET, OTHER, chap=keys())
    assert nvmet.has_acl(TARGET, TAKE, chap=keys(), allowed=(OTHER,))
    with pytest.raises(Conflict, match=OTHER):
        nvmet.has_acl(TARGET, TAKE, chap=keys(), allowed=())


def test_a_kernel_without_authentication_is_refused(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    nvmet.add_target(TARGET)
    fs.make(f"hosts/{TAKE}")
    (fs.folder / f"hosts/{TAKE}/dhchap_ctrl_key").unlink()
    with pytest.raises(FailedPrecondition) as caught:
        nvmet.add_acl(TARGET, TAKE, chap=keys())
    assert caught.value.reason == "NO_NVME_AUTH"
    assert nvmet.list_acls(TARGET) == []


# Ports


def test_a_port_is_shared_and_goes_with_its_last_subsystem(
    nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    second = TARGET.replace(UID, "a" * 32)
    for target in (TARGET, second):
        nvmet.add_target(target)
        nvmet.add_portals(target, PORTALS[:1])
    assert fs.names("ports") == ["31232"]
    nvmet.remove_portals(TARGET)
    assert fs.names("ports") == ["31232"]
    nvmet.remove_portals(second)
    assert fs.names("ports") == []


def test_a_port_listens_when_all_subsystems_are_known(
    nvmet: RealNvmet, fs: FakeNvmetfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but links is made between the first link to a port and the last one."""
    targets = tuple(TARGET.replace(UID, digit * 32) for digit in "abc")
    for target in targets:
        nvmet.add_target(target)
    calls: list[str] = []
    for name in ("make", "write", "link"):
        monkeypatch.setattr(fs, name, recorded(getattr(fs, name), name, calls))
    nvmet.add_portals_to_all(targets, PORTALS)
    assert calls[calls.index("link") :] == ["link"] * len(targets) * len(PORTALS)
    assert all(nvmet.has_portals(target, PORTALS) for target in targets)
    calls.clear()
    nvmet.add_portals_to_all(targets, PORTALS)
    assert calls == []


def recorded(function: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    """Return a function that also notes its calls."""

    def call(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return call


def test_a_port_of_another_program_is_used_and_stays(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    fs.make("ports/1")
    for name, value in (("trtype", "tcp"), ("traddr", "10.77.0.1"), ("trsvcid", "4420")):
        fs.write(f"ports/1/addr_{name}", value)
    fs.make("ports/2")
    nvmet.add_target(TARGET)
    before = fs.tree()
    nvmet.add_portals(TARGET, PORTALS[:1])
    assert fs.names("ports") == ["1", "2"]
    assert nvmet.has_portals(TARGET, PORTALS[:1])
    nvmet.remove_portals(TARGET)
    assert fs.tree() == before
    fs.write("ports/1/addr_treq", "required")
    with pytest.raises(Conflict, match="requires TLS"):
        nvmet.add_portals(TARGET, PORTALS[:1])


@pytest.mark.parametrize("several", [False, True], ids=["one subsystem", "all"])
def test_a_port_that_is_in_use_leaves_the_other(
    nvmet: RealNvmet, fs: FakeNvmetfs, monkeypatch: pytest.MonkeyPatch, *, several: bool
) -> None:
    """As by a program that listens at one of two addresses."""
    nvmet.add_target(TARGET)
    link = os.symlink

    def refuse(to: str, path: str) -> None:
        if "/ports/31232/" in path:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        link(to, path)

    monkeypatch.setattr("zfsilod.host.configfs.os.symlink", refuse)
    targets: Any = (TARGET,) if several else TARGET
    add = nvmet.add_portals_to_all if several else nvmet.add_portals
    with pytest.raises(FailedPrecondition, match=r"10\.77\.0\.1.*server\.nvme_portals") as caught:
        add(targets, PORTALS)
    assert (caught.value.reason, caught.value.facts["portal"]) == ("PORTAL_IN_USE", PORTALS[0])
    assert nvmet.has_portals(TARGET, PORTALS[1:])
    assert not nvmet.has_portals(TARGET, PORTALS)


def test_of_two_ports_with_one_portal_that_with_links_is_used(
    nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    """Another program has restored a port of its own, which cannot listen beside ours."""
    second = TARGET.replace(UID, "a" * 32)
    for target in (TARGET, second):
        nvmet.add_target(target)
    nvmet.add_portals(TARGET, PORTALS[:1])
    fs.make("ports/1")
    for name, value in (("trtype", "tcp"), ("traddr", "10.77.0.1"), ("trsvcid", "4420")):
        fs.write(f"ports/1/addr_{name}", value)
    nvmet.add_portals(second, PORTALS[:1])
    assert not fs.links("ports/1/subsystems")
    assert set(fs.links("ports/31232/subsystems")) == {TARGET, second}


def test_subsystems_of_another_program_may_have_any_name(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    """The kernel takes any text, as `testnqn` of the pages that explain nvmet."""
    make_all(nvmet)
    for name in ("subsystems/testnqn", "subsystems/testnqn/namespaces/7", "hosts/anybody"):
        fs.make(name)
    fs.link("subsystems/testnqn/allowed_hosts/anybody", "hosts/anybody")
    fs.write("subsystems/testnqn/namespaces/7/device_path", "/dev/zd16")
    assert [path for path in nvmet.export_paths() if path.target == "testnqn"] == [
        ExportPath(dataset="tank/v2", target="testnqn", fabric="nvme", initiators=("anybody",))
    ]
    assert nvmet.exists(TARGET, TAKE)
    nvmet.remove_acl(TARGET, TAKE)
    assert not nvmet.exists(TARGET, TAKE)


def test_other_portals_take_the_place_of_former_ones(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    make_all(nvmet)
    nvmet.add_portals(TARGET, ("10.77.0.9:4420",))
    assert nvmet.has_portals(TARGET, ("10.77.0.9:4420",))
    assert len(fs.names("ports")) == 1


@pytest.mark.parametrize(
    ("former", "local"),
    [
        ("10.77.0.9:4420", "09004D0A:1144"),
        ("[fd00::1]:4420", "000000FD000000000000000001000000:1144"),
    ],
)
def test_a_former_portal_stays_while_clients_are_connected_to_it(
    nvmet: RealNvmet, sockets: Path, former: str, local: str
) -> None:
    here = "10.77.0.1:4420"
    nvmet.add_target(TARGET)
    nvmet.add_portals(TARGET, (former,))
    row = f"   1: {local} 02004D0A:C350 01 00000000:00000000\n"
    table = sockets.parent / ("tcp6" if "[" in former else "tcp")
    table.write_text(f"  sl  local_address\n{LISTENING}{row}")
    nvmet.add_portals(TARGET, (here,))
    assert nvmet.has_portals(TARGET, (here,))
    assert nvmet.has_portals(TARGET, (here, former)), "it is still linked"
    assert not nvmet.has_portals(TARGET, ())
    table.write_text(f"  sl  local_address\n{LISTENING}")
    assert not nvmet.has_portals(TARGET, (here,))
    nvmet.add_portals(TARGET, (here,))
    assert nvmet.has_portals(TARGET, (here,))


@pytest.mark.parametrize("here", ["10.77.0.1:4420", "[fd00::1]:4420"])
def test_a_wildcard_goes_at_once(
    nvmet: RealNvmet, fs: FakeNvmetfs, sockets: Path, here: str
) -> None:
    """The kernel refuses to listen at an address beside it; of IPv6 clients would keep it open."""
    nvmet.add_target(TARGET)
    nvmet.add_portals(TARGET, ("0.0.0.0:4420",))
    row = "   1: 01004D0A:1144 02004D0A:C350 01 00000000:00000000\n"
    sockets.write_text(f"  sl  local_address\n{LISTENING}{row}")
    assert not nvmet.has_portals(TARGET, (here,))
    nvmet.add_portals(TARGET, (here,))
    assert not nvmet.has_portals(TARGET, ("0.0.0.0:4420",))
    assert nvmet.has_portals(TARGET, (here,))
    assert len(fs.names("ports")) == 1


def test_a_portal_without_its_address_leaves_the_others(
    nvmet: RealNvmet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a boot without one of two networks; later the portal is added."""
    here, away = "10.77.0.1:4420", "10.88.0.1:4420"
    monkeypatch.setattr("zfsilod.host.portals.has_address", here.__eq__)
    nvmet.add_target(TARGET)
    nvmet.add_portals(TARGET, (here, away))
    assert nvmet.has_portals(TARGET, (here, away))
    assert not nvmet.has_portals(TARGET, (away,)), "the other one is not wanted"
    monkeypatch.setattr("zfsilod.host.portals.has_address", lambda _portal: True)
    assert not nvmet.has_portals(TARGET, (here, away))
    nvmet.add_portals(TARGET, (here, away))
    assert nvmet.has_portals(TARGET, (here, away))
    monkeypatch.setattr("zfsilod.host.portals.has_address", here.__eq__)
    assert nvmet.has_portals(TARGET, (here, away)), "a link that exists stays"


@pytest.mark.parametrize(
    ("portal", "here"),
    [
        ("127.0.0.1:4420", True),
        ("0.0.0.0:4420", True),
        ("192.0.2.1:4420", False),
        ("[2001:db8::1]:4420", False),
        ("[::1]:4420", True),
        ("[fe80::1%lo]:4420", False),
        ("[fe80::1%1]:4420", False),
        ("[fe80::1%nosuch]:4420", False),
        ("[fe80::1%99999]:4420", False),
        ("[fe80::1]:4420", False),
    ],
)
def test_the_address_of_a_portal_is_one_of_the_host(portal: str, *, here: bool) -> None:
    assert has_address(portal) == here


def test_a_link_local_address_belongs_to_its_interface() -> None:
    scoped = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    local = [(line[0], line[5]) for line in scoped if line[3] == "20"]
    if not local:
        pytest.skip("this machine has no link-local address")
    digits, name = local[0]
    address = ":".join(digits[start : start + 4] for start in range(0, 32, 4))
    assert has_address(check_portal(f"[{address}%{name}]:4420"))
    assert not has_address(check_portal(f"[{address}%lo]:4420"))


# Sessions


def test_a_host_may_have_a_controller_only_while_somebody_is_connected(
    nvmet: RealNvmet, sockets: Path
) -> None:
    make_all(nvmet)
    assert not nvmet.has_session(TARGET, TAKE)
    sockets.write_text(f"  sl\n{LISTENING}{CONNECTED}")
    assert nvmet.has_session(TARGET, TAKE)
    assert not nvmet.has_session(TARGET, OTHER), "not allowed"
    nvmet.remove_portals(TARGET)
    assert not nvmet.has_session(TARGET, TAKE), "no port is linked, which ends all controllers"


def test_a_table_of_sockets_that_cannot_be_read_is_not_an_empty_one(
    nvmet: RealNvmet, sockets: Path
) -> None:
    make_all(nvmet)
    sockets.unlink()
    with pytest.raises(OSError, match="tcp"):
        nvmet.has_session(TARGET, TAKE)


def folders_of_unlinks(fs: FakeNvmetfs) -> list[str]:
    """Return the list to which each later unlink adds the first folder of its path."""
    unlinked: list[str] = []
    unlink = fs.unlink

    def record(path: str) -> None:
        unlinked.append(path.split("/")[0])
        unlink(path)

    fs.unlink = record  # type: ignore[method-assign]
    return unlinked


@pytest.mark.parametrize("others", [(), (OTHER,)], ids=["alone", "beside another"])
def test_a_fence_unlinks_the_ports_before_the_host(
    nvmet: RealNvmet, fs: FakeNvmetfs, sockets: Path, others: tuple[str, ...]
) -> None:
    make_all(nvmet)
    for other in others:
        nvmet.add_acl(TARGET, other, chap=keys(host=other))
    sockets.write_text(f"  sl\n{CONNECTED}")
    unlinked = folders_of_unlinks(fs)
    nvmet.end_session(TARGET, TAKE, grace_s=0)
    assert unlinked[:3] == ["ports", "ports", "subsystems"]
    assert nvmet.list_acls(TARGET) == list(others)
    assert not nvmet.exists(TARGET, TAKE)
    assert nvmet.has_portals(TARGET, PORTALS if others else ())


@pytest.mark.parametrize("after", ["removed again", "allowed again", "linked by another step"])
def test_a_removal_that_is_stopped_leaves_no_port_closed(
    after: str, nvmet: RealNvmet, fs: FakeNvmetfs, sockets: Path
) -> None:
    """The other hosts connect again as soon as the removal is repeated or turned back."""
    make_all(nvmet)
    nvmet.add_acl(TARGET, OTHER, chap=keys(host=OTHER))
    sockets.write_text(f"  sl\n{CONNECTED}")
    whole, calls = False, 0
    while not whole:
        nvmet.add_acl(TARGET, TAKE, chap=keys())
        whole = interrupt(fs, lambda: nvmet.remove_acl(TARGET, TAKE), calls)
        assert nvmet.exists(TARGET, TAKE) is not whole
        if after == "removed again":
            nvmet.remove_acl(TARGET, TAKE)
            assert nvmet.list_acls(TARGET) == [OTHER]
            assert not nvmet.exists(TARGET, TAKE)
        elif after == "allowed again":
            nvmet.add_acl(TARGET, TAKE, chap=keys())
            assert sorted(nvmet.list_acls(TARGET)) == sorted((OTHER, TAKE))
        else:
            nvmet.add_portals(TARGET, PORTALS)
        assert nvmet.has_portals(TARGET, PORTALS)
        calls += 1
    assert calls > 5


@pytest.mark.parametrize("calls", [0, 1])
def test_a_host_that_connected_before_a_removal_was_stopped_is_ended(
    calls: int, nvmet: RealNvmet, fs: FakeNvmetfs, sockets: Path
) -> None:
    """The end of the right alone ends no controller, and its repetition does not know of one."""
    make_all(nvmet)
    nvmet.add_acl(TARGET, OTHER, chap=keys(host=OTHER))
    assert not interrupt(fs, lambda: nvmet.remove_acl(TARGET, TAKE), calls)
    assert (TAKE in nvmet.list_acls(TARGET)) is (calls == 0)
    sockets.write_text(f"  sl\n{CONNECTED}")
    unlinked = folders_of_unlinks(fs)
    nvmet.remove_acl(TARGET, TAKE)
    assert unlinked[:2] == ["ports", "ports"]
    assert not nvmet.exists(TARGET, TAKE)
    assert nvmet.has_portals(TARGET, PORTALS)


def test_a_port_of_another_kind_may_have_the_controller(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    """No table tells of its connections: a fence closes it, and is not stopped by it."""
    make_all(nvmet)
    fs.make("ports/9")
    fs.write("ports/9/addr_trtype", "rdma")
    fs.write("ports/9/addr_traddr", "10.77.0.1")
    fs.link(f"ports/9/subsystems/{TARGET}", f"subsystems/{TARGET}")
    assert nvmet.has_session(TARGET, TAKE)
    assert not interrupt(fs, lambda: nvmet.end_session(TARGET, TAKE, grace_s=0), 0)
    nvmet.end_session(TARGET, TAKE, grace_s=0)
    assert not fs.links("ports/9/subsystems")
    assert not nvmet.exists(TARGET, TAKE)


def test_the_host_of_a_subsystem_with_a_former_name_stays(
    nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    former = TARGET.replace("give", "nas")
    make_all(nvmet)
    nvmet.add_target(former)
    nvmet.add_acl(former, TAKE, chap=keys())
    nvmet.remove_acl(former, TAKE)
    assert not nvmet.exists(former, TAKE)
    assert nvmet.has_acl(TARGET, TAKE, chap=keys(), allowed=())
    assert fs.names("hosts") == [TAKE]


# Others


def test_paths_to_a_zvol_name_the_hosts(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    make_all(nvmet)
    fs.make(f"subsystems/{FOREIGN}")
    fs.write(f"subsystems/{FOREIGN}/attr_allow_any_host", "1")
    fs.make(f"subsystems/{FOREIGN}/namespaces/7")
    fs.write(f"subsystems/{FOREIGN}/namespaces/7/device_path", "/dev/zd0")
    ours = ExportPath(dataset=DATASET, target=TARGET, fabric="nvme", initiators=(TAKE,))
    foreign = ExportPath(dataset=DATASET, target=FOREIGN, fabric="nvme", open=True)
    assert nvmet.export_paths() == [foreign, ours]


def test_an_export_is_removed_with_all_that_is_in_it(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    fs.make("hosts/" + FOREIGN)
    before = fs.tree()
    make_all(nvmet)
    nvmet.remove_export(TARGET, None)
    assert fs.tree() == before
    nvmet.remove_export(TARGET, None)


def test_a_subsystem_in_use_is_not_removed(nvmet: RealNvmet) -> None:
    make_all(nvmet)
    with pytest.raises(Busy):
        nvmet.remove_target(TARGET)


@pytest.mark.parametrize("name", ["../../outside", "nqn.", "nqn.a/b", "iqn.2026-01.x:y", ""])
def test_a_name_leads_nowhere_else(nvmet: RealNvmet, name: str) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: nvmet.add_target(name),
        lambda: nvmet.add_acl(TARGET, name, chap=keys()),
        lambda: nvmet.add_portals(name, PORTALS),
        lambda: nvmet.has_namespace(name, dataset=DATASET, uid=UID),
    )
    for call in calls:
        with pytest.raises(InvalidArgument):
            call()


def test_keys_are_no_part_of_an_error(nvmet: RealNvmet, fs: FakeNvmetfs) -> None:
    nvmet.add_target(TARGET)
    fs.make(f"hosts/{TAKE}")
    (fs.folder / f"hosts/{TAKE}/dhchap_key").unlink()
    (fs.folder / f"hosts/{TAKE}/dhchap_key").mkdir()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
        nvmet.add_acl(TARGET, TAKE, chap=keys())
    assert "DHHC" not in str(caught.value)


# Controller ids


@pytest.mark.parametrize("before", [(1, 65519), (1, 31999), (32000, 65519), (100, 200), (150, 180)])
@pytest.mark.parametrize("after", [(1, 65519), (1, 31999), (32000, 65519), (100, 200), (200, 300)])
def test_the_range_of_controller_ids_is_never_empty(
    before: tuple[int, int], after: tuple[int, int], nvmet: RealNvmet, fs: FakeNvmetfs
) -> None:
    """As nvmet_subsys_attr_cntlid_min_store() in drivers/nvme/target/configfs.c requires it."""
    nvmet.add_target(TARGET)
    folder = fs.folder / f"subsystems/{TARGET}"
    nvmet.set_controller_ids(TARGET, *before)
    assert nvmet.has_controller_ids(TARGET, *before)
    assert nvmet.has_controller_ids(TARGET, *after) is (before == after)
    for calls in range(3):
        nvmet.set_controller_ids(TARGET, *before)
        interrupt(fs, lambda: nvmet.set_controller_ids(TARGET, *after), calls)
        low, high = (int((folder / f"attr_cntlid_{end}").read_text()) for end in ("min", "max"))
        assert low < high
        nvmet.set_controller_ids(TARGET, *after)
        assert nvmet.has_controller_ids(TARGET, *after)
