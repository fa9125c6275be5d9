"""The configuration: refused keys and values; docs/configuration.md names every key."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from zfsilod import config
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.names import is_portal

KEYS = Path(__file__).parents[1] / "docs/configuration.md"

WRONG = [
    ("[server]\nrooot = 'tank'\n", r"zfsilod\.toml: \[server\] has no key rooot"),
    ("[giv]\n", "has no key giv"),
    ("server = 3\n", "server: expected `object`, got `int`"),
    ("[server]\nroot = 3\n", r"server.root: expected `str`, got `int`"),
    ("[server]\nroot = 'tank/../x y'\n", r"server.root: .* is not the name of a dataset"),
    ("[server]\nroot = '-x'\n", r"server.root: .* is not the name of a dataset"),
    ("[server]\nportals = ['10.0.0.1']\n", r"server.portals"),
    ("[server]\nportals = []\n", r"server.portals"),
    ("[server]\nportals = ['fd00::1:3260']\n", r"server.portals"),
    ("[server]\nnvme_portals = ['10.0.0.1:4421']\n", r"server.nvme_tls_port: 4421 is"),
    ("[server]\nportals = ['10.0.0.1:4421']\n", r"server.nvme_tls_port: 4421 is"),
    ("[server]\nportals = ['10.0.0.1:4420']\n", r"10.0.0.1:4420 and 0.0.0.0:4420: the kernel"),
    ("[server]\nnvme_portals = ['10.0.0.1:3260']\n", r"0.0.0.0:3260 and 10.0.0.1:3260: the"),
    (
        "[server]\nportals = ['[fd00:0::1]:9']\nnvme_portals = ['[FD00::1]:9']\n",
        r"server.portals and server.nvme_portals: \[fd00::1\]:9 and \[fd00::1\]:9: the kernel",
    ),
    (
        "[server]\nportals = ['10.0.0.1:9']\nnvme_portals = ['[::ffff:10.0.0.1]:9']\n",
        r"10.0.0.1:9 and 10.0.0.1:9: the kernel",
    ),
    ("[server]\nportals = ['10.0.0.1:9']\nnvme_portals = ['[::]:9']\n", r"10.0.0.1:9 and \[::"),
    ("[server]\nportals = ['0.0.0.0:9', '10.0.0.1:9']\n", r"server.portals: 0.0.0.0:9 and 10"),
    ("[server]\nnvme_portals = ['[::]:9', '10.0.0.1:9']\n", r"server.nvme_portals: \[::\]:9 and"),
    ("[server]\nnvme_tls_port = 4420\n", r"server.nvme_tls_port: 4420 is"),
    ("[server]\nnvme_tls_port = 70000\n", r"server.nvme_tls_port: 70000 is"),
    ("[server]\nnvme_cntlid_min = 0\n", r"server.nvme_cntlid_min: 1 or more"),
    ("[server]\nnvme_cntlid_min = 9\nnvme_cntlid_max = 9\n", r"less than nvme_cntlid_max"),
    ("[server]\nnvme_cntlid_max = 65520\n", r"server.nvme_cntlid_max: 65519 or less"),
    ("[server]\niqn_prefix = 'storage'\n", r"server.iqn_prefix: 'storage' is not an IQN"),
    ("[server]\novercommit = 0.5\n", r"server.overcommit"),
    ("[server]\nvolblocksize = 1000\n", r"server.volblocksize"),
    ("[store]\nsize_bytes = 1\n", r"store\.size_bytes"),
    ("[client]\nlost_session_s = 9\n", r"client\.lost_session_s: 0 \(no limit\), or 10 to"),
    ("[client]\nlost_session_s = -1\n", r"client\.lost_session_s"),
    ("[client]\nlost_session_s = 9999999\n", r"client\.lost_session_s"),
    ("[daemon]\nhost_id = 'Not An Id'\n", r"daemon\.host_id: 'Not An Id' is not an id"),
    ("[daemon]\nlog_level = 'loud'\n", r"daemon\.log_level"),
    ("[tls]\nimported_roles = ['root']\n", r"tls\.imported_roles"),
    ("[csi]\nallowed_paths = ['/']\n", r"csi\.allowed_paths"),
    ("[csi]\nallowed_paths = ['var/lib']\n", r"csi\.allowed_paths"),
    ("[csi]\nallowed_paths = ['/var/../etc']\n", r"csi\.allowed_paths"),
    ("[server\n", r"zfsilod\.toml: .*line 1"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_wrong_is_refused_with_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "zfsilod.toml").write_text(text)
    with pytest.raises(InvalidArgument, match=words) as caught:
        config.load(tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["zfsilod.toml", "zfsilod.toml.d/a.toml", "servers.d/give.toml"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"# J\xfcrgen\n")
    path.chmod(0o600)
    with pytest.raises(InvalidArgument, match=f"{name} is not UTF-8") as caught:
        config.load(tmp_path)
    assert caught.value.reason == "BAD_CONFIG"


def test_nothing_at_all_is_right(tmp_path: Path) -> None:
    loaded = config.load(tmp_path)
    assert loaded.settings.export.prefix.endswith(loaded.daemon.host_id)


def test_later_files_win(tmp_path: Path) -> None:
    (tmp_path / "zfsilod.toml").write_text("[server]\nroot = 'tank/a'\novercommit = 2\n")
    (tmp_path / "zfsilod.toml.d").mkdir()
    (tmp_path / "zfsilod.toml.d/b.toml").write_text("[server]\nroot = 'tank/b'\n")
    loaded = config.load(tmp_path)
    assert (loaded.server.root, loaded.server.overcommit) == ("tank/b", 2.0)


def test_a_server_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "servers.d").mkdir()
    path = tmp_path / "servers.d/give.toml"
    path.write_text("address = 'give:1'\nauthority = ''\ntls_name = ''\ntoken = 'planted-secret'\n")
    path.chmod(0o644)
    with pytest.raises(InvalidArgument, match="chmod 600") as caught:
        config.load(tmp_path)
    assert "planted-secret" not in caught.value.message


def test_portals_are_compared_by_value(tmp_path: Path) -> None:
    (tmp_path / "zfsilod.toml").write_text(
        "[server]\n"
        "portals = ['10.0.0.1:9', '[::ffff:10.0.0.1]:9', '[fd00::1]:9', '[FD00:0::1]:9']\n"
        "nvme_portals = ['0.0.0.0:4420', '[::]:4420', '10.0.0.1:8', '[fd00::1]:8']\n"
    )
    export = config.load(tmp_path).settings.export
    assert export.portals == ("10.0.0.1:9", "[fd00::1]:9")
    assert export.nvme_portals == ("0.0.0.0:4420", "[::]:4420", "10.0.0.1:8", "[fd00::1]:8")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("10.0.0.1:3260", True),
        ("[fd00::1]:3260", True),
        ("[fe80::1%eth0]:3260", True),
        ("[::ffff:10.0.0.1]:3260", True),
        ("[::ffff:10.0.0.1%eth0]:3260", False),
        ("host:3260", False),
        ("1.2.3.4:0", False),
    ],
)
def test_portals(text: str, right: bool) -> None:
    assert is_portal(text) == right


def test_the_documentation_names_every_key() -> None:
    known = {
        f"{table.name}.{field.name}"
        for table in msgspec.structs.fields(config.Config)
        for field in msgspec.structs.fields(table.type)
    }
    named = set(
        re.findall(
            r"^\| `((?:server|client|store|operations|sync|daemon|csi|metrics|tls)\.\w+)`",
            KEYS.read_text(),
            re.M,
        )
    )
    assert named == known
