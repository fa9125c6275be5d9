"""The table of all commands: words, function, help, arguments.

The parser (parser.py), the completion scripts (commands/completion.py), the manual page and tests
are generated from it. Functions are named as text, so that a command imports only what it needs.
"""

from __future__ import annotations

from zfsilod.ctl.parse import parse_days, parse_number, parse_seconds, parse_size, parse_timeout
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Argument:
    """An argument of a command for argparse, with its completion."""

    def __init__(
        self, *names: str, text: str, offer: str | Sequence[str] = (), **options: object
    ) -> None:
        """`offer`: words, or the name of a list: a key of completion.LISTS, or files."""
        self.names = names
        self.text = text
        self.offer = offer
        self.options = options

    @property
    def takes_value(self) -> bool:
        """Whether a value follows the option."""
        return self.options.get("action") != "store_true"


class Command:
    """One command: `zfsiloctl volume list`."""

    def __init__(
        self, words: str, function: str, text: str, *arguments: Argument, changes: bool = False
    ) -> None:
        self.words = words
        self.function = function  # module:function, below zfsilod.ctl
        self.text = text
        self.arguments = (*arguments, *(CHANGE if changes else ()))

    @property
    def noun(self) -> str:
        """The first word."""
        return self.words.split()[0]

    @property
    def verb(self) -> str:
        """The second word, or ""."""
        return self.words.partition(" ")[2]


def flag(*names: str, text: str) -> Argument:
    """Return an option that takes no value."""
    return Argument(*names, text=text, action="store_true")


TRANSPORTS = ("iscsi", "nvme")
RECIPES = ("iscsiadm", "nvme", "esxi", "windows", "libvirt")
ACCESS_MODES = (
    "single_node_writer",
    "single_node_reader_only",
    "single_node_single_writer",
    "single_node_multi_writer",
    "multi_node_reader_only",
    "multi_node_single_writer",
    "multi_node_multi_writer",
)
ROLES = ("admin", "controller", "reader", "replica")  # certificates.USER_ROLES, without its imports
OPERATION_STATES = (
    "running",
    "waiting",
    "failed",
    "done",
    "rolled_back",
    "needs_repair",
    "abandoned",
)
FS_TYPES = ("ext4", "xfs")
VOLUME_STATES = ("created", "published", "connected", "staged", "mounted")

COMMON = (
    Argument("-H", "--remote", metavar="NAME", offer="servers",
             text="use this server (a name or a join file) in place of the local daemon"),
    Argument("--socket", metavar="PATH", offer="files",
             text="socket of the local daemon (ZFSILO_SOCKET; /run/zfsilo/zfsilod.sock)"),
    Argument("--timeout", metavar="SECONDS", type=parse_timeout,
             text="how long to wait for an answer (30 for reads, 600 for changes)"),
    flag("--json", text="print JSON in protobuf's format"),
    flag("-q", "--quiet", text="print only names in lists, and nothing after changes"),
)  # fmt: skip
CHANGE = (
    flag("--dry-run", text="print the plan and change nothing"),
    flag("--no-wait", text="submit the operation, print its id, and do not wait for it"),
)


def filter_option(example: str) -> Argument:
    """Return --filter with an example that is valid for the list."""
    return Argument(
        "--filter",
        metavar="EXPRESSION",
        text=f"only entries that match: '{example}'",
    )


def repeatable(*names: str, metavar: str, text: str, **options: Any) -> Argument:
    """Return an option that may be given several times."""
    return Argument(
        *names,
        metavar=metavar,
        action="append",
        default=[],
        text=f"{text}; may be repeated",
        **options,
    )


LIMITS = (
    Argument("--limit-read-iops", metavar="N", type=parse_number,
             text="most reads a second of all clients together (0: no limit)"),
    Argument("--limit-write-iops", metavar="N", type=parse_number,
             text="most writes a second (0: no limit)"),
    Argument("--limit-read-bytes", metavar="SIZE",
             text="most bytes read a second, such as 100M (0: no limit)"),
    Argument("--limit-write-bytes", metavar="SIZE",
             text="most bytes written a second (0: no limit)"),
)  # fmt: skip

