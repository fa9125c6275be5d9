"""`zfsiloctl doctor`: checks the prerequisites of this host, and suggests commands.

It changes nothing.
"""

from __future__ import annotations

import re
import shlex
import socket
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.ctl import ip_filter, paths, server_files
from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import Server, dial
from zfsilod.ctl.failures import FAILED, TIME_PROBLEMS
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import BAD, GOOD, clean, paint
from zfsilod.ctl.require_local import check_local
from zfsilod.ctl.tlshd import missing_for_tls
from zfsilod.ctl.tool_settings import wrong_settings
from zfsilod.host.clock import kernel_is_synchronised
from zfsilod.host.kernel_modules import has_module
from zfsilod.host.portals import canonical, has_address
from zfsilod.host.run import CLIENT_TOOLS, SERVER_TOOLS, Runner, missing_tools
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.names import initiator_name, parse_host_nqn, parse_initiator_name, split_address

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from zfsilod.config import ServerConfig
    from zfsilod.security.join_file import Access

SERVER_MODULES = ("zfs", "target_core_mod", "target_core_iblock", "iscsi_target_mod")
CLIENT_MODULES = ("iscsi_tcp",)
MULTIPATHD = "run/multipathd.pid"
NATIVE_MULTIPATH = "sys/module/nvme_core/parameters/multipath"
SERVER_NVME, CLIENT_NVME = "nvmet_tcp", "nvme_tcp"
SEALED_KEY = "etc/credstore.encrypted/zfsilo.key"
# They restore targets of their own at boot, and first remove all others.
CONFLICTING_UNITS = ("nvmet.service", "rtslib-fb-targetctl.service", "target.service")
HOST_NQN = "etc/nvme/hostnqn"
INITIATOR_NAME = "etc/iscsi/initiatorname.iscsi"
ISCSID = "@ISCSIADM_ABSTRACT_NAMESPACE"
LISTENING = "0A"  # TCP_LISTEN
SOON_S = 14 * 86400  # the timer renews earlier, so it is not running
TOOL_S = 20.0
REACH_S = 5.0
CLOCKS_APART_S = 300


class Prerequisite(NamedTuple):
    """One prerequisite; without a problem it is met."""

    name: str
    problem: str = ""
    command: str = ""


class HostFiles:
    """Files of a host below a directory: / or, in tests, another one."""

    def __init__(self, root: Path = Path("/"), release: str = "") -> None:
        self.root = root
        self.release = release or _text(Path("/proc/sys/kernel/osrelease")).strip()

    def has_module(self, name: str) -> bool:
        """Tell whether a kernel module is loaded, built in, or can be loaded."""
        return has_module(name, root=self.root, release=self.release)

    def text(self, path: str) -> str:
        """Return the content of a file, or "" when it cannot be read."""
        return _text(self.root / path)

    def exists(self, path: str) -> bool:
        """Tell whether a file or a link exists, even a dangling one."""
        return (self.root / path).is_symlink() or (self.root / path).exists()


def doctor(args: Namespace) -> int:
    """Check the prerequisites of this host's roles."""
    check_local(args, "doctor")
    checks = list(_examine(args))
    code = FAILED if any(check.problem for check in checks) else 0
    if args.json:
        print(dumps({"checks": [check._asdict() for check in checks]}))
        return code
    for check in checks:
        if check.problem:
            print(f"{paint(BAD, 'BAD')} {check.name}: {clean(check.problem)}")
            if check.command:
                print(f"    try: {check.command}")
        elif not args.quiet:
            print(f"{paint(GOOD, 'ok ')} {check.name}")
    return code


def _examine(args: Namespace) -> Iterator[Prerequisite]:
    from zfsilod import config

    try:
        settings = config.load(paths.etc(), paths.state())
    except ZfsiloError as error:
        yield Prerequisite("configuration", error.message, "zfsilod --check-config")
        return
    if not (settings.server.root or known_servers() or paths.simulation()):
        yield Prerequisite(
            "role",
            "this host is neither a server nor a client",
            "zfsiloctl setup (a server), or zfsiloctl join FILE (a client)",
        )
    yield Prerequisite(f"configuration in {paths.etc()}")
    if not paths.simulation():
        files = HostFiles()
        if settings.server.root:
            yield from chain(
                server(files), pool_checks(settings.server.root), portals(settings.server)
            )
            yield port(files)
            yield store_key(files)
        if not settings.server.root or known_servers():
            yield from client(files)
        yield from tool_settings(files)
        yield tls(files)
        yield clock(files, time.time(), synchronised=kernel_is_synchronised())
    yield from _identity()
    yield from _certificates()
    yield from chain(_daemon(args), _servers())


