"""Every block of the documentation is run: zfsiloctl over a simulated host, tools made up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.running import write_pki
from tests.ctl.shell import PROJECT, Daemon, Shell, running
from tests.docs.blocks import ALL, Block
from zfsilod.model.errors import CommandFailed
from zfsilod.model.records import Volume
from zfsilod.security.join_file import Files, make_join

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IQN = "iqn.2026-01.org.zfsilo:take"
# What a reader has besides zfsiloctl; in a test they do nothing and say yes.
TOOLS = (
    "apt", "curl", "fuser", "helm", "install", "journalctl", "kubectl", "lsblk", "rm", "scp",
    "shred", "systemctl", "systemd-creds", "zfs", "zfsilod", "zpool",
)  # fmt: skip
MAKE = re.compile(r"make ([a-z-]+)(?:\s+#.*)?")
# Blocks that are no commands: pictures, and Nix, which `make nix-test` looks at.
PICTURES = ("ABSENT -> CREATED", "services.zfsilo = {", "storage host   ABSENT")


def create(ctl: Shell) -> None:
    join = ctl.daemon.directory / "take.join"
    join.write_text(make_join(ctl.daemon.front.certified("host", "take", days=90)))
    ctl.ok(f"join {join} --as give --iqn {IQN}")
    ctl.ok("volume create data 1G --host take")


def publish(ctl: Shell) -> None:
    create(ctl)
    ctl.ok("volume publish data take")


def mount(ctl: Shell) -> None:
    create(ctl)
    for line in ("connect data --server give", "stage data", "mount data /srv/data"):
        ctl.ok(f"volume {line}")


def lose(ctl: Shell) -> None:
    publish(ctl)
    facts = ctl.daemon.front.zfsilo.host.facts
    facts.effect(next(each for each in facts.snapshot() if each.endswith("/data")), None)


def forget(ctl: Shell) -> None:
    ctl.ok("volume create stray 1G")
    ctl.daemon.front.write(lambda txn: txn.drop(Volume.bucket(), "stray"))


def get_stuck(ctl: Shell) -> None:
    """Let a publication fail, and its rollback too."""
    create(ctl)
    host = ctl.daemon.front.zfsilo.host.facts
    works, effect = False, host.effect

    def failing(name: str, value: Any) -> None:
        if not works and (name.startswith("lun:") or value is None):
            raise CommandFailed("it is broken")
        effect(name, value)

    host.effect = failing  # type: ignore[method-assign, assignment]
    assert ctl("volume publish data take").code != 0
    works = True


STATES: dict[str, Callable[[Shell], None]] = {
    "nothing": lambda _ctl: None,
    "hosts": lambda _ctl: None,
    "volume": create,
    "published": publish,
    "mounted": mount,
    "lost": lose,
    "orphan": forget,
    "needs-repair": get_stuck,
}


def is_commands(block: Block) -> bool:
    first = {line.split()[0] for line in block.commands if line.strip()}
    return first <= {*TOOLS, "zfsiloctl", "cat", "export", "python", "make"}


@pytest.mark.parametrize("block", [b for b in ALL if not is_commands(b)], ids=str)
def test_what_is_no_command_is_toml_or_a_picture(block: Block) -> None:
    if block.text.startswith("[Unit]"):
        named = {line.partition("=")[2] for line in block.commands[1:]}
        template = {re.sub("@.*[.]", "@.", each) for each in named}
        assert all((PROJECT / "units" / each).exists() for each in template)
    elif not any(each in block.text for each in PICTURES):
        tomllib.loads(block.text)


@pytest.mark.parametrize("block", [b for b in ALL if is_commands(b)], ids=str)
def test_the_commands_of_a_block(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lines = [line for line in block.commands if line.strip()]
    if any(line.startswith("make ") for line in lines):
        targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M)
        made = [MAKE.fullmatch(line) for line in lines if line.startswith("make ")]
        assert {found[1] for found in made if found} <= set(targets)
        assert None not in made
        lines = [line for line in lines if not line.startswith("make ")]
    with running(tmp_path / "silo") as daemon:
        for name, value in daemon.environment.items():
            monkeypatch.setenv(name, value)
        ctl = Shell(daemon, capsys)
        write_pki(Files(daemon.directory / "tls"))
        (daemon.directory / "etc").mkdir()
        (daemon.directory / "etc/zfsilod.toml").write_text('[daemon]\nhost_id = "give"\n')
        STATES[block.state](ctl)
        script = "\n".join(adapted(line, daemon) for line in lines)
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", script], cwd=tmp_path, env=environment(tmp_path),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def adapted(line: str, daemon: Daemon) -> str:
    """Return a line with what a reader would put in, and what the made-up host does not have."""
    stuck = daemon.front.read(
        lambda txn: [each.id for each in txn.live() if each.state == "NEEDS_REPAIR"]
    )
    if stuck:
        line = re.sub(r"\bOPERATION\b", stuck[0], line)
    line = line.replace("give.example", daemon.front.address).replace(
        "zfsiloctl join take.join", f"zfsiloctl join take.join --as give --iqn {IQN}"
    )
    line = line.replace("cat /etc/iscsi/initiatorname.iscsi", "true")
    return line.replace("export ZFSILO_SIMULATE=/tmp/silo", "true")


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which the tools are made up, and zfsiloctl is ours."""
    tools = folder / "tools"
    tools.mkdir()
    for name in TOOLS:
        script(tools / name, "exit 0")
    script(tools / "zpool", "printf 'tank\\tONLINE\\n'")
    script(tools / "zfs", "echo tank/zfsilo")
    ours = {"PYTHONPATH": f"{PROJECT}:{PROJECT}/proto"}
    ours |= {name: os.environ[name] for name in ("ZFSILO_SOCKET", "ZFSILO_SIMULATE")}
    known = "".join(f"export {name}={value}\n" for name, value in ours.items())
    script(tools / "zfsiloctl", f'{known}exec {sys.executable} -m tests.docs.pretend "$@"')
    # What an enabled unit does for a volume. Tools get no environment of ours.
    script(
        tools / "systemctl",
        'case "$*" in "enable --now zfsilo-volume@"*) unit=${3#*@}; '
        f'exec {tools}/zfsiloctl up "${{unit%.service}}";; esac',
    )
    script(
        tools / "python",
        f'{known}[ "$2" = zfsilod.daemon ] || exec {sys.executable} "$@"',
    )
    return os.environ | {
        "PATH": f"{tools}:/usr/bin:/bin", "ZFSILO_TOOLS_PATH": str(tools)
    }  # fmt: skip


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_every_state_is_used() -> None:
    assert {block.state for block in ALL} == set(STATES)
