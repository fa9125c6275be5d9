"""Tests of nix/: every file parses, and the module evaluates for three hosts.

nixpkgs is not available: nix/tests/lib.nix replaces its lib, so the package, the NixOS test and the
MicroVMs are only parsed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import spellings
from zfsilod import config
from zfsilod.ctl import volume_files

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
NIX = ROOT / "nix"
HOSTS = ("give", "take", "both")
EXPECTED: dict[str, dict[str, Any]] = {
    "give": {
        "ports": [3260, 3261, 4420, 9750],
        "filesystems": ["zfs"],
        "openiscsi": {},
        "udev": ["/the/zfs", "/the/zvol-id"],
        "sockets": {
            "zfsilod": {"wantedBy": ["sockets.target"]},
            "zfsilod-tcp": {"wantedBy": ["sockets.target"], "listenStreams": ["", "[::]:9750"]},
        },
        "services": ["zfsilo-replication-hourly", "zfsilo-schedule-nightly", "zfsilod"],
    },
    "take": {
        "ports": [],
        "filesystems": ["ext4", "xfs"],
        "openiscsi": {"enable": True, "name": "iqn.2026-01.org.example:take"},
        "sockets": {"zfsilod": {"wantedBy": ["sockets.target"]}},
        "services": ["zfsilo-volume@data", "zfsilo-volume@disk", "zfsilod"],
        "links": ["L+ /etc/zfsilo/servers.d/give.toml - - - - /run/secrets/give.toml"],
    },
    "both": {
        "ports": [],  # openFirewall = false
        "filesystems": ["zfs", "ext4", "xfs"],
        "openiscsi": {"enable": True, "name": "iqn.2026-01.org.example:both"},
        "sockets": {
            "zfsilod": {"wantedBy": ["sockets.target"]},
            "zfsilod-tcp": {
                "wantedBy": ["sockets.target"],
                "listenStreams": ["", "127.0.0.1:9750"],
            },
        },
        "services": ["zfsilod"],
    },
}
WRONG = {
    "{ enable = true; server.enable = true; }": "services.zfsilo.server.root is not set",
    '{ enable = true; client.volumes.a = { server = "give"; }; }': (
        "services.zfsilo.client.volumes needs services.zfsilo.client.enable"
    ),
    '{ enable = true; client = { enable = true; initiatorName = "iqn.2026-01.org.example:a"; '
    'volumes.a.server = "give"; }; }': "client.volumes.a: mountPath",
    '{ enable = true; server = { enable = true; root = "tank/a"; portals = [ "10.0.0.1:4420" ]; '
    'nvmePortals = [ "10.0.0.1:4420" ]; }; }': "portals and nvmePortals have an address with",
}


def nix(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the evaluator; everything that it may write is below a folder of the test."""
    places = {f"NIX_{kind}_DIR": str(tmp_path / kind) for kind in ("STORE", "STATE", "LOG", "CONF")}
    argv = ["nix-instantiate", "--readonly-mode", "--option", "build-users-group", "", *words]
    return subprocess.run(
        argv,
        env={**os.environ, **places, "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def evaluated(tmp_path: Path, host: str) -> Any:
    """Return the configuration that the module makes from a host, a Nix expression."""
    arguments = ("--eval", "--strict", "--json", "nix/tests/eval.nix", "--arg", "host", host)
    done = nix(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", sorted(NIX.rglob("*.nix")), ids=lambda path: path.name)
def test_parses(path: Path, tmp_path: Path) -> None:
    done = nix(tmp_path, "--parse", str(path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_gets_its_units_and_its_firewall(host: str, tmp_path: Path) -> None:
    made = evaluated(tmp_path, f"(import nix/tests/hosts.nix).{host}")
    made["services"] = sorted(made["services"])
    assert made["complaints"] == []
    assert {key: made[key] for key in EXPECTED[host]} == EXPECTED[host]
    assert ("iscsi_target_mod" in made["modules"]) == (host != "take")
    assert ("iscsi_tcp" in made["modules"]) == (host != "give")


@pytest.mark.parametrize("host", HOSTS)
def test_the_daemon_understands_its_settings(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = evaluated(tmp_path, f"(import nix/tests/hosts.nix).{host}")["files"]
    etc = tmp_path / "etc"
    for name, content in files.items():
        path = etc / name.removeprefix("zfsilo/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(toml(content))
    loaded = config.load(etc)
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    file = volume_files.read("data")
    if host == "give":
        assert (loaded.server.root, loaded.server.overcommit) == ("tank/zfsilo", 3)
        assert (loaded.server.nvme_cntlid_min, loaded.server.nvme_cntlid_max) == (32000, 65519)
    elif host == "both":
        assert (loaded.sync.interval_s, loaded.server.volblocksize) == (60, 65536)
    else:
        assert file is not None
        assert (file.server, file.mount_path, file.mount_options) == (
            "give",
            "/srv/data",
            ["noatime"],
        )
        assert volume_files.read("disk").state == "connected"  # type: ignore[union-attr]


@pytest.mark.parametrize(("host", "complaint"), WRONG.items())
def test_contradictory_options_are_refused(host: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in " ".join(evaluated(tmp_path, host)["complaints"])


def test_a_wrong_type_names_the_option(tmp_path: Path) -> None:
    host = '{ enable = true; server = { enable = true; root = "tank"; portals = 3260; }; }'
    arguments = ("--eval", "--strict", "--json", "nix/tests/eval.nix", "--arg", "host", host)
    assert (
        "services.zfsilo.server.portals is not of type list of string"
        in nix(tmp_path, *arguments).stderr
    )


SPELLINGS: dict[str, tuple[str, Mapping[str, object]]] = {
    "server.root": ("{}", spellings.DATASETS),
    "server.iqnPrefix": ("{}", spellings.PREFIXES),
    "server.portals": ("[ {} ]", spellings.PORTALS),
    "client.initiatorName": ("{}", spellings.INITIATORS),
    "client.volumes.a.mountOptions": ("[ {} ]", spellings.MOUNT_OPTIONS),
}


@pytest.mark.parametrize("option", SPELLINGS)
def test_names_are_judged_as_the_daemon_does(option: str, tmp_path: Path) -> None:
    form, texts = SPELLINGS[option]
    for text, valid in texts.items():
        value = form.format(json.dumps(text))
        server = ' client.volumes.a.server = "give";' if "volumes" in option else ""
        roles = "enable = true; server.enable = true; client.enable = true;"
        host = f"{{ {roles}{server} {option} = {value}; }}"
        arguments = ("--eval", "--strict", "--json", "nix/tests/eval.nix", "--arg", "host", host)
        done = nix(tmp_path, *arguments)
        refused = f"services.zfsilo.{option} is not of type" in done.stderr
        assert refused != bool(valid), f"{text}: {done.stderr}"


def test_the_package_has_the_dependencies_of_pyproject() -> None:
    project = re.findall(r'^    "([a-z0-9-]+)[>=]', (ROOT / "pyproject.toml").read_text(), re.M)
    required = set(project[: project.index("tomli") + 1])
    package = (NIX / "package.nix").read_text()
    listed = re.search(r"\n  dependencies = .*?\[(.*?)\]", package, re.S)
    assert listed is not None
    assert {name.replace("systemd-python", "systemd") for name in required} == set(
        listed[1].split()
    )


def toml(table: dict[str, Any]) -> str:
    """Return a table as TOML; the scalar values here have the same form in JSON."""
    scalars = [f"{key} = {json.dumps(v)}" for key, v in table.items() if not isinstance(v, dict)]
    tables = [f"[{key}]\n{toml(v)}" for key, v in table.items() if isinstance(v, dict)]
    return "\n".join([*scalars, *tables, ""])


SCHEDULE = (
    "'schedule' 'create' 'nightly' '--update' '--calendar' 'daily' '--delay' '0' "
    "'--keep' '7x1d 4x1w' '--group' '--label' 'app=db'\\''s'"
)
REPLICATION = (
    "'replication' 'create' 'hourly' '--update' '--calendar' 'hourly' '--delay' '0' '--to' 'other' "
    "'--rate' '20M' '--volume' 'data' '--label' 'app=db'"
)


@pytest.mark.parametrize(
    ("noun", "name", "create"),
    [("schedule", "nightly", SCHEDULE), ("replication", "hourly", REPLICATION)],
)
def test_a_policy_is_created_or_changed(tmp_path: Path, noun: str, name: str, create: str) -> None:
    """It is never deleted: a new one would not prune the snapshots of the former one."""
    made = evaluated(tmp_path, "(import nix/tests/hosts.nix).give")
    script = made["services"][f"zfsilo-{noun}-{name}"]["script"]
    assert script == f"/the/package/bin/zfsiloctl {create}"
