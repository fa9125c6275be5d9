"""`zfsiloctl setup`: from a pool, or from nothing, to a configured host, and what to type next.

It asks for nothing that it can find out. It makes the dataset root, the configuration and the
certificate, and enables units: what an administrator would type by hand before there is a daemon.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.ctl import paths
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.require_local import check_real
from zfsilod.host.run import Runner
from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
)
from zfsilod.model.names import DATASET, is_portal

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from zfsilod.config import Config

TOOL_S = 60.0
PORTAL_PORT = 3260
GIVE_UNITS = ("zfsilod.socket", "zfsilod-tcp.socket", "zfsilod.service", "zfsilo-renew.timer")
TAKE_UNITS = ("zfsilod.socket", "zfsilod.service", "zfsilo-renew.timer")


class Plan(NamedTuple):
    """What setup is going to do."""

    root: str  # "": a consumer
    portals: tuple[str, ...]
    file: Path | None  # the configuration to be written; None: it says so already
    makes_root: bool


def setup(given: Namespace) -> int:
    """Configure this host, after a question on a terminal."""
    check_real(given, "setup works")
    if os.geteuid() != 0:
        raise PermissionDenied("setup is for root: use sudo", reason="NOT_ROOT")
    run = Runner()
    plan = make_plan(given, run)
    _tell(plan)
    if given.dry_run:
        return 0
    if not given.yes and not _agreed():
        sys.stderr.write("zfsiloctl: nothing was changed\n")
        return FAILED
    carry_out(plan, run)
    _what_next(plan)
    return 0


def make_plan(given: Namespace, run: Runner) -> Plan:
    """Find out what is there, and decide what is missing. Changes nothing."""
    from zfsilod import config

    settings = config.load(paths.etc())
    if given.take:
        return Plan("", (), None, makes_root=False)
    root = given.root or settings.server.root or f"{the_pool(run)}/zfsilo"
    if settings.server.root not in ("", root):
        raise AlreadyExists(
            f"this host serves volumes below {settings.server.root} already, not below {root}",
            reason="SET_UP",
        )
    if not DATASET.fullmatch(root):
        raise InvalidArgument(f"{root[:80]!r} is no dataset name", reason="BAD_DATASET")
    portals = tuple(paths.with_port(each, PORTAL_PORT) for each in given.portal)
    wrong = next((each for each in portals if not is_portal(each)), None)
    if wrong is not None:
        raise InvalidArgument(f"{wrong[:80]!r} is no address", reason="BAD_PORTAL")
    return Plan(root, portals, _file(settings, portals), makes_root=not _exists(run, root))


def _file(settings: Config, portals: tuple[str, ...]) -> Path | None:
    """Return where what is missing in the configuration goes: never over what is there."""
    if settings.server.root and portals in ((), tuple(settings.server.portals)):
        return None
    main = paths.etc() / "zfsilod.toml"
    return paths.etc() / "zfsilod.toml.d/setup.toml" if main.exists() else main


def the_pool(run: Runner) -> str:
    """Return the one pool that there is, else raise an error that says what to type."""
    listed = run(["zpool", "list", "-H", "-o", "name,health"], timeout_s=TOOL_S).stdout
    pools = [line.split("\t")[0] for line in listed.splitlines() if line.endswith("\tONLINE")]
    if not pools:
        raise FailedPrecondition(
            "there is no pool ONLINE on this host: make one (zpool create), or say --take for a "
            "host that only uses volumes of others",
            reason="NO_POOL",
        )
    if len(pools) > 1:
        raise InvalidArgument(
            f"there are several pools, {', '.join(pools)}: say --root {pools[0]}/zfsilo",
            reason="WHICH_POOL",
        )
    return pools[0]


def carry_out(plan: Plan, run: Runner) -> None:
    """Do what the plan says; what was done by an earlier call stays."""
    from zfsilod import config
    from zfsilod.ctl.commands import pki

    if plan.makes_root:
        run(["zfs", "create", "-o", "mountpoint=none", plan.root], timeout_s=TOOL_S)
    if plan.file is not None:
        plan.file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        plan.file.write_text(_configuration(plan))
        plan.file.chmod(0o644)
    config.load(paths.etc())
    if plan.root:
        pki.ensure()
    units = GIVE_UNITS if plan.root else TAKE_UNITS
    run(["systemctl", "enable", *units], timeout_s=TOOL_S)
    # It may have run before it was configured. What it exports and mounts stays, and its sockets
    # come in with it.
    run(["systemctl", "restart", "zfsilod.service", "zfsilo-renew.timer"], timeout_s=TOOL_S)


def _configuration(plan: Plan) -> str:
    lines = [
        "# Written by zfsiloctl setup; see zfsilod.toml(5).",
        "[server]",
        f'root = "{plan.root}"',
    ]
    if plan.portals:
        lines.append(f"portals = [{', '.join(f'{each!r}' for each in plan.portals)}]")
    return "\n".join(lines).replace("'", '"') + "\n"


def _exists(run: Runner, dataset: str) -> bool:
    """Tell whether a dataset is there. Its pool must be."""
    pool = dataset.partition("/")[0]
    listed = run(["zfs", "list", "-H", "-o", "name", "-t", "filesystem", pool], timeout_s=TOOL_S)
    try:
        listed = run(["zfs", "list", "-H", "-o", "name", dataset], timeout_s=TOOL_S)
    except CommandFailed as error:
        if "does not exist" in error.facts.get("stderr", ""):
            return False
        raise
    return bool(listed.stdout)


def _tell(plan: Plan) -> None:
    if not plan.root:
        print("this host shall use volumes of others")
    else:
        made = "will be made" if plan.makes_root else "is there"
        print(f"this host shall serve volumes below {plan.root}, which {made}")
    if plan.file is not None:
        print(f"  writes   {plan.file}")
    print(f"  enables  {' '.join(GIVE_UNITS if plan.root else TAKE_UNITS)}")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidArgument("nobody is here to agree: add --yes", reason="UNCONFIRMED")
    sys.stderr.write("Go on? [Y/n] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


def _what_next(plan: Plan) -> None:
    name = socket.gethostname()
    if plan.root:
        print("\nNow, for a first consumer called take:")
        print(f"  here:        zfsiloctl pki issue host take --address {name}")
        print("  copy take.join over there; it is a secret")
        print("  over there:  zfsiloctl join take.join")
        print("  here:        zfsiloctl volume create data 10G --host take")
        print("  over there:  zfsiloctl volume attach data /srv/data")
    else:
        print("\nNow get a join file from a storage host, and here:")
        print("  zfsiloctl join FILE")
