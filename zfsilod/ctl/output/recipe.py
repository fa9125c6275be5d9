"""The commands with which a host without zfsilo connects to a volume, as text.

iscsiadm(8), nvme-connect(1), esxcli of ESXi 7 and 8, the modules iSCSI and Storage of PowerShell on
Windows, and the disk of a domain of libvirt.
"""

from __future__ import annotations

from base64 import b64encode

from zfsilod.host.nvme_psk import derived_psk
from zfsilod.model.chap import WINDOWS, Chap
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import host_id_of, is_nqn, portal_parts, uuid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound
ADDRESS = "ADDRESS"  # in place of a wildcard
HIDDEN, HIDDEN_MUTUAL = "PASSWORD", "PASSWORD_OF_THE_SERVER"
HIDDEN_PSK = ("IDENTITY_OF_THE_PSK", "PSK_OF_TLS")
RULE = (
    'ACTION=="add|change", SUBSYSTEM=="block", KERNEL=="nvme*n*", ATTRS{model}=="zfsilo volume*", '
    'ATTR{queue/max_sectors_kb}="1024"'
)
ADAPTER = "--adapter=vmhba64"
MOST_CHARACTERS = 16  # of a secret on Windows


def recipe(connection: Any, tool: str) -> list[str]:
    """Return the lines of a recipe, for a shell or a file, from the answer to FetchConnection.

    Without secrets it has HIDDEN and HIDDEN_MUTUAL in their places.
    """
    notes = list(_notes(connection))
    if tool == "libvirt":  # XML
        notes = [f"<!-- {note.removeprefix('# ')} -->" for note in notes]
    return [*notes, *RECIPES[tool](connection)]


def default_tool(target: str) -> str:
    """Return the tool for the transport of a target."""
    return "nvme" if is_nqn(target) else "iscsiadm"


def fits(tool: str, target: str) -> bool:
    """Tell whether a tool has the transport of a target."""
    return tool == "libvirt" or (tool == "nvme") == is_nqn(target)


def _notes(connection: Any) -> Iterator[str]:
    if any(address == ADDRESS for address, _port in _portals(connection)):
        yield f"# {ADDRESS} is the address of the server, which listens at all of its addresses."
    if connection.readonly:
        yield "# The target refuses writes."


def _check(place: str, user: str) -> Iterator[str]:
    """Explain a command that compares the name of the host: others know it by that name too."""
    yield f"# The next command prints a line if {place} the name of this host: {user}."
    yield "# If it prints nothing, stop. On the server, run `zfsiloctl host update HOST --iqn`"
    yield "# with the name that it has, publish the volume again, and print this recipe again."


def _iscsiadm(connection: Any) -> Iterator[str]:
    address, port = _portals(connection)[0]
    record = f"iscsiadm -m node -T {connection.target} -p {_joined(address, port)}"
    user, password, mutual_user, mutual_password = _names(connection)
    yield from _check("/etc/iscsi/initiatorname.iscsi has", user)
    yield f"grep -ixF InitiatorName={user} /etc/iscsi/initiatorname.iscsi"
    yield f"{record} -o new"
    for name, value in (
        ("auth.authmethod", "CHAP"),
        ("auth.username", user),
        ("auth.password", password),
        ("auth.username_in", mutual_user),
        ("auth.password_in", mutual_password),
        ("timeo.replacement_timeout", "-1"),
    ):
        yield f"{record} -o update -n node.session.{name} -v {value}"
    yield f"{record} -o update -n node.startup -v automatic"
    yield f"{record} --login"
    for address, port in _portals(connection)[1:]:
        yield f"# Further portal, for hosts with multipathd only: {_joined(address, port)}"


def _nvme(connection: Any) -> Iterator[str]:
    host, key, _subsystem, mutual_key = _names(connection)
    yield "# Larger requests fail on the server; the kernel joins the paths to one disk."
    yield f"echo '{RULE}' > /etc/udev/rules.d/59-zfsilo.rules"
    yield "udevadm control --reload"
    yield from _psk(connection)
    yield "# The connections end with a reboot of this host: repeat `nvme connect` after each one."
    for address, port in _portals(connection):
        yield (
            f"nvme connect -t tcp -a {address} -s {port} -n {connection.target} --hostnqn={host} "
            f"--hostid={host_id_of(host)} --dhchap-secret={key} --dhchap-ctrl-secret={mutual_key} "
            f"--ctrl-loss-tmo=-1{' --tls' if connection.tls else ''}"
        )
    yield f"for name in $(grep -lx {connection.target} /sys/class/nvme/*/subsysnqn); do"
    yield '    echo 1024 | tee "${name%/*}"/nvme*/queue/max_sectors_kb'
    yield "done"