def tool_settings(files: HostFiles) -> Iterator[Prerequisite]:
    """Check the settings of other tools that zfsilo cannot work with."""
    wrong = list(wrong_settings(files.text))
    yield from (Prerequisite(*one) for one in wrong)
    if not wrong:
        yield Prerequisite("settings of multipath, LVM and mdadm")


def tools(missing: dict[str, str]) -> Iterator[Prerequisite]:
    """Check the tools; `missing` has the package of each missing tool."""
    if not missing:
        yield Prerequisite("tools")
    for package in dict.fromkeys(missing.values()):
        names = ", ".join(tool for tool, source in missing.items() if source == package)
        yield Prerequisite(package, f"{names} is not installed", f"apt install {package}")


def server(files: HostFiles) -> Iterator[Prerequisite]:
    """Check the tools and kernel modules of a server, and units that conflict with it."""
    yield from tools(missing_tools(SERVER_TOOLS))
    for name in SERVER_MODULES:
        if files.has_module(name):
            yield Prerequisite(f"kernel module {name}")
        else:
            package = "zfs-dkms" if name == "zfs" else f"linux-image-{files.release}"
            yield Prerequisite(
                f"kernel module {name}", "this kernel does not have it", f"apt install {package}"
            )
    yield nvme(files, SERVER_NVME)
    for name in conflicting_units(files):
        yield Prerequisite(name, "it restores other targets at boot", f"systemctl disable {name}")


def nvme(files: HostFiles, name: str) -> Prerequisite:
    """Tell whether a host can use the transport nvme, which it need not."""
    if files.has_module(name):
        return Prerequisite(f"kernel module {name}")
    return Prerequisite(f"transport iscsi only: this kernel does not have {name}")


def tls(files: HostFiles) -> Prerequisite:
    """Tell whether a host can use TLS over nvme, which it need not."""
    missing = missing_for_tls(files)
    return Prerequisite(f"no TLS over nvme: {missing}" if missing else "TLS over nvme")


def conflicting_units(files: HostFiles) -> list[str]:
    """Return the enabled units that restore targets of other tools at boot."""
    wants = "etc/systemd/system/multi-user.target.wants"
    return [name for name in CONFLICTING_UNITS if files.exists(f"{wants}/{name}")]


def client(files: HostFiles) -> Iterator[Prerequisite]:
    """Check the tools, kernel modules and iSCSI configuration of a client."""
    for name in CLIENT_MODULES:
        problem = "" if files.has_module(name) else "this kernel does not have it"
        yield Prerequisite(f"kernel module {name}", problem)
    yield nvme(files, CLIENT_NVME)
    if files.text(NATIVE_MULTIPATH).strip() == "N":
        yield Prerequisite("one path to each disk over nvme: nvme_core.multipath is off")
    missing = missing_tools(CLIENT_TOOLS)
    has_iscsi = "iscsiadm" not in missing
    if not has_iscsi and files.has_module(CLIENT_NVME):
        yield Prerequisite("transport nvme only: iscsiadm is not installed")
        del missing["iscsiadm"]
    yield from tools(missing)
    if not has_iscsi:
        return
    yield initiator(files)
    if not files.text(MULTIPATHD):
        yield Prerequisite("one path to each disk over iscsi: multipathd is not running")
    if ISCSID in files.text("proc/net/unix"):
        yield Prerequisite("iscsid")
    else:
        yield Prerequisite("iscsid", "it is not running", "systemctl enable --now iscsid.socket")


def initiator(files: HostFiles) -> Prerequisite:
    """Check the name by the rule with which a server registers it."""
    replace = f'echo "InitiatorName=$(iscsi-iname)" > /{INITIATOR_NAME}'
    name = parse_initiator_name(files.text(INITIATOR_NAME))
    if not name:
        return Prerequisite("initiator name", f"/{INITIATOR_NAME} has none", replace)
    try:
        initiator_name(name)
    except ZfsiloError as error:
        return Prerequisite("initiator name", error.message, replace)
    return Prerequisite("initiator name")


def clock(files: HostFiles, now: float, *, synchronised: bool) -> Prerequisite:
    """Check that the clock is not before the release of the system, and is synchronised.

    Certificates need the one, retentions the other.
    """
    release = files.root / "usr/lib/os-release"
    if release.exists() and now < release.stat().st_mtime:
        return Prerequisite(
            "clock", "it is before the release of this system", "timedatectl set-ntp true"
        )
    if not synchronised:
        return Prerequisite(
            "clock",
            "it is not synchronised: deleted volumes and ended operations are kept for ever",
            "timedatectl set-ntp true",
        )
    return Prerequisite("clock")


