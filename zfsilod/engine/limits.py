"""What a worker may change, whatever the store says: the configuration of root.

The worker checks every field of every step against /etc/zfsilo/zfsilod.toml, zfsilod.toml.d and
servers.d before it changes anything. FIELDS has the check of each field: a step class with a field
that is not listed is refused when it is made. A field names a thing on the host, which has to be
one of this configuration or of zfsilo's own names, or it is a plain value, of a closed form.
"""

from __future__ import annotations

import os

from zfsilod.engine.configuration import (
    DEFAULT_NVME_PORTALS,
    DEFAULT_NVME_TLS_PORT,
    DEFAULT_PATHS,
    DEFAULT_PORTALS,
    DEFAULT_PREFIX,
    DIRECTORY,
    read_server_prefix,
    read_tables,
)
from zfsilod.model.errors import InvalidArgument, PermissionDenied
from zfsilod.model.host_facts import CONTROLLER_IDS, FILESYSTEM_STATES, FILESYSTEMS
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from zfsilod.model.records import Action
    from zfsilod.storage.paths import AnyPath

    Check = Callable[["WorkerLimits", Any, Action], None]

ANYWHERE = "/"
BACKSTORE = "zfsilo-"  # then the uid of the volume
MARK = "zfsilo:"  # of user properties
READONLY = "readonly"  # of a replica; zfsilo sets it nowhere else
HEX = frozenset("0123456789abcdef")
MAX_TEXT = 8192  # a user property has at most 8191 characters: zfsprops(7)


class WorkerLimits(Record):
    """The limits that the administrator of this host has configured."""

    directory: str = DIRECTORY
    root: str  # dataset; "": this host is not a server
    prefix: str  # of the targets of this host; "": the default of some host id
    adopt_from: tuple[str, ...] = ()  # datasets: they and those below may be of volumes, too
    former_prefixes: tuple[str, ...] = ()  # of targets that were made before it was changed
    portals: tuple[str, ...]  # at which targets may listen
    nvme_portals: tuple[str, ...] = DEFAULT_NVME_PORTALS
    nvme_tls_port: int = DEFAULT_NVME_TLS_PORT
    nvme_cntlid_min: int = CONTROLLER_IDS[0]
    nvme_cntlid_max: int = CONTROLLER_IDS[1]
    folders: tuple[str, ...]  # of the CSI node, without links

    def check(self, actions: Iterable[Action]) -> None:
        """Raise PermissionDenied (OUTSIDE_LIMITS) for an action that goes beyond the limits."""
        for action in actions:
            if hasattr(action.step, "part"):  # a remote step changes nothing on this host
                self.check_fields(action.step, action)

    def check_dataset(self, value: Any) -> None:
        """Raise PermissionDenied (OUTSIDE_LIMITS) unless a dataset may be that of a volume."""
        from zfsilod.model.names import (  # the adapters of such steps import it, too
            is_dataset,
            is_placed,
        )

        if not is_placed(str(value), self.root, self.adopt_from) or not is_dataset(value):
            raise _outside(f"dataset {value!r:.260}", f"server.root ({self.root or 'not set'})")

    def check_fields(self, record: Record, action: Action) -> None:
        """Check each field of a step, or of a record in it."""
        for name in record.FIELDS:
            check = check_of(record.TAG, name)
            if check is None:
                raise _refused(f"the field {name} of {record.TAG}", "it has no limit")
            check(self, getattr(record, name), action)


def check_of(tag: str, field: str) -> Check | None:
    """Return the check of a field of the class with a tag."""
    return FIELDS.get(f"{tag}.{field}") or FIELDS.get(field)


def read_limits(directory: AnyPath = DIRECTORY) -> WorkerLimits:
    """Return the configured limits. Raises FailedPrecondition for a file that others may write."""
    server: dict[str, Any] = {}
    csi: dict[str, Any] = {}
    for tables in read_tables(directory):
        server |= tables.get("server", {})
        csi |= tables.get("csi", {})
    return WorkerLimits(
        directory=os.fspath(directory),
        root=str(server.get("root", "")),
        prefix=str(server.get("iqn_prefix", "")).lower(),
        adopt_from=tuple(map(str, server.get("adopt_from", ()))),
        former_prefixes=tuple(str(prefix).lower() for prefix in server.get("former_prefixes", ())),
        portals=tuple(server.get("portals", DEFAULT_PORTALS)),
        nvme_portals=tuple(server.get("nvme_portals", DEFAULT_NVME_PORTALS)),
        nvme_tls_port=int(server.get("nvme_tls_port", DEFAULT_NVME_TLS_PORT)),
        nvme_cntlid_min=int(server.get("nvme_cntlid_min", CONTROLLER_IDS[0])),
        nvme_cntlid_max=int(server.get("nvme_cntlid_max", CONTROLLER_IDS[1])),
        folders=tuple(map(os.path.realpath, csi.get("allowed_paths", DEFAULT_PATHS))),
    )


