"""`doctor`, on hosts with fake tools and files."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.api.running import made
from tests.api.test_certificates_in_use import revoke
from zfsilod.config import ServerConfig
from zfsilod.ctl import main, server_files
from zfsilod.ctl.commands import doctor
from zfsilod.ctl.commands.doctor import HostFiles, Prerequisite, client, clock, port, server
from zfsilod.host.run import CLIENT_TOOLS, SERVER_TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.api.running import Front
    from tests.ctl.fake_tools import FakeTools
    from tests.ctl.shell import Shell
    from zfsilod.security import join_file

MODULES = "kernel/zfs.ko.xz:\nkernel/target_core_mod.ko:\nkernel/target_core_iblock.ko:\n"


def host(tmp_path: Path, files: dict[str, str]) -> HostFiles:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostFiles(tmp_path, "6.1")


def problems(checks: Iterable[Prerequisite]) -> dict[str, str]:
    return {check.name: check.command for check in checks if check.problem}


def test_a_server_without_its_modules(tools: FakeTools, tmp_path: Path) -> None:
    for name in SERVER_TOOLS:
        tools(name, "")
    files = host(tmp_path, {"lib/modules/6.1/modules.dep": MODULES})
    files.root.joinpath("etc/systemd/system/multi-user.target.wants").mkdir(parents=True)
    conflicting = "etc/systemd/system/multi-user.target.wants/target.service"
    files.root.joinpath(conflicting).symlink_to("/nowhere")
    assert problems(server(files)) == {
        "kernel module iscsi_target_mod": "apt install linux-image-6.1",
        "target.service": "systemctl disable target.service",
    }
    files.root.joinpath("sys/module/iscsi_target_mod").mkdir(parents=True)
    files.root.joinpath(conflicting).unlink()
    assert problems(server(files)) == {}
    (tools.folder / "zfs").unlink()
    assert Prerequisite(
        "zfsutils-linux", "zfs is not installed", "apt install zfsutils-linux"
    ) in list(server(files))


@pytest.mark.parametrize("name", doctor.CONFLICTING_UNITS)
def test_a_unit_that_removes_all_targets_is_named(name: str, tmp_path: Path) -> None:
    """nvmet.service runs `nvmetcli restore`, which clears what it did not save."""
    folder = tmp_path / "etc/systemd/system/multi-user.target.wants"
    folder.mkdir(parents=True)
    (folder / name).symlink_to("/nowhere")
    assert doctor.conflicting_units(HostFiles(tmp_path, "6.1")) == [name]
    assert "nvmet.service" in doctor.CONFLICTING_UNITS


def test_the_addresses_of_portals_are_judged_as_by_the_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link-local one belongs to its interface."""
    here = "[fe80::1%eth0]:3260"
    monkeypatch.setattr(doctor, "has_address", here.__eq__)
    server = ServerConfig(portals=[here], nvme_portals=["10.0.0.9:4420"])
    checks = list(doctor.portals(server))
    assert [bool(check.problem) for check in checks] == [False, True]
    assert checks[1].name == "portal 10.0.0.9:4420"


def test_a_client_step_by_step(tools: FakeTools, tmp_path: Path) -> None:
    for name in CLIENT_TOOLS:
        tools(name, "")
    (tools.folder / "iscsiadm").unlink()
    files = host(tmp_path, {"lib/modules/6.1/modules.builtin": "kernel/iscsi_tcp.ko\n"})
    assert problems(client(files)) == {"open-iscsi": "apt install open-iscsi"}
    tools("iscsiadm", "")
    assert set(problems(client(files))) == {"initiator name", "iscsid"}
    files = host(
        tmp_path,
        {
            "etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.2026-01.org.example:a\n",
            "proc/net/unix": "00: 0 @ISCSIADM_ABSTRACT_NAMESPACE\n",
        },
    )
    assert problems(client(files)) == {}


def test_a_client_with_nvme_only(tools: FakeTools, tmp_path: Path) -> None:
    for name in CLIENT_TOOLS:
        tools(name, "")
    (tools.folder / "iscsiadm").unlink()
    modules = "kernel/iscsi_tcp.ko\nkernel/nvme-tcp.ko\n"
    files = host(tmp_path, {"lib/modules/6.1/modules.builtin": modules})
    assert problems(client(files)) == {}
    assert any(item.name.startswith("transport nvme only") for item in client(files))


@pytest.mark.parametrize("name", ["nvmet_tcp", "nvme_tcp"])
def test_a_kernel_without_the_second_transport_is_good(name: str, tmp_path: Path) -> None:
    without = doctor.nvme(host(tmp_path, {}), name)
    assert (without.problem, name in without.name) == ("", True)
    assert without.name.startswith("transport iscsi only")
    path = {"lib/modules/6.1/modules.dep": f"kernel/{name.replace('_', '-')}.ko.xz:\n"}
    assert doctor.nvme(host(tmp_path, path), name).name == f"kernel module {name}"


@pytest.mark.parametrize(("shown", "told"), [("N", True), ("Y", False)])
def test_a_kernel_without_native_multipath_is_told(
    tmp_path: Path, shown: str, *, told: bool
) -> None:
    files = host(tmp_path, {"sys/module/nvme_core/parameters/multipath": f"{shown}\n"})
    names = [item.name for item in doctor.client(files) if item.name.startswith("one path")]
    assert any("over nvme" in name for name in names) == told


@pytest.mark.parametrize("running", [True, False])
def test_a_client_without_multipathd_is_told(
    tools: FakeTools, tmp_path: Path, *, running: bool
) -> None:
    tools("iscsiadm", "")
    files = host(tmp_path, {"run/multipathd.pid": "4711\n"} if running else {})
    told = [item for item in doctor.client(files) if "multipathd is not running" in item.name]
    assert len(told) == (0 if running else 1)
    assert not any(item.problem for item in told), "one path works"


KEYRING_OF_TLS = "lib/modules/6.1/modules.dep", "kernel/drivers/nvme/common/nvme-keyring.ko.xz:\n"
TLSHD = {  # in the order in which an administrator finds what is missing, each with what is told
    "does not have nvme_keyring": KEYRING_OF_TLS,
    "apt install ktls-utils": ("usr/sbin/tlshd", ""),
    "/etc/tlshd.conf does not name": (
        "etc/tlshd.conf",
        "[debug]\nkeyrings=.nvme\n[authenticate]\n#keyrings=.nvme\nkeyrings= a;.nvme\n",
    ),
    "enable --now tlshd": ("sys/fs/cgroup/system.slice/tlshd.service/cgroup.procs", "412\n"),
}


def test_what_tls_needs_is_told_one_after_the_other(tmp_path: Path) -> None:
    """A host need not have it."""
    for told, (path, text) in TLSHD.items():
        without = doctor.tls(host(tmp_path, {}))
        assert (without.problem, told in without.name) == ("", True), told
        host(tmp_path, {path: text})
    assert doctor.tls(host(tmp_path, {})).name == "TLS over nvme"
    host(tmp_path, {"etc/tlshd.conf": "[debug]\nkeyrings=.nvme\n[authenticate]\n#keyrings=.nvme\n"})
    assert "does not name" in doctor.tls(host(tmp_path, {})).name


WRONG_SETTINGS = {
    "multipath config_dir": {
        "etc/multipath.conf": 'defaults {\n config_dir "/etc/multipath/own"\n}\n'
    },
    "multipath blacklist": {
        "etc/multipath.conf": "blacklist {\n devnode sdz\n device {\n vendor .*\n }\n}\n"
    },
    "lvm event_activation": {"etc/lvm/lvm.conf": "global {\n\tevent_activation = 0\n}\n"},
    "mdadm DEVICE": {"etc/mdadm/mdadm.conf": "DEVICE partitions /dev/zd*\n"},
}
RIGHT_SETTINGS = {
    "etc/iscsi/iscsid.conf": "iscsid.safe_logout = Yes\n",
    "etc/multipath.conf": "defaults {\n find_multipaths yes\n}\n"
    'blacklist {\n device {\n vendor "IBM"\n product ".*"\n }\n}\n'
    "blacklist_exceptions {\n device {\n vendor .*\n }\n}\n",
    "etc/lvm/lvm.conf": "event_activation = 0 # no events\n"
    'global_filter = [ "a|^/dev/vda|", "r|^/dev/zd.*|" ]\n',
    "etc/mdadm/mdadm.conf": "DEVICE partitions\n",
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_a_setting_of_another_tool_that_cannot_work(name: str, tmp_path: Path) -> None:
    wrong = problems(doctor.tool_settings(host(tmp_path, WRONG_SETTINGS[name])))
    assert list(wrong) == [name]
    assert wrong[name]


def test_settings_of_other_tools_that_work(tmp_path: Path) -> None:
    assert problems(doctor.tool_settings(host(tmp_path, {}))) == {}
    assert problems(doctor.tool_settings(host(tmp_path, RIGHT_SETTINGS))) == {}


def test_a_clock_in_the_past(tmp_path: Path) -> None:
    files = host(tmp_path, {"usr/lib/os-release": ""})
    assert clock(files, 1000.0, synchronised=True).command == "timedatectl set-ntp true"
    assert clock(files, 1e11, synchronised=True).problem == ""


def test_a_clock_without_synchronisation_purges_nothing(tmp_path: Path) -> None:
    check = clock(host(tmp_path, {}), 1e11, synchronised=False)
    assert check.problem == (
        "it is not synchronised: deleted volumes and ended operations are kept for ever"
    )
    assert check.command == "timedatectl set-ntp true"


def test_a_closed_port(tmp_path: Path) -> None:
    line = "   0: 00000000:{:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n"
    files = host(tmp_path, {"proc/net/tcp": line.format(22)})
    assert port(files).command == "systemctl enable --now zfsilod-tcp.socket"
    files = host(tmp_path, {"proc/net/tcp6": line.format(9750)})
    assert port(files).problem == ""


def test_doctor_of_a_running_simulation(ctl: Shell) -> None:
    assert "ok  zfsilod answers\n" in ctl.ok("doctor")
    assert {"name": "zfsilod answers", "problem": "", "command": ""} in ctl("doctor --json").json[
        "checks"
    ]


@pytest.mark.parametrize("line", ["doctor", "join x", "server list", "server forget give"])
def test_local_commands_refuse_h(ctl: Shell, line: str) -> None:
    assert "works on the local host only; run it there, without -H" in ctl.fails(
        2, f"-H give {line}"
    )


def test_doctor_without_a_daemon(simulated: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "    try: systemctl enable --now zfsilod.socket\n" in capsys.readouterr().out


def test_doctor_reports_an_invalid_configuration(
    simulated: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host(tmp_path, {"etc/zfsilod.toml": "[server]\nrot = 1\n"})
    assert main(["doctor"]) == 1
    assert "BAD configuration: " in capsys.readouterr().out


REJOIN = "on give: zfsiloctl pki issue host"


def silent(stack: ExitStack) -> str:
    """Return the address of a server that accepts connections and says nothing."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"127.0.0.1:{listener.getsockname()[1]}"


def broken_access(front: Front, kind: str, stack: ExitStack) -> join_file.Access:
    """Return the access to a server, broken in one way."""
    if kind == "certificate of an unknown authority":
        return front.certified("host", "take", by="other")
    access = front.certified("host", "take", days=0 if kind == "expired" else 1)
    if kind == "another authority":
        access.authority = made("other").certificate_pem.decode()
    elif kind == "another name":
        access.tls_name = "other.zfsilo"
    elif kind == "revoked":
        revoke(front, access)
    elif kind != "expired":
        addresses = {"refused": "127.0.0.1:1", "name": "nowhere.invalid:9750"}
        access.address = addresses.get(kind) or silent(stack)
    return access


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("another authority", REJOIN),
        ("another name", REJOIN),
        ("certificate of an unknown authority", REJOIN),
        ("expired", REJOIN),
        ("revoked", REJOIN),
        ("name", "getent hosts nowhere.invalid; add the name to /etc/hosts"),
        ("refused", "on give: systemctl enable --now zfsilod-tcp.socket"),
        ("silent", "ping 127.0.0.1; check the network, and the firewall of give for TCP port"),
    ],
)
def test_the_hint_is_that_of_the_kind_of_failure(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch, kind: str, hint: str
) -> None:
    monkeypatch.setattr("zfsilod.ctl.commands.doctor.REACH_S", 2.0)
    with ExitStack() as stack:
        path = server_files.write(broken_access(ctl.daemon.front, kind, stack))
        stack.callback(path.unlink)
        checks = ctl("doctor --json").json["checks"]
    (check,) = (check for check in checks if check["name"] == "server give")
    assert check["command"].startswith(hint), check


def test_a_server_that_answers(ctl: Shell) -> None:
    path = server_files.write(ctl.daemon.front.certified("host", "take"))
    try:
        shown = ctl("doctor").out
        assert "ok  server give answers\n" in shown
        assert "ok  clock of server give\n" in shown
    finally:
        path.unlink()
    late = doctor.compare_clocks("give", 1000.0, 1000.0 + 2 * 86400)
    assert late.problem == "this host's clock is 2 days ahead of it"
    assert late.command == "timedatectl set-ntp true"
    assert "10 minutes behind" in doctor.compare_clocks("give", 600.0, 0.0).problem
    assert not doctor.compare_clocks("give", 10.0, 0.0).problem


def test_a_host_that_is_not_set_up(tools: FakeTools, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "try: zfsiloctl setup (a server), or zfsiloctl join FILE" in capsys.readouterr().out
    assert tools.folder.exists()


@pytest.mark.parametrize(
    ("listed", "key", "command"),
    [
        ("ONLINE\\toff", "none", ""),
        ("SUSPENDED\\toff", "none", "zpool clear tank"),
        ("DEGRADED\\toff", "none", "zpool status tank"),
        ("ONLINE\\ton", "none", "zpool export tank; zpool import tank"),
        ("ONLINE\\toff", "unavailable\\ntank/secret", "zfs load-key tank/secret"),
    ],
)
def test_the_state_of_a_pool(tools: FakeTools, listed: str, key: str, command: str) -> None:
    tools("zpool", f"printf '{listed}\\n'")
    tools("zfs", f"printf '{key}\\n'")
    assert [
        check.command for check in doctor.pool_checks("tank/secret/zfsilo") if check.problem
    ] == [*filter(None, [command])]


def test_no_dataset_of_a_suspended_pool_is_asked_for(tools: FakeTools) -> None:
    tools("zpool", "printf 'SUSPENDED\\toff\\n'")
    tools("zfs", "exit 1")
    (check,) = doctor.pool_checks("tank/zfsilo")
    assert check.command == "zpool clear tank"


def test_a_missing_dataset_root_has_one_line(
    tools: FakeTools, capsys: pytest.CaptureFixture[str]
) -> None:
    tools("zpool", "printf 'ONLINE\\toff\\n'")
    tools("zfs", "echo \"cannot open 'tank/zfsilo': dataset does not exist\" >&2; exit 1")
    pool, dataset = doctor.pool_checks("tank/zfsilo")
    assert (pool.problem, dataset.problem) == (
        "",
        "cannot open 'tank/zfsilo': dataset does not exist",
    )
    assert dataset.command == "zfs create -o mountpoint=none tank/zfsilo"
    assert capsys.readouterr().err == ""


def test_a_pool_that_is_not_imported(tools: FakeTools) -> None:
    tools("zpool", 'case "$1" in list) echo "cannot open: no such pool" >&2; exit 1;; esac')
    (check,) = doctor.pool_checks("tank/zfsilo")
    assert check.command == "zpool import tank"
    importable = (
        "   pool: tank\\n status: The pool uses feature(s) not supported on this system.\\n"
    )
    tools("zpool", f'case "$1" in list) exit 1;; import) printf "{importable}";; esac')
    (check,) = doctor.pool_checks("tank/zfsilo")
    assert "features that the ZFS of this host does not support" in check.problem


def test_where_the_key_of_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfsilod.ctl.paths.state", lambda: tmp_path / "state")
    files = doctor.HostFiles(tmp_path)
    in_a_file = doctor.store_key(files)
    assert (in_a_file.problem, "seal-key" in in_a_file.name) == ("", True)
    sealed = tmp_path / doctor.SEALED_KEY
    sealed.parent.mkdir(parents=True)
    sealed.touch()
    assert doctor.store_key(files).name == "key of the store, kept by systemd"
    (tmp_path / "state").mkdir()
    (tmp_path / "state/key").touch()  # systemd passes the sealed one, but the file opens all
    assert doctor.store_key(files) == in_a_file
