"""Every block of docs/changing-things.md, typed after the change that its section is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import ROOT, Block, blocks
from tests.lab import leak_check
from tests.lab.test_identity import MOVE, NAMED, OTHER, TARGETS, detach
from tests.lab.test_recovery import PATH, STEP_S, TEST_S, ctl, read, write

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

PAGE = ROOT / "docs/changing-things.md"
NAME = "data"
CONFIGURATION = "/etc/zfsilo/zfsilod.toml"
SECOND_ADDRESS = f"""
device=$(ip -o -4 address show to {OTHER} | awk '{{print $2; exit}}')
ip address add 10.77.0.1/24 dev "$device"
sed -i 's/"{OTHER}:3260"/"{OTHER}:3260", "10.77.0.1:3260"/' {CONFIGURATION}
"""
LOGIN = f"""
until grep -qx {OTHER} /sys/class/iscsi_connection/connection*/persistent_address &&
      grep -qx LOGGED_IN /sys/class/iscsi_session/session*/state
do sleep 0.5; done
"""
LISTENING = "ls -d /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/np/* | sed 's,.*/,,'"
INITIATOR = """
echo InitiatorName=iqn.2026-01.org.example:take > /etc/iscsi/initiatorname.iscsi
systemctl restart iscsid.service
"""
UNDER_ANOTHER_NAME = """
zpool export tank
zpool import -d /dev/disk/by-id tank vault
udevadm settle
"""
# A machine of another name and without records, as a new server is.
NEW_SERVER = f"""
zpool export tank
systemctl stop zfsilod.socket
mv /var/lib/zfsilo /root/former
systemd-tmpfiles --create --prefix=/var/lib
sed -i 's/^host_id = .*/host_id = "new"/' {CONFIGURATION}
systemctl start zfsilod.socket zfsilod.service
"""


class TypedPage:
    """The page, whose blocks are typed in the order of its sections."""

    def __init__(self, pair: Pair) -> None:
        self.machines = {"give": pair.give, "take": pair.take, "new": pair.give}
        self.typed: list[int] = []

    def section(self, title: str) -> list[Block]:
        """Return the blocks of a section."""
        lines = PAGE.read_text().splitlines()
        first = lines.index(f"## {title}") + 1
        later = (n for n, line in enumerate(lines, 1) if line.startswith("## ") and n > first)
        last = next(later, len(lines) + 1)
        return [block for block in blocks(PAGE) if first <= block.line < last]

    def type(self, title: str) -> str:
        """Type the commands of a section, each at its machine, and return what they print."""
        printed = ""
        for block in self.section(title):
            if is_configuration(block):
                continue
            self.typed.append(block.line)
            for line in block.text.splitlines():
                name, _, command = line.partition("# ")
                printed += self.machines[name].sh(f"cd /root; {command}", timeout_s=STEP_S).stdout
        return printed

    def configuration(self, title: str) -> str:
        """Return the block of a section that is for a configuration file."""
        (block,) = (block for block in self.section(title) if is_configuration(block))
        self.typed.append(block.line)
        return block.text + "\n"


def is_configuration(block: Block) -> bool:
    return block.text.startswith("[")


def targets(give: Machine) -> list[str]:
    return give.sh(TARGETS).stdout.split()


@pytest.fixture(scope="class")
def page(pair: Pair) -> TypedPage:
    return TypedPage(pair)


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestChangingThings:
    """One volume goes through all changes; its data is read after each."""

    def test_host_name(self, pair: Pair, page: TypedPage) -> None:
        ctl(pair.give, "volume", "create", NAME, "1G", "--host", "take")
        ctl(pair.give, "volume", "publish", NAME, "take")
        self.attach(pair)
        written, before = write(pair.take), targets(pair.give)
        printed = page.type("Host name")
        assert "the host name is nas" in printed
        assert targets(pair.give) == before
        assert read(pair.take) == written

        text = page.configuration("Host name")
        pair.give.sh(f"cat >> {CONFIGURATION} <<'END'\n{text}END", timeout_s=STEP_S)
        pair.give.sh("systemctl restart zfsilod.service", timeout_s=STEP_S)
        status = pair.give.sh("zfsiloctl status", timeout_s=STEP_S).stdout
        assert "nothing needs attention" in status
        assert targets(pair.give) == before

    def test_address_of_a_server(self, pair: Pair, page: TypedPage) -> None:
        pair.give.sh(MOVE, timeout_s=STEP_S)
        pair.take.sh(NAMED.format(address=OTHER))
        page.type("Address of a server")
        pair.take.sh(LOGIN, timeout_s=STEP_S)
        pair.take.sh(f"echo more > {PATH}/more; sync {PATH}/more", timeout_s=STEP_S)

    def test_portals(self, pair: Pair, page: TypedPage) -> None:
        pair.give.sh(SECOND_ADDRESS, timeout_s=STEP_S)
        page.type("Portals")
        listening = pair.give.sh(LISTENING).stdout.split()
        assert listening == ["10.77.0.1:3260", f"{OTHER}:3260"]

    def test_prefix_of_targets(self, pair: Pair, page: TypedPage) -> None:
        give, take = pair.give, pair.take
        detach(pair)
        (target,) = targets(give)
        former = target.rpartition("/")[2].rpartition(":")[0]
        text = page.configuration("Prefix of targets")
        (prefix,) = (line.split('"')[1] for line in text.splitlines() if "iqn_prefix" in line)
        text = text.replace("iqn.2026-01.org.example:storage", former)
        give.put("/etc/zfsilo/zfsilod.toml.d/prefix.toml", text.encode(), 0o644)
        give.sh("systemctl restart zfsilod.service", timeout_s=STEP_S)
        assert targets(give) == [target]
        page.type("Prefix of targets")
        (renamed,) = targets(give)
        assert f"/{prefix}:" in renamed
        take.sh("sed -i '/^iqn_prefix/d' /etc/zfsilo/servers.d/give.toml")
        take.sh("systemctl restart zfsilod.service", timeout_s=STEP_S)
        self.use(pair)

    def test_initiator_name_of_a_client(self, pair: Pair, page: TypedPage) -> None:
        pair.take.sh(INITIATOR, timeout_s=STEP_S)
        page.type("Initiator name of a client")
        self.use(pair)

    def test_name_of_a_pool(self, pair: Pair, page: TypedPage) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "--all")
        pair.give.sh(UNDER_ANOTHER_NAME, timeout_s=STEP_S)
        page.type("Name of a pool")
        ctl(pair.give, "volume", "publish", NAME, "take")
        self.use(pair)

    def test_machine_replaced_and_certificates(self, pair: Pair, page: TypedPage) -> None:
        """The next machine needs a certificate, which the section on certificates issues."""
        give, take = pair.give, pair.take
        page.type("Machine replaced")
        refused = take.run("zfsiloctl", "volume", "connect", NAME, "--server", "give", check=False)
        assert refused.rc != 0
        take.sh(f"echo '{OTHER} give.example' >> /etc/hosts")
        (block,) = page.section("Certificates")
        issue, copy, join = (line.partition("# ")[2] for line in block.text.splitlines())
        give.sh(f"cd /root; {issue}", timeout_s=STEP_S)
        assert copy.startswith("scp take.join")
        take.put("/root/take.join", give.get("/root/take.join"), 0o600)
        give.sh("rm /root/take.join")
        take.sh(f"cd /root; {join}; rm -f take.join", timeout_s=STEP_S)
        page.typed.append(block.line)
        self.use(pair)

    def test_pool_on_another_server(self, pair: Pair, page: TypedPage) -> None:
        give = pair.give
        ctl(give, "volume", "unpublish", NAME, "--all")
        give.sh(NEW_SERVER, timeout_s=STEP_S)
        page.type("Pool on another server")
        assert NAME in give.sh("zfsiloctl volume list", timeout_s=STEP_S).stdout
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []

    def test_every_block_was_typed(self, page: TypedPage) -> None:
        assert sorted(page.typed) == [block.line for block in blocks(PAGE)]

    def attach(self, pair: Pair) -> None:
        """Attach the published volume; to detach it withdraws nothing."""
        ctl(pair.take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(pair.take, "volume", "stage", NAME)
        ctl(pair.take, "volume", "mount", NAME, PATH)

    def use(self, pair: Pair) -> None:
        """Read what was written at first, and detach."""
        self.attach(pair)
        assert pair.take.sh(f"cat {PATH}/more", timeout_s=STEP_S).stdout == "more\n"
        detach(pair)
