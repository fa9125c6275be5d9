"""A daemon in a thread for the tests, and a shell that runs zfsiloctl against it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.api.running import Front, front_of
from zfsilod.ctl import main

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    import pytest

    from zfsilod.model.records import Operation

PROJECT = Path(__file__).parents[2]
DEADLINE_S = 30


class Daemon:
    """A zfsilod whose event loop runs in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.front: Front
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="zfsilod")

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that select this daemon."""
        return {"ZFSILO_SOCKET": str(self.front.path), "ZFSILO_SIMULATE": str(self.directory)}

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(DEADLINE_S), "the daemon does not start"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the daemon's loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def hold(self) -> None:
        """Start no worker until `calm`."""
        self._loop.call_soon_threadsafe(self.front.fixture.launcher.gate.clear)

    def calm(self) -> None:
        """Let all workers finish."""
        self.wait(self._calm())

    async def _calm(self) -> None:
        launcher = self.front.fixture.launcher
        launcher.gate.set()
        await asyncio.gather(*launcher.tasks.values(), return_exceptions=True)

    def operations(self) -> list[Operation]:
        from zfsilod.model.records import Operation

        operations: list[Operation] = self.front.read(lambda txn: list(txn.scan(Operation)))
        return operations

    def join_file(self, role: str, subject: str, *, by_token: bool = False) -> Path:
        """Write a join file for this daemon."""
        from zfsilod.security.join_file import make_join

        if by_token:
            token = self.front.token(role, subject)  # type: ignore[arg-type]
            access = self.front.access(token=token)
        else:
            access = self.front.certified(role, subject)
        path = self.directory / f"{role}-{subject}.join"
        path.write_text(make_join(access))
        return path

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with front_of(self.directory) as self.front:
            self._started.set()
            await self._stop.wait()


@contextmanager
def running(directory: Path) -> Iterator[Daemon]:
    """Run a daemon until the context ends."""
    daemon = Daemon(directory)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


class Ran:
    """Exit code and output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs zfsiloctl, in this process or in one of its own."""

    def __init__(self, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
        self.daemon = daemon
        self._capsys = capsys

    def __call__(self, line: str, *more: str) -> Ran:
        """Run a command line in this process."""
        self._capsys.readouterr()
        code = main([*shlex.split(line), *more])
        out, err = self._capsys.readouterr()
        return Ran(code, out, err)

    def ok(self, line: str, *more: str) -> str:
        """Run a command line that must succeed, and return its output."""
        ran = self(line, *more)
        assert ran.code == 0, ran.err
        return ran.out

    def fails(self, code: int, line: str, *more: str) -> str:
        """Run a command line that must fail with this code, and return its error message."""
        ran = self(line, *more)
        assert ran.code == code, ran.err or ran.out
        return ran.err

    def process(self, line: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command line as a process."""
        environment = os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT}/proto"}
        return subprocess.Popen(
            [sys.executable, "-m", "zfsilod.ctl", *shlex.split(line)],
            text=True,
            env=environment,
            cwd=PROJECT,
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
        )

    def apart(self, line: str) -> Ran:
        """Run a command line as a process of its own, for commands that open the store."""
        process = self.process(line)
        out, err = process.communicate(timeout=DEADLINE_S)
        return Ran(process.returncode, out, err)
