"""The output of a tool that is too large to be kept: it is read as it comes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select

from zfsilod.host.run import Completed, timed_out
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

    from zfsilod.host.run import Runner

PIECE_BYTES = 1 << 20  # of a pipe too: the limit in /proc/sys/fs/pipe-max-size
ERROR_BYTES = 1 << 16  # what a pipe holds of the errors of a tool


class ToolOutput:
    """Runs a tool within a `with` block, and ends it after the block."""

    def __init__(self, run: Runner, argv: list[str], *, stall_s: float) -> None:
        """`stall_s`: the longest silence of the tool."""
        self._argv = argv
        self._stall_s = stall_s
        self._tool = run.start(argv)
        self._output, self._errors = self._tool.pipes
        with contextlib.suppress(OSError):  # a lower pipe-max-size: it only takes longer
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._tool.end()

    def read(self) -> bytes:
        """Return the next piece, b"" at the end. Raises Unavailable (TOOL_TIMEOUT) for silence."""
        if not self._poll.poll(self._stall_s * 1000):
            raise timed_out(self._argv, self._stall_s)
        return os.read(self._output, PIECE_BYTES)

    def completed(self) -> Completed:
        """Wait for the end of the tool, and return its exit code and its errors."""
        if not self._tool.wait(self._stall_s):
            raise timed_out(self._argv, self._stall_s)
        os.set_blocking(self._errors, False)
        try:
            errors = os.read(self._errors, ERROR_BYTES)
        except BlockingIOError:  # a child of the tool keeps the pipe open
            errors = b""
        code = self._tool.returncode
        assert code is not None, "it was waited for"
        return Completed(tuple(self._argv), code, "", errors.decode(errors="replace"))
