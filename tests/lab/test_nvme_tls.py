"""TLS over NVMe/TCP on real kernels: keys on both sides, refusals, a rotation, a power cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import WRITER, refusal
from tests.lab.test_nvme import LINKED, LIVE, NVMET, attach, controllers, detach, remove
from tests.lab.test_recovery import (
    NAME,
    RECOVERY_S,
    STEP_S,
    TEST_S,
    WRITE_MORE,
    ctl,
    read,
    write,
)

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

# As docs/transports.md says.
TLSHD = """
sed -i '/^keyrings/d; s/^\\[authenticate\\]$/&\\nkeyrings=.nvme/' /etc/tlshd.conf
systemctl daemon-reload
systemctl enable --quiet tlshd.service
systemctl restart tlshd.service
"""
PSKS = "grep -c 'psk .*NVMe1R01' /proc/keys || true"
PORTS = f"cat {NVMET}/ports/*/addr_trsvcid {NVMET}/ports/*/addr_treq"
TLS_KEYS = "cat /sys/class/nvme/*/tls_key"
# The file is there once the module `tls` is loaded, by the first connection.
SOFTWARE_TLS = "cat /proc/net/tls_stat 2>/dev/null | awk '/TlsTxSw/ {print $2}'"
CHANGED = "until ! grep -qx {before} /sys/class/nvme/*/tls_key; do sleep 0.5; done"
REFRESHES = "zfsiloctl operation list --filter 'kind=\"refresh-secrets\"' --json"
FAILED_REFRESH = f"until {REFRESHES} | grep -q NO_TLSHD; do sleep 0.5; done"
PSK = "awk '/psk .*NVMe1R01/ {print \"0x\" $1}' /proc/keys"
OTHER_PSK = f"""
identity=$(sed -n 's/.*psk *\\(NVMe1R01.*\\): 32$/\\1/p' /proc/keys)
keyctl unlink $({PSK}) %:.nvme
head -c 32 /dev/zero | keyctl padd psk "$identity" %:.nvme
"""
# One connect by hand with the names of the connection, and without TLS: the errno of the kernel.
PLAIN = """
import os, re, sys
from pathlib import Path
folder = next(Path("/sys/class/nvme").iterdir())
host, subsystem = ((folder / name).read_text().strip() for name in ("hostnqn", "subsysnqn"))
ids = (folder / "hostid").read_text().strip()
keys = [(folder / f"dhchap_{name}").read_text().strip() for name in ("secret", "ctrl_secret")]
options = f"transport=tcp,traddr=10.77.0.1,trsvcid={sys.argv[1]},nqn={subsystem},hostnqn={host}," \\
    f"hostid={ids},dhchap_secret={keys[0]},dhchap_ctrl_secret={keys[1]},duplicate_connect"
descriptor = os.open("/dev/nvme-fabrics", os.O_RDWR)
try:
    os.write(descriptor, options.encode())
except OSError as error:
    print(error.errno)
else:
    print("connected")