def port(files: HostFiles) -> Prerequisite:
    """Check that zfsilod-tcp.socket, or another process, listens on the port for other hosts."""
    tables = files.text("proc/net/tcp") + files.text("proc/net/tcp6")
    if re.search(rf":{paths.PORT:04X} [0-9A-F]+:0000 {LISTENING} ", tables):
        return Prerequisite(f"port {paths.PORT}")
    return Prerequisite(
        f"port {paths.PORT}",
        "it is closed, so no other host can use this server",
        "systemctl enable --now zfsilod-tcp.socket",
    )


def store_key(files: HostFiles) -> Prerequisite:
    """Tell whether systemd keeps the key of the store, which only encrypted volumes need."""
    if files.exists(SEALED_KEY) and not (paths.state() / "key").exists():
        return Prerequisite("key of the store, kept by systemd")
    return Prerequisite("key of the store, in a file: encrypted volumes need zfsiloctl seal-key")


def pool_checks(root: str) -> Iterator[Prerequisite]:
    """Check that the pool and the dataset root can be used."""
    run, pool = Runner(), root.partition("/")[0]
    name, command = f"pool {pool}", f"zpool import {pool}"
    try:
        listed = run(["zpool", "list", "-H", "-o", "health,readonly", pool], timeout_s=TOOL_S)
        yield _pool_state(pool, *listed.stdout.split())
        if listed.stdout.startswith("SUSPENDED"):
            return  # no dataset can be read
        name, command = f"dataset {root}", f"zfs create -o mountpoint=none {root}"
        key = ["zfs", "get", "-H", "-o", "value", "keystatus,encryptionroot", root]
        done = run(key, timeout_s=TOOL_S, ok=(0, 1))
        state, _, locked = done.stdout.strip().partition("\n")
        if done.rc != 0:
            yield Prerequisite(name, done.stderr.strip(), command)
        elif state == "unavailable":
            yield Prerequisite(name, "its key is not loaded", f"zfs load-key {locked or root}")
        else:
            yield Prerequisite(name)
    except ZfsiloError as error:
        package = error.facts.get("package", "")
        if not package and name == f"pool {pool}" and _lacks_features(run, pool):
            problem = "it uses features that the ZFS of this host does not support"
            yield Prerequisite(name, problem, f"zpool import; zpool import -o readonly=on {pool}")
            return
        yield Prerequisite(name, error.message, f"apt install {package}" if package else command)


def _pool_state(pool: str, health: str = "", readonly: str = "off") -> Prerequisite:
    """Check the health of an imported pool."""
    name = f"pool {pool}"
    if health == "SUSPENDED":
        return Prerequisite(name, "it is suspended: its disks failed", f"zpool clear {pool}")
    if health != "ONLINE":
        return Prerequisite(name, f"it is {health}", f"zpool status {pool}")
    if readonly == "on":
        command = f"zpool export {pool}; zpool import {pool}"
        return Prerequisite(name, "it is imported read-only", command)
    return Prerequisite(name)


def _lacks_features(run: Runner, pool: str) -> bool:
    """Tell whether `zpool import` finds the pool and cannot import it: zpool-features(7)."""
    try:
        listed = run(["zpool", "import"], timeout_s=TOOL_S, ok=(0, 1)).stdout
    except ZfsiloError:
        return False
    sections = re.split(r"(?m)^\s*pool: ", listed)
    return any(
        section.split("\n", 1)[0].strip() == pool and "not supported" in section
        for section in sections[1:]
    )


def portals(server: ServerConfig) -> Iterator[Prerequisite]:
    """Check that the addresses of the portals are addresses of this host."""
    for portal in canonical((*server.portals, *server.nvme_portals)):
        if has_address(portal):
            yield Prerequisite(f"portal {portal}")
        else:
            yield Prerequisite(
                f"portal {portal}", "this host does not have the address", "ip -brief address"
            )


def _identity() -> Iterator[Prerequisite]:
    """Name what differs from the identity that this host had at its first start."""
    from zfsilod import config

    files = HostFiles()
    name = "" if paths.simulation() else parse_initiator_name(files.text(INITIATOR_NAME))
    nqn = "" if paths.simulation() else parse_host_nqn(files.text(HOST_NQN))
    changes = config.identity_changes(paths.etc(), paths.state(), name, nqn)
    if paths.simulation():
        changes = [change for change in changes if change.name in ("host_id", "iqn_prefix")]
    for change in changes:
        yield Prerequisite(change.name.replace("_", " "), change.sentence, change.command)
    if not changes:
        yield Prerequisite("identity")


