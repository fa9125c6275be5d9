"""The transient unit of an operation, as D-Bus properties: org.freedesktop.systemd1(5).

The settings of its sandbox come from sandbox.py as a unit file has them, and become D-Bus values
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbus_next import Variant

from zfsilod.engine.steps.replica import ReceivedSnapshot
from zfsilod.host.run import DEBUG_VARIABLE
from zfsilod.model.records import journal_fields
from zfsilod.storage.secrets import CREDENTIAL
from zfsilod.systemd.sandbox import ALWAYS, NAMESPACED, sandbox, settings

if TYPE_CHECKING:
    from zfsilod.model.records import Operation

BATCH_TIMES = 10  # how much longer a batch may take than one operation
READER_S = 7 * 24 * 3600  # the longest time that one stream may take
READER_BYTES = 256 << 20
STREAM_S = 20 * 24 * 3600  # the longest time of one stream
DIALER_FLAGS = (
    "DynamicUser",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateUsers",
    "ProtectClock",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "RemoveIPC",
)
DIALER_HIDDEN = ("-/etc/zfsilo", "-/var/lib/zfsilo", "-/run/zfsilo", "-/run/dbus")
DIALER = (
    ALWAYS
    | NAMESPACED
    | {
        "CapabilityBoundingSet": "",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",  # the last for the names of hosts
        "RestrictNamespaces": "yes",
        "SystemCallFilter": "@system-service",
    }
)
READER_WEIGHT = 20  # of the processors; other units have 100
NAMED = 7  # others of a batch whose names each line of the unit's journal has
NUMBERS = {  # capabilities(7)
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
}
NAMESPACES = {"yes": 0, "mnt": 0x20000}  # those that stay allowed: CLONE_NEWNS
ERRORS = {"EPERM": 1}


def unit_name(unit: str) -> str:
    """Return the name of the transient unit of an operation, or of a batch of them."""
    return f"zfsilo-op-{unit}.service"


def rollback_name(unit: str) -> str:
    """Return the name of its rollback unit, an instance of the template on disk."""
    return f"zfsilo-rollback@{unit}.service"


def properties(
    operation: Operation,
    *others: Operation,
    worker: str,
    timeout_s: int,
    sealed: bool,
    debug: bool = False,
) -> list[list[Any]]:
    """Return the properties of the unit of an operation, and of the others of its batch.

    `sealed`: systemd keeps the key of the store. Passing it takes time, so only operations with
    secrets get it. All operations of a batch need the sandbox of the first.
    There are no default dependencies, because systemd refuses such units during shutdown.
    `debug`: the worker writes each command that it runs to the journal.
    """
    extra = [
        f"{name}={value}".encode()
        for one in (operation, *others[:NAMED])
        for name, value in _fields(one).items()
    ]
    command = [worker, "run", operation.unit]
    more = f" and {len(others)} more" if others else ""
    limit_us = timeout_s * 1_000_000 * (BATCH_TIMES if operation.batch else 1)
    if any(isinstance(action.step, ReceivedSnapshot) and action.up for action in operation.actions):
        limit_us = STREAM_S * 1_000_000
    actions = (action for one in (operation, *others) for action in one.actions)
    opens = sealed and any(action.step.resources().secrets for action in actions)
    allowed = sandbox(action.step for action in operation.actions)
    return [
        ["Description", Variant("s", f"zfsilo: {operation.title}{more}")],
        ["Type", Variant("s", "oneshot")],
        ["ExecStart", Variant("a(sasb)", [[worker, command, False]])],
        ["OnFailure", Variant("as", [rollback_name(operation.unit)])],
        ["CollectMode", Variant("s", "inactive-or-failed")],
        ["TimeoutStartUSec", Variant("t", limit_us)],
        ["TimeoutStopUSec", Variant("t", limit_us)],
        ["Slice", Variant("s", "zfsilo.slice")],
        ["DefaultDependencies", Variant("b", False)],  # noqa: FBT003 - the wire has no keywords
        [
            "LogExtraFields",
            Variant("aay", extra),
        ],
        *([["LoadCredentialEncrypted", Variant("a(ss)", [[CREDENTIAL] * 2])]] if opens else []),
        *([["Environment", Variant("as", [f"{DEBUG_VARIABLE}=1"])]] if debug else []),
        *([name, on_the_wire(name, value)] for name, value in allowed.items()),
    ]


def reader_name(ticket: str) -> str:
    """Return the name of the transient unit that reads the blocks of a snapshot."""
    return f"zfsilo-blocks-{ticket}.service"


def sender_name(ticket: str) -> str:
    """Return the name of the transient unit that runs zfs send for a stream."""
    return f"zfsilo-send-{ticket}.service"


def dialer_name(ticket: str) -> str:
    """Return the name of the transient unit that carries a stream to a peer."""
    return f"zfsilo-dial-{ticket}.service"


def sender_properties(worker: str, words: tuple[str, ...], title: str) -> list[list[Any]]:
    """Return the properties of a unit that runs zfs send; `words`: the ticket, and the job."""
    return _of_daemon([worker, "send", *words], title, STREAM_S) + [
        [name, on_the_wire(name, value)] for name, value in settings(("POOL",)).items()
    ]


def dialer_properties(gateway: str, title: str) -> list[list[Any]]:
    """Return the properties of a unit that carries a stream to a peer.

    Its user is made for it, and it reaches the network and its standard input, the first descriptor
    of the message, only.
    """
    return [
        *_of_daemon([gateway, "dial"], title, STREAM_S),
        ["StandardInputFileDescriptor", Variant("h", 0)],
        ["InaccessiblePaths", Variant("as", [*DIALER_HIDDEN])],
        *([name, Variant("b", True)] for name in DIALER_FLAGS),  # noqa: FBT003
        *([name, on_the_wire(name, value)] for name, value in DIALER.items()),
    ]


def _of_daemon(command: list[str], title: str, longest_s: int) -> list[list[Any]]:
    """Return the properties of every unit that carries a stream. It ends with the daemon."""
    return [
        ["Description", Variant("s", f"zfsilo: {title}")],
        ["Type", Variant("s", "exec")],
        ["ExecStart", Variant("a(sasb)", [[command[0], command, False]])],
        ["BindsTo", Variant("as", ["zfsilod.service"])],
        ["After", Variant("as", ["zfsilod.service"])],
        ["CollectMode", Variant("s", "inactive-or-failed")],
        ["RuntimeMaxUSec", Variant("t", longest_s * 1_000_000)],
        ["TimeoutStopUSec", Variant("t", 10_000_000)],
        ["MemoryMax", Variant("t", READER_BYTES)],
        ["CPUWeight", Variant("t", READER_WEIGHT)],
        ["Slice", Variant("s", "zfsilo.slice")],
        ["DefaultDependencies", Variant("b", False)],  # noqa: FBT003 - the wire has no keywords
    ]


def reader_properties(worker: str, words: tuple[str, ...], title: str) -> list[list[Any]]:
    """Return the properties of a unit that reads the blocks of a snapshot for the daemon.

    `words`: the ticket, and the query. It ends with the daemon, and with the caller's stream.
    """
    return [
        *_of_daemon([worker, "blocks", *words], title, READER_S),
        *([name, on_the_wire(name, value)] for name, value in settings(("POOL",)).items()),
    ]


def _fields(operation: Operation) -> dict[str, str]:
    return {"ZFSILO_OPERATION": operation.id} | journal_fields(operation.subject)


def on_the_wire(name: str, value: str) -> Variant:
    """Return the D-Bus value of a setting of a unit file."""
    words = value.split()
    match name:
        case "CapabilityBoundingSet":
            return Variant("t", sum(1 << NUMBERS[name] for name in words))
        case "RestrictNamespaces":
            return Variant("t", NAMESPACES[value])
        case "RestrictAddressFamilies" | "SystemCallFilter":
            return Variant("(bas)", [True, words])
        case "ReadWritePaths" | "SystemCallArchitectures":
            return Variant("as", words)
        case "SystemCallErrorNumber":
            return Variant("i", ERRORS[value])
        case "LimitCORE":
            return Variant("t", int(value))
        case "UMask":
            return Variant("u", int(value, 8))
        case "ProtectHome" | "ProtectSystem":
            return Variant("s", value)
    return Variant("b", value == "yes")
