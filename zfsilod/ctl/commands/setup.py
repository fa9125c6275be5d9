"""`zfsiloctl setup`: configures a host as a server or a client.

It creates the root dataset, the configuration and the certificate, and enables units. It asks only
for what it cannot find out.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.ctl import paths
from zfsilod.ctl.commands.doctor import HostFiles, conflicting_units
from zfsilod.ctl.confirm import confirmed
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.require_local import check_real
from zfsilod.host.run import Runner
from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
)
from zfsilod.model.names import check_portal, is_dataset, is_portal, join_portal, portal_parts
from zfsilod.security import kept_identity

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path


TOOL_S = 60.0
UNIT_S = 240.0  # zfsilod.service may take 90 s to stop, and 120 s to start
PORTAL_PORT, NVME_PORT, NVME_TLS_PORT = 3260, 4420, 4421
SERVER_UNITS = ("zfsilod.socket", "zfsilod-tcp.socket", "zfsilod.service", "zfsilo-renew.timer")
CLIENT_UNITS = ("zfsilod.socket", "zfsilod.service", "zfsilo-renew.timer")


class SetupPlan(NamedTuple):
    """The changes that setup makes."""

    root: str  # "": a client
    portals: tuple[str, ...]
    file: Path | None  # the configuration file to write, if any
    creates_root: bool

    @property
    def nvme_portals(self) -> tuple[str, ...]:
        """The addresses of the portals with the port of NVMe/TCP."""
        addresses = (portal_parts(portal)[0] for portal in self.portals)
        return tuple(dict.fromkeys(join_portal(address, NVME_PORT) for address in addresses))


def setup(args: Namespace) -> int:
    """Configure this host, after confirmation."""
    check_real(args, "setup")
    if os.geteuid() != 0:
        raise PermissionDenied("setup needs root; use sudo", reason="NOT_ROOT")
    run = Runner()
    plan = make_plan(args, run)
    if plan.root:
        root = "will be created" if plan.creates_root else "exists"
        print(f"server: serves volumes below {plan.root}, which {root}")
    else:
        print("client: uses volumes of other servers")
    if plan.file is not None:
        print(f"  writes   {plan.file}")
    print(f"  enables  {' '.join(SERVER_UNITS if plan.root else CLIENT_UNITS)}")
    for name in conflicting_units(HostFiles()) if plan.root else ():
        print(f"  leaves   {name}, which restores targets of other tools at boot; without such")
        print(f"           targets: systemctl disable {name}")
    if args.dry_run:
        return 0
    if not args.yes and not confirmed("Continue?", default=True):
        return FAILED
    try:
        carry_out(plan, run)
    except (CommandFailed, Unavailable) as error:
        raise type(error)(
            f"{error.message}; the setup is not complete: repeat it, and it goes on from there",
            reason=error.reason,
            **error.facts,
        ) from error
    _show_next(plan)
    return 0


def make_plan(args: Namespace, run: Runner) -> SetupPlan:
    """Return the changes that this host needs. Changes nothing itself."""
    from zfsilod import config

    settings = config.load(paths.etc(), paths.state())
    if args.client:
        return SetupPlan("", (), None, creates_root=False)
    root = args.root or settings.server.root or f"{the_pool(run)}/zfsilo"
    if settings.server.root not in ("", root):
        raise AlreadyExists(
            f"this host already serves volumes below {settings.server.root}; it cannot also serve "
            f"{root}",
            reason="SET_UP",
        )
    if not is_dataset(root):
        raise InvalidArgument(f"invalid dataset name {root[:80]!r}", reason="BAD_DATASET")
    portals = tuple(paths.with_port(address, PORTAL_PORT) for address in args.portal)
    wrong = next((portal for portal in portals if not is_portal(portal)), None)
    if wrong is not None:
        raise InvalidArgument(f"invalid portal address {wrong[:80]!r}", reason="BAD_PORTAL")
    portals = tuple(dict.fromkeys(map(check_portal, portals)))
    for portal in portals:
        if portal_parts(portal)[1] in (NVME_PORT, NVME_TLS_PORT):
            raise InvalidArgument(
                f"{portal} is for targets over iscsi, and its port is one of those over nvme: use "
                "another port",
                reason="BAD_PORTAL",
            )
    main, beside = paths.etc() / "zfsilod.toml", paths.etc() / "zfsilod.toml.d/setup.toml"
    file: Path | None = beside if main.exists() else main  # an existing file is never overwritten
    if settings.server.root and portals in ((), settings.settings.export.portals):
        file = None
    return SetupPlan(root, portals, file, creates_root=not _exists(run, root))


def the_pool(run: Runner) -> str:
    """Return the only pool of this host. Raises FailedPrecondition or InvalidArgument."""
    listed = run(["zpool", "list", "-H", "-o", "name,health"], timeout_s=TOOL_S).stdout
    pools = [line.split("\t")[0] for line in listed.splitlines() if line.endswith("\tONLINE")]
    if not pools:
        raise FailedPrecondition(
            "this host has no pool that is ONLINE; create one with zpool create, or pass --client "
            "if it only uses volumes of other servers",
            reason="NO_POOL",
        )
    if len(pools) > 1:
        raise InvalidArgument(
            f"this host has several pools ({', '.join(pools)}); choose one, as in --root "
            f"{pools[0]}/zfsilo",
            reason="WHICH_POOL",
        )
    return pools[0]


def carry_out(plan: SetupPlan, run: Runner) -> None:
    """Make the changes; a repeated call completes what an earlier one left."""
    from zfsilod import config
    from zfsilod.ctl.commands import pki

    if plan.creates_root:
        run(["zfs", "create", "-o", "mountpoint=none", plan.root], timeout_s=TOOL_S)
    if plan.file is not None:
        plan.file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # A list of strings is written the same way in JSON and in TOML.
        portals = f"portals = {json.dumps(plan.portals)}\n" if plan.portals else ""
        if plan.portals:
            portals += f"nvme_portals = {json.dumps(plan.nvme_portals)}\n"
        plan.file.write_text(
            "# Written by zfsiloctl setup; see zfsilod.toml(5).\n"
            f'[server]\nroot = "{plan.root}"\n{portals}'
        )
        plan.file.chmod(0o644)
    settings = config.load(paths.etc(), paths.state()).settings
    paths.state().mkdir(mode=0o700, parents=True, exist_ok=True)
    kept_identity.keep(paths.state(), config.identity(settings, "", ""))
    if plan.root:
        pki.ensure()
    units = SERVER_UNITS if plan.root else CLIENT_UNITS
    run(["systemctl", "enable", *units], timeout_s=UNIT_S)
    # The daemon may have started before it was configured. A restart keeps exports and mounts, and
    # starts the sockets.
    run(["systemctl", "restart", "zfsilod.service", "zfsilo-renew.timer"], timeout_s=UNIT_S)


def _exists(run: Runner, dataset: str) -> bool:
    """Tell whether a dataset exists. Raises CommandFailed when its pool does not."""
    pool = dataset.partition("/")[0]
    run(["zfs", "list", "-H", "-o", "name", "-t", "filesystem", pool], timeout_s=TOOL_S)
    try:
        listed = run(["zfs", "list", "-H", "-o", "name", dataset], timeout_s=TOOL_S)
    except CommandFailed as error:
        if "does not exist" in error.facts.get("stderr", ""):
            return False
        raise
    return bool(listed.stdout)


def _show_next(plan: SetupPlan) -> None:
    if not plan.root:
        print("\nNext: get a join file from a server, then on this host:")
        print("  zfsiloctl join FILE")
        print("Check this host with: zfsiloctl doctor")
        return
    name = socket.gethostname()
    print("\nNext, for a client called take:")
    print(f"  on this host:  zfsiloctl pki issue host take --address {name}")
    print("  copy take.join, which is secret, to take")
    print("  on take:       zfsiloctl join take.join")
    print("  on this host:  zfsiloctl volume create data 10G --host take")
    print("  on take:       zfsiloctl volume attach data /srv/data")
    print("Check this host with: zfsiloctl doctor")