# Things of the pool


def _dataset(limits: WorkerLimits, value: Any, _action: Action) -> None:
    limits.check_dataset(value)


def _trash(limits: WorkerLimits, value: Any, action: Action) -> None:
    if value:
        _dataset(limits, value, action)


def _root(limits: WorkerLimits, value: Any, _action: Action) -> None:
    if not limits.root or value != limits.root:
        raise _outside(f"dataset root {value!r:.260}", f"server.root ({limits.root or 'not set'})")


def _property(limits: WorkerLimits, value: Any, action: Action) -> None:
    step: Any = action.step
    _properties(limits, ((value, step.value), (value, step.previous)), action)


def _properties(limits: WorkerLimits, value: Any, action: Action) -> None:
    from zfsilod.model.zfs_properties import CHOICES, FIXED, HIDDEN

    for name, text in value:
        _text(limits, text, action)
        if not (name in CHOICES or name == FIXED or _is_mark(name)):
            if name == READONLY and text in ("", "on"):
                continue
            if name not in HIDDEN or text not in ("", HIDDEN[name]):
                raise _refused(f"property {name!r:.80}={text!r:.80}", "zfsilo does not set it")


def _marks(limits: WorkerLimits, value: Any, action: Action) -> None:
    for name, text in value:
        _text(limits, text, action)
        if not _is_mark(name):
            raise _refused(f"property {name!r:.80}", f"marks begin with {MARK}")


def _is_mark(name: str) -> bool:
    own = name.removeprefix(MARK)
    return own != name and own.replace("_", "a").isalpha() and own.isascii() and own.islower()


