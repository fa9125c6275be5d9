"""The unit of an operation, as systemd's bus takes it: org.freedesktop.systemd1(5).

What it may do to the host is in sandbox.py, in the words of a unit file; here they become values of
D-Bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbus_next import Variant

from zfsilod.storage.secrets import CREDENTIAL
from zfsilod.systemd.sandbox import sandbox

if TYPE_CHECKING:
    from zfsilod.model.records import Operation

BATCH_TIMES = 10  # how much longer a batch may take than one operation
NUMBERS = {  # capabilities(7)
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
}
NAMESPACES = {"yes": 0, "mnt": 0x20000}  # those that are left: CLONE_NEWNS
ERRORS = {"EPERM": 1}


def unit_name(unit: str) -> str:
    """Return the name of the transient unit of an operation, or of a batch of them."""
    return f"zfsilo-op-{unit}.service"


def rollback_name(unit: str) -> str:
    """Return the name of its rollback unit, an instance of the template on disk."""
    return f"zfsilo-rollback@{unit}.service"


def properties(
    operation: Operation, *, worker: str, timeout_s: int, sealed: bool
) -> list[list[Any]]:
    """Return the properties of an operation's unit.

    `sealed`: systemd keeps the key of the store; it takes a moment to give it, so only to those
    that have secrets to open.

    A batch is told by its first operation: all of them are of one kind and need the same. A unit
    must be able to run during shutdown, when those with default dependencies are refused.
    """
    fields = (f"ZFSILO_OPERATION={operation.unit}", f"ZFSILO_SUBJECT={operation.subject}")
    command = [worker, "run", operation.unit]
    more = " and more" if operation.batch else ""
    limit_us = timeout_s * 1_000_000 * (BATCH_TIMES if operation.batch else 1)
    opens = sealed and any(action.step.resources().secrets for action in operation.actions)
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
        ["LogExtraFields", Variant("aay", [field.encode() for field in fields])],
        *([["LoadCredentialEncrypted", Variant("a(ss)", [[CREDENTIAL] * 2])]] if opens else []),
        *([name, on_the_wire(name, value)] for name, value in allowed.items()),
    ]


def on_the_wire(name: str, value: str) -> Variant:
    """Return a setting of a unit file as the bus takes it."""
    words = value.split()
    match name:
        case "CapabilityBoundingSet":
            return Variant("t", sum(1 << NUMBERS[each] for each in words))
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
