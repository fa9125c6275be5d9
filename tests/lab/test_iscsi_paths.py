"""iSCSI over several portals under writes: a map of dm-multipath; one path without multipathd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import debian_tools, leak_check
from tests.lab.images.build import images
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import ready
from tests.lab.test_nvme import attach, detach
from tests.lab.test_nvme_paths import (
    DEVICE,
    PORTALS_FILE,
    assert_writing,
    refreshed,
    start_writer,
    writes,
)
from tests.lab.test_recovery import NAME, PATH, STEP_S, TEST_S, ctl, remove
from zfsilod.host.maps import wwid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

FIRST, SECOND, THIRD = "10.77.0.1:3260", "10.88.0.1:3260", "10.77.0.9:3260"
START = "systemctl daemon-reload; systemctl start multipathd.service"
# The state and the portal of each session.
SESSIONS = r"""
for folder in /sys/class/iscsi_session/session*; do
    [ -e "$folder" ] || continue
    number=${folder##*/session}
    cd /sys/class/iscsi_connection/connection$number:0
    echo "$(cat $folder/state) $(cat persistent_address):$(cat persistent_port)"
done | sort
"""
# The names of the maps, and of the paths of each that the kernel uses.
MAPS = "cat /sys/class/block/dm-*/dm/uuid"
ACTIVE = "dmsetup status --target multipath | grep -o ' [0-9]*:[0-9]* A ' | wc -l"
TABLE = "dmsetup table --target multipath"
SIZE = "cat /sys/class/block/dm-*/size"
# Random writes that are read back and compared, for longer than the loss of a path takes.
FIO_S = 60
FIO = f"""
systemd-run -q --unit=verifier --property=RemainAfterExit=yes fio --name=verified \\
    --filename={PATH}/verified --size=64M --rw=randwrite --bs=16k --direct=1 --ioengine=libaio \\
    --iodepth=8 --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based \\
    --runtime={FIO_S} --output=/run/fio
until [ -e {PATH}/verified ]; do sleep 0.2; done
"""
FIO_ENDED = """
until [ "$(systemctl show -P SubState verifier)" != running ]; do sleep 0.5; done
systemctl show -P Result verifier
grep -E 'err=|IOPS' /run/fio
"""
LEFT = "ls -d /sys/class/block/dm-* /sys/class/iscsi_session/* 2>/dev/null | wc -l"


@pytest.fixture(scope="class")
def pair() -> Iterator[Pair]:
    """Two machines with zfsilo; multipath-tools is installed, and multipathd does not run yet."""
    tools = debian_tools.disk(images().buildroot, "lvm2", "multipath-tools")
    with restore_pair(ready(), code=tools) as restored:
        debian_tools.install(restored.take)
        for address in ("10.88.0.1", "10.77.0.9"):
            restored.give.sh(f"ip address add {address}/24 dev {DEVICE}")
        restored.take.sh(f"ip address add 10.88.0.2/24 dev {DEVICE}")
        set_portals(restored.give, FIRST, SECOND)
        yield restored


def set_portals(give: Machine, *portals: str) -> None:
    """Let the targets of the server listen at these portals."""
    text = f"[server]\nportals = {json.dumps(portals)}\n"
    give.put(PORTALS_FILE, text.encode(), 0o644)
    give.run("systemctl", "restart", "zfsilod.service", timeout_s=STEP_S)


def publish(give: Machine, take: Machine) -> None:
    """Create a volume, publish it over iSCSI, and mount it."""
    ctl(give, "volume", "create", NAME, "1G", "--host", "take")
    ctl(give, "volume", "publish", NAME, "take")
    attach(take)


def wait_for_sessions(take: Machine, *sessions: str) -> None:
    """Wait until the client has exactly these sessions, as "STATE PORTAL"."""
    wanted = "\n".join(sorted(sessions))
    loop = f"until [ \"$({SESSIONS})\" = '{wanted}' ]; do sleep 0.5; done"
    waited = take.sh(loop, timeout_s=STEP_S)
    print(f"{', '.join(sessions)}: after {waited.seconds:.1f} s")


def wait_for_paths(take: Machine, count: int) -> None:
    """Wait until the map has this number of paths that the kernel uses."""
    take.sh(f'until [ "$({ACTIVE})" = {count} ]; do sleep 0.5; done', timeout_s=STEP_S)


def assert_no_errors(take: Machine) -> None:
    """Check that the writer runs, and that no I/O of map or filesystem failed; that of a path may.

    The kernel reports the requests of a lost path as errors of its disk, then sends them elsewhere.
    """
    take.sh("systemctl is-active writer")
    failed = "I/O error, dev dm-|Buffer I/O error|EXT4-fs error|Remounting filesystem"
    assert take.sh(f"dmesg | grep -cE '{failed}' || true").stdout.strip() == "0"


def secrets_of(take: Machine) -> set[str]:
    """Return digests of the secrets of the sessions, which must not be logged."""
    digests = "for file in /sys/class/iscsi_session/*/password; do sha256sum <$file; done"
    return set(take.sh(digests).stdout.splitlines())


def status(take: Machine) -> str:
    """Return what needs attention on the client."""
    return take.sh("zfsiloctl status", check=False, timeout_s=STEP_S).stdout


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestIscsiPaths:
    """A volume whose server has two portals, and then others."""

    def test_without_multipathd_there_is_one_path_and_it_says_so(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        publish(give, take)
        wait_for_sessions(take, f"LOGGED_IN {FIRST}")
        assert "uses one of its 2 portals" in status(take)
        assert "multipathd is not running" in take.run("zfsiloctl", "doctor", check=False).stdout
        detach(take)
        remove(give)

    def test_the_sessions_at_both_portals_are_one_map(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh(START, timeout_s=STEP_S)
        publish(give, take)
        wait_for_sessions(take, f"LOGGED_IN {FIRST}", f"LOGGED_IN {SECOND}")
        wait_for_paths(take, 2)
        shown = json.loads(take.run("zfsiloctl", "volume", "show", NAME, "--json").stdout)
        wwid = wwid_of(shown["attachment"]["disk"]["serial"])
        assert take.sh(MAPS).stdout.split() == [f"mpath-{wwid}"]
        assert take.sh(f"findmnt -no MAJ:MIN {PATH}").stdout.strip().startswith("25")
        assert "ID_FS_TYPE" not in take.sh("udevadm info /dev/dm-*").stdout
        assert "portals" not in status(take)
        start_writer(take)
        assert_writing(take)

    def test_a_lost_path_costs_no_error_and_comes_back(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh(FIO, timeout_s=STEP_S)
        give.sh(f"ip address del 10.88.0.1/24 dev {DEVICE}")
        wait_for_sessions(take, f"LOGGED_IN {FIRST}", f"FAILED {SECOND}")
        wait_for_paths(take, 1)
        assert f"has lost its path at {SECOND}" in status(take)
        assert_writing(take)
        assert_no_errors(take)
        give.sh(f"ip address add 10.88.0.1/24 dev {DEVICE}")
        wait_for_sessions(take, f"LOGGED_IN {FIRST}", f"LOGGED_IN {SECOND}")
        wait_for_paths(take, 2)
        assert "has lost its path" not in status(take)
        assert_writing(take)
        verified = take.sh(FIO_ENDED, timeout_s=STEP_S + FIO_S).stdout
        print(verified)
        assert verified.startswith("success\n")
        assert "err= 0" in verified
        assert_no_errors(take)
        print(f"longest write: {writes(take)[1]} ms")

    def test_growth_and_discard_reach_the_zvol_by_the_map(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "resize", NAME, "2G")
        ctl(take, "volume", "grow", NAME)
        assert int(take.sh(SIZE).stdout) * 512 == 2 << 30
        assert "2.0G" in take.sh(f"df -h --output=size {PATH}").stdout or int(
            take.sh(f"df -B1 --output=size {PATH} | tail -1").stdout
        ) > (1800 << 20)
        assert "trimmed" in take.sh(f"fstrim -v {PATH}", timeout_s=STEP_S).stdout
        assert_writing(take)
        assert_no_errors(take)

    def test_each_session_gets_the_new_secrets(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        before = secrets_of(take)
        ctl(give, "rotate-secrets", NAME)
        refreshed(take)
        now = secrets_of(take)
        assert len(before) == len(now) == 1, "the same for both sessions"
        assert before != now
        wait_for_sessions(take, f"LOGGED_IN {FIRST}", f"LOGGED_IN {SECOND}")
        wait_for_paths(take, 2)
        assert_writing(take)
        assert_no_errors(take)

    def test_a_portal_that_appears_takes_the_place_of_another(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        set_portals(give, SECOND, THIRD)
        wait_for_sessions(take, f"LOGGED_IN {SECOND}", f"LOGGED_IN {THIRD}")
        wait_for_paths(take, 2)
        assert_writing(take)
        assert_no_errors(take)

    def test_the_map_waits_for_a_server_that_moves(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(
            f"ip address del 10.88.0.1/24 dev {DEVICE}; ip address del 10.77.0.9/24 dev {DEVICE}"
        )
        set_portals(give, FIRST)
        wait_for_sessions(take, f"LOGGED_IN {FIRST}")
        wait_for_paths(take, 1)
        assert_writing(take)
        take.sh("systemctl is-active writer")

    def test_nothing_is_left_of_the_map(self, pair: Pair) -> None:
        take = pair.take
        take.sh("systemctl stop writer")
        detach(take)
        assert take.sh(LEFT).stdout.strip() == "0"
        assert "\n/36001405" not in take.sh("cat /etc/multipath/wwids").stdout
        remove(pair.give)
        assert leak_check.leaks(pair) == []

    def test_a_fenced_client_does_not_hang_on_its_map(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(f"ip address add 10.88.0.1/24 dev {DEVICE}")
        set_portals(give, FIRST, SECOND)
        publish(give, take)
        wait_for_paths(take, 2)
        take.sh("rm /run/writer")  # of the tests before
        start_writer(take)
        assert_writing(take)
        ctl(give, "volume", "unpublish", NAME, "take", "--fence")
        take.sh("until ! systemctl is-active writer; do sleep 0.5; done", timeout_s=STEP_S)
        wait_for_sessions(take)
        # The mounted map stays. multipathd lets it wait again as it removes the first path.
        take.sh(f"until {TABLE} | grep -v queue_if_no_path; do sleep 0.5; done", timeout_s=STEP_S)
        ctl(take, "volume", "disconnect", NAME, "--force")
        take.sh(f'until [ "$({LEFT})" = 0 ]; do sleep 0.5; done', timeout_s=STEP_S)
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []
