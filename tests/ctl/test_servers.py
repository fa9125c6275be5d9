"""Servers, certificates and tokens: join, server, pki, token, and -H."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.api.running import made
from tests.ctl.shell import PROJECT
from zfsilod.ctl import server_files
from zfsilod.ctl.client import PAGE_SIZE
from zfsilod.ctl.paths import PORT, with_port
from zfsilod.host.fake.facts import Facts
from zfsilod.host.fake.iscsi import FakeIscsi
from zfsilod.host.iscsi import initiator_name
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.identity import Identity
from zfsilod.security import certificates, join_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ctl.shell import Shell

IQN = "iqn.2026-01.org.example:web"


@pytest.fixture(autouse=True)
def _no_servers_left(ctl: Shell) -> None:
    for path in (ctl.daemon.directory / "etc/servers.d").glob("*"):
        path.unlink()


def test_join_list_use_forget(ctl: Shell) -> None:
    join = ctl.daemon.join_file("host", "web")
    answer = ctl.ok(f"join {join} --as far --iqn {IQN}")
    kept = ctl.daemon.directory / "etc/servers.d/far.toml"
    address = ctl.daemon.front.address
    assert answer == (
        f"joined far ({address}) as host web; saved in {kept}\n  next: delete {join}\n"
    )
    assert kept.stat().st_mode & 0o777 == 0o600
    assert ctl("host show web --json").json["iqn"] == IQN
    assert ctl.ok("server list -q") == "far\n"
    assert ctl("server list --json").json["servers"] == [{"name": "far", "address": address}]
    assert "  Caller:    host web (certificate" in ctl.ok("-H far info")
    assert ctl.ok("server forget far") == "far: removed\n"
    assert "unknown server far" in ctl.fails(3, "server forget far")


@pytest.mark.parametrize(
    ("line", "role"), [("volume create mine 1G", "controller"), ("status", "reader")]
)
def test_a_role_that_may_not_is_told_which_one_may(ctl: Shell, line: str, role: str) -> None:
    """A client wants to create its volume on the server, or see its status."""
    join = ctl.daemon.join_file("host", "web")
    assert ctl.fails(6, f"-H {join} {line}").endswith(
        f"  try: on the server: zfsiloctl pki issue user NAME --role {role}; here: -H NAME.join\n"
    )


def test_the_daemon_reads_what_join_wrote(ctl: Shell) -> None:
    from zfsilod.config import find_server

    ctl.ok(f"join {ctl.daemon.join_file('host', 'web')} --iqn {IQN}")
    server = find_server(ctl.daemon.directory / "etc", "give")
    assert server is not None
    assert server == server_files.read("give")


def test_connect_uses_the_only_server(ctl: Shell) -> None:
    ctl.ok("volume create alone 1G --host take")
    ctl.ok(f"join {ctl.daemon.join_file('host', 'take')} --iqn iqn.2026-01.org.zfsilo:take")
    assert ctl.ok("volume connect alone --as mine") == "connect alone of give: done\n"
    ctl.ok("volume disconnect mine")
    ctl.ok(f"join {ctl.daemon.join_file('host', 'web')} --as other --iqn {IQN}")
    assert "several servers are known (give, other); name one with --server" in ctl.fails(
        2, "volume connect alone"
    )


def test_the_initiator_name_is_that_of_open_iscsi(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    join = ctl.daemon.join_file("host", "web")
    path = tmp_path / "initiatorname.iscsi"
    monkeypatch.setattr("zfsilod.ctl.paths.initiator", lambda: path)
    monkeypatch.setattr("zfsilod.ctl.commands.server.simulated_iqn", lambda: "")
    monkeypatch.setattr("zfsilod.ctl.commands.server.has_module", lambda _name: False)
    assert f"cannot read {path}; install open-iscsi" in ctl.fails(5, f"join {join}")
    path.write_text("# made by hand\n")
    assert "has no InitiatorName" in ctl.fails(5, f"join {join}")
    path.write_bytes(b"\xff\xfeI\0n\0i\0")
    assert "has no InitiatorName" in ctl.fails(5, f"join {join}")
    path.write_bytes(
        f"## J\xfcrgen\nInitiatorName={IQN}\nInitiatorName={IQN}.old\n".encode("latin-1")
    )
    ctl.ok(f"join {join}")
    assert ctl("host show web --json").json["iqn"] == IQN == initiator_name(path)


def test_the_file_of_a_server_in_another_encoding_is_named(ctl: Shell) -> None:
    path = server_files.path_of("strange")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff\xfea\0")
    try:
        with pytest.raises(InvalidArgument, match=f"{path} is not UTF-8"):
            server_files.read("strange")
    finally:
        path.unlink()


def test_a_host_with_nvme_only_joins_without_a_name(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("zfsilod.ctl.paths.initiator", lambda: tmp_path / "missing")
    monkeypatch.setattr("zfsilod.ctl.commands.server.simulated_iqn", lambda: "")
    monkeypatch.setattr("zfsilod.ctl.commands.server.has_module", "nvme_tcp".__eq__)
    ctl.ok(f"join {ctl.daemon.join_file('host', 'bare')}")
    assert ctl("host show bare --json").json["iqn"] == ""


def test_a_simulated_host_needs_no_initiator_name(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It joins with the name that its own zfsilod has."""
    monkeypatch.setattr("zfsilod.ctl.paths.initiator", lambda: tmp_path / "missing")
    ctl.ok(f"join {ctl.daemon.join_file('host', 'web')}")
    own = FakeIscsi(Facts(ctl.daemon.directory / "facts.json")).initiator()
    assert ctl("host show web --json").json["iqn"] == own


