"""zfsiloctl: the command line. The commands are in commands.py, each noun has a file of its own.

It speaks gRPC, to the local daemon or to a remote one. Nothing is imported before it is needed:
help and completion are answered without gRPC.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from zfsilod.ctl.failures import BROKEN_PIPE, INTERRUPTED, complain
from zfsilod.ctl.parser import parse
from zfsilod.model.errors import ZfsiloError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

USAGE = 2
# What is imported and answered is kept to the end: to look for garbage among it at every 700
# objects takes 10 ms.
GARBAGE_AFTER = 100_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    gc.set_threshold(GARBAGE_AFTER)
    try:
        code = _run(parse(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        gc.freeze()  # or Python looks through all that it has loaded before it ends: 14 ms
        return code
    except ZfsiloError as error:
        return complain(error)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\nzfsiloctl: interrupted{_what_goes_on(interrupt)}\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more when it exits: that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(given: Namespace) -> int:
    if given.version:
        from zfsilod import __version__

        print(f"zfsiloctl {__version__}")
        return 0
    if not given.function:
        given.help_of.print_help()
        return USAGE
    module, _, name = given.function.partition(":")
    return getattr(import_module(f"zfsilod.ctl.commands.{module}"), name)(given) or 0


def _what_goes_on(interrupt: KeyboardInterrupt) -> str:
    operation = str(interrupt)
    if not operation:
        return ""
    return f"; operation {operation} goes on: zfsiloctl operation watch {operation}"
