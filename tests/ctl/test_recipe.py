"""`zfsiloctl volume recipe`: what a host without zfsilo types, and its secrets, once."""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from zfsilod.ctl import messages as pb
from zfsilod.ctl.output.recipe import RECIPES, fits, recipe
from zfsilod.host.nvme_psk import derived_psk
from zfsilod.model.chap import Chap

if TYPE_CHECKING:
    from tests.ctl.shell import Shell

UID = "0123456789abcdef0123456789abcdef"
IQN, NQN = f"iqn.2026-01.org.zfsilo:give:{UID}", f"nqn.2026-01.org.zfsilo:give:{UID}"
TWO = ("10.77.0.1:4420", "[fd00::1]:4420")


def connection(target: str, *portals: str, secrets: bool = True, **fields: Any) -> Any:
    """Return an answer to FetchConnection."""
    chap = pb.Chap(username="host-name", mutual_username=target)
    if secrets:
        chap.password, chap.mutual_password = "first", "second"
    return pb.FetchConnectionResponse(
        target=target, portals=list(portals), serial=UID, chap=chap, **fields
    )


def words(lines: list[str]) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in lines]


def test_nvme_connects_at_each_portal() -> None:
    lines = words(recipe(connection(NQN, *TWO), "nvme"))
    one, two = [line for line in lines if line[:2] == ["nvme", "connect"]]
    assert one[one.index("-a") + 1] == "10.77.0.1"
    assert two[two.index("-a") + 1] == "fd00::1"
    assert {"--dhchap-secret=first", "--dhchap-ctrl-secret=second", f"{NQN}"} <= set(one)
    assert any("max_sectors_kb" in word for line in lines for word in line)


def test_nvme_with_tls_puts_the_derived_key_into_the_keyring() -> None:
    keys = Chap.make_keys(host="host-name", subsystem=NQN, tls=True)
    answer = connection(NQN, *TWO, tls=True)
    hidden = recipe(answer, "nvme")
    answer.chap.tls_key = keys.tls_key.reveal()
    lines = recipe(answer, "nvme")
    identity, psk = derived_psk(keys)
    (add,) = [line for line in lines if "keyctl" in line]
    assert f"'{identity}'" in add
    assert b64encode(psk).decode() in add
    assert keys.tls_key.reveal() not in "".join(lines)
    assert identity not in "".join(hidden)
    assert sum(line.endswith(" --tls") for line in lines) == 2


@pytest.mark.parametrize("tool", ["iscsiadm", "esxi"])
def test_the_name_of_a_host_is_compared_and_not_changed(tool: str) -> None:
    """A hypervisor with other iSCSI storage is known there by this name."""
    lines = recipe(connection(IQN, "10.77.0.1:3260"), tool)
    commands = [line for line in lines if not line.startswith("#")]
    assert not any(word in line for line in commands for word in (" > ", "adapter set"))
    (check,) = [line for line in commands if "grep" in line]
    assert shlex.split(check)[-1 if tool == "esxi" else -2].endswith("host-name")
    assert lines.index(check) < lines.index(next(line for line in lines if IQN in line))
    assert any(line.startswith("# If it prints nothing") for line in lines)


def test_the_recipe_for_nvme_tells_of_a_reboot() -> None:
    lines = recipe(connection(NQN, *TWO), "nvme")
    assert any(line.startswith("#") and "reboot" in line for line in lines)


def test_iscsiadm_logs_in_once() -> None:
    """Without multipathd a second session would be a second disk."""
    lines = words(recipe(connection(IQN, "10.77.0.1:3260", "10.88.0.1:3260"), "iscsiadm"))
    values = {line[-3]: line[-1] for line in lines if "-n" in line}
    assert values["node.session.auth.username"] == "host-name"
    assert values["node.session.auth.password"] == "first"
    assert values["node.session.auth.username_in"] == IQN
    assert values["node.session.auth.password_in"] == "second"
    assert [line[-1] for line in lines if line].count("--login") == 1
    assert not any("10.88.0.1:3260" in line for line in lines)


def test_windows_authenticates_in_both_directions() -> None:
    answer = connection(IQN, "10.77.0.1:3260", "[fd00::1]:3260")
    answer.chap.username = "iqn.1991-05.com.microsoft:plain"
    lines = recipe(answer, "windows")
    commands = [line for line in lines if not line.startswith("#")]
    (connect,) = [line for line in commands if line.startswith("Connect-IscsiTarget")]
    for words in (
        f"-NodeAddress '{IQN}'",
        "-TargetPortalAddress '10.77.0.1' -TargetPortalPortNumber 3260",
        "-AuthenticationType MUTUALCHAP -ChapUsername 'iqn.1991-05.com.microsoft:plain'",
        "-ChapSecret 'first'",
    ):
        assert words in connect
    assert "Set-IscsiChapSecret -ChapSecret 'second'" in commands
    assert any(line.startswith("# New-IscsiTargetPortal") and "fd00::1" in line for line in lines)
    (check,) = [line for line in commands if "Get-InitiatorPort" in line]
    assert check.endswith("'iqn.1991-05.com.microsoft:plain'")
    assert commands.index(check) < commands.index(connect)
    assert not any("12 to 16" in line for line in lines)


