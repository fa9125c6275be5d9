"""The parameters of StorageClass, VolumeAttributesClass and the snapshot classes.

backend           the backend to create volumes on; without it, every backend may be chosen
thin              "true" (default) or "false"
transport         "iscsi" (default) or "nvme"
tls               "true" or "false" (default): TLS 1.3, with the transport nvme
encrypt           "true" or "false" (default): encrypt it with a key that the server keeps
schedule          the label `schedule` of the volume, by which a snapshot policy selects it
zfs.PROPERTY      a ZFS property of the volume; all but zfs.volblocksize can change later
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
KEYS = ("backend", "thin", "transport", "tls", "encrypt", SCHEDULE)
FIXED = "volblocksize"
MAX_DIGITS = 9


class Parameters(NamedTuple):
    """The parameters of a new volume."""

    backend: str
    thin: bool
    transport: pb.Transport
    tls: bool
    encrypt: bool
    properties: dict[str, str]
    labels: dict[str, str]


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
        properties=properties | changes(mutable),
    )


def _switch(parameters: Mapping[str, str], key: str, default: str) -> bool:
    text = parameters.get(key, default)
    if text not in SWITCH:
        raise invalid(f"parameter {key} is {text[:40]!r}; use true or false")
    return SWITCH[text]


def changes(mutable: Mapping[str, str]) -> dict[str, str]:
    """Return the ZFS properties of a VolumeAttributesClass, else raise INVALID_ARGUMENT."""
    for key in mutable:
        if not key.startswith(PROPERTY):
            raise _unknown(key, "use zfs.PROPERTY")
        if key == PROPERTY + FIXED:
            raise invalid(f"parameter {key} is fixed at creation; set it in the StorageClass")
    return {key.removeprefix(PROPERTY): value for key, value in mutable.items()}


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