def test_the_name_of_a_server_is_an_id(ctl: Shell) -> None:
    join = ctl.daemon.join_file("host", "web")
    assert "invalid server name 'FAR'" in ctl.fails(2, f"join {join} --as FAR --iqn {IQN}")


def test_a_second_join_replaces_the_identity_but_not_another_server(ctl: Shell) -> None:
    ctl.ok(f"join {ctl.daemon.join_file('host', 'web')} --iqn {IQN}")
    first = server_files.read("give").key
    join = ctl.daemon.join_file("host", "web")
    ctl.ok(f"join {join} --iqn {IQN}")
    assert server_files.read("give").key != first
    access = join_file.parse_join(join.read_text())
    access.authority = made("other").certificate_pem.decode()
    join.write_text(join_file.make_join(access))
    complaint = ctl.fails(4, f"join {join} --iqn {IQN}")
    assert "another server named give is known; name this one with --as" in complaint


def test_another_certificate_is_not_trusted(ctl: Shell) -> None:
    join = ctl.daemon.join_file("host", "web")
    access = join_file.parse_join(join.read_text())
    access.authority = made("other").certificate_pem.decode()
    join.write_text(join_file.make_join(access))
    complaint = ctl.fails(6, f"join {join} --iqn {IQN}")
    assert "has a certificate that its known authority did not issue for it" in complaint
    assert access.key not in complaint
    assert server_files.names() == []


def test_the_join_file_of_a_user_is_for_h(ctl: Shell) -> None:
    join = ctl.daemon.join_file("admin", "root")
    assert "is for a user, not for a host" in ctl.fails(5, f"join {join} --iqn {IQN}")
    assert "admin root" in ctl.ok(f"-H {join} info")


@pytest.mark.parametrize("text", ["", "name = 1", 'token = "secret', 'token = "secret"'])
def test_an_invalid_join_file(ctl: Shell, tmp_path: Path, text: str) -> None:
    path = tmp_path / "give.join"
    path.write_text(text)
    complaint = ctl.fails(2, f"join {path}")
    assert "invalid join file" in complaint
    assert "secret" not in complaint
    assert "cannot read the join file" in ctl.fails(2, f"join {tmp_path}/none")


