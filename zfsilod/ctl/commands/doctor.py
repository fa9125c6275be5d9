"""`zfsiloctl doctor`: what this host lacks for its roles, and what to type. It changes nothing."""

from __future__ import annotations

import re
import shlex
import socket
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zfsilo.v1 import service_pb2 as pb

from zfsilod.ctl import ip_filter, paths, rpc_errors, server_files
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.table import BAD, GOOD, clean, paint
from zfsilod.ctl.require_local import check_local
from zfsilod.host.run import CONSUMER_TOOLS, SERVER_TOOLS, Runner, missing_tools
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.names import split_address

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from zfsilod.config import Config

GIVE_MODULES = ("zfs", "target_core_mod", "target_core_iblock", "iscsi_target_mod")
TAKE_MODULES = ("iscsi_tcp",)
# They restore an earlier configuration of targets at boot, beside ours.
RIVALS = ("rtslib-fb-targetctl.service", "target.service")
ISCSID = "@ISCSIADM_ABSTRACT_NAMESPACE"
LISTENING = "0A"  # TCP_LISTEN
SOON_S = 14 * 86400  # the timer renews earlier: then it does not run
TOOL_S = 20.0
REACH_S = 5.0


class Check(NamedTuple):
    """Something that was looked at; without a sentence it is well."""

    what: str
    wrong: str = ""
    command: str = ""


class Patient:
    """A host, whose files are looked at below a folder: /, or one that a test made."""

    def __init__(self, root: Path = Path("/"), release: str = "") -> None:
        self.root = root
        self.release = release or _release()

    def has_module(self, name: str) -> bool:
        """Tell whether a kernel module is loaded, built in, or there to be loaded."""
        if (self.root / "sys/module" / name).exists():
            return True
        folder = self.root / "lib/modules" / self.release
        stem = f"/{name}.ko"
        return any(stem in _text(folder / each) for each in ("modules.dep", "modules.builtin"))

    def text(self, path: str) -> str:
        """Return what a file holds, or "" where it cannot be read."""
        return _text(self.root / path)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file, or link."""
        return (self.root / path).is_symlink() or (self.root / path).exists()


def doctor(given: Namespace) -> int:
    """Look at all that this host's roles need."""
    check_local(given, "doctor looks")
    checks = list(_examine(given))
    if given.json:
        print(rpc_errors.dumps({"checks": [each._asdict() for each in checks]}))
    else:
        for each in checks:
            _show(each, quiet=given.quiet)
    return FAILED if any(each.wrong for each in checks) else 0


def _show(check: Check, *, quiet: bool) -> None:
    if not check.wrong:
        if not quiet:
            print(f"{paint(GOOD, 'ok ')} {check.what}")
        return
    print(f"{paint(BAD, 'BAD')} {check.what}: {clean(check.wrong)}")
    if check.command:
        print(f"    try: {check.command}")


def _examine(given: Namespace) -> Iterator[Check]:
    from zfsilod import config

    try:
        settings = config.load(paths.etc())
    except ZfsiloError as error:
        yield Check("configuration", error.message, "zfsilod --check-config")
        return
    yield Check(f"configuration in {paths.etc()}")
    simulated = bool(paths.simulation())
    if not simulated:
        patient = Patient()
        if settings.server.root:
            yield from chain(giving(patient), _pool(settings.server.root), _portals(settings))
            yield port(patient)
        if not settings.server.root or servers_here():
            yield from taking(patient)
        yield clock(patient, time.time())
    yield from _certificates()
    yield from chain(_daemon(given), _servers())


def tools(missing: dict[str, str]) -> Iterator[Check]:
    """Tell which packages are not installed, by the tools that are missing."""
    if not missing:
        yield Check("tools")
    for package in dict.fromkeys(missing.values()):
        lacking = ", ".join(tool for tool, source in missing.items() if source == package)
        yield Check(package, f"there is no {lacking} on this host", f"apt install {package}")


def giving(patient: Patient) -> Iterator[Check]:
    """Look at what a storage host needs, of its kernel too, and what would get in its way."""
    yield from tools(missing_tools(SERVER_TOOLS))
    for name in GIVE_MODULES:
        if patient.has_module(name):
            yield Check(f"kernel module {name}")
        else:
            package = "zfs-dkms" if name == "zfs" else f"linux-image-{patient.release}"
            yield Check(f"kernel module {name}", "this kernel has none", f"apt install {package}")
    for name in RIVALS:
        if patient.exists(f"etc/systemd/system/multi-user.target.wants/{name}"):
            yield Check(name, "it restores targets of its own at boot", f"systemctl disable {name}")


