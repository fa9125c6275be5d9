"""zfsiloctl, the command line: a client of the local daemon or of a remote one, over HTTP/JSON.

command_table.py lists the commands; commands/ has one file for each noun. Modules are imported when
they are needed, and no library is: its import would take longer than the command.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

from zfsilod.ctl.failures import BROKEN_PIPE, INTERRUPTED, complain
from zfsilod.ctl.parser import parse
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

USAGE = 2
# Imported modules and answers live until the process exits; collecting garbage after every 700
# objects would take 10 ms.
GARBAGE_AFTER = 100_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    gc.set_threshold(GARBAGE_AFTER)
    try:
        code = _run(parse(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        gc.freeze()  # skips the final collection, which takes 14 ms
        return code
    except ZfsiloError as error:
        return complain(error)
    except KeyboardInterrupt as interrupt:
        operation = str(interrupt)
        note = f"; operation {operation} continues: zfsiloctl operation watch {operation}"
        sys.stderr.write(f"\nzfsiloctl: interrupted{note if operation else ''}\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(args: Namespace) -> int:
    if args.version:
        from zfsilod import __version__

        print(f"zfsiloctl {__version__}")
        return 0
    if not args.function:
        args.help_of.print_help()
        return USAGE
    module, _, name = args.function.partition(":")
    return getattr(import_module(f"zfsilod.ctl.commands.{module}"), name)(args) or 0