def test_an_invalid_server_file_is_not_quoted(ctl: Shell) -> None:
    path = ctl.daemon.directory / "etc/servers.d/odd.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in ('token = "secret', 'token = "secret"'):
        path.write_text(text)
        complaint = ctl.fails(2, "-H odd info")
        assert str(path) in complaint
        assert "secret" not in complaint


def test_tokens_are_kept_in_the_store(ctl: Shell, tmp_path: Path) -> None:
    made = ctl.apart("token create --role reader mon")
    assert made.code == 0
    text = made.out.strip()
    token = text.split("-")[1]
    assert f"zfsiloctl token revoke {token}" in made.err
    listed = ctl.apart("token list").out
    assert re.search(rf"^{token} +reader +mon +[0-9]+s +no expiry$", listed, re.MULTILINE)
    assert token in ctl.apart("token list -q").out.split()
    assert text not in ctl.apart("token list --json").out
    assert ctl.apart("token revoke 01none").code == 3
    assert ctl.apart(f"token revoke {token}").out == f"token {token} of reader mon: revoked\n"
    assert token not in ctl.apart("token list -q").out


def test_issue_and_join(ctl: Shell, tmp_path: Path) -> None:
    path = tmp_path / "web.join"
    line = f"pki issue host web --file {path} --address {ctl.daemon.front.address}"
    issued = ctl.apart(line)
    assert issued.code == 0, issued.err
    assert f"on web:  zfsiloctl join {path.name}" in issued.out
    assert path.stat().st_mode & 0o777 == 0o600
    assert join_file.parse_join(path.read_text()).key.splitlines()[1] not in issued.out
    assert ctl.apart(line).code == 4
    path.unlink()
    answer = ctl.apart(f"{line} --json").json
    assert (answer["file"], answer["subject"]) == (str(path), "host/web")
    join = join_file.parse_join(path.read_text())
    join.tls_name = "give.zfsilo"  # the daemon of the tests has a name of its own
    path.write_text(join_file.make_join(join))
    ctl.ok(f"join {path} --as own --iqn {IQN}")
    assert "token list works on the local host only" in ctl.apart("-H own token list").err
    assert "pki list works on the local host only" in ctl.apart("-H own pki list").err


def test_the_certificate_of_a_user_is_revoked(ctl: Shell, tmp_path: Path) -> None:
    path = tmp_path / "ops.join"
    address = ctl.daemon.front.address
    assert ctl.apart(f"pki issue user ops --file {path}").code == 2
    assert ctl.apart(f"pki issue host ops --role admin --file {path}").code == 2
    made = ctl.apart(f"pki issue user ops --role reader --file {path} --address {address}")
    assert made.code == 0, made.err
    join = join_file.parse_join(path.read_text())
    join.tls_name = "give.zfsilo"
    path.write_text(join_file.make_join(join))
    assert "Caller:    reader ops (certificate" in ctl.ok(f"-H {path} info")
    listed = ctl.apart("pki list --json")
    assert [entry["subject"] for entry in listed.json["certificates"]].count("user/ops") == 1
    assert "user/ops: revoked" in ctl.apart("pki revoke user/ops").out
    assert "is revoked" in ctl.fails(6, f"-H {path} info")
    assert re.search(r"user/ops +reader +revoked", ctl.apart("pki list").out)
    assert ctl.apart("pki revoke user/nobody").code == 3
    assert ctl.apart("pki revoke user/nobody --unknown").out == "identity user/nobody: revoked\n"
    assert ctl.apart("pki revoke --undo user/nobody").code == 3
    assert "revoked" in ctl.apart("pki revoke imported/host/far").out
    assert re.search(r"imported/host/far +- +revoked", ctl.apart("pki list").out)
    assert "not revoked any more" in ctl.apart("pki revoke --undo imported/host/far").out


