"""`up` and `down`: attach path on a client, publication on a server, retries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from zfsilod.ctl import messages as pb
from zfsilod.ctl import volume_files
from zfsilod.ctl.commands import up
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ctl.shell import Shell


def write_file(ctl: Shell, name: str, text: str) -> Path:
    path = ctl.daemon.directory / "etc/volumes.d" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_up_and_down_on_a_client(ctl: Shell) -> None:
    ctl.ok("volume create far 1G --host take")
    write_file(ctl, "near", 'server = "give"\nvolume = "far"\nmount_path = "/srv/near"\n')
    assert ctl.ok("up near") == "attach far of give: mounted at /srv/near: done\n"
    attachment = ctl("volume show near --json").json["attachment"]
    assert attachment["restore"] == "RESTORE_BOOT"
    assert attachment["published_here"] is True
    assert ctl.ok("up near").count("already so") == 1
    assert ctl.ok("-q up near") == ""
    assert ctl.ok("down near") == "detach near: done\n"
    assert ctl.ok("down near") == "near: already down\n"


def test_tls_is_not_asked_of_an_older_daemon(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would drop the field, and connect without."""
    ctl.ok("volume create old 1G --host take --transport nvme")
    monkeypatch.setattr("zfsilod.api.rpc.service.FEATURES", ("clones",))
    write_file(ctl, "older", 'server = "give"\nvolume = "old"\nstate = "CONNECTED"\ntls = true\n')
    for command in (
        "up older",
        "volume create new 1G --transport nvme --tls",
        "volume publish old take --tls",
        "volume connect old --server give --tls",
    ):
        result = ctl(command)
        assert result.code != 0
        assert "without the feature tls" in result.err, command
    assert ctl("volume show new").code == 3
    assert not ctl("volume show old --json").json.get("publications")


def test_up_to_a_configured_state(ctl: Shell) -> None:
    ctl.ok("volume create part 1G --host take")
    text = 'server = "give"\nstate = "STAGED"\nfs_type = "xfs"\nmount_options = ["noatime"]\n'
    write_file(ctl, "part2", f'{text}volume = "part"\n')
    ctl.ok("up part2")
    attachment = ctl("volume show part2 --json").json["attachment"]
    assert (attachment["state"], attachment["mounts"]) == ("STATE_STAGED", [])
    assert (attachment["filesystem"]["type"], attachment["mount_options"]) == ("xfs", ["noatime"])
    ctl.ok("down part2")


def test_up_waits_for_a_server(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    ctl.ok("volume create patient 1G --host take")
    write_file(ctl, "patient2", 'server = "give"\nvolume = "patient"\nmount_path = "/srv/p"\n')
    front = ctl.daemon.front
    present, away = front.service.context.servers, front.servers(address="127.0.0.1:1")
    front.service.context.servers = away
    slept: list[float] = []

    def sleep(pause_s: float) -> None:
        slept.append(pause_s)
        if len(slept) == 2:
            front.service.context.servers = present

    monkeypatch.setattr(up, "Retry", partial(up.Retry, sleep=sleep))
    ran = ctl("up patient2 --wait 60 --json")
    ctl.daemon.wait(away.close())
    assert slept == [1, 2]
    assert ran.err.count("retrying for") == 1
    assert "server give (127.0.0.1:1) did not answer" in ran.err
    assert len(ran.json["operations"]) == 1, "of the attempt that succeeded"
    ctl.ok("down patient2")


def test_up_gives_up(ctl: Shell) -> None:
    write_file(ctl, "vain", 'server = "give"\nmount_path = "/srv/v"\n')
    front = ctl.daemon.front
    present, away = front.service.context.servers, front.servers(address="127.0.0.1:1")
    front.service.context.servers = away
    assert "did not answer" in ctl.fails(69, "up vain --wait 0")
    front.service.context.servers = present
    ctl.daemon.wait(away.close())


def test_up_and_down_on_a_server(ctl: Shell) -> None:
    ctl.ok("volume create served 1G --host take")
    assert ctl.ok("up served") == "publish served to take over iscsi: done\n"
    assert "already so" in ctl.ok("up served")
    assert ctl.ok("down served") == "unpublish served from all hosts: done\n"
    assert ctl.ok("down served") == "served: already down\n"
    (published,) = ctl("up served --json").json["operations"]
    assert published["title"] == "publish served to take over iscsi"
    (unpublished,) = ctl("down served --json").json["operations"]
    assert unpublished["state"] == "OPERATION_STATE_DONE"
    assert ctl("down served --json").json == {"operations": []}


def test_publications_are_kept_at_shutdown(ctl: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    ctl.ok("volume create existing 1G --host take")
    ctl.ok("up existing")
    monkeypatch.setattr(up, "shutting_down", lambda: True)
    assert "is shutting down; publications are kept" in ctl.ok("down existing")
    assert ctl("volume show existing --json").json["state"] == "STATE_PUBLISHED"


def test_up_and_down_of_unknown_volumes(ctl: Shell) -> None:
    complaint = ctl.fails(66, "up nowhere")
    assert "unknown volume nowhere: this host does not serve it, and " in complaint
    assert ctl.fails(66, "down nowhere") == complaint
    ctl.ok("volume create hostless 1G --host '*'")
    assert "has no host to publish it to" in ctl.fails(1, "up hostless")
    assert "invalid volume name '../x'" in ctl.fails(78, "up ../x")
    assert "up works on the local host only" in ctl.fails(78, "-H give up hostless")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('server = "give"\npath = "/x"\n', "unknown key path; the keys are server, volume,"),
        ('mount_path = "/x"\n', "server is missing"),
        ('server = "give"\n', "mount_path is missing"),
        ('server = "give"\nstate = "high"\n', "state must be one of connected, staged, mounted"),
        ('server = 7\nmount_path = "/x"\n', "server must be a string"),
        ('server = "give"\nreadonly = "yes"\n', "readonly must be true or false"),
        ('server = "give"\nmount_options = "ro"\n', "mount_options must be a list of strings"),
        ('server = "give"\nmount_path="/x"\nmount_options = [1]\n', "must be a list of strings"),
        ("server = give\n", "Invalid value"),
    ],
)
def test_an_invalid_file(ctl: Shell, text: str, complaint: str) -> None:
    path = write_file(ctl, "wrong", text)
    message = ctl.fails(78, "up wrong")
    assert message.startswith(f"zfsiloctl: {path}: ")
    assert complaint in message


