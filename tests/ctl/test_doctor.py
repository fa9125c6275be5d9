"""`doctor`, `setup`, `volume attach` and `volume detach`, with fake tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main
from zfsilod.ctl.commands.doctor import HostFiles, Prerequisite, client, clock, port, server
from zfsilod.host.run import CONSUMER_TOOLS, SERVER_TOOLS, TOOLS_PATH_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.ctl.shell import Shell

MODULES = "kernel/zfs.ko.xz:\nkernel/target_core_mod.ko:\nkernel/target_core_iblock.ko:\n"
SCRIPT = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {log}
{body}
"""


class Tools:
    """Fake tools, and the log of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tools"
        self.folder.mkdir()
        self._log = folder / "log"
        self("systemctl", "exit 0")

    def __call__(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(SCRIPT.format(log=self._log, body=body))
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """A host that has systemctl only, with its directories below a temporary one."""
    made = Tools(tmp_path)
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, str(made.folder))
    monkeypatch.delenv("ZFSILO_SIMULATE", raising=False)
    monkeypatch.setattr("zfsilod.ctl.paths.etc", lambda: tmp_path / "etc")
    monkeypatch.setattr("zfsilod.ctl.paths.state", lambda: tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


def host(tmp_path: Path, files: dict[str, str]) -> HostFiles:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostFiles(tmp_path, "6.1")


def problems(checks: Iterable[Prerequisite]) -> dict[str, str]:
    return {check.name: check.command for check in checks if check.problem}


def test_a_server_without_its_modules(tools: Tools, tmp_path: Path) -> None:
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


def test_a_client_step_by_step(tools: Tools, tmp_path: Path) -> None:
    for name in CONSUMER_TOOLS:
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


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The directory of a simulation without a daemon."""
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("line", ["setup --yes", "volume attach data /srv", "volume detach data"])
def test_commands_that_change_the_host_are_refused(
    tools: Tools, simulated: None, line: str
) -> None:
    assert main(line.split()) == 5
    assert main(["-H", "give", *line.split()]) == 2
    assert tools.calls == []


def test_attach_in_a_simulation_names_the_alternative(
    simulated: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["volume", "attach", "data", "/srv"]) == 5
    assert "use volume connect, stage and mount" in capsys.readouterr().err


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


def pools(tools: Tools, *names: str) -> None:
    tools("zpool", "".join(f"printf '{name}\\tONLINE\\n'\n" for name in names))
    tools(
        "zfs",
        'case "$*" in *-t*) ;; list*) echo "cannot open: dataset does not exist" >&2;'
        " exit 1;; esac",
    )


def test_setup_finds_the_pool(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools(tools, "tank")
    assert main(["setup", "--yes", "--portal", "10.0.0.1"]) == 0
    text = (tmp_path / "etc/zfsilod.toml").read_text()
    assert 'root = "tank/zfsilo"\nportals = ["10.0.0.1:3260"]\n' in text
    assert "zfs create -o mountpoint=none tank/zfsilo" in tools.calls
    assert tools.calls[-1] == "systemctl restart zfsilod.service zfsilo-renew.timer"
    assert (tmp_path / "tls/host.pem").exists()
    assert "zfsiloctl volume attach data /srv/data" in capsys.readouterr().out


def test_setup_can_be_repeated(tools: Tools, tmp_path: Path) -> None:
    pools(tools, "tank")
    assert main(["setup", "--yes"]) == 0
    before = (tmp_path / "etc/zfsilod.toml").read_text()
    tools("zfs", "echo tank/zfsilo")
    assert main(["setup", "--yes"]) == 0
    assert (tmp_path / "etc/zfsilod.toml").read_text() == before
    assert sum(call.startswith("zfs create") for call in tools.calls) == 1
    assert main(["setup", "--yes", "--root", "tank/other"]) == 4


def test_setup_keeps_an_existing_configuration(tools: Tools, tmp_path: Path) -> None:
    host(tmp_path, {"etc/zfsilod.toml": "[sync]\ninterval_s = 5\n"})
    pools(tools, "tank")
    assert main(["setup", "--yes"]) == 0
    assert (tmp_path / "etc/zfsilod.toml").read_text() == "[sync]\ninterval_s = 5\n"
    assert "tank/zfsilo" in (tmp_path / "etc/zfsilod.toml.d/setup.toml").read_text()


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [((), 5, "zpool create"), (("tank", "rpool"), 2, "--root tank/zfsilo")],
)
def test_setup_with_no_pool_or_several(
    tools: Tools, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], code: int, said: str
) -> None:
    pools(tools, *names)
    assert main(["setup", "--yes"]) == code
    assert said in capsys.readouterr().err
    assert not any(call.startswith(("zfs create", "systemctl")) for call in tools.calls)


def test_a_dry_run_changes_nothing(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools(tools, "tank")
    assert main(["setup", "--dry-run"]) == 0
    assert "serves volumes below tank/zfsilo, which will be created" in capsys.readouterr().out
    assert not (tmp_path / "etc").exists()


def test_attach_and_detach(tools: Tools, tmp_path: Path) -> None:
    line = ["volume", "attach", "data", "/srv/data", "--server", "give", "-o", "noatime,discard"]
    file = tmp_path / "etc/volumes.d/data.toml"
    assert main(line) == 0
    assert file.read_text() == (
        'server = "give"\nmount_path = "/srv/data"\nmount_options = ["noatime", "discard"]\n'
    )
    assert main(line) == 0
    assert main([*line, "--readonly"]) == 4, "it is attached with other options"
    assert main(["volume", "detach", "data"]) == 0
    assert not file.exists()
    assert tools.calls[-1] == "systemctl disable --now zfsilo-volume@data.service"


def test_a_failed_attach_is_undone(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools("systemctl", 'case "$1" in enable) exit 1;; esac')
    line = ["volume", "attach", "data", "/srv/data", "--server", "give"]
    tools("journalctl", "exit 1")
    assert main(line) == 5
    assert "cannot attach data: journalctl -u zfsilo-volume@" in capsys.readouterr().err
    tools("journalctl", "printf 'zfsiloctl: give is away\\n  try: this\\n'")
    assert main(line) == 5
    assert "cannot attach data: give is away (journalctl -u zf" in capsys.readouterr().err
    assert not (tmp_path / "etc/volumes.d/data.toml").exists()
    assert tools.calls[-2] == "systemctl disable --now zfsilo-volume@data.service"