VOLUME = Argument("name", metavar="VOLUME", offer="volumes", text="id of the volume")
SNAPSHOT = Argument("name", metavar="SNAPSHOT", offer="snapshots", text="id of the snapshot")
GROUP = Argument("name", metavar="GROUP", offer="groups", text="id of the snapshot group")
POLICY = Argument("name", metavar="POLICY", offer="policies", text="id of the snapshot policy")
REPLICATION = Argument(
    "name", metavar="POLICY", offer="replication-policies", text="id of the replication policy"
)
PEER_TEXT = "server that this host has joined"
KEEP_TEXT = "retention grid, such as '24x1h 7x1d 4x1w 12x1mon'"
CALENDAR_TEXT = "when, as OnCalendar= of systemd.timer(5): daily, 'Mon..Fri 02:30'"
DELAY = Argument(
    "--delay",
    metavar="SECONDS",
    type=parse_number,
    text="the timer adds up to this time, at random (0)",
)
UPDATE = flag("--update", text="change an existing policy of this name to these values")
HOST = Argument("name", metavar="HOST", offer="hosts", text="id of the host")
OPERATION_ID = "id of the operation, or a unique start or end of it"
OPERATION = Argument("name", metavar="OPERATION", offer="operations", text=OPERATION_ID)
REMOTE_VOLUME = Argument(
    "name", metavar="VOLUME", offer="remote-volumes", text="id of the volume on its server"
)
FORCE = flag("--force", text="even while it is in use; data that is not written yet is lost")
ETAG = Argument("--etag", text="refuse if it was changed since it was read with this etag")
LABEL_FILTER = repeatable("-l", "--label", metavar="NAME=VALUE", text="only with this label")
LABEL = repeatable("-l", "--label", metavar="NAME=VALUE", text="set a label")
LABEL_CHANGE = repeatable(
    "-l", "--label", metavar="NAME=VALUE", text="set a label, or remove it with NAME-"
)
ALL_PATHS = flag("--all", text="from all paths")
READONLY = flag("--readonly", text="refuse writes")
FS_TYPE = Argument(
    "--fs-type",
    metavar="TYPE",
    default="",
    offer=FS_TYPES,
    choices=FS_TYPES,
    text="filesystem to create (that of the volume, or ext4)",
)
MOUNT_OPTION = repeatable(
    "-o", "--option", metavar="OPTIONS", text="mount options such as noatime,discard"
)
SERVER = Argument(
    "--server", metavar="NAME", offer="servers", text="the server (the only known one)"
)
LOCAL_NAME = Argument(
    "--as", dest="local_name", metavar="NAME", default="", text="name of the volume on this host"
)
ADDRESS = Argument(
    "--address",
    metavar="HOST[:PORT]",
    default="",
    text="address at which clients reach this server (its host name)",
)
TRANSPORT = Argument(
    "--transport",
    metavar="TRANSPORT",
    choices=TRANSPORTS,
    offer=TRANSPORTS,
    text="iscsi or nvme, where it is published (that of the volume)",
)
TLS = flag("--tls", text="with TLS 1.3, over nvme; the volume may require it")
IQN = Argument("--iqn", text="iSCSI initiator name of the host")
NQN = Argument("--nqn", text="NVMe host name of the host")
MAX = Argument(
    "--max-attachments",
    metavar="N",
    type=parse_number,
    text="maximum number of volumes attached to it (0: no limit)",
)

