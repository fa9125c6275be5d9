"""What `doctor` finds on hosts that lack something, and `setup` and `attach` with made-up tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main
from zfsilod.ctl.commands.doctor import Check, Patient, clock, giving, port, taking
from zfsilod.host.run import CLIENT_TOOLS, SERVER_TOOLS, TOOLS_PATH_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ctl.shell import Shell

MODULES = "kernel/zfs.ko.xz:\nkernel/target_core_mod.ko:\nkernel/target_core_iblock.ko:\n"
SCRIPT = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {log}
{body}
"""


class Tools:
    """Made-up tools, and what they were asked to do."""

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
    def asked(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """A host with systemctl only, which root sets up below a folder of the test."""
    made = Tools(tmp_path)
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, str(made.folder))
    monkeypatch.delenv("ZFSILO_SIMULATE", raising=False)
    monkeypatch.setattr("zfsilod.ctl.paths.etc", lambda: tmp_path / "etc")
    monkeypatch.setattr("zfsilod.ctl.paths.state", lambda: tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


def host(tmp_path: Path, files: dict[str, str]) -> Patient:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Patient(tmp_path, "6.1")


def wrong(checks: list[Check]) -> dict[str, str]:
    return {each.what: each.command for each in checks if each.wrong}


def test_a_storage_host_without_its_modules(tools: Tools, tmp_path: Path) -> None:
    for name in SERVER_TOOLS:
        tools(name, "")
    patient = host(tmp_path, {"lib/modules/6.1/modules.dep": MODULES})
    patient.root.joinpath("etc/systemd/system/multi-user.target.wants").mkdir(parents=True)
    rival = "etc/systemd/system/multi-user.target.wants/target.service"
    patient.root.joinpath(rival).symlink_to("/nowhere")
    assert wrong(list(giving(patient))) == {
        "kernel module iscsi_target_mod": "apt install linux-image-6.1",
        "target.service": "systemctl disable target.service",
    }
    patient.root.joinpath("sys/module/iscsi_target_mod").mkdir(parents=True)
    patient.root.joinpath(rival).unlink()
    assert wrong(list(giving(patient))) == {}
    (tools.folder / "zfs").unlink()
    assert Check(
        "zfsutils-linux", "there is no zfs on this host", "apt install zfsutils-linux"
    ) in list(giving(patient))


def test_a_consumer_step_by_step(tools: Tools, tmp_path: Path) -> None:
    for name in CLIENT_TOOLS:
        tools(name, "")
    (tools.folder / "iscsiadm").unlink()
    patient = host(tmp_path, {"lib/modules/6.1/modules.builtin": "kernel/iscsi_tcp.ko\n"})
    assert wrong(list(taking(patient))) == {"open-iscsi": "apt install open-iscsi"}
    tools("iscsiadm", "")
    assert set(wrong(list(taking(patient)))) == {"initiator name", "iscsid"}
    patient = host(
        tmp_path,
        {
            "etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.2026-01.org.example:a\n",
            "proc/net/unix": "00: 0 @ISCSIADM_ABSTRACT_NAMESPACE\n",
        },
    )
    assert wrong(list(taking(patient))) == {}


def test_a_clock_that_stands_in_the_past(tmp_path: Path) -> None:
    patient = host(tmp_path, {"usr/lib/os-release": ""})
    assert clock(patient, 1000.0).command == "timedatectl set-ntp true"
    assert clock(patient, 1e11).wrong == ""


def test_a_port_that_is_closed_to_others(tmp_path: Path) -> None:
    line = "   0: 00000000:{:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n"
    patient = host(tmp_path, {"proc/net/tcp": line.format(22)})
    assert port(patient).command == "zfsiloctl setup"
    patient = host(tmp_path, {"proc/net/tcp6": line.format(9750)})
    assert port(patient).wrong == ""


def test_doctor_of_a_running_simulation(ctl: Shell) -> None:
    assert "ok  zfsilod answers\n" in ctl.ok("doctor")
    assert {"what": "zfsilod answers", "wrong": "", "command": ""} in ctl("doctor --json").json[
        "checks"
    ]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A simulation in a folder of the test, which nobody runs."""
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("line", ["setup --yes", "volume attach data /srv", "volume detach data"])
def test_what_changes_the_host_itself_is_refused(tools: Tools, simulated: None, line: str) -> None:
    assert main(line.split()) == 5
    assert main(["-H", "give", *line.split()]) == 2
    assert tools.asked == []


@pytest.mark.parametrize("line", ["doctor", "join x", "server list", "server forget give"])
def test_what_is_of_this_host_is_not_asked_elsewhere(ctl: Shell, line: str) -> None:
    assert "on the host itself, without -H" in ctl.fails(2, f"-H give {line}")


def test_doctor_without_a_daemon(simulated: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "    try: systemctl enable --now zfsilod.socket\n" in capsys.readouterr().out


def test_doctor_reads_a_wrong_configuration(
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


def test_setup_finds_the_pool_and_makes_the_rest(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools(tools, "tank")
    assert main(["setup", "--yes", "--portal", "10.0.0.1"]) == 0
    text = (tmp_path / "etc/zfsilod.toml").read_text()
    assert 'root = "tank/zfsilo"\nportals = ["10.0.0.1:3260"]\n' in text
    assert "zfs create -o mountpoint=none tank/zfsilo" in tools.asked
    assert tools.asked[-1] == "systemctl restart zfsilod.service zfsilo-renew.timer"
    assert (tmp_path / "tls/host.pem").exists()
    assert "zfsiloctl volume attach data /srv/data" in capsys.readouterr().out


def test_setup_twice_changes_nothing_more(tools: Tools, tmp_path: Path) -> None:
    pools(tools, "tank")
    assert main(["setup", "--yes"]) == 0
    before = (tmp_path / "etc/zfsilod.toml").read_text()
    tools("zfs", "echo tank/zfsilo")
    assert main(["setup", "--yes"]) == 0
    assert (tmp_path / "etc/zfsilod.toml").read_text() == before
    assert sum(each.startswith("zfs create") for each in tools.asked) == 1
    assert main(["setup", "--yes", "--root", "tank/other"]) == 4


def test_setup_keeps_what_somebody_wrote(tools: Tools, tmp_path: Path) -> None:
    host(tmp_path, {"etc/zfsilod.toml": "[sync]\ninterval_s = 5\n"})
    pools(tools, "tank")
    assert main(["setup", "--yes"]) == 0
    assert (tmp_path / "etc/zfsilod.toml").read_text() == "[sync]\ninterval_s = 5\n"
    assert "tank/zfsilo" in (tmp_path / "etc/zfsilod.toml.d/setup.toml").read_text()


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [((), 5, "zpool create"), (("tank", "rpool"), 2, "--root tank/zfsilo")],
)
def test_setup_without_one_pool_says_what_to_type(
    tools: Tools, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], code: int, said: str
) -> None:
    pools(tools, *names)
    assert main(["setup", "--yes"]) == code
    assert said in capsys.readouterr().err
    assert not any(each.startswith(("zfs create", "systemctl")) for each in tools.asked)


def test_a_dry_run_changes_nothing(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools(tools, "tank")
    assert main(["setup", "--dry-run"]) == 0
    assert "serve volumes below tank/zfsilo, which will be made" in capsys.readouterr().out
    assert not (tmp_path / "etc").exists()


def test_attach_and_detach(tools: Tools, tmp_path: Path) -> None:
    line = ["volume", "attach", "data", "/srv/data", "--server", "give", "-o", "noatime,discard"]
    file = tmp_path / "etc/volumes.d/data.toml"
    assert main(line) == 0
    assert file.read_text() == (
        'server = "give"\nmount_path = "/srv/data"\nmount_options = ["noatime", "discard"]\n'
    )
    assert main(line) == 0
    assert main([*line, "--readonly"]) == 4, "what is attached is not attached differently"
    assert main(["volume", "detach", "data"]) == 0
    assert not file.exists()
    assert tools.asked[-1] == "systemctl disable --now zfsilo-volume@data.service"


def test_an_attach_that_fails_leaves_nothing(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools("systemctl", 'case "$1" in enable) exit 1;; esac')
    line = ["volume", "attach", "data", "/srv/data", "--server", "give"]
    tools("journalctl", "exit 1")
    assert main(line) == 5
    assert "was not attached: journalctl -u zfsilo-volume@" in capsys.readouterr().err
    tools("journalctl", "printf 'zfsiloctl: give is away\\n  try: this\\n'")
    assert main(line) == 5
    assert "data was not attached: give is away (journalctl -u zf" in capsys.readouterr().err
    assert not (tmp_path / "etc/volumes.d/data.toml").exists()
    assert tools.asked[-2] == "systemctl disable --now zfsilo-volume@data.service"
