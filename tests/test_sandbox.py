"""Every step's sandbox allows what the step does, by the code of the adapters that it calls.

No root and no systemd is needed: tools and paths are read from the source of every function that a
step can reach. A method call on an unknown object may mean every method of that name, so a step may
seem to do more than it does, never less. What systemd makes of the settings is in tests/systemd/.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, get_args

import pytest

from tests.examples import steps
from zfsilod import host
from zfsilod.engine.step import HostStep
from zfsilod.host.block import RealBlock
from zfsilod.host.io_limits import GROUPS, RealIoLimits
from zfsilod.host.iscsi import RealIscsi
from zfsilod.host.keys import RealKeys
from zfsilod.host.lio import RealLio
from zfsilod.host.mount import RealMounts
from zfsilod.host.nvme import RealNvme
from zfsilod.host.nvmet import RealNvmet
from zfsilod.host.real import RealHost
from zfsilod.host.replicas import RealReplicas
from zfsilod.host.run import TOOLS, Runner
from zfsilod.host.snapshots import RealSnapshots
from zfsilod.host.zfs import RealZfs
from zfsilod.model.record import CLASSES, Record
from zfsilod.model.words import SandboxPart
from zfsilod.systemd.sandbox import ALWAYS, OWN_PATHS, PERMISSIONS, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ADAPTERS = {
    "zfs": RealZfs,
    "snapshots": RealSnapshots,
    "keys": RealKeys,
    "replicas": RealReplicas,
    "lio": RealLio,
    "nvmet": RealNvmet,
    "limits": RealIoLimits,
    "iscsi": RealIscsi,
    "nvme": RealNvme,
    "block": RealBlock,
    "mounts": RealMounts,
}
# The functions of host/transports.py, and a variable, by which a step names several adapters.
ANY_ADAPTER = {
    "target_adapter": ("lio", "nvmet"),
    "export_paths": ("lio", "nvmet"),
    "session_adapter": ("iscsi", "nvme"),
    "adapter": ("iscsi", "nvme"),
}
PARTS: tuple[SandboxPart, ...] = get_args(SandboxPart)


class Need(Record):
    """What a tool or a function needs from the sandbox."""

    capabilities: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    host_mounts: bool = False  # the host's mount namespace, and its directories as they are


NOTHING = Need()  # a block device and AF_UNIX are in every sandbox
ADMIN = Need(capabilities=("CAP_SYS_ADMIN",))
MOUNT = Need(capabilities=("CAP_SYS_ADMIN",), calls=("@mount",), host_mounts=True)
INTERNET = Need(families=("AF_INET", "AF_INET6"))
INTERNET_NAMES = {"AF_INET", "AF_INET6", "create_connection"}  # attributes of the module socket
TOOL_NEEDS = {
    "zfs": ADMIN,  # ioctls of /dev/zfs
    "zpool": ADMIN,
    "modprobe": Need(capabilities=("CAP_SYS_MODULE",), calls=("@module",)),
    # It loads iscsi_tcp, and reads the handle of a transport.
    "iscsiadm": Need(
        capabilities=("CAP_SYS_ADMIN", "CAP_SYS_MODULE"),
        calls=("@module",),
        paths=("/etc/iscsi", "/var/lib/iscsi", "/run/lock"),
    ),
    "dmsetup": ADMIN,
    # It removes maps where multipathd does not run, and WWIDs.
    "multipath": Need(capabilities=("CAP_SYS_ADMIN",), paths=("/etc/multipath",)),
    "multipathd": NOTHING,  # by its abstract socket
    "mount": MOUNT,
    "umount": MOUNT,
    "unshare": MOUNT,
    "resize2fs": Need(capabilities=("CAP_SYS_ADMIN", "CAP_SYS_RESOURCE")),
    "xfs_growfs": ADMIN,
    "systemctl": NOTHING,
    "udevadm": NOTHING,
    "blkid": NOTHING,
    "e2fsck": NOTHING,
    "mkfs.ext4": NOTHING,
    "mkfs.xfs": NOTHING,
    "tune2fs": NOTHING,
    "xfs_admin": NOTHING,
    "xfs_repair": NOTHING,
}
MODULE_NEEDS = {
    # Threads are moved, and limits are set, by writes.
    "zfsilod.host.io_limits": Need(paths=(GROUPS,)),
    # configfs shows and takes secrets with this capability only.
    "zfsilod.host.configfs": Need(capabilities=("CAP_SYS_ADMIN",), paths=("/sys/kernel/config",)),
    # Mount points are made in directories of any user.
    "zfsilod.host.mountpoints": Need(
        capabilities=("CAP_DAC_OVERRIDE", "CAP_FOWNER"), host_mounts=True
    ),
    # Open files of processes of any user are read.
    "zfsilod.host.device_users": Need(capabilities=("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")),
    "zfsilod.host.processes": Need(capabilities=("CAP_SYS_PTRACE",)),
    # Secrets of sessions are read from sysfs and set by netlink.
    "zfsilod.host.kernel_session": ADMIN,
    "zfsilod.host.session_secrets": ADMIN,
}
READ_ONLY = {
    "/etc/iscsi/initiatorname.iscsi",
    "/run",  # the database of udev, below /run/udev
    "/run/udev/data",
    "/",  # where the path of a mount point starts
    "/usr/sbin:/usr/bin:/sbin:/bin",
}
"""Constants of the adapters that are read, never written below."""


def reachable(kind: type[HostStep], *, made: bool = True) -> set[FunctionType]:
    """Return every function of zfsilod.host that a step can reach by its adapters.

    `made`: also all functions of the classes that an adapter is made of, called or not.
    """
    functions: set[FunctionType] = set()
    waiting = [one for one in entries(kind) if made or one.__name__ != "__init__"]
    while waiting:
        function = waiting.pop()
        if function not in functions:
            functions.add(function)
            waiting += callees(function)
    return functions


def entries(kind: type[HostStep]) -> Iterator[FunctionType]:
    """Yield the adapter functions that the methods of a step name: host.lio.add_target."""
    for _name, method in inspect.getmembers(kind, inspect.isfunction):
        for node in ast.walk(tree(method)):
            match node:
                case ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id="host"), attr=adapter), attr=name
                ):
                    yield from functions_of((adapter,), name)
                case ast.Attribute(value=ast.Call(func=ast.Name(id=function)), attr=name):
                    yield from functions_of(ANY_ADAPTER.get(function, ()), name)
                case ast.Attribute(value=ast.Name(id="adapter"), attr=name):
                    yield from functions_of(ANY_ADAPTER["adapter"], name)
                case ast.Call(func=ast.Name(id="export_paths")):
                    yield from functions_of(ANY_ADAPTER["export_paths"], "export_paths")


def functions_of(adapters: tuple[str, ...], name: str) -> Iterator[FunctionType]:
    """Yield a method of these adapters, and what makes the adapters."""
    for adapter in adapters:
        if adapter == "key_store":
            continue  # zfsilo's own store
        yield getattr(ADAPTERS[adapter], name)
        yield getattr(ADAPTERS[adapter], "__init__")  # noqa: B009 - mypy objects to it


@cache
def callees(function: FunctionType) -> tuple[FunctionType, ...]:
    """Return the functions of zfsilod.host that a function names, by any attribute or variable."""
    functions: list[FunctionType] = []
    for node in ast.walk(tree(function)):
        if isinstance(node, ast.Name):
            functions += members(function.__globals__.get(node.id))
        elif isinstance(node, ast.ImportFrom):  # an import that is put off until it is needed
            module = import_module(str(node.module))
            functions += [f for alias in node.names for f in members(getattr(module, alias.name))]
        elif isinstance(node, ast.Attribute):
            functions += attributes(function, node)
    return tuple(functions)


def members(named: object) -> list[FunctionType]:
    """Return a function of zfsilod.host, or all functions of a class of it."""
    if isinstance(named, type) and is_hosts(named) and not issubclass(named, BaseException):
        return [item for item in map(unwrapped, vars(named).values()) if item is not None]
    single = unwrapped(named)
    return [single] if single is not None and is_hosts(single) else []


def attributes(function: FunctionType, node: ast.Attribute) -> list[FunctionType]:
    """Return the methods that an attribute may mean: of the own class for `self`, else of any."""
    own = owner(function)
    if isinstance(node.value, ast.Name) and node.value.id == "self" and own is not None:
        classes = [own]
    elif isinstance(node.value, ast.Name) and isinstance(
        function.__globals__.get(node.value.id), ModuleType
    ):
        return members(getattr(function.__globals__[node.value.id], node.attr, None))
    else:
        classes = helpers()
    methods = (unwrapped(inspect.getattr_static(kind, node.attr, None)) for kind in classes)
    return [method for method in methods if method is not None and is_hosts(method)]


def owner(function: FunctionType) -> type | None:
    """Return the class of zfsilod.host in which a function is defined."""
    name = function.__qualname__.partition(".")[0]
    kind = function.__globals__.get(name)
    return kind if isinstance(kind, type) else None


@cache
def helpers() -> list[type]:
    """Return the classes that adapters use: neither adapters themselves nor the tools' runner."""
    names = [item.name for item in pkgutil.iter_modules(host.__path__) if not item.ispkg]
    modules = [import_module(f"zfsilod.host.{name}") for name in names]
    classes = {item for module in modules for item in vars(module).values() if is_class(item)}
    return [*(classes - {*ADAPTERS.values(), RealHost, Runner})]


