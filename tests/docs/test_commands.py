"""Runs every block of the documentation, in a shell that has only what the text has set up.

A block for developers has a clone of the repository, any other one the installed package: zfsiloctl
over a simulated host, and made-up tools.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.running import write_pki
from tests.ctl.shell import PROJECT, Daemon, Shell, running
from tests.docs.blocks import ALL, Block
from tests.docs.transcripts import commands, comparable, in_a_clone, transcript
from zfsilod.model.errors import CommandFailed
from zfsilod.model.records import Volume
from zfsilod.security.join_file import Files, make_join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

IQN = "iqn.2026-01.org.zfsilo:take"
# What a reader has besides zfsiloctl; in a test these do nothing and succeed.
TOOLS = (
    "apt",
    "curl",
    "fuser",
    "helm",
    "hostnamectl",
    "install",
    "journalctl",
    "kubectl",
    "lsblk",
    "pre-commit",
    "rm",
    "scp",
    "shred",
    "systemctl",
    "systemd-creds",
    "zfs",
    "zfsilod",
    "zpool",
)
IN_A_CLONE = ("apt", "pre-commit")
BUILT_IN = ("cat", "exit", "make", "true", "PYTHONPATH=.:proto:csi")
MAKE = re.compile(r"make ([a-z-]+)(?: [A-Z]+=\S+)?(?:\s+#.*)?")
# Blocks without commands: drawings, and Nix, which `make nix-test` evaluates.
PICTURES = (
    "[daemon]",
    "[server]",
    "ABSENT -> CREATED",
    "services.zfsilo = {",
    "zfsilo-op-<ulid>.service",
    "client tool ->",
    "<!-- test:",
    "area: ",
)


def create(ctl: Shell) -> None:
    join = ctl.daemon.directory / "take.join"
    join.write_text(make_join(ctl.daemon.front.certified("host", "take", days=90)))
    ctl.ok(f"join {join} --as give --iqn {IQN}")
    ctl.ok("volume create data 1G --host take")


def snapshots(ctl: Shell) -> None:
    create(ctl)
    ctl.ok("snapshot create data monday")
    ctl.ok("snapshot create data tuesday")


def publish(ctl: Shell) -> None:
    create(ctl)
    ctl.ok("volume publish data take")


def mount(ctl: Shell) -> None:
    create(ctl)
    for line in ("connect data --server give", "stage data", "mount data /srv/data"):
        ctl.ok(f"volume {line}")


def lose(ctl: Shell) -> None:
    publish(ctl)
    facts = ctl.daemon.front.fixture.host.facts
    facts.effect(next(name for name in facts.snapshot() if name.endswith("/data")), None)


def put_aside(ctl: Shell) -> None:
    """Rename the zvol of the volume by hand."""
    publish(ctl)
    facts = ctl.daemon.front.fixture.host.facts
    home = "zvol:tank/zfsilo/data"
    facts.effect("zvol:tank/zfsilo/aside", facts.get(home), instead_of=home)


def replace(ctl: Shell) -> None:
    """Replace the zvol of the volume by a copy, as zfs receive makes one."""
    publish(ctl)
    facts = ctl.daemon.front.fixture.host.facts
    zvol = facts.get("zvol:tank/zfsilo/data")
    own = {"volblocksize": zvol["properties"]["volblocksize"]}
    facts.effect("zvol:tank/zfsilo/data", zvol | {"uid": "", "guid": "4711", "properties": own})


def forget(ctl: Shell) -> None:
    ctl.ok("volume create stray 1G")
    ctl.daemon.front.write(lambda txn: txn.drop(Volume.bucket(), "stray"))


def lose_a_claim(ctl: Shell) -> None:
    """Save the volume handles of a cluster."""
    (ctl.daemon.directory.parent / "handles").write_text("give/csi-aaaaaaaaaaaaaaaaaaaaaaaaaa\n")


def get_stuck(ctl: Shell) -> None:
    """Let a publication fail, and its rollback too."""
    create(ctl)
    host = ctl.daemon.front.fixture.host.facts
    works, effect = False, host.effect

    def failing(name: str, value: Any) -> None:
        if not works and (name.startswith("lun:") or value is None):
            raise CommandFailed("it is broken")
        effect(name, value)

    host.effect = failing  # type: ignore[method-assign, assignment]
    assert ctl("volume publish data take").code != 0
    works = True


STATES: dict[str, Callable[[Shell], None]] = {
    "installed": lambda _ctl: None,
    "hosts": lambda _ctl: None,
    "volume": create,
    "snapshots": snapshots,
    "published": publish,
    "mounted": mount,
    "lost": lose,
    "renamed": put_aside,
    "received": replace,
    "orphan": forget,
    "csi": lose_a_claim,
    "needs-repair": get_stuck,
}


def is_commands(block: Block) -> bool:
    """Whether a block is nothing but commands."""
    first = {line.split()[0] for line in block.commands}
    return first <= {*TOOLS, *BUILT_IN, "zfsiloctl"}


@pytest.mark.parametrize(
    "block", [b for b in ALL if not (is_commands(b) or b.is_transcript)], ids=str
)
def test_a_block_without_commands_is_toml_or_a_picture(block: Block) -> None:
    if block.text.startswith("[Unit]"):
        named = {line.partition("=")[2] for line in block.commands[1:]}
        template = {re.sub("@.*[.]", "@.", name) for name in named}
        assert all((PROJECT / "units" / name).exists() for name in template)
    elif not any(picture in block.text for picture in PICTURES):
        tomllib.loads(block.text)


@pytest.mark.parametrize("block", [b for b in ALL if b.is_transcript], ids=str)
def test_a_transcript_shows_the_output(block: Block) -> None:
    assert block.state == "playground"
    assert comparable(transcript(commands(block))) == comparable(block.text), "make transcripts"


@pytest.mark.parametrize(
    "block", [b for b in ALL if is_commands(b) and b.state == "nothing"], ids=str
)
def test_the_commands_of_a_block_for_developers(block: Block, tmp_path: Path) -> None:
    lines = [line for line in block.commands if not is_checked_target(line)]
    tools = made_up(tmp_path, IN_A_CLONE)
    done = in_a_clone("\n".join(["set -eu", f"PATH={tools}:$PATH", *lines, ""]))
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def is_checked_target(line: str) -> bool:
    """Check that a target of make exists; all but `make try` are run by CI, or take too long."""
    if not line.startswith("make "):
        return False
    target = MAKE.fullmatch(line)
    assert target is not None, line
    makefile = (PROJECT / "Makefile").read_text()
    assert re.search(rf"^{target[1]}:", makefile, re.M), f"there is no target {target[1]}"
    return target[1] != "try"


@pytest.mark.parametrize(
    "block", [b for b in ALL if is_commands(b) and b.state != "nothing"], ids=str
)
def test_the_commands_of_a_block(
    block: Block,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line for line in block.commands if not is_checked_target(line)]
    with running(tmp_path / "silo") as daemon:
        for name, value in daemon.environment.items():
            monkeypatch.setenv(name, value)
        ctl = Shell(daemon, capsys)
        write_pki(Files(daemon.directory / "tls"))
        (daemon.directory / "etc").mkdir()
        (daemon.directory / "etc/zfsilod.toml").write_text('[daemon]\nhost_id = "give"\n')
        STATES[block.state](ctl)
        script = "\n".join(adapted(line, daemon) for line in lines)
        tools = made_up(tmp_path, TOOLS)
        install_zfsiloctl(tools, daemon)
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", script],
            cwd=tmp_path,
            env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def adapted(line: str, daemon: Daemon) -> str:
    """Return a line with what a reader would put in, and what the made-up host does not have."""
    stuck = daemon.front.read(
        lambda txn: [one.id for one in txn.live() if one.state == "NEEDS_REPAIR"]
    )
    if stuck:
        line = re.sub(r"\bOPERATION\b", stuck[0], line)
    line = line.replace("give.example", daemon.front.address).replace(
        "zfsiloctl join take.join", f"zfsiloctl join take.join --as give --iqn {IQN}"
    )
    return line.replace("cat /etc/iscsi/initiatorname.iscsi", "true")


def made_up(folder: Path, names: Iterable[str]) -> Path:
    """Return a folder with tools of a reader that must not run in a test."""
    tools = folder / "tools"
    tools.mkdir()
    for name in names:
        script(tools / name, "exit 0")
    return tools


def install_zfsiloctl(tools: Path, daemon: Daemon) -> None:
    """Add zfsiloctl, tools that answer it, and a systemctl that starts a volume's unit."""
    ours = daemon.environment | {
        "PYTHONPATH": f"{PROJECT}:{PROJECT}/proto",
        "ZFSILO_TOOLS_PATH": str(tools),
    }
    known = "".join(f"export {name}={value}\n" for name, value in ours.items())
    script(tools / "zpool", "printf 'tank\\tONLINE\\n'")
    script(tools / "zfs", "echo tank/zfsilo")
    script(tools / "zfsiloctl", f'{known}exec {sys.executable} -m tests.docs.pretend "$@"')
    script(
        tools / "systemctl",
        'case "$*" in "enable --now zfsilo-volume@"*) unit=${3#*@}; '
        f'exec {tools}/zfsiloctl up "${{unit%.service}}";; esac',
    )


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_every_state_is_used() -> None:
    assert {block.state for block in ALL} == {"nothing", "playground", *STATES}