def _certificates() -> Iterator[Prerequisite]:
    """Check the expiry of this host's own certificate, and of those for its servers."""
    own = _text(paths.state() / "tls/host.pem")
    if own:
        yield _certificate("own certificate", own, "zfsiloctl pki renew", "zfsiloctl pki renew")
    for name in known_servers():
        yield _certificate(
            f"certificate for {name}",
            server_files.read(name).certificate,
            "zfsiloctl pki renew",
            _rejoin(name),
        )


def _certificate(name: str, pem: str, renew: str, replace: str) -> Prerequisite:
    """Check the expiry; a server renews a certificate only while it is valid."""
    from zfsilod.security.join_file import expiry

    try:
        left = expiry(pem) - time.time()
    except ZfsiloError as error:
        return Prerequisite(name, error.message, replace)
    if left < 0:
        return Prerequisite(name, "it has expired", replace)
    if left < SOON_S:
        return Prerequisite(name, f"it expires in {left / 86400:.0f} days", renew)
    return Prerequisite(name)


def _rejoin(name: str) -> str:
    """Return the commands that give this host a new identity at a server."""
    host = socket.gethostname()
    return (
        f"on {name}: zfsiloctl pki issue host {host}; here: zfsiloctl server forget {name}; "
        f"zfsiloctl join {host}.join"
    )


def _daemon(args: Namespace) -> Iterator[Prerequisite]:
    try:
        with dial(args) as daemon:
            status = daemon.ask("GetStatus", pb.GetStatusRequest())
    except ZfsiloError as error:
        denied = error.code == "PERMISSION_DENIED"
        command = "sudo zfsiloctl doctor" if denied else "systemctl enable --now zfsilod.socket"
        yield Prerequisite("zfsilod", error.message, command)
        return
    yield Prerequisite("zfsilod answers")
    for hold in status.server.holds:
        name = "machine" if hold.reason == "OTHER_MACHINE" else "pool"
        yield Prerequisite(name, hold.sentence, hold.command)
    if count := status.attention_count:
        problems = "1 problem" if count == 1 else f"{count} problems"
        yield Prerequisite("volumes", problems, "zfsiloctl status")


def _servers() -> Iterator[Prerequisite]:
    for name in known_servers():
        access = server_files.read(name)
        try:
            channel = server_files.channel_to(access)
            remote = Server(channel, f"{name} ({access.address})", REACH_S)
            info = remote.ask("GetServerInfo", pb.GetServerInfoRequest())
        except ZfsiloError as error:
            yield Prerequisite(f"server {name}", error.message, _reach(error, name, access))
        else:
            yield _filtered(name, split_address(access.address)[0])
            if info.HasField("time"):
                yield compare_clocks(name, info.time.seconds, time.time())


def _reach(error: ZfsiloError, name: str, access: Access) -> str:
    """Return the commands for a server that was not reached, by the kind of failure."""
    host, _port = split_address(access.address)
    if error.code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        if _ahead(error.message):
            return f"timedatectl, on this host and on {name}: certificates are valid by the clock"
        return _rejoin(name)
    if error.reason == "NAME_NOT_RESOLVED":
        return (
            f"getent hosts {host}; add the name to /etc/hosts, or set address in "
            f"{server_files.path_of(name)}"
        )
    if error.reason == "CONNECTION_REFUSED":
        return f"on {name}: systemctl enable --now zfsilod-tcp.socket"
    return f"ping {host}; check the network, and the firewall of {name} for TCP port {paths.PORT}"


def _ahead(message: str) -> bool:
    """Tell whether TLS refused a certificate because of the time."""
    return any(words in message for words in TIME_PROBLEMS)


def compare_clocks(name: str, theirs: float, ours: float) -> Prerequisite:
    """Check that the clocks of a server and of this host agree: certificates need it."""
    check, apart = f"clock of server {name}", abs(theirs - ours)
    if apart <= CLOCKS_APART_S:
        return Prerequisite(check)
    amount = f"{apart / 86400:.0f} days" if apart >= 2 * 86400 else f"{apart / 60:.0f} minutes"
    order = "ahead of" if ours > theirs else "behind"
    return Prerequisite(
        check, f"this host's clock is {amount} {order} it", "timedatectl set-ntp true"
    )


def _filtered(name: str, host: str) -> Prerequisite:
    """Check that the unit of the daemon allows it to reach a server that answers zfsiloctl."""
    addresses = [] if paths.simulation() else ip_filter.blocked(host)
    if not addresses:
        return Prerequisite(f"server {name} answers")
    return Prerequisite(
        f"server {name}",
        f"zfsilod.service may not reach {', '.join(addresses)}",
        shlex.join(ip_filter.permission(addresses)),
    )


def known_servers() -> list[str]:
    """Return the names of the known servers, if the caller may read them."""
    try:
        return server_files.names()
    except ZfsiloError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