COMMANDS = (
    Command("volume list", "volume:list_volumes", "list the volumes of a host",
            filter_option('state = MOUNTED AND labels.app = "db"'), LABEL_FILTER,
            flag("--deleted", text="also list volumes in the trash"),
            Argument("--state", offer=VOLUME_STATES, choices=VOLUME_STATES,
                     text="only in this state")),
    Command("volume show", "volume:show", "show a volume in detail", VOLUME,
            flag("--facts", text="also list the facts on the host that are as recorded")),
    Command("volume probe", "volume:probe", "compare a volume with its records", VOLUME),
    Command("volume stats", "volume:stats", "show the space that a volume uses", VOLUME),
    Command("volume create", "volume:create", "create a volume",
            Argument("name", metavar="VOLUME", text="id of the volume: a-z 0-9 . _ -"),
            Argument("size", metavar="SIZE", nargs="?", default="",
                     text="10G, 512MiB, 1.5T, or bytes (the size of its source)"),
            Argument("--limit", metavar="SIZE", default="0",
                     text="maximum size after rounding up to whole blocks"),
            flag("--thick", text="reserve the whole size in the pool"),
            flag("--block", text="use it as a block device, without a filesystem"),
            repeatable("-o", "--property", metavar="NAME=VALUE", text="set a ZFS property"),
            LABEL,
            repeatable("--host", metavar="HOST", offer="hosts",
                       text="allow this host to publish the volume to itself ('*': any host)"),
            repeatable("--access-mode", metavar="MODE", choices=ACCESS_MODES, offer=ACCESS_MODES,
                       text="allow this access mode (single_node_writer)"),
            Argument("--transport", metavar="TRANSPORT", choices=TRANSPORTS, offer=TRANSPORTS,
                     text="transport of publications that name none (iscsi)"),
            *LIMITS,
            flag("--tls", text="with TLS 1.3 in each publication, over nvme"),
            flag("--encrypt", text="encrypt its data with a key that zfsilo keeps"),
            Argument("--from-snapshot", metavar="SNAPSHOT", default="", offer="snapshots",
                     text="clone this snapshot"),
            Argument("--from-volume", metavar="VOLUME", default="", offer="volumes",
                     text="clone this volume as it is now"),
            changes=True),
    Command("volume attach", "attach:attach", "connect, stage and mount a volume, now and at boot",
            REMOTE_VOLUME,
            Argument("path", metavar="PATH", offer="files", text="mount point"),
            SERVER, LOCAL_NAME, FS_TYPE, MOUNT_OPTION, READONLY, TRANSPORT, TLS),
    Command("volume detach", "attach:detach", "undo volume attach, now and at boot", VOLUME),
    Command("volume update", "volume:update",
            "change properties, labels, hosts or limits of a volume", VOLUME,
            repeatable("-o", "--property", metavar="NAME=VALUE",
                       text="set a ZFS property, or inherit it again with NAME-"),
            LABEL_CHANGE,
            repeatable("--host", metavar="HOST", offer="hosts",
                       text="allow this host to publish the volume to itself; HOST- revokes it"),
            *LIMITS,
            ETAG, changes=True),
    Command("volume resize", "volume:resize", "enlarge a volume on its server",
            VOLUME,
            Argument("size", metavar="[+]SIZE", text="the new size, or with + the size to add"),
            ETAG, changes=True),
    Command("volume delete", "volume:delete", "delete a volume and its data",
            VOLUME, flag("-y", "--yes", text="do not ask for confirmation"),
            flag("--unpublish", text="also withdraw it from all hosts; refused while one is logged "
                 "in"),
            flag("--keep-dependents", text="keep its snapshots and clones"),
            flag("--record-only", text="delete the record of a volume whose zvol is missing or "
                 "replaced; no data are touched"),
            ETAG, changes=True),
    Command("volume rotate-key", "volume_keys:rotate_key", "replace the key of an encrypted volume",
            VOLUME, ETAG, changes=True),
    Command("volume recovery-key", "volume_keys:recovery_key",
            "show the key of an encrypted volume, once", VOLUME),
    Command("volume replicate", "replication:replicate",
            "send a snapshot of a volume to another server",
            VOLUME,
            Argument("--to", required=True, metavar="SERVER", offer="servers",
                     text=PEER_TEXT),
            Argument("--rate", type=parse_size, metavar="BYTES",
                     text="most bytes a second, as 20M, also of the transfer in progress (0: no "
                     "limit)"),
            flag("--end", text="keep nothing for it there any more; the replica stays"),
            changes=True),
    Command("volume undelete", "volume:undelete", "restore a deleted volume from the trash",
            Argument("name", metavar="VOLUME", text="id of the deleted volume"),
            Argument("--uid", default="", text="uid, if several have this id (the last deleted)"),
            changes=True),
    Command("volume publish", "volume:publish", "export a volume to a host",
            VOLUME,
            Argument("host", metavar="HOST", offer="hosts", text="id of the host"),
            Argument("--access-mode", metavar="MODE", choices=ACCESS_MODES, offer=ACCESS_MODES,
                     text="access mode of this host"),
            TRANSPORT,
            TLS,
            READONLY,
            flag("--force", text="first end the publication, and the session, of another host"),
            ETAG, changes=True),
    Command("volume recipe", "recipe:recipe",
            "show how a host without zfsilo connects to a volume",
            VOLUME,
            Argument("host", metavar="HOST", offer="hosts", text="id of the host"),
            Argument("--for", metavar="TOOL", dest="tool", choices=RECIPES, offer=RECIPES,
                     text="iscsiadm, nvme, esxi, windows or libvirt (iscsiadm or nvme)"),
            flag("--secrets", text="with the secrets, which are shown once")),
    Command("volume unpublish", "volume:unpublish", "stop exporting a volume to a host",
            VOLUME,
            Argument("host", metavar="HOST", nargs="?", offer="hosts", text="id of the host"),
            flag("--all", text="from all hosts"),
            flag("--fence", text="end the session of a host that is logged in"),
            Argument("--grace", metavar="SECONDS", type=parse_seconds,
                     text="with --fence: time for the host to log out before its session ends (5)"),
            ETAG, changes=True),
    Command("volume connect", "attachment:connect", "log in to a volume of a server",
            REMOTE_VOLUME,
            SERVER, LOCAL_NAME,
            Argument("--restore", choices=("never", "boot"), default="never",
                     offer=("never", "boot"), text="whether to restore it after a reboot (never)"),
            flag("--no-publish", text="fail unless it is already published to this host"),
            TRANSPORT,
            TLS,
            Argument("--epoch", metavar="N", type=parse_number, default=0,
                     text="fail unless its publication has this epoch"),
            changes=True),
    Command("volume disconnect", "attachment:disconnect", "log out of a volume",
            VOLUME, FORCE, ETAG, changes=True),
    Command("volume stage", "attachment:stage", "create the filesystem once, and mount it for use",
            VOLUME,
            Argument("--path", default="", offer="files",
                     text="staging path (below /var/lib/zfsilo/staging)"),
            FS_TYPE, MOUNT_OPTION, READONLY, ETAG, changes=True),
    Command("volume unstage", "attachment:unstage", "undo volume stage",
            VOLUME,
            Argument("--path", default="", offer="files", text="only if it is staged there"),
            FORCE, ETAG, changes=True),
    Command("volume mount", "attachment:mount", "mount a staged volume at a path",
            VOLUME, Argument("path", metavar="PATH", offer="files", text="mount point"),
            READONLY, ETAG, changes=True),
    Command("volume unmount", "attachment:unmount", "unmount a volume from a path",
            VOLUME, Argument("path", metavar="PATH", nargs="?", offer="mounts", text="mount point"),
            ALL_PATHS, FORCE, ETAG, changes=True),
    Command("volume grow", "attachment:grow",
            "enlarge the disk and filesystem to the size on the server",
            VOLUME, ETAG, changes=True),
    Command("rotate-secrets", "rotate_secrets:rotate_secrets",
            "replace the secrets of publications",
            Argument("volume", metavar="VOLUME", nargs="?", offer="volumes",
                     text="id of the volume (all published volumes)"),
            Argument("host", metavar="HOST", nargs="?", default="", offer="hosts",
                     text="only its publication to this host (all hosts)"),
            flag("--force", text="even if a host that is logged in does not know them yet"),
            changes=True),
    Command("volume sync", "volume:sync", "repair differences between a host and its records",
            Argument("name", metavar="VOLUME", nargs="?", offer="volumes", text="id of the volume"),
            flag("--all", text="all volumes"), changes=True),
    Command("snapshot create", "snapshot:create", "take a snapshot of a volume",
            VOLUME,
            Argument("snapshot", metavar="SNAPSHOT", nargs="?",
                     text="id of the snapshot: a-z 0-9 . _ - (generated)"),
            LABEL, changes=True),
    Command("snapshot list", "snapshot:list_snapshots", "list snapshots",
            filter_option('volume = data AND labels.app = "db"'), LABEL_FILTER,
            Argument("--volume", metavar="VOLUME", default="", offer="volumes",
                     text="only of this volume")),
    Command("snapshot show", "snapshot:show", "show a snapshot", SNAPSHOT),
    Command("snapshot blocks", "snapshot:blocks",
            "print the blocks that are in use, or differ from an older snapshot", SNAPSHOT,
            Argument("--since", metavar="SNAPSHOT", default="", offer="snapshots",
                     text="an older snapshot of the same volume")),
    Command("snapshot delete", "snapshot:delete", "delete a snapshot; volumes cloned from it stay",
            SNAPSHOT, ETAG, changes=True),
    Command("snapshot-group create", "snapshot:create_group",
            "take snapshots of several volumes at the same moment",
            Argument("name", metavar="GROUP", text="id of the group: a-z 0-9 . _ -"),
            Argument("volume", metavar="VOLUME", nargs="+", offer="volumes",
                     text="ids of the volumes"),
            LABEL, changes=True),
    Command("snapshot-group list", "snapshot:list_groups", "list snapshot groups",
            filter_option('volume = data AND labels.app = "db"'), LABEL_FILTER),
    Command("snapshot-group show", "snapshot:show_group", "show a group and its snapshots", GROUP),
    Command("snapshot-group delete", "snapshot:delete_group",
            "delete a group and its snapshots",
            GROUP, ETAG, changes=True),
    Command("schedule create", "schedule:create",
            "take snapshots of volumes by a timer, and delete old ones",
            Argument("name", metavar="POLICY",
                     text="id of the policy: a-z 0-9 . _ -, at most 40 characters"),
            Argument("--calendar", metavar="TIME", required=True, text=CALENDAR_TEXT),
            Argument("--keep", metavar="GRID", required=True, text=KEEP_TEXT),
            repeatable("-l", "--label", metavar="NAME=VALUE",
                       text="only of volumes with this label (all volumes)"),
            flag("--group", text="take them at the same moment, as a snapshot group"),
            DELAY, UPDATE, changes=True),
    Command("schedule list", "schedule:list_policies", "list the snapshot policies",
            filter_option("id : night")),
    Command("schedule show", "schedule:show", "show a policy and its last run", POLICY),
    Command("schedule update", "schedule:update", "change a policy",
            POLICY,
            Argument("--calendar", metavar="TIME", text=CALENDAR_TEXT),
            Argument("--keep", metavar="GRID", text=KEEP_TEXT),
            repeatable("-l", "--label", metavar="NAME=VALUE",
                       text="select by this label too, or no longer by it with NAME-"),
            flag("--group", text="take them at the same moment, as a snapshot group"),
            flag("--single", text="take single snapshots"),
            DELAY, ETAG, changes=True),
    Command("schedule delete", "schedule:delete", "delete a policy, and keep its snapshots",
            POLICY, ETAG, changes=True),
    Command("schedule run", "schedule:run", "take the snapshots of a policy now",
            POLICY, flag("--dry-run", text="print the plan and change nothing")),
    Command("replication create", "replication:create", "send volumes to another server by a timer",
            Argument("name", metavar="POLICY",
                     text="id of the policy: a-z 0-9 . _ -, at most 40 characters"),
            Argument("--to", metavar="SERVER", offer="servers", required=True, text=PEER_TEXT),
            Argument("--calendar", metavar="TIME", required=True, text=CALENDAR_TEXT),
            repeatable("-l", "--label", metavar="NAME=VALUE",
                       text="volumes with this label (all volumes, unless some are named)"),
            repeatable("--volume", metavar="VOLUME", offer="volumes",
                       text="this volume, besides those with the labels"),
            Argument("--rate", type=parse_size, default=0, metavar="BYTES",
                     text="most bytes a second of all volumes together, as 20M (no limit)"),
            DELAY, UPDATE, changes=True),
    Command("replication list", "replication:list_policies", "list the replication policies",
            filter_option("peer = other")),
    Command("replication show", "replication:show", "show a policy and its last run", REPLICATION),
    Command("replication update", "replication:update", "change a policy",
            REPLICATION,
            Argument("--to", metavar="SERVER", offer="servers", text=PEER_TEXT),
            Argument("--calendar", metavar="TIME", text=CALENDAR_TEXT),
            repeatable("-l", "--label", metavar="NAME=VALUE",
                       text="select by this label too, or no longer by it with NAME-"),
            repeatable("--volume", metavar="VOLUME", offer="volumes",
                       text="name this volume too, or no longer with VOLUME-"),
            Argument("--rate", type=parse_size, metavar="BYTES",
                     text="most bytes a second of all volumes together, also of a run in progress "
                     "(0: no limit)"),
            DELAY, ETAG, changes=True),
    Command("replication delete", "replication:delete", "delete a policy, and keep its replicas",
            REPLICATION, ETAG, changes=True),
    Command("replication run", "replication:run", "replicate the volumes of a policy now",
            REPLICATION, flag("--dry-run", text="print the plan and change nothing")),
    Command("up", "up:up", "bring a volume to its configured state on this host",
            VOLUME,
            Argument("--wait", metavar="SECONDS", type=parse_seconds, default=300.0,
                     text="how long to wait for a server that does not answer (300)")),
    Command("down", "up:down", "unmount and disconnect a volume on this host, or unpublish it",
            VOLUME),
    Command("host list", "host:list_hosts", "list the hosts that are registered with a server",
            filter_option('labels.rack = "7"'), LABEL_FILTER),
    Command("host show", "host:show", "show a host", HOST),
    Command("host add", "host:add", "register a host",
            Argument("name", metavar="HOST", text="id of the host: a-z 0-9 . _ -"),
            IQN, NQN,
            repeatable("--address", metavar="ADDRESS", text="address or name of the host"),
            LABEL, MAX, changes=True),
    Command("host update", "host:update", "change the registration of a host",
            HOST, IQN, NQN,
            repeatable("--address", metavar="ADDRESS",
                       text="address or name, in place of the registered ones"),
            LABEL_CHANGE, MAX,
            flag("--new-machine", text="its machine was replaced: revoke the certificates of the "
                 "former one, replace its secrets, and let another machine register"),
            ETAG, changes=True),
    Command("host delete", "host:delete", "delete the registration of a host",
            HOST, ETAG, changes=True),
    Command("server list", "server:list_servers", "list the servers that this host can use"),
    Command("join", "server:join", "add a server, and register this host with it",
            Argument("file", metavar="FILE", offer="files",
                     text="join file from `zfsiloctl pki issue host` on the server (-: stdin)"),
            Argument("--as", dest="local_name", metavar="NAME", default="",
                     text="name of the server on this host"),
            Argument("--iqn", text="iSCSI initiator name of this host (that of open-iscsi)")),
    Command("server forget", "server:forget", "remove a server from this host",
            Argument("name", metavar="SERVER", offer="servers",
                     text="name of the server on this host")),
    Command("operation list", "operation:list_operations", "list operations, oldest first",
            filter_option("kind = publish AND state = FAILED"),
            Argument("--state", choices=OPERATION_STATES, offer=OPERATION_STATES,
                     text="only in this state"),
            flag("--running", text="only operations that have not finished"),
            Argument("--volume", metavar="VOLUME", offer="volumes", text="only on this volume")),
    Command("operation show", "operation:show", "show an operation and its actions",
            Argument("name", metavar="OPERATION", offer="all-operations",
                     text=OPERATION_ID)),
    Command("operation wait", "operation:wait",
            "wait until an operation finishes; the exit code is its outcome", OPERATION),
    Command("operation watch", "operation:watch", "print changes of operations as they happen",
            Argument("name", metavar="OPERATION", nargs="?", offer="operations",
                     text="only this operation, until it finishes")),
    Command("operation cancel", "operation:cancel", "stop an operation and roll it back",
            OPERATION),
    Command("operation repair", "operation:repair", "retry the rollback of an operation",
            OPERATION),
    Command("operation abandon", "operation:abandon",
            "release the claims of an operation that cannot be rolled back", OPERATION),
    Command("orphan list", "orphan:list_orphans",
            "list resources with zfsilo's marks but without a record"),
    Command("orphan remove", "orphan:remove", "remove orphans and their data",
            Argument("name", metavar="ORPHAN", nargs="+", offer="orphans",
                     text="name in `zfsiloctl orphan list`"),
            flag("-y", "--yes", text="do not ask for confirmation"),
            flag("--force", text="even while it is in use"), changes=True),
    Command("csi orphans", "csi:orphans",
            "list volumes of Kubernetes whose PersistentVolume is lost",
            Argument("file", metavar="FILE", offer="files",
                     text="volume handles of all PersistentVolumes, one a line (-: stdin)")),
    Command("adopt", "orphan:adopt",
            "create the record of a volume for an existing zvol, or put the zvol back under it",
            Argument("dataset", metavar="DATASET", nargs="?", offer="zvols",
                     text="the zvol, such as tank/vm-1"),
            flag("--all", text="every zvol below the root that has zfsilo's marks but no record"),
            Argument("--id", metavar="VOLUME", default="", text="id of the volume"),
            flag("--accept-copy", text="use a copy, such as zfs receive makes, in place of the "
                 "missing zvol of a volume"),
            flag("--take-over", text="with --all: also from another store, which uses the pool no "
                 "more"),
            flag("-y", "--yes", text="do not ask for confirmation"),
            changes=True),
    Command("machine moved", "machine:moved", "go on after the disk was moved to another machine",
            flag("-y", "--yes", text="do not ask for confirmation")),
    Command("machine cloned", "machine:cloned",
            "make a copy of a machine a host of its own, without the original's identity",
            flag("-y", "--yes", text="do not ask for confirmation")),
    Command("pki init", "pki:init", "create this host's certificate authority and certificate",
            repeatable("--name", metavar="NAME", text="additional name or address of this host")),
    Command("pki issue", "pki:issue", "issue a certificate, in a join file, to a host or a user",
            Argument("kind", metavar="KIND", choices=("host", "user"), offer=("host", "user"),
                     text="host or user"),
            Argument("subject", metavar="NAME", text="id of the host, or name of the user"),
            Argument("--role", choices=ROLES, default="", offer=ROLES, text="role of the user"),
            Argument("--file", metavar="FILE", default="", offer="files",
                     text="where to write it (NAME.join; -: standard output)"),
            ADDRESS,
            Argument("--days", metavar="N", type=parse_days, default=90,
                     text="validity in days (90; a host renews it automatically)")),
    Command("pki list", "pki:list_issued", "list the certificates that this host issued"),
    Command("pki renew", "pki:renew",
            "renew certificates that expire soon: this host's own, and those for its servers",
            flag("--now", text="renew all of them now")),
    Command("pki revoke", "pki:revoke", "revoke certificates, also on open connections",
            Argument("name", metavar="NAME",
                     text="[imported/]host/NAME, [imported/]user/NAME, or the id of a certificate"),
            flag("--unknown", text="also an identity without a recorded certificate"),
            flag("--undo", text="withdraw the revocation of an imported/ identity")),
    Command("pki import", "pki:import_pem", "import a certificate from another authority",
            Argument("file", metavar="FILE", offer="files",
                     text="PEM file: an authority to trust, or this host's own certificate"),
            Argument("--key", metavar="FILE", default="", offer="files",
                     text="key of this host's own certificate")),
    Command("audit", "audit:audit", "list changes on this host, allowed and refused",
            Argument("--since", metavar="TIME", default="",
                     text="start, as for journalctl --since (today)"),
            Argument("--caller", metavar="TEXT", default="",
                     text="only callers that contain this text"),
            Argument("--limit", metavar="N", type=parse_number, default=1000,
                     text="at most the newest N records (1000)"),
            flag("--refused", text="only refused and failed changes")),
    Command("token create", "token:create", "create a bearer token for a script",
            Argument("subject", metavar="SUBJECT", text="name of the user or script"),
            Argument("--role", choices=ROLES, required=True, offer=ROLES,
                     text="role of the token"),
            Argument("--file", metavar="FILE", offer="files",
                     text="write a file for `zfsiloctl -H FILE` instead of printing the token"),
            Argument("--days", metavar="N", type=parse_days, default=0,
                     text="validity in days (no expiry)"),
            ADDRESS),
    Command("token list", "token:list_tokens", "list tokens"),
    Command("token revoke", "token:revoke", "revoke a token",
            Argument("name", metavar="TOKEN", offer="tokens", text="id of the token")),
    Command("capacity", "info:capacity", "show the space for volumes",
            Argument("dataset", metavar="DATASET", nargs="?", default="",
                     text="dataset below the configured root")),
    Command("status", "status:status", "show a summary of a host, and what needs attention"),
    Command("doctor", "doctor:doctor", "check the prerequisites of this host"),
    Command("setup", "setup:setup", "configure this host",
            Argument("--root", metavar="DATASET", default="",
                     text="serve volumes below this dataset (zfsilo in the only pool)"),
            repeatable("--portal", metavar="ADDRESS",
                       text="address on which targets of both transports listen (all addresses)"),
            flag("--client", text="only use volumes of other servers"),
            flag("-y", "--yes", text="do not ask for confirmation"),
            flag("--dry-run", text="print the plan and change nothing")),
    Command("seal-key", "seal_key:seal_key",
            "let systemd keep the key of the store, sealed by the TPM or the host key",
            flag("-y", "--yes", text="do not ask for confirmation"),
            flag("--dry-run", text="print the plan and change nothing")),
    Command("info", "info:info", "show version, roles and features of the daemon"),
    Command("completion", "completion:completion", "print a completion script",
            Argument("shell", choices=("bash", "zsh", "fish"), offer=("bash", "zsh", "fish"),
                     text="the shell")),
)  # fmt: skip

