"""`operation` commands, progress on a terminal, and Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from zfsilod.ctl import messages as pb
from zfsilod.ctl.commands.operation import changes_since, where_to_look
from zfsilod.ctl.output.progress import describe
from zfsilod.model.errors import Unavailable
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.ctl.shell import Shell

PAUSE = threading.Event()


def test_no_wait_returns_the_operation(ctl: Shell) -> None:
    ctl.daemon.hold()
    operation = ctl.ok("volume create later 1G --no-wait").strip()
    assert ctl.ok("operation list -q --running") == f"{operation}\n"
    assert ctl("volume show later").code == 3
    ctl.daemon.calm()
    assert ctl.ok(f"operation wait {operation}") == "create later: done\n"
    assert ctl("volume create later2 1G --no-wait --json").json["operation"]["name"]
    ctl.fails(4, "volume create later 2G --no-wait")


def test_a_list_of_operations(ctl: Shell) -> None:
    ctl.ok("volume create listed 1G")
    lines = ctl.ok("operation list --volume listed --state done").splitlines()
    assert lines[0].split() == ["AGE", "TITLE", "STATE", "BY", "TOOK", "ID"]
    (operation,) = ctl.ok("operation list -q --volume listed").split()
    age, *middle, took, short = lines[1].split()
    assert middle == ["create", "listed", "done", "root"]
    assert (age[-1], took[-1], short) == ("s", "s", operation[-8:])


def test_an_operation_is_named_by_a_unique_part_of_its_id(ctl: Shell) -> None:
    ctl.ok("volume create parted 1G")
    (operation,) = ctl.ok("operation list -q --volume parted").split()
    for part in (operation, operation[-8:], operation[-8:].upper(), operation[:20]):
        assert ctl.ok(f"operation show {part}").startswith(f"operation {operation}: create parted")
        assert ctl.ok(f"operation wait {part}") == "create parted: done\n"
    assert "starts or ends with uuu" in ctl.fails(3, "operation show uuu")
    assert "operations have an id that starts or ends with 0" in ctl.fails(2, "operation show 0")


def test_show_prints_the_actions_with_their_status(ctl: Shell) -> None:
    ctl.ok("volume create moved 1G")
    operation = ctl.ok("operation list -q --volume moved").strip()
    shown = ctl.ok(f"operation show {operation}")
    first = re.compile(rf"operation {operation}: create moved · done( in \d+s)?\n")
    assert first.match(shown)
    assert "  By:         uid 0 (unix)\n  Submitted:  2" in shown
    assert f"\n  done       {created('moved')}\n" in shown
    assert ctl(f"operation show {operation} --json").json["title"] == "create moved"


def test_waiting_for_a_failed_operation_reports_its_error(ctl: Shell) -> None:
    ctl.daemon.front.fixture.host.facts.light_fuse(1, when="before", how="fail")
    ctl.fails(1, "volume create failed 1G")
    operation = ctl.ok("operation list -q --state rolled_back").split()[-1]
    assert "the fuse" in ctl.fails(1, f"operation wait {operation}")
    assert "the fuse" in ctl.fails(1, f"operation watch {operation}")
    shown = ctl.ok(f"operation show {operation}")
    assert "  Error:          the fuse of the simulated host blew\n" in shown


def created(volume: str) -> str:
    """Return the description of the step that creates a volume of 1 GiB."""
    values = "1 GiB, thin, blocks of 16 KiB, snapdev=hidden, sync=always, volmode=dev"
    return f"create zvol tank/zfsilo/{volume} ({values})"


def test_watch_until_it_finishes(ctl: Shell) -> None:
    ctl.daemon.hold()
    operation = ctl.ok("volume create watched 1G --no-wait").strip()
    threading.Timer(0.3, ctl.daemon.calm).start()
    lines = ctl.ok(f"operation watch {operation}").splitlines()
    line = re.compile(rf"2\d{{3}}-\d\d-\d\dT\d\d:\d\d:\d\dZ  {operation[-8:]}  (.*) · by root")
    shown = [match[1] for match in map(line.fullmatch, lines) if match]
    assert shown[0] == f"create watched · 0 % · {created('watched')}"
    assert shown[-1] == "create watched · done"
    assert lines[len(shown) :] == ["create watched: done"]


class Streams:
    """A server whose watch ends after each of these lists of revisions."""

    def __init__(self, *streams: list[int]) -> None:
        self.where = "give"
        self.asked: list[tuple[int, bool]] = []
        self._streams = iter(streams)

    def watch(self, method: str, request: Any, _timeout_s: float | None, *, patient: bool) -> Any:
        assert method == "WatchOperations"
        self.asked.append((request.after_revision, patient))
        changes = [
            SimpleNamespace(operation=SimpleNamespace(revision=revision))
            for revision in next(self._streams)
        ]
        return SimpleNamespace(responses=lambda: changes)


def test_a_watch_resumes_without_gaps_and_stops_after_two_empty_streams() -> None:
    server = Streams([], [5, 6], [7], [], [])
    with pytest.raises(Unavailable, match="closed the watch twice before any change; retry"):
        list(changes_since(server, "", 4))  # type: ignore[arg-type]
    assert server.asked == [(4, False), (4, True), (6, False), (7, False), (7, True)]


def test_watch_all_until_the_timeout(ctl: Shell) -> None:
    ctl.ok("volume create old 1G")
    create = CreateVolume(id="new", capacity_bytes=1 << 30)
    threading.Timer(0.5, lambda: ctl.daemon.wait(ctl.daemon.front.fixture.do(create))).start()
    ran = ctl("operation watch --timeout 2")
    assert ran.code == 10
    assert "create new · done" in ran.out
    assert "create old" not in ran.out


def test_cancel(ctl: Shell) -> None:
    ctl.daemon.hold()
    operation = ctl.ok("volume create stopped 1G --no-wait").strip()
    answer = ctl.ok(f"operation cancel {operation}")
    assert answer.startswith("create stopped: stopped; rolling back\n")
    ctl.daemon.calm()
    assert ctl(f"operation wait {operation}").code != 0
    assert ctl.ok(f"operation repair {operation}") == "create stopped: already rolled back\n"


def test_progress_on_a_terminal(ctl: Shell) -> None:
    ctl.daemon.hold()
    master, slave = pty.openpty()
    process = ctl.process("volume create shown 1G", stderr=slave)
    os.close(slave)
    drawn = read_until(master, "create zvol")
    assert "create shown · 0 % · create zvol" in drawn
    ctl.daemon.calm()
    out, _err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "create shown: done\n")
    assert read_until(master, "\r\x1b[K").endswith("\r\x1b[K")
    os.close(master)


def read_until(descriptor: int, text: str) -> str:
    seen = ""
    while text not in seen:
        seen += os.read(descriptor, 4096).decode()
    return seen


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let child processes receive Ctrl-C, which background jobs of a shell ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_request_names_its_operation(ctl: Shell) -> None:
    ctl.daemon.hold()
    before = len(ctl.daemon.operations())
    process = ctl.process("volume create unhurried 1G")
    watch_for(lambda: len(ctl.daemon.operations()) > before)
    operation = ctl.daemon.operations()[-1].id
    PAUSE.wait(0.5)  # the operation's name is on its way to the client
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"interrupted; operation {operation} continues: zfsiloctl operation watch" in err
    assert "Traceback" not in err
    ctl.daemon.calm()
    assert ctl.ok(f"operation wait {operation}") == "create unhurried: done\n"


def watch_for(fact: Callable[[], bool]) -> None:
    for _attempt in range(600):
        if fact():
            return
        PAUSE.wait(0.05)
    raise AssertionError("the condition was not met in 30 s")


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (pb.OPERATION_STATE_RUNNING, "publish data · 50 % · add LUN"),
        (pb.OPERATION_STATE_WAITING, "publish data · 50 % · waiting"),
        (pb.OPERATION_STATE_FAILED, "publish data · 50 % · rolling back"),
        (pb.OPERATION_STATE_NEEDS_REPAIR, "publish data · 50 % · needs repair"),
    ],
)
def test_a_line_of_progress(state: str, line: str) -> None:
    actions = [
        pb.Action(step="create target", up=True, status=pb.ACTION_STATUS_DONE),
        pb.Action(step="add LUN", up=True, status=pb.ACTION_STATUS_STARTED),
    ]
    operation = pb.Operation(title="publish data", progress=50, actions=actions, state=state)
    assert describe(operation) == line


@pytest.mark.parametrize(
    ("subject", "commands"),
    [
        ("volumes/data", "zfsiloctl volume sync data --dry-run, zfsiloctl orphan list"),
        ("orphans", "zfsiloctl orphan list"),
    ],
)
def test_commands_that_show_what_an_abandoned_operation_leaves(subject: str, commands: str) -> None:
    assert where_to_look(pb.Operation(subject=subject)) == commands
