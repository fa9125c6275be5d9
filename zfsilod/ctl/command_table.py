"""The command line as a table: every command, its function, its help and its arguments.

The parser (parser.py), the shell completion (completion.py) and the tests are made from it. A
function is named by module and name, so that a command loads only what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.ctl.parse import parse_days, parse_number, parse_seconds, parse_timeout

if TYPE_CHECKING:
    from collections.abc import Sequence


class Argument:
    """An argument of a command, as argparse takes it, and what the shell may offer for it."""

    def __init__(
        self, *names: str, text: str, offer: str | Sequence[str] = (), **options: object
    ) -> None:
        """`offer`: words, or one of volumes, hosts, servers, operations, tokens, files."""
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
    """Return an option without a value."""
    return Argument(*names, text=text, action="store_true")


ACCESS_MODES = (
    "single_node_writer", "single_node_reader_only", "single_node_single_writer",
    "single_node_multi_writer", "multi_node_reader_only", "multi_node_single_writer",
    "multi_node_multi_writer",
)  # fmt: skip
ROLES = ("admin", "controller", "reader")  # auth.READERS, without its imports
OPERATION_STATES = (
    "running", "waiting", "failed", "done", "rolled_back", "needs_repair", "abandoned",
)  # fmt: skip
ADDRESS = Argument("--address", metavar="HOST[:PORT]", default="",
                   text="how this server is reached (its host name)")  # fmt: skip
FS_TYPES = ("ext4", "xfs")
VOLUME_STATES = ("created", "published", "connected", "staged", "mounted")

COMMON = (
    Argument("-H", "--remote", metavar="NAME", offer="servers",
             text="talk to this server in place of the local daemon (a name, or a join file)"),
    Argument("--socket", metavar="PATH", offer="files",
             text="the local daemon's socket (ZFSILO_SOCKET; /run/zfsilo/zfsilod.sock)"),
    Argument("--timeout", metavar="SECONDS", type=parse_timeout,
             text="how long to wait for an answer (600; what only reads: 30)"),
    flag("--json", text="print protobuf's JSON, for programs"),
    flag("-q", "--quiet", text="print names only in lists, and nothing after changes"),
)  # fmt: skip
CHANGE = (
    flag("--dry-run", text="print what would be done, and do nothing"),
    flag("--no-wait", text="return when the operation is stored, without waiting for its end"),
)  # fmt: skip

VOLUME = Argument("name", metavar="VOLUME", offer="volumes", text="the volume")
SNAPSHOT = Argument("name", metavar="SNAPSHOT", offer="snapshots", text="the snapshot")
GROUP = Argument("name", metavar="GROUP", offer="groups", text="the group")
HOST = Argument("name", metavar="HOST", offer="hosts", text="the host's id")
OPERATION = Argument("name", metavar="OPERATION", offer="operations", text="the operation's id")
FORCE = flag("--force", text="whoever is at work there: what was not written yet is lost")
ETAG = Argument("--etag", text="refuse when it has changed since it was read with this etag")
FILTER = Argument("--filter", metavar="EXPRESSION",
                  text="which ones: 'state = MOUNTED AND labels.app = \"db\"'")  # fmt: skip
LABEL_FILTER = Argument("-l", "--label", metavar="NAME=VALUE", action="append", default=[],
                        text="those with this label; may be repeated")  # fmt: skip
LABEL = Argument("-l", "--label", metavar="NAME=VALUE", action="append", default=[],
                 text="set a label; may be repeated")  # fmt: skip
LABEL_CHANGE = Argument("-l", "--label", metavar="NAME=VALUE", action="append", default=[],
                        text="set a label (NAME- removes it); may be repeated")  # fmt: skip
PATH = Argument("path", metavar="PATH", nargs="?", offer="files", text="the path")
ALL_PATHS = flag("--all", text="from all paths")
READONLY = flag("--readonly", text="refuse writes")
FS_TYPE = Argument("--fs-type", metavar="TYPE", default="", offer=FS_TYPES, choices=FS_TYPES,
                   text="what to make (what it has, or ext4)")  # fmt: skip
MOUNT_OPTION = Argument("-o", "--option", metavar="OPTIONS", action="append", default=[],
                        text="mount options: noatime,discard; may be repeated")  # fmt: skip
IQN = Argument("--iqn", text="its name as an iSCSI initiator")
NQN = Argument("--nqn", text="its name as an NVMe host")
MAX = Argument("--max-attachments", metavar="N", type=parse_number,
               text="how many volumes it can take; 0: any number")  # fmt: skip

COMMANDS = (
    Command("volume list", "volume:list_volumes", "list the volumes of a host",
            FILTER, LABEL_FILTER, flag("--deleted", text="also those in the trash"),
            Argument("--state", offer=VOLUME_STATES, choices=VOLUME_STATES, text="those in this state")),
    Command("volume show", "volume:show", "show all that is known of a volume", VOLUME),
    Command("volume probe", "volume:probe", "look at every fact that makes up a volume", VOLUME),
    Command("volume stats", "volume:stats", "show how full a volume is", VOLUME),
    Command("volume create", "volume:create", "make a volume",
            Argument("name", metavar="VOLUME", text="its id: a-z 0-9 . _ -"),
            Argument("size", metavar="SIZE", text="10G, 512MiB, 1.5T, or bytes"),
            Argument("--limit", metavar="SIZE", default="0",
                     text="the most that rounding up to blocks may make of the size"),
            flag("--thick", text="reserve all of its room at once"),
            flag("--block", text="use it as a block device, without a filesystem of ours"),
            Argument("-o", "--property", metavar="NAME=VALUE", action="append", default=[],
                     text="set a ZFS property; may be repeated"),
            LABEL,
            Argument("--host", metavar="HOST", action="append", default=[], offer="hosts",
                     text="a host that may publish it to itself ('*': any); may be repeated"),
            Argument("--access-mode", metavar="MODE", action="append", default=[],
                     choices=ACCESS_MODES, offer=ACCESS_MODES,
                     text="how it may be published (single_node_writer); may be repeated"),
            Argument("--from-snapshot", metavar="SNAPSHOT", default="", offer="snapshots",
                     text="begin with what a snapshot holds; it must be at least as large"),
            Argument("--from-volume", metavar="VOLUME", default="", offer="volumes",
                     text="begin with what a volume holds now; it must be at least as large"),
            changes=True),
    Command("volume update", "volume:update", "change properties, labels or hosts",
            VOLUME,
            Argument("-o", "--property", metavar="NAME=VALUE", action="append", default=[],
                     text="set a ZFS property (NAME- inherits it again); may be repeated"),
            LABEL_CHANGE,
            Argument("--host", metavar="HOST", action="append", default=[], offer="hosts",
                     text="let a host publish it to itself (HOST- no longer); may be repeated"),
            ETAG, changes=True),
    Command("volume resize", "volume:resize", "grow a volume on its storage host",
            VOLUME,
            Argument("size", metavar="[+]SIZE", text="the new size, or with + what to add"),
            ETAG, changes=True),
    Command("volume delete", "volume:delete", "destroy a volume and its data",
            VOLUME, flag("-y", "--yes", text="do not ask"),
            flag("--keep-dependents", text="leave its snapshots and clones as they are"),
            ETAG, changes=True),
    Command("volume undelete", "volume:undelete", "take a deleted volume out of the trash",
            Argument("name", metavar="VOLUME", text="its id, as it was"),
            Argument("--uid", default="", text="which one of that name (the last deleted)"),
            changes=True),
    Command("volume publish", "volume:publish", "export a volume to a host",
            VOLUME,
            Argument("host", metavar="HOST", offer="hosts", text="the host's id"),
            Argument("--access-mode", metavar="MODE", choices=ACCESS_MODES, offer=ACCESS_MODES,
                     text="how that host may use it"),
            READONLY,
            flag("--force", text="take it, with its session, from the host that has it"),
            ETAG, changes=True),
    Command("volume unpublish", "volume:unpublish", "take a volume back from a host",
            VOLUME,
            Argument("host", metavar="HOST", nargs="?", offer="hosts", text="the host's id"),
            flag("--all", text="from all hosts"),
            flag("--fence", text="also when it is logged in: its session is ended"),
            Argument("--grace", metavar="SECONDS", type=parse_seconds,
                     text="with --fence: how long it may take to log out by itself (5)"),
            ETAG, changes=True),
    Command("volume connect", "attachment:connect", "log in to a volume of a server",
            Argument("name", metavar="VOLUME", text="the volume's id at its server"),
            Argument("--server", metavar="NAME", offer="servers",
                     text="the server; needless when only one is known"),
            Argument("--as", dest="local_name", metavar="NAME", default="",
                     text="what it shall be called on this host"),
            Argument("--restore", choices=("never", "boot"), default="never",
                     offer=("never", "boot"), text="whether it comes back after a reboot (never)"),
            flag("--no-publish", text="fail when it is not published to this host"),
            Argument("--epoch", metavar="N", type=parse_number, default=0,
                     text="only by the publication of this epoch"),
            changes=True),
    Command("volume attach", "attach:attach", "connect, stage and mount it, now and at every boot",
            Argument("name", metavar="VOLUME", text="the volume's id at its server"),
            Argument("path", metavar="PATH", offer="files", text="where it shall be"),
            Argument("--server", metavar="NAME", offer="servers",
                     text="the server; needless when only one is known"),
            Argument("--as", dest="local_name", metavar="NAME", default="",
                     text="what it shall be called on this host"),
            FS_TYPE, MOUNT_OPTION, READONLY),
    Command("volume detach", "attach:detach", "undo attach, now and for every boot", VOLUME),
    Command("volume disconnect", "attachment:disconnect", "log out of a volume",
            VOLUME, FORCE, ETAG, changes=True),
    Command("volume stage", "attachment:stage", "make its filesystem once, and mount it for use",
            VOLUME,
            Argument("--path", default="", offer="files", text="where (/var/lib/zfsilo/staging)"),
            FS_TYPE, MOUNT_OPTION, READONLY, ETAG, changes=True),
    Command("volume unstage", "attachment:unstage", "undo stage",
            VOLUME, Argument("--path", default="", offer="files", text="only if it is there"),
            FORCE, ETAG, changes=True),
    Command("volume mount", "attachment:mount", "make a staged volume appear at a path",
            VOLUME, Argument("path", metavar="PATH", offer="files", text="the path"),
            READONLY, ETAG, changes=True),
    Command("volume unmount", "attachment:unmount", "take a volume away from a path",
            VOLUME, PATH, ALL_PATHS, FORCE, ETAG, changes=True),
    Command("volume grow", "attachment:grow", "use the size that a volume has at its server",
            VOLUME, ETAG, changes=True),
    Command("rotate-secrets", "rotate_secrets:rotate_secrets",
            "make new secrets for what is published",
            Argument("volume", metavar="VOLUME", nargs="?", offer="volumes",
                     text="the volume; without one: all that are published"),
            Argument("host", metavar="HOST", nargs="?", default="", offer="hosts",
                     text="of its publication to this host; without one: to all"),
            flag("--force", text="at once, whether or not a host that is logged in is ready"),
            changes=True),
    Command("volume sync", "volume:sync", "make a host agree with what is recorded",
            Argument("name", metavar="VOLUME", nargs="?", offer="volumes", text="the volume"),
            flag("--all", text="all volumes"), changes=True),
    Command("snapshot create", "snapshot:create", "take a snapshot of a volume",
            VOLUME,
            Argument("snapshot", metavar="SNAPSHOT", nargs="?",
                     text="its id: a-z 0-9 . _ - (a new one)"),
            LABEL, changes=True),
    Command("snapshot list", "snapshot:list_snapshots", "list snapshots",
            FILTER, LABEL_FILTER,
            Argument("--volume", metavar="VOLUME", default="", offer="volumes",
                     text="those of a volume")),
    Command("snapshot show", "snapshot:show", "show a snapshot", SNAPSHOT),
    Command("snapshot delete", "snapshot:delete", "give a snapshot up; what was made of it stays",
            SNAPSHOT, ETAG, changes=True),
    Command("snapshot-group create", "snapshot:create_group",
            "take snapshots of several volumes at one moment",
            Argument("name", metavar="GROUP", text="its id: a-z 0-9 . _ -"),
            Argument("volume", metavar="VOLUME", nargs="+", offer="volumes", text="the volumes"),
            LABEL, changes=True),
    Command("snapshot-group list", "snapshot:list_groups", "list groups of snapshots",
            FILTER, LABEL_FILTER),
    Command("snapshot-group show", "snapshot:show_group", "show a group and its snapshots", GROUP),
    Command("snapshot-group delete", "snapshot:delete_group", "give all snapshots of a group up",
            GROUP, ETAG, changes=True),
    Command("up", "up:up", "bring a volume all the way up on this host",
            VOLUME,
            Argument("--wait", metavar="SECONDS", type=parse_seconds, default=300.0,
                     text="how long to wait for a server that does not answer (300)")),
    Command("down", "up:down", "take a volume all the way down on this host", VOLUME),
    Command("host list", "host:list_hosts", "list the hosts that volumes can be published to",
            FILTER, LABEL_FILTER),
    Command("host show", "host:show", "show a host", HOST),
    Command("host add", "host:add", "make a host known",
            Argument("name", metavar="HOST", text="its id: a-z 0-9 . _ -"),
            IQN, NQN,
            Argument("--address", action="append", default=[],
                     text="an address or name of it; may be repeated"),
            LABEL, MAX, changes=True),
    Command("host update", "host:update", "change what is known of a host",
            HOST, IQN, NQN,
            Argument("--address", action="append", default=[],
                     text="its addresses or names, in place of those known; may be repeated"),
            LABEL_CHANGE, MAX, ETAG, changes=True),
    Command("host delete", "host:delete", "forget a host", HOST, ETAG, changes=True),
    Command("server list", "server:list_servers", "list the servers that this host knows"),
    Command("join", "server:join", "get to know a server, and register with it",
            Argument("file", metavar="FILE", offer="files",
                     text="what `zfsiloctl pki issue host` wrote there (-: standard input)"),
            Argument("--as", dest="local_name", metavar="NAME", default="",
                     text="what the server shall be called on this host"),
            Argument("--iqn", text="this host's name as an iSCSI initiator (that of open-iscsi)")),
    Command("server forget", "server:forget", "forget a server",
            Argument("name", metavar="SERVER", offer="servers", text="the server's name here")),
    Command("operation list", "operation:list_operations", "list operations, oldest first",
            FILTER,
            Argument("--state", choices=OPERATION_STATES, offer=OPERATION_STATES, text="those in this state"),
            flag("--running", text="those that have not ended"),
            Argument("--volume", metavar="VOLUME", offer="volumes", text="those about a volume")),
    Command("operation show", "operation:show", "show an operation with its moves", OPERATION),
    Command("operation wait", "operation:wait", "wait for its end; its failure is this exit code",
            OPERATION),
    Command("operation watch", "operation:watch", "print changes of operations as they happen",
            Argument("name", metavar="OPERATION", nargs="?", offer="operations",
                     text="only this one, until its end")),
    Command("operation cancel", "operation:cancel", "stop an operation and take it back",
            OPERATION),
    Command("operation repair", "operation:repair", "try once more to take an operation back",
            OPERATION),
    Command("operation abandon", "operation:abandon",
            "let go of an operation that cannot be taken back", OPERATION),
    Command("orphan list", "orphan:list_orphans",
            "list what has our marks on a host and no record owns"),
    Command("orphan remove", "orphan:remove", "remove orphans, with their data",
            Argument("name", metavar="ORPHAN", nargs="+", text="its name in the list"),
            flag("-y", "--yes", text="do not ask"),
            flag("--force", text="also when somebody is at work with it"), changes=True),
    Command("adopt", "orphan:adopt", "make a volume of a zvol that is there",
            Argument("dataset", metavar="DATASET", nargs="?", text="the zvol: tank/vm-1"),
            flag("--all", text="every zvol below the root that is ours and has no record"),
            Argument("--id", metavar="VOLUME", default="", text="the id that it shall have"),
            changes=True),
    Command("pki init", "pki:init", "become an authority: make it, and this host's certificate",
            Argument("--name", action="append", default=[], metavar="NAME",
                     text="a further name or address of this host; may be repeated")),
    Command("pki issue", "pki:issue", "make the one file that lets a host or a person in",
            Argument("kind", metavar="KIND", choices=("host", "user"), offer=("host", "user"),
                     text="whom it lets in"),
            Argument("subject", metavar="NAME", text="the host's id, or the user's name"),
            Argument("--role", choices=ROLES, default="", offer=ROLES, text="what a user may do"),
            Argument("--file", metavar="FILE", default="", offer="files",
                     text="where to write it (NAME.join; -: standard output)"),
            ADDRESS,
            Argument("--days", metavar="N", type=parse_days, default=90,
                     text="how long it is good (90; a host renews it by itself)")),
    Command("pki list", "pki:list_issued", "list the certificates that were made here"),
    Command("pki renew", "pki:renew", "renew what ends soon: own certificate, and for servers",
            flag("--now", text="renew them whenever they end")),
    Command("pki revoke", "pki:revoke", "make certificates worthless, open connections too",
            Argument("name", metavar="NAME", text="host/NAME, user/NAME, or an id of `pki list`")),
    Command("pki import", "pki:import_pem", "take a certificate that was made elsewhere",
            Argument("file", metavar="FILE", offer="files",
                     text="PEM: an authority to believe, or this host's own certificate"),
            Argument("--key", metavar="FILE", default="", offer="files",
                     text="the key of this host's own certificate")),
    Command("audit", "audit:audit", "show who changed what on this host, or was refused",
            Argument("--since", metavar="TIME", default="", text="as journalctl takes it (today)"),
            Argument("--caller", metavar="TEXT", default="", text="those whose caller has this"),
            flag("--refused", text="those that were refused or failed")),
    Command("token create", "token:create", "make a token for a script",
            Argument("subject", metavar="SUBJECT", text="the user or script that it stands for"),
            Argument("--role", choices=ROLES, required=True, offer=ROLES,
                     text="what its bearer may do"),
            Argument("--file", metavar="FILE", offer="files",
                     text="write a file for `zfsiloctl -H FILE`, in place of printing"),
            Argument("--days", metavar="N", type=parse_days, default=0,
                     text="how long it is good (for ever)"),
            ADDRESS),
    Command("token list", "token:list_tokens", "list tokens"),
    Command("token revoke", "token:revoke", "make a token worthless",
            Argument("name", metavar="TOKEN", offer="tokens", text="the token's id")),
    Command("capacity", "info:capacity", "show the room for volumes",
            Argument("dataset", metavar="DATASET", nargs="?", default="",
                     text="a dataset below the configured root")),
    Command("status", "status:status", "show a host at a glance, and what needs attention"),
    Command("doctor", "doctor:doctor", "tell what this host lacks, and what to type"),
    Command("setup", "setup:setup", "configure this host, and tell what to type next",
            Argument("--root", metavar="DATASET", default="",
                     text="serve volumes below this dataset (zfsilo, in the only pool)"),
            Argument("--portal", metavar="ADDRESS", action="append", default=[],
                     text="where targets listen (everywhere); may be repeated"),
            flag("--take", text="only use volumes of others"),
            flag("-y", "--yes", text="do not ask"),
            flag("--dry-run", text="only tell what would be done")),
    Command("info", "info:info", "show what the daemon says of itself"),
    Command("completion", "completion:completion", "print a completion script",
            Argument("shell", choices=("bash", "zsh", "fish"), offer=("bash", "zsh", "fish"),
                     text="for this shell")),
)  # fmt: skip

NOUNS = {
    "status": "show a host at a glance, and what needs attention",
    "volume": "volumes: make, publish, connect, mount, and the way back",
    "rotate-secrets": "make new secrets for what is published",
    "snapshot": "what volumes held at one moment",
    "snapshot-group": "snapshots of several volumes at one moment",
    "up": "bring a volume all the way up on this host",
    "down": "take a volume all the way down on this host",
    "host": "the hosts that volumes are published to",
    "server": "the storage hosts that this host uses",
    "operation": "running and ended changes",
    "orphan": "things of ours that no record owns",
    "adopt": "make a volume of a zvol that is there",
    "join": "get to know a server, and register with it",
    "pki": "certificates: who may talk to this daemon over the network",
    "audit": "show who changed what on this host, or was refused",
    "token": "bearer tokens for scripts",
    "setup": "configure this host, and tell what to type next",
    "doctor": "tell what this host lacks, and what to type",
    "capacity": "show the room for volumes",
    "info": "show what the daemon says of itself",
    "completion": "print a completion script",
}
"""What `zfsiloctl --help` lists."""