def is_class(item: object) -> bool:
    return isinstance(item, type) and is_hosts(item)


def is_hosts(item: Any) -> bool:
    module = str(getattr(item, "__module__", ""))
    return module.startswith("zfsilod.host.") and module != "zfsilod.host.run"


def unwrapped(item: object) -> FunctionType | None:
    """Return the function in a property, a class method or a context manager."""
    item = getattr(item, "fget", None) or getattr(item, "__func__", item)
    item = inspect.unwrap(item) if callable(item) else item
    return item if isinstance(item, FunctionType) else None


@cache
def tree(function: FunctionType) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def constants(function: FunctionType) -> set[str]:
    """Return the texts and paths in a function, and in the constants that it names."""
    texts: set[str] = set()
    nodes = list(ast.walk(tree(function)))
    parts = {
        id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values[1:]
    }
    for node in nodes:
        if id(node) in parts:
            continue  # the rest of an f-string is no path of its own
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
        elif isinstance(node, ast.Name):
            texts |= set(flat(function.__globals__.get(node.id)))
    return texts


def flat(value: object) -> Iterator[str]:
    """Yield the texts and paths of a constant, at any depth."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, tuple | list | dict):
        for item in value:
            yield from flat(item)
        yield from flat(list(value.values()) if isinstance(value, dict) else None)


@cache
def needs(kind: type[HostStep]) -> dict[str, Need]:
    """Return the needs of a step, by the tool, module or path that needs it."""
    needed: dict[str, Need] = {}
    called = reachable(kind, made=False)
    for function in reachable(kind):
        if function.__module__ in MODULE_NEEDS:
            needed[function.__module__] = MODULE_NEEDS[function.__module__]
        names = {node.attr for node in ast.walk(tree(function)) if isinstance(node, ast.Attribute)}
        if INTERNET_NAMES & names and function in called:
            needed["sockets of the internet"] = INTERNET
        for text in constants(function):
            if text in TOOLS:
                needed[text] = TOOL_NEEDS[text]
            elif text.startswith("/") and text not in READ_ONLY and " " not in text:
                needed[text] = Need(paths=(text,))
    return needed


def lacking(need: Need, allowed: dict[str, str]) -> Iterator[str]:
    """Yield the parts of a need that a sandbox does not allow."""
    capabilities = allowed["CapabilityBoundingSet"].split()
    yield from (name for name in need.capabilities if name not in capabilities)
    yield from (name for name in need.calls if name not in allowed["SystemCallFilter"].split())
    families = allowed["RestrictAddressFamilies"].split()
    yield from (name for name in need.families if name not in families)
    if "@module" in need.calls and allowed.get("ProtectKernelModules") == "yes":
        yield "ProtectKernelModules=no"
    strict = allowed.get("ProtectSystem") == "strict"
    writable = [path.lstrip("-") for path in allowed.get("ReadWritePaths", "").split()]
    if "ProtectKernelTunables" not in allowed:
        writable += ["/proc", "/sys"]
    if allowed.get("ProtectControlGroups") == "yes" and GROUPS in need.paths:
        yield "ProtectControlGroups=no"
    writable.append("/dev")
    for path in need.paths if strict else ():
        if not any(Path(path).is_relative_to(place) for place in writable):
            yield path
    if need.host_mounts and strict:
        yield "the host's mount namespace"


KINDS = sorted({type(step) for step in steps()}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_sandbox_of_a_step_allows_what_it_does(kind: type[HostStep]) -> None:
    allowed = settings([kind.part])
    refused = {name: list(lacking(need, allowed)) for name, need in needs(kind).items()}
    assert needs(kind), "no tool and no path: the step does nothing"
    assert {name: texts for name, texts in refused.items() if texts} == {}


def test_all_steps_are_tested() -> None:
    tagged = {kind for kind in CLASSES.values() if issubclass(kind, HostStep)}
    assert tagged == set(KINDS)


def test_every_tool_and_module_is_reached() -> None:
    names = {name for kind in KINDS for name in needs(kind)}
    assert {*TOOL_NEEDS, *MODULE_NEEDS} <= names


@pytest.mark.parametrize("part", PARTS)
def test_no_part_has_a_permission_that_no_step_needs(part: SandboxPart) -> None:
    needed = [need for kind in KINDS if kind.part == part for need in needs(kind).values()]
    for field in ("capabilities", "calls", "paths", "families"):
        allowed = set(getattr(PERMISSIONS[part], field))
        assert allowed <= {name for need in needed for name in getattr(need, field)}
    assert PERMISSIONS[part].mounts == any(need.host_mounts for need in needed)
    assert PERMISSIONS[part].groups == any(GROUPS in need.paths for need in needed)


def test_a_permission_that_is_taken_away_is_missed() -> None:
    zvol = next(kind for kind in KINDS if kind.__name__ == "Zvol")
    mount = next(kind for kind in KINDS if kind.__name__ == "StagingMount")
    node = next(kind for kind in KINDS if kind.__name__ == "Node")
    portals = next(kind for kind in KINDS if kind.__name__ == "Portals")
    limited = next(kind for kind in KINDS if kind.__name__ == "Limited")
    cases = [
        (zvol, settings(["POOL"]) | {"CapabilityBoundingSet": ""}, "CAP_SYS_ADMIN"),
        (mount, settings(["POOL"]), "@mount"),
        (mount, settings(["POOL", "INITIATOR"]), "the host's mount namespace"),
        (node, settings(["INITIATOR"]) | {"ReadWritePaths": " ".join(OWN_PATHS)}, "/etc/iscsi"),
        (node, settings(["POOL"]), "CAP_SYS_MODULE"),
        (portals, settings(["POOL"]), "AF_INET"),
        (
            limited,
            settings(["TARGET"]) | {"ProtectControlGroups": "yes"},
            "ProtectControlGroups=no",
        ),
    ]
    for kind, allowed, text in cases:
        assert text in [lack for need in needs(kind).values() for lack in lacking(need, allowed)]


def test_no_sandbox_has_an_option_that_stops_every_worker() -> None:
    """Block devices are opened and configfs is written, so these options stay away."""
    for part in PARTS:
        assert not {"PrivateDevices", "ProtectKernelTunables", "IPAddressDeny"} & set(
            settings([part]) | ALWAYS
        )
