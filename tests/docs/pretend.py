"""zfsiloctl for the blocks of the documentation: with made-up tools a simulation will do."""

import sys
from argparse import Namespace

from zfsilod.ctl import main, require_local


def check_simulated(args: Namespace, command: str, instead: str = "") -> None:
    """Allow in a simulation what needs a real host: the tools are fake."""
    require_local.check_local(args, command)


require_local.check_real = check_simulated
sys.exit(main())