def _uid(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    if not _is_uid(value):
        raise _refused(f"{value!r:.80}", "it is not the uid of a volume or snapshot")


def _known_uid(limits: WorkerLimits, value: Any, action: Action) -> None:
    if value:  # "": a step of an earlier version
        _uid(limits, value, action)


def _is_uid(value: str) -> bool:
    return len(value) == 32 and set(value) <= HEX


def _guid(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    if value and not (value.isascii() and value.isdecimal()):
        raise _refused(f"{value!r:.80}", "it is not the guid of a dataset")


# Things of the kernel's target and initiator


def _target(limits: WorkerLimits, value: Any, action: Action) -> None:
    from zfsilod.model.names import iqn_form, is_target_name

    name, _colon, uid = value.rpartition(":")
    if not is_target_name(value) or not _is_uid(uid):
        raise _refused(f"target {value!r:.230}", "it does not end with the uid of a volume")
    name = iqn_form(name.lower())
    own = name.startswith(DEFAULT_PREFIX) or name in (limits.prefix, *limits.former_prefixes)
    if _is_on_server(action) and not own:
        raise _outside(f"target {value}", f"server.iqn_prefix ({limits.prefix or 'default'})")


def _targets(limits: WorkerLimits, value: Any, action: Action) -> None:
    for target in value:
        _target(limits, target, action)


def _own_backstore(limits: WorkerLimits, value: Any, action: Action) -> None:
    if value:
        _backstore(limits, value, action)


def _is_on_server(action: Action) -> bool:
    return getattr(action.step, "part", "") == "TARGET"


def _server(limits: WorkerLimits, value: Any, action: Action) -> None:
    """Check the server that named a target; what is removed may be of one that was left."""
    _text(limits, value, action)
    if not value or not action.up:
        return
    step: Any = action.step
    valid = (
        value.isascii() and value.replace("-", "a").replace(".", "a").replace("_", "a").isalnum()
    )
    from zfsilod.model.names import iqn_form

    prefix = read_server_prefix(limits.directory, value) if valid else None
    if prefix is None:
        raise _outside(f"server {value!r:.130}", "servers.d")
    own = iqn_form(step.target.rpartition(":")[0].lower())
    if prefix and own != prefix.lower():
        raise _outside(f"target {step.target}", f"iqn_prefix ({prefix}) of servers.d/{value}.toml")


def _peer(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    """Check the name of a peer, which is a part of the name of a hold."""
    from zfsilod.model.validation import check_id

    try:
        check_id(value, "server name")
    except InvalidArgument as error:
        raise _refused("the hold", error.message) from None


def _initiator(limits: WorkerLimits, value: Any, action: Action) -> None:
    from zfsilod.model.names import transport_of

    target: Any = getattr(action.step, "target", "")
    if transport_of(value) != transport_of(target):
        raise _refused(f"initiator {value!r:.230}", f"the target {target} is of another transport")
    _client_name(limits, value, action)


def _client_name(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    from zfsilod.model.names import is_target_name

    if not is_target_name(value):
        raise _refused(f"initiator {value!r:.230}", "it is not an iSCSI or NVMe name")


def _client_names(limits: WorkerLimits, value: Any, action: Action) -> None:
    for name in value:
        _client_name(limits, name, action)


def _any_client(limits: WorkerLimits, value: Any, action: Action) -> None:
    if value:
        _client_name(limits, value, action)


def _initiators(limits: WorkerLimits, value: Any, action: Action) -> None:
    for initiator in value:
        _initiator(limits, initiator, action)


def _backstore(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    if not _is_uid(value.removeprefix(BACKSTORE)) or _is_uid(value):
        raise _refused(f"backstore {value!r:.80}", f"zfsilo's own are {BACKSTORE}UID")


def _portals(limits: WorkerLimits, value: Any, action: Action) -> None:
    from zfsilod.model.names import at_port, check_portal, is_portal

    for portal in value:
        if not is_portal(portal):
            raise _refused(f"portal {portal!r:.100}", "it is not ADDRESS:PORT")
        step: Any = action.step
        targets = getattr(step, "targets", ()) or (getattr(step, "target", ""),)
        is_nvme = targets[0].startswith("nqn.")
        key, portals = "portals", limits.portals
        if is_nvme:
            key, portals = "nvme_portals", limits.nvme_portals
        if getattr(action.step, "tls", False):
            key, portals = "nvme_tls_port", at_port(portals, limits.nvme_tls_port)
        allowed = map(check_portal, portals)
        if _is_on_server(action) and action.up and check_portal(portal) not in allowed:
            raise _outside(f"portal {portal}", f"server.{key} ({', '.join(portals)})")


def _controller_id(limits: WorkerLimits, value: Any, action: Action) -> None:
    first, last = limits.nvme_cntlid_min, limits.nvme_cntlid_max
    step: Any = action.step
    if value not in (step.first, step.last) or (step.first, step.last) != (first, last):
        raise _outside(
            f"controller id {value!r:.20}",
            f"server.nvme_cntlid_min ({first}) and server.nvme_cntlid_max ({last})",
        )


def _secrets(limits: WorkerLimits, value: Any, action: Action) -> None:
    for target, name in value:
        _target(limits, target, action)
        _text(limits, name, action)


# Things of mounts


def _path(limits: WorkerLimits, value: Any, action: Action) -> None:
    from zfsilod.host.places import resolved  # for clients only
    from zfsilod.model.mount_path import check_path

    step: Any = action.step
    try:
        check_path(value)
        if not getattr(step, "root", ""):  # 0.1.0: its links are followed
            check_path(resolved(value))
    except InvalidArgument:
        raise _refused(f"mount path {value!r:.210}", "it is not a permitted path") from None


def _paths(limits: WorkerLimits, value: Any, action: Action) -> None:
    for path in value:
        _path(limits, path, action)


def _folder(limits: WorkerLimits, value: Any, action: Action) -> None:
    if action.up and value not in ("", ANYWHERE, *limits.folders):
        raise _outside(f"mount below {value!r:.210}", "csi.allowed_paths")


def _mounts(limits: WorkerLimits, value: Any, action: Action) -> None:
    for path, root in value:
        _path(limits, path, action)
        _folder(limits, root, action)


def _options(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    from zfsilod.model.mount_options import check_options

    try:
        check_options(value)
    except InvalidArgument as error:
        raise _refused("the mount", error.message) from None


def _filesystem_type(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    if value not in ("", *FILESYSTEMS):
        raise _refused(f"filesystem {value!r:.80}", "zfsilo does not make it")


def _filesystem_state(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    if value not in FILESYSTEM_STATES:
        raise _refused(f"state {value!r:.80}", "it is not the state of a filesystem")


def _uuid(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    from zfsilod.model.names import is_uuid

    if value and not is_uuid(value):
        raise _refused(f"{value!r:.80}", "it is not a UUID")


# Plain values


def _text(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    """Check a value that names nothing on the host: it is shown, compared, or a mark of a zvol."""
    if not isinstance(value, str) or not value.isprintable() or len(value) >= MAX_TEXT:
        raise _refused(f"{value!r:.80}", "it is not a printable text")


def _number(_limits: WorkerLimits, value: Any, _action: Action) -> None:
    if not isinstance(value, int) or value < 0:
        raise _refused(f"{value!r:.80}", "it is not a number")


def _record(limits: WorkerLimits, value: Any, action: Action) -> None:
    for record in value if isinstance(value, tuple) else (value,):
        if not isinstance(record, Record):
            raise _refused(f"{record!r:.80}", "it is not a record")
        limits.check_fields(record, action)


FIELDS: dict[str, Check] = {
    # Plain names are those of fields of any class; TAG.FIELD is that of one class.
    "allowed": _initiators,
    "backstore": _backstore,
    "dataset": _dataset,
    "disk": _record,
    "epoch": _number,
    "file": _number,
    "filesystem": _record,
    "fs_type": _filesystem_type,
    "grace_s": _number,
    "guid": _guid,
    "host": _text,
    "initiator": _initiator,
    "encrypted": _number,
    "key": _uid,
    "rotation": _number,
    "lost_session_s": _number,
    "marks": _marks,
    "operation": _text,
    "options": _options,
    "other": _dataset,
    "own": _number,
    "path": _path,
    "paths": _paths,
    "portals": _portals,
    "previous_portals": _portals,
    "previous": _text,
    "properties": _properties,
    "readonly": _number,
    "refs": _record,
    "revokes": _number,
    "root": _folder,
    "secret": _text,
    "secrets": _secrets,
    "serial": _uid,
    "server": _server,
    "size_bytes": _number,
    "snapshot_ref": _record,
    "snapshot_uid": _uid,
    "source": _path,
    "source_root": _folder,
    "target": _target,
    "targets": _targets,
    "thin": _number,
    "tls": _number,
    "trash": _dataset,
    "Epoch.trash": _trash,
    "uid": _uid,
    "untouched": _number,
    "value": _text,
    "volblocksize": _number,
    "volume": _text,
    "Backstore.name": _backstore,
    "ControllerIds.first": _controller_id,
    "ControllerIds.last": _controller_id,
    "NoExport.backstore": _own_backstore,
    "NoOtherPath.initiators": _client_names,
    "NoOtherPath.known": _targets,
    "Detached.root": _text,  # what is removed may be below a folder that is not configured any more
    "Epoch.uid": _known_uid,
    "Filesystem.origin": _uuid,
    "Filesystem.state": _filesystem_state,
    "Filesystem.type": _filesystem_type,
    "Filesystem.uuid": _uuid,
    "FilesystemWorks.paths": _mounts,
    "IoLimits.read_bytes": _number,
    "IoLimits.read_iops": _number,
    "IoLimits.write_bytes": _number,
    "IoLimits.write_iops": _number,
    "Limited.limits": _record,
    "Limited.previous_limits": _record,
    "LossWait.seconds": _number,
    "NotNewer.uid": _known_uid,
    "KeptForPeer.peer": _peer,
    "NoReservations.client": _any_client,
    "PoolOwned.owner": _text,
    "PoolOwned.root": _root,
    "ReceivedSnapshot.base_guid": _guid,
    "ReceivedSnapshot.raw": _number,
    "ReceivedSnapshot.snapshot_guid": _guid,
    "ReplicaUnchanged.snapshot_guid": _guid,
    "ZvolProperty.name": _property,
}


def _outside(thing: str, limit: str) -> PermissionDenied:
    return _refused(
        thing,
        f"it is outside of {limit} in {DIRECTORY}; restart zfsilod after a change of that",
    )


def _refused(thing: str, why: str) -> PermissionDenied:
    return PermissionDenied(f"the worker refuses {thing}: {why}", reason="OUTSIDE_LIMITS")
