"""The runner of tools, with real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import chap
from zfsilod.host.replicas import LAST_S
from zfsilod.host.run import (
    CLIENT_TOOLS,
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
    """Replace `zfs` with a shell script."""
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


def test_a_failure_is_typed_and_logged_once_without_the_input(
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


def test_a_success_is_not_logged(
    tool: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tool("echo out; echo err >&2")
    Runner()(["zfs", "list"], timeout_s=10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rc", [0, 3])
def test_debugging_logs_command_exit_code_and_time(
    tool: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rc: int,
) -> None:
    monkeypatch.setenv("ZFSILO_DEBUG", "1")
    tool(f"sleep 0.05; exit {rc}")
    Runner()(["zfs", "set", "a b"], timeout_s=10, ok=(0, 3))
    logged = re.fullmatch(rf"zfs set 'a b': exit code {rc}, (\d+) ms\n", capsys.readouterr().err)
    assert logged is not None
    assert 50 <= int(logged[1]) < 10_000


def test_debugging_never_logs_input_or_output(
    tool: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZFSILO_DEBUG", "1")
    tool("cat")
    secret = chap().password.reveal()
    assert Runner()(["zfs", "load-key"], timeout_s=10, input=secret).stdout == secret
    tool("cat > /dev/null; exit 1")
    with pytest.raises(CommandFailed):
        Runner()(["zfs", "load-key"], timeout_s=10, input=secret)
    logged = capsys.readouterr().err
    assert logged.count("zfs load-key: exit code") == 3
    assert secret not in logged


def test_debugging_logs_a_tool_that_is_late(
    tool: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ZFSILO_DEBUG", "1")
    tool("exec sleep 60")
    with pytest.raises(Unavailable):
        Runner()(["zfs", "list"], timeout_s=0.2)
    assert "zfs list: exit code -15, " in capsys.readouterr().err


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


def test_a_tool_has_the_default_signals_and_a_session_of_its_own(
    tool: Callable[[str], None],
) -> None:
    tool("grep SigIgn /proc/$$/status; ps -o sid= -p $$; echo $$")
    _name, ignored, session, pid = Runner()(["zfs"], timeout_s=10).stdout.split()
    by_python = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    assert int(ignored, 16) & by_python == 0
    assert session == pid


def descriptors() -> set[str]:
    """Return the open descriptors of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_tool_that_cannot_be_executed_leaves_nothing(
    tool: Callable[[str], None], tmp_path: Path
) -> None:
    tool("true")
    (tmp_path / "zfs").write_bytes(b"\x7fELF")
    before = descriptors()
    with pytest.raises(OSError, match="Exec format"):
        Runner()(["zfs"], timeout_s=10)
    assert descriptors() == before


def test_a_tool_that_has_ended_leaves_no_descriptor(tool: Callable[[str], None]) -> None:
    before = descriptors()
    tool("exit 1")
    with pytest.raises(CommandFailed):
        Runner()(["zfs"], timeout_s=10, input="text")
    tool("exec sleep 60")
    with pytest.raises(Unavailable):
        Runner()(["zfs"], timeout_s=0.1)
    assert descriptors() == before


def test_a_late_tool_is_ended_with_all_it_started(
    tool: Callable[[str], None], tmp_path: Path
) -> None:
    tool(f"sleep 60 & echo $! > {tmp_path}/child; sleep 60")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="did not end") as caught:
        Runner()(["zfs", "list"], timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert caught.value.reason == "TOOL_TIMEOUT"
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5  # the signal is sent, but is delivered later
    while _runs(child):
        assert time.monotonic() < end, "the child of the tool still runs"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_tool_that_ignores_sigterm_is_killed(tool: Callable[[str], None]) -> None:
    tool("trap '' TERM; while :; do sleep 0.1; done")
    started = time.monotonic()
    with pytest.raises(Unavailable):
        Runner()(["zfs"], timeout_s=0.3)
    assert 2 < time.monotonic() - started < 6


def test_a_background_child_is_not_waited_for(tool: Callable[[str], None]) -> None:
    tool("sleep 5 & echo done")
    started = time.monotonic()
    assert Runner()(["zfs"], timeout_s=30).stdout == "done\n"
    assert time.monotonic() - started < 3


def test_output_is_bounded(tool: Callable[[str], None]) -> None:
    tool("head -c 20000000 /dev/zero")
    assert len(Runner()(["zfs"], timeout_s=60).stdout) == MAX_OUTPUT_BYTES


def test_invalid_utf8_is_replaced(tool: Callable[[str], None]) -> None:
    tool(r"printf 'a\377b'")
    assert Runner()(["zfs"], timeout_s=10).stdout == "a\ufffdb"


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="install the package zfsutils-linux"):
        Runner()(["zfs"], timeout_s=1)
    assert missing_tools(("iscsiadm",)) == {"iscsiadm": "open-iscsi"}


def test_every_tool_has_a_package() -> None:
    xfs = {"mkfs.xfs", "xfs_repair", "xfs_growfs", "xfs_admin"}
    # Of audit; of attach and setup; of seal-key; of the daemon, which checks calendars.
    commands = {"journalctl", "systemctl", "systemd-creds", "systemd-analyze"}
    maps = {"multipathd", "multipath", "dmsetup"}  # of a client with several paths over iSCSI
    assert {*SERVER_TOOLS, *CLIENT_TOOLS, *xfs, *maps, *commands} == set(TOOLS)


@pytest.mark.parametrize("inherited", [False, True])
def test_a_stream_is_the_input_and_the_output_of_a_tool(
    tool: Callable[[str], None], *, inherited: bool
) -> None:
    """Descriptors that came from another process are inherited by the next one."""
    tool("cat; echo done >&2; exit 3")
    ours, theirs = socket.socketpair()
    output, stdout = socket.socketpair()
    with ours, theirs, output, stdout:
        for end in (theirs, stdout):
            end.set_inheritable(inherited)
        ours.sendall(b"data")
        ours.shutdown(socket.SHUT_WR)
        done = Runner().stream(
            ["zfs", "send"], stdin=theirs.fileno(), stdout=stdout.fileno(), timeout_s=LAST_S
        )
        assert (done.rc, done.stderr) == (3, "done\n")
        stdout.close()
        assert output.recv(100) == b"data"
        assert output.recv(100) == b"", "no process has it any more"