def test_renewal_on_server_and_client(ctl: Shell) -> None:
    join = ctl.daemon.join_file("host", "web")
    ctl.ok(f"join {join} --iqn {IQN}")
    first = server_files.read("give")
    assert "for give: renewed" in ctl.apart("pki renew").out  # it is valid for a day only
    assert ctl.apart("pki renew").out == "no certificate expires soon\n"
    assert ctl.apart("pki renew -q").out == ""
    done = ctl.apart("pki renew --now")
    assert done.code == 0, done.err
    assert "own certificate: renewed until 20" in done.out
    assert "certificate for give: renewed until 20" in done.out
    assert server_files.read("give").key != first.key


def test_pki_init_and_import(ctl: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setenv("ZFSILO_SIMULATE", str(there))
    assert "zfsiloctl pki issue host NAME" in ctl.ok("pki init --name give.example")
    assert ctl("pki init").code == 4
    assert sorted(path.name for path in (there / "tls").iterdir()) == [
        "ca.key",
        "ca.pem",
        "host.pem",
    ]
    assert {path.stat().st_mode & 0o777 for path in (there / "tls").iterdir()} == {0o600}
    pem, key = tmp_path / "a.pem", tmp_path / "a.key"
    pem.write_bytes(made("other").certificate_pem)
    assert "added trusted CA" in ctl.ok(f"pki import {pem}")
    pair = certificates.issue(made("other"), Identity(kind="host", id="give", role="host"))
    pem.write_bytes(pair.certificate_pem)
    key.write_bytes(pair.key_pem)
    assert "--key is missing" in ctl.fails(2, f"pki import {pem}")
    assert "own certificate: imported from" in ctl.ok(f"pki import {pem} --key {key}")
    ctl.ok("pki renew --now")  # it is renewed by its issuer
    assert pair.certificate_pem in (there / "tls/host.pem").read_bytes()
    pem.write_text("x")
    assert "not a PEM certificate" in ctl.fails(2, f"pki import {pem}")


def test_a_token_has_a_role_and_may_expire(ctl: Shell, tmp_path: Path) -> None:
    assert "--role" in ctl.fails(2, "token create web")
    assert "invalid choice" in ctl.fails(2, "token create --role host web")
    assert "invalid token holder 'UP'" in ctl.apart("token create --role reader UP").err
    made = ctl.apart("token create --role reader mon --days 2 --json")
    assert made.json["expire_time"] > made.json["create_time"]
    path = tmp_path / "mon.join"
    made = ctl.apart(f"token create --role reader mon --file {path} --json")
    assert (made.json["file"], "token" in made.json) == (str(path), False)


def test_a_host_without_a_store(
    ctl: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    assert "systemctl start zfsilod.service" in ctl.fails(5, "token list")


@pytest.mark.parametrize(
    ("address", "complete"),
    [
        ("give", "give:9750"),
        ("give:1", "give:1"),
        ("10.0.0.1", "10.0.0.1:9750"),
        ("fd00::1", "[fd00::1]:9750"),
        ("[fd00::1]", "[fd00::1]:9750"),
        ("[fd00::1]:5", "[fd00::1]:5"),
    ],
)
def test_addresses_get_a_port(address: str, complete: str) -> None:
    assert with_port(address, PORT) == complete


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b"])
def test_the_name_of_a_server_cannot_be_a_path(name: str) -> None:
    with pytest.raises(InvalidArgument):
        server_files.path_of(name)


def test_a_page_fits_into_a_message() -> None:
    largest_volume = 64 * (63 + 256 + 8) + 4096  # its labels, and the rest
    assert PAGE_SIZE * largest_volume < 4 << 20


def test_the_port_is_that_of_the_unit() -> None:
    from zfsilod.ctl import paths

    unit = (PROJECT / "units/zfsilod-tcp.socket").read_text()
    assert f"ListenStream={paths.PORT}\n" in unit