def _psk(connection: Any) -> Iterator[str]:
    """Put the PSK of TLS into the keyring: derived here, as nvme-cli differs by its version."""
    if not connection.tls:
        return
    identity, psk = HIDDEN_PSK
    if connection.chap.tls_key:
        host, _key, subsystem, _mutual_key = _names(connection)
        keys = Chap(
            username=host,
            password="",
            mutual_username=subsystem,
            mutual_password="",
            tls_key=connection.chap.tls_key,
        )
        identity, derived = derived_psk(keys)
        psk = b64encode(derived).decode()
    yield "# TLS needs keyutils and ktls-utils, and the line keyrings=.nvme in the section"
    yield "# [authenticate] of /etc/tlshd.conf. After a reboot the key has to be added again."
    yield "modprobe nvme-tcp"
    yield "systemctl restart tlshd.service"
    yield f"printf %s {psk} | base64 -d | keyctl padd psk '{identity}' %:.nvme"


def _esxi(connection: Any) -> Iterator[str]:
    user, password, mutual_user, mutual_password = _names(connection)
    yield "# vmhba64: see `esxcli iscsi adapter list`."
    yield "esxcli iscsi software set --enabled=true"
    yield from _check("vmhba64 has", user)
    yield f"esxcli iscsi adapter get {ADAPTER} | grep -iF {user}"
    for address, port in _portals(connection):
        at = f"{ADAPTER} --address={_joined(address, port)} --name={connection.target}"
        yield f"esxcli iscsi adapter discovery statictarget add {at}"
        for direction, name, secret in (
            ("uni", user, password),
            ("mutual", mutual_user, mutual_password),
        ):
            yield (
                f"esxcli iscsi adapter target portal auth chap set {at} --direction={direction} "
                f"--level=required --authname={name} --secret={secret}"
            )
    yield f"esxcli storage core adapter rescan {ADAPTER}"


def _windows(connection: Any) -> Iterator[str]:
    """Yield commands of PowerShell, whose single quotes keep every character of a value."""
    user, password, _mutual_user, mutual_password = _names(connection)
    if not user.lower().startswith(WINDOWS) or len(connection.chap.password) > MOST_CHARACTERS:
        yield f"# Windows accepts secrets of 12 to {MOST_CHARACTERS} characters: those of a"
        yield f"# host whose IQN begins with {WINDOWS}. On the server, run"
        yield "# `zfsiloctl host update HOST --iqn` with such a name, and publish the volume again."
    yield "# In a PowerShell of an administrator."
    yield "Set-Service -Name MSiSCSI -StartupType Automatic"
    yield "Start-Service -Name MSiSCSI"
    yield from _check("the initiator has", user)
    yield f"Get-InitiatorPort | Where-Object NodeAddress -eq '{user}'"
    yield "# Windows has one secret for the answers of all targets. If this host has other targets"
    yield "# with mutual CHAP, leave out the next command, and write ONEWAYCHAP for MUTUALCHAP."
    yield f"Set-IscsiChapSecret -ChapSecret '{mutual_password}'"
    for number, (address, port) in enumerate(_portals(connection)):
        if number:
            yield "# A further portal, for hosts with the feature Multipath-IO only; with it, add"
            yield "# -IsMultipathEnabled $true to the command of each portal."
        comment = "# " if number else ""
        at = f"-TargetPortalAddress '{address}' -TargetPortalPortNumber {port}"
        yield f"{comment}New-IscsiTargetPortal {at}"
        yield (
            f"{comment}Connect-IscsiTarget -NodeAddress '{connection.target}' {at} "
            f"-AuthenticationType MUTUALCHAP -ChapUsername '{user}' -ChapSecret '{password}' "
            "-IsPersistent $true"
        )
    yield f"Get-Disk | Where-Object SerialNumber -eq '{connection.serial}'"
    yield "# A new disk is offline and empty: see Set-Disk, Initialize-Disk, New-Partition and"
    yield "# Format-Volume."


def _libvirt(connection: Any) -> Iterator[str]:
    address, port = _portals(connection)[0]
    # udev writes an IPv6 address without brackets: handle_scsi_iscsi() of systemd.
    by_path = f"by-path/ip-{address}:{port}-iscsi-{connection.target}-lun-0"
    is_nvme = is_nqn(connection.target)
    device = f"by-id/nvme-uuid.{uuid_of(connection.serial)}" if is_nvme else by_path
    yield f"<!-- on the hypervisor first: the recipe for {default_tool(connection.target)} -->"
    yield "<disk type='block' device='disk'>"
    yield "  <driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>"
    yield f"  <source dev='/dev/disk/{device}'/>"
    yield "  <target dev='vdb' bus='virtio'/>"
    yield "</disk>" if not connection.readonly else "  <readonly/></disk>"


def _portals(connection: Any) -> list[tuple[str, int]]:
    parts = [portal_parts(portal) for portal in connection.portals]
    return [(ADDRESS if address in WILDCARDS else address, port) for address, port in parts]


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _names(connection: Any) -> tuple[str, str, str, str]:
    """Return name and secret of the host, and those of the server."""
    chap = connection.chap
    return (
        chap.username,
        chap.password or HIDDEN,
        chap.mutual_username,
        chap.mutual_password or HIDDEN_MUTUAL,
    )


RECIPES: dict[str, Callable[[Any], Iterator[str]]] = {
    "iscsiadm": _iscsiadm,
    "nvme": _nvme,
    "esxi": _esxi,
    "windows": _windows,
    "libvirt": _libvirt,
}