@pytest.mark.parametrize("change", ["name", "length"])
def test_windows_says_which_secrets_it_refuses(change: str) -> None:
    answer = connection(IQN, "10.77.0.1:3260")
    if change == "length":
        answer.chap.username, answer.chap.password = "iqn.1991-05.com.microsoft:a", "x" * 17
    assert any("12 to 16 characters" in line for line in recipe(answer, "windows"))


def test_a_host_with_windows_gets_secrets_that_it_accepts(ctl: Shell) -> None:
    ctl.ok("host add win --iqn iqn.1991-05.com.microsoft:Win")
    ctl.ok("volume create disk 1G")
    ctl.ok("volume publish disk win")
    for _time in ("published", "rotated"):
        lines = ctl("volume recipe disk win --secrets --for windows --json").json["lines"]
        text = "\n".join(lines)
        secrets = re.findall(r"-ChapSecret '([^']+)'", text)
        assert {len(secret) for secret in secrets} == {16}
        assert len(set(secrets)) == 2
        assert "12 to 16" not in text
        ctl.ok("rotate-secrets disk win")


def test_esxi_authenticates_in_both_directions() -> None:
    lines = words(recipe(connection(IQN, "10.77.0.1:3260"), "esxi"))
    one, two = [line for line in lines if "chap" in line]
    assert {"--direction=uni", "--authname=host-name", "--secret=first"} <= set(one)
    assert {"--direction=mutual", f"--authname={IQN}", "--secret=second"} <= set(two)


@pytest.mark.parametrize(
    ("target", "portal", "readonly", "path"),
    [
        (NQN, "0.0.0.0:4420", False, "by-id/nvme-uuid.01234567-89ab-cdef-0123-456789abcdef"),
        (IQN, "10.77.0.1:3260", True, f"by-path/ip-10.77.0.1:3260-iscsi-{IQN}-lun-0"),
        (IQN, "[fd00::1]:3260", False, f"by-path/ip-fd00::1:3260-iscsi-{IQN}-lun-0"),
    ],
)
def test_libvirt_has_the_disk_of_the_hypervisor(
    target: str, portal: str, path: str, *, readonly: bool
) -> None:
    lines = recipe(connection(target, portal, readonly=readonly), "libvirt")
    disk = ET.fromstring("\n".join(lines))
    source = disk.find("source")
    assert source is not None
    assert source.get("dev") == f"/dev/disk/{path}"
    assert (disk.find("readonly") is not None) == readonly
    assert "second" not in "".join(lines)


@pytest.mark.parametrize("tool", RECIPES)
def test_no_secret_and_no_wildcard_is_made_up(tool: str) -> None:
    target = NQN if fits(tool, NQN) else IQN
    text = "\n".join(recipe(connection(target, "0.0.0.0:3260", secrets=False), tool))
    assert "0.0.0.0" not in text
    assert re.search(r"^(#|<!--) ADDRESS is the address of the server", text, re.MULTILINE)
    assert ("PASSWORD" in text) == (tool != "libvirt")


def test_secrets_are_shown_once(ctl: Shell) -> None:
    ctl.ok("host add plain --iqn iqn.2026-01.org.example:plain")
    ctl.ok("volume create data 1G")
    assert ctl("volume recipe data plain").code != 0
    ctl.ok("volume publish data plain")
    before = ctl.ok("volume recipe data plain")
    assert "PASSWORD" in before
    assert "zfsilo-chap-" not in before
    shown = ctl.ok("volume recipe data plain --secrets")
    assert shown.count("zfsilo-chap-") == 2
    assert "shown before" in ctl.fails(5, "volume recipe data plain --secrets")
    assert ctl.ok("volume recipe data plain") == before
    ctl.ok("rotate-secrets data plain")
    again = ctl("volume recipe data plain --secrets --for esxi --json").json
    assert again["tool"] == "esxi"
    assert sum("zfsilo-chap-" in line for line in again["lines"]) == 2
    assert not set(shown.split()) & {
        word for line in again["lines"] for word in line.split() if "zfsilo-chap-" in word
    }


def test_a_tool_of_the_other_transport_spends_nothing(ctl: Shell) -> None:
    ctl.ok("host add bare")
    ctl.ok("volume create more 1G")
    ctl.ok("volume publish more bare --transport nvme")
    assert "over nvme" in ctl.fails(2, "volume recipe more bare --secrets --for esxi")
    assert ctl.ok("volume recipe more bare --secrets").count("DHHC-1:") == 2
