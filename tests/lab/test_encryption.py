"""Encrypted volumes with real ZFS: the sealed key, a power cut, rotation, recovery, deletion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import NAME, STEP_S, TEST_S, attach, ctl, refusal
from tests.lab.test_recovery import EXPORTED, LOGGED_IN, RECOVERY_S, read, write

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

ZVOL = f"tank/zfsilo/{NAME}"
COPY = "tank/zfsilo/copy"
FILE = "/var/lib/zfsilo/key"
SHOW_KEY = f"script -qec 'zfsiloctl volume recovery-key {NAME}' /dev/null < /dev/null"
LOAD_KEY = "python3 -c 'import os; os.write(1, bytes.fromhex(input()))' | zfs load-key " + ZVOL
LOSE_STORE = """
systemctl stop zfsilod.socket zfsilod.service
mv /var/lib/zfsilo/store /root/lost
systemctl start zfsilod.socket zfsilod.service
"""
# What dsl_dir_rename_crypt_check() of ZFS refuses, on which the deletion of clones depends.
MOVE_CLONE = f"zfs create tank/zfsilo/aside && zfs rename {COPY} tank/zfsilo/aside/copy"


def get(give: Machine, properties: str, dataset: str = ZVOL) -> list[str]:
    """Return native properties of a dataset."""
    words = ("zfs", "get", "-H", "-o", "value", properties, dataset)
    return give.run(*words, timeout_s=STEP_S).stdout.split("\n")[:-1]


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestEncryption:
    """The life of an encrypted volume."""

    def test_the_key_of_the_store_is_sealed_first(self, pair: Pair) -> None:
        give = pair.give
        words = ("create", NAME, "1G", "--host", "take", "--encrypt")
        assert "zfsiloctl seal-key" in refusal(give, "volume", *words)
        ctl(give, "seal-key", "--yes")
        assert give.run("test", "-e", FILE, check=False).rc != 0
        ctl(give, "volume", *words)
        assert get(give, "encryption,keyformat,keylocation,encryptionroot,keystatus") == [
            "aes-256-gcm",
            "raw",
            "prompt",
            ZVOL,
            "available",
        ]

    def test_the_key_is_loaded_after_a_power_cut(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "publish", NAME, "take")
        attach(take)
        written = write(take)
        ctl(give, "volume", "rotate-key", NAME)
        assert read(take) == written
        print(f"give was up after {give.power_cut():.1f} s")
        waited = give.sh(EXPORTED, timeout_s=RECOVERY_S)
        print(f"the export was restored after {waited.seconds:.1f} s more")
        take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
        assert get(give, "keystatus") == ["available"]
        assert read(take) == written
        assert give.run("test", "-e", FILE, check=False).rc != 0
        ctl(take, "volume", "disconnect", NAME, "--force")
        ctl(give, "volume", "unpublish", NAME, "--all")

    def test_a_clone_has_the_key_of_its_origin(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "create", "copy", "--from-volume", NAME)
        assert get(give, "encryptionroot", COPY) == [ZVOL]
        assert "use that volume" in refusal(give, "volume", "rotate-key", "copy")
        moved = give.sh(MOVE_CLONE, timeout_s=STEP_S, check=False)
        print(moved.stderr)
        assert moved.rc != 0
        give.run("zfs", "destroy", "tank/zfsilo/aside")
        ctl(give, "volume", "rotate-key", NAME)  # for both
        ctl(give, "volume", "delete", "copy", "--yes")

    def test_a_key_that_is_not_loaded_is_named_and_loaded(self, pair: Pair) -> None:
        give = pair.give
        give.run("zfs", "unload-key", ZVOL, timeout_s=STEP_S)
        probed = give.run("zfsiloctl", "volume", "probe", NAME, check=False, timeout_s=STEP_S)
        assert re.search(r"key is loaded", probed.stdout), probed.stdout
        ctl(give, "volume", "sync", NAME)
        assert get(give, "keystatus") == ["available"]

    def test_the_zvol_carries_its_key_for_a_new_store(self, pair: Pair) -> None:
        give = pair.give
        give.sh(LOSE_STORE, timeout_s=STEP_S)
        give.run("zfs", "unload-key", ZVOL, timeout_s=STEP_S)
        ctl(give, "adopt", "--all", "--take-over", "--yes")
        ctl(give, "volume", "sync", NAME)
        assert get(give, "keystatus") == ["available"]
        ctl(give, "volume", "rotate-key", NAME)

    def test_the_recovery_key_opens_what_zfsilo_cannot(self, pair: Pair) -> None:
        give = pair.give
        shown = give.sh(SHOW_KEY, timeout_s=STEP_S).stdout
        (key,) = re.findall(r"^  ([0-9a-f]{64})\r?$", shown, re.M)
        again = give.sh(SHOW_KEY, timeout_s=STEP_S, check=False)
        assert "was shown already" in again.stdout
        give.sh(LOSE_STORE.replace("lost", "lost-again"), timeout_s=STEP_S)
        give.run("zfs", "inherit", "zfsilo:sealed_key", ZVOL, timeout_s=STEP_S)
        give.run("zfs", "unload-key", ZVOL, timeout_s=STEP_S)
        ctl(give, "adopt", "--all", "--take-over", "--yes")
        assert "rotate-key" in refusal(give, "volume", "sync", NAME)
        give.run("sh", "-c", LOAD_KEY, input=key + "\n", timeout_s=STEP_S)
        ctl(give, "volume", "rotate-key", NAME)
        give.run("zfs", "unload-key", ZVOL, timeout_s=STEP_S)
        ctl(give, "volume", "sync", NAME)
        assert get(give, "keystatus") == ["available"]
        # The former key opens it no more.
        give.run("zfs", "unload-key", ZVOL, timeout_s=STEP_S)
        wrong = give.run("sh", "-c", LOAD_KEY, input=key + "\n", check=False, timeout_s=STEP_S)
        assert "Incorrect key" in wrong.stderr, wrong.stderr

    def test_a_deletion_leaves_nothing(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []
