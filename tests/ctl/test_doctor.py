"""`doctor`, on hosts with fake tools and files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main
from zfsilod.ctl.commands.doctor import HostFiles, Prerequisite, client, clock, port, server
from zfsilod.host.run import CLIENT_TOOLS, SERVER_TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.ctl.fake_tools import FakeTools
    from tests.ctl.shell import Shell

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


def test_a_clock_in_the_past(tmp_path: Path) -> None:
    files = host(tmp_path, {"usr/lib/os-release": ""})
    assert clock(files, 1000.0).command == "timedatectl set-ntp true"
    assert clock(files, 1e11).problem == ""


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
