"""The runner, with real processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zfsilod.host.run import (
    CONSUMER_TOOLS,
    MAX_OUTPUT_BYTES,
    SERVER_TOOLS,
    TOOLS,
    Runner,
    missing_tools,
)
from zfsilod.model.errors import CommandFailed, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make `zfs` a shell script of the test's."""
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", f"{tmp_path}:/usr/sbin:/usr/bin")

    def write(script: str) -> None:
        path = tmp_path / "zfs"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


def test_output_and_exit_code(tool: Callable[[str], None]) -> None:
    tool("echo out; echo err >&2; exit 3")
    done = Runner()(["zfs", "get"], timeout_s=10, ok=(0, 3))
    assert (done.rc, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_failure_is_typed_and_logged_once_and_never_with_the_input(
    tool: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tool("cat >/dev/null; echo first >&2; echo 'it is bad' >&2; exit 1")
    with pytest.raises(CommandFailed, match="it is bad") as caught:
        Runner()(["zfs", "set", "a b"], timeout_s=10, input="hush")
    assert caught.value.facts == {
        "command": "zfs set 'a b'",
        "exit_code": "1",
        "stderr": "first\nit is bad",
    }
    logged = capsys.readouterr().err
    assert logged.count("zfs set 'a b'") == 1
    assert "hush" not in logged


def test_environment_is_clean_and_input_arrives(tool: Callable[[str], None]) -> None:
    tool("env | cut -d= -f1 | grep -v '^PWD$\\|^_$\\|^SHLVL$\\|^OLDPWD$' | sort; cat")
    done = Runner()(["zfs"], timeout_s=10, input="the input")
    assert done.stdout == "LC_ALL\nPATH\nthe input"
    assert Runner()(["zfs"], timeout_s=10).stdout == "LC_ALL\nPATH\n"


def test_only_chosen_descriptors_are_inherited(tool: Callable[[str], None]) -> None:
    tool("ls /proc/$$/fd | wc -l; test -e /proc/$$/fd/$1 && echo there")
    lock, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(other, True)
    try:
        runner = Runner(inherit=(lock,))
        assert "there" in runner(["zfs", str(lock)], timeout_s=10, ok=(0, 1)).stdout
        assert "there" not in runner(["zfs", str(other)], timeout_s=10, ok=(0, 1)).stdout
    finally:
        os.close(lock)
        os.close(other)


def test_a_late_tool_is_ended_with_all_it_started(
    tool: Callable[[str], None], tmp_path: Path
) -> None:
    tool(f"sleep 60 & echo $! > {tmp_path}/child; sleep 60")
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="did not end") as caught:
        Runner()(["zfs", "list"], timeout_s=0.5)
    assert time.monotonic() - begun < 3
    assert caught.value.reason == "TOOL_TIMEOUT"
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5  # a signal was sent; that it is acted on takes its time
    while _runs(child):
        assert time.monotonic() < end, "the tool's own child lives on"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_tool_deaf_to_sigterm_is_killed(tool: Callable[[str], None]) -> None:
    tool("trap '' TERM; while :; do sleep 0.1; done")
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        Runner()(["zfs"], timeout_s=0.3)
    assert 2 < time.monotonic() - begun < 6


def test_a_helper_left_behind_does_not_hold_us_up(tool: Callable[[str], None]) -> None:
    tool("sleep 5 & echo done")
    begun = time.monotonic()
    assert Runner()(["zfs"], timeout_s=30).stdout == "done\n"
    assert time.monotonic() - begun < 3


def test_output_is_bounded(tool: Callable[[str], None]) -> None:
    tool("head -c 20000000 /dev/zero")
    assert len(Runner()(["zfs"], timeout_s=60).stdout) == MAX_OUTPUT_BYTES


def test_bytes_that_are_no_text_do_no_harm(tool: Callable[[str], None]) -> None:
    tool(r"printf 'a\377b'")
    assert Runner()(["zfs"], timeout_s=10).stdout == "a\ufffdb"


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="install the package zfsutils-linux"):
        Runner()(["zfs"], timeout_s=1)
    assert missing_tools(("iscsiadm",)) == {"iscsiadm": "open-iscsi"}


def test_every_tool_has_a_package() -> None:
    of_xfs = {"mkfs.xfs", "xfs_repair", "xfs_growfs", "xfs_admin"}
    by_hand = {"journalctl", "systemctl"}  # of audit, attach and setup
    assert {*SERVER_TOOLS, *CONSUMER_TOOLS, *of_xfs, *by_hand} == set(TOOLS)