"""


def publish(give: Machine, take: Machine) -> None:
    """Create a volume, publish it with TLS, and mount it."""
    ctl(give, "volume", "create", NAME, "1G", "--host", "take", "--transport", "nvme")
    ctl(give, "volume", "publish", NAME, "take", "--tls")
    attach(take)


def truth(machine: Machine, kind: str) -> str:
    """Return what the daemon, in its sandbox, finds of a fact of the volume."""
    words = ("volume", "probe", NAME, "--json")
    done = machine.run("zfsiloctl", *words, timeout_s=STEP_S, check=False)
    facts = json.loads(done.stdout)["facts"]
    (truth_of_kind,) = (fact["truth"] for fact in facts if fact["kind"] == kind)
    return str(truth_of_kind).removeprefix("TRUTH_")


def psks(machine: Machine) -> int:
    """Return the number of PSKs in the kernel's keyrings."""
    return int(machine.sh(PSKS).stdout)


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestTls:
    """A volume that is published with TLS."""

    def test_without_tlshd_a_connect_says_so(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        for machine in (give, take):
            machine.sh("systemctl stop tlshd.service")
        ctl(give, "volume", "create", NAME, "1G", "--host", "take", "--transport", "nvme")
        ctl(give, "volume", "publish", NAME, "take", "--tls")
        refused = refusal(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        assert "tlshd" in refused
        assert psks(take) == 0
        remove(give)
        assert leak_check.leaks(pair) == []

    def test_it_is_mounted_and_written_with_tls(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        pair.both(lambda machine: machine.sh(TLSHD))
        assert "ok  TLS over nvme" in take.run("zfsiloctl", "doctor", check=False).stdout
        before = int(take.sh(SOFTWARE_TLS).stdout or 0)
        publish(give, take)
        write(take)
        assert int(take.sh(SOFTWARE_TLS).stdout) > before
        assert take.sh(TLS_KEYS).stdout.strip() not in ("", "00000000")
        assert give.sh(PORTS).stdout.split() == ["4421", "required"]
        assert (psks(give), psks(take)) == (1, 1)
        shown = json.loads(give.run("zfsiloctl", "volume", "show", NAME, "--json").stdout)
        assert shown["publications"][0]["tls"]
        assert (truth(give, "Acl"), truth(take, "Controller")) == ("PRESENT", "PRESENT")
        assert leak_check.secrets_shown(pair) == []

    def test_it_is_not_served_without_tls(self, pair: Pair) -> None:
        take = pair.take
        for port in ("4421", "4420"):
            answer = take.run("python3", "-c", PLAIN, port, timeout_s=STEP_S).stdout
            assert answer.strip().isdecimal(), answer
        assert controllers(take) == 1

    def test_new_secrets_replace_the_key_under_writes(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.put("/root/writer.py", WRITER.encode(), 0o600)
        take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
        before = take.sh(TLS_KEYS).stdout.strip()
        ctl(give, "rotate-secrets", NAME, "take", "--force")
        take.sh(CHANGED.format(before=before), timeout_s=RECOVERY_S)
        ctl(take, "volume", "sync", NAME)
        assert (psks(give), psks(take)) == (1, 1)
        take.sh("systemctl is-active writer")

    def test_a_rotation_without_tlshd_leaves_the_connection(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop tlshd.service")
        before = take.sh(TLS_KEYS).stdout.strip()
        ctl(give, "rotate-secrets", NAME, "take", "--force")
        take.sh(FAILED_REFRESH, timeout_s=RECOVERY_S)
        assert take.sh(TLS_KEYS).stdout.strip() == before
        assert controllers(take) == 1
        take.sh("systemctl is-active writer")
        take.sh("systemctl start tlshd.service")
        take.sh(CHANGED.format(before=before), timeout_s=RECOVERY_S)
        take.sh("systemctl is-active writer")
        ctl(take, "volume", "sync", NAME)

    def test_a_power_cut_of_the_server_is_waited_out(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        written = write(take)
        print(f"give was up after {give.power_cut():.1f} s")
        give.sh(LINKED, timeout_s=RECOVERY_S)
        waited = take.sh(LIVE, timeout_s=RECOVERY_S)
        print(f"take was connected after {waited.seconds:.1f} s more")
        assert take.sh(TLS_KEYS).stdout.strip() not in ("", "00000000")
        assert read(take) == written
        take.sh(WRITE_MORE, timeout_s=STEP_S)
        take.sh("systemctl is-active writer && systemctl stop writer")
        assert (psks(give), psks(take)) == (1, 1)

    def test_another_key_is_refused(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        detach(take)
        assert psks(take) == 0
        give.sh(OTHER_PSK)
        refused = refusal(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        assert "handshake of TLS" in refused
        assert "NVMeTLSkey" not in refused
        assert (controllers(take), psks(take)) == (0, 0)
        give.sh(f"keyctl unlink $({PSK}) %:.nvme")
        assert truth(give, "Acl") == "ABSENT"
        ctl(give, "volume", "sync", NAME)  # it puts the key back
        attach(take)
        assert psks(give) == 1
        detach(take)

    def test_nothing_is_left(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        remove(give)
        assert (psks(give), psks(take)) == (0, 0)
        assert leak_check.leaks(pair) == []
