"""zfsiloctl for the blocks of the documentation: commands for a real host run in a simulation."""

import sys
from argparse import Namespace

from zfsilod.ctl import main, require_local


def check_simulated(args: Namespace, command: str, instead: str = "") -> None:
    """Allow commands that need a real host in a simulation, whose tools are fake."""
    require_local.check_local(args, command)


require_local.check_real = check_simulated
sys.exit(main())
