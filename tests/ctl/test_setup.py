"""`setup`, `volume attach` and `volume detach`, with fake tools."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl import main, server_files
from zfsilod.ctl.commands.doctor import HostFiles
from zfsilod.model.errors import Busy
from zfsilod.model.records import Attachment
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ctl.fake_tools import FakeTools
    from tests.ctl.shell import Daemon


@pytest.mark.parametrize("line", ["setup --yes", "volume attach data /srv", "volume detach data"])
def test_commands_that_change_the_host_are_refused(
    tools: FakeTools, simulated: None, line: str
) -> None:
    assert main(line.split()) == 5
    assert main(["-H", "give", *line.split()]) == 2
    assert tools.calls == []


def test_attach_in_a_simulation_names_the_alternative(
    simulated: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["volume", "attach", "data", "/srv"]) == 5
    assert "use volume connect, stage and mount" in capsys.readouterr().err


def pools(tools: FakeTools, *names: str) -> None:
    tools("zpool", "".join(f"printf '{name}\\tONLINE\\n'\n" for name in names))
    tools(
        "zfs",
        'case "$*" in *-t*) ;; list*) echo "cannot open: dataset does not exist" >&2;'
        " exit 1;; esac",
    )


def test_setup_finds_the_pool(
    tools: FakeTools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools(tools, "tank")
    assert main(["setup", "--yes", "--portal", "10.0.0.1"]) == 0
    text = (tmp_path / "etc/zfsilod.toml").read_text()
    assert 'root = "tank/zfsilo"\nportals = ["10.0.0.1:3260"]\n' in text
    assert 'nvme_portals = ["10.0.0.1:4420"]\n' in text
    assert "zfs create -o mountpoint=none tank/zfsilo" in tools.calls
    assert tools.calls[-1] == "systemctl restart zfsilod.service zfsilo-renew.timer"
    assert (tmp_path / "tls/host.pem").exists()
    assert "zfsiloctl volume attach data /srv/data" in capsys.readouterr().out


@pytest.mark.parametrize("port", [4420, 4421])
def test_setup_refuses_a_port_of_the_other_transport(
    port: int, tools: FakeTools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon would refuse the configuration."""
    pools(tools, "tank")
    assert main(["setup", "--yes", "--portal", f"10.0.0.1:{port}"]) != 0
    assert f"10.0.0.1:{port} is for targets over iscsi" in capsys.readouterr().err
    assert not (tmp_path / "etc/zfsilod.toml").exists()


def test_setup_can_be_repeated(tools: FakeTools, tmp_path: Path) -> None:
    pools(tools, "tank")
    assert main(["setup", "--yes"]) == 0
    before = (tmp_path / "etc/zfsilod.toml").read_text()
    tools("zfs", "echo tank/zfsilo")
    assert main(["setup", "--yes"]) == 0
    assert (tmp_path / "etc/zfsilod.toml").read_text() == before
    assert sum(call.startswith("zfs create") for call in tools.calls) == 1
    assert main(["setup", "--yes", "--root", "tank/other"]) == 4


