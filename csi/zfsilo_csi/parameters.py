"""The parameters of StorageClass, VolumeAttributesClass and the snapshot classes.

backend           the backend to create volumes on; without it, every backend may be chosen
thin              "true" (default) or "false"
transport         "iscsi" (default) or "nvme"
tls               "true" or "false" (default): TLS 1.3, with the transport nvme
encrypt           "true" or "false" (default): encrypt it with a key that the server keeps
schedule          the label `schedule` of the volume, by which a snapshot policy selects it
limitReadIops     the most reads a second of the volume, "0" (default): no limit; over iSCSI only
limitWriteIops    the most writes a second
limitReadBytes    the most bytes that are read a second: "104857600", "100Mi"
limitWriteBytes   the most bytes that are written a second
zfs.PROPERTY      a ZFS property of the volume

Limits and all properties but zfs.volblocksize can change later, by a VolumeAttributesClass; what it
does not name stays as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi.errors import CsiError, invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

PROPERTY = "zfs."
CLAIM = "csi.storage.k8s.io/"  # claim metadata that sidecars add with --extra-create-metadata
LABELS = "csi.zfsilo.io/"
MAX_CLAIM_KEY = 40
SWITCH = {"true": True, "false": False}
TRANSPORTS = {"iscsi": pb.TRANSPORT_ISCSI, "nvme": pb.TRANSPORT_NVME}
SCHEDULE = "schedule"  # the parameter, and the label
LIMITS = {  # parameter: field of the volume
    "limitReadIops": "limit_read_iops",
    "limitWriteIops": "limit_write_iops",
    "limitReadBytes": "limit_read_bytes",
    "limitWriteBytes": "limit_write_bytes",
}
QUANTITY = re.compile(r"([0-9]{1,18})(|Ki|Mi|Gi|Ti)")
UNITS = ("", "Ki", "Mi", "Gi", "Ti")
KEYS = ("backend", "thin", "transport", "tls", "encrypt", SCHEDULE, *LIMITS)
FIXED = "volblocksize"
MAX_DIGITS = 9
MAX_LIMIT = (1 << 63) - 1  # of a field of the volume


class Parameters(NamedTuple):
    """The parameters of a new volume."""

    backend: str
    thin: bool
    transport: pb.Transport
    tls: bool
    encrypt: bool
    properties: dict[str, str]
    limits: dict[str, Any]  # by the fields of the volume
    labels: dict[str, str]


class Changes(NamedTuple):
    """The parameters that can change: ZFS properties, and limits by the fields of the volume."""

    properties: dict[str, str]
    limits: dict[str, Any]


def read(parameters: Mapping[str, str], mutable: Mapping[str, str]) -> Parameters:
    """Read the parameters of a new volume. Raises INVALID_ARGUMENT with the invalid one."""
    properties = {}
    for key, value in parameters.items():
        if key.startswith(PROPERTY):
            properties[key.removeprefix(PROPERTY)] = value
        elif key not in KEYS and not key.startswith(CLAIM):
            raise _unknown(key, f"use {', '.join(KEYS)} or zfs.PROPERTY")
    transport = parameters.get("transport", "iscsi")
    if transport not in TRANSPORTS:
        raise invalid(f"parameter transport is {transport[:40]!r}; use iscsi or nvme")
    changed = changes(mutable)
    limits = _limits(parameters) | changed.limits
    if transport != "iscsi" and any(limits.values()):
        raise invalid("limits need the transport iscsi; remove them, or use another transport")
    tls = _switch(parameters, "tls", "false")
    if tls and transport != "nvme":
        raise invalid("parameter tls needs the transport nvme")
    return Parameters(
        backend=parameters.get("backend", ""),
        thin=_switch(parameters, "thin", "true"),
        transport=TRANSPORTS[transport],
        tls=tls,
        encrypt=_switch(parameters, "encrypt", "false"),
        labels=labels(parameters) | {k: v for k, v in parameters.items() if k == SCHEDULE and v},
        properties=properties | changed.properties,
        limits=limits,
    )


def _switch(parameters: Mapping[str, str], key: str, default: str) -> bool:
    text = parameters.get(key, default)
    if text not in SWITCH:
        raise invalid(f"parameter {key} is {text[:40]!r}; use true or false")
    return SWITCH[text]


def changes(mutable: Mapping[str, str]) -> Changes:
    """Return the parameters of a VolumeAttributesClass, else raise INVALID_ARGUMENT."""
    for key in mutable:
        if not key.startswith(PROPERTY) and key not in LIMITS:
            raise _unknown(key, f"use {', '.join(LIMITS)} or zfs.PROPERTY")
        if key == PROPERTY + FIXED:
            raise invalid(f"parameter {key} is fixed at creation; set it in the StorageClass")
    named = {key: value for key, value in mutable.items() if key.startswith(PROPERTY)}
    return Changes(
        properties={key.removeprefix(PROPERTY): value for key, value in named.items()},
        limits=_limits(mutable),
    )


def _limits(parameters: Mapping[str, str]) -> dict[str, int]:
    """Return the limits among parameters, by the fields of the volume."""
    return {LIMITS[key]: _quantity(key, text) for key, text in parameters.items() if key in LIMITS}


def _quantity(key: str, text: str) -> int:
    match = QUANTITY.fullmatch(text)
    if match is None:
        raise invalid(f"parameter {key} is {text[:40]!r}; use a number such as 500 or 100Mi")
    number: int = int(match[1]) << (10 * UNITS.index(match[2]))
    if number > MAX_LIMIT:
        raise invalid(f"parameter {key} is {text[:40]!r}, which is too large")
    return number


def only_labels(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a snapshot, which has no other parameters, or raise INVALID_ARGUMENT."""
    for key in parameters:
        if not key.startswith(CLAIM):
            raise _unknown(key, "remove it: snapshots have no parameters")
    return labels(parameters)


def labels(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the claim metadata as labels, such as csi.zfsilo.io/pvc.name."""
    return {
        LABELS + key.removeprefix(CLAIM).replace("/", "."): value
        for key, value in parameters.items()
        if key.startswith(CLAIM) and len(key) <= len(CLAIM) + MAX_CLAIM_KEY
    }


def block_bytes(text: str) -> int:
    """Return a volblocksize ("16k", "16384") in bytes; 0 if it is malformed."""
    number = text.lower().removesuffix("k")
    if len(number) > MAX_DIGITS or not number.isdecimal():
        return 0
    return int(number) * (1024 if number != text.lower() else 1)


def _unknown(key: str, advice: str) -> CsiError:
    return invalid(f"unknown parameter {key[:80]!r}; {advice}")