def test_shutting_down_is_read_from_systemd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(up, "BOOTED", tmp_path / "none")
    assert not up.shutting_down()
    monkeypatch.setattr(up, "BOOTED", tmp_path)
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", str(tmp_path))
    tool = tmp_path / "systemctl"
    for word, code, expected in (
        ("stopping", 1, True),
        ("running", 0, False),
        ("degraded", 1, False),
    ):
        tool.write_text(f'#!/bin/sh\n[ "$*" = is-system-running ] && echo {word}\nexit {code}\n')
        tool.chmod(0o755)
        assert up.shutting_down() is expected


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, pause_s: float) -> None:
        self.slept.append(pause_s)
        self.now += pause_s

    def read(self) -> float:
        return self.now


def test_retries_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()

    def attempt() -> None:
        raise Unavailable("no answer")

    retry = up.Retry(40, sleep=clock.sleep, clock=clock.read)
    with pytest.raises(Unavailable):
        retry.run(attempt)
    assert clock.slept == [1, 2, 4, 8, 15, 10]
    assert capsys.readouterr().err == "no answer; retrying for 40 s\n"


def test_only_unavailable_is_retried() -> None:
    clock = Clock()

    def attempt() -> None:
        raise NotFound("no such volume")

    with pytest.raises(NotFound):
        up.Retry(40, sleep=clock.sleep, clock=clock.read).run(attempt)
    assert clock.slept == []


def volume(**fields: object) -> Any:
    modes = [pb.ACCESS_MODE_SINGLE_NODE_WRITER]
    return pb.Volume(**({"name": "volumes/v", "id": "v", "access_modes": modes} | fields))


def hosts_of(requests: list[Any]) -> list[str]:
    return [request.host for request in requests]


def test_existing_publications_are_confirmed_unchanged() -> None:
    existing = pb.Publication(
        host="hosts/b", readonly=True, access_mode=pb.ACCESS_MODE_SINGLE_NODE_READER_ONLY
    )
    (request,) = up.publications_for(volume(hosts=["a", "b"], publications=[existing]))
    assert (request.host, request.readonly) == ("hosts/b", True)
    assert request.access_mode == pb.ACCESS_MODE_SINGLE_NODE_READER_ONLY


def test_several_hosts_need_a_multi_node_access_mode() -> None:
    with pytest.raises(FailedPrecondition, match="has 2 hosts but its access modes allow one"):
        up.publications_for(volume(hosts=["a", "b"]))
    shared = [pb.ACCESS_MODE_SINGLE_NODE_WRITER, pb.ACCESS_MODE_MULTI_NODE_READER_ONLY]
    requests = up.publications_for(volume(hosts=["a", "*", "b"], access_modes=shared))
    assert hosts_of(requests) == ["hosts/a", "hosts/b"]
    assert {request.access_mode for request in requests} == {pb.ACCESS_MODE_MULTI_NODE_READER_ONLY}


def test_a_file_in_another_encoding_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfsilod.ctl.paths.etc", lambda: tmp_path)
    path = volume_files.path_of("data")
    path.parent.mkdir()
    path.write_bytes(b"# J\xfcrgen\n")
    with pytest.raises(InvalidArgument, match="is not UTF-8"):
        volume_files.read("data")
    assert volume_files.of_server("give") == []


def test_a_name_cannot_be_a_path() -> None:
    with pytest.raises(InvalidArgument):
        volume_files.read("../etc/passwd")