def test_a_setup_that_stops_half_way_says_how_to_go_on(
    tools: FakeTools, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools(tools, "tank")
    tools("systemctl", 'case "$1" in restart) sleep 9;; esac')
    with monkeypatch.context() as patch:
        patch.setattr("zfsilod.ctl.commands.setup.UNIT_S", 0.2)
        assert main(["setup", "--yes"]) == 9
    assert "the setup is not complete: repeat it" in capsys.readouterr().err
    tools("systemctl", "exit 0")
    tools("zfs", "echo tank/zfsilo")
    assert main(["setup", "--yes"]) == 0


def test_setup_names_units_that_restore_targets_of_other_tools(
    tools: FakeTools,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not disable them: the targets may be in use."""
    pools(tools, "tank")
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "rtslib-fb-targetctl.service").symlink_to("/nowhere")
    monkeypatch.setattr("zfsilod.ctl.commands.setup.HostFiles", lambda: HostFiles(tmp_path))
    assert main(["setup", "--yes"]) == 0
    assert "systemctl disable rtslib-fb-targetctl.service" in capsys.readouterr().out
    assert not any("disable" in call for call in tools.calls)


def test_setup_keeps_an_existing_configuration(tools: FakeTools, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/zfsilod.toml").write_text("[sync]\ninterval_s = 5\n")
    pools(tools, "tank")
    assert main(["setup", "--yes"]) == 0
    assert (tmp_path / "etc/zfsilod.toml").read_text() == "[sync]\ninterval_s = 5\n"
    assert "tank/zfsilo" in (tmp_path / "etc/zfsilod.toml.d/setup.toml").read_text()


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [((), 5, "zpool create"), (("tank", "rpool"), 2, "--root tank/zfsilo")],
)
def test_setup_with_no_pool_or_several(
    tools: FakeTools,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    pools(tools, *names)
    assert main(["setup", "--yes"]) == code
    assert said in capsys.readouterr().err
    assert not any(call.startswith(("zfs create", "systemctl")) for call in tools.calls)


def test_a_dry_run_changes_nothing(
    tools: FakeTools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools(tools, "tank")
    assert main(["setup", "--dry-run"]) == 0
    assert "serves volumes below tank/zfsilo, which will be created" in capsys.readouterr().out
    assert not (tmp_path / "etc").exists()


@pytest.fixture
def answering(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Daemon:
    """A daemon that zfsiloctl reaches, on a host that is not a simulation and joined `give`."""
    monkeypatch.setenv("ZFSILO_SOCKET", str(daemon.front.path))
    monkeypatch.setattr("zfsilod.ctl.paths.etc", lambda: tmp_path / "etc")
    server_files.write(daemon.front.certified("host", "take"))
    return daemon


def create(daemon: Daemon, name: str, *hosts: str) -> None:
    request = CreateVolume(id=name, capacity_bytes=1 << 30, hosts=hosts)
    daemon.wait(daemon.front.fixture.do(request))


@pytest.mark.parametrize("name", ["nowhere", "private"])
def test_a_volume_that_is_not_for_this_host_is_not_attached(
    answering: Daemon, tools: FakeTools, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """At once, and in the same words whether it exists or not."""
    create(answering, "private")
    assert main(["volume", "attach", name, "/srv/data"]) == 3
    assert capsys.readouterr().err == (
        f"zfsiloctl: server give has no volume {name} for this host\n"
        f"  try: on give, if {name} exists there: zfsiloctl volume update {name} --host HOST\n"
    )
    assert tools.calls == []


@pytest.mark.usefixtures("answering")
def test_an_attachment_waits_for_a_server_that_does_not_answer(
    tools: FakeTools, tmp_path: Path
) -> None:
    file = tmp_path / "etc/servers.d/give.toml"
    file.write_text(re.sub(r":[0-9]+\"", ':1"', file.read_text(), count=1))
    assert main(["volume", "attach", "data", "/srv/data"]) == 0
    assert tools.calls == ["systemctl enable --now zfsilo-volume@data.service"]
    assert main(["volume", "attach", "data", "/srv/data", "--server", "other"]) == 4
    assert main(["volume", "attach", "more", "/srv/more", "--server", "other"]) == 3


def test_attach_and_detach(
    answering: Daemon,
    tools: FakeTools,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    create(answering, "data", "take")
    line = ["volume", "attach", "data", "/srv/data", "--server", "give", "-o", "noatime,discard"]
    file = tmp_path / "etc/volumes.d/data.toml"
    assert main(line) == 0
    assert file.read_text() == (
        'server = "give"\nmount_path = "/srv/data"\nmount_options = ["noatime", "discard"]\n'
    )
    assert main(line) == 0
    assert main(["volume", "attach", "data", "/srv/data"]) == 0, "the rest is not said again"
    monkeypatch.chdir("/srv")
    assert main(["volume", "attach", "data", "data"]) == 0, "a relative path"
    capsys.readouterr()
    assert main([*line[:3], "/srv/other", "--readonly", "--fs-type", "xfs"]) == 4
    assert capsys.readouterr().err == (
        "zfsiloctl: data is attached with another path, filesystem type and access, see "
        f"{file}: edit it and run systemctl restart zfsilo-volume@data.service\n"
    )
    assert main(["volume", "detach", "data"]) == 0
    assert not file.exists()
    assert tools.calls[-1] == "systemctl disable --now zfsilo-volume@data.service"


def attached(daemon: Daemon, name: str) -> str:
    """Attach a volume without its unit, and return its mount path."""
    create(daemon, name, "take")
    for request in (
        Publish(volume=name, host="take"),
        Connect(id=name, server="give", volume=name),
        Stage(id=name),
        MountAt(id=name, path=f"/srv/{name}"),
    ):
        daemon.wait(daemon.front.fixture.do(request))
    return f"/srv/{name}"


def attachment(daemon: Daemon, name: str) -> Attachment | None:
    return daemon.front.read(lambda txn: txn.get(Attachment, name))  # type: ignore[no-any-return]


def test_a_busy_volume_is_not_detached(
    answering: Daemon,
    tools: FakeTools,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command fails with the sentence of the unmount; unit and file stay."""
    path = attached(answering, "busy")
    assert main(["volume", "attach", "busy", path, "--server", "give"]) == 0
    file, calls = tmp_path / "etc/volumes.d/busy.toml", tools.calls

    def refuse(*_arguments: object, **_options: object) -> None:
        raise Busy(f"{path} is in use by sleep (5319)", reason="IN_USE")

    with monkeypatch.context() as patch:
        patch.setattr(answering.front.fixture.host.mounts, "unmount", refuse)
        capsys.readouterr()
        code = main(["volume", "detach", "busy"])
    refusal = capsys.readouterr()
    assert (code, refusal.out) == (8, "")
    assert "/srv/busy is in use by sleep (5319)" in refusal.err
    assert (file.exists(), tools.calls) == (True, calls)
    assert main(["volume", "detach", "busy"]) == 0
    assert (file.exists(), attachment(answering, "busy")) == (False, None)


def test_a_failed_attach_leaves_nothing_connected(
    answering: Daemon, tools: FakeTools, capsys: pytest.CaptureFixture[str]
) -> None:
    """systemd runs no ExecStop= of a unit that did not start, so `attach` goes down itself."""
    path = attached(answering, "half")
    tools("systemctl", 'case "$1" in enable) exit 1;; esac')
    tools("journalctl", "exit 1")
    assert main(["volume", "attach", "half", path, "--server", "give"]) == 5
    assert "cannot attach half: " in capsys.readouterr().err
    assert attachment(answering, "half") is None


@pytest.mark.usefixtures("answering")
def test_a_failed_attach_is_undone(
    tools: FakeTools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