NOUNS = {
    "status": "show a summary of a host, and what needs attention",
    "volume": "create, publish, connect and mount volumes, and undo each of these",
    "rotate-secrets": "replace the secrets of publications",
    "snapshot": "take, list and delete snapshots of volumes",
    "snapshot-group": "take snapshots of several volumes at the same moment",
    "schedule": "take snapshots by a timer, and keep them by a retention grid",
    "replication": "send volumes to another server by a timer",
    "up": "bring a volume to its configured state on this host",
    "down": "unmount and disconnect a volume on this host, or unpublish it",
    "host": "manage the hosts that are registered with a server",
    "server": "manage the servers that this host can use",
    "operation": "list, watch, cancel and repair operations",
    "orphan": "list and remove resources with zfsilo's marks but without a record",
    "csi": "find the lost volumes of a Kubernetes cluster",
    "adopt": "create the record of a volume for an existing zvol, or put the zvol back under it",
    "machine": "end the hold of a host that was moved to other hardware, or copied",
    "join": "add a server, and register this host with it",
    "pki": "manage certificates for access over the network",
    "audit": "list changes on this host, allowed and refused",
    "token": "manage bearer tokens for scripts",
    "setup": "configure this host",
    "seal-key": "let systemd keep the key of the store, sealed by the TPM or the host key",
    "doctor": "check the prerequisites of this host",
    "capacity": "show the space for volumes",
    "info": "show version, roles and features of the daemon",
    "completion": "print a completion script",
}
"""The words that `zfsiloctl --help` lists, everyday ones first."""

EPILOGS = {
    "volume": "On a client attach does the steps connect, stage and mount, now and at every boot; "
    "detach undoes them.",
}
"""The last sentence of the help of a noun."""

SYNONYMS = {
    "add": ("create",),
    "cat": ("show",),
    "describe": ("show",),
    "edit": ("update",),
    "get": ("show", "list"),
    "login": ("connect",),
    "logout": ("disconnect",),
    "ls": ("list",),
    "mk": ("create", "add"),
    "new": ("create", "add"),
    "remove": ("delete", "revoke", "forget"),
    "rm": ("delete", "remove", "revoke", "forget"),
    "set": ("update",),
    "umount": ("unmount",),
    "unexport": ("unpublish",),
    "export": ("publish",),
}
"""Words of other tools, for a suggestion; the first of its meanings that a noun has counts."""