def taking(patient: Patient) -> Iterator[Check]:
    """Look at what a consumer needs."""
    for name in TAKE_MODULES:
        wrong = "" if patient.has_module(name) else "this kernel has none"
        yield Check(f"kernel module {name}", wrong)
    missing = missing_tools(CONSUMER_TOOLS)
    yield from tools(missing)
    if "iscsiadm" in missing:
        return
    name = "etc/iscsi/initiatorname.iscsi"
    if "InitiatorName=iqn." in patient.text(name):
        yield Check("initiator name")
    else:
        yield Check(
            "initiator name",
            f"/{name} has none",
            f'echo "InitiatorName=$(iscsi-iname)" > /{name}',
        )
    if ISCSID in patient.text("proc/net/unix"):
        yield Check("iscsid")
    else:
        yield Check("iscsid", "it does not run", "systemctl enable --now iscsid.socket")


def clock(patient: Patient, now: float) -> Check:
    """Look whether the clock can be right: certificates and timestamps need it."""
    made = patient.root / "usr/lib/os-release"
    if made.exists() and now < made.stat().st_mtime:
        return Check("clock", "it is before this system was made", "timedatectl set-ntp true")
    return Check("clock")


def port(patient: Patient) -> Check:
    """Look whether somebody listens at the port for other hosts: zfsilod-tcp.socket."""
    tables = patient.text("proc/net/tcp") + patient.text("proc/net/tcp6")
    if re.search(rf":{paths.PORT:04X} [0-9A-F]+:0000 {LISTENING} ", tables):
        return Check(f"port {paths.PORT}")
    return Check(f"port {paths.PORT}", "no other host can reach this one", "zfsiloctl setup")


def _pool(root: str) -> Iterator[Check]:
    run, pool = Runner(), root.partition("/")[0]
    try:
        health = run(["zpool", "list", "-H", "-o", "health", pool], timeout_s=TOOL_S)
        state = health.stdout.strip()
        worse = "" if state == "ONLINE" else f"it is {state}"
        yield Check(f"pool {pool}", worse, f"zpool status {pool}" if worse else "")
        run(["zfs", "list", "-H", "-o", "name", root], timeout_s=TOOL_S)
        yield Check(f"dataset {root}")
    except ZfsiloError as error:
        command = error.facts.get("package", "")
        yield Check(
            f"pool {pool}",
            error.message,
            f"apt install {command}" if command else f"zpool import {pool} && zfs create {root}",
        )


def _portals(settings: Config) -> Iterator[Check]:
    """Look whether the addresses of the portals are this host's."""
    for portal in settings.server.portals:
        address = portal.rpartition(":")[0].strip("[]")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError:
            yield Check(f"portal {portal}", "this host has no such address", "ip -brief address")
        else:
            yield Check(f"portal {portal}")


def _certificates() -> Iterator[Check]:
    """Look how long our own certificate, and those of our servers, are still good."""
    own = _text(paths.state() / "tls/host.pem")
    if own:
        yield _certificate("own certificate", own, "zfsiloctl pki renew")
    for name in servers_here():
        yield _certificate(
            f"certificate for {name}",
            server_files.read(name).certificate,
            "zfsiloctl pki renew",
        )


def _certificate(what: str, pem: str, command: str) -> Check:
    from zfsilod.security.join_file import expiry

    try:
        left = expiry(pem) - time.time()
    except ZfsiloError as error:
        return Check(what, error.message, command)
    if left < SOON_S:
        when = "has expired" if left < 0 else f"expires in {left / 86400:.0f} days"
        return Check(what, f"it {when}", command)
    return Check(what)


def _daemon(given: Namespace) -> Iterator[Check]:
    try:
        with dial(given) as server:
            found = server.ask(server.api.service.GetStatus, pb.GetStatusRequest())
    except ZfsiloError as error:
        yield Check("zfsilod", error.message, "systemctl enable --now zfsilod.socket")
        return
    yield Check("zfsilod answers")
    if found.attention_count:
        yield Check("volumes", f"{found.attention_count} need attention", "zfsiloctl status")


def _servers() -> Iterator[Check]:
    for name in servers_here():
        known = server_files.read(name)
        try:
            with server_files.channel_to(known) as channel:
                server = Server(channel, f"{name} ({known.address})", REACH_S)
                server.ask(server.api.service.GetServerInfo, pb.GetServerInfoRequest())
        except ZfsiloError as error:
            command = f"on {name}: zfsiloctl setup"
            yield Check(f"server {name}", error.message, command)
        else:
            yield _answering(name, split_address(known.address)[0])


def _answering(name: str, host: str) -> Check:
    """Tell whether a server that answers us may answer the daemon too, which lives in a sandbox."""
    closed = [] if paths.simulation() else ip_filter.blocked(host)
    if not closed:
        return Check(f"server {name} answers")
    return Check(
        f"server {name}",
        f"zfsilod.service may not speak to {', '.join(closed)}",
        shlex.join(ip_filter.permission(closed)),
    )


def servers_here() -> list[str]:
    """Return the servers that this host knows, as far as the caller may see them."""
    try:
        return server_files.names()
    except ZfsiloError:
        return []


def _release() -> str:
    return _text(Path("/proc/sys/kernel/osrelease")).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
